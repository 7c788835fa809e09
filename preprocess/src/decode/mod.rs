//! From a file to its decompressed bytes: plain, gzip (all members), zstd (all frames), bzip2 or xz (all streams).
//!
//! Before: [`crate::source`]. After: [`crate::document`]. A stream that ends inside a member or frame is
//! an error, never a short file; one that grows beyond [`Limits`] is refused while it grows.

mod limits;
mod paused;

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use tokenmill_shared::{Error, Location, Result, storage};

use self::limits::{Bounded, Counted, Limits, TooMuch};
use self::paused::Resumable;
use crate::encoding::InvalidBytes;
use crate::source::{Compression, Input};

/// How much is asked of the operating system at a time.
pub const READ_BYTES: usize = 1 << 20;

/// The largest window of a zstd frame: 128 MiB, what `zstd` itself takes without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The memory that an xz stream may ask for. `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// Opens the decompressed bytes of an input. `read_bytes` bounds every single read; the result never
/// depends on it.
pub fn open(input: &Input, read_bytes: usize) -> Result<Box<dyn Read + Send>> {
    open_within(input, read_bytes, Limits::default())
}

fn open_within(input: &Input, read_bytes: usize, limits: Limits) -> Result<Box<dyn Read + Send>> {
    let file = AtMost { inner: storage::open(&input.path)?, limit: read_bytes.max(1) };
    if input.compression == Compression::None {
        return Ok(Box::new(file));
    }
    let compressed = Arc::new(AtomicU64::new(0));
    let file = Counted { inner: file, bytes: Arc::clone(&compressed) };
    let failed = |error| explain(input, 0, error);
    let decoder: Box<dyn Read + Send> = match input.compression {
        Compression::None | Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(file).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
            Box::new(decoder)
        }
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(file)),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED);
            Box::new(XzDecoder::new_stream(file, stream.map_err(|error| failed(error.into()))?))
        }
    };
    Ok(Box::new(Bounded::new(decoder, compressed, limits)))
}

/// Opens an uncompressed input at byte `offset`.
pub fn open_at(input: &Input, offset: u64, read_bytes: usize) -> Result<Box<dyn Read + Send>> {
    assert_eq!(input.compression, Compression::None, "only plain files can be entered in the middle");
    let file = storage::open(&input.path)?;
    Ok(Box::new(AtMost { inner: FromOffset { file, offset }, limit: read_bytes.max(1) }))
}

/// Opens an input at byte `offset` of its decompressed bytes. Of a compressed one what lies before is decompressed, from
/// where this thread left it if that is not behind `offset`.
pub fn enter(input: &Input, offset: u64, read_bytes: usize) -> Result<Box<dyn Read + Send>> {
    if input.compression == Compression::None {
        return open_at(input, offset, read_bytes);
    }
    let (mut reader, from) = match Resumable::take(input, offset) {
        Some(left) => left,
        None => (Resumable::new(input, open(input, read_bytes)?), 0),
    };
    io::copy(&mut (&mut reader).take(offset - from), &mut io::sink()).map_err(|error| explain(input, 0, error))?;
    Ok(Box::new(reader))
}

/// Turns a read error into one that names the place: `byte` counts decompressed bytes.
pub fn explain(input: &Input, byte: u64, error: io::Error) -> Error {
    let inner = error.get_ref();
    if let Some(too_much) = inner.and_then(|inner| inner.downcast_ref::<TooMuch>()) {
        return too_much.at(input.at().at_byte(byte));
    }
    if let Some(InvalidBytes { at }) = inner.and_then(|inner| inner.downcast_ref::<InvalidBytes>()) {
        return crate::document::invalid_encoding(input.at().at_byte(*at));
    }
    let format = match input.compression {
        _ if error.raw_os_error().is_some() => return Error::storage("read", &input.path)(error),
        Compression::None => return Error::storage("read", &input.path)(error),
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
        Compression::Bzip2 => "bzip2",
        Compression::Xz => "xz",
    };
    let said = error.to_string();
    let what = if error.kind() == io::ErrorKind::UnexpectedEof || said.contains("incomplete") {
        format!("the {format} stream is truncated: it ends inside a member or frame")
    } else if said.contains("too much memory") || said.contains("memory limit") {
        let reason = format!(
            "the {format} stream asks for a window of more memory than the limit; compress it again without --long or --memory"
        );
        return Error::input(input.at().at_byte(byte), reason);
    } else {
        format!("the {format} stream is damaged ({said})")
    };
    let location: Location = input.at().at_byte(byte);
    Error::input(location, format!("{what}; fetch the file again or remove it"))
}

struct AtMost<R> {
    inner: R,
    limit: usize,
}

impl<R: Read> Read for AtMost<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.limit);
        self.inner.read(&mut buffer[..length])
    }
}

struct FromOffset {
    file: storage::File,
    offset: u64,
}

impl Read for FromOffset {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset).map_err(io::Error::other)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
pub(crate) mod tests;
