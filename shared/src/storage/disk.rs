//! The disk below a directory.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{Error, Result};

/// What a file system says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Its kind, such as `ext4`, or the number that stands for it.
    pub kind: String,
    /// Whether its locks keep out programs of this machine alone, of NFS: the options `nolock` and `local_lock`.
    pub has_local_locks: bool,
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
        other => return Ok(Disk { free_bytes, kind: format!("{other:#x}"), has_local_locks: false }),
    };
    let has_local_locks = kind == "nfs" && {
        let device = std::fs::metadata(path).map_err(Error::storage("inspect", path))?.dev();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        locks_locally(&mounts, (rustix::fs::major(device), rustix::fs::minor(device)))
    };
    Ok(Disk { free_bytes, kind: kind.to_owned(), has_local_locks })
}

/// Whether the options of the NFS mount of a device say so. `mounts` is as proc_pid_mountinfo(5) describes it.
fn locks_locally(mounts: &str, (major, minor): (u32, u32)) -> bool {
    let device = format!("{major}:{minor}");
    let of_device = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(device.as_str()));
    let options = of_device.filter_map(|line| line.rsplit(' ').next()).flat_map(|options| options.split(','));
    options.into_iter().any(|option| ["nolock", "local_lock=all", "local_lock=flock"].contains(&option))
}

#[cfg(test)]
mod tests {
    use super::locks_locally;

    /// As Linux 6.1 says it (tests/nfs.sh).
    #[test]
    fn mounts_that_lock_for_one_machine_are_told_from_others() {
        let mounts = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            30 27 0:38 / /mnt/a rw,relatime shared:1 - nfs4 127.0.0.1:/ rw,vers=4.2,hard,local_lock=none,addr=127.0.0.1\n\
            31 27 0:40 / /mnt/b rw - nfs 127.0.0.1:/export rw,vers=3,nolock,proto=tcp,local_lock=all,addr=127.0.0.1\n\
            32 27 0:41 / /mnt/c rw - nfs 127.0.0.1:/export rw,vers=3,proto=tcp,local_lock=flock,addr=127.0.0.1\n";
        let found = [(254, 0), (0, 38), (0, 40), (0, 41), (0, 42)].map(|device| locks_locally(mounts, device));
        assert_eq!(found, [false, false, true, true, false]);
    }
}
