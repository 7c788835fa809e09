//! Reading, tokenizing and writing at once, in order and in bounded memory.
//!
//! ```text
//! reader (one blocking thread) ──bounded──▶ tokenizing (rayon, n batches at once, order restored) ──▶ sink
//! ```
//! The reader decodes documents or, for partitions in the store, passes on their frames; the sink keeps new
//! partitions and packs. Text in flight is bounded by [`IN_FLIGHT_BYTES`], whatever the input.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::{StreamExt, stream};
use tokenmill_shared::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::document::{self, Extent, Flow, Reads, Rules, Usable};
use crate::plan::{Part, Partition};
use crate::scan::{self, DocumentsHasher};
use crate::source::Input;
use crate::store::{Frame, PartitionWriter, Store};
use crate::tokenize::{Encoding, Parts, TextBatch};

/// Text and stored frames that may be between reader and sink. Ids take up to about as much again.
pub const IN_FLIGHT_BYTES: usize = 64 << 20;

/// Permits are counted in KiB, because the semaphore counts in u32.
const PERMIT_BYTES: usize = 1 << 10;

/// What the sink is told, in document order.
#[derive(Debug)]
pub enum Event {
    /// A partition begins; `stored` if its frames come from the store.
    Begin {
        /// Which one.
        partition: Partition,
        /// Whether it was in the store.
        stored: bool,
    },
    /// Tokens of documents of one file.
    Tokens(Frame),
    /// The documents of the next frames are of this file: (file index, documents of it that follow).
    File {
        /// Index of the file in the inputs.
        file: usize,
        /// How many of the documents that follow are of it.
        documents: u64,
    },
    /// The partition begun last is complete.
    End,
}

/// What is read: partitions in input order, known beforehand or found as they are asked for.
pub type Partitions = Box<dyn Iterator<Item = Result<Partition>> + Send>;

/// What the pipeline needs to know.
pub struct Pipeline {
    /// The files that the partitions are of.
    pub inputs: Arc<Vec<Input>>,
    /// What is read.
    pub partitions: Partitions,
    /// What makes documents.
    pub rules: Rules,
    /// What is done to them.
    pub encoding: Arc<Encoding>,
    /// Where finished partitions are looked up; `None` to tokenize everything.
    pub store: Option<Store>,
    /// Where new partitions are kept, if they are.
    pub keep: Option<Store>,
    /// How much is read at a time.
    pub read_bytes: usize,
    /// The threads that tokenize.
    pub pool: Arc<rayon::ThreadPool>,
}

enum Item {
    Ready(Event),
    Text { file: usize, batch: TextBatch },
}

type Sent = (Result<Item>, Option<OwnedSemaphorePermit>);

impl Pipeline {
    /// Runs to the end, or until `sink` returns [`Flow::Stop`].
    pub fn run(self, sink: &mut dyn FnMut(Event) -> Result<Flow>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("tokenmill-io")
            .build()
            .map_err(Error::storage("start threads for", std::path::Path::new("reading")))?;
        runtime.block_on(self.drive(sink))
    }

    async fn drive(self, sink: &mut dyn FnMut(Event) -> Result<Flow>) -> Result<()> {
        let workers = self.pool.current_num_threads();
        let mut keeping = Keeping { store: self.keep.clone(), writer: None };
        let (sender, receiver) = mpsc::channel::<Sent>(64);
        let (pool, encoding, inputs) = (Arc::clone(&self.pool), Arc::clone(&self.encoding), Arc::clone(&self.inputs));
        let reading = tokio::task::spawn_blocking(move || {
            let budget = Arc::new(Semaphore::new(IN_FLIGHT_BYTES / PERMIT_BYTES));
            let Self { inputs, partitions, rules, encoding, store, read_bytes, .. } = self;
            // One thread decodes as fast as some four of them tokenize.
            let reads = Reads { bytes: read_bytes, decoders: workers.div_ceil(4) };
            let runtime = tokio::runtime::Handle::current();
            let reader = Reader { inputs, rules, encoding, store, reads, sender, budget, runtime };
            if let Err(Gone::Failed(error)) = reader.read(partitions) {
                // If the sink is gone too, its error is the one to report.
                let _ = reader.sender.blocking_send((Err(error), None));
            }
        });
        let received = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
        // So many that threads find work while the sink writes a shard's batch or syncs a partition: with twice the workers
        // 240 MB of English took 1.65 s, so 1.48 (medians of 5 runs in turn).
        let mut events = Box::pin(
            received
                .map(move |(item, permit)| {
                    let (pool, encoding, inputs) = (Arc::clone(&pool), Arc::clone(&encoding), Arc::clone(&inputs));
                    async move {
                        let event = match item? {
                            Item::Ready(event) => event,
                            Item::Text { file, batch } => {
                                let (done, result) = oneshot::channel();
                                pool.spawn(move || {
                                    let _ = done.send(encode(&encoding, &batch, &inputs[file]));
                                });
                                Event::Tokens(result.await.expect("a worker always answers")?)
                            }
                        };
                        Ok::<_, Error>((event, permit))
                    }
                })
                .buffered(16 * workers),
        );
        let mut result = Ok(());
        while let Some(event) = events.next().await {
            let mut take = |event| {
                keeping.note(&event)?;
                sink(event)
            };
            match event.and_then(|(event, permit)| take(event).map(|flow| (flow, permit))) {
                Ok((Flow::Continue, _)) => {}
                Ok((Flow::Stop, _)) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        drop(events);
        if let Err(panicked) = reading.await {
            // What came before it would look like all there is.
            std::panic::resume_unwind(panicked.into_panic());
        }
        result
    }
}

/// Writes new partitions to the store as they pass.
struct Keeping {
    store: Option<Store>,
    writer: Option<PartitionWriter>,
}

impl Keeping {
    fn note(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Begin { partition, stored: false } => {
                self.writer = self.store.as_ref().map(|store| store.create(&partition.fingerprint)).transpose()?;
            }
            Event::Tokens(frame) => self.writer.as_mut().map_or(Ok(()), |writer| writer.append(frame))?,
            Event::End => self.writer.take().map_or(Ok(()), PartitionWriter::publish)?,
            Event::Begin { .. } | Event::File { .. } => {}
        }
        Ok(())
    }
}

/// A panic in a thread of the pool would end the process without a word about the document.
fn encode(encoding: &Encoding, batch: &TextBatch, input: &Input) -> Result<Frame> {
    catch_unwind(AssertUnwindSafe(|| encoding.encode(batch, input))).unwrap_or_else(|_| {
        let reason = "the tokenizer failed on its documents (see above); report this with the tokenizer";
        Err(Error::input(input.at(), reason))
    })
}

/// Why the reader stops before the end.
enum Gone {
    /// The sink wants no more.
    Sink,
    Failed(Error),
}

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Reader {
    inputs: Arc<Vec<Input>>,
    rules: Rules,
    encoding: Arc<Encoding>,
    store: Option<Store>,
    reads: Reads,
    sender: mpsc::Sender<Sent>,
    budget: Arc<Semaphore>,
    runtime: tokio::runtime::Handle,
}

impl Reader {
    fn read(&self, partitions: Partitions) -> std::result::Result<(), Gone> {
        for partition in partitions {
            let partition = partition?;
            let stored = match &self.store {
                Some(store) => store.get(&partition.fingerprint)?,
                None => None,
            };
            self.send(Event::Begin { partition: partition.clone(), stored: stored.is_some() })?;
            match stored {
                Some(mut frames) => {
                    for part in &partition.parts {
                        self.announce(part)?;
                    }
                    while let Some(frame) = frames.next_frame()? {
                        let permit = self.permit(frame.ids().len())?;
                        self.push(Item::Ready(Event::Tokens(frame)), Some(permit))?;
                    }
                }
                None => self.read_partition(&partition)?,
            }
            self.send(Event::End)?;
        }
        Ok(())
    }

    fn read_partition(&self, partition: &Partition) -> std::result::Result<(), Gone> {
        for part in &partition.parts {
            self.announce(part)?;
            let (input, segment) = (&self.inputs[part.file], &part.segment);
            let mut hasher = DocumentsHasher::default();
            let mut batch = TextBatch::default();
            let mut parts = Parts::new(&self.encoding.tokenizer, input);
            let mut gone = None;
            let mut left = segment.documents;
            let each = |found: document::Document<'_>| {
                let Extent { begins, ends } = found.extent;
                hasher.update(found.text, found.extent);
                left -= u64::from(ends);
                let mut batches = Vec::new();
                if begins && ends {
                    batch.push(found.text, found.record);
                } else {
                    // A part is a batch of its own.
                    batches.extend(Some(std::mem::take(&mut batch)).filter(|batch| !batch.is_empty()));
                    batches.extend(parts.next(&found)?);
                }
                if !batch.is_empty() && (left == 0 || batch.is_full()) {
                    batches.push(std::mem::take(&mut batch));
                }
                for batch in batches {
                    if let Err(reason) = self.send_text(part.file, batch) {
                        gone = Some(reason);
                        return Ok(Flow::Stop);
                    }
                }
                Ok(if left == 0 { Flow::Stop } else { Flow::Continue })
            };
            let mut usable = Usable { each, broken: &segment.broken };
            document::for_each(input, &self.rules, segment.start, self.reads, &mut usable)?;
            if let Some(reason) = gone {
                return Err(reason);
            }
            if left > 0 || hasher.end_run() != segment.blake3 {
                return Err(scan::changed(input).into());
            }
        }
        Ok(())
    }

    fn announce(&self, part: &Part) -> std::result::Result<(), Gone> {
        self.send(Event::File { file: part.file, documents: part.segment.documents })
    }

    fn send_text(&self, file: usize, batch: TextBatch) -> std::result::Result<(), Gone> {
        let permit = self.permit(batch.text_bytes())?;
        self.push(Item::Text { file, batch }, Some(permit))
    }

    fn send(&self, event: Event) -> std::result::Result<(), Gone> {
        self.push(Item::Ready(event), None)
    }

    fn push(&self, item: Item, permit: Option<OwnedSemaphorePermit>) -> std::result::Result<(), Gone> {
        self.sender.blocking_send((Ok(item), permit)).map_err(|_| Gone::Sink)
    }

    /// Waits until `bytes` more may be in flight; one batch above the budget waits for all of it.
    fn permit(&self, bytes: usize) -> std::result::Result<OwnedSemaphorePermit, Gone> {
        let permits = (bytes / PERMIT_BYTES + 1).min(IN_FLIGHT_BYTES / PERMIT_BYTES) as u32;
        let wait = Arc::clone(&self.budget).acquire_many_owned(permits);
        let closed = async {
            tokio::select! {
                permit = wait => permit.ok(),
                () = self.sender.closed() => None,
            }
        };
        self.runtime.block_on(closed).ok_or(Gone::Sink)
    }
}
