//! Writing a dataset: splits shard by shard, then index and side files, then the manifest.
//!
//! While a dataset is being written its directory holds [`INCOMPLETE`], locked by the writer. A killed
//! attempt leaves it behind, and that is how the next one knows that the directory is its own to redo.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::index::{self, BatchEntry, INDEX};
use super::manifest::{FORMAT_VERSION, MANIFEST};
use super::shard::{self, ShardPair};
use super::{
    FileEntry, FileName, Ledger, Manifest, ManifestHead, ShardEntry, ShardKind, ShardName, Split, SplitManifest,
    TOKENIZER_DIR, TokenWidth,
};
use crate::config::Remainder;
use crate::{Error, Result, storage};

/// The marker of a dataset that is being written.
pub const INCOMPLETE: &str = ".tokenmill-incomplete";

/// Record batches hold at most this many bytes of ids (one block, if that is larger): the unit of checking.
const BATCH_BYTES: usize = 256 << 10;

/// Shards are about this large.
const SHARD_BYTES: usize = 256 << 20;

/// A dataset being written.
#[derive(Debug)]
pub struct DatasetWriter {
    dir: PathBuf,
    block_size: usize,
    width: TokenWidth,
    splits: BTreeMap<Split, SplitManifest>,
    index: Vec<BatchEntry>,
    files: BTreeMap<FileName, FileEntry>,
    shard_bytes: usize,
    lock: storage::Lock,
}

impl DatasetWriter {
    /// Starts a dataset in `dir`, which must be absent, empty, or hold an unfinished dataset.
    ///
    /// # Errors
    /// The directory holds other content, or another process is writing there.
    pub fn create(dir: &Path, block_size: usize, width: TokenWidth) -> Result<Self> {
        if block_size == 0 || i32::try_from(block_size).is_err() {
            return Err(Error::config("--block_size", format!("cannot be {block_size}; use 1 to 2147483647")));
        }
        storage::create_dir_all(dir)?;
        let marker = dir.join(INCOMPLETE);
        if storage::stat(&marker)?.is_none() {
            refuse_other_content(dir)?;
        }
        let refused = |reason: &str| Error::config(dir.display().to_string(), reason);
        let lock = storage::lock_file(&marker, false)?.ok_or_else(|| {
            refused("another process is writing a dataset here; wait for it or choose another directory")
        })?;
        // Asked under the lock: another writer may have finished since. What is committed is never touched.
        if storage::stat(&dir.join(MANIFEST))?.is_some() {
            storage::remove_file(&marker)?;
            return Err(refused("already holds a dataset; choose another directory"));
        }
        remove_unfinished(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            block_size,
            width,
            splits: BTreeMap::new(),
            index: Vec::new(),
            files: BTreeMap::new(),
            shard_bytes: SHARD_BYTES,
            lock,
        })
    }

    /// The same dataset in smaller shards.
    #[cfg(test)]
    pub(super) fn with_shard_bytes(mut self, shard_bytes: usize) -> Self {
        self.shard_bytes = shard_bytes;
        self
    }

    /// Starts a split. Several may be written at once.
    pub fn split(&self, split: Split) -> Result<SplitWriter> {
        storage::create_dir_all(&self.dir.join(split.as_str()))?;
        let block_bytes = self.block_size * self.width.bytes();
        let batch_blocks = (BATCH_BYTES / block_bytes).max(1);
        let shard_blocks = (self.shard_bytes / block_bytes / batch_blocks).max(1) * batch_blocks;
        Ok(SplitWriter {
            dir: self.dir.clone(),
            split,
            block_size: self.block_size,
            width: self.width,
            batch_bytes: batch_blocks * block_bytes,
            shard_blocks: shard_blocks as u64,
            pending: Vec::with_capacity(batch_blocks * block_bytes),
            starts: Vec::new(),
            flushed_blocks: 0,
            open: None,
            shards: Vec::new(),
            index: Vec::new(),
        })
    }

    /// Takes over a finished split.
    pub fn add(
        &mut self,
        written: WrittenSplit,
        documents: u64,
        text_bytes: u64,
        read: u64,
        rejected: BTreeMap<String, u64>,
    ) -> Result<()> {
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
        storage::replace(&self.dir.join(INDEX), &index)?;
        let mut manifest = Manifest {
            format_version: FORMAT_VERSION,
            written_by: format!("tokenmill {}", env!("CARGO_PKG_VERSION")),
            block_size: self.block_size,
            token_width: self.width,
            head,
            splits: self.splits,
            index: entry_of(&index),
            files: self.files,
            blake3: String::new(),
        };
        let bytes = manifest.seal();
        storage::replace(&self.dir.join(MANIFEST), &bytes)?;
        storage::remove_file(&self.dir.join(INCOMPLETE))?;
        drop(self.lock);
        Ok(manifest)
    }

    fn write_json(&mut self, name: FileName, value: &serde_json::Value) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).expect("plain JSON");
        bytes.push(b'\n');
        self.write_file(name, &bytes)
    }

    fn write_file(&mut self, name: FileName, bytes: &[u8]) -> Result<()> {
        storage::replace(&name.path(&self.dir), bytes)?;
        self.files.insert(name, entry_of(bytes));
        Ok(())
    }
}

fn entry_of(bytes: &[u8]) -> FileEntry {
    FileEntry { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
}

fn refuse_other_content(dir: &Path) -> Result<()> {
    storage::remove_stale_temporaries(dir)?;
    match storage::list_files(dir)?.first() {
        None => Ok(()),
        Some(found) => Err(Error::config(
            dir.display().to_string(),
            format!("already holds other files ({}); choose an empty or new directory", found.relative.display()),
        )),
    }
}

/// Removes the files of an unfinished dataset, which may have had other splits or settings; nothing else.
fn remove_unfinished(dir: &Path) -> Result<()> {
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
        }
    }
    Ok(())
}

/// A split being written: one stream of ids, cut into blocks as it comes.
pub struct SplitWriter {
    dir: PathBuf,
    split: Split,
    block_size: usize,
    width: TokenWidth,
    batch_bytes: usize,
    shard_blocks: u64,
    /// Ids of the record batch being filled.
    pending: Vec<u8>,
    /// For each block begun in `pending`, where documents begin.
    starts: Vec<Vec<u32>>,
    flushed_blocks: u64,
    open: Option<ShardPair>,
    shards: Vec<ShardEntry>,
    index: Vec<BatchEntry>,
}

/// A split on disk, not yet part of a manifest.
#[derive(Debug)]
pub struct WrittenSplit {
    split: Split,
    blocks: u64,
    in_blocks: u64,
    remainder: u64,
    last_block_valid_tokens: u64,
    shards: Vec<ShardEntry>,
    index: Vec<BatchEntry>,
}

impl SplitWriter {
    /// Tokens pushed so far.
    pub fn tokens(&self) -> u64 {
        self.flushed_blocks * self.block_size as u64 + (self.pending.len() / self.width.bytes()) as u64
    }

    /// Notes that the next token begins a document.
    pub fn begin_document(&mut self) {
        let position = self.pending.len() / self.width.bytes();
        let block = position / self.block_size;
        if self.starts.len() <= block {
            self.starts.resize(block + 1, Vec::new());
        }
        let starts = &mut self.starts[block];
        let offset = (position % self.block_size) as u32;
        // A document without tokens begins where the next one does: noted once.
        if starts.last() != Some(&offset) {
            starts.push(offset);
        }
    }

    /// Appends ids, little-endian in the dataset's width.
    pub fn push(&mut self, mut ids: &[u8]) -> Result<()> {
        debug_assert!(ids.len().is_multiple_of(self.width.bytes()));
        while !ids.is_empty() {
            let (now, later) = ids.split_at(ids.len().min(self.batch_bytes - self.pending.len()));
            self.pending.extend_from_slice(now);
            ids = later;
            if self.pending.len() == self.batch_bytes {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the split. What fills no block is dropped, or padded with `pad_token_id`; a split without one
    /// full block pads one, so that a split of any token is never empty.
    pub fn finish(mut self, remainder: Remainder, pad_token_id: u32) -> Result<WrittenSplit> {
        let tokens = self.tokens();
        let block_bytes = self.block_size * self.width.bytes();
        let left = (tokens % self.block_size as u64) as usize;
        let pad = remainder.pads(tokens, self.block_size as u64);
        if pad {
            let padding = vec![pad_token_id; self.block_size - left];
            self.width.encode(&padding, &mut self.pending);
        } else {
            self.pending.truncate(self.pending.len() / block_bytes * block_bytes);
        }
        self.starts.truncate(self.pending.len() / block_bytes);
        if !self.pending.is_empty() {
            self.flush()?;
        }
        if self.open.is_none() && self.shards.is_empty() {
            self.open_shard()?; // `datasets` wants a file even for a split without rows
        }
        self.close_shard()?;
        let dropped = if pad { 0 } else { left as u64 };
        Ok(WrittenSplit {
            split: self.split,
            blocks: self.flushed_blocks,
            in_blocks: tokens - dropped,
            remainder: dropped,
            last_block_valid_tokens: if pad { left as u64 } else { self.block_size as u64 },
            shards: self.shards,
            index: self.index,
        })
    }

    fn flush(&mut self) -> Result<()> {
        let ids = std::mem::replace(&mut self.pending, Vec::with_capacity(self.batch_bytes));
        let blocks = ids.len() / (self.block_size * self.width.bytes());
        self.starts.resize(blocks, Vec::new());
        let starts = std::mem::take(&mut self.starts);
        if self.open.is_none() {
            self.open_shard()?;
        }
        let pair = self.open.as_mut().expect("just opened");
        self.index.push(pair.data.write(&shard::data_batch(self.block_size, self.width, ids))?);
        self.index.push(pair.documents.write(&shard::documents_batch(&starts))?);
        self.flushed_blocks += blocks as u64;
        if pair.data.blocks() >= self.shard_blocks {
            self.close_shard()?;
        }
        Ok(())
    }

    fn open_shard(&mut self) -> Result<()> {
        let number = (self.shards.len() / 2) as u32;
        self.open = Some(ShardPair::create(&self.dir, self.split, number, self.block_size, self.width)?);
        Ok(())
    }

    fn close_shard(&mut self) -> Result<()> {
        if let Some(pair) = self.open.take() {
            self.shards.push(pair.data.finish()?);
            self.shards.push(pair.documents.finish()?);
        }
        Ok(())
    }
}
