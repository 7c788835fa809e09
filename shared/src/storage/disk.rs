//! The disk below a directory.

use std::path::Path;

use crate::{Error, Result};

/// What a file system says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Its kind, such as `ext4`, or the number that stands for it.
    pub kind: String,
}

/// The disk that `path` is on, or its nearest directory that exists.
pub fn disk(path: &Path) -> Result<Disk> {
    let there = path.ancestors().find(|path| path.exists()).filter(|path| !path.as_os_str().is_empty());
    let path = there.unwrap_or(Path::new("."));
    let failed = |error: rustix::io::Errno| Error::storage("inspect the disk of", path)(error.into());
    let room = rustix::fs::statvfs(path).map_err(failed)?;
    let free_bytes = room.f_bavail.saturating_mul(room.f_frsize);
    // The magic numbers of statfs(2).
    let kind = match rustix::fs::statfs(path).map_err(failed)?.f_type as u32 {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x6969 => "nfs",
        0x794c_7630 => "overlay",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0x2fc1_2fc1 => "zfs",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x0bd0_0bd0 => "lustre",
        other => return Ok(Disk { free_bytes, kind: format!("{other:#x}") }),
    };
    Ok(Disk { free_bytes, kind: kind.to_owned() })
}
