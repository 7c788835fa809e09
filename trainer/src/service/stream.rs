//! The blocks of a ticket, in order and each once, however often the connection breaks.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_flight::FlightData;
use serde_json::Value;
use tokenmill_shared::Result;
use tokenmill_shared::dataset::TokenWidth;
use tokenmill_shared::service::{Description, Note, Order, Source, Ticket};
use tonic::{Status, Streaming};

use super::connection::{Connection, Patience};

/// Damaged batches in a row after which it is no accident.
const DAMAGED_IN_A_ROW: u32 = 3;

/// One block.
#[derive(Debug, Clone)]
pub struct ServedBlock {
    /// Its position in the epoch's order.
    pub position: u64,
    /// Its number in the split.
    pub block: u64,
    /// Its ids.
    pub ids: Vec<u32>,
    /// How many of them are tokens.
    pub valid_tokens: usize,
    /// Where documents begin in it, if the ticket asks for it, and of text.
    pub document_starts: Vec<u32>,
    /// Which documents these are, where blocks are not cut from a stream.
    pub documents: Option<Vec<u64>>,
    /// Of text: documents that begin before it.
    pub documents_before: u64,
    /// Of text: bytes of its text.
    pub text_bytes: f64,
    /// Of text: where the next block begins.
    pub next: Option<Value>,
}

/// See the module.
pub struct ServedBlocks {
    connection: Arc<Connection>,
    /// For what is not there yet.
    ticket: Ticket,
    source: Source,
    block_size: usize,
    width: TokenWidth,
    /// Positions of the epoch, and which blocks they are, if they are counted.
    expected: Option<(u64, Order)>,
    stream: Option<Streaming<FlightData>>,
    ready: VecDeque<ServedBlock>,
    patience: Patience,
    damaged: u32,
    ended: bool,
}

impl ServedBlocks {
    pub(super) fn new(
        connection: Arc<Connection>,
        mut ticket: Ticket,
        description: &Description,
        blocks: Option<u64>,
    ) -> Self {
        ticket.position = ticket.first_position();
        Self {
            expected: blocks.map(|blocks| (blocks, ticket.order(blocks))),
            connection,
            ticket,
            source: description.source,
            block_size: description.block_size,
            width: description.token_width,
            stream: None,
            ready: VecDeque::new(),
            patience: Patience::default(),
            damaged: 0,
            ended: false,
        }
    }

    /// The next block; `None` after the last.
    ///
    /// # Errors
    /// The service cannot be reached for too long, has another dataset now, or sends what it should not.
    pub fn next_block(&mut self) -> Result<Option<ServedBlock>> {
        loop {
            if let Some(block) = self.ready.pop_front() {
                return Ok(Some(block));
            }
            let all = |(blocks, _): &(u64, Order)| self.ticket.position >= *blocks;
            if self.ended || self.expected.as_ref().is_some_and(all) {
                (self.ended, self.stream) = (true, None);
                return Ok(None);
            }
            match self.message() {
                Ok(Some(message)) => self.take(&message)?,
                // Of counted blocks some are missing; of text this is the end.
                Ok(None) if self.expected.is_some() => self.lost(&Status::unavailable("the stream ended early"))?,
                Ok(None) => self.ended = true,
                Err(status) => self.lost(&status)?,
            }
        }
    }

    fn message(&mut self) -> Result<Option<FlightData>, Status> {
        if self.stream.is_none() {
            self.stream = Some(self.connection.open(&self.ticket)?);
        }
        self.connection.message(self.stream.as_mut().expect("opened above"))
    }

    /// The stream broke; the next one begins where this one had come to.
    fn lost(&mut self, status: &Status) -> Result<()> {
        self.stream = None;
        self.connection.wait(&mut self.patience, status)
    }

    fn take(&mut self, message: &FlightData) -> Result<()> {
        // The schema comes first, and without ids.
        if message.app_metadata.is_empty() && message.data_body.is_empty() {
            return Ok(());
        }
        let Some((note, ids)) = Note::open(&message.app_metadata, &message.data_body, self.block_size, self.width)
        else {
            self.damaged += 1;
            if self.damaged >= DAMAGED_IN_A_ROW {
                let reason = format!("{} batches in a row came damaged; look at the network", self.damaged);
                return Err(self.connection.error(reason));
            }
            eprintln!("a batch came damaged; asking for it again");
            self.stream = None;
            return Ok(());
        };
        if let Some(why) = self.contradiction(&note) {
            return Err(self.connection.error(format!("{why}; is it the same version of tokenmill?")));
        }
        (self.damaged, self.patience) = (0, Patience::default());
        let bytes = self.block_size * self.width.bytes();
        for (at, bytes) in ids.chunks_exact(bytes).enumerate() {
            let mut block = ServedBlock {
                position: note.position + at as u64 * self.ticket.world_size,
                block: note.blocks[at],
                ids: Vec::with_capacity(self.block_size),
                valid_tokens: note.valid_tokens.get(at).copied().unwrap_or(self.block_size),
                document_starts: note.document_starts.get(at).cloned().unwrap_or_default(),
                documents: note.documents.get(at).cloned(),
                documents_before: note.documents_before.get(at).copied().unwrap_or_default(),
                text_bytes: note.text_bytes.get(at).copied().unwrap_or_default(),
                next: note.next.get(at).cloned(),
            };
            self.width.decode(bytes, &mut block.ids);
            self.ready.push_back(block);
        }
        let last = self.ready.back().expect("a batch is not empty");
        self.ticket.position = last.position + self.ticket.world_size;
        self.ticket.from = last.next.clone();
        Ok(())
    }

    /// Whether these are ascending offsets in a block.
    fn are_offsets(&self, starts: &[u32]) -> bool {
        starts.is_sorted_by(|a, b| a < b) && starts.last().is_none_or(|last| (*last as usize) < self.block_size)
    }

    /// What in a note is not what was asked for.
    fn contradiction(&self, note: &Note) -> Option<String> {
        let rows = note.blocks.len();
        if rows == 0 || note.position != self.ticket.position {
            let (found, asked) = (note.position, self.ticket.position);
            return Some(format!("{rows} blocks from position {found} came where {asked} was asked for"));
        }
        let given = |of: usize, needed: bool| of == rows || of == 0 && !needed;
        let live = self.source == Source::Live;
        let starts = live || self.ticket.documents;
        let whole = given(note.valid_tokens.len(), live)
            && given(note.document_starts.len(), starts)
            && given(note.documents.len(), false)
            && given(note.documents_before.len(), live)
            && given(note.text_bytes.len(), live)
            && given(note.next.len(), live)
            && note.valid_tokens.iter().all(|valid| (1..=self.block_size).contains(valid))
            && note.document_starts.iter().all(|starts| self.are_offsets(starts));
        if !whole {
            return Some("a note does not fit its batch".to_owned());
        }
        let (blocks, order) = self.expected.as_ref()?;
        let position = |at: usize| note.position + at as u64 * self.ticket.world_size;
        let is_right = |(at, block): (usize, &u64)| position(at) < *blocks && order.block(position(at)) == *block;
        let right = note.blocks.iter().enumerate().all(is_right);
        (!right).then(|| "blocks came in another order than that of this program".to_owned())
    }
}
