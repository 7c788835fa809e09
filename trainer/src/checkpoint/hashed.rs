//! A file hashed on the way to the disk.

use std::io::{self, Write};
use std::path::Path;

use tokenmill_shared::dataset::FileEntry;
use tokenmill_shared::storage::TemporaryFile;
use tokenmill_shared::{Error, Result};

/// A [`TemporaryFile`] that knows the hash of what was written.
pub(super) struct HashedFile {
    file: TemporaryFile,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl HashedFile {
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: TemporaryFile::create(path)?, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let path = self.file.final_path().to_owned();
        self.write_all(bytes).map_err(Error::storage("write", &path))
    }

    /// Syncs and publishes it; size and hash of all that was written.
    pub(super) fn publish(self) -> Result<FileEntry> {
        self.file.publish()?;
        Ok(FileEntry { bytes: self.bytes, blake3: self.hasher.finalize().to_hex().to_string() })
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
