//! The scan: every file is read once before anything is tokenized, to count its documents, hash them and
//! find where a large file may be cut. Bad input is found here, before hours are spent.
//!
//! Hashes are over documents (length and text of each), so they do not depend on compression, line ends
//! that normalise to the same text, path or times. A scan is remembered under the file's [`Stat`]; a
//! rewritten file with its mtime set back still differs in ctime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokenmill_shared::progress::{Progress, Unit};
use tokenmill_shared::storage::{self, Stat};
use tokenmill_shared::{Error, Result};

use crate::document::{self, Flow, Rules, Start};
use crate::source::{Input, Kind};

/// A run of documents of one file, at most one partition long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Where it begins.
    pub start: Start,
    /// Documents in it.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub text_bytes: u64,
    /// BLAKE3 of its documents, in hexadecimal.
    pub blake3: String,
}

/// What a scan found in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileScan {
    /// BLAKE3 of all its documents, in hexadecimal.
    pub blake3: String,
    /// Its segments in order; one, unless it is large; none, if it holds no document.
    pub segments: Vec<Segment>,
}

impl FileScan {
    /// Documents in the file.
    pub fn documents(&self) -> u64 {
        self.segments.iter().map(|segment| segment.documents).sum()
    }

    /// UTF-8 bytes of their text.
    pub fn text_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.text_bytes).sum()
    }
}

/// BLAKE3 of a run of documents.
#[derive(Debug, Default)]
pub struct DocumentsHasher(blake3::Hasher);

impl DocumentsHasher {
    /// Takes one more document.
    pub fn update(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    /// The hash so far, in hexadecimal.
    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// What the scan depends on besides the file.
#[derive(Debug, Clone)]
pub struct ScanOptions<'a> {
    /// What makes documents.
    pub rules: &'a Rules,
    /// The size at which a file is cut.
    pub partition_bytes: u64,
    /// How much is read at a time.
    pub read_bytes: usize,
    /// Where scans are remembered.
    pub cache_dir: Option<&'a Path>,
    /// Read again whatever is remembered.
    pub rehash: bool,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    stat: Stat,
    scan: FileScan,
}

/// A stat whose ctime is this close to the moment of the scan proves nothing: a later write within the
/// clock's grain (4 ms on ext4, 2 s on FAT) could leave it unchanged.
const RACY_NS: i128 = 2_000_000_000;

/// Scans all inputs of one directory, in parallel, on the current rayon pool. Returns the scans in input
/// order and how many files were read for it.
pub fn scan(dir: &Path, inputs: &[Input], options: &ScanOptions<'_>) -> Result<(Vec<FileScan>, usize)> {
    let memory_path = options.cache_dir.map(|cache| memory_path(cache, dir, options)).transpose()?;
    let remembered = memory_path.as_deref().filter(|_| !options.rehash).map(recall).unwrap_or_default();
    let known = |input: &Input| {
        let entry = remembered.get(input.relative.to_str()?)?;
        (entry.stat == input.stat).then(|| entry.scan.clone())
    };
    let mut scans: Vec<Option<FileScan>> = inputs.iter().map(known).collect();
    let unknown: Vec<usize> = (0..inputs.len()).filter(|index| scans[*index].is_none()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
    let progress =
        Progress::new("scanning", Unit::Bytes, Some(unknown.iter().map(|index| inputs[*index].stat.size).sum()));
    let found: Vec<Result<FileScan>> = unknown
        .par_iter()
        .map(|index| {
            let scan = scan_file(&inputs[*index], options)?;
            progress.add(inputs[*index].stat.size);
            Ok(scan)
        })
        .collect();
    for (index, scan) in unknown.iter().zip(found) {
        scans[*index] = Some(scan?);
    }
    let scans: Vec<FileScan> = scans.into_iter().map(|scan| scan.expect("known or just scanned")).collect();
    if let Some(path) = memory_path.filter(|_| !unknown.is_empty()) {
        let entries: BTreeMap<&str, Remembered> = inputs
            .iter()
            .zip(&scans)
            .filter(|(input, _)| input.stat.ctime_ns < now - RACY_NS)
            .filter_map(|(input, scan)| {
                Some((input.relative.to_str()?, Remembered { stat: input.stat, scan: scan.clone() }))
            })
            .collect();
        storage::replace(&path, &serde_json::to_vec(&entries).expect("plain data"))?;
    }
    Ok((scans, unknown.len()))
}

fn memory_path(cache: &Path, dir: &Path, options: &ScanOptions<'_>) -> Result<PathBuf> {
    let scans = cache.join("scans");
    storage::create_dir_all(&scans)?;
    let dir = storage::canonicalize(dir)?;
    let key = serde_json::json!([1, dir.to_string_lossy(), options.rules, options.partition_bytes]).to_string();
    Ok(scans.join(format!("{}.json", &blake3::hash(key.as_bytes()).to_hex()[..32])))
}

/// A memory that is missing or damaged only costs a scan.
fn recall(path: &Path) -> BTreeMap<String, Remembered> {
    storage::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn scan_file(input: &Input, options: &ScanOptions<'_>) -> Result<FileScan> {
    let mut whole = DocumentsHasher::default();
    let mut segments: Vec<Segment> = Vec::new();
    let mut open: Option<(Segment, DocumentsHasher)> = None;
    let mut next = Start::default();
    document::for_each(input, options.rules, Start::default(), options.read_bytes, &mut |found| {
        let (segment, hasher) = open.get_or_insert_with(|| {
            let segment = Segment { start: next, documents: 0, text_bytes: 0, blake3: String::new() };
            (segment, DocumentsHasher::default())
        });
        whole.update(found.text);
        hasher.update(found.text);
        segment.documents += 1;
        segment.text_bytes += found.text.len() as u64;
        next = Start { at: found.end, records: found.record };
        let length = match input.kind {
            Kind::Text | Kind::JsonLines => found.end.saturating_sub(segment.start.at),
            Kind::Json | Kind::Parquet => segment.text_bytes,
        };
        if length >= options.partition_bytes {
            segments.extend(open.take().map(close));
        }
        Ok(Flow::Continue)
    })?;
    segments.extend(open.map(close));
    if storage::stat(&input.path)? != Some(input.stat) {
        return Err(changed(input));
    }
    Ok(FileScan { blake3: whole.finish(), segments })
}

/// The error for a file that did not hold still.
pub fn changed(input: &Input) -> Error {
    Error::input(
        tokenmill_shared::Location::file(&input.path),
        "changed while it was being read; run the command again when it is at rest",
    )
}

fn close((mut segment, hasher): (Segment, DocumentsHasher)) -> Segment {
    segment.blake3 = hasher.finish();
    segment
}
