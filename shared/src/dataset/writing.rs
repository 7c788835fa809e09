//! Who writes a dataset, so that no two ever mix their files: on a disk the one that holds the lock of its marker; in a
//! store, which has no locks, whoever would write the very same bytes.
//!
//! The marker of a store says which dataset is being written, and is created by a request that succeeds once
//! (`If-None-Match: *`). Others that come for the same dataset write beside the first, object for object the same; those that
//! come for another are refused. A killed run is as one that writes still: the same command ends it, whenever it comes. So
//! nothing depends on clocks, and nothing has to be given back.

use std::path::Path;

use super::manifest::MANIFEST;
use super::writer::refuse_other_content;
use crate::{Error, Result, storage};

/// The marker of a dataset that is being written.
pub(super) const INCOMPLETE: &str = ".tokenmill-incomplete";

/// A marker holds a line.
const MARKER_LIMIT: u64 = 1 << 10;

/// The right to write a dataset.
#[derive(Debug)]
pub(super) enum Writing {
    /// Nobody else has it.
    Alone(storage::Lock),
    /// Others may have it, for the same bytes.
    Alike,
}

impl Writing {
    /// Takes the right to write in `dir` the dataset that `what` tells from all others; `None` if there is a dataset.
    ///
    /// # Errors
    /// The directory holds other content; in a store, also an unfinished dataset that is another. A store that creates what
    /// is there already.
    pub(super) fn begin(dir: &Path, what: &str) -> Result<Option<Self>> {
        let (marker, manifest) = (dir.join(INCOMPLETE), dir.join(MANIFEST));
        if storage::stat(&marker)?.is_none()
            && let Err(refused) = refuse_other_content(dir)
            // Unless what is there is of a writer that came or went since.
            && storage::stat(&marker)?.is_none()
            && storage::stat(&manifest)?.is_none()
        {
            return Err(refused);
        }
        let writing = match storage::is_remote(dir) {
            true => Self::beside_alike(dir, what)?,
            false => Self::alone(dir)?,
        };
        // Asked again: another writer may have finished since. What is committed is never touched.
        if storage::stat(&manifest)?.is_some() {
            storage::remove_file(&marker)?;
            return Ok(None);
        }
        Ok(Some(writing))
    }

    fn alone(dir: &Path) -> Result<Self> {
        let marker = dir.join(INCOMPLETE);
        if let Some(lock) = storage::lock_file(&marker, false)? {
            return Ok(Self::Alone(lock));
        }
        eprintln!("another process is writing a dataset in {}; waiting for it", dir.display());
        Ok(Self::Alone(storage::lock_file(&marker, true)?.expect("it was waited for")))
    }

    fn beside_alike(dir: &Path, what: &str) -> Result<Self> {
        let marker = dir.join(INCOMPLETE);
        let line = format!("{what}\n");
        if storage::create_in_store(&marker, line.as_bytes())? {
            // Created a second time, it shows whether the store keeps the condition at all.
            if storage::create_in_store(&marker, line.as_bytes())? && storage::stat(&dir.join(MANIFEST))?.is_none() {
                storage::remove_file(&marker)?;
                let reason = "lies in a store that overwrites an object which was to be created if there is none (If-None-Match: *), so that two who write there at once would mix their shards; use a store that keeps this condition, or prepare into a directory and copy it there";
                return Err(Error::config(dir.display().to_string(), reason));
            }
            return Ok(Self::Alike);
        }
        match storage::read_at_most(&marker, MARKER_LIMIT) {
            Ok(found) if found == line.as_bytes() => Ok(Self::Alike),
            // Gone since: whoever had it has finished.
            Err(_) if storage::stat(&marker)?.is_none() => Ok(Self::Alike),
            Ok(_) => {
                let reason = format!(
                    "holds {INCOMPLETE} of another dataset (of other text, settings or version), which was left unfinished or is being written; give another address, or remove what is there, once nobody writes it"
                );
                Err(Error::config(dir.display().to_string(), reason))
            }
            Err(error) => Err(error),
        }
    }

    /// Publishes the manifest: from then on there is a dataset.
    ///
    /// # Errors
    /// In a store: there is another one already.
    pub(super) fn end(self, dir: &Path, manifest: &[u8]) -> Result<()> {
        let path = dir.join(MANIFEST);
        match self {
            Self::Alone(lock) => {
                storage::replace_read_only(&path, manifest)?;
                clean_up(dir)?;
                drop(lock);
                Ok(())
            }
            Self::Alike => {
                if !storage::create_in_store(&path, manifest)? && storage::read(&path)? != manifest {
                    let reason = "was written by another in the meantime, as another dataset; give another address";
                    return Err(Error::config(path.display().to_string(), reason));
                }
                clean_up(dir)
            }
        }
    }
}

/// Removes what writing left beside a dataset that is there: its marker, and in a store what was begun to be uploaded.
pub fn clean_up(dir: &Path) -> Result<()> {
    let marker = dir.join(INCOMPLETE);
    if storage::is_remote(dir) {
        if storage::stat(&marker)?.is_none() {
            return Ok(());
        }
        storage::remove_unfinished_uploads(dir)?;
    }
    storage::remove_file(&marker)
}
