//! DoExchange: text in, ids or blocks out. A batch is read when the one before has been answered and the answer taken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt32Builder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_flight::FlightData;
use arrow_flight::utils::flight_data_to_arrow_batch;
use arrow_schema::{DataType, Field, Schema};
use futures::{Stream, StreamExt};
use tokenmill_shared::dataset::TokenWidth;
use tokenmill_shared::service::{ExchangeOutput, ExchangeRequest, LARGEST_BLOCK, Note};
use tokio::sync::Semaphore;
use tonic::Status;

use super::catalogue::{Served, TokenizerOf};
use super::message::{Messages, batch_message, schema_message};
use super::statistics::Listed;

/// What a client sends.
pub type Input = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// One exchange.
pub struct Exchange {
    input: Input,
    worker: Option<Box<Worker>>,
    /// Answers that wait to be taken, the last one first.
    ready: Vec<FlightData>,
    /// Threads that may tokenize at a time.
    cores: Arc<Semaphore>,
    listed: Listed,
    /// The first answer carries the schema, the first message of the input has its own.
    begun: bool,
    ended: bool,
}

/// What tokenizes, on a thread of its own for each batch.
struct Worker {
    request: ExchangeRequest,
    tokenizer: TokenizerOf,
    eos: Option<u32>,
    schema: Option<Arc<Schema>>,
    blocks: Option<Packing>,
    /// Batches answered so far.
    batches: u64,
}

/// Ids that wait for a block to be full.
struct Packing {
    block_size: usize,
    width: TokenWidth,
    messages: Messages,
    ids: Vec<u32>,
    blocks: u64,
}

/// A batch that was tokenized.
struct Answered {
    message: Option<FlightData>,
    rows: u64,
    tokens: u64,
}

impl Exchange {
    /// Answers `input` by the tokenizer of `served`.
    ///
    /// # Errors
    /// A block size that cannot be, or an end-of-sequence token that is missing.
    pub fn open(
        served: &Served,
        request: ExchangeRequest,
        tokenizer: TokenizerOf,
        input: Input,
        cores: Arc<Semaphore>,
        listed: Listed,
    ) -> Result<Self, Status> {
        let eos = match (request.append_eos, tokenizer.eos_token_id) {
            (false, _) => None,
            (true, Some(id)) => Some(id),
            (true, None) => return Err(Status::invalid_argument("append_eos: the tokenizer names no such token")),
        };
        let block_size = request.block_size.unwrap_or(served.block_size());
        if block_size == 0 || block_size > LARGEST_BLOCK {
            return Err(Status::invalid_argument(format!("block_size must be 1 to {LARGEST_BLOCK}")));
        }
        let width = TokenWidth::for_largest_id(tokenizer.largest_id());
        let messages = || Messages::new(block_size, width, 1);
        let packing = || Packing { block_size, width, messages: messages(), ids: Vec::new(), blocks: 0 };
        let blocks = (request.output == ExchangeOutput::Blocks).then(packing);
        let schema = blocks.as_ref().map_or_else(|| schema_message(&ids_schema()), |blocks| blocks.messages.schema());
        let worker = Worker { request, tokenizer, eos, schema: None, blocks, batches: 0 };
        Ok(Self {
            input,
            worker: Some(Box::new(worker)),
            ready: vec![schema],
            cores,
            listed,
            begun: false,
            ended: false,
        })
    }

    /// Whom it is for.
    pub fn listed(&self) -> &Listed {
        &self.listed
    }

    /// The next answer; `None` when the input has ended and all is answered.
    pub async fn next(&mut self) -> Option<Result<FlightData, Status>> {
        loop {
            if let Some(message) = self.ready.pop() {
                return Some(Ok(message));
            }
            if self.ended {
                return None;
            }
            let message = match self.input.next().await {
                None => {
                    self.ended = true;
                    return None;
                }
                Some(Err(status)) => {
                    self.ended = true;
                    return Some(Err(status));
                }
                Some(Ok(message)) => message,
            };
            match self.take(message).await {
                Ok(Some(answer)) => self.ready.push(answer),
                Ok(None) => {}
                Err(status) => {
                    self.ended = true;
                    return Some(Err(status));
                }
            }
        }
    }

    async fn take(&mut self, message: FlightData) -> Result<Option<FlightData>, Status> {
        // A message without a header carries a word or the descriptor alone.
        if message.data_header.is_empty() {
            return Ok(None);
        }
        let mut worker = self.worker.take().expect("put back after each batch");
        if !self.begun {
            self.begun = true;
            let schema = catch_unwind(AssertUnwindSafe(|| Schema::try_from(&message)));
            let schema = schema.ok().and_then(Result::ok);
            let schema = schema.ok_or_else(|| Status::invalid_argument("the first message holds no Arrow schema"))?;
            worker.check_schema(&schema)?;
            worker.schema = Some(Arc::new(schema));
            self.worker = Some(worker);
            return Ok(None);
        }
        let _turn = Arc::clone(&self.cores).acquire_owned().await;
        let work = move || {
            let answered = worker.answer(&message);
            (worker, answered)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (worker, answered) = done.map_err(|_| Status::internal("the tokenizer failed on this batch"))?;
        self.worker = Some(worker);
        let Answered { message, rows, tokens } = answered?;
        self.listed.sent(rows, tokens, self.listed.consumer.position.load(std::sync::atomic::Ordering::Relaxed) + rows);
        Ok(message)
    }
}

fn ids_schema() -> Schema {
    let item = Arc::new(Field::new("item", DataType::UInt32, false));
    Schema::new(vec![Field::new("input_ids", DataType::List(item), false)])
}

impl Worker {
    fn check_schema(&self, schema: &Schema) -> Result<(), Status> {
        let name = &self.request.text_field;
        let field = schema.fields().iter().find(|field| field.name() == name);
        match field.map(|field| field.data_type()) {
            Some(DataType::Utf8 | DataType::LargeUtf8) => Ok(()),
            Some(other) => Err(Status::invalid_argument(format!("the column {name:?} is of {other}, not of text"))),
            None => Err(Status::invalid_argument(format!("there is no column {name:?}; name it by text_field"))),
        }
    }

    fn answer(&mut self, message: &FlightData) -> Result<Answered, Status> {
        let schema = self.schema.clone().expect("checked before any batch");
        // Bytes of somebody else: arrow's reader checks them, and may still panic.
        let read =
            catch_unwind(AssertUnwindSafe(|| flight_data_to_arrow_batch(message, schema, &Default::default()).ok()));
        let batch =
            read.ok().flatten().ok_or_else(|| Status::invalid_argument("a message is not a batch of its schema"))?;
        let (lengths, ids) = self.tokenize(&batch)?;
        let (rows, tokens) = (lengths.len() as u64, ids.len() as u64);
        self.batches += 1;
        let message = match &mut self.blocks {
            Some(packing) => packing.push(ids),
            None => Some(ids_message(self.batches - 1, &lengths, &ids)),
        };
        Ok(Answered { message, rows, tokens })
    }

    /// The number of ids of each text, and all ids.
    fn tokenize(&self, batch: &RecordBatch) -> Result<(Vec<usize>, Vec<u32>), Status> {
        let column = batch.column_by_name(&self.request.text_field).expect("checked with the schema");
        if column.null_count() > 0 {
            return Err(Status::invalid_argument("a text is null; leave the row out"));
        }
        let texts: Box<dyn Iterator<Item = Option<&str>>> = match column.data_type() {
            DataType::LargeUtf8 => Box::new(column.as_string::<i64>().iter()),
            _ => Box::new(column.as_string::<i32>().iter()),
        };
        let (mut lengths, mut ids) = (Vec::with_capacity(column.len()), Vec::new());
        let mut encoder = self.tokenizer.encoder();
        for (row, text) in texts.flatten().enumerate() {
            let before = ids.len();
            let encoded = encoder.encode(text, self.request.add_special_tokens, &mut ids);
            encoded.map_err(|why| Status::invalid_argument(format!("row {row} cannot be tokenized: {why}")))?;
            if let Some(eos) = self.eos
                && (ids.len() == before || ids.last() != Some(&eos))
            {
                ids.push(eos);
            }
            lengths.push(ids.len() - before);
        }
        Ok((lengths, ids))
    }
}

fn ids_message(position: u64, lengths: &[usize], ids: &[u32]) -> FlightData {
    let item = Arc::new(Field::new("item", DataType::UInt32, false));
    let mut builder = ListBuilder::new(UInt32Builder::with_capacity(ids.len())).with_field(item);
    let mut rest = ids;
    for length in lengths {
        let (own, later) = rest.split_at(*length);
        rest = later;
        builder.values().append_slice(own);
        builder.append(true);
    }
    let batch = RecordBatch::try_new(Arc::new(ids_schema()), vec![Arc::new(builder.finish())]);
    let mut bytes = Vec::with_capacity(ids.len() * 4);
    TokenWidth::U32.encode(ids, &mut bytes);
    let note = Note { position, ..Note::default() };
    batch_message(&batch.expect("one column, of the schema")).with_app_metadata(note.seal(&bytes))
}

impl Packing {
    /// Adds ids; a message with the blocks that are full now, if one is.
    fn push(&mut self, ids: Vec<u32>) -> Option<FlightData> {
        self.ids.extend(ids);
        let full = self.ids.len() / self.block_size;
        if full == 0 {
            return None;
        }
        let mut bytes = Vec::new();
        self.width.encode(&self.ids[..full * self.block_size], &mut bytes);
        self.ids.drain(..full * self.block_size);
        let blocks = (self.blocks..self.blocks + full as u64).collect();
        let note = Note { position: self.blocks, blocks, ..Note::default() };
        self.blocks += full as u64;
        let app_metadata = note.seal(&bytes);
        Some(self.messages.batch(bytes, app_metadata))
    }
}
