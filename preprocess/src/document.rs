//! From decompressed bytes to documents: the text semantics of Hugging Face's `text` and `json` loaders.
//!
//! - `.txt` is read as Python's text mode reads it: UTF-8, `\r\n` and `\r` become `\n`, nothing else ends a
//!   line, a byte order mark stays. `line`: blank lines are documents; with `keep_linebreaks` each line
//!   keeps its `\n`. `paragraph`: split on `\n\n`, empty ones left out. `document`: the whole file.
//! - `.jsonl`, `.json`, `.parquet`: the text field of every record; blank lines are not records.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use tokenmill_shared::config::SampleBy;
use tokenmill_shared::{Error, Location, Result};

use crate::json::{Text, TextField};
use crate::lines::{LINE_LIMIT, Lines, Newlines, too_long};
use crate::source::{Compression, Input, Kind};
use crate::{decode, parquet};

/// What makes documents of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// What a document is in a `.txt` file.
    pub sample_by: SampleBy,
    /// Whether lines keep their `\n`.
    pub keep_linebreaks: bool,
    /// The field or column that holds the text.
    pub text_field: String,
}

/// One document.
#[derive(Debug)]
pub struct Document<'a> {
    /// Its text.
    pub text: &'a str,
    /// Line, record or row number, from 1.
    pub record: u64,
    /// Where the next document begins: a byte offset in the decompressed file, or a row for parquet.
    pub end: u64,
}

/// Where to begin in a file: at a document border seen before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Byte offset in the decompressed file, or row for parquet.
    pub at: u64,
    /// Records before it.
    pub records: u64,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// To the next document.
    Continue,
    /// No further.
    Stop,
}

/// Takes each document in turn.
pub type Each<'a> = dyn FnMut(Document<'_>) -> Result<Flow> + 'a;

/// Hands every document of `input` from `start` on to `each`, in order.
///
/// # Errors
/// Those of `each`, and everything that is wrong with the file, with record and byte.
pub fn for_each(input: &Input, rules: &Rules, start: Start, read_bytes: usize, each: &mut Each<'_>) -> Result<()> {
    match input.kind {
        Kind::Parquet => parquet::for_each(input, &rules.text_field, start, each),
        Kind::JsonLines => json_lines(input, &rules.text_field, start, read_bytes, each),
        Kind::Json => json(input, &rules.text_field, start, read_bytes, each),
        Kind::Text => match rules.sample_by {
            SampleBy::Line => text_lines(input, rules.keep_linebreaks, start, read_bytes, each),
            SampleBy::Paragraph => paragraphs(input, start, read_bytes, each),
            SampleBy::Document => whole_file(input, read_bytes, each),
        },
    }
}

/// Lines from `start` on, and the number of records before the first one returned. Compressed files are
/// entered by decompressing what lies before.
fn lines_from(input: &Input, start: Start, read_bytes: usize, newlines: Newlines) -> Result<Lines<'_>> {
    if input.compression == Compression::None {
        return Ok(Lines::new(input, decode::open_at(input, start.at, read_bytes)?, start.at, newlines));
    }
    let mut reader = decode::open(input, read_bytes)?;
    let skipped = std::io::copy(&mut (&mut reader).take(start.at), &mut std::io::sink())
        .map_err(|error| decode::explain(input, 0, error))?;
    Ok(Lines::new(input, reader, skipped, newlines))
}

fn text_lines(
    input: &Input,
    keep_linebreaks: bool,
    start: Start,
    read_bytes: usize,
    each: &mut Each<'_>,
) -> Result<()> {
    let mut lines = lines_from(input, start, read_bytes, Newlines::Universal)?;
    let mut record = start.records;
    let mut joined = Vec::new();
    while let Some(line) = lines.next_line(record + 1)? {
        record += 1;
        let bytes = match lines.content_and_newline(line) {
            Some(bytes) if keep_linebreaks => bytes,
            _ if keep_linebreaks && line.terminated => {
                joined.clear();
                joined.extend_from_slice(lines.content(line));
                joined.push(b'\n');
                &joined
            }
            _ => lines.content(line),
        };
        let text = utf8(bytes, input, record, line.offset)?;
        if each(Document { text, record, end: line.end })? == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// Python's `text.split("\n\n")` without empty pieces, on the normalised text.
fn paragraphs(input: &Input, start: Start, read_bytes: usize, each: &mut Each<'_>) -> Result<()> {
    let mut lines = lines_from(input, start, read_bytes, Newlines::Universal)?;
    let mut record = start.records;
    let mut line_number = 0;
    let mut paragraph = String::new();
    // Whether `paragraph` ends in a newline that may be the first of a separator.
    let mut newline_open = false;
    while let Some(line) = lines.next_line(record + 1)? {
        line_number += 1;
        let content = lines.content(line);
        if !content.is_empty() {
            newline_open = false;
            paragraph.push_str(utf8(content, input, line_number, line.offset)?);
        }
        if line.terminated && newline_open {
            paragraph.pop();
            newline_open = false;
            if !paragraph.is_empty() {
                record += 1;
                if each(Document { text: &paragraph, record, end: line.end })? == Flow::Stop {
                    return Ok(());
                }
                paragraph.clear();
            }
        } else if line.terminated {
            paragraph.push('\n');
            newline_open = true;
        }
        if paragraph.len() > LINE_LIMIT {
            return Err(too_long(Location::record(&input.path, record + 1).at_byte(line.end), paragraph.len() as u64));
        }
    }
    if !paragraph.is_empty() {
        each(Document { text: &paragraph, record: record + 1, end: u64::MAX })?;
    }
    Ok(())
}

fn whole_file(input: &Input, read_bytes: usize, each: &mut Each<'_>) -> Result<()> {
    let mut lines = lines_from(input, Start::default(), read_bytes, Newlines::Universal)?;
    let mut text = String::new();
    let mut line_number = 0;
    while let Some(line) = lines.next_line(line_number + 1)? {
        line_number += 1;
        text.push_str(utf8(lines.content(line), input, line_number, line.offset)?);
        if line.terminated {
            text.push('\n');
        }
        if text.len() > LINE_LIMIT {
            return Err(too_long(Location::record(&input.path, 1).at_byte(line.end), text.len() as u64));
        }
    }
    each(Document { text: &text, record: 1, end: u64::MAX })?;
    Ok(())
}

fn json_lines(input: &Input, field: &str, start: Start, read_bytes: usize, each: &mut Each<'_>) -> Result<()> {
    let mut lines = lines_from(input, start, read_bytes, Newlines::LineFeed)?;
    let mut record = start.records;
    while let Some(line) = lines.next_line(record + 1)? {
        record += 1;
        let content = lines.content(line);
        if content.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let json = utf8(content, input, record, line.offset)?;
        let at = || Location::record(&input.path, record).at_byte(line.offset);
        let text = TextField(field).of(json).map_err(|error| {
            Error::input(at(), format!("is not a JSON object ({error}); correct or remove the line"))
        })?;
        let text = expect_text(text, field, at)?;
        if each(Document { text: &text, record, end: line.end })? == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// An array of objects, or objects one after another; read as a stream, one record in memory.
fn json(input: &Input, field: &str, start: Start, read_bytes: usize, each: &mut Each<'_>) -> Result<()> {
    let since_record = Rc::new(Cell::new(0));
    let mut reader = BufReader::with_capacity(
        256 << 10,
        Bounded { reader: decode::open(input, read_bytes)?, since_record: Rc::clone(&since_record) },
    );
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
    let mut records = Records { input, field, since_record, record: 0, skip: start.records, failed: None, each };
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
        let at = Location::record(&input.path, records.record + 1);
        if error.to_string().contains(RECORD_TOO_LONG) {
            return too_long(at, 2 * LINE_LIMIT as u64);
        }
        if error.is_io() {
            return decode::explain(input, 0, error.into());
        }
        Error::input(at, format!("is not a JSON object ({error}); correct or remove the record"))
    })
}

fn objects<R: Read>(
    deserializer: &mut serde_json::Deserializer<serde_json::de::IoRead<R>>,
    records: &mut Records<'_, '_, '_>,
) -> serde_json::Result<()> {
    // `end` fails exactly when another value follows.
    while deserializer.end().is_err() {
        let text = TextField(records.field).deserialize(&mut *deserializer)?;
        if !records.take(text) {
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

struct Records<'a, 'e, 'f> {
    input: &'a Input,
    field: &'a str,
    since_record: Rc<Cell<u64>>,
    record: u64,
    skip: u64,
    failed: Option<Stopped>,
    each: &'e mut Each<'f>,
}

impl Records<'_, '_, '_> {
    /// Hands one record on; false to stop.
    fn take(&mut self, text: Text<'_>) -> bool {
        self.record += 1;
        self.since_record.set(0);
        if self.record <= self.skip {
            return true;
        }
        let at = || Location::record(&self.input.path, self.record);
        let flow = expect_text(text, self.field, at).and_then(|text| {
            if text.len() > LINE_LIMIT {
                return Err(too_long(at(), text.len() as u64));
            }
            (self.each)(Document { text: &text, record: self.record, end: self.record })
        });
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
        while let Some(text) = seq.next_element_seed(TextField(self.field))? {
            if !self.take(text) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

fn expect_text<'t>(text: Text<'t>, field: &str, at: impl FnOnce() -> Location) -> Result<std::borrow::Cow<'t, str>> {
    match text {
        Text::Is(text) => Ok(text),
        Text::Missing(others) => {
            let there =
                if others.is_empty() { "it is empty".to_owned() } else { format!("it has {}", others.join(", ")) };
            Err(Error::input(at(), format!("has no field {field:?} ({there}); name the right one with --text_field")))
        }
        Text::Other(kind) => Err(Error::input(
            at(),
            format!("the field {field:?} holds {kind}, not text; correct the record or use another --text_field"),
        )),
    }
}

fn utf8<'b>(bytes: &'b [u8], input: &Input, record: u64, offset: u64) -> Result<&'b str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = Location::record(&input.path, record).at_byte(offset + error.valid_up_to() as u64);
        Error::input(at, "invalid UTF-8; convert the file to UTF-8 (for example with iconv) or remove the bytes")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tokenmill_shared::storage;

    fn documents_of(name: &str, bytes: &[u8], rules: &Rules, read_bytes: usize) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        storage::replace(&dir.path().join(name), bytes).unwrap();
        let inputs = crate::source::list(dir.path(), "--train_file_dir").unwrap();
        let mut texts = Vec::new();
        for_each(&inputs[0], rules, Start::default(), read_bytes, &mut |document| {
            texts.push(document.text.to_owned());
            Ok(Flow::Continue)
        })?;
        Ok(texts)
    }

    fn rules(sample_by: SampleBy, keep_linebreaks: bool) -> Rules {
        Rules { sample_by, keep_linebreaks, text_field: "text".to_owned() }
    }

    /// Expected values: Python's `open(..., encoding="utf-8")` and the `text` builder of `datasets`.
    #[test]
    fn text_is_cut_as_the_reference_cuts_it() {
        use SampleBy::{Document, Line, Paragraph};
        let text = "\u{feff}a\r\nb\rc\n\n\u{2028}d\x0b\x0c\u{85}e\n\n\n\nf";
        for (sample_by, keep, expected) in [
            (Line, true, vec!["\u{feff}a\n", "b\n", "c\n", "\n", "\u{2028}d\x0b\x0c\u{85}e\n", "\n", "\n", "\n", "f"]),
            (Line, false, vec!["\u{feff}a", "b", "c", "", "\u{2028}d\x0b\x0c\u{85}e", "", "", "", "f"]),
            (Paragraph, true, vec!["\u{feff}a\nb\nc", "\u{2028}d\x0b\x0c\u{85}e", "f"]),
            (Document, true, vec!["\u{feff}a\nb\nc\n\n\u{2028}d\x0b\x0c\u{85}e\n\n\n\nf"]),
        ] {
            for read_bytes in [1, 2, 3, 7, 1 << 20] {
                let found = documents_of("a.txt", text.as_bytes(), &rules(sample_by, keep), read_bytes).unwrap();
                assert_eq!(found, expected, "{sample_by:?} {keep} {read_bytes}");
            }
        }
        assert_eq!(documents_of("a.txt", b"a\n\n\nb\n", &rules(Paragraph, true), 1).unwrap(), ["a", "\nb\n"]);
        assert_eq!(documents_of("a.txt", b"a\r", &rules(Line, true), 1).unwrap(), ["a\n"]);
        assert_eq!(documents_of("a.txt", b"", &rules(Line, true), 1).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_shape_of_json_gives_the_same_documents() {
        let line = rules(SampleBy::Line, true);
        for (name, content) in [
            ("a.jsonl", "{\"text\": \"eins\"}\r\n\n  \n{\"id\": 2, \"text\": \"zwei\\n\"}"),
            ("a.json", "[{\"text\": \"eins\"},\n {\"id\": 2, \"text\": \"zwei\\n\"}]\n"),
            ("a.json", "{\"text\": \"eins\"}\n{\"id\": 2,\n \"text\": \"zwei\\n\"}\n"),
        ] {
            assert_eq!(
                documents_of(name, content.as_bytes(), &line, 3).unwrap(),
                ["eins", "zwei\n"],
                "{name} {content}"
            );
        }
    }

    #[test]
    fn errors_name_record_and_byte() {
        let line = rules(SampleBy::Line, true);
        for (name, content, parts) in [
            ("a.txt", &b"ok\n\xffx\n"[..], [":2 (byte 3)", "UTF-8"]),
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": }\n", [":2 (byte 14)", "not a JSON object"]),
            ("a.jsonl", b"{\"id\": 1, \"content\": \"a\"}\n", [":1", "it has id, content"]),
            ("a.jsonl", b"{\"text\": 5}\n", [":1", "a number"]),
            ("a.json", b"[{\"text\": \"a\"}, {\"text\": null}]", [":2", "null"]),
            ("a.json", b"[{\"text\": \"a\"}, {\"text\": \"b\"}", [":3", "not a JSON object"]),
        ] {
            let error = documents_of(name, content, &line, 100).unwrap_err();
            assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(Path::new(name).to_str().unwrap()));
        }
    }
}
