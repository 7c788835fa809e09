//! Claims: who does a piece of work that others wait for. Held by a file descriptor, so the kernel gives back those of a
//! killed process. What is claimed can be done twice without harm: a claim saves time and protects nothing.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{read_at_most, stat};
use crate::{Error, Result};

/// The longest word of a holder, in bytes: a file name.
const WORD_BYTES: u64 = 1 << 10;

/// A piece of work that is ours until this is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    file: std::fs::File,
    path: PathBuf,
}

impl Claim {
    /// Claims what `path` stands for; `None` while another has it. The file is there for as long as the claim is held,
    /// or until [`Claim::take`] finds it free, if its holder was killed.
    pub fn take(path: &Path) -> Result<Option<Self>> {
        loop {
            let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
            let file = file.map_err(Error::storage("open", path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
                Err(std::fs::TryLockError::Error(error)) => return Err(Error::storage("lock", path)(error)),
            }
            let own = file.metadata().map_err(Error::storage("inspect", path))?;
            // The one before may have removed it after it was opened here.
            if stat(path)?.is_some_and(|there| (there.device, there.inode) == (own.dev(), own.ino())) {
                file.set_len(0).map_err(Error::storage("truncate", path))?;
                return Ok(Some(Self { file, path: path.to_owned() }));
            }
        }
    }

    /// Tells the others a word, once.
    pub fn say(&self, word: &str) -> Result<()> {
        self.file.write_all_at(word.as_bytes(), 0).map_err(Error::storage("write", &self.path))
    }

    /// What the holder of `path` said, or the one before who was killed; `None` if nothing is claimed or said.
    pub fn word(path: &Path) -> Result<Option<String>> {
        let word = match read_at_most(path, WORD_BYTES) {
            Err(Error::Storage { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        Ok(String::from_utf8(word).ok().filter(|word| !word.is_empty()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Nothing is lost if this fails: the next one to take it removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_the_others_hear_its_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claim");
        assert_eq!(Claim::word(&path).unwrap(), None);
        let claim = Claim::take(&path).unwrap().unwrap();
        assert_eq!(Claim::word(&path).unwrap(), None);
        claim.say("here").unwrap();
        assert!(Claim::take(&path).unwrap().is_none());
        assert_eq!(Claim::word(&path).unwrap().as_deref(), Some("here"));
        drop(claim);
        assert!(!path.exists());
        // What a killed holder leaves.
        std::fs::write(&path, "left behind").unwrap();
        let claim = Claim::take(&path).unwrap().unwrap();
        assert_eq!(Claim::word(&path).unwrap(), None, "a new holder has said nothing yet");
        drop(claim);
        assert!(!path.exists());
    }

    /// Files that are removed and made again between opening and locking: never two holders at once.
    #[test]
    fn many_threads_never_hold_it_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claim");
        let held = std::sync::atomic::AtomicUsize::new(0);
        let taken = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let Some(_claim) = Claim::take(&path).unwrap() else { continue };
                        assert_eq!(held.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        taken.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::yield_now();
                        held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(taken.into_inner() > 100);
    }
}
