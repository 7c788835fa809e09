//! What stands for [`super::remote`] in a program that was built without stores.

use std::path::Path;

use super::{Entry, Stat};
use crate::{Error, Result};

fn none(path: &Path) -> Error {
    let reason =
        "is in a store, and this program was built without them; build it with --features s3, or copy the files";
    Error::config(path.display().to_string(), reason)
}

pub(super) fn stat(path: &Path) -> Result<Option<Stat>> {
    Err(none(path))
}

pub(super) fn list(root: &Path) -> Result<Vec<Entry>> {
    Err(none(root))
}

pub(super) fn create(path: &Path, _bytes: &[u8]) -> Result<bool> {
    Err(none(path))
}

pub(super) fn remove(path: &Path) -> Result<()> {
    Err(none(path))
}

pub(super) fn remove_unfinished_uploads(root: &Path) -> Result<()> {
    Err(none(root))
}

/// There is none.
#[derive(Debug)]
pub(super) enum Upload {}

impl Upload {
    pub(super) fn new(path: &Path) -> Result<Self> {
        Err(none(path))
    }

    pub(super) fn append(&mut self, _bytes: &[u8]) -> Result<()> {
        match *self {}
    }

    pub(super) fn publish(self) -> Result<()> {
        match self {}
    }
}

/// There is none.
#[derive(Debug)]
pub(super) enum Object {}

impl Object {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Err(none(path))
    }

    pub(super) fn stat(&self) -> Stat {
        match *self {}
    }

    pub(super) fn read_at(&self, _path: &Path, _buffer: &mut [u8], _offset: u64) -> Result<usize> {
        match *self {}
    }
}
