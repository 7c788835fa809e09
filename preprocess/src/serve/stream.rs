//! DoGet: the blocks of a ticket, batch after batch, read as they are taken.

use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::FlightData;
use futures::{Stream, StreamExt, stream};
use tokenmill_shared::dataset::{BlockReader, Split, TokenWidth};
use tokenmill_shared::service::{Note, Ticket};
use tokenmill_shared::{Error, Result};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::catalogue::{Content, Prepared, Served};
use super::limits::BATCH_BYTES;
use super::message::Messages;
use crate::live::{Block, Blocks, Live, Position};

/// Batches read ahead of the one that is being sent.
const AHEAD: usize = 2;

/// A batch and what statistics want to know of it.
#[derive(Debug)]
pub struct Batch {
    /// The message.
    pub message: FlightData,
    /// Blocks in it.
    pub rows: u64,
    /// The position after its last block.
    pub next: u64,
}

/// Batches in order.
pub type Batches = Pin<Box<dyn Stream<Item = Result<Batch, Status>> + Send>>;

/// What a ticket asks for: ids in a block, the schema, and the batches.
pub struct Opened {
    /// Ids in a block.
    pub block_size: usize,
    /// The position after the last block, if it is known.
    pub end: Option<u64>,
    /// The schema's message.
    pub schema: FlightData,
    /// What follows it.
    pub batches: Batches,
}

/// Opens what `ticket` asks for. `permit` is held by a stream of live text to its end.
///
/// # Errors
/// There is no such split, or the fingerprint is another one.
pub fn open(served: &Arc<Served>, ticket: Ticket, permit: Option<OwnedSemaphorePermit>) -> Result<Opened, Status> {
    match &served.content {
        Content::Prepared(prepared) => {
            check_fingerprint(&ticket, served.fingerprint())?;
            open_prepared(prepared, ticket)
        }
        Content::Live(live) => {
            let live = live.recut(ticket.block_size.unwrap_or(live.block_size())).map_err(refused)?;
            check_fingerprint(&ticket, live.fingerprint())?;
            open_live(live, ticket, permit)
        }
    }
}

/// An error of ours as the reader is told it: none of these goes away by asking again.
pub fn refused(error: Error) -> Status {
    match error {
        Error::Config { .. } => Status::invalid_argument(error.to_string()),
        Error::Storage { .. } => Status::internal(error.to_string()),
        _ => Status::data_loss(error.to_string()),
    }
}

fn check_fingerprint(ticket: &Ticket, served: &str) -> Result<(), Status> {
    match &ticket.fingerprint {
        Some(asked) if asked != served => Err(Status::failed_precondition(format!(
            "{} is another dataset now: its fingerprint is {served}, and {asked} was asked for",
            ticket.dataset
        ))),
        _ => Ok(()),
    }
}

fn no_split(ticket: &Ticket) -> Status {
    Status::not_found(format!("{} has no split {}", ticket.dataset, ticket.split))
}

/// Blocks in a batch.
fn rows(block_size: usize, width: TokenWidth) -> usize {
    (BATCH_BYTES / (block_size * width.bytes())).max(1)
}

fn open_prepared(prepared: &Prepared, ticket: Ticket) -> Result<Opened, Status> {
    let reader = prepared.blocks(ticket.split, ticket.block_size).map_err(refused)?;
    let reader = reader.ok_or_else(|| no_split(&ticket))?;
    let (block_size, width) = (reader.block_size(), prepared.width());
    let rows = rows(block_size, width);
    let messages = Messages::new(block_size, width, rows);
    let blocks = reader.len().min(ticket.blocks.unwrap_or(u64::MAX));
    let (order, mut positions) = (ticket.order(blocks), ticket.positions(blocks));
    let each = std::iter::from_fn(move || {
        let some: Vec<u64> = positions.by_ref().take(rows).collect();
        (!some.is_empty()).then_some(some)
    });
    let schema = messages.schema();
    let (world_size, documents) = (ticket.world_size, ticket.documents);
    let read = move |positions: Vec<u64>| {
        let (reader, messages, order) = (Arc::clone(&reader), messages.clone(), order.clone());
        let work = move || {
            let blocks: Vec<u64> = positions.iter().map(|position| order.block(*position)).collect();
            let (ids, note) = read_blocks(reader.as_ref(), width, positions[0], blocks, documents)?;
            let next = positions[positions.len() - 1] + world_size;
            let rows = note.blocks.len() as u64;
            let app_metadata = note.seal(&ids);
            Ok(Batch { message: messages.batch(ids, app_metadata), rows, next })
        };
        in_background(work)
    };
    let batches = Box::pin(stream::iter(each).map(read).buffered(AHEAD));
    Ok(Opened { block_size, end: Some(blocks), schema, batches })
}

/// The ids of `blocks`, the first of them at `position`, and their note.
fn read_blocks(
    reader: &dyn BlockReader,
    width: TokenWidth,
    position: u64,
    blocks: Vec<u64>,
    documents: bool,
) -> Result<(Vec<u8>, Note)> {
    let size = reader.block_size() * width.bytes();
    // With room for the padding that follows, so that nothing is copied for it.
    let mut ids = Vec::with_capacity(blocks.len() * size + 64);
    let mut note = Note { position, ..Note::default() };
    for block in &blocks {
        reader.read_bytes(*block, width, &mut ids)?;
        if documents {
            note.document_starts.push(reader.document_starts(*block)?);
            note.documents.extend(reader.documents(*block)?);
        }
        note.valid_tokens.push(reader.valid_tokens(*block)?);
    }
    if note.valid_tokens.iter().all(|valid| *valid == reader.block_size()) {
        note.valid_tokens.clear();
    }
    note.blocks = blocks;
    Ok((ids, note))
}

/// Runs `work`, which reads and computes, beside the threads that serve.
pub async fn in_background<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(refused),
        Err(_) => Err(Status::internal("a fault of this program; its log says where")),
    }
}

/// Text that is being read for one ticket.
struct Reading {
    live: Live,
    ticket: Ticket,
    messages: Messages,
    rows: usize,
    /// Blocks of the text before the split's first one.
    before: u64,
    /// Positions below this are those of the split.
    end: u64,
    from: Position,
    /// Blocks of the text so far.
    passed: u64,
    blocks: Option<Blocks>,
    _permit: Option<OwnedSemaphorePermit>,
}

fn open_live(live: Live, ticket: Ticket, permit: Option<OwnedSemaphorePermit>) -> Result<Opened, Status> {
    let (set_aside, limit) = (live.set_aside(), ticket.blocks.unwrap_or(u64::MAX));
    let (before, end) = match ticket.split {
        Split::Train => (set_aside, limit),
        Split::Validation if set_aside > 0 => (0, limit.min(set_aside)),
        Split::Validation => return Err(no_split(&ticket)),
    };
    if ticket.seed.is_some() {
        let reason = "is text, which has no order but its own; leave out the seed, or prepare it";
        return Err(Status::invalid_argument(format!("{} {reason}", ticket.dataset)));
    }
    let from = match &ticket.from {
        None => Position::default(),
        Some(from) => {
            let from: Position = serde_json::from_value(from.clone())
                .map_err(|error| Status::invalid_argument(format!("from is not a position: {error}")))?;
            if from.block != before.saturating_add(ticket.position) {
                let reason = format!("from is at block {}, position {} is another one", from.block, ticket.position);
                return Err(Status::invalid_argument(reason));
            }
            from
        }
    };
    let (block_size, width) = (live.block_size(), live.width());
    let rows = rows(block_size, width);
    let messages = Messages::new(block_size, width, rows);
    let schema = messages.schema();
    let passed = from.block;
    let reading = Reading { live, ticket, messages, rows, before, end, from, passed, blocks: None, _permit: permit };
    let batches = stream::try_unfold(Behind(Some(Box::new(reading))), |mut reading| async move {
        let taken = reading.0.take();
        let mut inner = taken.expect("put back after each batch");
        // While it works the reading is with the thread; if the stream ends before, the thread ends with it.
        let (inner, batch) = in_background(move || inner.next().map(|batch| (inner, batch))).await?;
        reading.0 = Some(inner);
        Ok(batch.map(|batch| (batch, reading)))
    });
    Ok(Opened { block_size, end: (end < u64::MAX).then_some(end), schema, batches: Box::pin(batches) })
}

/// Ending the threads of live text takes a moment, which must not be one of the threads that serve.
struct Behind(Option<Box<Reading>>);

impl Drop for Behind {
    fn drop(&mut self) {
        if let Some(reading) = self.0.take() {
            std::thread::spawn(move || drop(reading));
        }
    }
}

impl Reading {
    /// Refuses a text of which nothing is left to train on: a reader from its beginning would take that for its end.
    fn check_any(&self) -> Result<()> {
        let Self { ticket, passed, before, .. } = self;
        if ticket.split != Split::Train || ticket.position > 0 || passed > before {
            return Ok(());
        }
        let reason = if *before > 0 {
            format!(
                "makes {passed} blocks, and the first {before} are set aside for validation; serve more text, or with a smaller --max_eval_samples or --validation_split_percentage 0"
            )
        } else {
            "makes no block; serve more text, or ask for a smaller block_size".to_owned()
        };
        Err(Error::config(&ticket.dataset, reason))
    }

    /// The next batch; `None` at the end of the split.
    fn next(&mut self) -> Result<Option<Batch>> {
        if self.blocks.is_none() {
            self.blocks = Some(self.live.blocks(std::mem::take(&mut self.from))?);
        }
        let mut some: Vec<(u64, Block)> = Vec::new();
        let blocks = self.blocks.as_mut().expect("opened above");
        while some.len() < self.rows {
            let Some(block) = blocks.next().transpose()? else {
                self.check_any()?;
                break;
            };
            self.passed = block.next.block;
            let number = block.next.block - 1;
            let Some(position) = number.checked_sub(self.before) else { continue };
            if position >= self.end {
                break;
            }
            let own = position % self.ticket.world_size == self.ticket.rank;
            if own && position >= self.ticket.position {
                some.push((position, block));
            }
        }
        let (Some((position, _)), Some((last, _))) = (some.first(), some.last()) else { return Ok(None) };
        let (position, next) = (*position, last + self.ticket.world_size);
        let mut note = Note { position, ..Note::default() };
        let width = self.live.width();
        let mut ids = Vec::with_capacity(some.len() * self.live.block_size() * width.bytes() + 64);
        for (position, block) in some {
            width.encode(&block.ids, &mut ids);
            note.blocks.push(position);
            note.valid_tokens.push(block.valid_tokens);
            note.document_starts.push(block.document_starts);
            note.documents_before.push(block.documents_before);
            note.text_bytes.push(block.text_bytes);
            note.next.push(serde_json::to_value(&block.next).expect("plain data"));
        }
        let (rows, app_metadata) = (note.blocks.len() as u64, note.seal(&ids));
        Ok(Some(Batch { message: self.messages.batch(ids, app_metadata), rows, next }))
    }
}
