//! A probe of the file system: whether it keeps what publishing and locking rely on.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::disk;
use super::publish::temporary_name;
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
    let [one, other] = [temporary_name(&dir.join("one")), temporary_name(&dir.join("other"))];
    let found = try_out(&one, &other);
    // Nothing is lost if this fails: the next start removes what is of this form.
    let _ = (std::fs::remove_file(&one), std::fs::remove_file(&other));
    match found.map_err(Error::storage("write to", dir))? {
        None => Ok(disk(dir)?.has_local_locks.then_some(LOCAL_LOCKS)),
        Some(lacking) => Err(Error::config(
            dir.display().to_string(),
            format!("lies on a file system where {lacking}; choose a directory on a local disk"),
        )),
    }
}

fn try_out(one: &Path, other: &Path) -> std::io::Result<Option<&'static str>> {
    let create = |path| std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    let (first, second) = (create(one)?, create(other)?);
    if create(one).is_ok() {
        return Ok(Some("a file that is there can be created again"));
    }
    if first.lock().is_err() {
        return Ok(Some("files cannot be locked"));
    }
    let again = || std::fs::OpenOptions::new().read(true).write(true).open(one);
    if again()?.try_lock().is_ok() {
        return Ok(Some("a lock does not keep others out"));
    }
    first.unlock()?;
    let (one_reader, other_reader) = (again()?, again()?);
    if one_reader.lock_shared().is_err() || other_reader.try_lock_shared().is_err() {
        return Ok(Some("a lock cannot be held together"));
    }
    if again()?.try_lock().is_ok() {
        return Ok(Some("a lock that is held together does not keep others out"));
    }
    match std::fs::rename(other, one).map_err(|error| (error.kind(), error)) {
        Err((ErrorKind::AlreadyExists | ErrorKind::PermissionDenied | ErrorKind::Unsupported, _)) => {
            return Ok(Some("a file cannot take the place of another"));
        }
        // A disk that is full or broken.
        Err((_, error)) => return Err(error),
        Ok(()) => {}
    }
    let replaced = std::fs::metadata(one)?.ino() == second.metadata()?.ino() && !other.exists();
    Ok((!replaced).then_some("a file that takes the place of another does not do so at once"))
}
