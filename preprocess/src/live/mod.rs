//! Live: the blocks of raw text while it is being read, by position, ahead of whoever takes them.
//!
//! ```text
//! find (one thread: partitions, as far as needed) ─▶ pipeline (read, tokenize) ─▶ cut ──bounded──▶ Blocks
//!                                                    share (read along)
//! ```
//! The blocks are those that [`prepare`](crate::prepare) makes of the same text under the same settings, in the order of
//! the text. Nothing is read before it is needed but the listing. [`Live`] keeps no state of its readers: a
//! [`Position`] is all that it takes to go on, at the cost of the partition in which it lies.

mod cut;
mod find;
mod share;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenmill_shared::config::{DataArguments, OnBadRecord, Packing, ValidationSplitMode, ValidationText};
use tokenmill_shared::dataset::{Layout, TokenWidth};
use tokenmill_shared::{Error, Result};

use self::cut::Cutter;
use self::find::Finder;
use self::share::Sharing;
use crate::document::{Flow, Start};
use crate::job::{PrepareOptions, Reading, ScanState, Setup, allowed_block_size};
use crate::pipeline::{Event, Partitions, Pipeline};
use crate::plan::{self, TokenSettings};
use crate::scan::{FileScan, Memory};
use crate::source::{Input, Text, texts};
use crate::tokenizer::{self, Tokenizer};

/// Tokens that may be cut ahead of the one who takes them, in blocks: 1 MiB of ids. Text and ids before that are bounded
/// by [`IN_FLIGHT_BYTES`](crate::pipeline::IN_FLIGHT_BYTES).
const AHEAD_TOKENS: usize = 1 << 18;

/// Blocks set aside for validation where nothing else is said.
const SET_ASIDE: u64 = 256;

/// What a position says, a block number and the tokens before it, is enough where blocks are cut from one stream.
const PACKED_OTHERWISE: &str = "cuts documents one after the other, and --packing, --packing_strategy or --compat asks for other blocks; leave out --streaming, or prepare the text first: `preprocess prepare`, and --dataset_dir";

/// Where a block begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which block, counted from the beginning of the text.
    pub block: u64,
    /// Tokens before the partition in which it begins.
    tokens: u64,
    /// Documents with tokens before that partition.
    documents: u64,
    /// Index of the file in which that partition begins.
    file: usize,
    /// Where in that file.
    start: Start,
    /// Its fingerprint; empty at the beginning of the text.
    partition: String,
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// `block_size` ids.
    pub ids: Vec<u32>,
    /// How many of them are tokens; the rest is padding and never a label.
    pub valid_tokens: usize,
    /// Offsets at which documents begin, ascending.
    pub document_starts: Vec<u32>,
    /// Documents with tokens that begin before it.
    pub documents_before: u64,
    /// UTF-8 bytes of its text: of a document that goes on in other blocks, by its share of the tokens.
    pub text_bytes: f64,
    /// Where the next block begins.
    pub next: Position,
}

/// Raw text as blocks, resolved and listed. See the module.
#[derive(Debug)]
pub struct Live {
    setup: Arc<Setup>,
    dir: PathBuf,
    inputs: Arc<Vec<Input>>,
    memory: Arc<Mutex<Memory>>,
    set_aside: u64,
    /// Whether new partitions are kept in the store.
    keep: bool,
    fingerprint: String,
    made: Arc<Made>,
}

/// What was not there before, and had to be made.
#[derive(Debug, Default)]
pub struct Made {
    /// Files that were read to be scanned.
    pub scanned_files: AtomicU64,
    /// UTF-8 bytes of the partitions that were, or are being, tokenized.
    pub tokenized_bytes: AtomicU64,
}

impl Live {
    /// Resolves `options` and lists the text; reads none of it. Token partitions that are made stay in the store if
    /// `keep`, so that the next epoch and the next run make none.
    ///
    /// # Errors
    /// Those of [`prepare`](crate::prepare) before it reads; a division of the documents, which needs their number.
    pub fn open(options: &PrepareOptions, keep: bool) -> Result<Self> {
        let data = &options.data;
        if data.dataset_name.is_some() {
            let reason = "reads text files; give the directory of the training text, or leave out --streaming";
            return Err(Error::config("--dataset_name", format!("{reason}: --streaming --train_file_dir DIR")));
        }
        if data.on_bad_record == OnBadRecord::Quarantine {
            let reason = "keeps bad records beside a dataset, and --streaming makes none; use skip";
            return Err(Error::config("--on_bad_record", format!("quarantine {reason}")));
        }
        for (flag, given) in [
            ("--deduplicate", data.deduplicate),
            ("--skip_documents", data.skip_documents.is_some()),
            ("--take_documents", data.take_documents.is_some()),
        ] {
            if given {
                let reason = "looks at documents in the order of the whole text, and --streaming begins anywhere; prepare the text first: `preprocess prepare`, and --dataset_dir";
                return Err(Error::config(flag, reason));
            }
        }
        let set_aside = set_aside(data)?;
        if data.packing()? != Packing::Concatenate {
            return Err(Error::config("--streaming", PACKED_OTHERWISE));
        }
        let setup = Setup::new(options)?;
        // Texts to validate on are prepared by themselves, and looked at then.
        let training = DataArguments { validation_file_dir: Vec::new(), validation_file: Vec::new(), ..data.clone() };
        let (Text { root: dir, inputs, .. }, _) = texts(&training, &options.hub, &setup.reading.cache_dir)?;
        let memory = Memory::open(&dir, &setup.reading.scan_options(&ScanState::default()))?;
        let fingerprint = fingerprint(&setup, &inputs, set_aside);
        let (inputs, memory) = (Arc::new(inputs), Arc::new(Mutex::new(memory)));
        Ok(Self { setup: Arc::new(setup), dir, inputs, memory, set_aside, keep, fingerprint, made: Arc::default() })
    }

    /// The same text in blocks of `block_size`, of which as many are set aside.
    ///
    /// # Errors
    /// A block size of 0.
    pub fn recut(&self, block_size: usize) -> Result<Self> {
        let mut setup = Setup::clone(&self.setup);
        setup.data.block_size = Some(allowed_block_size(block_size, self.tokenizer().model_max_length)?);
        let fingerprint = fingerprint(&setup, &self.inputs, self.set_aside);
        Ok(Self {
            setup: Arc::new(setup),
            dir: self.dir.clone(),
            inputs: Arc::clone(&self.inputs),
            memory: Arc::clone(&self.memory),
            set_aside: self.set_aside,
            keep: self.keep,
            fingerprint,
            made: Arc::clone(&self.made),
        })
    }

    /// Blocks at the beginning that are for validation; training begins after them.
    pub fn set_aside(&self) -> u64 {
        self.set_aside
    }

    /// BLAKE3 over settings, tokenizer, and names and sizes of all files: what a [`Position`] is one in.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Ids in a block.
    pub fn block_size(&self) -> usize {
        self.setup.data.block_size()
    }

    /// The tokenizer that makes the ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.setup.encoding.tokenizer
    }

    /// A directory that holds the tokenizer's files, in the cache under the hash of all of them.
    pub fn tokenizer_dir(&self) -> Result<PathBuf> {
        let files: Vec<_> = self.tokenizer().files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        tokenizer::keep(&self.setup.reading.cache_dir, &files)
    }

    /// The width of ids, by the tokenizer's largest.
    pub fn width(&self) -> TokenWidth {
        self.setup.encoding.width
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.inputs.len()
    }

    /// What was made for its blocks so far.
    pub fn made(&self) -> &Made {
        &self.made
    }

    /// How many blocks there are in all, if every file has been scanned before and is as it was, and the store holds the
    /// tokens of every partition: then nothing is read but the ends of its files.
    pub fn known_blocks(&self) -> Result<Option<u64>> {
        let Some(store) = self.store() else { return Ok(None) };
        let scans: Option<Vec<FileScan>> = {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            self.inputs.iter().map(|input| memory.get(input).cloned()).collect()
        };
        let Some(scans) = scans else { return Ok(None) };
        let (setup, mut tokens) = (&self.setup, 0);
        for partition in plan::partitions(&scans, &setup.token_settings, setup.reading.tuning.partition_bytes) {
            match store.tokens(&partition.fingerprint, self.width())? {
                Some(found) => tokens += found,
                None => return Ok(None),
            }
        }
        let block_size = self.block_size() as u64;
        let padded = setup.data.remainder.pads(tokens, block_size);
        Ok(Some(tokens / block_size + u64::from(padded)))
    }

    /// The blocks from `from` on, made by threads of their own as they are taken. The beginning of the text is
    /// [`Position::default`].
    ///
    /// # Errors
    /// A position in another text.
    pub fn blocks(&self, from: Position) -> Result<Blocks> {
        if from.file >= self.inputs.len() {
            return Err(cut::moved(&self.dir));
        }
        let setup = &self.setup;
        let finder = Finder {
            setup: Arc::clone(setup),
            inputs: Arc::clone(&self.inputs),
            memory: Arc::clone(&self.memory),
            made: Arc::clone(&self.made),
            from: (from.file, from.start),
            state: ScanState::default(),
        };
        self.blocks_of(finder.partitions(), from)
    }

    fn store(&self) -> Option<&crate::store::Store> {
        self.setup.store.as_ref().filter(|_| !self.setup.data.overwrite_cache)
    }

    fn blocks_of(&self, partitions: Partitions, from: Position) -> Result<Blocks> {
        let unwanted = Arc::new(AtomicBool::new(false));
        let run = self.run(partitions, &unwanted);
        let mut cutter = Cutter::new(&self.setup, &self.dir, from);
        let (sender, receiver) = sync_channel((AHEAD_TOKENS / self.block_size()).max(2));
        let work = move || {
            let mut send = |block: Block| match sender.send(Ok(block)) {
                Ok(()) => Ok(Flow::Continue),
                Err(_) => Ok(Flow::Stop), // nobody takes more
            };
            let ended = run(&mut |event| cutter.take(event, &mut send));
            if let Err(error) = ended.and_then(|()| cutter.finish(&mut send)) {
                let _ = sender.send(Err(error));
            }
        };
        // Its panic reaches the one who takes the blocks; see `Blocks::next`.
        let thread = std::thread::Builder::new()
            .name("tokenmill-live".to_owned())
            .spawn(move || catch_unwind(AssertUnwindSafe(work)).map_err(|panic| said(panic.as_ref())))
            .map_err(Error::storage("start a thread to read", &self.dir))?;
        Ok(Blocks { receiver: Some(receiver), thread: Some(thread), unwanted, dir: self.dir.clone() })
    }

    /// What tells a sink of the partitions' tokens.
    fn run(&self, partitions: Partitions, unwanted: &Arc<AtomicBool>) -> Run {
        let (setup, inputs, made) = (Arc::clone(&self.setup), Arc::clone(&self.inputs), Arc::clone(&self.made));
        // What is kept is there for others while it is made, unless it is to be made anew.
        if let Some(store) = self.store().filter(|_| self.keep).cloned() {
            let unwanted = Arc::clone(unwanted);
            let sharing = Sharing { setup, inputs, store, made, unwanted, patience: share::PATIENCE };
            return Box::new(move |sink| sharing.run(partitions, sink));
        }
        let pipeline = Pipeline {
            inputs,
            partitions,
            rules: setup.reading.rules.clone(),
            encoding: Arc::clone(&setup.encoding),
            store: self.store().cloned(),
            keep: setup.store.clone().filter(|_| self.keep),
            read_bytes: setup.reading.tuning.read_bytes,
            pool: Arc::clone(&setup.reading.pool),
        };
        Box::new(move |sink| {
            pipeline.run(&mut |event| {
                if let Event::Begin { partition, stored: false } = &event {
                    made.tokenized_bytes.fetch_add(partition.text_bytes, Ordering::Relaxed);
                }
                sink(event)
            })
        })
    }
}

/// Takes what is told of partitions.
type Sink<'a> = dyn FnMut(Event) -> Result<Flow> + 'a;

/// Tells it.
type Run = Box<dyn FnOnce(&mut Sink<'_>) -> Result<()> + Send>;

/// Blocks in the order of the text; dropped, the threads behind it end.
#[derive(Debug)]
pub struct Blocks {
    receiver: Option<Receiver<Result<Block>>>,
    thread: Option<JoinHandle<Result<(), String>>>,
    unwanted: Arc<AtomicBool>,
    dir: PathBuf,
}

impl Iterator for Blocks {
    type Item = Result<Block>;

    /// The next block, waiting for it if need be. After an error there is no other.
    fn next(&mut self) -> Option<Result<Block>> {
        if let Ok(block) = self.receiver.as_ref()?.recv() {
            if block.is_err() {
                self.end();
            }
            return Some(block);
        }
        let panic = self.end()?;
        let reason = format!("a fault of this program: {panic}; report this");
        Some(Err(Error::storage("go on reading", &self.dir)(std::io::Error::other(reason))))
    }
}

impl Blocks {
    /// Waits for the threads; what a panic said, if there was one.
    fn end(&mut self) -> Option<String> {
        self.unwanted.store(true, Ordering::Relaxed);
        drop(self.receiver.take());
        self.thread.take()?.join().map_or_else(|panic| Some(said(panic.as_ref())), |ended| ended.err())
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// How many blocks at the beginning are for validation.
fn set_aside(data: &DataArguments) -> Result<u64> {
    let default = DataArguments::default();
    let percentage = data.validation_split_percentage;
    let advice = "divides documents by their number, which --streaming does not know beforehand; the first blocks are set aside instead, as many as --max_eval_samples says (256), or give --validation_file_dir";
    if data.validation_split_mode != ValidationSplitMode::Head {
        return Err(Error::config("--validation_split_mode", advice));
    }
    if data.validation_text()? != ValidationText::None || !data.validation_file.is_empty() || percentage == 0.0 {
        return Ok(0);
    }
    if percentage != default.validation_split_percentage {
        return Err(Error::config("--validation_split_percentage", advice));
    }
    Ok(data.validation_blocks_limit().unwrap_or(SET_ASIDE))
}

fn fingerprint(setup: &Setup, inputs: &[Input], set_aside: u64) -> String {
    let Setup { reading: Reading { rules, .. }, data, encoding, token_settings, pad_token_id, .. } = setup;
    let tokens: &TokenSettings = token_settings;
    let settings = json!([
        Layout::Stream.format_version(),
        data.block_size(),
        tokens,
        rules,
        data.remainder,
        pad_token_id,
        encoding.width,
        set_aside
    ]);
    let mut hasher = blake3::Hasher::new();
    hasher.update(settings.to_string().as_bytes());
    for input in inputs {
        hasher.update(json!([input.relative, input.kind, input.stat.size]).to_string().as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests;
