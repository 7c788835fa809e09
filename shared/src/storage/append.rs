//! Logs: files that grow while others read them. A kill may cut the last line; nothing depends on them.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file that is only added to.
#[derive(Debug)]
pub struct AppendFile {
    file: std::fs::File,
    path: PathBuf,
}

impl AppendFile {
    /// Opens `path` for adding, creating it if absent.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { file: file.map_err(Error::storage("open", path))?, path: path.to_owned() })
    }

    /// Adds `bytes` in one write, so that a reader sees all of them or none.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::storage("write", &self.path))
    }
}
