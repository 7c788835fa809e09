//! Writing a dataset: splits shard by shard, then index and side files, then the manifest.
//!
//! While a dataset is being written its directory holds a marker ([`super::writing`]). A killed
//! attempt leaves it behind, and that is how the next one knows that the directory is its own to redo.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::index::{self, BatchEntry, INDEX};
use super::split_files::{SplitFiles, WrittenSplit};
use super::writing::Writing;
use super::{
    BlockWriter, Dataset, FileEntry, FileName, Layout, Ledger, Manifest, ManifestHead, ShardEntry, ShardKind,
    ShardName, Split, SplitManifest, SplitWriter, Statistics, TOKENIZER_DIR, TokenWidth,
};
use crate::progress::{Progress, Unit};
use crate::storage::Taken;
use crate::{Error, Result, storage};

/// Shards are about this large.
const SHARD_BYTES: usize = 256 << 20;

/// What the one who packs knows of a split.
#[derive(Debug, Default)]
pub struct SplitFacts {
    /// Documents that reached packing.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub text_bytes: u64,
    /// Their tokens.
    pub read: u64,
    /// Those that were left out, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// What they are like.
    pub statistics: Option<Statistics>,
}

/// A dataset being written.
#[derive(Debug)]
pub struct DatasetWriter {
    dir: PathBuf,
    block_size: usize,
    width: TokenWidth,
    layout: Layout,
    splits: BTreeMap<Split, SplitManifest>,
    index: Vec<BatchEntry>,
    files: BTreeMap<FileName, FileEntry>,
    shard_bytes: usize,
    writing: Writing,
}

impl DatasetWriter {
    /// Starts a dataset in `dir`, which must be absent, empty, or hold an unfinished dataset. Waits for another process that
    /// is writing there; `None` if there is a dataset then. In a store nobody waits, and an unfinished dataset must be of the
    /// same `fingerprint`, which is that of the [`ManifestHead`].
    ///
    /// # Errors
    /// The directory holds other content; a store that does not keep apart those who write at once.
    pub fn create(
        dir: &Path,
        block_size: usize,
        width: TokenWidth,
        layout: Layout,
        fingerprint: &str,
    ) -> Result<Option<Self>> {
        if block_size == 0 || i32::try_from(block_size).is_err() {
            return Err(Error::config("--block_size", format!("cannot be {block_size}; use 1 to 2147483647")));
        }
        storage::create_dir_all(dir)?;
        let what = format!("{} {fingerprint}", written_by());
        let Some(writing) = Writing::begin(dir, &what)? else { return Ok(None) };
        // In a store, what is there is of the same dataset and is written again.
        if !storage::is_remote(dir) {
            storage::probe(dir)?.inspect(|heed| eprintln!("{}: {heed}", dir.display()));
            remove_unfinished(dir)?;
        }
        Ok(Some(Self {
            dir: dir.to_owned(),
            block_size,
            width,
            layout,
            splits: BTreeMap::new(),
            index: Vec::new(),
            files: BTreeMap::new(),
            shard_bytes: SHARD_BYTES,
            writing,
        }))
    }

    /// The same dataset in smaller shards.
    #[cfg(test)]
    pub(super) fn with_shard_bytes(mut self, shard_bytes: usize) -> Self {
        self.shard_bytes = shard_bytes;
        self
    }

    /// Starts a split of [`Layout::Stream`]. Several may be written at once.
    pub fn split(&self, split: Split) -> Result<SplitWriter> {
        assert_eq!(self.layout, Layout::Stream, "the dataset was created for blocks");
        Ok(SplitWriter::new(self.files(split)?))
    }

    /// Starts a split of [`Layout::Blocks`], with the id that fills what is not tokens.
    pub fn split_of_blocks(&self, split: Split, pad_token_id: u32) -> Result<BlockWriter> {
        assert_eq!(self.layout, Layout::Blocks, "the dataset was created for a stream");
        Ok(BlockWriter::new(self.files(split)?, pad_token_id))
    }

    fn files(&self, split: Split) -> Result<SplitFiles> {
        SplitFiles::create(&self.dir, split, self.block_size, self.width, self.layout, self.shard_bytes)
    }

    /// Takes over a finished split.
    pub fn add(&mut self, written: WrittenSplit, facts: SplitFacts) -> Result<()> {
        let SplitFacts { documents, text_bytes, read, rejected, statistics } = facts;
        let ledger = Ledger { read, in_blocks: written.in_blocks, remainder: written.remainder, rejected };
        assert!(ledger.balances(), "tokens of split {} were lost or invented: {ledger:?}", written.split);
        let split = written.split;
        let files: Vec<_> = written
            .shards
            .iter()
            .filter(|shard| shard.name.kind == ShardKind::Data)
            .map(|shard| json!({"filename": shard.name.to_string()}))
            .collect();
        // All seven keys are mandatory for `datasets.load_from_disk`.
        let state = json!({
            "_data_files": files, "_fingerprint": null, "_format_columns": null, "_format_kwargs": {},
            "_format_type": null, "_output_all_columns": false, "_split": split,
        });
        self.write_json(FileName::state(split), &state)?;
        self.write_json(FileName::dataset_info(split), &json!({}))?;
        self.index.extend(written.index);
        self.splits.insert(
            split,
            SplitManifest {
                blocks: written.blocks,
                documents,
                text_bytes,
                last_block_valid_tokens: written.last_block_valid_tokens,
                ledger,
                statistics,
                shards: written.shards,
            },
        );
        Ok(())
    }

    /// Copies a tokenizer file into the dataset; `name` is a plain file name.
    pub fn add_tokenizer_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let name = FileName::tokenizer(name).expect("the caller names tokenizer files plainly");
        storage::create_dir_all(&self.dir.join(TOKENIZER_DIR))?;
        self.write_file(name, bytes)
    }

    /// Writes index and manifest; from then on the dataset exists.
    pub fn commit(mut self, head: ManifestHead) -> Result<Manifest> {
        let names: Vec<_> = self.splits.keys().map(|split| split.as_str()).collect();
        self.write_json(FileName::dataset_dict(), &json!({"splits": names}))?;
        let index = index::to_bytes(&self.index);
        storage::replace_read_only(&self.dir.join(INDEX), &index)?;
        let mut manifest = Manifest {
            format_version: self.layout.format_version(),
            written_by: written_by(),
            block_size: self.block_size,
            token_width: self.width,
            layout: self.layout,
            head,
            splits: self.splits,
            index: entry_of(&index),
            files: self.files,
            blake3: String::new(),
        };
        let bytes = manifest.seal();
        self.writing.end(&self.dir, &bytes)?;
        Ok(manifest)
    }

    /// Makes the dataset of the files of another one, which is the same: each by [`storage::take`], then the manifest. Of what
    /// went wrong nothing is trusted, and the dataset can be written instead.
    ///
    /// # Errors
    /// A file of `from` that is damaged or cannot be read, or what cannot be written here.
    pub fn take(self, from: &Dataset) -> Result<(Manifest, BTreeMap<Taken, u64>)> {
        let mut manifest = from.manifest().clone();
        let shards = manifest.splits.iter().flat_map(|(split, entry)| {
            let name = |shard: &ShardEntry| PathBuf::from(split.as_str()).join(shard.name.to_string());
            entry.shards.iter().map(move |shard| (name(shard), &shard.file))
        });
        let files = manifest.files.iter().map(|(name, entry)| (name.path(Path::new("")), entry));
        let all: Vec<_> = shards.chain(files).chain([(PathBuf::from(INDEX), &manifest.index)]).collect();
        let progress = Progress::new("taking", Unit::Bytes, Some(all.iter().map(|(_, entry)| entry.bytes).sum()));
        let mut taken = BTreeMap::new();
        for (name, entry) in all {
            let path = self.dir.join(&name);
            storage::create_dir_all(path.parent().expect("a file in a directory"))?;
            *taken.entry(storage::take(&from.dir().join(name), &path, &entry.blake3)?).or_default() += 1;
            progress.add(entry.bytes);
        }
        let bytes = manifest.seal();
        self.writing.end(&self.dir, &bytes)?;
        Ok((manifest, taken))
    }

    fn write_json(&mut self, name: FileName, value: &serde_json::Value) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).expect("plain JSON");
        bytes.push(b'\n');
        self.write_file(name, &bytes)
    }

    fn write_file(&mut self, name: FileName, bytes: &[u8]) -> Result<()> {
        storage::replace_read_only(&name.path(&self.dir), bytes)?;
        self.files.insert(name, entry_of(bytes));
        Ok(())
    }
}

pub(super) fn written_by() -> String {
    format!("tokenmill {}", env!("CARGO_PKG_VERSION"))
}

fn entry_of(bytes: &[u8]) -> FileEntry {
    FileEntry { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
}

pub(super) fn refuse_other_content(dir: &Path) -> Result<()> {
    storage::remove_stale_temporaries(dir)?;
    match storage::list_files(dir)?.first() {
        None => Ok(()),
        Some(found) => Err(Error::config(
            dir.display().to_string(),
            format!("already holds other files ({}); choose an empty or new directory", found.relative.display()),
        )),
    }
}

/// Removes the files of an unfinished dataset, which may have had other splits or settings; nothing else. They are gone for
/// good before anything new is written, so that a power cut cannot put one of them beside the new manifest.
fn remove_unfinished(dir: &Path) -> Result<()> {
    let mut changed = BTreeSet::new();
    for sub in ["", Split::Train.as_str(), Split::Validation.as_str(), TOKENIZER_DIR] {
        storage::remove_stale_temporaries(&dir.join(sub))?;
    }
    for file in storage::list_files(dir)? {
        let Some(name) = file.relative.to_str() else { continue };
        let shard = name.split_once('/').filter(|(split, _)| split.parse::<Split>().is_ok());
        let is_ours = name == INDEX
            || FileName::try_from(name.to_owned()).is_ok()
            || shard.is_some_and(|(_, name)| ShardName::try_from(name.to_owned()).is_ok());
        if is_ours {
            storage::remove_file(&file.path)?;
            changed.insert(file.path.with_file_name(""));
        }
    }
    changed.iter().try_for_each(|dir| storage::sync_dir(dir))
}
