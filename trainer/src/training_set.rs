//! What a run reads: a dataset that is finished, or raw text that is prepared while it trains; here, or at a service.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::HumanBytes;
use tokenmill_preprocess::Live;
use tokenmill_preprocess::live::{Block, Position};
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_shared::{Error, Result};

use crate::mixed::Mixed;
use crate::service::Service;

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
    /// Several of them, mixed by weight.
    Mixed(Arc<Mixed>),
    /// A dataset on disk at a service, read in the order of training.
    Served(Arc<Service>),
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
        let block_size = block_size.unwrap_or(manifest.block_size);
        if block_size == 0 {
            return Err(Error::config("--block_size", "cannot be 0; leave it out for that of the dataset"));
        }
        if block_size != manifest.block_size {
            let splits = manifest.splits.iter().map(|(split, entry)| (split.as_str(), entry.ledger.remainder));
            say_cut(manifest.block_size, block_size, splits);
        }
        let fingerprint = of_view(&manifest.head.fingerprint, manifest.block_size, block_size);
        Ok(Self {
            tokenizer_dir: dataset.tokenizer_dir(),
            largest_token_id: manifest.head.largest_token_id,
            block_size,
            fingerprint,
            source: Source::Prepared(Box::new(dataset)),
        })
    }

    /// Finished datasets that are mixed.
    pub fn mixed(mixed: Mixed) -> Self {
        let (first, block_size) = (&mixed.datasets[0], mixed.block_size());
        let mut hasher = blake3::Hasher::new();
        for (dataset, share) in mixed.datasets.iter().zip(mixed.mixture.shares()) {
            let manifest = dataset.manifest();
            if manifest.block_size != block_size {
                let splits = manifest.splits.iter().map(|(split, entry)| (split.as_str(), entry.ledger.remainder));
                eprint!("{}: ", share.name);
                say_cut(manifest.block_size, block_size, splits);
            }
            let fingerprint = of_view(&manifest.head.fingerprint, manifest.block_size, block_size);
            hasher.update(format!("{} {fingerprint}\n", share.name).as_bytes());
        }
        Self {
            tokenizer_dir: first.tokenizer_dir(),
            largest_token_id: first.manifest().head.largest_token_id,
            block_size,
            fingerprint: hasher.finalize().to_hex().to_string(),
            source: Source::Mixed(Arc::new(mixed)),
        }
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
            source: Source::Live(Arc::new(LiveText::new(Text::Here(live))?)),
        })
    }

    /// What a service has. Its tokenizer is kept in `cache_dir`.
    ///
    /// # Errors
    /// Those of reading what is set aside of text, and of the tokenizer.
    pub fn served(service: Service, cache_dir: &Path) -> Result<Self> {
        let (tokenizer_dir, description) = (service.tokenizer_dir(cache_dir)?, service.description.clone());
        let (own, block_size) = (description.own_block_size, description.block_size);
        let (fingerprint, source) = if service.is_live() {
            (description.fingerprint, Source::Live(Arc::new(LiveText::new(Text::Served(service))?)))
        } else {
            if block_size != own {
                let splits = description.splits.iter().map(|(split, entry)| (split.as_str(), entry.dropped_tokens));
                say_cut(own, block_size, splits);
            }
            (of_view(&description.fingerprint, own, block_size), Source::Served(Arc::new(service)))
        };
        let largest_token_id = description.largest_token_id;
        Ok(Self { source, tokenizer_dir, largest_token_id, block_size, fingerprint })
    }
}

/// The fingerprint of a dataset in blocks of another size.
fn of_view(fingerprint: &str, own: usize, block_size: usize) -> String {
    if block_size == own {
        return fingerprint.to_owned();
    }
    blake3::hash(format!("{fingerprint} {block_size}").as_bytes()).to_hex().to_string()
}

/// Tokens that filled no block are not in the dataset, and cannot be in another cut of it.
fn say_cut<'a>(own: usize, block_size: usize, dropped: impl Iterator<Item = (&'a str, u64)>) {
    eprintln!("blocks of {own} tokens are cut anew, into blocks of {block_size}");
    for (split, dropped) in dropped.filter(|(_, dropped)| *dropped > 0) {
        eprintln!("{dropped} tokens at the end of {split} are left out, because the dataset does not hold them");
    }
}

/// Text, here or at a service.
#[derive(Debug)]
pub enum Text {
    /// On this machine.
    Here(Live),
    /// At a service.
    Served(Service),
}

/// Blocks of text in its order.
pub type TextBlocks = Box<dyn Iterator<Item = Result<Block>> + Send>;

impl Text {
    /// Ids in a block.
    pub fn block_size(&self) -> usize {
        match self {
            Self::Here(live) => live.block_size(),
            Self::Served(service) => service.description.block_size,
        }
    }

    /// Blocks at the beginning that are for validation.
    pub fn set_aside(&self) -> u64 {
        match self {
            Self::Here(live) => live.set_aside(),
            Self::Served(service) => service.description.set_aside,
        }
    }

    /// How many training blocks there are, if they are counted.
    fn known_blocks(&self) -> Result<Option<u64>> {
        match self {
            Self::Here(live) => Ok(live.known_blocks()?.map(|blocks| blocks.saturating_sub(live.set_aside()))),
            Self::Served(service) => Ok(service.description.splits.get(&Split::Train).and_then(|split| split.blocks)),
        }
    }

    /// The blocks from `position` on.
    fn blocks(&self, position: &Position) -> Result<TextBlocks> {
        match self {
            Self::Here(live) => Ok(Box::new(live.blocks(position.clone())?)),
            Self::Served(service) => Ok(Box::new(service.text(position))),
        }
    }

    /// What was read and tokenized for its blocks, for people.
    fn made(&self) -> String {
        let Self::Here(live) = self else { return "text: read and tokenized by the service".to_owned() };
        let (made, files) = (live.made(), live.files());
        let scanned = made.scanned_files.load(Ordering::Relaxed);
        let tokenized = HumanBytes(made.tokenized_bytes.load(Ordering::Relaxed));
        format!("text: {tokenized} tokenized, {scanned} of {files} files scanned; the rest was known or not needed")
    }
}

/// Raw text that is trained on as it is read.
pub struct LiveText {
    /// The text.
    pub text: Text,
    /// Where training begins, after what is set aside.
    pub begin: Position,
    /// Blocks of a pass, if they were counted before this run; those set aside are not among them.
    pub known_blocks: Option<u64>,
    /// Blocks set aside for validation.
    pub validation: Arc<Held>,
    /// The blocks from `begin` on, already being made.
    begun: Mutex<Option<TextBlocks>>,
}

impl std::fmt::Debug for LiveText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveText").field("text", &self.text).field("begin", &self.begin).finish_non_exhaustive()
    }
}

impl LiveText {
    fn new(text: Text) -> Result<Self> {
        // Asked before anything is made: of a short text all would be known in a moment, sooner or later.
        let known_blocks = text.known_blocks()?;
        let mut begun = text.blocks(&Position::default())?;
        let set_aside = usize::try_from(text.set_aside()).unwrap_or(usize::MAX);
        let held = begun.by_ref().take(set_aside).collect::<Result<Vec<_>>>()?;
        let begin = held.last().map_or_else(Position::default, |block| block.next.clone());
        let validation = Arc::new(Held { block_size: text.block_size(), blocks: held });
        // A service has what is set aside as a stream of its own.
        let goes_on = matches!(text, Text::Here(_)) || set_aside == 0;
        Ok(Self { text, begin, known_blocks, validation, begun: Mutex::new(goes_on.then_some(begun)) })
    }

    /// The blocks from `position` on.
    ///
    /// # Errors
    /// Those of [`Live::blocks`].
    pub fn blocks(&self, position: &Position) -> Result<TextBlocks> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        match begun {
            Some(blocks) if *position == self.begin => Ok(blocks),
            _ => self.text.blocks(position),
        }
    }

    /// What was read and tokenized, for people.
    pub fn made(&self) -> String {
        self.text.made()
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
