//! A split whose blocks have documents of their own: padded where these leave room.

use super::shard::SidecarRow;
use super::split_files::{SplitFiles, WrittenSplit};
use crate::Result;

/// Blocks being written.
pub struct BlockWriter {
    files: SplitFiles,
    pad_token_id: u32,
    /// Ids of the record batch being filled.
    pending: Vec<u8>,
    /// One for each block in `pending`.
    rows: Vec<SidecarRow>,
    in_blocks: u64,
    last_block_valid_tokens: u64,
}

impl BlockWriter {
    pub(super) fn new(files: SplitFiles, pad_token_id: u32) -> Self {
        let pending = Vec::with_capacity(files.batch_bytes);
        Self { files, pad_token_id, pending, rows: Vec::new(), in_blocks: 0, last_block_valid_tokens: 0 }
    }

    /// Writes one block of at most `block_size` ids, little-endian in the dataset's width, and pads it. `documents` says
    /// for every run of ids of one document where it begins and which document of the split that is, from 0.
    pub fn push(&mut self, ids: &[u8], documents: &[(u32, u64)]) -> Result<()> {
        let valid = ids.len() / self.files.width.bytes();
        self.pending.extend_from_slice(ids);
        let padding = vec![self.pad_token_id; self.files.block_size - valid];
        self.files.width.encode(&padding, &mut self.pending);
        self.rows.push(SidecarRow {
            starts: documents.iter().map(|(start, _)| *start).collect(),
            documents: documents.iter().map(|(_, document)| *document).collect(),
            valid_tokens: valid as u32,
        });
        self.in_blocks += valid as u64;
        self.last_block_valid_tokens = valid as u64;
        if self.pending.len() == self.files.batch_bytes { self.flush() } else { Ok(()) }
    }

    /// Ends the split.
    pub fn finish(mut self) -> Result<WrittenSplit> {
        if !self.rows.is_empty() {
            self.flush()?;
        }
        self.files.finish(self.in_blocks, 0, self.last_block_valid_tokens)
    }

    fn flush(&mut self) -> Result<()> {
        let ids = std::mem::replace(&mut self.pending, Vec::with_capacity(self.files.batch_bytes));
        let rows = std::mem::take(&mut self.rows);
        self.files.write(ids, &rows)
    }
}
