//! Batches: blocks in training order, read ahead of the optimizer by one thread.
//!
//! Which blocks a step sees is a function of (settings, step): resuming anywhere costs nothing.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokenmill_preprocess::live::Block;
use tokenmill_shared::dataset::{BlockReader, Split};
use tokenmill_shared::order::Permutation;
use tokenmill_shared::service::Ticket;
use tokenmill_shared::{Error, Result};

use crate::model::{Batch, Documents};
use crate::plan::ResultSettings;
use crate::service::{ServedBlock, ServedBlocks, Service};
use crate::text_order::{Place, TextOrder};

/// What the loss of an optimizer step, or of an evaluation, is the mean over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossMean {
    /// The labels that are predicted: all but the first of each block. It is what the gradient should be of, however a
    /// step is split.
    Predicted,
    /// All labels, as the Trainer had it from 4.46 to 4.57: of blocks of T tokens (T−1)/T of the above.
    AllLabels,
    /// Those of a micro-batch, and the means are added up, as the Trainer did then with label smoothing: as many times the
    /// above as there are micro-batches in a step. An evaluation has one.
    MicroBatches,
}

/// Steps read ahead.
const AHEAD: usize = 2;

/// The micro-batches of one optimizer step.
#[derive(Debug)]
pub struct StepBatches {
    /// In order.
    pub micro_batches: Vec<Batch>,
    /// The numbers of their blocks, for messages.
    pub blocks: Vec<u64>,
    /// Of live text, where the next step begins, and the first and last document of each block.
    pub live: Option<(Place, Vec<(u64, u64)>)>,
}

impl StepBatches {
    /// Labels that are predicted, in all micro-batches.
    pub fn label_tokens(&self) -> u64 {
        self.micro_batches.iter().map(Batch::label_tokens).sum()
    }

    /// What the summed loss of each micro-batch is divided by, so that these add up to the loss of the step.
    pub fn divisors(&self, mean: LossMean) -> Vec<f64> {
        let whole = |count: u64| vec![count.max(1) as f64; self.micro_batches.len()];
        match mean {
            // A padded block of one token has no label; alone in a step it moves nothing.
            LossMean::Predicted => whole(self.label_tokens()),
            LossMean::AllLabels => whole(self.micro_batches.iter().map(Batch::given_labels).sum()),
            LossMean::MicroBatches => {
                self.micro_batches.iter().map(|batch| batch.label_tokens().max(1) as f64).collect()
            }
        }
    }

    /// Ids in all micro-batches, padding included: what the Trainer counts floating-point operations by.
    pub fn input_tokens(&self) -> u64 {
        self.micro_batches.iter().map(|batch| batch.input_ids.len() as u64).sum()
    }

    /// The same without padding.
    pub fn input_tokens_without_padding(&self) -> u64 {
        self.micro_batches.iter().map(Batch::tokens_without_padding).sum()
    }
}

/// Where a step lies: its epoch and its blocks, as positions in that epoch's order.
fn positions(settings: &ResultSettings, step: u64) -> (u64, std::ops::Range<u64>) {
    let per_epoch = settings.blocks_per_epoch.div_ceil(settings.blocks_per_step);
    let (epoch, in_epoch) = (step / per_epoch, step % per_epoch);
    let begin = in_epoch * settings.blocks_per_step;
    (epoch, begin..settings.blocks_per_epoch.min(begin + settings.blocks_per_step))
}

/// Blocks that the steps before `step` (from 0) drew.
pub fn blocks_before(settings: &ResultSettings, step: u64) -> u64 {
    let (epoch, range) = positions(settings, step);
    epoch * settings.blocks_per_epoch + range.start
}

/// The blocks of step `step` (from 0), in order.
pub fn blocks_of_step(settings: &ResultSettings, step: u64) -> Vec<u64> {
    let (epoch, range) = positions(settings, step);
    if !settings.mixture.is_empty() {
        // Each dataset has passes of its own, so an epoch goes on where the one before ended.
        let (before, seed) = (epoch * settings.blocks_per_epoch, settings.random_order.then_some(settings.data_seed));
        return range.map(|position| settings.mixture.block(before + position, seed)).collect();
    }
    if !settings.random_order {
        return range.collect();
    }
    let order = Permutation::new(settings.train_blocks, settings.data_seed, epoch);
    range.map(|position| order.at(position)).collect()
}

/// One batch of the given blocks. Padding is never a label. With `document_mask` documents do not see each other.
pub fn read_batch(reader: &dyn BlockReader, blocks: &[u64], document_mask: bool) -> Result<Batch> {
    Ok(batch_of(&read_blocks(reader, blocks, document_mask)?, reader.block_size(), document_mask))
}

/// Requests to a store that are under way at once. Each may hold a record batch, of 256 KiB.
const AT_ONCE: usize = 16;

/// The given blocks, in their order. What lies in a store is fetched at once, and what one request brings by one thread.
fn read_blocks(reader: &dyn BlockReader, blocks: &[u64], document_mask: bool) -> Result<Vec<ReadBlock>> {
    let read = |block: u64| {
        let mut ids = Vec::with_capacity(reader.block_size());
        reader.read_block(block, &mut ids)?;
        let document_starts = if document_mask { reader.document_starts(block)? } else { Vec::new() };
        Ok(ReadBlock { ids, valid_tokens: reader.valid_tokens(block)?, document_starts })
    };
    let mut together: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (place, block) in blocks.iter().enumerate() {
        let Some(first) = reader.fetched_with(*block) else { return blocks.iter().copied().map(read).collect() };
        together.entry(first).or_default().push(place);
    }
    let together: Vec<Vec<usize>> = together.into_values().collect();
    let next = AtomicUsize::new(0);
    let fetch = || {
        let mut found = Vec::new();
        while let Some(places) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.extend(places.iter().map(|place| (*place, read(blocks[*place]))));
        }
        found
    };
    let mut found = thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(together.len())).map(|_| scope.spawn(fetch)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.flatten().collect::<Vec<_>>()
    });
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, read)| read).collect()
}

/// A block that was read.
struct ReadBlock {
    ids: Vec<u32>,
    valid_tokens: usize,
    document_starts: Vec<u32>,
}

/// The labels of a block of which the first `valid` ids are tokens.
fn labels_of(ids: &[u32], valid: usize) -> impl Iterator<Item = i64> {
    ids.iter().enumerate().map(move |(at, id)| if at < valid { i64::from(*id) } else { -100 })
}

/// A block that is there.
struct Given<'a> {
    ids: &'a [u32],
    /// How many of them are tokens.
    valid_tokens: usize,
    document_starts: &'a [u32],
}

impl<'a> From<&'a Block> for Given<'a> {
    fn from(block: &'a Block) -> Self {
        let Block { ids, valid_tokens, document_starts, .. } = block;
        Self { ids, valid_tokens: *valid_tokens, document_starts }
    }
}

impl<'a> From<&'a ReadBlock> for Given<'a> {
    fn from(block: &'a ReadBlock) -> Self {
        let ReadBlock { ids, valid_tokens, document_starts } = block;
        Self { ids, valid_tokens: *valid_tokens, document_starts }
    }
}

impl<'a> From<&'a ServedBlock> for Given<'a> {
    fn from(block: &'a ServedBlock) -> Self {
        let ServedBlock { ids, valid_tokens, document_starts, .. } = block;
        Self { ids, valid_tokens: *valid_tokens, document_starts }
    }
}

/// One batch of blocks that are there; see [`read_batch`].
fn batch_of<'a, B>(blocks: &'a [B], seq_len: usize, document_mask: bool) -> Batch
where
    Given<'a>: From<&'a B>,
{
    let given = || blocks.iter().map(Given::from);
    Batch {
        input_ids: given().flat_map(|block| block.ids).copied().collect(),
        labels: given().flat_map(|block| labels_of(block.ids, block.valid_tokens)).collect(),
        batch_size: blocks.len(),
        seq_len,
        documents: document_mask.then(|| Documents::new(seq_len, given().map(|block| block.document_starts))),
    }
}

/// Steps in order, read ahead.
pub struct Loader {
    steps: Receiver<Result<StepBatches>>,
    waited: Duration,
}

impl Loader {
    /// Reads the steps `from..to` in micro-batches of `batch_size` blocks.
    pub fn start(
        reader: Arc<dyn BlockReader>,
        settings: ResultSettings,
        batch_size: usize,
        from: u64,
        to: u64,
    ) -> Self {
        let (sender, steps) = sync_channel(AHEAD);
        thread::spawn(move || {
            for step in from..to {
                let blocks = blocks_of_step(&settings, step);
                let read = read_blocks(reader.as_ref(), &blocks, settings.document_mask);
                let failed = read.is_err();
                let batch = |read: &[ReadBlock]| batch_of(read, reader.block_size(), settings.document_mask);
                let made = read.map(|read| StepBatches {
                    micro_batches: read.chunks(batch_size).map(batch).collect(),
                    blocks,
                    live: None,
                });
                if sender.send(made).is_err() || failed {
                    return; // the trainer has stopped, or will
                }
            }
        });
        Self { steps, waited: Duration::ZERO }
    }

    /// Takes the steps `from..to` from a service, in micro-batches of `batch_size` blocks.
    pub fn served(service: Arc<Service>, settings: ResultSettings, batch_size: usize, from: u64, to: u64) -> Self {
        let (sender, steps) = sync_channel(AHEAD);
        thread::spawn(move || {
            let mut order = ServedOrder { service, settings, epoch: None };
            for step in from..to {
                let made = order.step(step, batch_size);
                let failed = made.is_err();
                if sender.send(made).is_err() || failed {
                    return;
                }
            }
        });
        Self { steps, waited: Duration::ZERO }
    }

    /// Takes the next `steps` steps of live text in micro-batches of `batch_size` blocks.
    pub fn live(mut order: TextOrder, batch_size: usize, steps: u64) -> Self {
        let (sender, receiver) = sync_channel(AHEAD);
        thread::spawn(move || {
            for _ in 0..steps {
                let made = order.next_step().map(|(blocks, next)| StepBatches {
                    micro_batches: blocks.chunks(batch_size).map(|blocks| order.batch(blocks)).collect(),
                    blocks: blocks.iter().map(|block| order.number(block)).collect(),
                    live: Some((next, blocks.iter().map(documents_in).collect())),
                });
                let failed = made.is_err();
                if sender.send(made).is_err() || failed {
                    return;
                }
            }
        });
        Self { steps: receiver, waited: Duration::ZERO }
    }

    /// The next step.
    pub fn next_step(&mut self) -> Result<StepBatches> {
        let began = Instant::now();
        let step =
            self.steps.recv().map_err(|_| Error::config("data", "the reading thread ended early; report this"))?;
        self.waited += began.elapsed();
        step
    }

    /// Time spent waiting for data so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl TextOrder {
    fn batch(&self, blocks: &[Block]) -> Batch {
        batch_of(blocks, self.block_size(), self.document_mask)
    }
}

/// Blocks of a service in the order of training, epoch after epoch.
struct ServedOrder {
    service: Arc<Service>,
    settings: ResultSettings,
    /// The epoch that is being read, and its blocks from where it was begun.
    epoch: Option<(u64, ServedBlocks)>,
}

impl ServedOrder {
    fn step(&mut self, step: u64, batch_size: usize) -> Result<StepBatches> {
        let (settings, service) = (&self.settings, &self.service);
        let (epoch, positions) = positions(settings, step);
        let begin = || {
            let ticket = Ticket {
                seed: settings.random_order.then_some(settings.data_seed),
                epoch,
                position: positions.start,
                blocks: Some(settings.train_blocks),
                documents: settings.document_mask,
                ..service.ticket(Split::Train)
            };
            (epoch, service.blocks(ticket, Some(settings.train_blocks)))
        };
        let (epoch, mut stream) = self.epoch.take().filter(|(begun, _)| *begun == epoch).unwrap_or_else(begin);
        let mut blocks = Vec::new();
        for position in positions {
            // Those of other positions are refused by the stream.
            let block = stream.next_block()?;
            blocks.push(block.ok_or_else(|| service.error(format!("the block at position {position} did not come")))?);
        }
        self.epoch = Some((epoch, stream));
        let seq_len = service.description.block_size;
        let batch = |blocks: &[ServedBlock]| batch_of(blocks, seq_len, settings.document_mask);
        Ok(StepBatches {
            micro_batches: blocks.chunks(batch_size).map(batch).collect(),
            blocks: blocks.iter().map(|block| block.block).collect(),
            live: None,
        })
    }
}

/// The first and the last document of a block, counted from 1.
fn documents_in(block: &Block) -> (u64, u64) {
    documents_by(block.documents_before, &block.document_starts)
}

/// The same by the documents that begin before a block, and where in it others do.
pub fn documents_by(before: u64, starts: &[u32]) -> (u64, u64) {
    // A block that does not begin with a document goes on with the one before.
    (before + u64::from(starts.first() == Some(&0)), before + starts.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, OnceLock};
    use std::thread::ThreadId;

    use super::*;
    use tokenmill_shared::mixture::{Mixture, Share};

    fn settings(random_order: bool) -> ResultSettings {
        ResultSettings {
            dataset: String::new(),
            train_blocks: 23,
            blocks_per_epoch: 23,
            blocks_per_step: 4,
            data_seed: 1,
            random_order,
            quantisation: None,
            document_mask: false,
            mixture: Mixture::default(),
            shuffle_window: None,
        }
    }

    #[test]
    fn a_loss_is_the_mean_over_what_was_asked_for() {
        let batch = |labels: &[i64]| Batch {
            input_ids: vec![0; labels.len()],
            labels: labels.to_vec(),
            batch_size: labels.len() / 4,
            seq_len: 4,
            documents: None,
        };
        let step = StepBatches {
            micro_batches: vec![batch(&[1, 2, 3, 4, 5, 6, 7, 8]), batch(&[1, 2, 3, -100])],
            blocks: Vec::new(),
            live: None,
        };
        assert_eq!(step.divisors(LossMean::Predicted), [8.0, 8.0]);
        assert_eq!(step.divisors(LossMean::AllLabels), [11.0, 11.0]);
        assert_eq!(step.divisors(LossMean::MicroBatches), [6.0, 2.0]);
    }

    /// Steps of a mixture are its positions one after the other, also where an epoch ends.
    #[test]
    fn epochs_of_a_mixture_go_on_where_the_one_before_ended() {
        let share = |name: &str, blocks, weight| Share { name: name.to_owned(), blocks, weight };
        let mixture = Mixture::new(vec![share("a", 20, 3), share("b", 3, 1)]);
        for random_order in [false, true] {
            let settings = ResultSettings { mixture: mixture.clone(), ..settings(random_order) };
            let drawn: Vec<u64> = (0..18).flat_map(|step| blocks_of_step(&settings, step)).collect();
            let seed = random_order.then_some(1);
            assert!(drawn.iter().copied().eq((0..3 * 23).map(|position| mixture.block(position, seed))));
            assert_eq!(blocks_before(&settings, 13), 50);
            let of_b = drawn.iter().filter(|block| **block >= 20).count();
            assert!((16..=18).contains(&of_b), "{of_b} of 69");
        }
    }

    /// Blocks of a store, ten to a request.
    #[derive(Debug, Default)]
    struct InStore {
        /// When the first was fetched.
        began: OnceLock<Instant>,
        /// Requests under way, and the most of them.
        now: AtomicUsize,
        most: AtomicUsize,
        threads: Mutex<BTreeMap<u64, ThreadId>>,
        damaged: Vec<u64>,
    }

    impl BlockReader for InStore {
        fn block_size(&self) -> usize {
            2
        }

        fn len(&self) -> u64 {
            1000
        }

        fn valid_tokens(&self, index: u64) -> Result<usize> {
            Ok(if index == 17 { 1 } else { 2 })
        }

        fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()> {
            let thread = *self.threads.lock().unwrap().entry(index / 10).or_insert(thread::current().id());
            assert_eq!(thread, thread::current().id(), "what one request brings was asked for twice");
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            // Of all fetches together, so that with one at a time the test fails and does not wait for each.
            let began = self.began.get_or_init(Instant::now);
            while self.most.load(Ordering::SeqCst) < AT_ONCE && began.elapsed() < Duration::from_secs(5) {
                thread::yield_now();
            }
            self.now.fetch_sub(1, Ordering::SeqCst);
            if self.damaged.contains(&index) {
                return Err(Error::corrupt("store", format!("block {index}")));
            }
            out.extend([index as u32, index as u32 + 1]);
            Ok(())
        }

        fn document_starts(&self, index: u64) -> Result<Vec<u32>> {
            Ok(vec![(index % 2) as u32])
        }

        fn fetched_with(&self, index: u64) -> Option<u64> {
            Some(index / 10 * 10)
        }
    }

    #[test]
    fn blocks_in_a_store_are_fetched_at_once_and_stay_in_order() {
        let blocks: Vec<u64> = (0..300).map(|place| place * 77 % 300).collect();
        let store = InStore::default();
        let batch = read_batch(&store, &blocks, true).unwrap();
        assert_eq!(store.most.into_inner(), AT_ONCE);
        assert!(batch.input_ids.iter().copied().eq(blocks.iter().flat_map(|block| [*block as u32, *block as u32 + 1])));
        assert_eq!(batch.labels.iter().filter(|label| **label == -100).count(), 1);
        let store = InStore { damaged: vec![30, 12, 200], ..InStore::default() };
        let first = blocks.iter().find(|block| store.damaged.contains(block)).unwrap();
        let error = read_batch(&store, &blocks, false).unwrap_err().to_string();
        assert!(error.contains(&format!("block {first}")), "{error}");
    }

    #[test]
    fn every_block_comes_once_an_epoch() {
        for random_order in [false, true] {
            for epoch in 0..3 {
                let mut blocks: Vec<u64> =
                    (0..6).flat_map(|step| blocks_of_step(&settings(random_order), epoch * 6 + step)).collect();
                blocks.sort_unstable();
                assert!(blocks.into_iter().eq(0..23));
            }
        }
        assert_eq!(blocks_of_step(&settings(false), 5), [20, 21, 22]);
        assert_eq!([0, 5, 6, 13].map(|step| blocks_before(&settings(false), step)), [0, 20, 23, 50]);
        assert_ne!(blocks_of_step(&settings(true), 0), blocks_of_step(&settings(true), 6));
    }
}
