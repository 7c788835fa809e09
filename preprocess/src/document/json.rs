//! Documents of JSON: one object a line, an array of objects, or objects one after another.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use tokenmill_shared::config::EncodingErrors;
use tokenmill_shared::{Error, Location, Result};

use super::fields::Record;
use super::lines::{LINE_LIMIT, Lines, Newlines};
use super::long_record::LongRecord;
use super::{Bad, Document, Extent, Flow, PASS_OVER, Reading, Reason, Sink, invalid_encoding, too_long};
use crate::decode;
use crate::encoding::{TextEncoding, Transcoded};

/// One object a line; blank lines are none.
pub(super) fn lines(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let encoding = reading.start.encoding;
    let long_from = LongRecord::from_bytes(reading);
    let mut lines = Lines::open_in_pieces(reading, Newlines::LineFeed, long_from)?;
    let mut record = reading.start.records;
    let mut scratch = String::new();
    let mut long = None;
    while let Some(line) = lines.next_line()? {
        if long.is_some() || line.goes_on || long_from.is_some_and(|bytes| lines.content(line).len() >= bytes) {
            let whole: &mut LongRecord<'_> = long.get_or_insert_with(|| {
                record += 1;
                LongRecord::new(reading, record, line.offset)
            });
            let mut flow = whole.push(lines.content(line), line.offset, sink)?;
            if !line.goes_on && flow == Flow::Continue {
                flow = whole.end(line.end, sink)?;
                long = None;
            }
            if flow == Flow::Stop {
                break;
            }
            continue;
        }
        record += 1;
        let bytes = lines.content(line);
        let at = || Location::record(&reading.input.name, record).at_byte(line.offset);
        let mut bad = |reason, error| sink.bad(Bad { reason, error: Box::new(error), bytes: Some(bytes) });
        let flow = if line.is_too_long() {
            sink.bad(Bad::whole(Reason::TooLong, too_long(at(), line.end - line.offset)))?
        } else {
            match encoding.decode(bytes, reading.rules.encoding_errors, &mut scratch) {
                Err(from) => {
                    let at = Location::record(&reading.input.name, record).at_byte(line.offset + from as u64);
                    bad(Reason::InvalidEncoding, invalid_encoding(at))?
                }
                Ok(json) if json.bytes().all(|byte| byte.is_ascii_whitespace()) => continue,
                Ok(json) => match reading.fields.of(json) {
                    Err(error) => {
                        let reason = format!("is not a JSON object ({error}); correct or remove the line, {PASS_OVER}");
                        bad(Reason::InvalidJson, Error::input(at(), reason))?
                    }
                    Ok(found) => match reading.fields.join(&found.texts, &|| found.names.clone(), &at) {
                        Ok(text) if text.len() > LINE_LIMIT => bad(Reason::TooLong, too_long(at(), text.len() as u64))?,
                        Ok(text) => sink.document(Document {
                            text: &text,
                            extent: Extent::WHOLE,
                            record,
                            begin: line.offset,
                            end: line.end,
                        })?,
                        Err(Bad { reason, error, .. }) => bad(reason, *error)?,
                    },
                },
            }
        };
        if flow == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// An array of objects, or objects one after another; read as a stream, one record in memory.
pub(super) fn stream(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let Reading { input, rules, start, .. } = *reading;
    let since_record = Rc::new(Cell::new(0));
    let mark = if start.is_beginning() { start.at } else { byte_order_mark(reading)? };
    let bytes = decode::enter(input, mark, reading.read_bytes)?;
    let bytes: Box<dyn Read> =
        if start.encoding == TextEncoding::Utf8 && rules.encoding_errors == EncodingErrors::Strict {
            bytes
        } else {
            Box::new(Transcoded::new(bytes, start.encoding, rules.encoding_errors, mark))
        };
    let mut reader =
        BufReader::with_capacity(256 << 10, Bounded { reader: bytes, since_record: Rc::clone(&since_record) });
    let is_array = loop {
        let buffer = reader.fill_buf().map_err(|error| decode::explain(input, 0, error))?;
        match buffer.iter().position(|byte| !byte.is_ascii_whitespace()) {
            _ if buffer.is_empty() => return Ok(()),
            Some(at) => break buffer[at] == b'[',
            None => {
                let length = buffer.len();
                reader.consume(length);
            }
        }
    };
    let mut records = Records { reading, since_record, record: 0, failed: None, sink };
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let result = if is_array {
        (&mut deserializer).deserialize_seq(&mut records).and_then(|()| deserializer.end())
    } else {
        objects(&mut deserializer, &mut records)
    };
    if let Some(error) = records.failed.take() {
        return match error {
            Stopped::Wanted => Ok(()),
            Stopped::Failed(error) => Err(error),
        };
    }
    result.map_err(|error| {
        let at = Location::record(&input.name, records.record + 1);
        if error.to_string().contains(RECORD_TOO_LONG) {
            return too_long(at, 2 * LINE_LIMIT as u64);
        }
        if error.is_io() {
            return decode::explain(input, 0, error.into());
        }
        // Where the next record begins cannot be told, so there is no passing over it.
        Error::input(at, format!("is not a JSON object ({error}); correct or remove the record"))
    })
}

/// Bytes of a byte order mark: a later start counts records, not bytes.
fn byte_order_mark(reading: &Reading<'_>) -> Result<u64> {
    Ok(super::Start::of(reading.input, reading.rules, reading.read_bytes)?.at)
}

fn objects<R: Read>(
    deserializer: &mut serde_json::Deserializer<serde_json::de::IoRead<R>>,
    records: &mut Records<'_, '_, '_>,
) -> serde_json::Result<()> {
    // `end` fails exactly when another value follows.
    while deserializer.end().is_err() {
        let record = records.reading.fields.deserialize(&mut *deserializer)?;
        if !records.take(&record) {
            break;
        }
    }
    Ok(())
}

/// Refuses a record that goes on beyond twice the document limit before the parser has stored all of it.
struct Bounded<R> {
    reader: R,
    /// Bytes read since the last whole record.
    since_record: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.since_record.set(self.since_record.get() + read as u64);
        if self.since_record.get() > 2 * LINE_LIMIT as u64 {
            return Err(std::io::Error::other(RECORD_TOO_LONG));
        }
        Ok(read)
    }
}

const RECORD_TOO_LONG: &str = "a record without end";

enum Stopped {
    Wanted,
    Failed(Error),
}

struct Records<'r, 'a, 's> {
    reading: &'r Reading<'a>,
    since_record: Rc<Cell<u64>>,
    record: u64,
    failed: Option<Stopped>,
    sink: &'s mut dyn Sink,
}

impl Records<'_, '_, '_> {
    /// Hands one record on; false to stop.
    fn take(&mut self, found: &Record<'_>) -> bool {
        self.record += 1;
        self.since_record.set(0);
        if self.record <= self.reading.start.records {
            return true;
        }
        let at = || Location::record(&self.reading.input.name, self.record);
        let flow = match self.reading.fields.join(&found.texts, &|| found.names.clone(), &at) {
            Ok(text) if text.len() > LINE_LIMIT => {
                self.sink.bad(Bad::whole(Reason::TooLong, too_long(at(), text.len() as u64)))
            }
            Ok(text) => self.sink.document(Document {
                text: &text,
                extent: Extent::WHOLE,
                record: self.record,
                begin: self.record - 1,
                end: self.record,
            }),
            Err(bad) => self.sink.bad(bad),
        };
        self.failed = match flow {
            Ok(Flow::Continue) => return true,
            Ok(Flow::Stop) => Some(Stopped::Wanted),
            Err(error) => Some(Stopped::Failed(error)),
        };
        false
    }
}

impl<'de> Visitor<'de> for &mut Records<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while let Some(record) = seq.next_element_seed(&self.reading.fields)? {
            if !self.take(&record) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
