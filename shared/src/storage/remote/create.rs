//! Creating an object that nobody else has created: what a store has in place of locks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use super::{Place, failed, wait};
use crate::{Error, Result};

/// How often is asked again when another creates the object in the same moment.
const ATTEMPTS: u32 = 20;

/// Creates the object at `path`, unless there is one already: whether this call made it (`If-None-Match: *`). A store may
/// ignore the condition.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<bool> {
    let Place { store, key } = Place::of(path)?;
    for attempt in 1..=ATTEMPTS {
        let (store, key, bytes) = (Arc::clone(&store), key.clone(), bytes.to_vec());
        let answer = wait(async move {
            match store.put_opts(&key, bytes.into(), PutMode::Create.into()).await {
                Ok(_) => Ok(Some(true)),
                // Also what a store answers that is just creating it for another, who may fail.
                Err(object_store::Error::AlreadyExists { .. }) => match store.head(&key).await {
                    Ok(_) => Ok(Some(false)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            }
        });
        if let Some(created) = answer.map_err(|error| failed(path, &error))? {
            return Ok(created);
        }
        std::thread::sleep(Duration::from_millis(50) * attempt);
    }
    let reason = "others create and remove it all the time; run the command again";
    Err(Error::remote(path.display().to_string(), reason))
}
