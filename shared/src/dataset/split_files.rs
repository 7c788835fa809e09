//! The files of a split being written: record batches of whole blocks, shard by shard.

use std::path::{Path, PathBuf};

use super::index::BatchEntry;
use super::shard::{self, ShardPair, SidecarRow};
use super::{Layout, ShardEntry, Split, TokenWidth};
use crate::{Result, storage};

/// Record batches hold at most this many bytes of ids (one block, if that is larger): the unit of checking.
const BATCH_BYTES: usize = 256 << 10;

/// What becomes the files of a split.
pub(super) struct SplitFiles {
    dir: PathBuf,
    split: Split,
    pub(super) block_size: usize,
    pub(super) width: TokenWidth,
    layout: Layout,
    /// Bytes of ids in a record batch.
    pub(super) batch_bytes: usize,
    shard_blocks: u64,
    /// Blocks written.
    pub(super) blocks: u64,
    open: Option<ShardPair>,
    shards: Vec<ShardEntry>,
    index: Vec<BatchEntry>,
}

/// A split on disk, not yet part of a manifest.
#[derive(Debug)]
pub struct WrittenSplit {
    pub(super) split: Split,
    pub(super) blocks: u64,
    pub(super) in_blocks: u64,
    pub(super) remainder: u64,
    pub(super) last_block_valid_tokens: u64,
    pub(super) shards: Vec<ShardEntry>,
    pub(super) index: Vec<BatchEntry>,
}

impl SplitFiles {
    pub(super) fn create(
        dir: &Path,
        split: Split,
        block_size: usize,
        width: TokenWidth,
        layout: Layout,
        shard_bytes: usize,
    ) -> Result<Self> {
        storage::create_dir_all(&dir.join(split.as_str()))?;
        let block_bytes = block_size * width.bytes();
        let batch_blocks = (BATCH_BYTES / block_bytes).max(1);
        let shard_blocks = (shard_bytes / block_bytes / batch_blocks).max(1) * batch_blocks;
        Ok(Self {
            dir: dir.to_owned(),
            split,
            block_size,
            width,
            layout,
            batch_bytes: batch_blocks * block_bytes,
            shard_blocks: shard_blocks as u64,
            blocks: 0,
            open: None,
            shards: Vec::new(),
            index: Vec::new(),
        })
    }

    /// Writes one record batch; `rows` says of each of its blocks what the sidecar holds.
    pub(super) fn write(&mut self, ids: Vec<u8>, rows: &[SidecarRow]) -> Result<()> {
        debug_assert_eq!(ids.len(), rows.len() * self.block_size * self.width.bytes());
        if self.open.is_none() {
            self.open_shard()?;
        }
        let pair = self.open.as_mut().expect("just opened");
        self.index.push(pair.data.write(&shard::data_batch(self.block_size, self.width, ids))?);
        self.index.push(pair.documents.write(&shard::documents_batch(rows, self.layout))?);
        self.blocks += rows.len() as u64;
        if pair.data.blocks() >= self.shard_blocks {
            self.close_shard()?;
        }
        Ok(())
    }

    /// Publishes what is open. `in_blocks` tokens are in the blocks, `remainder` were left over.
    pub(super) fn finish(
        mut self,
        in_blocks: u64,
        remainder: u64,
        last_block_valid_tokens: u64,
    ) -> Result<WrittenSplit> {
        if self.open.is_none() && self.shards.is_empty() {
            self.open_shard()?; // `datasets` wants a file even for a split without rows
        }
        self.close_shard()?;
        Ok(WrittenSplit {
            split: self.split,
            blocks: self.blocks,
            in_blocks,
            remainder,
            last_block_valid_tokens,
            shards: self.shards,
            index: self.index,
        })
    }

    fn open_shard(&mut self) -> Result<()> {
        let number = (self.shards.len() / 2) as u32;
        let pair = ShardPair::create(&self.dir, self.split, number, self.block_size, self.width, self.layout)?;
        self.open = Some(pair);
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
