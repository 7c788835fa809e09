#![doc = include_str!("../docs/format.md")]

mod index;
mod ledger;
mod manifest;
mod name;
mod reader;
mod shard;
mod verify;
mod writer;

pub use ledger::Ledger;
pub use manifest::{
    FORMAT_VERSION, FileEntry, MANIFEST, Manifest, ManifestHead, ShardEntry, SplitManifest, TokenWidth,
};
pub use name::{ShardKind, ShardName, Split};
pub use reader::SplitReader;
pub use verify::{Report, verify};
pub use writer::{DatasetWriter, INCOMPLETE, SplitWriter, TOKENIZER_DIR, WrittenSplit};

use std::path::{Path, PathBuf};

use index::BatchEntry;

use crate::Result;

/// A dataset on disk, its manifest and index checked.
#[derive(Debug)]
pub struct Dataset {
    dir: PathBuf,
    manifest: Manifest,
    index: Vec<BatchEntry>,
}

impl Dataset {
    /// Opens the dataset at `dir`.
    ///
    /// # Errors
    /// No dataset there, a newer format, or a damaged manifest or index.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::load(dir)?;
        let index = index::load(dir, &manifest.index)?;
        Ok(Self { dir: dir.to_owned(), manifest, index })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the tokenizer's files are.
    pub fn tokenizer_dir(&self) -> PathBuf {
        self.dir.join(TOKENIZER_DIR)
    }

    /// The blocks of a split; `None` if the dataset has no such split.
    pub fn split(&self, split: Split) -> Result<Option<SplitReader>> {
        if !self.manifest.splits.contains_key(&split) {
            return Ok(None);
        }
        SplitReader::open(&self.dir, &self.manifest, &self.index, split).map(Some)
    }
}

#[cfg(test)]
mod tests;
