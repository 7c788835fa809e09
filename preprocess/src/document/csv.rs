//! Documents of CSV and TSV: the fields of every row, by the names in the first one, as pandas and so `datasets` read them.
//!
//! Quotes are doubled inside quoted fields; a row may lack fields at its end. Two things pandas does are not done: a text
//! such as `NA` or `null` stays text, and so does an empty one.

use std::io::Read;

use csv_core::ReadRecordResult;
use tokenmill_shared::{Error, Location, Result};

use super::fields::Text;
use super::lines::LINE_LIMIT;
use super::{Bad, Document, Extent, Flow, PASS_OVER, Reading, Reason, Sink, invalid_encoding, no_column, too_long};
use crate::decode;
use crate::encoding::{TextEncoding, Transcoded};

/// Hands the text of every row from where reading starts on to `sink`.
pub(super) fn for_each(reading: &Reading<'_>, delimiter: u8, sink: &mut dyn Sink) -> Result<()> {
    let start = reading.start;
    let mark = if start.is_beginning() {
        start.at
    } else {
        super::Start::of(reading.input, reading.rules, reading.read_bytes)?.at
    };
    let mut rows = Rows::open(reading, delimiter, mark)?;
    let Some(header) = rows.next_row()? else { return Ok(()) };
    let names = rows.header(header)?;
    let mut columns = Vec::new();
    for path in &reading.fields.paths {
        let name = path.keys.first().filter(|_| path.keys.len() == 1).unwrap_or(&path.shown);
        let Some(column) = names.iter().position(|other| other == name) else {
            return Err(no_column(reading, path, &names));
        };
        columns.push(column);
    }
    if !start.is_beginning() {
        rows = Rows::open(reading, delimiter, start.at)?;
    }
    let mut record = start.records;
    let mut scratch = vec![String::new(); columns.len()];
    while let Some(row) = rows.next_row()? {
        record += 1;
        let at = || Location::record(&reading.input.name, record).at_byte(row.offset);
        let flow = match rows.texts(row, &columns, names.len(), &mut scratch, &at) {
            Err(Bad { reason, error, .. }) => sink.bad(Bad { reason, error, bytes: rows.bytes(row) })?,
            Ok(texts) => match reading.fields.join(&texts, &|| names.clone(), &at) {
                Ok(text) if text.len() > LINE_LIMIT => {
                    sink.bad(Bad::whole(Reason::TooLong, too_long(at(), text.len() as u64)))?
                }
                Ok(text) => sink.document(Document {
                    text: &text,
                    extent: Extent::WHOLE,
                    record,
                    begin: row.offset,
                    end: row.end,
                })?,
                Err(Bad { reason, error, .. }) => sink.bad(Bad { reason, error, bytes: rows.bytes(row) })?,
            },
        };
        if flow == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// A row in the buffers of [`Rows`].
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Fields of it that are there.
    fields: usize,
    offset: u64,
    end: u64,
    /// Whether a quoted field was open when the file ended.
    is_open: bool,
    /// Bytes of its fields, if that is more than [`LINE_LIMIT`]; then they are gone.
    too_long: Option<u64>,
}

struct Rows<'a> {
    reading: &'a Reading<'a>,
    parser: csv_core::Reader,
    reader: Box<dyn Read>,
    /// Of the fields; UTF-16 is UTF-8 by now, because its commas are no bytes.
    encoding: TextEncoding,
    input: Vec<u8>,
    begin: usize,
    filled: usize,
    offset: u64,
    ended: bool,
    output: Vec<u8>,
    ends: Vec<usize>,
}

impl<'a> Rows<'a> {
    fn open(reading: &'a Reading<'a>, delimiter: u8, offset: u64) -> Result<Self> {
        let Reading { input, rules, start, .. } = *reading;
        let mut reader: Box<dyn Read>;
        if start.encoding.is_wide() {
            let mark = super::Start::of(input, rules, reading.read_bytes)?.at;
            let raw = decode::enter(input, mark, reading.read_bytes)?;
            reader = Box::new(Transcoded::new(raw, start.encoding, rules.encoding_errors, mark));
            // Offsets are those of the text as UTF-8, behind the mark.
            std::io::copy(&mut (&mut reader).take(offset.saturating_sub(mark)), &mut std::io::sink())
                .map_err(|error| decode::explain(input, 0, error))?;
        } else {
            reader = decode::enter(input, offset, reading.read_bytes)?;
        }
        Ok(Self {
            reading,
            parser: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            reader,
            encoding: if start.encoding.is_wide() { TextEncoding::Utf8 } else { start.encoding },
            input: vec![0; 256 << 10],
            begin: 0,
            filled: 0,
            offset,
            ended: false,
            output: vec![0; 64 << 10],
            ends: vec![0; 64],
        })
    }

    /// Reads, if nothing is there.
    fn fill(&mut self) -> Result<()> {
        while self.begin == self.filled && !self.ended {
            match self.reader.read(&mut self.input) {
                Ok(read) => {
                    (self.begin, self.filled) = (0, read);
                    self.ended = read == 0;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(decode::explain(self.reading.input, self.offset, error)),
            }
        }
        Ok(())
    }

    /// The next row that is not blank; `None` at the end.
    fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            self.fill()?;
            let blank = self.input[self.begin..self.filled].iter().take_while(|byte| b"\r\n".contains(byte)).count();
            self.begin += blank;
            self.offset += blank as u64;
            if self.begin < self.filled {
                break;
            }
            if self.ended {
                return Ok(None);
            }
        }
        let offset = self.offset;
        let (mut written, mut ends, mut dropped) = (0, 0, 0);
        loop {
            self.fill()?;
            // A line end closes the last row, unless that is inside a quoted field.
            let input = if self.ended { &b"\n"[..] } else { &self.input[self.begin..self.filled] };
            let (result, read, wrote, ended) =
                self.parser.read_record(input, &mut self.output[written..], &mut self.ends[ends..]);
            written += wrote;
            ends += ended;
            if !self.ended {
                self.begin += read;
                self.offset += read as u64;
            }
            let row = |is_open| Row {
                fields: ends,
                offset,
                end: self.offset,
                is_open,
                too_long: (dropped > 0).then_some(dropped + written as u64),
            };
            match result {
                ReadRecordResult::Record => return Ok(Some(row(false))),
                ReadRecordResult::InputEmpty | ReadRecordResult::End if self.ended => return Ok(Some(row(true))),
                ReadRecordResult::InputEmpty | ReadRecordResult::End => {}
                ReadRecordResult::OutputFull if written > LINE_LIMIT => {
                    // It cannot become a document; how long it is still counts.
                    dropped += written as u64;
                    written = 0;
                }
                ReadRecordResult::OutputFull => self.output.resize(self.output.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if ends > FIELDS_LIMIT => {
                    let reason = format!("has a row of more than {FIELDS_LIMIT} fields; correct or remove the file");
                    return Err(Error::input(self.reading.input.at().at_byte(offset), reason));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
            }
        }
    }

    /// The bytes of a field.
    fn field(&self, index: usize) -> &[u8] {
        let begin = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.output[begin..self.ends[index]]
    }

    /// All fields of a row, one after another.
    fn bytes(&self, row: Row) -> Option<&[u8]> {
        let whole = row.too_long.is_none() && row.fields > 0;
        whole.then(|| &self.output[..self.ends[row.fields - 1]])
    }

    fn header(&self, row: Row) -> Result<Vec<String>> {
        let at = || self.reading.input.at().at_byte(row.offset);
        if row.is_open || row.too_long.is_some() {
            return Err(Error::input(at(), "its first row, which names the columns, has a quote that is not closed"));
        }
        let name = |index| {
            let mut scratch = String::new();
            let text = self.encoding.decode(self.field(index), self.reading.rules.encoding_errors, &mut scratch);
            text.map(str::to_owned).map_err(|_| invalid_encoding(at()))
        };
        (0..row.fields).map(name).collect()
    }

    /// The texts of the wanted columns.
    fn texts<'s>(
        &'s self,
        row: Row,
        columns: &[usize],
        named: usize,
        scratch: &'s mut [String],
        at: &dyn Fn() -> Location,
    ) -> std::result::Result<Vec<Text<'s>>, Bad<'static>> {
        let refuse = |what: String| Bad::whole(Reason::InvalidRow, Error::input(at(), what));
        if let Some(found) = row.too_long {
            return Err(Bad::whole(Reason::TooLong, too_long(at(), found)));
        }
        if row.is_open {
            return Err(refuse(format!("a quoted field of the row is not closed; correct or remove it, {PASS_OVER}")));
        }
        if row.fields > named {
            let what = format!("has {} fields and the first row has {named}; correct the row, {PASS_OVER}", row.fields);
            return Err(refuse(what));
        }
        let text = |(column, scratch): (&usize, &'s mut String)| {
            if *column >= row.fields {
                return Ok(Text::Missing);
            }
            let text = self.encoding.decode(self.field(*column), self.reading.rules.encoding_errors, scratch);
            let invalid = |_| Bad::whole(Reason::InvalidEncoding, invalid_encoding(at()));
            text.map(|text| Text::Is(text.into())).map_err(invalid)
        };
        columns.iter().zip(scratch).map(text).collect()
    }
}

/// Fields of a row, at most.
const FIELDS_LIMIT: usize = 1 << 20;
