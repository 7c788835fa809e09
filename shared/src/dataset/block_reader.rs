//! Blocks by number, wherever they lie: in the shards of a split, or behind a view of them.

use super::TokenWidth;
use crate::Result;

/// Blocks that can be read in any order and from many threads.
pub trait BlockReader: std::fmt::Debug + Send + Sync {
    /// Ids in a block.
    fn block_size(&self) -> usize;

    /// Number of blocks.
    fn len(&self) -> u64;

    /// Whether there is no block at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many ids of block `index` are tokens; the rest is padding and never a label.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block).
    fn valid_tokens(&self, index: u64) -> Result<usize>;

    /// Appends the `block_size` ids of block `index`, which must be below [`len`](Self::len), to `out`.
    ///
    /// # Errors
    /// The bytes are not those that were written, naming file and place; `out` is then unchanged.
    fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()>;

    /// The same as bytes, little-endian, each id of `width`, which must be wide enough for every id.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block).
    fn read_bytes(&self, index: u64, width: TokenWidth, out: &mut Vec<u8>) -> Result<()> {
        let mut ids = Vec::with_capacity(self.block_size());
        self.read_block(index, &mut ids)?;
        width.encode(&ids, out);
        Ok(())
    }

    /// Of a block in a store, the first of the blocks that are fetched with it: those of others can be fetched at the same time.
    /// `None` on a disk, where that gains nothing.
    fn fetched_with(&self, index: u64) -> Option<u64> {
        let _ = index;
        None
    }

    /// The offsets in block `index` at which documents begin, ascending. Where blocks have documents of their own
    /// ([`Layout::Blocks`](super::Layout::Blocks)) what goes on from another block begins as well.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block).
    fn document_starts(&self, index: u64) -> Result<Vec<u32>>;

    /// Which documents these are, counted in the split from 0; `None` where blocks are cut from a stream, whose documents
    /// are those that begin, one after the other.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block).
    fn documents(&self, index: u64) -> Result<Option<Vec<u64>>> {
        let _ = index;
        Ok(None)
    }
}
