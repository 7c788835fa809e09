//! As the reference scripts pack under `datasets.map(batched=True)`: every 1000 documents are a stream of their own.
//!
//! Sources: `group_texts` of transformers' run_clm.py, `group_text_function` of MedicalGPT's pretraining.py. run_clm.py
//! raises an error where 1000 documents fill no block; its own comment says that they are left out, as they are here.

use tokenmill_shared::Result;

use super::blocks::Blocks;
use super::{Packed, Rule};

/// Documents in a batch: the default of `datasets`.
const BATCH_DOCUMENTS: u32 = 1000;

pub(super) struct Batches {
    blocks: Blocks,
    /// Whether a batch that fills no block becomes one.
    ragged: bool,
    /// Documents of this batch so far, and blocks that they filled.
    documents: u32,
    filled: u64,
    /// Ids of the block being filled, and where in it which document begins.
    ids: Vec<u8>,
    starts: Vec<(u32, u64)>,
}

impl Batches {
    pub(super) fn new(blocks: Blocks, ragged: bool) -> Self {
        Self { blocks, ragged, documents: 0, filled: 0, ids: Vec::new(), starts: Vec::new() }
    }

    fn end_batch(&mut self) -> Result<()> {
        if self.ragged && self.filled == 0 && !self.ids.is_empty() {
            self.blocks.push(&self.ids, &self.starts)?;
        } else {
            self.blocks.reject("end_of_batch", self.ids.len());
        }
        (self.documents, self.filled) = (0, 0);
        self.ids.clear();
        self.starts.clear();
        Ok(())
    }
}

impl Rule for Batches {
    fn push(&mut self, document: u64, mut ids: &[u8]) -> Result<()> {
        while !ids.is_empty() {
            self.starts.push(((self.ids.len() / self.blocks.width.bytes()) as u32, document));
            let (now, later) = ids.split_at(ids.len().min(self.blocks.block_bytes() - self.ids.len()));
            self.ids.extend_from_slice(now);
            ids = later;
            if self.ids.len() == self.blocks.block_bytes() {
                self.blocks.push(&self.ids, &self.starts)?;
                self.filled += 1;
                self.ids.clear();
                self.starts.clear();
            }
        }
        self.documents += 1;
        if self.documents == BATCH_DOCUMENTS { self.end_batch() } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.blocks.is_full()
    }

    fn finish(mut self: Box<Self>) -> Result<Packed> {
        self.end_batch()?;
        self.blocks.finish()
    }
}
