//! Listing input: every file below a directory, in an order that does not depend on the file system.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Stat;
use crate::{Error, Result};

/// A file found below a directory.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path to open.
    pub path: PathBuf,
    /// The path relative to the directory that was listed; the sort key, byte by byte.
    pub relative: PathBuf,
    /// What the file system said of it when it was listed.
    pub stat: Stat,
}

/// Every regular file below `root`, symbolic links followed, sorted by the bytes of its relative path.
/// Directories reached twice through links are an error, not an endless walk.
pub fn list_files(root: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    if super::is_remote(root) {
        entries = super::remote::list(root)?;
    } else {
        walk(root, Path::new(""), &mut Vec::new(), &mut entries)?;
    }
    entries.sort_by(|a, b| a.relative.as_os_str().as_bytes().cmp(b.relative.as_os_str().as_bytes()));
    Ok(entries)
}

/// The directories in `dir`, itself excluded, not below them; none if `dir` is absent. Sorted by name.
pub fn list_directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let items = match std::fs::read_dir(dir) {
        Ok(items) => items,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::storage("list", dir)(error)),
    };
    let mut found = Vec::new();
    for item in items {
        let path = item.map_err(Error::storage("list", dir))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The regular files in `dir`, not below it, symbolic links followed. Sorted by name.
pub fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir).map_err(Error::storage("list", dir))? {
        let path = item.map_err(Error::storage("list", dir))?.path();
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn walk(dir: &Path, relative: &Path, above: &mut Vec<PathBuf>, entries: &mut Vec<Entry>) -> Result<()> {
    let real = super::canonicalize(dir)?;
    if above.contains(&real) {
        return Err(Error::config(
            dir.display().to_string(),
            "a symbolic link leads back to a directory above it; remove the link",
        ));
    }
    above.push(real);
    for item in std::fs::read_dir(dir).map_err(Error::storage("list", dir))? {
        let item = item.map_err(Error::storage("list", dir))?;
        let path = item.path();
        let relative = relative.join(item.file_name());
        let metadata = std::fs::metadata(&path).map_err(Error::storage("inspect", &path))?;
        if metadata.is_dir() {
            walk(&path, &relative, above, entries)?;
        } else if metadata.is_file() {
            entries.push(Entry { path, relative, stat: Stat::from(&metadata) });
        }
    }
    above.pop();
    Ok(())
}
