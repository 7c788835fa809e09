//! From bytes to text: which encoding a file is in, and what becomes of bytes that are none in it.
//!
//! Lines and rows are cut on the bytes of the file and decoded one by one, so that places stay those of the file; only
//! what has no such borders ([`Transcoded`]) is decoded as a stream.

use std::fmt;
use std::io::{self, Read};

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{
    BIG5, Decoder, DecoderResult, EUC_JP, EUC_KR, Encoding as Codec, GB18030, GBK, SHIFT_JIS, UTF_8, UTF_16BE, UTF_16LE,
};
use serde::{Deserialize, Serialize};
use tokenmill_shared::config::{Encoding, EncodingErrors};
use tokenmill_shared::{Error, Result};

use crate::decode;
use crate::source::Input;

/// Bytes that are looked at from the first one on that is not ASCII.
const SAMPLE_BYTES: usize = 256 << 10;

/// How the text of a file is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextEncoding {
    /// UTF-8.
    #[default]
    Utf8,
    /// GB18030, with GBK and GB2312 in it.
    Gb18030,
    /// UTF-16, low byte first.
    Utf16Le,
    /// UTF-16, high byte first.
    Utf16Be,
}

/// Bytes that are not in the encoding, inside an [`io::Error`].
#[derive(Debug)]
pub struct InvalidBytes {
    /// Byte offset in the decompressed file.
    pub at: u64,
}

impl fmt::Display for InvalidBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid bytes at {}", self.at)
    }
}

impl std::error::Error for InvalidBytes {}

impl TextEncoding {
    /// Its name, as Python has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Gb18030 => "gb18030",
            Self::Utf16Le => "utf-16-le",
            Self::Utf16Be => "utf-16-be",
        }
    }

    fn codec(self) -> &'static Codec {
        match self {
            Self::Utf8 => UTF_8,
            Self::Gb18030 => GB18030,
            Self::Utf16Le => UTF_16LE,
            Self::Utf16Be => UTF_16BE,
        }
    }

    /// Whether it is one of two bytes a unit, so that ASCII bytes mean nothing by themselves.
    pub fn is_wide(self) -> bool {
        matches!(self, Self::Utf16Le | Self::Utf16Be)
    }

    /// The text of `bytes`, in `scratch` where it is not there already.
    ///
    /// # Errors
    /// Under `strict`, the offset of the first byte that does not belong there.
    pub fn decode<'b>(
        self,
        bytes: &'b [u8],
        errors: EncodingErrors,
        scratch: &'b mut String,
    ) -> std::result::Result<&'b str, usize> {
        if self == Self::Utf8 || (self == Self::Gb18030 && bytes.is_ascii()) {
            return match simdutf8::compat::from_utf8(bytes) {
                Ok(text) => Ok(text),
                Err(error) if errors == EncodingErrors::Strict => Err(error.valid_up_to()),
                Err(_) => {
                    scratch.clear();
                    for chunk in bytes.utf8_chunks() {
                        scratch.push_str(chunk.valid());
                        if errors == EncodingErrors::Replace && !chunk.invalid().is_empty() {
                            scratch.push(char::REPLACEMENT_CHARACTER);
                        }
                    }
                    Ok(scratch)
                }
            };
        }
        let mut decoder = self.codec().new_decoder_without_bom_handling();
        let mut at = 0;
        scratch.clear();
        loop {
            let rest = &bytes[at..];
            // One more, so that there is room for a replacement.
            scratch
                .reserve(decoder.max_utf8_buffer_length_without_replacement(rest.len()).unwrap_or(rest.len() * 3) + 4);
            let (result, read) = decoder.decode_to_string_without_replacement(rest, scratch, true);
            at += read;
            match result {
                DecoderResult::InputEmpty => return Ok(scratch),
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(bad, after) if errors == EncodingErrors::Strict => {
                    return Err(at - usize::from(bad) - usize::from(after));
                }
                DecoderResult::Malformed(..) if errors == EncodingErrors::Replace => {
                    scratch.push(char::REPLACEMENT_CHARACTER);
                }
                DecoderResult::Malformed(..) => {}
            }
        }
    }
}

/// The encoding of an input, and how many bytes of a byte order mark stand before its text.
///
/// `strip_utf8` says whether the mark of UTF-8 is no part of the text.
///
/// # Errors
/// Under `auto`, text that looks like another encoding than those that are read.
pub fn find(input: &Input, wanted: Encoding, strip_utf8: bool, read_bytes: usize) -> Result<(TextEncoding, u64)> {
    if wanted == Encoding::Utf8 && !strip_utf8 {
        return Ok((TextEncoding::Utf8, 0));
    }
    let mut reader = decode::open(input, read_bytes)?;
    let failed = |error| decode::explain(input, 0, error);
    let mut head = [0; 3];
    let length = fill(&mut reader, &mut head).map_err(failed)?;
    let head = &head[..length];
    let marked = match head {
        [0xef, 0xbb, 0xbf] => Some((TextEncoding::Utf8, 3)),
        [0xff, 0xfe, ..] => Some((TextEncoding::Utf16Le, 2)),
        [0xfe, 0xff, ..] => Some((TextEncoding::Utf16Be, 2)),
        _ => None,
    };
    Ok(match (wanted, marked) {
        (Encoding::Auto, Some(marked)) | (Encoding::Utf8, Some(marked @ (TextEncoding::Utf8, _))) => marked,
        (Encoding::Utf16, Some(marked)) if marked.0.is_wide() => marked,
        // Python's utf-16 without a mark takes the order of the machine, which nowadays is this.
        (Encoding::Utf16, _) => (TextEncoding::Utf16Le, 0),
        (Encoding::Utf8, _) => (TextEncoding::Utf8, 0),
        (Encoding::Gb18030, _) => (TextEncoding::Gb18030, 0),
        (Encoding::Auto, None) => {
            let sample = sample(head, &mut reader).map_err(failed)?;
            let guessed = guess(&sample).map_err(|other| {
                let reason = format!(
                    "looks like {other}, which is not read; convert it to UTF-8 (for example with iconv), or say what it is with --encoding"
                );
                Error::input(input.at(), reason)
            })?;
            (guessed, 0)
        }
    })
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What tells: the bytes from the first one on that is not plain ASCII text; nothing, if all of them are.
fn sample(head: &[u8], reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut sample = head.to_vec();
    let mut buffer = vec![0; SAMPLE_BYTES];
    loop {
        let read = fill(reader, &mut buffer)?;
        sample.extend_from_slice(&buffer[..read]);
        // A zero is in no text of one byte a unit. From an even place on: what has two bytes a unit stays in step.
        let telling = sample.iter().position(|byte| !byte.is_ascii() || *byte == 0);
        if let Some(at) = telling.map(|at| at & !1) {
            sample.drain(..at);
            if sample.len() < SAMPLE_BYTES && read > 0 {
                let more = fill(reader, &mut buffer)?;
                sample.extend_from_slice(&buffer[..more]);
            }
            sample.truncate(SAMPLE_BYTES);
            return Ok(sample);
        }
        if read == 0 {
            return Ok(Vec::new());
        }
        // An even number goes, so that places keep their parity.
        sample.drain(..sample.len() & !1);
    }
}

/// The encoding of a sample; the name of another that it looks like.
fn guess(sample: &[u8]) -> std::result::Result<TextEncoding, &'static str> {
    if sample.contains(&0) {
        return Ok(byte_order(sample));
    }
    let mut strays = 0;
    let mut characters = 0;
    for chunk in sample.utf8_chunks() {
        characters += chunk.valid().chars().filter(|character| !character.is_ascii()).count();
        strays += usize::from(!chunk.invalid().is_empty());
    }
    // A stray byte among UTF-8 is damage, not another encoding; in GBK taken for UTF-8 nearly all are strays. The last
    // character of the sample may be cut.
    if strays <= 1 + characters / 4 && (strays == 0 || characters > 3) {
        return Ok(TextEncoding::Utf8);
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(sample, true);
    let found = detector.guess(None, Utf8Detection::Deny);
    if found == GBK || found == GB18030 {
        return Ok(TextEncoding::Gb18030);
    }
    Err(if found == BIG5 || found == SHIFT_JIS || found == EUC_JP || found == EUC_KR {
        found.name()
    } else {
        "a legacy encoding of another language"
    })
}

/// UTF-16 without a mark: line ends, spaces and full stops stand in the order that it has.
fn byte_order(sample: &[u8]) -> TextEncoding {
    let common = |unit: u16| matches!(unit, 0x0a | 0x20 | 0x2e | 0x65 | 0x3002 | 0xff0c | 0x7684);
    let count =
        |order: fn([u8; 2]) -> u16| sample.chunks_exact(2).filter(|pair| common(order([pair[0], pair[1]]))).count();
    if count(u16::from_be_bytes) > count(u16::from_le_bytes) { TextEncoding::Utf16Be } else { TextEncoding::Utf16Le }
}

/// A stream of UTF-8 made of one in another encoding, or of one with strays.
pub struct Transcoded<R> {
    inner: R,
    decoder: Decoder,
    errors: EncodingErrors,
    raw: Vec<u8>,
    begin: usize,
    filled: usize,
    /// Offset of `raw[begin]` in the file.
    offset: u64,
    text: Vec<u8>,
    given: usize,
    ended: bool,
    done: bool,
}

impl<R: Read> Transcoded<R> {
    /// Decodes `inner`, which stands at byte `offset` of the decompressed file.
    pub fn new(inner: R, encoding: TextEncoding, errors: EncodingErrors, offset: u64) -> Self {
        Self {
            inner,
            decoder: encoding.codec().new_decoder_without_bom_handling(),
            errors,
            raw: vec![0; 64 << 10],
            begin: 0,
            filled: 0,
            offset,
            text: Vec::new(),
            given: 0,
            ended: false,
            done: false,
        }
    }

    /// Decodes what is there, after reading if nothing is.
    fn more(&mut self) -> io::Result<()> {
        if self.begin == self.filled && !self.ended {
            self.begin = 0;
            self.filled = self.inner.read(&mut self.raw)?;
            self.ended = self.filled == 0;
        }
        self.given = 0;
        let raw = &self.raw[self.begin..self.filled];
        let room = self.decoder.max_utf8_buffer_length_without_replacement(raw.len()).unwrap_or(raw.len() * 3);
        self.text.resize(room + 4, 0);
        let (result, read, written) = self.decoder.decode_to_utf8_without_replacement(raw, &mut self.text, self.ended);
        self.begin += read;
        self.offset += read as u64;
        self.text.truncate(written);
        match result {
            DecoderResult::InputEmpty => self.done = self.ended,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(bad, after) if self.errors == EncodingErrors::Strict => {
                let at = self.offset - u64::from(bad) - u64::from(after);
                return Err(io::Error::other(InvalidBytes { at }));
            }
            DecoderResult::Malformed(..) if self.errors == EncodingErrors::Replace => {
                self.text.extend_from_slice(char::REPLACEMENT_CHARACTER.encode_utf8(&mut [0; 4]).as_bytes());
            }
            DecoderResult::Malformed(..) => {}
        }
        Ok(())
    }
}

impl<R: Read> Read for Transcoded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.text.len() {
            if self.done {
                return Ok(0);
            }
            self.more()?;
        }
        let length = buffer.len().min(self.text.len() - self.given);
        buffer[..length].copy_from_slice(&self.text[self.given..][..length]);
        self.given += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
