//! Publishing: temporary name, write, fsync, rename, fsync of the directory.
//!
//! A temporary is called `.tmp-<host>-<pid>-<nonce>` and locked by its writer for as long as it lives;
//! a killed writer's lock is released by the kernel, which is how [`remove_stale_temporaries`] tells
//! litter from work in progress. Nothing that is not of that form is ever removed.
//!
//! In a store there are no temporaries: an object is there when all of it has arrived.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{is_remote, open, parent_of, remote, sync_dir};
use crate::{Error, Result};

const PREFIX: &str = ".tmp-";

/// A name beside `final_path` that no other process or call uses. The nonce never reaches any output.
pub(super) fn temporary_name(final_path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nonce = COUNTER.fetch_add(1, Ordering::Relaxed);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    parent_of(final_path).join(format!("{PREFIX}{}-{}-{clock:x}.{nonce:x}", host(), std::process::id()))
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

/// The host and process id in a temporary's name; `None` for a name that is not of our form.
fn writer_of(name: &str) -> Option<(&str, u32)> {
    let parts: Vec<&str> = name.strip_prefix(PREFIX)?.split('-').collect();
    let [host, pid, nonce] = parts[..] else { return None };
    let (clock, count) = nonce.split_once('.')?;
    let hexadecimal = |part: &str| u64::from_str_radix(part, 16).is_ok();
    (!host.is_empty() && hexadecimal(clock) && hexadecimal(count)).then_some((host, pid.parse().ok()?))
}

/// Creates something that will be called like `beside`, under a temporary name, and locks it. Between the two another start
/// may take it for left behind and remove it: a thread of this process, or another machine that has the directory too. Then
/// it is created anew, as it is if `create` finds it gone. Errors come with what was to be done.
pub(super) fn create_locked(
    beside: &Path,
    create: impl Fn(&Path) -> io::Result<Option<std::fs::File>>,
) -> std::result::Result<(PathBuf, std::fs::File), (&'static str, io::Error)> {
    loop {
        let temporary = temporary_name(beside);
        let Some(file) = create(&temporary).map_err(|error| ("create", error))? else { continue };
        file.lock().map_err(|error| ("lock", error))?;
        if file.metadata().map_err(|error| ("look at", error))?.nlink() > 0 {
            return Ok((temporary, file));
        }
    }
}

/// Whether another process of this machine still runs; what it has is its own before it is locked, too.
fn is_running_here(host_name: &str, pid: u32) -> bool {
    pid != std::process::id() && host_name == host() && Path::new(&format!("/proc/{pid}")).exists()
}

/// A file being written; it appears under its final name only by [`TemporaryFile::publish`], and is
/// removed when dropped before that.
#[derive(Debug)]
pub struct TemporaryFile {
    inner: Inner,
    final_path: PathBuf,
}

#[derive(Debug)]
enum Inner {
    Local(Local),
    Remote(remote::Upload),
}

impl TemporaryFile {
    /// Starts a file that will be called `final_path`. The directory must exist.
    pub fn create(final_path: &Path) -> Result<Self> {
        Self::create_in(&parent_of(final_path), final_path)
    }

    /// The same with the temporary in `dir`, on the same file system, so that what kills leave behind lies
    /// in one place.
    pub fn create_in(dir: &Path, final_path: &Path) -> Result<Self> {
        let inner = match is_remote(final_path) {
            true => Inner::Remote(remote::Upload::new(final_path)?),
            false => Inner::Local(Local::create(dir, final_path)?),
        };
        Ok(Self { inner, final_path: final_path.to_owned() })
    }

    /// The name it will have.
    pub fn final_path(&self) -> &Path {
        &self.final_path
    }

    /// Where it lies until it is published; of one in a store, which lies nowhere, where it will be.
    pub fn temporary_path(&self) -> &Path {
        match &self.inner {
            Inner::Local(local) => &local.temporary,
            Inner::Remote(_) => &self.final_path,
        }
    }

    /// Writes all of `bytes`; the error names the final path.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.inner {
            Inner::Local(local) => local.file().write_all(bytes).map_err(Error::storage("write", &self.final_path)),
            Inner::Remote(upload) => upload.append(bytes),
        }
    }

    /// Writes all of the file at `source`, 1 MiB at a time.
    pub fn append_file(&mut self, source: &Path) -> Result<()> {
        let file = open(source)?;
        let (mut buffer, mut at) = (vec![0; 1 << 20], 0);
        loop {
            match file.read_at(&mut buffer, at)? {
                0 => return Ok(()),
                read => {
                    self.append(&buffer[..read])?;
                    at += read as u64;
                }
            }
        }
    }

    /// Makes it share the bytes of the file at `source`, in place of its own; whether the file system does that.
    pub(super) fn clone_bytes_of(&mut self, source: &Path) -> Result<bool> {
        match &mut self.inner {
            Inner::Local(local) => {
                let source_file = std::fs::File::open(source).map_err(Error::storage("open", source))?;
                // Whatever the reason is: who copies instead will meet it again if it is more than that.
                Ok(rustix::fs::ioctl_ficlone(local.file(), source_file).is_ok())
            }
            Inner::Remote(_) => Ok(false),
        }
    }

    /// fsync, rename to the final name, fsync of the directory. A file whose fsync failed is thrown away:
    /// the kernel may have dropped its dirty pages, so syncing it again would lie.
    pub fn publish(self) -> Result<()> {
        self.publish_with(false)
    }

    /// [`TemporaryFile::publish`] of a file that nobody shall change (0444).
    pub fn publish_read_only(self) -> Result<()> {
        self.publish_with(true)
    }

    fn publish_with(self, read_only: bool) -> Result<()> {
        match self.inner {
            Inner::Local(local) => local.publish(&self.final_path, read_only),
            Inner::Remote(upload) => upload.publish(),
        }
    }
}

impl Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Local(local) => local.file().write(bytes),
            Inner::Remote(upload) => upload.append(bytes).map(|()| bytes.len()).map_err(io::Error::other),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One on a disk.
#[derive(Debug)]
struct Local {
    file: Option<std::fs::File>,
    temporary: PathBuf,
}

impl Local {
    fn create(dir: &Path, final_path: &Path) -> Result<Self> {
        let (temporary, file) = create_locked(&dir.join("file"), |temporary| {
            std::fs::OpenOptions::new().write(true).create_new(true).open(temporary).map(Some)
        })
        .map_err(|(action, error)| Error::storage(action, final_path)(error))?;
        Ok(Self { file: Some(file), temporary })
    }

    fn file(&mut self) -> &mut std::fs::File {
        self.file.as_mut().expect("written before it is published")
    }

    fn publish(mut self, final_path: &Path, read_only: bool) -> Result<()> {
        let file = self.file.take().expect("a temporary file is published once");
        if read_only {
            let set = || {
                let mut permissions = file.metadata()?.permissions();
                permissions.set_readonly(true);
                file.set_permissions(permissions)
            };
            set().map_err(Error::storage("set permissions of", final_path)).inspect_err(|_| self.discard())?;
        }
        file.sync_all().map_err(Error::storage("sync", final_path)).inspect_err(|_| self.discard())?;
        std::fs::rename(&self.temporary, final_path)
            .map_err(Error::storage("rename to", final_path))
            .inspect_err(|_| self.discard())?;
        sync_dir(&parent_of(final_path))
    }

    fn discard(&self) {
        // Nothing is lost if this fails: the next start removes it.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.discard();
        }
    }
}

/// A directory being filled; it appears under its final name only by [`TemporaryDirectory::publish`],
/// and is removed when dropped before that.
#[derive(Debug)]
pub struct TemporaryDirectory {
    lock: Option<std::fs::File>,
    temporary: PathBuf,
    final_path: PathBuf,
}

impl TemporaryDirectory {
    /// Starts a directory that will be called `final_path`, whose parent must exist.
    pub fn create(final_path: &Path) -> Result<Self> {
        let (temporary, lock) = create_locked(final_path, |temporary| {
            std::fs::create_dir(temporary)?;
            match std::fs::File::open(temporary) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                opened => opened.map(Some),
            }
        })
        .map_err(|(action, error)| Error::storage(action, final_path)(error))?;
        Ok(Self { lock: Some(lock), temporary, final_path: final_path.to_owned() })
    }

    /// The directory to fill now. Write its files with [`replace`] or [`TemporaryFile`], which sync them.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Renames it to its final name, which must be free, and syncs the parent.
    pub fn publish(mut self) -> Result<()> {
        sync_dir(&self.temporary)?;
        std::fs::rename(&self.temporary, &self.final_path).map_err(Error::storage("rename to", &self.final_path))?;
        self.lock = None;
        sync_dir(&parent_of(&self.final_path))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Publishes `bytes` as `path`, replacing what was there: readers see the old file or the new one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = TemporaryFile::create(path)?;
    file.append(bytes)?;
    file.publish()
}

/// [`replace`] by a file that nobody shall change (0444).
pub fn replace_read_only(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = TemporaryFile::create(path)?;
    file.append(bytes)?;
    file.publish_read_only()
}

/// Removes what killed writers left in `dir`: names of our form whose lock is free. Returns what it removed. A store has no
/// temporaries.
pub fn remove_stale_temporaries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    if is_remote(dir) {
        return Ok(removed);
    }
    let items = match std::fs::read_dir(dir) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(Error::storage("list", dir)(error)),
    };
    for item in items {
        let path = item.map_err(Error::storage("list", dir))?.path();
        let Some((host, pid)) = path.file_name().and_then(|name| name.to_str()).and_then(writer_of) else { continue };
        if is_running_here(host, pid) {
            continue;
        }
        let Ok(handle) = std::fs::File::open(&path) else { continue };
        // Its writer has it alone; NFS would lock a file that may only be read for nobody alone.
        if handle.try_lock_shared().is_err() {
            continue;
        }
        let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::storage("remove", &path)(error));
            }
            _ => removed.push(path),
        }
    }
    Ok(removed)
}
