//! A split that is one stream of ids, cut into blocks as it comes.

use super::shard::SidecarRow;
use super::split_files::{SplitFiles, WrittenSplit};
use crate::Result;
use crate::config::Remainder;

/// The stream being written.
pub struct SplitWriter {
    files: SplitFiles,
    /// Ids of the record batch being filled.
    pending: Vec<u8>,
    /// For each block begun in `pending`, where documents begin.
    rows: Vec<SidecarRow>,
}

impl SplitWriter {
    pub(super) fn new(files: SplitFiles) -> Self {
        Self { pending: Vec::with_capacity(files.batch_bytes), files, rows: Vec::new() }
    }

    /// Tokens pushed so far.
    pub fn tokens(&self) -> u64 {
        self.files.blocks * self.files.block_size as u64 + (self.pending.len() / self.files.width.bytes()) as u64
    }

    /// Notes that the next token begins a document.
    pub fn begin_document(&mut self) {
        let position = self.pending.len() / self.files.width.bytes();
        let block = position / self.files.block_size;
        if self.rows.len() <= block {
            self.rows.resize(block + 1, SidecarRow::default());
        }
        let starts = &mut self.rows[block].starts;
        let offset = (position % self.files.block_size) as u32;
        // A document without tokens begins where the next one does: noted once.
        if starts.last() != Some(&offset) {
            starts.push(offset);
        }
    }

    /// Appends ids, little-endian in the dataset's width.
    pub fn push(&mut self, mut ids: &[u8]) -> Result<()> {
        debug_assert!(ids.len().is_multiple_of(self.files.width.bytes()));
        while !ids.is_empty() {
            let (now, later) = ids.split_at(ids.len().min(self.files.batch_bytes - self.pending.len()));
            self.pending.extend_from_slice(now);
            ids = later;
            if self.pending.len() == self.files.batch_bytes {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the split. What fills no block is dropped, or padded with `pad_token_id`; a split without one
    /// full block pads one, so that a split of any token is never empty.
    pub fn finish(mut self, remainder: Remainder, pad_token_id: u32) -> Result<WrittenSplit> {
        let tokens = self.tokens();
        let block_size = self.files.block_size;
        let block_bytes = block_size * self.files.width.bytes();
        let left = (tokens % block_size as u64) as usize;
        let pad = remainder.pads(tokens, block_size as u64);
        if pad {
            let padding = vec![pad_token_id; block_size - left];
            self.files.width.encode(&padding, &mut self.pending);
        } else {
            self.pending.truncate(self.pending.len() / block_bytes * block_bytes);
        }
        self.rows.truncate(self.pending.len() / block_bytes);
        if !self.pending.is_empty() {
            self.flush()?;
        }
        let dropped = if pad { 0 } else { left as u64 };
        let last_block_valid_tokens = if pad { left } else { block_size };
        self.files.finish(tokens - dropped, dropped, last_block_valid_tokens as u64)
    }

    fn flush(&mut self) -> Result<()> {
        let ids = std::mem::replace(&mut self.pending, Vec::with_capacity(self.files.batch_bytes));
        let blocks = ids.len() / (self.files.block_size * self.files.width.bytes());
        self.rows.resize(blocks, SidecarRow::default());
        let rows = std::mem::take(&mut self.rows);
        self.files.write(ids, &rows)
    }
}
