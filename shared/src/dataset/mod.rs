#![doc = include_str!("../docs/format.md")]

mod block_reader;
mod block_writer;
mod index;
mod ledger;
mod manifest;
mod name;
mod pieces;
mod reader;
mod recut;
mod shard;
mod split_files;
mod split_writer;
mod verify;
mod writer;
mod writing;

pub use block_reader::BlockReader;
pub use block_writer::BlockWriter;
pub use ledger::Ledger;
pub use manifest::{
    FORMAT_VERSION, FileEntry, Layout, MANIFEST, Manifest, ManifestHead, ShardEntry, SplitManifest, Statistics,
    TokenWidth,
};
pub use name::{FileName, ShardKind, ShardName, Split, TOKENIZER_DIR};
pub use reader::SplitReader;
pub use recut::Recut;
pub use shard::{data_batch, data_schema};
pub use split_files::WrittenSplit;
pub use split_writer::SplitWriter;
pub use verify::{Report, verify};
pub use writer::{DatasetWriter, SplitFacts};
pub use writing::clean_up;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use index::Index;

use crate::config::Remainder;
use crate::{Error, Result, storage};

/// A dataset on disk, its manifest and index checked.
#[derive(Debug)]
pub struct Dataset {
    dir: PathBuf,
    manifest: Manifest,
    index: Index,
}

impl Dataset {
    /// Opens the dataset at `dir`.
    ///
    /// # Errors
    /// No dataset there, a newer format, or a damaged manifest or index.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::load(dir)?;
        let index = index::load(dir, &manifest.index)?;
        let of_split = |(split, entry): (&Split, &SplitManifest)| {
            entry.shards.iter().map(|shard| (*split, shard.name)).collect::<Vec<_>>()
        };
        let known: BTreeSet<_> = manifest.splits.iter().flat_map(of_split).collect();
        if let Some((split, name)) = index.keys().find(|file| !known.contains(file)) {
            return Err(Error::corrupt(
                dir,
                format!("the index knows {split}/{name} and the manifest does not; prepare the dataset again"),
            ));
        }
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

    /// Compares the tokenizer's files with the manifest; call it before relying on them.
    ///
    /// # Errors
    /// One is missing or damaged.
    pub fn check_tokenizer(&self) -> Result<()> {
        for (name, entry) in self.manifest.files.iter().filter(|(name, _)| name.is_tokenizer()) {
            let path = name.path(&self.dir);
            let (blake3, bytes) = storage::hash_file(&path)?;
            if (&blake3, bytes) != (&entry.blake3, entry.bytes) {
                return Err(Error::corrupt(path, "its bytes changed; prepare the dataset again"));
            }
        }
        Ok(())
    }

    /// The blocks of a split; `None` if the dataset has no such split.
    pub fn split(&self, split: Split) -> Result<Option<SplitReader>> {
        if !self.manifest.splits.contains_key(&split) {
            return Ok(None);
        }
        SplitReader::open(&self.dir, &self.manifest, &self.index, split).map(Some)
    }

    /// The same in blocks of `block_size`, above 0; see [`Recut`]. Of its own size the split itself.
    ///
    /// # Errors
    /// The dataset's blocks are not cut from a stream.
    pub fn recut(&self, split: Split, block_size: usize) -> Result<Option<Box<dyn BlockReader>>> {
        let Some(reader) = self.split(split)? else { return Ok(None) };
        if block_size == self.manifest.block_size {
            return Ok(Some(Box::new(reader)));
        }
        let head = &self.manifest.head;
        if self.manifest.layout == Layout::Blocks {
            let reason = format!(
                "cannot be {block_size}: the blocks of {} have documents of their own and are of {}; prepare it in the other size, which tokenizes nothing",
                self.dir.display(),
                self.manifest.block_size
            );
            return Err(Error::config("--block_size", reason));
        }
        let remainder = serde_json::from_value(head.settings["remainder"].clone()).unwrap_or(Remainder::Drop);
        Ok(Some(Box::new(Recut::new(reader, block_size, remainder, head.pad_token_id)?)))
    }
}

#[cfg(test)]
mod tests;
