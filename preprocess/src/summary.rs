//! What a run of `prepare` did, for people and for programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use serde_json::Value;
use tokenmill_shared::dataset::{Layout, Manifest};
use tokenmill_shared::storage::{Lock, Taken};

use crate::job::Job;
use crate::pack::{DUPLICATE, LONGEST_COUNTED};
use crate::scan::Rejected;
use crate::statistics::Sources;

/// Whether anything was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// A new dataset was written.
    Written,
    /// The directory already held this very dataset.
    NothingToDo,
    /// The cache held it, and its files were taken.
    Taken,
}

/// What came from the store and what was tokenized.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reuse {
    /// Partitions taken from the store: same documents, tokenizer and settings.
    pub partitions_reused: u64,
    /// Partitions tokenized.
    pub partitions_tokenized: u64,
    /// UTF-8 bytes of text tokenized.
    pub bytes_tokenized: u64,
}

impl Reuse {
    pub(crate) fn begin(&mut self, stored: bool, text_bytes: u64) {
        if stored {
            self.partitions_reused += 1;
        } else {
            self.partitions_tokenized += 1;
            self.bytes_tokenized += text_bytes;
        }
    }
}

/// The result of [`crate::prepare`].
#[derive(Debug, Clone, Serialize)]
pub struct Prepared {
    /// Where the dataset is.
    pub dataset_dir: PathBuf,
    /// Whether it was written now.
    pub status: Status,
    /// What it is.
    pub manifest: Manifest,
    /// What was reused.
    pub reuse: Reuse,
    /// Files that were taken from the dataset in the cache, by how.
    pub taken: BTreeMap<Taken, u64>,
    /// Files read to scan them; the others were known by size and times.
    pub files_scanned: usize,
    /// Input files.
    pub files: usize,
    /// UTF-8 bytes of all documents.
    pub text_bytes: u64,
    /// Files that `--encoding auto` found in another encoding than UTF-8, by its name.
    pub encodings: BTreeMap<&'static str, Vec<PathBuf>>,
    /// Records that were left out, by reason.
    pub bad_records: Vec<Rejected>,
    /// The file that holds them, with `--on_bad_record quarantine`.
    pub quarantine: Option<PathBuf>,
    /// Median tokens of a document, if documents were packed now.
    pub median_document_tokens: Option<u64>,
    /// Share of all tokens that are appended end-of-sequence tokens, at most.
    pub eos_share: Option<f64>,
    /// Whether lines look like pieces of one text.
    pub lines_look_like_pieces: bool,
    /// What came from where, if documents were packed now.
    pub sources: Sources,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Of a dataset in the cache: as long as this is held, it is not pruned.
    #[serde(skip)]
    pub in_use: Option<Arc<Lock>>,
}

/// Files that are named where many are alike.
const SHOWN_FILES: usize = 5;

/// Lines shorter than this at the median are rarely texts of their own.
const SHORT_LINE_TOKENS: u64 = 48;

impl Prepared {
    pub(crate) fn unchanged(
        dataset_dir: PathBuf,
        manifest: Manifest,
        job: &Job,
        quarantine: Option<PathBuf>,
        took: Duration,
    ) -> Self {
        Self {
            dataset_dir,
            status: Status::NothingToDo,
            manifest,
            reuse: Reuse::default(),
            taken: BTreeMap::new(),
            files_scanned: job.files_scanned.0,
            files: job.files_scanned.1,
            text_bytes: job.text_bytes(),
            encodings: job.encodings(),
            bad_records: job.rejected().into_values().collect(),
            quarantine,
            median_document_tokens: None,
            eos_share: None,
            lines_look_like_pieces: false,
            sources: Sources::default(),
            seconds: took.as_secs_f64(),
            in_use: None,
        }
    }

    /// The same where the dataset is new.
    pub(crate) fn written(self, reuse: Reuse, median: u64, job: &Job) -> Self {
        let splits = self.manifest.splits.values();
        let (documents, tokens) =
            splits.fold((0, 0), |(documents, tokens), split| (documents + split.documents, tokens + split.ledger.read));
        Self {
            status: Status::Written,
            reuse,
            median_document_tokens: Some(median),
            eos_share: self.manifest.head.eos_token_id.map(|_| documents as f64 / (tokens as f64).max(1.0)),
            lines_look_like_pieces: job.documents_are_lines() && median < SHORT_LINE_TOKENS,
            ..self
        }
    }

    /// The same where the dataset was taken from the cache.
    pub(crate) fn taken(self, taken: BTreeMap<Taken, u64>) -> Self {
        Self { status: Status::Taken, taken, ..self }
    }

    /// What was done.
    fn status_line(&self) -> String {
        let dir = self.dataset_dir.display();
        match self.status {
            Status::NothingToDo => format!("nothing to do: {dir} already holds this dataset"),
            Status::Taken => {
                let how = |(taken, files): (&Taken, &u64)| {
                    let how = match taken {
                        Taken::Cloned => "cloned (reflink)",
                        Taken::Linked => "linked (hard link)",
                        Taken::Copied => "copied",
                    };
                    format!("{files} files {how}")
                };
                let how: Vec<_> = self.taken.iter().map(how).collect();
                format!(
                    "taken from the cache, which holds this dataset: {}; {:.1} s in all",
                    how.join(", "),
                    self.seconds
                )
            }
            Status::Written => {
                let Reuse { partitions_reused: reused, partitions_tokenized: tokenized, bytes_tokenized } = self.reuse;
                format!(
                    "partitions: {tokenized} tokenized ({}), {reused} reused (same documents, tokenizer and settings); {:.1} s in all",
                    HumanBytes(bytes_tokenized),
                    self.seconds
                )
            }
        }
    }

    /// What was found out about the input and is not as usual.
    fn input_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (encoding, files) in &self.encodings {
            let more = if files.len() > SHOWN_FILES { ", …" } else { "" };
            let names: Vec<_> = files.iter().take(SHOWN_FILES).map(|file| file.display().to_string()).collect();
            lines.push(format!("{} of {} files are {encoding}: {}{more}", files.len(), self.files, names.join(", ")));
        }
        for bad in &self.bad_records {
            let count = HumanCount(bad.count);
            lines.push(format!("left out: {count} records ({}), the first {}", bad.reason.name(), bad.first));
        }
        if let Some(duplicates) = self.manifest.head.rejected_records.get(DUPLICATE) {
            lines.push(format!("left out: {} documents with the tokens of an earlier one", HumanCount(*duplicates)));
        }
        if let Some(path) = &self.quarantine {
            lines.push(format!("the records that were left out are in {}", path.display()));
        }
        lines
    }

    /// The result in a few lines.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.status_line()];
        let known = self.files - self.files_scanned;
        let others = if known > 0 { format!("; {known} were known by size and times") } else { String::new() };
        lines.push(format!("scanned {} of {} files{others}", self.files_scanned, self.files));
        lines.extend(self.input_lines());
        for (name, split) in &self.manifest.splits {
            let ledger = &split.ledger;
            let rejected: u64 = ledger.rejected.values().sum();
            lines.push(format!(
                "{name}: {} blocks of {} from {} documents; tokens read {} = in blocks {} + remainder {} + left out {}",
                HumanCount(split.blocks),
                self.manifest.block_size,
                HumanCount(split.documents),
                HumanCount(ledger.read),
                HumanCount(ledger.in_blocks),
                HumanCount(ledger.remainder),
                HumanCount(rejected),
            ));
        }
        lines.extend(self.padding());
        if let (Some(median), Some(share)) = (self.median_document_tokens, self.eos_share) {
            let at_least = if median >= LONGEST_COUNTED as u64 { "at least " } else { "" };
            lines.push(format!(
                "a document has {at_least}{median} tokens at the median; end-of-sequence tokens are {:.1} % of all",
                100.0 * share
            ));
        }
        if self.lines_look_like_pieces {
            lines.push("every line is a document here, and they are short; if they are pieces of longer texts, use --sample_by document".to_owned());
        }
        if self.status != Status::NothingToDo {
            lines.push(format!("written to {}", self.dataset_dir.display()));
        }
        lines
    }
}

impl Prepared {
    /// How much of the blocks is padding, where any may have some.
    fn padding(&self) -> Option<String> {
        let manifest = &self.manifest;
        let blocks: u64 = manifest.splits.values().map(|split| split.blocks).sum();
        let tokens: u64 = manifest.splits.values().map(|split| split.ledger.in_blocks).sum();
        let ids = (blocks * manifest.block_size as u64) as f64;
        (manifest.layout == Layout::Blocks && blocks > 0)
            .then(|| format!("padding is {:.2} % of all ids; it is never a label", 100.0 * (ids - tokens as f64) / ids))
    }
}

/// The path of the first setting in which `new` differs from `old`.
pub fn first_difference(old: &Value, new: &Value) -> Option<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => new.iter().find_map(|(key, value)| {
            let inner = first_difference(old.get(key).unwrap_or(&Value::Null), value)?;
            Some(if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") })
        }),
        _ => (old != new).then(String::new),
    }
}
