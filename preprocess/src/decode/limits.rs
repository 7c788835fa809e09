//! What a compressed stream may become: so much for each byte of it, and so much in all.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokenmill_shared::{Error, Location};

/// How far a stream may grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes that cost nothing: small files may be as repetitive as they like.
    pub free_bytes: u64,
    /// Beyond them, decompressed bytes for each compressed one. Text stays below 20; gzip itself stops near 1,030, and
    /// zstd passes 30,000.
    pub ratio: u64,
    /// Decompressed bytes of one file.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { free_bytes: 16 << 20, ratio: 200, bytes: 1 << 40 }
    }
}

/// A stream that grew beyond its limits, inside an [`io::Error`].
#[derive(Debug)]
pub(super) struct TooMuch {
    what: &'static str,
    found: u64,
    limit: u64,
}

impl TooMuch {
    pub(super) fn at(&self, at: Location) -> Error {
        let Self { what, found, limit } = *self;
        Error::Limit { at, what, found, limit, remedy: "if the file is what it should be, decompress it beforehand" }
    }
}

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, the limit is {}", self.what, self.found, self.limit)
    }
}

impl std::error::Error for TooMuch {}

/// Counts the bytes that are taken.
pub(super) struct Counted<R> {
    pub inner: R,
    pub bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// A decoder that stops where its stream has grown too far.
pub(super) struct Bounded {
    decoder: Box<dyn Read + Send>,
    compressed: Arc<AtomicU64>,
    produced: u64,
    limits: Limits,
}

impl Bounded {
    pub(super) fn new(decoder: Box<dyn Read + Send>, compressed: Arc<AtomicU64>, limits: Limits) -> Self {
        Self { decoder, compressed, produced: 0, limits }
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        self.produced += read as u64;
        let Limits { free_bytes, ratio, bytes } = self.limits;
        let (found, compressed) = (self.produced, self.compressed.load(Ordering::Relaxed));
        if found > bytes {
            return Err(io::Error::other(TooMuch { what: "its decompressed size in bytes", found, limit: bytes }));
        }
        if found > free_bytes && found / ratio > compressed {
            let what = "the number of decompressed bytes for each compressed one";
            return Err(io::Error::other(TooMuch { what, found: found / compressed.max(1), limit: ratio }));
        }
        Ok(read)
    }
}
