#![doc = include_str!("docs/preparing.md")]

mod cache;
pub mod command;
mod decode;
mod doctor;
mod document;
mod encoding;
mod estimate;
mod explain;
mod html;
mod hub_dataset;
mod inspect;
mod job;
pub mod live;
mod model_config;
mod pack;
mod pipeline;
mod plan;
mod quarantine;
mod report;
mod scan;
pub mod serve;
mod source;
mod statistics;
mod store;
mod summary;
mod tokenize;
pub mod tokenizer;
mod trace;

#[cfg(test)]
#[path = "../../tests/mutate.rs"]
mod mutate;
#[cfg(test)]
#[path = "../../tests/night.rs"]
mod night;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indicatif::HumanCount;
use tokenmill_shared::config::{OnBadRecord, Packing};
use tokenmill_shared::dataset::{Dataset, DatasetWriter, MANIFEST, Manifest, ManifestHead, clean_up};
use tokenmill_shared::progress::{Progress, Unit};
use tokenmill_shared::storage::{Lock, Taken};
use tokenmill_shared::{Error, Result, storage};

pub use job::{Output, PrepareOptions, Tuning, cache_dir};
pub use live::Live;
pub use summary::{Prepared, Reuse, Status};

use document::{Extent, Flow};
use job::Job;
use pack::{Assign, Measure, Packer};
use pipeline::{Event, Pipeline};
use plan::Source;
use source::Kind;
use statistics::Sources;

/// Prepares a dataset: from files to packed blocks, tokenizing only what the store does not hold.
pub fn prepare(options: &PrepareOptions) -> Result<Prepared> {
    let began = Instant::now();
    let job = Job::new(options)?;
    let _alone = tokenizing_alone(&job)?;
    let (dir, _writing) = output_dir(&job, &options.output)?;
    let keeps_bad = job.data.on_bad_record == OnBadRecord::Quarantine && job.has_bad_records();
    let quarantine = keeps_bad.then(|| quarantine::write(&job, &dir)).transpose()?;
    let in_use = match &options.output {
        Output::Cache => Some(Arc::new(cache::in_use(&dir)?)),
        Output::Directory(_) => None,
    };
    let unchanged = |dir, manifest| Prepared {
        in_use: in_use.clone(),
        ..Prepared::unchanged(dir, manifest, &job, quarantine.clone(), began.elapsed())
    };
    if let Some(manifest) = already_there(&dir, &job)? {
        return Ok(unchanged(dir, manifest));
    }
    if let Some((manifest, taken)) = take_from_cache(&job, &dir, &options.output)? {
        explain::remember(&job)?;
        return Ok(unchanged(dir, manifest).taken(taken));
    }
    let measured = if job.packing == Packing::BestFit { Some(measure(&job)?) } else { None };
    let Some(dataset) = begin(&job, &dir)? else {
        let manifest = already_there(&dir, &job)?.expect("the other process has written it");
        return Ok(unchanged(dir, manifest));
    };
    let written = match write(&job, dataset, measured) {
        Ok(written) => written,
        Err(error) => {
            // Who finishes the same dataset in a store gives up what others are still uploading.
            let finished = if storage::is_remote(&dir) { already_there(&dir, &job).ok().flatten() } else { None };
            return finished.map(|manifest| unchanged(dir, manifest)).ok_or(error);
        }
    };
    explain::remember(&job)?;
    let Written { manifest, reuse, median_document_tokens, sources } = written;
    let written = unchanged(dir, manifest).written(reuse, median_document_tokens, &job);
    let encoding = Arc::clone(&job.encoding);
    drop(job);
    // To free a large vocabulary takes 70 ms, for which nobody needs to wait.
    std::thread::spawn(move || drop(encoding));
    Ok(Prepared { sources, ..written })
}

/// The writer of the dataset, or `None` if another process has written it.
fn begin(job: &Job, dir: &Path) -> Result<Option<DatasetWriter>> {
    let layout = pack::layout(job.packing);
    DatasetWriter::create(dir, job.data.block_size(), job.encoding.width, layout, &job.fingerprint)
}

/// Makes the dataset of the files of the one that the cache holds; `None` if it has to be written. What is wrong with that one
/// is said, and no reason to fail.
fn take_from_cache(job: &Job, dir: &Path, output: &Output) -> Result<Option<(Manifest, BTreeMap<Taken, u64>)>> {
    if matches!(output, Output::Cache) || job.data.overwrite_cache {
        return Ok(None);
    }
    let take = || {
        let Some((kept, _in_use)) = cache::dataset(&job.cache_dir, &job.fingerprint)? else { return Ok(None) };
        begin(job, dir)?.map(|dataset| dataset.take(&kept)).transpose()
    };
    Ok(take().unwrap_or_else(|error| {
        let kept = cache::dataset_dir(&job.cache_dir, &job.fingerprint);
        eprintln!("{error}; the dataset in {} is not taken, and is made anew", kept.display());
        None
    }))
}

/// A dataset that was written, and what was seen on the way.
struct Written {
    manifest: Manifest,
    reuse: Reuse,
    median_document_tokens: u64,
    sources: Sources,
}

/// Writes the dataset. What was reused is known already if it was `measured`.
fn write(job: &Job, mut dataset: DatasetWriter, measured: Option<Reuse>) -> Result<Written> {
    let mut packer = Packer::new(&dataset, job)?;
    let anew = job.data.overwrite_cache && measured.is_none();
    let mut sources = Sources::default();
    let packed = tokenize_and_pack(job, anew, &mut packer, &mut sources)?;
    let (median_document_tokens, duplicates) = (packer.median_document_tokens(), packer.duplicates());
    packer.finish(&mut dataset, job)?;
    let manifest = commit(dataset, job, duplicates)?;
    Ok(Written { manifest, reuse: measured.unwrap_or(packed), median_document_tokens, sources })
}

/// Packs without writing, and says how full blocks will be. All documents are in the store then.
fn measure(job: &Job) -> Result<Reuse> {
    let mut packer = Packer::measuring(job)?;
    let reuse = tokenize_and_pack(job, job.data.overwrite_cache, &mut packer, &mut Sources::default())?;
    for (split, Measure { blocks, tokens }) in packer.finish_measuring()? {
        let ids = blocks * job.data.block_size() as u64;
        let padding = ids - tokens;
        let percent = 100.0 * padding as f64 / (ids as f64).max(1.0);
        eprintln!(
            "{split}: {} blocks of {} will hold {} tokens and {} of padding ({percent:.2} %)",
            HumanCount(blocks),
            job.data.block_size(),
            HumanCount(tokens),
            HumanCount(padding)
        );
    }
    Ok(reuse)
}

/// Runs all sources through the pipeline. If `anew`, also what the store holds is tokenized.
fn tokenize_and_pack(job: &Job, anew: bool, packer: &mut Packer, sources: &mut Sources) -> Result<Reuse> {
    let mut reuse = Reuse::default();
    for (source, assign) in &job.sources {
        packer.begin_source(source, *assign);
        pack_source(job, source, *assign, anew, packer, &mut reuse, sources)?;
    }
    Ok(reuse)
}

/// Runs one source through the pipeline: new partitions go to the store, all go to the packer.
fn pack_source(
    job: &Job,
    source: &Arc<Source>,
    assign: Assign,
    anew: bool,
    packer: &mut Packer,
    reuse: &mut Reuse,
    sources: &mut Sources,
) -> Result<()> {
    let progress = Progress::new(
        "tokenizing",
        Unit::Bytes,
        Some(source.partitions.iter().map(|partition| partition.text_bytes).sum()),
    );
    let pipeline = Pipeline {
        inputs: Arc::clone(&source.inputs),
        partitions: source.each_partition(),
        rules: job.rules.clone(),
        encoding: Arc::clone(&job.encoding),
        store: job.store.clone().filter(|_| !anew),
        keep: job.store.clone(),
        read_bytes: job.read_bytes,
        pool: Arc::clone(&job.pool),
    };
    let by_file_hash = matches!(assign, Assign::Hash(_));
    let mut files = FileOfDocument::default();
    pipeline.run(&mut |event| {
        match event {
            Event::Begin { partition, stored } => reuse.begin(stored, partition.text_bytes),
            Event::File { file, documents } => files.announce(file, documents),
            Event::Tokens(frame) => {
                progress.add(frame.documents().map(|document| u64::from(document.text_bytes)).sum());
                let of_documents: Vec<_> = frame.documents().map(|document| files.next(document.extent)).collect();
                let hash_of_file = |place: usize| {
                    let file = of_documents[place]?;
                    let is_text = source.inputs[file].kind == Kind::Text;
                    (by_file_hash && is_text).then(|| file_hash(&source.scans[file].blake3))
                };
                let packed = |place: usize, document| {
                    let file = of_documents[place].map_or(Path::new(""), |file| &source.inputs[file].relative);
                    sources.add(file, document);
                };
                return packer.push(&frame, hash_of_file, packed);
            }
            Event::End => {}
        }
        Ok(Flow::Continue)
    })
}

/// Which file the next document is of.
#[derive(Default)]
struct FileOfDocument {
    files: VecDeque<(usize, u64)>,
    last: Option<usize>,
}

impl FileOfDocument {
    fn announce(&mut self, file: usize, documents: u64) {
        self.files.push_back((file, documents));
    }

    fn next(&mut self, extent: Extent) -> Option<usize> {
        if !extent.begins {
            return self.last;
        }
        while self.files.front().is_some_and(|(_, left)| *left == 0) {
            self.files.pop_front();
        }
        let (file, left) = self.files.front_mut()?;
        *left -= 1;
        self.last = Some(*file);
        self.last
    }
}

/// The first four bytes of a hash, as [`store::DocumentEntry::hash`] has them.
fn file_hash(blake3: &str) -> u32 {
    u32::from_str_radix(&blake3[..8], 16).map_or(0, u32::swap_bytes)
}

fn commit(mut dataset: DatasetWriter, job: &Job, duplicates: u64) -> Result<Manifest> {
    for (name, bytes) in &job.encoding.tokenizer.files {
        dataset.add_tokenizer_file(name, bytes)?;
    }
    let rejected = job.rejected().into_iter().map(|(reason, found)| (reason.name(), found.count));
    let duplicates = (duplicates > 0).then(|| (pack::DUPLICATE.to_owned(), duplicates));
    dataset.commit(ManifestHead {
        fingerprint: job.fingerprint.clone(),
        largest_token_id: job.encoding.tokenizer.largest_id(),
        eos_token_id: job.encoding.append,
        pad_token_id: job.pad_token_id,
        settings: job.settings.clone(),
        rejected_records: rejected.chain(duplicates).collect(),
    })
}

/// A lock on the texts that are to be tokenized, so that of several processes one tokenizes them and the others wait and
/// reuse it; that of a killed process is free. `None` if all of it is in the store.
fn tokenizing_alone(job: &Job) -> Result<Option<Lock>> {
    let Some(store) = &job.store else { return Ok(None) };
    let mut missing = job.data.overwrite_cache;
    let mut texts = blake3::Hasher::new();
    for partition in job.partitions() {
        texts.update(partition.fingerprint.as_bytes());
        missing = missing || !store.contains(&partition.fingerprint)?;
    }
    if !missing {
        return Ok(None);
    }
    let locks = job.cache_dir.join("locks");
    storage::create_dir_all(&locks)?;
    let path = locks.join(format!("{}.lock", &texts.finalize().to_hex()[..32]));
    if let Some(lock) = storage::lock_file(&path, false)? {
        return Ok(Some(lock));
    }
    eprintln!("another process is tokenizing the same text; waiting for it");
    storage::lock_file(&path, true)
}

/// Where the dataset goes. In the cache, concurrent runs of the same job wait for the first.
fn output_dir(job: &Job, output: &Output) -> Result<(PathBuf, Option<Lock>)> {
    match output {
        Output::Directory(dir) => Ok((dir.clone(), None)),
        Output::Cache => {
            let dir = cache::dataset_dir(&job.cache_dir, &job.fingerprint);
            storage::create_dir_all(dir.parent().expect("a directory of the cache"))?;
            let lock = cache::writing(&dir)?;
            Ok((dir, Some(lock)))
        }
    }
}

/// The manifest, if `dir` already holds this very dataset; another dataset there is an error.
fn already_there(dir: &Path, job: &Job) -> Result<Option<Manifest>> {
    if storage::stat(&dir.join(MANIFEST))?.is_none() {
        return Ok(None);
    }
    let dataset = Dataset::open(dir)?;
    let manifest = dataset.manifest();
    if manifest.head.fingerprint != job.fingerprint {
        let differs =
            summary::first_difference(&manifest.head.settings, &job.settings).unwrap_or_else(|| "the input".to_owned());
        let reason =
            format!("already holds another dataset (it differs in {differs}); choose another directory or remove it");
        return Err(Error::config(dir.display().to_string(), reason));
    }
    for split in manifest.splits.keys() {
        dataset.split(*split)?;
    }
    clean_up(dir)?;
    Ok(Some(manifest.clone()))
}
