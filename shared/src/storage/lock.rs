//! Locks between processes: held by a file descriptor, so the kernel releases those of a killed process.

use std::path::Path;

use super::{parent_of, sync_dir};
use crate::{Error, Result};

/// A lock held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: std::fs::File,
}

/// Locks `path` (created if absent and then durable, never removed), waiting for another holder if `wait`;
/// `None` if it is held and `wait` is false.
pub fn lock_file(path: &Path, wait: bool) -> Result<Option<Lock>> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::storage("open", path))?;
    sync_dir(&parent_of(path))?;
    if wait {
        file.lock().map_err(Error::storage("lock", path))?;
        return Ok(Some(Lock { _file: file }));
    }
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(Error::storage("lock", path)(error)),
    }
}

/// Locks `path` (created if absent) together with others that lock it so, waiting for one that has it alone.
pub fn lock_file_shared(path: &Path) -> Result<Lock> {
    // NFS locks together only what may be read, and alone only what may be written to.
    let file = std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.map_err(Error::storage("open", path))?;
    file.lock_shared().map_err(Error::storage("lock", path))?;
    Ok(Lock { _file: file })
}
