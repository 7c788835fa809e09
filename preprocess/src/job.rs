//! From what was asked to what will be done: tokenizer loaded, inputs listed and scanned, partitions and
//! fingerprints known, contradictions refused. Nothing is tokenized or written here but scan memories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use tokenmill_shared::config::{
    self, Compat, DataArguments, HubArguments, Packing, PackingStrategy, Remainder, SampleBy, ValidationSplitMode,
};
use tokenmill_shared::dataset::{Split, TokenWidth};
use tokenmill_shared::{Error, Result, storage};

use crate::decode;
use crate::document::{PART_BYTES, Reads, Reason, Rules};
use crate::encoding::TextEncoding;
use crate::model_config::{check_positions, model_eos};
use crate::pack::{self, Assign};
use crate::plan::{Source, TokenSettings, Window};
use crate::scan::{self, BadRecords, FileScan, Rejected, ScanOptions, Scanned};
use crate::source::{Kind, Text, texts};
use crate::store::Store;
use crate::tokenize::Encoding;
use crate::tokenizer::Tokenizer;

/// Where the dataset goes.
#[derive(Debug, Clone)]
pub enum Output {
    /// Into this directory.
    Directory(PathBuf),
    /// Into the cache, under its fingerprint, to be found again by the next run.
    Cache,
}

/// What to prepare.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The data parameters.
    pub data: DataArguments,
    /// By which right a dataset is fetched from a hub.
    pub hub: HubArguments,
    /// The tokenizer's directory.
    pub tokenizer: PathBuf,
    /// The model's directory, whose end-of-sequence id counts where the tokenizer names none.
    pub model: Option<PathBuf>,
    /// Where the dataset goes.
    pub output: Output,
    /// Sizes that never change the result.
    pub tuning: Tuning,
}

/// Sizes that never change the result; tests vary them to show that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Text in a partition.
    pub partition_bytes: u64,
    /// Bytes asked of the operating system at a time.
    pub read_bytes: usize,
    /// Text after which a document may be cut into parts.
    pub part_bytes: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { partition_bytes: 64 << 20, read_bytes: decode::READ_BYTES, part_bytes: PART_BYTES }
    }
}

/// Everything resolved.
#[derive(Debug)]
pub struct Job {
    /// The data parameters as they apply.
    pub data: DataArguments,
    /// What makes documents.
    pub rules: Rules,
    /// What is done to documents.
    pub encoding: Arc<Encoding>,
    /// What token partitions are a function of besides documents.
    pub token_settings: TokenSettings,
    /// The inputs, with how their documents are divided.
    pub sources: Vec<(Arc<Source>, Assign)>,
    /// The splits, with the blocks each may have at most.
    pub splits: Vec<(Split, Option<u64>)>,
    /// How blocks are made of them.
    pub packing: Packing,
    /// The id that fills a padded block.
    pub pad_token_id: u32,
    /// What the dataset is a function of, for people.
    pub settings: Value,
    /// BLAKE3 over what the dataset is a function of.
    pub fingerprint: String,
    /// The root of the cache.
    pub cache_dir: PathBuf,
    /// The store of token partitions, unless `token_cache` is off.
    pub store: Option<Store>,
    /// Files that had to be read to scan them, of all files.
    pub files_scanned: (usize, usize),
    /// Threads.
    pub pool: Arc<rayon::ThreadPool>,
    /// Bytes asked of the operating system at a time.
    pub read_bytes: usize,
}

/// What reading the text takes, which is known before the tokenizer is.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The data parameters as they were given.
    data: DataArguments,
    /// What makes documents.
    pub rules: Rules,
    /// The root of the cache.
    pub cache_dir: PathBuf,
    /// Threads.
    pub pool: Arc<rayon::ThreadPool>,
    /// Sizes that never change the result.
    pub tuning: Tuning,
}

/// How a scan hears of the bad records that others found, and that it is wanted no more.
#[derive(Debug, Default)]
pub struct ScanState {
    bad_records: AtomicU64,
    unwanted: AtomicBool,
}

impl Reading {
    /// Resolves `options` as far as reading goes.
    pub fn new(options: &PrepareOptions) -> Result<Self> {
        let data = options.data.clone();
        check_percentage(&data)?;
        let rules = Rules::new(&data)?.in_parts(&data, options.tuning.part_bytes);
        let cache_dir = cache_dir(data.cache_dir.as_deref())?;
        // What killed runs left there; the store sees to its own.
        for small in ["scans", "runs"] {
            storage::remove_stale_temporaries(&cache_dir.join(small))?;
        }
        let workers = data.preprocessing_num_workers.unwrap_or(0); // 0 lets rayon take all cores
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|index| format!("tokenmill-{index}"))
            .build()
            .map_err(|error| Error::config("--preprocessing_num_workers", format!("cannot start threads ({error})")))?;
        let tuning = Tuning { partition_bytes: options.tuning.partition_bytes.max(1), ..options.tuning };
        Ok(Self { data, rules, cache_dir, pool: Arc::new(pool), tuning })
    }

    /// What scans depend on besides files.
    pub fn scan_options<'a>(&'a self, state: &'a ScanState) -> ScanOptions<'a> {
        let Self { data, rules, cache_dir, tuning, .. } = self;
        ScanOptions {
            rules,
            partition_bytes: tuning.partition_bytes,
            reads: Reads { bytes: tuning.read_bytes, decoders: self.pool.current_num_threads() },
            cache_dir: data.token_cache.then_some(cache_dir.as_path()),
            rehash: data.rehash,
            bad_records: BadRecords {
                policy: data.on_bad_record,
                limit: data.bad_records_limit(),
                found: &state.bad_records,
            },
            unwanted: &state.unwanted,
        }
    }
}

/// What is resolved before any file is looked at.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What reading takes.
    pub reading: Reading,
    /// The data parameters as they apply.
    pub data: DataArguments,
    /// What is done to documents.
    pub encoding: Arc<Encoding>,
    /// What token partitions are a function of besides documents.
    pub token_settings: TokenSettings,
    /// How blocks are made of them.
    pub packing: Packing,
    /// The id that fills a padded block.
    pub pad_token_id: u32,
    /// The store of token partitions, unless `token_cache` is off.
    pub store: Option<Store>,
}

impl Setup {
    /// Resolves `options`.
    pub fn new(options: &PrepareOptions) -> Result<Self> {
        Self::with(Reading::new(options)?, options)
    }

    /// Resolves the rest of `options`.
    fn with(mut reading: Reading, options: &PrepareOptions) -> Result<Self> {
        let mut data = reading.data.clone();
        let packing = packing(&data)?;
        data.append_eos = data.appends_eos();
        let tokenizer = Tokenizer::open(&options.tokenizer, data.use_fast_tokenizer)?;
        if !tokenizer.can_cut_anywhere() {
            reading.rules.part_bytes = None;
        }
        data.block_size = Some(allowed_block_size(data.block_size(), tokenizer.model_max_length)?);
        if let Some(model) = &options.model {
            check_positions(model, data.block_size())?;
        }
        let append = data.append_eos.then(|| eos(&tokenizer, options)).transpose()?;
        let width = TokenWidth::for_largest_id(tokenizer.largest_id());
        let pad_token_id = tokenizer.pad_token_id.or(tokenizer.eos_token_id).unwrap_or(0);
        let token_settings = TokenSettings {
            tokenizer: tokenizer.blake3.clone(),
            tokenizers_version: "0.23.2",
            add_special_tokens: data.add_special_tokens,
            eos_token_id: append,
        };
        let shared = data.cache_dir.as_deref().filter(|dir| storage::is_remote(dir));
        let in_front = |store: Store| match shared {
            Some(shared) => store.in_front_of(shared),
            None => store,
        };
        let store = data.token_cache.then(|| Store::open(&reading.cache_dir).map(in_front)).transpose()?;
        let encoding = Encoding { tokenizer, add_special_tokens: data.add_special_tokens, append, width };
        Ok(Self { reading, data, encoding: Arc::new(encoding), token_settings, packing, pad_token_id, store })
    }
}

impl Job {
    /// Resolves `options`.
    pub fn new(options: &PrepareOptions) -> Result<Self> {
        let (train_text, validation_text) =
            texts(&options.data, &options.hub, &cache_dir(options.data.cache_dir.as_deref())?)?;
        let texts: Vec<&Text> = validation_text.iter().chain([&train_text]).collect();
        let (setup, scans) = set_up_and_scan(options, &texts)?;
        let read = scans.iter().map(|(_, read)| read).sum();
        let files_scanned = (read, texts.iter().map(|text| text.inputs.len()).sum());
        let mut scans = scans.into_iter().map(|(scans, _)| scans);
        let data = &setup.data;
        let mut open = |text: &Text, split: Option<Split>| {
            let scans = scans.next().expect("one for each text");
            let of_training = Window { skip: data.skip_documents.unwrap_or(0), take: data.take_documents };
            let window = if split == Some(Split::Validation) { Window::default() } else { of_training };
            let documents: u64 = scans.iter().map(FileScan::documents).sum();
            let rejected = scans.iter().flat_map(|scan| &scan.rejected).map(|rejected| rejected.count).sum();
            let partition_bytes = setup.reading.tuning.partition_bytes;
            let source = Source::plan(split, text, scans, &setup.token_settings, partition_bytes, window);
            if documents == 0 {
                return Err(text.without_document(rejected));
            }
            if source.documents == 0 {
                return Err(nothing_taken(window, documents));
            }
            Ok(Arc::new(source))
        };
        let mut sources = Vec::new();
        if let Some(text) = &validation_text {
            sources.push((open(text, Some(Split::Validation))?, Assign::All(Split::Validation)));
        }
        let divided = sources.is_empty() && data.validation_split_percentage > 0.0;
        let train = open(&train_text, (!divided).then_some(Split::Train))?;
        let assign = if divided { divide(data, train.documents)? } else { Assign::All(Split::Train) };
        sources.push((train, assign));

        let mut splits = vec![(Split::Train, data.train_blocks_limit())];
        if divided || sources.len() > 1 {
            splits.push((Split::Validation, data.validation_blocks_limit()));
        }
        let settings = settings(&setup, divided, validation_text.is_some());
        let fingerprint = fingerprint(&settings, &sources, &setup);
        let Setup { reading, data, encoding, token_settings, packing, pad_token_id, store } = setup;
        let Reading { rules, cache_dir, pool, tuning, .. } = reading;
        Ok(Self {
            data,
            rules,
            encoding,
            token_settings,
            sources,
            splits,
            packing,
            pad_token_id,
            settings,
            fingerprint,
            cache_dir,
            store,
            files_scanned,
            pool,
            read_bytes: tuning.read_bytes,
        })
    }

    /// UTF-8 bytes of all documents.
    pub fn text_bytes(&self) -> u64 {
        self.partitions().map(|partition| partition.text_bytes).sum()
    }

    /// The partitions of all sources, in order.
    pub fn partitions(&self) -> impl Iterator<Item = &crate::plan::Partition> {
        self.sources.iter().flat_map(|(source, _)| &source.partitions)
    }

    /// Records that were left out, of all files; the first of a reason is that of the first file that has one.
    pub fn rejected(&self) -> BTreeMap<Reason, Rejected> {
        let mut all: BTreeMap<Reason, Rejected> = BTreeMap::new();
        for rejected in self.sources.iter().flat_map(|(source, _)| &source.scans).flat_map(|scan| &scan.rejected) {
            let new = || Rejected { count: 0, ..rejected.clone() };
            all.entry(rejected.reason).or_insert_with(new).count += rejected.count;
        }
        all
    }

    /// Whether any file has bad records.
    pub fn has_bad_records(&self) -> bool {
        self.sources.iter().flat_map(|(source, _)| &source.scans).any(|scan| scan.bad().is_some())
    }

    /// Files that were found in another encoding than UTF-8, where that was to be found out.
    pub fn encodings(&self) -> BTreeMap<&'static str, Vec<PathBuf>> {
        let mut found: BTreeMap<&'static str, Vec<PathBuf>> = BTreeMap::new();
        if self.rules.encoding != config::Encoding::Auto {
            return found;
        }
        for (source, _) in &self.sources {
            for (input, scan) in source.inputs.iter().zip(&source.scans) {
                let encoding = scan.segments.first().map(|segment| segment.start.encoding).unwrap_or_default();
                if encoding != TextEncoding::Utf8 {
                    found.entry(encoding.name()).or_default().push(input.relative.clone());
                }
            }
        }
        found
    }

    /// Whether lines of text files are documents.
    pub fn documents_are_lines(&self) -> bool {
        let text = |(source, _): &(Arc<Source>, Assign)| source.inputs.iter().any(|input| input.kind == Kind::Text);
        self.rules.sample_by == SampleBy::Line && self.sources.iter().any(text)
    }
}

/// Resolves everything but the text, and scans the text at the same time.
/// Loading a large vocabulary and scanning 200 MB take about as long.
fn set_up_and_scan(options: &PrepareOptions, texts: &[&Text]) -> Result<(Setup, Vec<Scanned>)> {
    let reading = Reading::new(options)?;
    let state = ScanState::default();
    let scan = || {
        let options = reading.scan_options(&state);
        let scan = |text: &&Text| reading.pool.install(|| scan::scan(&text.root, &text.inputs, &options));
        texts.iter().map(scan).collect::<Result<Vec<_>>>()
    };
    let (setup, scans) = std::thread::scope(|scope| {
        let scanning = scope.spawn(scan);
        let setup = Setup::with(reading.clone(), options);
        // What it refuses is not to be said after hours of scanning.
        state.unwanted.store(setup.is_err(), Ordering::Relaxed);
        (setup, scanning.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (setup, scans) = (setup?, scans?);
    // Documents came in parts, and the tokenizer is one that takes them whole.
    let in_parts = |(scans, _): &Scanned| scans.iter().any(FileScan::is_in_parts);
    if setup.reading.rules.part_bytes.is_none() && scans.iter().any(in_parts) {
        let state = ScanState::default();
        let options = setup.reading.scan_options(&state);
        let scan = |text: &&Text| reading.pool.install(|| scan::scan(&text.root, &text.inputs, &options));
        let scans = texts.iter().map(scan).collect::<Result<Vec<_>>>()?;
        return Ok((setup, scans));
    }
    Ok((setup, scans))
}

/// The cache on this machine: `--cache_dir`, or `$XDG_CACHE_HOME/tokenmill` or `~/.cache/tokenmill` if that is not given or
/// is in a store, which is then the one that token partitions are shared in.
pub fn cache_dir(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given.filter(|dir| !storage::is_remote(dir)) {
        return Ok(dir.to_owned());
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let root = root.ok_or_else(|| {
        Error::config("--cache_dir", "is missing, and neither XDG_CACHE_HOME nor HOME is set; give it")
    })?;
    Ok(root.join("tokenmill"))
}

/// How blocks are made, if what that takes is there.
fn packing(data: &DataArguments) -> Result<Packing> {
    let packing = data.packing()?;
    if packing != Packing::Concatenate && data.remainder == Remainder::Pad {
        eprintln!("--remainder has no effect here: it is for documents that are packed one after the other");
    }
    if data.packing_strategy == PackingStrategy::BestFit && !data.token_cache {
        let reason = "is false, and --packing_strategy best_fit measures all documents before it writes, from the cache; leave out one of them";
        return Err(Error::config("--token_cache", reason));
    }
    Ok(packing)
}

fn check_percentage(data: &DataArguments) -> Result<()> {
    let percentage = data.validation_split_percentage;
    if !(0.0..100.0).contains(&percentage) {
        let reason = format!("cannot be {percentage}; use 0 (no validation) to below 100");
        return Err(Error::config("--validation_split_percentage", reason));
    }
    Ok(())
}

/// `min(block_size, model_max_length)`, as the reference scripts do, said when it matters.
pub fn allowed_block_size(block_size: usize, model_max_length: Option<usize>) -> Result<usize> {
    if block_size == 0 {
        return Err(Error::config("--block_size", "cannot be 0; 1024 is usual"));
    }
    match model_max_length {
        Some(longest) if longest < block_size && longest > 0 => {
            eprintln!("--block_size {block_size} is beyond the tokenizer's model_max_length; using {longest}");
            Ok(longest)
        }
        _ => Ok(block_size),
    }
}

fn eos(tokenizer: &Tokenizer, options: &PrepareOptions) -> Result<u32> {
    let named = match (tokenizer.eos_token_id, &options.model) {
        (Some(id), _) => Some(id),
        (None, Some(model)) => model_eos(model)?,
        (None, None) => None,
    };
    // MedicalGPT falls back to the padding token.
    let padding = || tokenizer.pad_token_id.filter(|_| options.data.is_compat(Compat::Medicalgpt));
    let named = named.or_else(padding);
    named.ok_or_else(|| {
        let reason = format!(
            "needs an end-of-sequence token, and {} names none (eos_token in tokenizer_config.json); add it there or pass --append_eos false",
            options.tokenizer.display()
        );
        Error::config("--append_eos", reason)
    })
}

/// The error for a window that no document is in.
fn nothing_taken(window: Window, documents: u64) -> Error {
    if window.take == Some(0) {
        return Error::config("--take_documents", "is 0, which leaves nothing; leave it out to take all");
    }
    let reason = format!("is {}, and the training text has {documents} documents; pass over fewer", window.skip);
    Error::config("--skip_documents", reason)
}

/// Divides `documents` between the splits; every split must get one.
fn divide(data: &DataArguments, documents: u64) -> Result<Assign> {
    let percentage = data.validation_split_percentage;
    if data.validation_split_mode == ValidationSplitMode::Hash {
        return Ok(Assign::Hash(percentage / 100.0));
    }
    // `datasets` rounds the border of `train[:p%]` to the closest document, halves to even.
    let count = (documents as f64 * percentage / 100.0).round_ties_even() as u64;
    if count == 0 || count == documents {
        let (empty, remedy) = if count == 0 {
            ("validation", "a larger percentage, or 0 for no validation")
        } else {
            ("training", "a smaller percentage")
        };
        let reason = format!(
            "{percentage} % of {documents} documents leaves {empty} without any; use {remedy}, or --validation_file_dir"
        );
        return Err(Error::config("--validation_split_percentage", reason));
    }
    Ok(Assign::Head(count))
}

fn settings(setup: &Setup, divided: bool, has_validation: bool) -> Value {
    let Setup { data, token_settings: tokens, reading: Reading { rules, .. }, .. } = setup;
    let validation = if divided {
        json!({"percentage": data.validation_split_percentage, "mode": data.validation_split_mode})
    } else if has_validation {
        json!("validation_file_dir")
    } else {
        Value::Null
    };
    let mut settings = json!({
        "block_size": data.block_size(),
        "tokens": tokens,
        "documents": rules,
        "validation": validation,
        "remainder": data.remainder,
        "max_train_samples": data.train_blocks_limit(),
        "max_eval_samples": data.validation_blocks_limit(),
    });
    // A dataset that was packed before there was a choice is the same today.
    if setup.packing != Packing::Concatenate {
        settings["packing"] = json!(setup.packing);
    }
    if data.deduplicate {
        settings["deduplicate"] = json!(true);
    }
    for (name, documents) in [("skip_documents", data.skip_documents), ("take_documents", data.take_documents)] {
        if let Some(documents) = documents {
            settings[name] = json!(documents);
        }
    }
    settings
}

fn fingerprint(settings: &Value, sources: &[(Arc<Source>, Assign)], setup: &Setup) -> String {
    let Setup { encoding, pad_token_id, .. } = setup;
    let (tokenizer, width) = (&encoding.tokenizer, encoding.width);
    let mut hasher = blake3::Hasher::new();
    hasher.update(
        json!([pack::layout(setup.packing).format_version(), settings, pad_token_id, width]).to_string().as_bytes(),
    );
    // All its files travel with the dataset, not only the one that makes ids.
    for (name, bytes) in &tokenizer.files {
        hasher.update(json!(["tokenizer", name, blake3::hash(bytes).to_hex().as_str()]).to_string().as_bytes());
    }
    for (source, _) in sources {
        hasher.update(json!(["source", source.split]).to_string().as_bytes());
        // Where a file ends matters to `hash` assignment, so it is part of the function.
        for (input, scan) in source.inputs.iter().zip(&source.scans) {
            hasher.update(json!([input.kind, scan.documents(), scan.blake3]).to_string().as_bytes());
            // The manifest counts them.
            for rejected in &scan.rejected {
                hasher.update(json!(["rejected", rejected.reason, rejected.count]).to_string().as_bytes());
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}
