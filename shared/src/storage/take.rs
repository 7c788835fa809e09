//! Taking a whole, read-only file under a second name: without writing its bytes again where the file system can.
//!
//! Tried in turn: a clone, whose bytes the file system copies when one of both is written to (reflink: btrfs, xfs); a hard
//! link, the same file under another name, on the same file system and only of a file that nobody may write to; a copy.

use std::path::Path;

use serde::Serialize;

use super::{TemporaryFile, hash_file, is_remote, open, parent_of, sync_dir};
use crate::{Error, Result};

/// How a file was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// As a file of its own that shares its bytes.
    Cloned,
    /// As another name of the same file.
    Linked,
    /// As bytes.
    Copied,
}

/// Publishes the file at `source` as `path` too, read-only. What is published was read and has the BLAKE3 `blake3`, in
/// hexadecimal. The file at `source` was published, so that its bytes are durable; nothing is at `path`.
///
/// # Errors
/// Other bytes than those, a source that cannot be read; nothing is at `path` then.
pub fn take(source: &Path, path: &Path, blake3: &str) -> Result<Taken> {
    let check = |found: String| match found == blake3 {
        true => Ok(()),
        false => Err(Error::corrupt(source, "its bytes changed")),
    };
    let mut file = TemporaryFile::create(path)?;
    if file.clone_bytes_of(source)? {
        check(hash_file(file.temporary_path())?.0)?;
        file.publish_read_only()?;
        return Ok(Taken::Cloned);
    }
    if can_link(source, path)? {
        check(hash_file(source)?.0)?;
        // Refused as well where links are not allowed, or where a file has no room for one more.
        if std::fs::hard_link(source, path).is_ok() {
            drop(file);
            sync_dir(&parent_of(path))?;
            return Ok(Taken::Linked);
        }
    }
    let (source, mut hasher) = (open(source)?, blake3::Hasher::new());
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0);
    loop {
        match source.read_at(&mut buffer, at)? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                file.append(&buffer[..read])?;
                at += read as u64;
            }
        }
    }
    check(hasher.finalize().to_hex().to_string())?;
    file.publish_read_only()?;
    Ok(Taken::Copied)
}

/// A file that may be written to under one name would change under the other.
fn can_link(source: &Path, path: &Path) -> Result<bool> {
    if is_remote(path) {
        return Ok(false);
    }
    let of = |path: &Path| std::fs::metadata(path).map_err(Error::storage("inspect", path));
    let (source, dir) = (of(source)?, of(&parent_of(path))?);
    let device = |metadata: &std::fs::Metadata| std::os::unix::fs::MetadataExt::dev(metadata);
    Ok(source.permissions().readonly() && device(&source) == device(&dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const BYTES: &[u8] = b"ground and packed";

    /// A file of [`BYTES`] and the BLAKE3 that it should have.
    fn source(dir: &Path, read_only: bool) -> (std::path::PathBuf, String) {
        let path = dir.join("source");
        let mut file = TemporaryFile::create(&path).unwrap();
        file.append(BYTES).unwrap();
        if read_only { file.publish_read_only() } else { file.publish() }.unwrap();
        (path, blake3::hash(BYTES).to_hex().to_string())
    }

    fn inode(path: &Path) -> (u64, u64) {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.dev(), metadata.ino())
    }

    #[test]
    fn a_read_only_file_is_linked_unless_it_can_be_cloned_and_one_that_may_change_is_not() {
        for read_only in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (source, hash) = source(dir.path(), read_only);
            let path = dir.path().join("taken");
            let taken = take(&source, &path, &hash).unwrap();
            let one_file = inode(&source) == inode(&path);
            assert_eq!(one_file, taken == Taken::Linked);
            assert!(read_only || !one_file);
            assert!(taken != Taken::Copied || !read_only, "a read-only file of the same file system was copied");
            assert_eq!(std::fs::read(&path).unwrap(), BYTES);
            assert!(std::fs::metadata(&path).unwrap().permissions().readonly());
            let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "{names:?}");
        }
    }

    #[test]
    fn a_file_of_another_device_is_copied() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm"));
        let Some(there) = there.ok().filter(|there| inode(there.path()).0 != inode(here.path()).0) else {
            println!("/dev/shm is no other device here");
            return;
        };
        let (source, hash) = source(here.path(), true);
        let path = there.path().join("taken");
        assert_eq!(take(&source, &path, &hash).unwrap(), Taken::Copied);
        assert_eq!(std::fs::read(&path).unwrap(), BYTES);
        assert!(std::fs::metadata(&path).unwrap().permissions().readonly());
    }

    #[test]
    fn other_bytes_are_refused_and_nothing_of_them_stays() {
        for read_only in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (source, _) = source(dir.path(), read_only);
            let other = blake3::hash(b"something else").to_hex().to_string();
            let refused = take(&source, &dir.path().join("taken"), &other).unwrap_err();
            assert!(refused.to_string().contains("source") && refused.exit_code() == 3, "{refused}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
