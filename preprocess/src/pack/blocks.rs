//! Where finished blocks go, up to the limit that was set, and the account of what is in none.

use tokenmill_shared::Result;
use tokenmill_shared::dataset::{BlockWriter, TokenWidth};

use super::{Measure, Packed, Rejected, RuleOptions};

/// The blocks of a split.
pub(super) struct Blocks {
    /// `None`: they are only measured.
    writer: Option<BlockWriter>,
    pub(super) block_size: usize,
    pub(super) width: TokenWidth,
    limit: Option<u64>,
    limit_name: &'static str,
    measure: Measure,
    rejected: Rejected,
}

impl Blocks {
    pub(super) fn new(writer: Option<BlockWriter>, options: &RuleOptions) -> Self {
        let &RuleOptions { block_size, width, limit, limit_name } = options;
        let measure = Measure::default();
        Self { writer, block_size, width, limit, limit_name, measure, rejected: Rejected::new() }
    }

    /// Bytes of the ids of a whole block.
    pub(super) fn block_bytes(&self) -> usize {
        self.block_size * self.width.bytes()
    }

    pub(super) fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.measure.blocks >= limit)
    }

    /// One block: its ids, and where in it which document begins. Beyond the limit its tokens are left out.
    pub(super) fn push(&mut self, ids: &[u8], documents: &[(u32, u64)]) -> Result<()> {
        if self.is_full() {
            self.reject(self.limit_name, ids.len());
            return Ok(());
        }
        self.measure.blocks += 1;
        self.measure.tokens += (ids.len() / self.width.bytes()) as u64;
        self.writer.as_mut().map_or(Ok(()), |writer| writer.push(ids, documents))
    }

    /// Leaves out the tokens of these bytes of ids.
    pub(super) fn reject(&mut self, reason: &'static str, bytes: usize) {
        if bytes > 0 {
            *self.rejected.entry(reason).or_default() += (bytes / self.width.bytes()) as u64;
        }
    }

    pub(super) fn finish(self) -> Result<Packed> {
        let written = self.writer.map(BlockWriter::finish).transpose()?;
        Ok(Packed { written, measure: self.measure, rejected: self.rejected })
    }
}
