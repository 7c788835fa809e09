//! Blocks from `preprocess serve`, as if they were on this machine.
//!
//! `connection` speaks to the service and comes back when it was lost; `stream` has the blocks of a ticket, each batch
//! checked, across any number of breaks; `reader` has a split of them by number.

mod connection;
mod reader;
mod stream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tokenmill_preprocess::live::{Block, Position};
use tokenmill_preprocess::tokenizer;
use tokenmill_shared::dataset::Split;
use tokenmill_shared::service::{Description, Source, Ticket};
use tokenmill_shared::{Error, Result};

pub use self::connection::{Access, Connection};
use self::reader::ServedReader;
pub use self::stream::{ServedBlock, ServedBlocks};

/// A dataset, or text, that a service has.
#[derive(Debug)]
pub struct Service {
    connection: Arc<Connection>,
    /// What is known of it.
    pub description: Description,
}

impl Service {
    /// Asks the service for `name`, in blocks of `block_size` if that is given.
    ///
    /// # Errors
    /// The service cannot be reached for as long as was said, refuses, or does not have it.
    pub fn open(connection: Connection, block_size: Option<usize>) -> Result<Self> {
        let connection = Arc::new(connection);
        let ticket = Ticket { dataset: connection.name().to_owned(), block_size, ..Ticket::default() };
        let description = connection.describe(&ticket)?;
        Ok(Self { connection, description })
    }

    /// The error of what came from it.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        self.connection.error(reason)
    }

    /// Whether it is text that is prepared as it is read.
    pub fn is_live(&self) -> bool {
        self.description.source == Source::Live
    }

    /// Where its tokenizer's files are, fetched into the cache unless they are there.
    ///
    /// # Errors
    /// A file that is not what the description says.
    pub fn tokenizer_dir(&self, cache_dir: &Path) -> Result<PathBuf> {
        let files = self.connection.tokenizer()?;
        let hashes: BTreeMap<String, String> =
            files.iter().map(|(name, bytes)| (name.clone(), blake3::hash(bytes).to_hex().to_string())).collect();
        if hashes != self.description.tokenizer {
            return Err(self.connection.error("its tokenizer is not the one that it describes; try again"));
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        tokenizer::keep(cache_dir, &files)
    }

    /// A split by the numbers of its blocks; `None` if there is none of them.
    pub fn reader(&self, split: Split) -> Option<ServedReader> {
        let blocks = self.description.splits.get(&split)?.blocks.filter(|blocks| *blocks > 0)?;
        Some(ServedReader::new(Arc::clone(&self.connection), self.ticket(split), &self.description, blocks))
    }

    /// A ticket for `split`, from its beginning in the order of the source.
    pub fn ticket(&self, split: Split) -> Ticket {
        Ticket {
            dataset: self.description.dataset.clone(),
            split,
            block_size: Some(self.description.block_size),
            fingerprint: Some(self.description.fingerprint.clone()),
            consumer: Some(format!("trainer, process {}", std::process::id())),
            ..Ticket::default()
        }
    }

    /// The blocks of a ticket. `blocks` is how many positions its epoch has, if that is known.
    pub fn blocks(&self, ticket: Ticket, blocks: Option<u64>) -> ServedBlocks {
        ServedBlocks::new(Arc::clone(&self.connection), ticket, &self.description, blocks)
    }

    /// Blocks of text from `position` on: those set aside end with the last of them, the others with the text.
    pub fn text(&self, position: &Position) -> impl Iterator<Item = Result<Block>> + Send + use<> {
        let set_aside = self.description.set_aside;
        let (split, before) =
            if position.block < set_aside { (Split::Validation, 0) } else { (Split::Train, set_aside) };
        let from = (position.block > 0).then(|| json!(position));
        let ticket = Ticket { position: position.block - before, from, ..self.ticket(split) };
        let mut blocks = self.blocks(ticket, None);
        let connection = Arc::clone(&self.connection);
        std::iter::from_fn(move || blocks.next_block().transpose()).map(move |block| {
            let block = block?;
            let next = block.next.clone().map(serde_json::from_value).transpose().ok().flatten();
            let next: Position = next.ok_or_else(|| connection.error("a block of text came without its place"))?;
            Ok(Block {
                ids: block.ids,
                valid_tokens: block.valid_tokens,
                document_starts: block.document_starts,
                documents_before: block.documents_before,
                text_bytes: block.text_bytes,
                next,
            })
        })
    }
}
