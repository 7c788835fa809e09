//! From a file to its decompressed bytes: plain, gzip (all members) or zstd (all frames), as a stream.
//!
//! Before: [`crate::source`]. After: [`crate::document`]. A stream that ends inside a member or frame is
//! an error, never a short file.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use tokenmill_shared::{Error, Location, Result, storage};

use crate::source::{Compression, Input};

/// How much is asked of the operating system at a time.
pub const READ_BYTES: usize = 1 << 20;

/// Opens the decompressed bytes of an input. `read_bytes` bounds every single read; the result never
/// depends on it.
pub fn open(input: &Input, read_bytes: usize) -> Result<Box<dyn Read + Send>> {
    let file = AtMost { inner: storage::open(&input.path)?, limit: read_bytes.max(1) };
    Ok(match input.compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::new(file).map_err(|error| explain(input, 0, error))?)
        }
    })
}

/// Opens an uncompressed input at byte `offset`.
pub fn open_at(input: &Input, offset: u64, read_bytes: usize) -> Result<Box<dyn Read + Send>> {
    assert_eq!(input.compression, Compression::None, "only plain files can be entered in the middle");
    let file = storage::open(&input.path)?;
    Ok(Box::new(AtMost { inner: FromOffset { file, offset }, limit: read_bytes.max(1) }))
}

/// Turns a read error into one that names the place: `byte` counts decompressed bytes.
pub fn explain(input: &Input, byte: u64, error: io::Error) -> Error {
    let damaged = error.raw_os_error().is_none() && input.compression != Compression::None;
    if !damaged {
        return Error::storage("read", &input.path)(error);
    }
    let format = if input.compression == Compression::Gzip { "gzip" } else { "zstd" };
    let what = if error.kind() == io::ErrorKind::UnexpectedEof || error.to_string().contains("incomplete") {
        format!("the {format} stream is truncated: it ends inside a member or frame")
    } else {
        format!("the {format} stream is damaged ({error})")
    };
    Error::input(Location::file(&input.path).at_byte(byte), format!("{what}; fetch the file again or remove it"))
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
