//! From decompressed bytes to documents: the text semantics of Hugging Face's `text`, `json`, `csv`, `parquet` and `arrow`
//! loaders.
//!
//! - `.txt` is read as Python's text mode reads it: `\r\n` and `\r` become `\n`, nothing else ends a line, a byte
//!   order mark stays under `--encoding utf-8`. `line`: blank lines are documents; with `keep_linebreaks` each line
//!   keeps its `\n`. `paragraph`: split on `\n\n`, empty ones left out. `document`: the whole file.
//! - All others: the fields of every record that `--text_field` or `--text_template` names; blank lines are not records.
//!
//! A record that cannot be used goes to [`Sink::bad`], which decides whether to go on.

mod arrow;
mod columns;
mod csv;
pub(crate) mod cuts;
mod fields;
mod growing;
mod json;
mod length;
mod lines;
mod long_record;
mod parquet;
mod row_groups;
mod text;

use serde::{Deserialize, Serialize};
use tokenmill_shared::config::{DataArguments, Encoding, EncodingErrors, Packing, SampleBy};
use tokenmill_shared::{Error, Location, Result};

pub use self::fields::Fields;
pub use self::lines::LINE_LIMIT;

use crate::encoding::{self, TextEncoding};
use crate::source::{Input, Kind};

/// What makes documents of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// What a document is in a `.txt` file.
    pub sample_by: SampleBy,
    /// Whether lines keep their `\n`.
    pub keep_linebreaks: bool,
    /// The field or column that holds the text.
    pub text_field: String,
    /// Fields and what stands between them, in place of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_template: Option<String>,
    /// How text is encoded.
    #[serde(default, skip_serializing_if = "is_utf8")]
    pub encoding: Encoding,
    /// What becomes of bytes that are none in it.
    #[serde(default, skip_serializing_if = "is_strict")]
    pub encoding_errors: EncodingErrors,
    /// Characters that a document has at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_chars: Option<u64>,
    /// Characters that a document has at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<u64>,
    /// Bytes of text after which a document comes in parts; `None` if all come whole. No part of what a dataset is.
    #[serde(skip)]
    pub part_bytes: Option<usize>,
}

/// A document of more text comes in parts, where it can. As many as 70 may be between reading and packing: of 4 MiB they
/// filled what may be in flight, and 1 GiB in one document took 241 MiB of memory.
pub const PART_BYTES: usize = 512 << 10;

/// A line of JSON of so many parts, 64 MiB, is not held whole. Shorter ones are: they may have a field twice, of which the last
/// counts, and their bytes go to a quarantine.
const RECORD_PARTS: usize = 128;

fn is_utf8(encoding: &Encoding) -> bool {
    *encoding == Encoding::Utf8
}

fn is_strict(errors: &EncodingErrors) -> bool {
    *errors == EncodingErrors::Strict
}

impl Rules {
    /// The rules that the data parameters say.
    ///
    /// # Errors
    /// Fields that cannot be read as such; documents that are to be longer than the longest.
    pub fn new(data: &DataArguments) -> Result<Self> {
        let rules = Self {
            sample_by: data.sample_by,
            keep_linebreaks: data.keep_linebreaks,
            text_field: data.text_field.clone(),
            text_template: data.text_template.clone(),
            encoding: data.encoding,
            encoding_errors: data.encoding_errors,
            min_chars: data.min_chars,
            max_chars: data.max_chars,
            part_bytes: None,
        };
        if let (Some(least), Some(most)) = (data.min_chars, data.max_chars)
            && least > most
        {
            return Err(Error::config("--min_chars", format!("is {least}, more than --max_chars {most}")));
        }
        rules.fields()?;
        Ok(rules)
    }

    /// The same, with documents of more than `part_bytes` of text in parts, where nothing asks how long a document is
    /// before its end: only documents that follow one another are packed as they come, hashes of the tokens and lengths
    /// are of whole ones.
    #[must_use]
    pub fn in_parts(self, data: &DataArguments, part_bytes: usize) -> Self {
        let follow = data.packing().is_ok_and(|packing| packing == Packing::Concatenate);
        // A character has four bytes at most.
        let any_length = self.max_chars.is_none() && self.min_chars.unwrap_or(0) <= part_bytes as u64 / 4;
        let in_parts = follow && any_length && !data.deduplicate;
        Self { part_bytes: in_parts.then_some(part_bytes), ..self }
    }

    /// Bytes from which on a line of JSON is not held whole.
    fn record_bytes(&self) -> usize {
        self.part_bytes.map_or(LINE_LIMIT, |bytes| bytes.saturating_mul(RECORD_PARTS).min(LINE_LIMIT))
    }

    fn fields(&self) -> Result<Fields> {
        Fields::parse(&self.text_field, self.text_template.as_deref())
    }
}

/// Which ends of a document a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// It begins the document.
    pub begins: bool,
    /// It ends the document.
    pub ends: bool,
}

impl Extent {
    /// Of all of a document.
    pub const WHOLE: Self = Self { begins: true, ends: true };
}

/// One document, or a part of one that is long.
#[derive(Debug)]
pub struct Document<'a> {
    /// Its text.
    pub text: &'a str,
    /// Which part of the document that is. Parts come one after the other, and after them [`Sink::bad`] if the document
    /// turns out to be none.
    pub extent: Extent,
    /// Line, record or row number, from 1.
    pub record: u64,
    /// Where the document begins, as `end` says where the next one does.
    pub begin: u64,
    /// Where the next document begins: a byte offset in the decompressed file, or a row for parquet and arrow.
    pub end: u64,
}

/// Where to begin in a file: at a document border seen before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Byte offset in the decompressed file, or row for parquet and arrow.
    pub at: u64,
    /// Records before it.
    pub records: u64,
    /// How the file is encoded.
    #[serde(default)]
    pub encoding: TextEncoding,
}

impl Start {
    /// The beginning of a file: its encoding is found, and a byte order mark that is no text lies before it.
    pub fn of(input: &Input, rules: &Rules, read_bytes: usize) -> Result<Self> {
        let strip_utf8 = match input.kind {
            Kind::Parquet | Kind::Arrow => return Ok(Self::default()),
            Kind::Text => false,
            Kind::JsonLines | Kind::Json | Kind::Csv | Kind::Tsv => true,
        };
        let (encoding, at) = encoding::find(input, rules.encoding, strip_utf8, read_bytes)?;
        Ok(Self { at, records: 0, encoding })
    }

    /// Whether nothing of the file lies before it but a byte order mark.
    pub fn is_beginning(&self) -> bool {
        self.records == 0
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// To the next document.
    Continue,
    /// No further.
    Stop,
}

/// Why a record cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Bytes that are not in the file's encoding.
    InvalidEncoding,
    /// A line that is no JSON object.
    InvalidJson,
    /// A row with more fields than the header, or with a quote that is not closed.
    InvalidRow,
    /// No field of the name that is asked for.
    MissingField,
    /// A field that holds null, a number or something else that is no text.
    NotText,
    /// More bytes than [`LINE_LIMIT`].
    TooLong,
    /// A document shorter than `--min_chars`.
    TooFewCharacters,
    /// A document longer than `--max_chars`.
    TooManyCharacters,
}

impl Reason {
    /// Whether the record is bad, and not only of a length that was not asked for.
    pub fn is_bad(self) -> bool {
        !matches!(self, Self::TooFewCharacters | Self::TooManyCharacters)
    }

    /// Its name in a manifest.
    pub fn name(self) -> String {
        serde_json::json!(self).as_str().unwrap_or_default().to_owned()
    }
}

/// A record that cannot be used.
#[derive(Debug)]
pub struct Bad<'a> {
    /// Why.
    pub reason: Reason,
    /// The same with place and remedy.
    pub error: Box<Error>,
    /// Its bytes, where the format has records that can be told apart by bytes.
    pub bytes: Option<&'a [u8]>,
}

impl Bad<'static> {
    /// A record that has no bytes of its own.
    fn whole(reason: Reason, error: Error) -> Self {
        Self { reason, error: Box::new(error), bytes: None }
    }
}

/// Takes what is found in a file, in order. A closure takes documents and fails on the first record that cannot be used.
pub trait Sink {
    /// Takes a document.
    fn document(&mut self, document: Document<'_>) -> Result<Flow>;

    /// Takes a record that cannot be used: goes on without it, or fails with its error.
    fn bad(&mut self, bad: Bad<'_>) -> Result<Flow> {
        Err(*bad.error)
    }

    /// Takes note of a document that is left out for its length.
    fn left_out(&mut self, _reason: Reason, _document: &Document<'_>) {}
}

impl<F: FnMut(Document<'_>) -> Result<Flow>> Sink for F {
    fn document(&mut self, document: Document<'_>) -> Result<Flow> {
        self(document)
    }
}

/// Takes documents, and passes over records that cannot be used: those were counted when the file was scanned.
pub struct Usable<'a, F> {
    /// Takes documents.
    pub each: F,
    /// Records of which parts come although they cannot be used, ascending.
    pub broken: &'a [u64],
}

impl<F: FnMut(Document<'_>) -> Result<Flow>> Sink for Usable<'_, F> {
    fn document(&mut self, document: Document<'_>) -> Result<Flow> {
        if document.extent != Extent::WHOLE && self.broken.binary_search(&document.record).is_ok() {
            return Ok(Flow::Continue);
        }
        (self.each)(document)
    }

    fn bad(&mut self, _: Bad<'_>) -> Result<Flow> {
        Ok(Flow::Continue)
    }
}

/// How a file is read; what is read never depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Reads {
    /// Bytes asked of the operating system at a time.
    pub bytes: usize,
    /// Threads that may decode row groups of parquet.
    pub decoders: usize,
}

impl Reads {
    /// By the calling thread alone.
    pub fn alone(bytes: usize) -> Self {
        Self { bytes, decoders: 1 }
    }
}

/// Hands every document of `input` from `start` on to `sink`, in order.
///
/// # Errors
/// Those of `sink`, and everything that is wrong with the file beyond single records, with record and byte.
pub fn for_each(input: &Input, rules: &Rules, start: Start, reads: Reads, sink: &mut dyn Sink) -> Result<()> {
    let Reads { bytes: read_bytes, decoders } = reads;
    let reading = Reading { input, rules, fields: rules.fields()?, start, read_bytes, decoders };
    let mut of_length = length::OfLength::new(rules, sink);
    let sink: &mut dyn Sink = &mut of_length;
    match input.kind {
        Kind::Parquet => parquet::for_each(&reading, sink),
        Kind::Arrow => arrow::for_each(&reading, sink),
        Kind::Csv => csv::for_each(&reading, b',', sink),
        Kind::Tsv => csv::for_each(&reading, b'\t', sink),
        Kind::JsonLines => json::lines(&reading, sink),
        Kind::Json => json::stream(&reading, sink),
        Kind::Text => match rules.sample_by {
            SampleBy::Line => text::lines(&reading, sink),
            SampleBy::Paragraph => text::paragraphs(&reading, sink),
            SampleBy::Document => text::whole_file(&reading, sink),
        },
    }
}

/// A file being read.
struct Reading<'a> {
    input: &'a Input,
    rules: &'a Rules,
    fields: Fields,
    start: Start,
    read_bytes: usize,
    decoders: usize,
}

/// How to go on without a bad record, for errors of records.
const PASS_OVER: &str = "or pass over such records with --on_bad_record skip";

/// The error for bytes that are not in the encoding of their file.
pub fn invalid_encoding(at: Location) -> Error {
    let reason = format!(
        "invalid UTF-8 (or other --encoding); give the file's with --encoding, such as auto or gb18030, convert it (for example with iconv), let --encoding_errors replace mend it, {PASS_OVER}"
    );
    Error::input(at, reason)
}

/// The error for a table without a column that is asked for; `names` are those it has.
fn no_column(reading: &Reading<'_>, path: &fields::FieldPath, names: &[String]) -> Error {
    let (names, flag) = (names.join(", "), reading.fields.flag());
    let reason = format!("has no column {:?} (it has {names}); name the right one with {flag}", path.shown);
    Error::input(reading.input.at(), reason)
}

/// The error for a document above [`LINE_LIMIT`].
fn too_long(at: Location, found: u64) -> Error {
    Error::Limit {
        at,
        what: "a document's size in bytes",
        found,
        limit: LINE_LIMIT as u64,
        remedy: "cut it into smaller ones (for .txt, --sample_by line or paragraph may do), put it into .txt or .jsonl, which are read in parts where the tokenizer allows it, or pass over such with --on_bad_record skip",
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
