//! The storage door: every file operation of both programs.
//!
//! Reading is bounded and by position; writing is publishing: a temporary name in the same directory,
//! write, fsync, rename, fsync of the directory ([`TemporaryFile`], [`TemporaryDirectory`], [`replace`]).
//! So a final name is either absent or whole, whatever is killed and whenever. No other module may use
//! `std::fs` (see `clippy.toml`).
//!
//! Files may lie in a store ([`is_remote`]): there they are read by the same functions, published as objects that are seen
//! when they are whole, and what locks are for is done by [`create_in_store`].
#![allow(clippy::disallowed_methods)]

mod append;
mod claim;
mod disk;
mod lock;
mod probe;
mod publish;
mod read;
#[cfg_attr(not(feature = "s3"), path = "no_remote.rs")]
mod remote;
mod take;
mod walk;

pub use append::AppendFile;
pub use claim::Claim;
pub use disk::{Disk, disk};
pub use lock::{Lock, lock_file, lock_file_shared};
pub use probe::probe;
pub use publish::{TemporaryDirectory, TemporaryFile, remove_stale_temporaries, replace, replace_read_only};
pub use read::{File, Stat, hash_file, open, read, read_at_most, stat};
pub use take::{Taken, take};
pub use walk::{Entry, files_in, list_directories, list_files};

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Whether a path names what is in a store, as `s3://BUCKET/KEY`. That is read and published as files are; it has no
/// directories, and nothing there is locked, renamed or added to.
pub fn is_remote(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(REMOTE.as_bytes())
}

const REMOTE: &str = "s3://";

/// Creates the object at `path` of a store, unless there is one already: whether this call made it. One of those that do it
/// at once, if the store keeps the condition.
pub fn create_in_store(path: &Path, bytes: &[u8]) -> Result<bool> {
    remote::create(path, bytes)
}

/// Gives up what was begun to be uploaded below `dir` of a store, by others as well. What cannot be is said.
pub fn remove_unfinished_uploads(dir: &Path) -> Result<()> {
    remote::remove_unfinished_uploads(dir)
}

/// Creates a directory and its parents; each new one is synced into its parent. A store has none.
pub fn create_dir_all(path: &Path) -> Result<()> {
    if is_remote(path) || path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_dir_all(&parent)?;
    match std::fs::create_dir(path) {
        Ok(()) => sync_dir(&parent),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(Error::storage("create directory", path)(error)),
    }
}

/// Removes a file; absent already is success.
pub fn remove_file(path: &Path) -> Result<()> {
    if is_remote(path) {
        return remote::remove(path);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::storage("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory and all in it, first renaming it to a temporary name so that no half of it is
/// ever seen under its own name; absent already is success.
pub fn remove_dir_all(path: &Path) -> Result<()> {
    let doomed = publish::temporary_name(path);
    match std::fs::rename(path, &doomed) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::storage("remove", path)(error)),
        Ok(()) => {
            // Else a power cut may take the new name back and leave what is removed removed.
            sync_dir(&parent_of(path))?;
            match std::fs::remove_dir_all(&doomed) {
                // Another start has taken it for left behind.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(Error::storage("remove", &doomed)),
            }
        }
    }
}

/// Renames a file or directory and syncs the directory that holds the new name.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::storage("rename", from))?;
    sync_dir(&parent_of(to))
}

/// Makes `path` a symbolic link to `target`, replacing a link that leads elsewhere.
pub fn link(path: &Path, target: &Path) -> Result<()> {
    let temporary = publish::temporary_name(path);
    std::os::unix::fs::symlink(target, &temporary).map_err(Error::storage("link", path))?;
    rename(&temporary, path)
}

/// Sets the time of the last change of the file at `path` to now, so that what is used can be told from what is not.
/// Read-only files have it set too. One that is gone or another's stays as it is.
pub fn touch(path: &Path) {
    let _ = std::fs::File::open(path).and_then(|file| file.set_modified(std::time::SystemTime::now()));
}

/// Makes what was written to the file at `path` durable.
pub fn sync_file(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::storage("open", path))?;
    file.sync_all().map_err(Error::storage("sync", path))
}

/// The absolute path without symbolic links.
pub fn canonicalize(path: &Path) -> Result<PathBuf> {
    if is_remote(path) {
        return Ok(path.to_owned());
    }
    std::fs::canonicalize(path).map_err(Error::storage("find", path))
}

/// Makes what was renamed, made or removed in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let handle = std::fs::File::open(dir).map_err(Error::storage("open directory", dir))?;
    handle.sync_all().map_err(Error::storage("sync directory", dir))
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
