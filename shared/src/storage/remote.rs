//! Objects of S3-compatible stores, read and written as files are: `s3://BUCKET/KEY` names an object, `s3://BUCKET/PREFIX`
//! all below it.
//!
//! Endpoint, region and credentials come from the environment as they do for other programs (`AWS_ENDPOINT_URL`,
//! `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, …). Requests are those of the
//! `object_store` crate; they travel by the HTTP client and the cryptography that the program has anyway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{Entry, REMOTE, Stat};
use crate::{Error, Result};

mod create;
mod http;
mod object;
mod signing;
mod unfinished;
mod upload;

pub(super) use create::create;
pub(super) use object::Object;
pub(super) use unfinished::remove_unfinished_uploads;
pub(super) use upload::Upload;

/// The threads that requests wait in.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.worker_threads(1).thread_name("tokenmill-s3").enable_all().build().expect("a thread can be started")
});

/// An answer that is on its way.
#[derive(Debug)]
struct Answer<T>(Mutex<Receiver<object_store::Result<T>>>);

impl<T: Send + 'static> Answer<T> {
    /// Sends a request.
    fn to(request: impl Future<Output = object_store::Result<T>> + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        RUNTIME.spawn(async move {
            let _ = sender.send(request.await);
        });
        Self(Mutex::new(receiver))
    }

    /// Waits for it, in whatever thread.
    fn wait(self) -> object_store::Result<T> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).recv().expect("the task answers")
    }
}

/// Sends a request and waits for its answer.
fn wait<T: Send + 'static>(
    request: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> object_store::Result<T> {
    Answer::to(request).wait()
}

/// The buckets in use: requests to one go over the same connections.
static STORES: Mutex<BTreeMap<String, Arc<AmazonS3>>> = Mutex::new(BTreeMap::new());

/// A store and what of it is meant.
#[derive(Debug, Clone)]
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
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(bucket) {
            return Ok(Self { store: Arc::clone(store), key });
        }
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_http_connector(http::Connector)
            .with_crypto_provider(Arc::new(signing::Ring))
            // One by one, which is the only way that every store has.
            .with_disable_bulk_delete(true)
            .build()
            .map_err(|error| failed(path, &error))?;
        let store = Arc::clone(stores.entry(bucket.to_owned()).or_insert(Arc::new(store)));
        Ok(Self { store, key })
    }
}

/// The error for a request that failed.
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

/// Removes an object; absent already is success.
pub(super) fn remove(path: &Path) -> Result<()> {
    let Place { store, key } = Place::of(path)?;
    match wait(async move { store.delete(&key).await }) {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        answer => answer.map_err(|error| failed(path, &error)),
    }
}
