//! A line of JSON that is too long to be held: its text goes through in parts, and what else it has is judged at its end.
//!
//! Strings that are values are taken out as they come, and `""` stands for them in what is kept. That is then read as a line
//! of any length is, so what is a record does not depend on how long it is. Only one that has the field twice is refused:
//! the last would count, and the first has gone through.

use std::ops::Range;

use serde::de::IgnoredAny;
use tokenmill_shared::{Error, Location, Result};

use super::growing::{Growing, Place};
use super::lines::LINE_LIMIT;
use super::{Bad, Flow, PASS_OVER, Reading, Reason, Sink, invalid_encoding, too_long};
use crate::encoding::TextEncoding;

/// Text that is gone through at a time.
const STEP_BYTES: usize = 64 << 10;

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// No string.
    Nothing,
    /// A string that is kept: a key, or a string of an array.
    Kept,
    /// A value; whether it is that of the field.
    Value { is_text: bool },
}

/// A record whose line is being read.
pub(super) struct LongRecord<'r> {
    reading: &'r Reading<'r>,
    record: u64,
    /// Where its line begins.
    begin: u64,
    /// Read and not gone through: nothing, or what an escape may go on behind.
    waiting: String,
    within: Within,
    /// Objects and arrays that are open.
    depth: i64,
    /// Whether a `:` came last, behind the field's name or another.
    value_of: Option<bool>,
    /// The line without its values.
    kept: String,
    /// Where the last kept string lies in that, quotes and all.
    name: Range<usize>,
    /// Values of the field so far.
    values: u32,
    text: Growing,
    /// The first byte that is not in the encoding.
    invalid: Option<u64>,
    /// What is wrong with a string.
    malformed: Option<serde_json::Error>,
    scratch: String,
}

impl<'r> LongRecord<'r> {
    /// The length from which on a line is read so; `None` where all are read whole, and too long ones not at all.
    pub fn from_bytes(reading: &Reading<'_>) -> Option<usize> {
        let can_be_taken_out = reading.start.encoding == TextEncoding::Utf8 && reading.fields.key().is_some();
        can_be_taken_out.then(|| reading.rules.record_bytes())
    }

    /// Record number `record`, whose line begins at byte `begin`.
    pub fn new(reading: &'r Reading<'r>, record: u64, begin: u64) -> Self {
        Self {
            reading,
            record,
            begin,
            waiting: String::new(),
            within: Within::Nothing,
            depth: 0,
            value_of: None,
            kept: String::new(),
            name: 0..0,
            values: 0,
            text: Growing::new(reading.rules.part_bytes),
            invalid: None,
            malformed: None,
            scratch: String::new(),
        }
    }

    /// Takes the next bytes of the line, which are at byte `offset`; they end where a character does.
    pub fn push(&mut self, bytes: &[u8], offset: u64, sink: &mut dyn Sink) -> Result<Flow> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let errors = self.reading.rules.encoding_errors;
        match TextEncoding::Utf8.decode(bytes, errors, &mut scratch) {
            Err(at) => self.invalid = self.invalid.or(Some(offset + at as u64)),
            Ok(mut text) => {
                while !text.is_empty() && !self.is_bad() {
                    let end = (0..=text.len().min(STEP_BYTES)).rev().find(|at| text.is_char_boundary(*at));
                    let (step, rest) = text.split_at(end.expect("a text begins with a character"));
                    text = rest;
                    self.waiting.push_str(step);
                    if self.advance(sink)? == Flow::Stop {
                        return Ok(Flow::Stop);
                    }
                }
            }
        }
        self.scratch = scratch;
        Ok(Flow::Continue)
    }

    /// Whether it cannot be used, whatever follows.
    fn is_bad(&self) -> bool {
        self.invalid.is_some() || self.malformed.is_some() || self.kept.len() > LINE_LIMIT
    }

    /// Goes through what is waiting.
    fn advance(&mut self, sink: &mut dyn Sink) -> Result<Flow> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut rest = &waiting[..];
        while !rest.is_empty() {
            if self.within == Within::Nothing {
                rest = self.pass_over(rest);
                continue;
            }
            let (length, is_closed) = content(rest.as_bytes());
            let (string, behind) = rest.split_at(length);
            match self.within {
                Within::Value { is_text } => {
                    if self.value(string, is_text, sink)? == Flow::Stop {
                        return Ok(Flow::Stop);
                    }
                }
                _ => self.kept.push_str(string),
            }
            rest = behind;
            if !is_closed {
                break;
            }
            rest = &rest[1..];
            if self.within == Within::Kept {
                self.kept.push('"');
                self.name.end = self.kept.len();
            }
            self.within = Within::Nothing;
        }
        rest.clone_into(&mut self.waiting);
        Ok(Flow::Continue)
    }

    /// Keeps what is in no string, up to the quote that begins the next one; returns what is behind that.
    fn pass_over<'t>(&mut self, text: &'t str) -> &'t str {
        let end = memchr::memchr(b'"', text.as_bytes()).unwrap_or(text.len());
        for byte in text[..end].bytes() {
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
            if byte == b':' {
                let is_text = self.depth == 1 && self.names_field();
                self.values += u32::from(is_text);
                self.value_of = Some(is_text);
            } else if !byte.is_ascii_whitespace() {
                self.value_of = None;
            }
        }
        self.kept.push_str(&text[..end]);
        let Some(behind) = text[end..].strip_prefix('"') else { return "" };
        if let Some(is_text) = self.value_of.take() {
            self.kept.push_str("\"\"");
            self.within = Within::Value { is_text };
        } else {
            self.name.start = self.kept.len();
            self.kept.push('"');
            self.within = Within::Kept;
        }
        behind
    }

    /// Whether the last kept string is the field's name.
    fn names_field(&self) -> bool {
        let name = self.kept.get(self.name.clone()).map(serde_json::from_str::<String>);
        name.is_some_and(|name| name.ok().as_deref() == self.reading.fields.key())
    }

    /// Takes more of a value, whole escapes of it.
    fn value(&mut self, string: &str, is_text: bool, sink: &mut dyn Sink) -> Result<Flow> {
        let quoted = format!("\"{string}\"");
        let text = if is_text {
            serde_json::from_str::<String>(&quoted)
        } else {
            serde_json::from_str::<IgnoredAny>(&quoted).map(|_| String::new())
        };
        match text {
            Ok(text) if is_text => return self.text.push(Ok(&text), &self.place(self.begin), sink),
            Ok(_) => {}
            Err(error) => _ = self.malformed.get_or_insert(error),
        }
        Ok(Flow::Continue)
    }

    fn place(&self, end: u64) -> Place {
        Place { at: self.at(), record: self.record, begin: self.begin, end }
    }

    fn at(&self) -> Location {
        Location::record(&self.reading.input.name, self.record)
    }

    /// Ends the line, at byte `end`: hands on its document, or what is left of that, or says what is wrong with it.
    pub fn end(&mut self, end: u64, sink: &mut dyn Sink) -> Result<Flow> {
        let is_blank = self.kept.bytes().all(|byte| byte.is_ascii_whitespace());
        if is_blank && !self.is_bad() {
            return Ok(Flow::Continue);
        }
        if let Some(bad) = self.wrong(end) {
            self.text.push(Err(bad), &self.place(end), sink)?;
        }
        self.text.end(sink, self.record, end)
    }

    /// What is wrong with the record.
    fn wrong(&mut self, end: u64) -> Option<Bad<'static>> {
        let at = || self.at().at_byte(self.begin);
        let malformed = |error: &dyn std::fmt::Display| {
            let reason =
                format!("is not a JSON object ({error}, its values left out); correct or remove the line, {PASS_OVER}");
            Bad::whole(Reason::InvalidJson, Error::input(at(), reason))
        };
        if let Some(byte) = self.invalid {
            return Some(Bad::whole(Reason::InvalidEncoding, invalid_encoding(self.at().at_byte(byte))));
        }
        if self.kept.len() > LINE_LIMIT {
            return Some(Bad::whole(Reason::TooLong, too_long(at(), end - self.begin)));
        }
        if let Some(error) = &self.malformed {
            return Some(malformed(error));
        }
        let fields = &self.reading.fields;
        match fields.of(&self.kept) {
            Err(error) => Some(malformed(&error)),
            Ok(_) if self.values > 1 => {
                let name = fields.key().unwrap_or_default();
                let reason = format!(
                    "has the field {name:?} more than once, and is too long to be held until the last; leave one, {PASS_OVER}"
                );
                Some(Bad::whole(Reason::InvalidJson, Error::input(at(), reason)))
            }
            Ok(found) => fields.join(&found.texts, &|| found.names.clone(), &at).err(),
        }
    }
}

/// How much of `raw`, from within a string on, is whole characters and escapes of that string, and whether the quote that
/// ends it follows.
fn content(raw: &[u8]) -> (usize, bool) {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &raw[at..]) {
        at += found;
        if raw[at] == b'"' {
            return (at, true);
        }
        let escape = match raw.get(at + 1..) {
            // Half of a pair of surrogates: a character with the other half, if that follows.
            Some([b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', _, _, rest @ ..]) => match rest {
                [b'\\', b'u', ..] => 12,
                [] | [b'\\'] => return (at, false),
                _ => 6,
            },
            Some([b'u', ..]) => 6,
            _ => 2,
        };
        if raw.len() < at + escape {
            return (at, false);
        }
        at += escape;
    }
    (raw.len(), false)
}
