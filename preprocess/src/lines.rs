//! Lines of a byte stream, each at most [`LINE_LIMIT`] bytes, without a copy where the stream allows it.

use std::io::Read;

use tokenmill_shared::{Error, Location, Result};

use crate::decode;
use crate::source::Input;

/// The longest line or document. The reference tokenizer needs some 40 bytes of memory for each byte of
/// one document, so this bounds a worker at about 2.5 GB on the worst input; ordinary lines need nothing near it.
pub const LINE_LIMIT: usize = 64 << 20;

/// What ends a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newlines {
    /// `\n` only.
    LineFeed,
    /// `\n`, `\r\n` and lone `\r`, as Python's text mode has it.
    Universal,
}

/// A line in the buffer of [`Lines`].
#[derive(Debug, Clone, Copy)]
pub struct Line {
    begin: usize,
    content_end: usize,
    /// The terminator is a single `\n` (so that content and terminator are one slice).
    plain: bool,
    /// Whether there is a terminator; only the last line may lack one.
    pub terminated: bool,
    /// Byte offset of its first byte in the stream.
    pub offset: u64,
    /// Byte offset after its terminator.
    pub end: u64,
}

/// Reads lines.
pub struct Lines<'a> {
    input: &'a Input,
    reader: Box<dyn Read + Send>,
    newlines: Newlines,
    buffer: Vec<u8>,
    begin: usize,
    filled: usize,
    offset: u64,
    ended: bool,
}

impl<'a> Lines<'a> {
    /// Lines of `reader`, which stands at byte `offset` of the decompressed `input`.
    pub fn new(input: &'a Input, reader: Box<dyn Read + Send>, offset: u64, newlines: Newlines) -> Self {
        let buffer = vec![0; 256 << 10];
        Self { input, reader, newlines, buffer, begin: 0, filled: 0, offset, ended: false }
    }

    /// The line's bytes without its terminator.
    pub fn content(&self, line: Line) -> &[u8] {
        &self.buffer[line.begin..line.content_end]
    }

    /// The line's bytes and a final `\n`, if they lie in the buffer like that.
    pub fn content_and_newline(&self, line: Line) -> Option<&[u8]> {
        line.plain.then(|| &self.buffer[line.begin..=line.content_end])
    }

    /// The next line; `None` at the end.
    pub fn next_line(&mut self, record: u64) -> Result<Option<Line>> {
        let mut searched = self.begin;
        loop {
            let window = &self.buffer[searched..self.filled];
            let found = match self.newlines {
                Newlines::LineFeed => memchr::memchr(b'\n', window),
                Newlines::Universal => memchr::memchr2(b'\n', b'\r', window),
            };
            if let Some(at) = found {
                let at = searched + at;
                let carriage = self.buffer[at] == b'\r';
                if carriage && at + 1 == self.filled && !self.ended {
                    // Whether this is `\r` or `\r\n` is in the bytes not read yet.
                    searched = at - self.begin;
                    self.fill(record)?;
                    searched += self.begin;
                    continue;
                }
                let pair = carriage && at + 1 < self.filled && self.buffer[at + 1] == b'\n';
                return Ok(Some(self.take(at, at + 1 + usize::from(pair), !carriage, true)));
            }
            if self.ended {
                return Ok((self.begin < self.filled).then(|| self.take(self.filled, self.filled, false, false)));
            }
            searched = self.filled - self.begin;
            self.fill(record)?;
            searched += self.begin;
        }
    }

    fn take(&mut self, content_end: usize, next: usize, plain: bool, terminated: bool) -> Line {
        let begin = self.begin;
        let offset = self.offset;
        self.begin = next;
        self.offset += (next - begin) as u64;
        Line { begin, content_end, plain, terminated, offset, end: self.offset }
    }

    /// Reads more behind what is there, moving it to the front first.
    fn fill(&mut self, record: u64) -> Result<()> {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.filled, 0);
            self.filled -= self.begin;
            self.begin = 0;
        }
        if self.filled > LINE_LIMIT {
            return Err(too_long(Location::record(&self.input.path, record).at_byte(self.offset), self.filled as u64));
        }
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        loop {
            match self.reader.read(&mut self.buffer[self.filled..]) {
                Ok(read) => {
                    self.ended = read == 0;
                    self.filled += read;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(decode::explain(self.input, self.offset + (self.filled - self.begin) as u64, error));
                }
            }
        }
    }
}

/// The error for a document above [`LINE_LIMIT`].
pub fn too_long(at: Location, found: u64) -> Error {
    Error::Limit {
        at,
        what: "a document's size in bytes",
        found,
        limit: LINE_LIMIT as u64,
        remedy: "cut it into smaller ones (for .txt, --sample_by line or paragraph may do)",
    }
}
