//! The plan: which documents form which partition, and each partition's fingerprint.
//!
//! A file of one partition or more is cut inside; smaller files are grouped in input order, a group
//! ending when it is full or after a file whose content hash says so (about a quarter of a partition
//! expected), so that an inserted file disturbs its own group only. The output never depends on it.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokenmill_shared::dataset::Split;

use crate::pipeline::Partitions;
use crate::scan::{FileScan, Segment};
use crate::source::{Input, Text};

/// Raised when the same input, tokenizer and settings give other ids than before.
const SEMANTICS_VERSION: u32 = 1;

/// The settings that change ids; with the documents, all that a token partition is a function of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenSettings {
    /// BLAKE3 of tokenizer.json.
    pub tokenizer: String,
    /// Version of the `tokenizers` crate.
    pub tokenizers_version: &'static str,
    /// Whether the special tokens of a call are added.
    pub add_special_tokens: bool,
    /// The id appended after each document that does not end with it.
    pub eos_token_id: Option<u32>,
}

/// Documents of one file in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Index of the file in the list of inputs.
    pub file: usize,
    /// Which of its documents.
    pub segment: Segment,
}

/// A run of consecutive documents: the unit of tokenizing, caching and retry.
#[derive(Debug, Clone)]
pub struct Partition {
    /// Its documents, in order; at least one part.
    pub parts: Vec<Part>,
    /// BLAKE3 of all that its ids are a function of, in hexadecimal.
    pub fingerprint: String,
    /// UTF-8 bytes of its text.
    pub text_bytes: u64,
}

impl Partition {
    fn new(parts: Vec<Part>, settings: &TokenSettings) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&serde_json::to_vec(&(SEMANTICS_VERSION, settings)).expect("plain data"));
        let mut text_bytes = 0;
        for Part { segment, .. } in &parts {
            hasher.update(&segment.documents.to_le_bytes());
            hasher.update(segment.blake3.as_bytes());
            text_bytes += segment.text_bytes;
        }
        Self { parts, fingerprint: hasher.finalize().to_hex().to_string(), text_bytes }
    }

    /// Documents in it.
    pub fn documents(&self) -> u64 {
        self.parts.iter().map(|part| part.segment.documents).sum()
    }
}

/// Forms partitions of files as they become known, in input order; nothing after a file changes the partitions
/// before it.
#[derive(Debug)]
pub struct Grouping<'a> {
    settings: &'a TokenSettings,
    partition_bytes: u64,
    group: Vec<Part>,
    group_bytes: u64,
}

impl<'a> Grouping<'a> {
    /// Begins where a partition begins.
    pub fn new(settings: &'a TokenSettings, partition_bytes: u64) -> Self {
        Self { settings, partition_bytes, group: Vec::new(), group_bytes: 0 }
    }

    /// Takes a file that is not cut. Returns the group, if it ends with it.
    pub fn file(&mut self, file: usize, scan: &FileScan) -> Option<Partition> {
        self.group.extend(scan.segments.iter().map(|segment| Part { file, segment: segment.clone() }));
        self.group_bytes += scan.text_bytes();
        let ends = self.group_bytes >= self.partition_bytes || ends_group(scan, self.partition_bytes);
        if ends { self.end_group() } else { None }
    }

    /// Ends the group: before a file that is cut, and after the last file.
    pub fn end_group(&mut self) -> Option<Partition> {
        self.group_bytes = 0;
        let group = std::mem::take(&mut self.group);
        (!group.is_empty()).then(|| Partition::new(group, self.settings))
    }

    /// A segment of a file that is cut: a partition by itself.
    pub fn segment(&self, file: usize, segment: Segment) -> Partition {
        Partition::new(vec![Part { file, segment }], self.settings)
    }
}

/// One input directory, scanned and partitioned.
#[derive(Debug)]
pub struct Source {
    /// The split all its documents go to; `None` if they are divided.
    pub split: Option<Split>,
    /// The directory that paths of its files are relative to.
    pub root: PathBuf,
    /// Its files, in input order.
    pub inputs: Arc<Vec<Input>>,
    /// Their scans.
    pub scans: Vec<FileScan>,
    /// Its partitions, in input order; those alone that hold a document that is taken.
    pub partitions: Vec<Partition>,
    /// Documents at the beginning of these partitions that are passed over.
    pub passed_over: u64,
    /// Documents that are taken after those.
    pub documents: u64,
}

/// Which documents of a source are taken: those after the first `skip`, at most `take`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// How many are passed over.
    pub skip: u64,
    /// How many are taken; all, if nothing is said.
    pub take: Option<u64>,
}

impl Source {
    /// Partitions scanned files.
    pub fn plan(
        split: Option<Split>,
        text: &Text,
        scans: Vec<FileScan>,
        settings: &TokenSettings,
        partition_bytes: u64,
        window: Window,
    ) -> Self {
        let all: u64 = scans.iter().map(FileScan::documents).sum();
        let begin = window.skip.min(all);
        let end = window.take.map_or(all, |take| begin.saturating_add(take).min(all));
        let (mut before, mut passed_over) = (0, None);
        let mut partitions = partitions(&scans, settings, partition_bytes);
        partitions.retain(|partition| {
            let first = before;
            before += partition.documents();
            let taken = before > begin && first < end;
            if taken {
                passed_over.get_or_insert(begin.saturating_sub(first));
            }
            taken
        });
        Self {
            split,
            root: text.root.clone(),
            inputs: Arc::new(text.inputs.clone()),
            scans,
            partitions,
            passed_over: passed_over.unwrap_or(0),
            documents: end - begin,
        }
    }

    /// Its partitions, for the pipeline.
    pub fn each_partition(self: &Arc<Self>) -> Partitions {
        let source = Arc::clone(self);
        Box::new((0..self.partitions.len()).map(move |index| Ok(source.partitions[index].clone())))
    }
}

/// The partitions of files whose scans are all known.
pub fn partitions(scans: &[FileScan], settings: &TokenSettings, partition_bytes: u64) -> Vec<Partition> {
    let mut grouping = Grouping::new(settings, partition_bytes);
    let mut partitions = Vec::new();
    for (file, scan) in scans.iter().enumerate() {
        if scan.segments.len() > 1 {
            partitions.extend(grouping.end_group());
            partitions.extend(scan.segments.iter().map(|segment| grouping.segment(file, segment.clone())));
        } else {
            partitions.extend(grouping.file(file, scan));
        }
    }
    partitions.extend(grouping.end_group());
    partitions
}

/// True for one file in k, where k such files make a quarter of a partition.
fn ends_group(scan: &FileScan, partition_bytes: u64) -> bool {
    let every = (partition_bytes / 4 / scan.text_bytes().max(1)).max(1);
    u64::from_str_radix(&scan.blake3[..15], 16).is_ok_and(|hash| hash.is_multiple_of(every))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Start;
    use crate::source::{Compression, Kind};
    use std::collections::BTreeSet;
    use tokenmill_shared::storage::Stat;

    fn plan(contents: &[String], partition_bytes: u64) -> Source {
        let stat = Stat { device: 0, inode: 0, size: 0, mtime_ns: 0, ctime_ns: 0 };
        let input = |index: usize| Input {
            path: format!("{index}").into(),
            name: format!("{index}").into(),
            relative: format!("{index}").into(),
            stat,
            kind: Kind::Text,
            compression: Compression::None,
            spooled: None,
        };
        let scan = |text: &String| {
            let blake3 = blake3::hash(text.as_bytes()).to_hex().to_string();
            let segment = Segment {
                start: Start::default(),
                documents: 1,
                text_bytes: 1000,
                blake3: blake3.clone(),
                long: 0,
                broken: Vec::new(),
            };
            FileScan { blake3, segments: vec![segment], rejected: Vec::new() }
        };
        let settings = TokenSettings {
            tokenizer: "t".into(),
            tokenizers_version: "v",
            add_special_tokens: true,
            eos_token_id: None,
        };
        let inputs = (0..contents.len()).map(input).collect();
        let text = Text { root: ".".into(), flag: "--train_file_dir", inputs };
        Source::plan(None, &text, contents.iter().map(scan).collect(), &settings, partition_bytes, Window::default())
    }

    #[test]
    fn an_inserted_file_disturbs_its_own_group_only() {
        let mut contents: Vec<String> = (0..1000).map(|number| format!("file {number}")).collect();
        let before: BTreeSet<_> = plan(&contents, 40_000).partitions.into_iter().map(|part| part.fingerprint).collect();
        contents.insert(500, "new".to_owned());
        let after = plan(&contents, 40_000).partitions;
        let new = after.iter().filter(|part| !before.contains(&part.fingerprint)).count();
        assert!(before.len() > 50, "{} groups", before.len());
        assert!((1..=3).contains(&new), "{new} of {} partitions changed", after.len());
    }

    #[test]
    fn every_document_is_in_exactly_one_partition_in_order() {
        let contents: Vec<String> = (0..100).map(|number| format!("{number}")).collect();
        for partition_bytes in [1, 5_000, 1 << 30] {
            let parts = plan(&contents, partition_bytes).partitions.into_iter().flat_map(|partition| partition.parts);
            assert!(parts.map(|part| part.file).eq(0..100));
        }
    }
}
