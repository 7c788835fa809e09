//! Reading an object by position.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{Place, failed, stat_of, wait};
use crate::storage::Stat;
use crate::{Error, Result};

/// Bytes that are fetched at least for one who reads on: what a connection of 1 GB/s brings in the time of its answer. One
/// who reads here and there is given what was asked for: a block of a dataset has some 4 KiB.
const WINDOW_BYTES: u64 = 8 << 20;

/// Windows of an object that are kept, and places where reading may go on: several threads may read it at once.
const READERS: usize = 4;

/// An object that is read by position, as it was when it was opened.
pub(crate) struct Object {
    place: Place,
    object: ObjectMeta,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Where each begins, and its bytes; the latest first.
    windows: Vec<(u64, Bytes)>,
    /// Where the latest reads ended.
    ends: VecDeque<u64>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("key", &self.place.key).finish_non_exhaustive()
    }
}

impl Object {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let place = Place::of(path)?;
        let (store, key) = (Arc::clone(&place.store), place.key.clone());
        let object = wait(async move { store.head(&key).await }).map_err(|error| failed(path, &error))?;
        Ok(Self { place, object, held: Mutex::default() })
    }

    pub(crate) fn stat(&self) -> Stat {
        stat_of(&self.object)
    }

    /// Reads at most `buffer.len()` bytes from byte `offset`; 0 means the end.
    pub(crate) fn read_at(&self, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize> {
        if offset >= self.object.size || buffer.is_empty() {
            return Ok(0);
        }
        let (known, goes_on) = self.held().at(offset);
        let (begin, bytes) = match known {
            Some(window) => window,
            None => {
                let least = if goes_on { WINDOW_BYTES } else { 0 };
                let end = (offset + least.max(buffer.len() as u64)).min(self.object.size);
                let bytes = self.fetch(path, offset..end)?;
                if goes_on {
                    self.held().keep(offset, bytes.clone());
                }
                (offset, bytes)
            }
        };
        let found = &bytes[(offset - begin) as usize..];
        let length = found.len().min(buffer.len());
        buffer[..length].copy_from_slice(&found[..length]);
        self.held().ended(offset + length as u64);
        Ok(length)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the object as it was when it was opened.
    fn fetch(&self, path: &Path, range: std::ops::Range<u64>) -> Result<Bytes> {
        let (store, key) = (Arc::clone(&self.place.store), self.place.key.clone());
        let expected = range.end - range.start;
        let options =
            GetOptions { range: Some(range.into()), if_match: self.object.e_tag.clone(), ..GetOptions::default() };
        let answer = async move { store.get_opts(&key, options).await?.bytes().await };
        let bytes = wait(answer).map_err(|error| failed(path, &error))?;
        if bytes.len() as u64 != expected {
            let reason = format!("the store sent {} bytes of {expected}; run the command again", bytes.len());
            return Err(Error::Remote { what: path.display().to_string(), reason });
        }
        Ok(bytes)
    }
}

impl Held {
    /// The window that holds the byte at `offset`, and whether a read went as far as that before: then more will be asked for.
    fn at(&self, offset: u64) -> (Option<(u64, Bytes)>, bool) {
        let holds = |(begin, bytes): &&(u64, Bytes)| (*begin..begin + bytes.len() as u64).contains(&offset);
        (self.windows.iter().find(holds).cloned(), offset == 0 || self.ends.contains(&offset))
    }

    fn keep(&mut self, begin: u64, bytes: Bytes) {
        self.windows.truncate(READERS - 1);
        self.windows.insert(0, (begin, bytes));
    }

    fn ended(&mut self, offset: u64) {
        self.ends.truncate(READERS - 1);
        self.ends.push_front(offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_on_is_told_from_who_reads_here_and_there() {
        let mut held = Held::default();
        assert!(held.at(0).1 && !held.at(100).1);
        held.ended(100);
        assert!(held.at(100).1);
        held.keep(100, Bytes::from_static(b"window"));
        assert_eq!(held.at(105).0.unwrap().0, 100);
        assert!(held.at(106).0.is_none());
        (1..=READERS as u64).for_each(|reader| held.ended(1000 * reader));
        assert!(!held.at(100).1, "it was pushed out");
    }
}
