//! Batches: blocks in training order, read ahead of the optimizer by one thread.
//!
//! Which blocks a step sees is a function of (settings, step): resuming anywhere costs nothing.

use std::sync::Arc;
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
    let size = reader.block_size();
    let mut input_ids = Vec::with_capacity(blocks.len() * size);
    let mut labels = Vec::with_capacity(blocks.len() * size);
    let mut starts = Vec::new();
    for block in blocks {
        let begin = input_ids.len();
        reader.read_block(*block, &mut input_ids)?;
        labels.extend(labels_of(&input_ids[begin..], reader.valid_tokens(*block)?));
        if document_mask {
            starts.push(reader.document_starts(*block)?);
        }
    }
    let documents = document_mask.then(|| Documents::new(size, starts.iter().map(Vec::as_slice)));
    Ok(Batch { input_ids, labels, batch_size: blocks.len(), seq_len: size, documents })
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

impl<'a> From<&'a ServedBlock> for Given<'a> {
    fn from(block: &'a ServedBlock) -> Self {
        let ServedBlock { ids, valid_tokens, document_starts, .. } = block;
        Self { ids, valid_tokens: *valid_tokens, document_starts }
    }
}

/// The same as [`read_batch`] of blocks that are there.
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
                let read = |blocks| read_batch(reader.as_ref(), blocks, settings.document_mask);
                let read: Result<Vec<Batch>> = blocks.chunks(batch_size).map(read).collect();
                let failed = read.is_err();
                let made = read.map(|micro_batches| StepBatches { micro_batches, blocks, live: None });
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
