//! Reading: whole small files with a size limit, large ones by position.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{is_remote, remote};
use crate::error::Location;
use crate::{Error, Result};

/// What the file system says of a file. Two equal values of the first five fields mean the same content
/// as far as the file system can tell; `ctime_ns` cannot be set back by programs, so a restored mtime shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Stat {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of content, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Time of the last change of content or metadata, nanoseconds since the epoch.
    pub ctime_ns: i128,
}

impl From<&std::fs::Metadata> for Stat {
    fn from(metadata: &std::fs::Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The [`Stat`] of a file, symbolic links followed; `None` if there is nothing of that name.
pub fn stat(path: &Path) -> Result<Option<Stat>> {
    if is_remote(path) {
        return remote::stat(path);
    }
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(Stat::from(&metadata))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::storage("inspect", path)(error)),
    }
}

/// An open file, read by position or as a stream. Errors name its path.
#[derive(Debug)]
pub struct File {
    inner: Inner,
    path: PathBuf,
}

#[derive(Debug)]
enum Inner {
    Local(std::fs::File),
    /// With the place that a stream has come to.
    Remote(remote::Object, u64),
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<File> {
    let inner = match is_remote(path) {
        true => Inner::Remote(remote::Object::open(path)?, 0),
        false => Inner::Local(std::fs::File::open(path).map_err(Error::storage("open", path))?),
    };
    Ok(File { inner, path: path.to_owned() })
}

impl File {
    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file system says of the open file.
    pub fn stat(&self) -> Result<Stat> {
        match &self.inner {
            Inner::Local(file) => Ok(Stat::from(&file.metadata().map_err(Error::storage("inspect", &self.path))?)),
            Inner::Remote(object, _) => Ok(object.stat()),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(self.stat()?.size)
    }

    /// Fills `buffer` from byte `offset`; a file that ends before is [`Error::Corrupt`].
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let truncated =
            || Error::corrupt(&self.path, format!("ends before byte {end}; it was truncated, make it again"));
        match &self.inner {
            Inner::Local(file) => file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => truncated(),
                _ => Error::storage("read", &self.path)(error),
            }),
            Inner::Remote(object, _) => {
                let mut filled = 0;
                while filled < buffer.len() {
                    match object.read_at(&self.path, &mut buffer[filled..], offset + filled as u64)? {
                        0 => return Err(truncated()),
                        read => filled += read,
                    }
                }
                Ok(())
            }
        }
    }

    /// Reads at most `buffer.len()` bytes from byte `offset`; 0 means the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let file = match &self.inner {
            Inner::Local(file) => file,
            Inner::Remote(object, _) => return object.read_at(&self.path, buffer, offset),
        };
        loop {
            match file.read_at(buffer, offset) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => return other.map_err(Error::storage("read", &self.path)),
            }
        }
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.inner {
            Inner::Local(file) => file.read(buffer),
            Inner::Remote(object, at) => {
                let read = object.read_at(&self.path, buffer, *at).map_err(std::io::Error::other)?;
                *at += read as u64;
                Ok(read)
            }
        }
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match &mut self.inner {
            Inner::Local(file) => file.seek(to),
            Inner::Remote(object, at) => {
                let found = match to {
                    SeekFrom::Start(to) => Some(to),
                    SeekFrom::End(by) => object.stat().size.checked_add_signed(by),
                    SeekFrom::Current(by) => at.checked_add_signed(by),
                };
                *at = found.ok_or(std::io::ErrorKind::InvalidInput)?;
                Ok(*at)
            }
        }
    }
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    if is_remote(path) {
        let mut bytes = Vec::new();
        open(path)?.read_to_end(&mut bytes).map_err(Error::storage("read", path))?;
        return Ok(bytes);
    }
    std::fs::read(path).map_err(Error::storage("read", path))
}

/// Reads a whole file of at most `limit` bytes; a larger one is refused before it is read.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut file = open(path)?;
    let too_large = |found| Error::Limit {
        at: Location::file(path),
        what: "the size in bytes",
        found,
        limit,
        remedy: "check that this is the right file",
    };
    let size = file.size()?;
    if size > limit {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    (&mut file).take(limit + 1).read_to_end(&mut bytes).map_err(Error::storage("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// BLAKE3 of a file's bytes, in hexadecimal, and its size; read in pieces of 1 MiB.
pub fn hash_file(path: &Path) -> Result<(String, u64)> {
    let mut file = open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finalize().to_hex().to_string(), size)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::storage("read", path)(error)),
        }
    }
}
