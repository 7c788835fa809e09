//! Writing an object: in one request, or a large one in parts, which are nowhere to be seen until all of them are there.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use object_store::multipart::{MultipartStore, PartId};
use object_store::{MultipartId, ObjectStoreExt, PutPayload};

use super::{Answer, Place, failed, wait};
use crate::Result;

/// Bytes of a part. A store takes at least 5 MiB and 10,000 of them: objects of 78 GiB, where a shard has 256 MiB.
const PART_BYTES: usize = 8 << 20;

/// Parts that are on their way while the next one is filled. A split writes two files, of which one is small: 24 MiB for each.
const IN_FLIGHT: usize = 2;

/// An object being written; it is there when it is [published](Upload::publish), and never if it is dropped before that.
#[derive(Debug)]
pub(crate) struct Upload {
    path: PathBuf,
    place: Place,
    /// What was not sent.
    buffer: Vec<u8>,
    /// Of an object larger than a part.
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    id: MultipartId,
    sent: usize,
    in_flight: VecDeque<Answer<PartId>>,
    /// In order.
    done: Vec<PartId>,
}

impl Upload {
    pub(crate) fn new(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), place: Place::of(path)?, buffer: Vec::new(), parts: None })
    }

    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PART_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PART_BYTES {
                self.send_part()?;
            }
        }
        Ok(())
    }

    pub(crate) fn publish(mut self) -> Result<()> {
        let Place { store, key } = self.place.clone();
        if self.parts.is_none() {
            let payload = PutPayload::from(std::mem::take(&mut self.buffer));
            let put = wait(async move { store.put(&key, payload).await });
            return put.map(drop).map_err(|error| failed(&self.path, &error));
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        let parts = self.parts.as_mut().expect("it is in parts");
        while !parts.in_flight.is_empty() {
            parts.arrive().map_err(|error| failed(&self.path, &error))?;
        }
        let (id, done) = (parts.id.clone(), parts.done.clone());
        wait(async move { store.complete_multipart(&key, &id, done).await })
            .map_err(|error| failed(&self.path, &error))?;
        self.parts = None;
        Ok(())
    }

    fn send_part(&mut self) -> Result<()> {
        let Self { path, place, buffer, parts } = self;
        let parts = match parts {
            Some(parts) => parts,
            None => {
                let Place { store, key } = place.clone();
                let id = wait(async move { store.create_multipart(&key).await });
                let id = id.map_err(|error| failed(path, &error))?;
                parts.insert(Parts { id, sent: 0, in_flight: VecDeque::new(), done: Vec::new() })
            }
        };
        if parts.in_flight.len() == IN_FLIGHT {
            parts.arrive().map_err(|error| failed(path, &error))?;
        }
        let payload = PutPayload::from(std::mem::replace(buffer, Vec::with_capacity(PART_BYTES)));
        let (Place { store, key }, id, number) = (place.clone(), parts.id.clone(), parts.sent);
        parts.in_flight.push_back(Answer::to(async move { store.put_part(&key, &id, number, payload).await }));
        parts.sent += 1;
        Ok(())
    }
}

impl Parts {
    /// Waits for the part that was sent first.
    fn arrive(&mut self) -> object_store::Result<()> {
        let answer = self.in_flight.pop_front().expect("a part is on its way");
        self.done.push(answer.wait()?);
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(Parts { id, in_flight, .. }) = self.parts.take() else { return };
        // A part that arrives after it was given up would stay.
        in_flight.into_iter().for_each(|answer| drop(answer.wait()));
        let Place { store, key } = self.place.clone();
        // Nothing is lost if this fails: the next run removes it.
        let _ = wait(async move { store.abort_multipart(&key, &id).await });
    }
}
