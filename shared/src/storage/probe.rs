//! A probe of the file system: whether it keeps what publishing and locking rely on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::disk;
use super::publish::create_locked;
use crate::{Error, Result};

/// What [`probe`] cannot try with one machine: two would write a dataset in one directory at once. What they mix is found
/// later, by its checksums.
const LOCAL_LOCKS: &str = "its locks are known to this machine alone (nolock or local_lock); let no other machine write there at the same time";

/// Tries in `dir` what the programs rely on: a name is created once, a lock excludes another but those that are held together,
/// a rename replaces a file at once. Some network and user-space file systems answer yes and do nothing; data would be lost
/// later. Returns what the user has to see to, if anything.
///
/// # Errors
/// The first that does not hold, with what to do; or that `dir` cannot be written to.
pub fn probe(dir: &Path) -> Result<Option<&'static str>> {
    match try_out(dir) {
        Ok(None) => Ok(disk(dir)?.has_local_locks.then_some(LOCAL_LOCKS)),
        Ok(Some(lacking)) => Err(Error::config(
            dir.display().to_string(),
            format!("lies on a file system where {lacking}; choose a directory on a local disk"),
        )),
        Err(error) => Err(Error::storage("write to", dir)(error)),
    }
}

/// What is lacking, or an error that says nothing about it, such as that of a full disk.
fn try_out(dir: &Path) -> io::Result<Option<&'static str>> {
    let (one, other) = match (Trial::create(dir), Trial::create(dir)) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(("lock", error)), _) | (_, Err(("lock", error))) => return lacks(error, "files cannot be locked"),
        (Err((_, error)), _) | (_, Err((_, error))) => return Err(error),
    };
    match create(&one.path) {
        Ok(_) => return Ok(Some("a file that is there can be created again")),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let again = || OpenOptions::new().read(true).write(true).open(&one.path);
    match again()?.try_lock() {
        Ok(()) => return Ok(Some("a lock does not keep others out")),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Opened before: with a lock that can be shared, another start may take the file for left behind.
    let (reader, writer) = (again()?, again()?);
    if one.file.lock_shared().is_err() || reader.try_lock_shared().is_err() {
        return Ok(Some("a lock cannot be held together"));
    }
    if writer.try_lock().is_ok() {
        return Ok(Some("a lock that is held together does not keep others out"));
    }
    if let Err(error) = std::fs::rename(&other.path, &one.path) {
        return lacks(error, "a file cannot take the place of another");
    }
    let replaced = std::fs::metadata(&one.path)?.ino() == other.file.metadata()?.ino() && !other.path.exists();
    Ok((!replaced).then_some("a file that takes the place of another does not do so at once"))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// `what`, if the error is one of a file system that has no such thing.
fn lacks(error: io::Error, what: &'static str) -> io::Result<Option<&'static str>> {
    const HAS_NONE: [Errno; 7] =
        [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK, Errno::INVAL, Errno::PERM, Errno::ACCESS, Errno::EXIST];
    match Errno::from_io_error(&error) {
        Some(errno) if HAS_NONE.contains(&errno) => Ok(Some(what)),
        _ => Err(error),
    }
}

/// A file to try things with.
struct Trial {
    path: PathBuf,
    file: File,
}

impl Trial {
    fn create(dir: &Path) -> std::result::Result<Self, (&'static str, io::Error)> {
        create_locked(&dir.join("trial"), |path| create(path).map(Some)).map(|(path, file)| Self { path, file })
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Nothing is lost if this fails: the next start removes what is of this form.
        let _ = std::fs::remove_file(&self.path);
    }
}
