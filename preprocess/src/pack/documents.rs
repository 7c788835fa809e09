//! One document a block: what is longer is truncated, what is shorter padded.

use tokenmill_shared::Result;

use super::blocks::Blocks;
use super::{Packed, Rule};

pub(super) struct Documents {
    blocks: Blocks,
    keep_empty: bool,
}

impl Documents {
    /// `keep_empty`: whether a document without a token makes a block, of padding alone.
    pub(super) fn new(blocks: Blocks, keep_empty: bool) -> Self {
        Self { blocks, keep_empty }
    }
}

impl Rule for Documents {
    fn push(&mut self, document: u64, ids: &[u8]) -> Result<()> {
        let (kept, truncated) = ids.split_at(ids.len().min(self.blocks.block_bytes()));
        if self.blocks.is_full() {
            return self.blocks.push(ids, &[]); // all of it is beyond the limit
        }
        self.blocks.reject("truncated", truncated.len());
        match kept {
            [] if self.keep_empty => self.blocks.push(&[], &[]),
            [] => Ok(()),
            kept => self.blocks.push(kept, &[(0, document)]),
        }
    }

    fn is_full(&self) -> bool {
        self.blocks.is_full()
    }

    fn finish(self: Box<Self>) -> Result<Packed> {
        self.blocks.finish()
    }
}
