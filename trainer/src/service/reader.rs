//! A split of a service by the numbers of its blocks. It is meant to be read from one end to the other: going back, or
//! forward by more than one, asks anew.

use std::sync::{Arc, Mutex, PoisonError};

use tokenmill_shared::Result;
use tokenmill_shared::dataset::BlockReader;
use tokenmill_shared::service::{Description, Ticket};

use super::connection::Connection;
use super::stream::{ServedBlock, ServedBlocks};

/// See the module.
#[derive(Debug)]
pub struct ServedReader {
    connection: Arc<Connection>,
    ticket: Ticket,
    description: Description,
    blocks: u64,
    ids: Mutex<Open>,
    documents: Mutex<Open>,
}

/// A stream, the number of the block that it has next, and the one before.
#[derive(Default)]
struct Open(Option<(u64, ServedBlocks, ServedBlock)>);

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Open").field(&self.0.as_ref().map(|(next, ..)| next)).finish()
    }
}

impl ServedReader {
    pub(super) fn new(connection: Arc<Connection>, ticket: Ticket, description: &Description, blocks: u64) -> Self {
        let (ids, documents) = (Mutex::default(), Mutex::default());
        Self { connection, ticket, description: description.clone(), blocks, ids, documents }
    }

    /// What `take` takes of block `index`, which is asked for unless it is the one that was asked for last.
    fn with<T>(&self, documents: bool, index: u64, take: impl FnOnce(&ServedBlock) -> T) -> Result<T> {
        let open = if documents { &self.documents } else { &self.ids };
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        let held = open.0.take();
        if let Some((next, blocks, block)) = held {
            if next == index + 1 {
                let taken = take(&block);
                open.0 = Some((next, blocks, block));
                return Ok(taken);
            }
            if next == index {
                return self.advance(&mut open, index, blocks, take);
            }
        }
        let ticket = Ticket { position: index, documents, ..self.ticket.clone() };
        let blocks = ServedBlocks::new(Arc::clone(&self.connection), ticket, &self.description, Some(self.blocks));
        self.advance(&mut open, index, blocks, take)
    }

    fn advance<T>(
        &self,
        open: &mut Open,
        index: u64,
        mut blocks: ServedBlocks,
        take: impl FnOnce(&ServedBlock) -> T,
    ) -> Result<T> {
        let missing = || self.connection.error(format!("block {index} of {} did not come", self.blocks));
        let block = blocks.next_block()?.ok_or_else(missing)?;
        let taken = take(&block);
        open.0 = Some((index + 1, blocks, block));
        Ok(taken)
    }
}

impl BlockReader for ServedReader {
    fn block_size(&self) -> usize {
        self.description.block_size
    }

    fn len(&self) -> u64 {
        self.blocks
    }

    fn valid_tokens(&self, index: u64) -> Result<usize> {
        self.with(false, index, |block| block.valid_tokens)
    }

    fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()> {
        self.with(false, index, |block| out.extend(&block.ids))
    }

    fn document_starts(&self, index: u64) -> Result<Vec<u32>> {
        self.with(true, index, |block| block.document_starts.clone())
    }

    fn documents(&self, index: u64) -> Result<Option<Vec<u64>>> {
        self.with(true, index, |block| block.documents.clone())
    }
}
