//! Lines of a byte stream, each at most [`LINE_LIMIT`] bytes, without a copy where the stream allows it.

use std::io::Read;

use tokenmill_shared::Result;

use super::Reading;
use crate::decode;
use crate::encoding::TextEncoding;
use crate::source::Input;

/// The longest line or document. The reference tokenizer needs some 40 bytes of memory for each byte of
/// one document, so this bounds a worker at about 2.5 GB on the worst input; ordinary lines need nothing near it.
pub const LINE_LIMIT: usize = 64 << 20;

/// What ends a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newlines {
    /// `\n` only.
    LineFeed,
    /// `\n`, `\r\n` and lone `\r`, as Python's text mode has it.
    Universal,
}

/// A line in the buffer of [`Lines`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    begin: usize,
    content_end: usize,
    /// The terminator is a single `\n` (so that content and terminator are one slice).
    plain: bool,
    /// Whether there is a terminator; only the last line may lack one, and a piece of one that goes on.
    pub terminated: bool,
    /// Whether this is a piece, and more of the line follows.
    pub goes_on: bool,
    /// Byte offset of its first byte in the stream.
    pub offset: u64,
    /// Byte offset after its terminator.
    pub end: u64,
}

impl Line {
    /// Whether it is longer than [`LINE_LIMIT`]. Its content is then gone.
    pub(super) fn is_too_long(&self) -> bool {
        self.end - self.offset > LINE_LIMIT as u64 && self.begin == self.content_end
    }
}

/// Reads lines.
pub(super) struct Lines<'a> {
    input: &'a Input,
    reader: Box<dyn Read + Send>,
    newlines: Newlines,
    encoding: TextEncoding,
    buffer: Vec<u8>,
    begin: usize,
    filled: usize,
    offset: u64,
    ended: bool,
    /// Bytes of the present line that were let go.
    dropped: u64,
    /// Bytes from which on a line comes in pieces, if it does.
    piece_bytes: Option<usize>,
    /// Whether the last one was a piece of a line that goes on.
    within: bool,
}

/// What there is of a line that goes on makes a piece from so many bytes on.
const PIECE_BYTES: usize = 512 << 10;

/// A line end in a window.
struct Found {
    at: usize,
    carriage: bool,
}

impl<'a> Lines<'a> {
    /// Lines of a file from where reading starts.
    pub(super) fn open(reading: &Reading<'a>, newlines: Newlines) -> Result<Self> {
        let (input, start) = (reading.input, reading.start);
        let reader = decode::enter(input, start.at, reading.read_bytes)?;
        Ok(Self {
            input,
            reader,
            newlines,
            encoding: start.encoding,
            buffer: vec![0; 256 << 10],
            begin: 0,
            filled: 0,
            offset: start.at,
            ended: false,
            dropped: 0,
            piece_bytes: None,
            within: false,
        })
    }

    /// The same, but of UTF-8 a line from `piece_bytes` on in pieces, each decoded as it would be in the line. A line of any
    /// length is read so.
    pub(super) fn open_in_pieces(
        reading: &Reading<'a>,
        newlines: Newlines,
        piece_bytes: Option<usize>,
    ) -> Result<Self> {
        let mut lines = Self::open(reading, newlines)?;
        if lines.encoding == TextEncoding::Utf8 {
            lines.piece_bytes = piece_bytes.map(|bytes| bytes.max(16));
        }
        Ok(lines)
    }

    /// The line's bytes without its terminator.
    pub(super) fn content(&self, line: Line) -> &[u8] {
        &self.buffer[line.begin..line.content_end]
    }

    /// The line's bytes and a final `\n`, if they lie in the buffer like that.
    pub(super) fn content_and_newline(&self, line: Line) -> Option<&[u8]> {
        line.plain.then(|| &self.buffer[line.begin..line.content_end + self.unit()])
    }

    fn unit(&self) -> usize {
        if self.encoding.is_wide() { 2 } else { 1 }
    }

    /// The next line; `None` at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<Line>> {
        let unit = self.unit();
        let mut searched = self.begin;
        loop {
            if let Some(Found { at, carriage }) = self.find(searched) {
                if carriage && at + 2 * unit > self.filled && !self.ended {
                    // Whether this is `\r` or `\r\n` is in the bytes not read yet.
                    searched = at - self.begin;
                    self.fill()?;
                    searched += self.begin;
                    continue;
                }
                let next = at + unit;
                let pair = carriage && next + unit <= self.filled && self.is_unit(next, b'\n');
                let line = self.take(at, next + if pair { unit } else { 0 }, !carriage, true);
                return Ok(Some(line));
            }
            if self.ended {
                let something = self.begin < self.filled || self.dropped > 0;
                return Ok(something.then(|| self.take(self.filled, self.filled, false, false)));
            }
            let rest = if self.within { PIECE_BYTES } else { usize::MAX };
            if self.piece_bytes.is_some_and(|bytes| self.filled - self.begin >= bytes.min(rest)) {
                return Ok(Some(self.take_piece()));
            }
            if self.filled - self.begin > LINE_LIMIT {
                // What cannot become a document is not kept, but for a unit that may be half there.
                let kept = (self.filled - self.begin) % unit;
                self.dropped += (self.filled - self.begin - kept) as u64;
                self.begin = self.filled - kept;
            }
            searched = (self.filled - self.begin) / unit * unit;
            self.fill()?;
            searched += self.begin;
        }
    }

    /// The first line end from `from` on, which is at the border of a unit.
    fn find(&self, from: usize) -> Option<Found> {
        let window = &self.buffer[from..self.filled];
        if !self.encoding.is_wide() {
            let found = match self.newlines {
                Newlines::LineFeed => memchr::memchr(b'\n', window),
                Newlines::Universal => memchr::memchr2(b'\n', b'\r', window),
            };
            return found.map(|at| Found { at: from + at, carriage: window[at] == b'\r' });
        }
        let universal = self.newlines == Newlines::Universal;
        (from..(self.filled).saturating_sub(1)).step_by(2).find_map(|at| {
            let carriage = universal && self.is_unit(at, b'\r');
            (carriage || self.is_unit(at, b'\n')).then_some(Found { at, carriage })
        })
    }

    /// Whether the unit at `at` is this ASCII character.
    fn is_unit(&self, at: usize, character: u8) -> bool {
        match self.encoding {
            TextEncoding::Utf8 | TextEncoding::Gb18030 => self.buffer[at] == character,
            TextEncoding::Utf16Le => self.buffer[at..at + 2] == [character, 0],
            TextEncoding::Utf16Be => self.buffer[at..at + 2] == [0, character],
        }
    }

    fn take(&mut self, content_end: usize, next: usize, plain: bool, terminated: bool) -> Line {
        let begin = self.begin;
        let offset = self.offset;
        let dropped = std::mem::take(&mut self.dropped);
        self.begin = next;
        self.offset += dropped + (next - begin) as u64;
        let is_whole = dropped == 0 && (content_end - begin <= LINE_LIMIT || self.piece_bytes.is_some());
        self.within = false;
        // Of a line that is too long nothing is left.
        let begin = if is_whole { begin } else { content_end };
        Line { begin, content_end, plain: plain && is_whole, terminated, goes_on: false, offset, end: self.offset }
    }

    /// What is there of a line that goes on, up to a byte that begins a character. Where a run of bytes that begin none is
    /// longer than a character, none of them belongs to one with those before it.
    fn take_piece(&mut self) -> Line {
        let begins = |byte: &u8| *byte & 0xc0 != 0x80;
        let last = &self.buffer[self.filled - 4..self.filled];
        let end = last.iter().rposition(begins).map_or(self.filled, |at| self.filled - 4 + at);
        let piece = self.take(end, end, false, false);
        self.within = true;
        Line { goes_on: true, ..piece }
    }

    /// Reads more behind what is there, moving it to the front first.
    fn fill(&mut self) -> Result<()> {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.filled, 0);
            self.filled -= self.begin;
            self.begin = 0;
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
                    let read = self.offset + self.dropped + (self.filled - self.begin) as u64;
                    return Err(decode::explain(self.input, read, error));
                }
            }
        }
    }
}
