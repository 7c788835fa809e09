//! A split in blocks of another size: the same stream of tokens, cut elsewhere as it is read.
//!
//! Only tokens that the dataset holds are there. What filled no block of its own size and was dropped is not: the view
//! then ends up to one of those blocks early, and is otherwise what packing again would make, token for token.

use super::{BlockReader, SplitReader};
use crate::Result;
use crate::config::Remainder;

/// The view.
#[derive(Debug)]
pub struct Recut {
    reader: SplitReader,
    block_size: usize,
    /// Tokens in the split's blocks, padding left out.
    tokens: u64,
    blocks: u64,
    pad_token_id: u32,
}

impl Recut {
    /// `reader` in blocks of `block_size`; what fills none at the end is treated as `remainder` says, and padding is
    /// `pad_token_id`.
    pub(super) fn new(reader: SplitReader, block_size: usize, remainder: Remainder, pad_token_id: u32) -> Result<Self> {
        let tokens = match reader.len().checked_sub(1) {
            Some(last) => last * reader.block_size() as u64 + reader.valid_tokens(last)? as u64,
            None => 0,
        };
        let size = block_size as u64;
        let blocks = tokens / size + u64::from(remainder.pads(tokens, size));
        Ok(Self { reader, block_size, tokens, blocks, pad_token_id })
    }

    /// The tokens of block `index`, as positions in the stream.
    fn range(&self, index: u64) -> std::ops::Range<u64> {
        assert!(index < self.blocks, "block {index} of {}", self.blocks);
        let begin = index * self.block_size as u64;
        begin..self.tokens.min(begin + self.block_size as u64)
    }

    /// The blocks beneath that hold the tokens of `range`.
    fn beneath(&self, range: &std::ops::Range<u64>) -> std::ops::Range<u64> {
        let size = self.reader.block_size() as u64;
        range.start / size..range.end.div_ceil(size)
    }
}

impl BlockReader for Recut {
    fn block_size(&self) -> usize {
        self.block_size
    }

    fn len(&self) -> u64 {
        self.blocks
    }

    fn valid_tokens(&self, index: u64) -> Result<usize> {
        let range = self.range(index);
        Ok((range.end - range.start) as usize)
    }

    fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()> {
        let range = self.range(index);
        let beneath = self.beneath(&range);
        let mut ids = Vec::new();
        for block in beneath.clone() {
            self.reader.read_block(block, &mut ids)?;
        }
        let skipped = (range.start - beneath.start * self.reader.block_size() as u64) as usize;
        let valid = (range.end - range.start) as usize;
        out.extend_from_slice(&ids[skipped..skipped + valid]);
        out.resize(out.len() + self.block_size - valid, self.pad_token_id);
        Ok(())
    }

    fn fetched_with(&self, index: u64) -> Option<u64> {
        self.reader.fetched_with(self.beneath(&self.range(index)).start)
    }

    fn document_starts(&self, index: u64) -> Result<Vec<u32>> {
        let range = self.range(index);
        let mut starts = Vec::new();
        for block in self.beneath(&range) {
            let first = block * self.reader.block_size() as u64;
            let positions = self.reader.document_starts(block)?.into_iter().map(|start| first + u64::from(start));
            starts.extend(positions.filter(|at| range.contains(at)).map(|at| (at - range.start) as u32));
        }
        Ok(starts)
    }
}
