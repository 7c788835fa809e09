//! `prepare --dry_run`: what a run would read, make and take, from the scan and a measured sample.
//!
//! Documents and text are counted, since the scan reads them all; tokens of partitions in the store are known, those of
//! others estimated from [`SAMPLE_BYTES`] of text, taken at places spread evenly over it.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, HumanDuration};
use rayon::prelude::*;
use serde::Serialize;
use tokenmill_shared::config::Packing;
use tokenmill_shared::storage;
use tokenmill_shared::{Error, Result};

use crate::document::{self, Document, Flow, Reads, Usable};
use crate::job::{Job, Output};
use crate::plan::{Part, Partition, Source};
use crate::tokenize::TextBatch;

/// Text that is tokenized to estimate: some seconds of one core.
const SAMPLE_BYTES: u64 = 8 << 20;

/// Places at which it is taken.
const SAMPLE_PLACES: u64 = 64;

/// What packing and writing do at least in a second, in bytes of ids.
const PACK_BYTES_PER_SECOND: f64 = 300e6;

/// What a run would do.
#[derive(Debug, Serialize)]
pub struct Estimate {
    /// Partitions, and how many of them the store holds.
    pub partitions: u64,
    /// Those that would be reused.
    pub partitions_reused: u64,
    /// Documents, duplicates too.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub text_bytes: u64,
    /// Bytes of it that would be tokenized.
    pub bytes_to_tokenize: u64,
    /// Tokens of all documents.
    pub tokens: u64,
    /// Whether these are counted, and not estimated.
    pub tokens_are_counted: bool,
    /// Bytes that the store would grow by.
    pub store_bytes: u64,
    /// Bytes of the dataset.
    pub dataset_bytes: u64,
    /// Wall time in seconds on this machine.
    pub seconds: f64,
}

/// Tokens and time of some text.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    bytes: u64,
    tokens: u64,
    took: Duration,
}

impl Sample {
    fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, tokens: self.tokens + other.tokens, took: self.took + other.took }
    }
}

/// Estimates a run of `job`.
///
/// # Errors
/// Text of the sample that cannot be read.
pub fn estimate(job: &Job) -> Result<Estimate> {
    let store = job.store.as_ref().filter(|_| !job.data.overwrite_cache);
    let width = job.encoding.width;
    let (mut stored_tokens, mut stored) = (0, 0);
    let mut missing: Vec<(&Source, &Part)> = Vec::new();
    let mut missing_documents = 0;
    for (source, _) in &job.sources {
        for partition in &source.partitions {
            match store.map_or(Ok(None), |store| store.tokens(&partition.fingerprint, width))? {
                Some(tokens) => (stored_tokens, stored) = (stored_tokens + tokens, stored + 1),
                None => {
                    missing.extend(partition.parts.iter().map(|part| (source.as_ref(), part)));
                    missing_documents += partition.documents();
                }
            }
        }
    }
    let bytes_to_tokenize: u64 = missing.iter().map(|(_, part)| part.segment.text_bytes).sum();
    let sample = sample(job, &missing, bytes_to_tokenize)?;
    let whole = sample.bytes == bytes_to_tokenize;
    let new_tokens = if whole {
        sample.tokens
    } else {
        (sample.tokens as f64 / (sample.bytes as f64).max(1.0) * bytes_to_tokenize as f64) as u64
    };
    let documents: u64 = job.sources.iter().map(|(source, _)| source.documents).sum();
    let in_partitions: u64 = job.partitions().map(Partition::documents).sum();
    // Partitions at both ends of what is taken are tokenized whole.
    let taken = documents as f64 / (in_partitions as f64).max(1.0);
    let tokens = ((stored_tokens + new_tokens) as f64 * taken).round() as u64;
    let store_bytes = match &job.store {
        Some(_) => new_tokens * width.bytes() as u64 + 12 * missing_documents,
        None => 0,
    };
    let dataset_bytes = dataset_bytes(job, tokens, documents);
    let per_thread = sample.took.as_secs_f64() / (sample.bytes as f64).max(1.0);
    let threads = job.pool.current_num_threads() as f64;
    let tokenizing = per_thread * bytes_to_tokenize as f64 / threads;
    Ok(Estimate {
        partitions: job.partitions().count() as u64,
        partitions_reused: stored,
        documents,
        text_bytes: job.partitions().map(|partition: &Partition| partition.text_bytes).sum(),
        bytes_to_tokenize,
        tokens,
        tokens_are_counted: whole && documents == in_partitions,
        store_bytes,
        dataset_bytes,
        seconds: tokenizing + (store_bytes + dataset_bytes) as f64 / PACK_BYTES_PER_SECOND,
    })
}

/// Tokenizes text at places spread evenly over what is missing; all of it, if it is no more than the sample.
fn sample(job: &Job, missing: &[(&Source, &Part)], bytes: u64) -> Result<Sample> {
    let mut chosen: Vec<(usize, u64)> = Vec::new();
    if bytes <= SAMPLE_BYTES {
        chosen.extend((0..missing.len()).map(|part| (part, u64::MAX)));
    } else {
        let mut before = 0;
        let mut ends = missing.iter().map(|(_, part)| {
            before += part.segment.text_bytes;
            before
        });
        let (mut part, mut end) = (0, ends.next().unwrap_or_default());
        for place in 0..SAMPLE_PLACES {
            let at = bytes / SAMPLE_PLACES * place;
            while end <= at {
                (part, end) = (part + 1, ends.next().unwrap_or(u64::MAX));
            }
            match chosen.last_mut().filter(|(last, _)| *last == part) {
                Some((_, wanted)) => *wanted += SAMPLE_BYTES / SAMPLE_PLACES,
                None => chosen.push((part, SAMPLE_BYTES / SAMPLE_PLACES)),
            }
        }
    }
    let of_part = |&(index, wanted): &(usize, u64)| of_part(job, missing[index], wanted);
    job.pool.install(|| chosen.par_iter().map(of_part).try_reduce(Sample::default, |one, other| Ok(one.and(other))))
}

/// Tokenizes documents of a part until `wanted` bytes of text are.
fn of_part(job: &Job, (source, part): (&Source, &Part), wanted: u64) -> Result<Sample> {
    let (input, segment) = (&source.inputs[part.file], &part.segment);
    let (mut sample, mut left) = (Sample::default(), segment.documents);
    let mut batch = TextBatch::default();
    let each = |found: Document<'_>| {
        // What parts cost beside a whole document is nothing here.
        batch.push(found.text, found.record);
        sample.bytes += found.text.len() as u64;
        left -= u64::from(found.extent.ends);
        let enough = left == 0 || sample.bytes >= wanted;
        if enough || batch.is_full() {
            let began = Instant::now();
            let frame = job.encoding.encode(&std::mem::take(&mut batch), input)?;
            sample.took += began.elapsed();
            sample.tokens += (frame.ids().len() / job.encoding.width.bytes()) as u64;
        }
        Ok(if enough { Flow::Stop } else { Flow::Continue })
    };
    if segment.documents > 0 {
        let mut usable = Usable { each, broken: &segment.broken };
        document::for_each(input, &job.rules, segment.start, Reads::alone(job.read_bytes), &mut usable)?;
    }
    Ok(sample)
}

/// What blocks of so many tokens take on disk, sidecar, index and tokenizer included.
fn dataset_bytes(job: &Job, tokens: u64, documents: u64) -> u64 {
    let block_size = job.data.block_size() as u64;
    let of_tokens = match job.packing {
        Packing::Documents | Packing::MedicalgptDocuments => documents,
        _ => tokens.div_ceil(block_size),
    };
    let limit = job.splits.iter().map(|(_, limit)| limit.unwrap_or(u64::MAX)).fold(0u64, u64::saturating_add);
    let blocks = of_tokens.min(limit);
    let block_bytes = block_size * job.encoding.width.bytes() as u64;
    // Arrow's messages around a record batch of both files and its lines in the index: some 1.4 KB for 256 KiB of ids.
    let batches = (blocks * block_bytes).div_ceil(256 << 10).max(job.splits.len() as u64);
    let (of_document, of_block) = if job.packing == Packing::Concatenate { (4, 4) } else { (12, 12) };
    let tokenizer: u64 = job.encoding.tokenizer.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    blocks * (block_bytes + of_block) + documents * of_document + batches * 1400 + tokenizer + 8192
}

/// Refuses what will not fit on the disks of cache and output.
///
/// # Errors
/// No space, naming the directory, what is needed and what is free.
pub fn check_room(job: &Job, output: &Output, estimate: &Estimate) -> Result<()> {
    let output = match output {
        Output::Directory(dir) => dir.as_path(),
        Output::Cache => job.cache_dir.as_path(),
    };
    let device = |path: &Path| {
        let there = |path: &Path| storage::stat(path).ok().flatten().map(|stat| stat.device);
        if storage::is_remote(path) { None } else { path.ancestors().find_map(there) }
    };
    let one_disk = device(output) == device(&job.cache_dir);
    let both = estimate.store_bytes + estimate.dataset_bytes;
    for (path, needed) in [
        (output, if one_disk { both } else { estimate.dataset_bytes }),
        (job.cache_dir.as_path(), if one_disk { 0 } else { estimate.store_bytes }),
    ] {
        if storage::is_remote(path) {
            continue; // a store does not say how much room it has
        }
        let free = storage::disk(path)?.free_bytes;
        if needed > free {
            let reason = format!("it takes about {}, and {} are free", HumanBytes(needed), HumanBytes(free));
            let full = std::io::Error::new(std::io::ErrorKind::StorageFull, reason);
            return Err(Error::storage("fit what would be written into", path)(full));
        }
    }
    Ok(())
}

impl Estimate {
    /// In a few lines.
    pub fn lines(&self) -> Vec<String> {
        let about = if self.tokens_are_counted { "" } else { "about " };
        vec![
            format!(
                "{} documents, {} of text, in {} partitions, of which {} would be reused",
                HumanCount(self.documents),
                HumanBytes(self.text_bytes),
                self.partitions,
                self.partitions_reused
            ),
            format!(
                "{} to tokenize; {about}{} tokens in all",
                HumanBytes(self.bytes_to_tokenize),
                HumanCount(self.tokens)
            ),
            format!(
                "disk: about {} for the dataset and {} for the store",
                HumanBytes(self.dataset_bytes),
                HumanBytes(self.store_bytes)
            ),
            format!("time: about {}", HumanDuration(Duration::from_secs_f64(self.seconds.max(1.0)))),
        ]
    }
}
