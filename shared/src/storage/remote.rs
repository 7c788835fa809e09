//! Objects of S3-compatible stores, read as files are: `s3://BUCKET/KEY` names an object, `s3://BUCKET/PREFIX` all below it.
//!
//! Endpoint, region and credentials come from the environment as they do for other programs (`AWS_ENDPOINT_URL`,
//! `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, …). Requests are those of the
//! `object_store` crate; they travel by the HTTP client and the cryptography that the program has anyway.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{Entry, REMOTE, Stat};
use crate::{Error, Result};

mod http;
mod signing;

/// Bytes that are fetched at least in one request: what a connection of 1 GB/s brings in the time of its answer.
const WINDOW_BYTES: u64 = 8 << 20;

/// Windows of an object that are kept: several threads may read it at once.
const WINDOWS: usize = 4;

/// The threads that requests wait in.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.worker_threads(1).thread_name("tokenmill-s3").enable_all().build().expect("a thread can be started")
});

/// Waits for an answer, wherever it is called from.
fn wait<T: Send + 'static>(
    answer: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> object_store::Result<T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    RUNTIME.spawn(async move {
        let _ = sender.send(answer.await);
    });
    receiver.recv().expect("the task answers")
}

/// A store and what of it is meant.
struct Place {
    store: Arc<AmazonS3>,
    key: Key,
}

impl Place {
    fn of(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let refuse = |why: &str| Error::config(shown.clone(), format!("{why}; give s3://BUCKET/PREFIX"));
        let rest = path.to_str().and_then(|path| path.strip_prefix(REMOTE)).ok_or_else(|| refuse("is no address"))?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(refuse("names no bucket"));
        }
        let key = Key::parse(key.trim_end_matches('/'))
            .map_err(|error| refuse(&format!("has no key of a store ({error})")))?;
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_http_connector(http::Connector)
            .with_crypto_provider(Arc::new(signing::Ring))
            .build()
            .map_err(|error| failed(path, &error))?;
        Ok(Self { store: Arc::new(store), key })
    }
}

/// The error for a request that brought nothing.
fn failed(path: &Path, error: &object_store::Error) -> Error {
    let advice = match error {
        object_store::Error::NotFound { .. } => "check bucket and key",
        object_store::Error::Unauthenticated { .. } | object_store::Error::PermissionDenied { .. } => {
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they allow"
        }
        object_store::Error::Precondition { .. } => {
            "it changed while it was being read; run the command again when it is at rest"
        }
        _ => "check AWS_ENDPOINT_URL, AWS_REGION and the network",
    };
    Error::Remote { what: path.display().to_string(), reason: format!("{error}; {advice}") }
}

/// What a store says of an object. Two equal values mean the same content: the number of the inode is made of its tag.
fn stat_of(object: &ObjectMeta) -> Stat {
    let tag = object.e_tag.as_deref().unwrap_or_default().trim_matches('"');
    let inode = u64::from_le_bytes(*blake3::hash(tag.as_bytes()).as_bytes().first_chunk().expect("32 bytes"));
    // Listings tell parts of seconds, and answers for one object do not.
    let changed = i128::from(object.last_modified.timestamp()) * 1_000_000_000;
    Stat { device: 0, inode, size: object.size, mtime_ns: changed, ctime_ns: changed }
}

/// The [`Stat`] of an object; `None` if there is none of that key.
pub(super) fn stat(path: &Path) -> Result<Option<Stat>> {
    let Place { store, key } = Place::of(path)?;
    match wait(async move { store.head(&key).await }) {
        Ok(object) => Ok(Some(stat_of(&object))),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

/// Every object below `root`, in no order.
pub(super) fn list(root: &Path) -> Result<Vec<Entry>> {
    let Place { store, key } = Place::of(root)?;
    let below = key.clone();
    let all = async move { store.list(Some(&key)).try_collect::<Vec<ObjectMeta>>().await };
    let objects = wait(all).map_err(|error| failed(root, &error))?;
    let entry = |object: ObjectMeta| {
        let parts = object.location.prefix_match(&below)?;
        let relative: PathBuf = parts.map(|part| part.as_ref().to_owned()).collect();
        // An empty object that ends in a slash stands for a directory.
        let named = !relative.as_os_str().is_empty();
        named.then(|| Entry { path: root.join(&relative), relative, stat: stat_of(&object) })
    };
    Ok(objects.into_iter().filter_map(entry).collect())
}

/// An object that is read by position.
pub(super) struct Object {
    place: Place,
    object: ObjectMeta,
    windows: Mutex<Vec<(u64, Bytes)>>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("key", &self.place.key).finish_non_exhaustive()
    }
}

impl Object {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let place = Place::of(path)?;
        let (store, key) = (Arc::clone(&place.store), place.key.clone());
        let object = wait(async move { store.head(&key).await }).map_err(|error| failed(path, &error))?;
        Ok(Self { place, object, windows: Mutex::default() })
    }

    pub(super) fn stat(&self) -> Stat {
        stat_of(&self.object)
    }

    /// Reads at most `buffer.len()` bytes from byte `offset`; 0 means the end.
    pub(super) fn read_at(&self, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize> {
        if offset >= self.object.size || buffer.is_empty() {
            return Ok(0);
        }
        let holds = |(begin, bytes): &(u64, Bytes)| (*begin..begin + bytes.len() as u64).contains(&offset);
        let known =
            self.windows.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|window| holds(window)).cloned();
        let (begin, bytes) = match known {
            Some(window) => window,
            None => {
                let end = (offset + WINDOW_BYTES.max(buffer.len() as u64)).min(self.object.size);
                let bytes = self.fetch(path, offset..end)?;
                let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
                windows.truncate(WINDOWS - 1);
                windows.insert(0, (offset, bytes.clone()));
                (offset, bytes)
            }
        };
        let found = &bytes[(offset - begin) as usize..];
        let length = found.len().min(buffer.len());
        buffer[..length].copy_from_slice(&found[..length]);
        Ok(length)
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
