//! The scan: every file is read once before anything is tokenized, to count its documents, hash them and
//! find where a large file may be cut. Bad input is found here, before hours are spent.
//!
//! Hashes are over documents (length and text of each), so they do not depend on compression, line ends
//! that normalise to the same text, path or times. A scan is remembered under the file's [`Stat`]; a
//! rewritten file with its mtime set back still differs in ctime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokenmill_shared::config::OnBadRecord;
use tokenmill_shared::progress::{Progress, Unit};
use tokenmill_shared::storage::{self, Stat};
use tokenmill_shared::{Error, Location, Result};

use crate::document::{self, Bad, Document, Extent, Flow, Reads, Reason, Rules, Sink, Start};
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
    /// Documents of it that came in parts.
    #[serde(default, skip_serializing_if = "is_none")]
    pub long: u64,
    /// Records within it of which parts came, and that cannot be used all the same; ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<u64>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// What a scan found in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileScan {
    /// BLAKE3 of all its documents, in hexadecimal.
    pub blake3: String,
    /// Its segments in order; one, unless it is large; none, if it holds no document.
    pub segments: Vec<Segment>,
    /// Records that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
}

/// Records that were left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Which.
    pub reason: Reason,
    /// How many.
    pub count: u64,
    /// The first of them: its place and what is wrong with it.
    pub first: String,
}

/// Counts one more record in `all`; `shown` says which.
fn reject(all: &mut Vec<Rejected>, reason: Reason, shown: impl FnOnce() -> String) {
    match all.iter_mut().find(|rejected| rejected.reason == reason) {
        Some(rejected) => rejected.count += 1,
        None => all.push(Rejected { reason, count: 1, first: shown() }),
    }
}

impl FileScan {
    /// Documents in the file.
    pub fn documents(&self) -> u64 {
        self.segments.iter().map(|segment| segment.documents).sum()
    }

    /// Whether a document of it came in parts.
    pub fn is_in_parts(&self) -> bool {
        self.segments.iter().any(|segment| segment.long > 0)
    }

    /// UTF-8 bytes of their text.
    pub fn text_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.text_bytes).sum()
    }

    /// Records that were left out because they are bad: how many, and which is the first of the last reason.
    pub fn bad(&self) -> Option<(u64, &str)> {
        let bad = self.rejected.iter().filter(|rejected| rejected.reason.is_bad());
        bad.fold(None, |bad, rejected| {
            Some((bad.map_or(0, |(count, _)| count) + rejected.count, rejected.first.as_str()))
        })
    }
}

/// BLAKE3 of runs of documents, and of all of them.
#[derive(Debug, Default, Clone)]
pub struct DocumentsHasher {
    run: blake3::Hasher,
    /// Of the documents up to here, once a run has ended: that of the first run is that of all until then.
    all: Option<blake3::Hasher>,
    /// What is not hashed yet: a document by itself is too short for the vector instructions to be worth much.
    waiting: Vec<u8>,
}

/// Bytes that are hashed in one go.
const HASHED_BYTES: usize = 64 << 10;

impl DocumentsHasher {
    /// Takes one more document, or a part of one.
    pub fn update(&mut self, text: &str, extent: Extent) {
        // No text is so long that its length needs the highest bit.
        let goes_on = u64::from(!extent.ends) << 63;
        self.waiting.extend_from_slice(&(text.len() as u64 | goes_on).to_le_bytes());
        self.waiting.extend_from_slice(text.as_bytes());
        if self.waiting.len() >= HASHED_BYTES {
            self.hash_waiting();
        }
    }

    fn hash_waiting(&mut self) {
        self.run.update(&self.waiting);
        if let Some(all) = &mut self.all {
            all.update(&self.waiting);
        }
        self.waiting.clear();
    }

    /// Ends a run, and gives its hash in hexadecimal.
    pub fn end_run(&mut self) -> String {
        self.hash_waiting();
        let run = std::mem::take(&mut self.run);
        let hash = run.finalize().to_hex().to_string();
        self.all.get_or_insert(run);
        hash
    }

    /// The hash of all documents of runs that ended, in hexadecimal.
    pub fn all(&self) -> String {
        self.all.clone().unwrap_or_default().finalize().to_hex().to_string()
    }
}

/// What the scan depends on besides the file.
#[derive(Debug, Clone)]
pub struct ScanOptions<'a> {
    /// What makes documents.
    pub rules: &'a Rules,
    /// The size at which a file is cut.
    pub partition_bytes: u64,
    /// How files are read.
    pub reads: Reads,
    /// Where scans are remembered.
    pub cache_dir: Option<&'a Path>,
    /// Read again whatever is remembered.
    pub rehash: bool,
    /// What becomes of records that cannot be used.
    pub bad_records: BadRecords<'a>,
    /// Set when nobody wants the scan any more.
    pub unwanted: &'a AtomicBool,
}

/// What becomes of records that cannot be used.
#[derive(Debug, Clone, Copy)]
pub struct BadRecords<'a> {
    /// Whether any may be left out.
    pub policy: OnBadRecord,
    /// How many, over all files.
    pub limit: Option<u64>,
    /// How many were so far.
    pub found: &'a AtomicU64,
}

impl BadRecords<'_> {
    /// Takes note of records that are left out, the last of them with `error`.
    fn note(&self, input: &Input, count: u64, error: &str) -> Result<()> {
        let found = self.found.fetch_add(count, Ordering::Relaxed) + count;
        match self.limit {
            Some(limit) if found > limit => {
                let reason =
                    format!("more than {limit} records cannot be used (--max_bad_records), one of them {error}");
                Err(Error::input(input.at(), reason))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    stat: Stat,
    scan: FileScan,
}

/// A stat whose ctime is this close to the moment of the scan proves nothing: a later write within the
/// clock's grain (4 ms on ext4, 2 s on FAT) could leave it unchanged.
const RACY_NS: i128 = 2_000_000_000;

/// The scans of the files of one directory, as earlier runs found them.
#[derive(Debug)]
pub struct Memory {
    /// Where it is kept, if it is.
    path: Option<PathBuf>,
    files: BTreeMap<String, Remembered>,
    /// Whether a file with bad records is one that must be read again, to fail on them.
    fails_on_bad: bool,
    opened_ns: i128,
    grown: bool,
}

impl Memory {
    /// What is remembered of `dir`. A memory that is missing or damaged only costs a scan.
    pub fn open(dir: &Path, options: &ScanOptions<'_>) -> Result<Self> {
        let path = options.cache_dir.map(|cache| memory_path(cache, dir, options)).transpose()?;
        let recall = |path: &Path| serde_json::from_slice(&storage::read(path).ok()?).ok();
        let files = path.as_deref().filter(|_| !options.rehash).and_then(recall).unwrap_or_default();
        let opened_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
        let fails_on_bad = options.bad_records.policy == OnBadRecord::Fail;
        Ok(Self { path, files, fails_on_bad, opened_ns, grown: false })
    }

    /// The scan of a file that is as it was.
    pub fn get(&self, input: &Input) -> Option<&FileScan> {
        let entry = self.files.get(input.relative.to_str()?)?;
        let counts = !self.fails_on_bad || entry.scan.bad().is_none();
        (entry.stat == input.stat && counts).then_some(&entry.scan)
    }

    /// Remembers a scan, unless the file is so new that a change could go unseen.
    pub fn put(&mut self, input: &Input, scan: &FileScan) {
        if let (Some(name), true) = (input.relative.to_str(), input.stat.ctime_ns < self.opened_ns - RACY_NS) {
            self.files.insert(name.to_owned(), Remembered { stat: input.stat, scan: scan.clone() });
            self.grown = true;
        }
    }

    /// Keeps what is known of `inputs`, if that is more than before.
    pub fn save(&self, inputs: &[Input]) -> Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.grown) else { return Ok(()) };
        let known = inputs.iter().filter(|input| self.get(input).is_some());
        let entries: BTreeMap<&str, &Remembered> = known
            .filter_map(|input| self.files.get_key_value(input.relative.to_str()?))
            .map(|(name, entry)| (name.as_str(), entry))
            .collect();
        storage::replace(path, &serde_json::to_vec(&entries).expect("plain data"))
    }
}

/// The scans of all inputs of a directory, in their order, and how many files were read for it.
pub type Scanned = (Vec<FileScan>, usize);

/// Scans all inputs of one directory, in parallel, on the current rayon pool.
pub fn scan(dir: &Path, inputs: &[Input], options: &ScanOptions<'_>) -> Result<Scanned> {
    let mut memory = Memory::open(dir, options)?;
    for input in inputs {
        if let Some((count, first)) = memory.get(input).and_then(FileScan::bad) {
            options.bad_records.note(input, count, first)?;
        }
    }
    let unknown: Vec<&Input> = inputs.iter().filter(|input| memory.get(input).is_none()).collect();
    // Threads that no other file keeps busy help with those that there are.
    let decoders = options.reads.decoders.div_ceil(unknown.len().max(1));
    let options = &ScanOptions { reads: Reads { decoders, ..options.reads }, ..options.clone() };
    let progress = Progress::new("scanning", Unit::Bytes, Some(unknown.iter().map(|input| input.stat.size).sum()));
    let found: Vec<Result<FileScan>> = unknown
        .par_iter()
        .map(|input| {
            let scan = scan_file(input, options)?;
            progress.add(input.stat.size);
            Ok(scan)
        })
        .collect();
    let found = unknown.iter().zip(found).map(|(input, scan)| Ok((input.relative.as_path(), scan?)));
    let mut found: BTreeMap<&Path, FileScan> = found.collect::<Result<_>>()?;
    let read = found.len();
    let scans = inputs.iter().map(|input| match found.remove(input.relative.as_path()) {
        Some(scan) => {
            memory.put(input, &scan);
            scan
        }
        None => memory.get(input).expect("known, or just scanned").clone(),
    });
    let scans = scans.collect();
    memory.save(inputs)?;
    Ok((scans, read))
}

fn memory_path(cache: &Path, dir: &Path, options: &ScanOptions<'_>) -> Result<PathBuf> {
    let scans = cache.join("scans");
    storage::create_dir_all(&scans)?;
    let dir = storage::canonicalize(dir)?;
    let rules = options.rules;
    let key =
        serde_json::json!([3, dir.to_string_lossy(), rules, rules.part_bytes, options.partition_bytes]).to_string();
    Ok(scans.join(format!("{}.json", &blake3::hash(key.as_bytes()).to_hex()[..32])))
}

fn scan_file(input: &Input, options: &ScanOptions<'_>) -> Result<FileScan> {
    let mut segments = Vec::new();
    let rest = scan_from(input, Start::default(), options, &mut |segment| {
        segments.push(segment);
        Ok(Flow::Continue)
    })?;
    let Rest { blake3, last, rejected } = rest.expect("it was not stopped");
    segments.extend(last);
    Ok(FileScan { blake3, segments, rejected })
}

/// What is left of a file after its last cut.
pub struct Rest {
    /// BLAKE3 of all documents that were scanned, in hexadecimal.
    pub blake3: String,
    /// The last segment; `None` if there is no document.
    pub last: Option<Segment>,
    /// Records that were left out.
    pub rejected: Vec<Rejected>,
}

/// Takes a segment that is cut.
type Cut<'a> = dyn FnMut(Segment) -> Result<Flow> + 'a;

/// Scans the documents of a file from `start` on. Each segment goes to `cut` once a document follows it; `None` if that
/// wants no more.
pub fn scan_from(input: &Input, start: Start, options: &ScanOptions<'_>, cut: &mut Cut<'_>) -> Result<Option<Rest>> {
    let start = if start.is_beginning() { Start::of(input, options.rules, options.reads.bytes)? } else { start };
    let mut scanning = Scanning {
        input,
        options,
        cut,
        hasher: DocumentsHasher::default(),
        open: None,
        next: start,
        full: false,
        stopped: false,
        before_long: None,
        broken: Vec::new(),
        rejected: Vec::new(),
    };
    document::for_each(input, options.rules, start, options.reads, &mut scanning)?;
    let last = scanning.close();
    let Scanning { hasher, stopped, rejected, .. } = scanning;
    if stopped {
        return Ok(None);
    }
    if storage::stat(&input.path)? != Some(input.stat) {
        return Err(changed(input));
    }
    Ok(Some(Rest { blake3: hasher.all(), last, rejected }))
}

/// A file being scanned.
struct Scanning<'a, 'c> {
    input: &'a Input,
    options: &'a ScanOptions<'a>,
    cut: &'a mut Cut<'c>,
    hasher: DocumentsHasher,
    /// The segment that documents are added to.
    open: Option<Segment>,
    /// Where the next document begins.
    next: Start,
    /// Whether the open segment is long enough.
    full: bool,
    stopped: bool,
    /// The number of the long document of which a part came last, and what there was before it.
    before_long: Option<(u64, DocumentsHasher, Option<Segment>)>,
    /// Long records that cannot be used, since the last document.
    broken: Vec<u64>,
    rejected: Vec<Rejected>,
}

impl Scanning<'_, '_> {
    /// Ends the open segment.
    fn close(&mut self) -> Option<Segment> {
        let segment = self.open.take()?;
        Some(Segment { blake3: self.hasher.end_run(), ..segment })
    }
}

impl Sink for Scanning<'_, '_> {
    fn document(&mut self, found: Document<'_>) -> Result<Flow> {
        if self.options.unwanted.load(Ordering::Relaxed) {
            return Err(Error::input(self.input.at(), "was not scanned to its end: nothing more is wanted of it"));
        }
        let Extent { begins, ends } = found.extent;
        if begins
            && self.full
            && let Some(segment) = self.close()
            && (self.cut)(segment)? == Flow::Stop
        {
            self.stopped = true;
            return Ok(Flow::Stop);
        }
        let start = self.next;
        if begins && !ends {
            self.before_long = Some((found.record, self.hasher.clone(), self.open.clone()));
        }
        self.hasher.update(found.text, found.extent);
        let new = || Segment { start, documents: 0, text_bytes: 0, blake3: String::new(), long: 0, broken: Vec::new() };
        let segment = self.open.get_or_insert_with(new);
        segment.text_bytes += found.text.len() as u64;
        if !ends {
            return Ok(Flow::Continue);
        }
        segment.documents += 1;
        segment.long += u64::from(!begins);
        segment.broken.append(&mut self.broken);
        self.before_long = None;
        self.next = Start { at: found.end, records: found.record, ..start };
        let length = match self.input.kind {
            Kind::Text | Kind::JsonLines | Kind::Csv | Kind::Tsv => found.end.saturating_sub(segment.start.at),
            Kind::Json | Kind::Parquet | Kind::Arrow => segment.text_bytes,
        };
        self.full = length >= self.options.partition_bytes;
        Ok(Flow::Continue)
    }

    fn bad(&mut self, bad: Bad<'_>) -> Result<Flow> {
        if self.options.bad_records.policy == OnBadRecord::Fail {
            return Err(*bad.error);
        }
        self.options.bad_records.note(self.input, 1, &bad.error.to_string())?;
        if let Some((record, hasher, open)) = self.before_long.take() {
            (self.hasher, self.open) = (hasher, open);
            self.broken.push(record);
        }
        reject(&mut self.rejected, bad.reason, || bad.error.to_string());
        Ok(Flow::Continue)
    }

    fn left_out(&mut self, reason: Reason, document: &Document<'_>) {
        reject(&mut self.rejected, reason, || Location::record(&self.input.name, document.record).to_string());
    }
}

/// The error for a file that did not hold still.
pub fn changed(input: &Input) -> Error {
    Error::input(input.at(), "changed while it was being read; run the command again when it is at rest")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenmill_shared::config::DataArguments;

    #[test]
    fn what_is_remembered_of_bad_records_does_not_let_them_pass() {
        let dir = tempfile::tempdir().unwrap();
        storage::replace(&dir.path().join("a.jsonl"), b"{\"text\": \"a\"}\nbad\nbad\n").unwrap();
        let mut inputs = crate::source::list(dir.path(), "--train_file_dir").unwrap();
        let old = inputs[0].stat.ctime_ns - 2 * RACY_NS;
        inputs[0].stat.ctime_ns = old;
        let rules = Rules::new(&DataArguments::default()).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let (found, unwanted) = (AtomicU64::new(0), AtomicBool::new(false));
        let options = |policy, limit| ScanOptions {
            rules: &rules,
            partition_bytes: 1 << 20,
            reads: Reads::alone(100),
            cache_dir: Some(cache.path()),
            rehash: false,
            bad_records: BadRecords { policy, limit, found: &found },
            unwanted: &unwanted,
        };
        let memory = |policy| Memory::open(dir.path(), &options(policy, None)).unwrap();
        let rejected = vec![Rejected { reason: Reason::InvalidJson, count: 2, first: "a.jsonl:2: is bad".to_owned() }];
        let scan = FileScan { blake3: String::new(), segments: Vec::new(), rejected };
        let mut writing = memory(OnBadRecord::Skip);
        writing.put(&inputs[0], &scan);
        writing.save(&inputs).unwrap();
        assert_eq!(memory(OnBadRecord::Skip).get(&inputs[0]), Some(&scan));
        assert_eq!(memory(OnBadRecord::Fail).get(&inputs[0]), None);
        // They count as if they had just been found.
        let known = super::scan(dir.path(), &inputs, &options(OnBadRecord::Skip, Some(2))).unwrap();
        assert_eq!((known.0, known.1), (vec![scan], 0));
        found.store(0, Ordering::Relaxed);
        let error = super::scan(dir.path(), &inputs, &options(OnBadRecord::Skip, Some(1))).unwrap_err().to_string();
        assert!(error.contains("--max_bad_records") && error.contains("is bad"), "{error}");
    }
}
