//! What a run reads: a dataset that is finished, or raw text that is prepared while it trains.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::HumanBytes;
use tokenmill_preprocess::Live;
use tokenmill_preprocess::live::{Block, Blocks, Position};
use tokenmill_shared::dataset::{BlockReader, Dataset};
use tokenmill_shared::{Error, Result};

/// Blocks to train on, and what the model must fit.
#[derive(Debug)]
pub struct TrainingSet {
    /// Where they come from.
    pub source: Source,
    /// Where the tokenizer's files are.
    pub tokenizer_dir: PathBuf,
    /// The largest id the tokenizer can produce.
    pub largest_token_id: u32,
    /// Ids in a block.
    pub block_size: usize,
    /// BLAKE3 over what the blocks are a function of, in hexadecimal.
    pub fingerprint: String,
}

/// Where blocks come from.
#[derive(Debug)]
pub enum Source {
    /// A dataset on disk, read in any order.
    Prepared(Box<Dataset>),
    /// Raw text, in its own order.
    Live(Arc<LiveText>),
}

impl TrainingSet {
    /// A finished dataset, in blocks of `block_size` if that is given.
    ///
    /// # Errors
    /// A block size of 0.
    pub fn prepared(dataset: Dataset, block_size: Option<usize>) -> Result<Self> {
        let manifest = dataset.manifest();
        let mut fingerprint = manifest.head.fingerprint.clone();
        let block_size = block_size.unwrap_or(manifest.block_size);
        if block_size == 0 {
            return Err(Error::config("--block_size", "cannot be 0; leave it out for that of the dataset"));
        }
        if block_size != manifest.block_size {
            fingerprint = blake3::hash(format!("{fingerprint} {block_size}").as_bytes()).to_hex().to_string();
            eprintln!("blocks of {} tokens are cut anew, into blocks of {block_size}", manifest.block_size);
            say_dropped(&dataset);
        }
        Ok(Self {
            tokenizer_dir: dataset.tokenizer_dir(),
            largest_token_id: manifest.head.largest_token_id,
            block_size,
            fingerprint,
            source: Source::Prepared(Box::new(dataset)),
        })
    }

    /// Raw text. Its first blocks are read and set aside for validation; the rest waits to be taken.
    ///
    /// # Errors
    /// Those of reading and tokenizing what is set aside.
    pub fn live(live: Live) -> Result<Self> {
        Ok(Self {
            tokenizer_dir: live.tokenizer_dir()?,
            largest_token_id: live.tokenizer().largest_id(),
            block_size: live.block_size(),
            fingerprint: live.fingerprint().to_owned(),
            source: Source::Live(Arc::new(LiveText::new(live)?)),
        })
    }
}

/// Tokens that filled no block are not in the dataset, and cannot be in another cut of it.
fn say_dropped(dataset: &Dataset) {
    for (split, entry) in dataset.manifest().splits.iter().filter(|(_, entry)| entry.ledger.remainder > 0) {
        let dropped = entry.ledger.remainder;
        eprintln!("{dropped} tokens at the end of {split} are left out, because the dataset does not hold them");
    }
}

/// Raw text that is trained on as it is read.
#[derive(Debug)]
pub struct LiveText {
    /// The text.
    pub live: Arc<Live>,
    /// Where training begins, after what is set aside.
    pub begin: Position,
    /// Blocks of a pass, if they were counted before this run; those set aside are not among them.
    pub known_blocks: Option<u64>,
    /// Blocks set aside for validation.
    pub validation: Arc<Held>,
    /// The blocks from `begin` on, already being made.
    begun: Mutex<Option<Blocks>>,
}

impl LiveText {
    fn new(live: Live) -> Result<Self> {
        // Asked before anything is made: of a short text all would be known in a moment, sooner or later.
        let known_blocks = live.known_blocks()?.map(|blocks| blocks.saturating_sub(live.set_aside()));
        let mut begun = live.blocks(Position::default())?;
        let set_aside = usize::try_from(live.set_aside()).unwrap_or(usize::MAX);
        let held = begun.by_ref().take(set_aside).collect::<Result<Vec<_>>>()?;
        let begin = held.last().map_or_else(Position::default, |block| block.next.clone());
        let validation = Arc::new(Held { block_size: live.block_size(), blocks: held });
        Ok(Self { live: Arc::new(live), begin, known_blocks, validation, begun: Mutex::new(Some(begun)) })
    }

    /// The blocks from `position` on.
    ///
    /// # Errors
    /// Those of [`Live::blocks`].
    pub fn blocks(&self, position: &Position) -> Result<Blocks> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        match begun {
            Some(blocks) if *position == self.begin => Ok(blocks),
            _ => self.live.blocks(position.clone()),
        }
    }

    /// What was read and tokenized, for people.
    pub fn made(&self) -> String {
        let (made, files) = (self.live.made(), self.live.files());
        let scanned = made.scanned_files.load(Ordering::Relaxed);
        let tokenized = HumanBytes(made.tokenized_bytes.load(Ordering::Relaxed));
        format!("text: {tokenized} tokenized, {scanned} of {files} files scanned; the rest was known or not needed")
    }
}

/// Live text in steps, epoch after epoch, as [`blocks_of_step`](crate::data::blocks_of_step) has a dataset in the order
/// of its source: the last step of an epoch has what is left.
pub struct TextOrder {
    /// The text.
    pub text: Arc<LiveText>,
    /// Blocks of an epoch at most.
    pub limit: Option<u64>,
    /// Blocks in a step.
    pub blocks_per_step: usize,
    /// Blocks at the end of an epoch that fill no micro-batch of this size are left out.
    pub drop_last: Option<usize>,
    /// Where the next block begins.
    pub position: Position,
    /// The blocks from there on, once they were asked for.
    pub blocks: Option<Blocks>,
}

impl TextOrder {
    /// Ids in a block.
    pub fn block_size(&self) -> usize {
        self.text.live.block_size()
    }

    /// The number of a training block.
    pub fn number(&self, block: &Block) -> u64 {
        block.next.block - 1 - self.text.begin.block
    }

    /// The blocks of the next step, and where the one after it begins.
    pub fn next_step(&mut self) -> Result<(Vec<Block>, Position)> {
        let mut step = Vec::with_capacity(self.blocks_per_step);
        while step.len() < self.blocks_per_step {
            let from_begin = self.position == self.text.begin;
            if let Some(block) = self.next_block()? {
                self.position = block.next.clone();
                step.push(block);
                continue;
            }
            if from_begin {
                return Err(self.no_block());
            }
            // The end of an epoch.
            (self.blocks, self.position) = (None, self.text.begin.clone());
            step.truncate(self.drop_last.map_or(step.len(), |size| step.len() / size * size));
            if !step.is_empty() {
                break;
            }
        }
        Ok((step, self.position.clone()))
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let taken = self.position.block - self.text.begin.block;
        if self.limit.is_some_and(|limit| taken >= limit) {
            return Ok(None);
        }
        if self.blocks.is_none() {
            self.blocks = Some(self.text.blocks(&self.position)?);
        }
        self.blocks.as_mut().and_then(Iterator::next).transpose()
    }

    fn no_block(&self) -> Error {
        let set_aside = self.text.live.set_aside();
        let reason = if set_aside > 0 {
            format!(
                "makes {} blocks, and the first {set_aside} are set aside for validation; give more text, a smaller --max_eval_samples, or --validation_split_percentage 0",
                self.text.validation.len()
            )
        } else {
            "makes no training block; give more text or a smaller --block_size".to_owned()
        };
        Error::config("--train_file_dir", reason)
    }
}

/// Blocks in memory.
#[derive(Debug)]
pub struct Held {
    block_size: usize,
    blocks: Vec<Block>,
}

impl Held {
    /// Bytes of text for each of their tokens.
    pub fn bytes_per_token(&self) -> f64 {
        let bytes: f64 = self.blocks.iter().map(|block| block.text_bytes).sum();
        let tokens: usize = self.blocks.iter().map(|block| block.valid_tokens).sum();
        bytes / (tokens as f64).max(1.0)
    }
}

impl BlockReader for Held {
    fn block_size(&self) -> usize {
        self.block_size
    }

    fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn valid_tokens(&self, index: u64) -> Result<usize> {
        Ok(self.blocks[index as usize].valid_tokens)
    }

    fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()> {
        out.extend(&self.blocks[index as usize].ids);
        Ok(())
    }

    fn document_starts(&self, index: u64) -> Result<Vec<u32>> {
        Ok(self.blocks[index as usize].document_starts.clone())
    }
}
