//! One stream of all documents of a split, cut every `block_size`.

use tokenmill_shared::Result;
use tokenmill_shared::config::Remainder;
use tokenmill_shared::dataset::{SplitWriter, TokenWidth};

use super::{Measure, Packed, Rejected, Rule, RuleOptions};

pub(super) struct Concatenate {
    writer: SplitWriter,
    width: TokenWidth,
    /// Tokens that fit under the limit.
    limit: Option<u64>,
    limit_name: &'static str,
    beyond_limit: u64,
    remainder: (Remainder, u32),
}

impl Concatenate {
    /// `remainder`: what becomes of the end, and the id that pads it.
    pub(super) fn new(writer: SplitWriter, options: &RuleOptions, remainder: (Remainder, u32)) -> Self {
        let &RuleOptions { block_size, width, limit, limit_name } = options;
        let limit = limit.map(|blocks| blocks.saturating_mul(block_size as u64));
        Self { writer, width, limit, limit_name, beyond_limit: 0, remainder }
    }
}

impl Concatenate {
    /// As much of these ids as is wanted.
    fn taken<'a>(&mut self, ids: &'a [u8]) -> &'a [u8] {
        let tokens = (ids.len() / self.width.bytes()) as u64;
        let room = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.writer.tokens()));
        let taken = tokens.min(room);
        self.beyond_limit += tokens - taken;
        &ids[..taken as usize * self.width.bytes()]
    }
}

impl Rule for Concatenate {
    fn push(&mut self, _: u64, ids: &[u8]) -> Result<()> {
        let taken = self.taken(ids);
        if !taken.is_empty() {
            self.writer.begin_document();
        }
        self.writer.push(taken)
    }

    fn go_on(&mut self, ids: &[u8]) -> Result<()> {
        let taken = self.taken(ids);
        self.writer.push(taken)
    }

    fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.writer.tokens() >= limit)
    }

    fn finish(self: Box<Self>) -> Result<Packed> {
        let (remainder, pad_token_id) = self.remainder;
        let written = self.writer.finish(remainder, pad_token_id)?;
        let mut rejected = Rejected::new();
        if self.beyond_limit > 0 {
            rejected.insert(self.limit_name, self.beyond_limit);
        }
        Ok(Packed { written: Some(written), measure: Measure::default(), rejected })
    }
}
