//! `verify`: reads every byte of a dataset and names everything that is wrong.

use std::collections::BTreeSet;
use std::path::Path;

use super::index::INDEX;
use super::manifest::MANIFEST;
use super::{BlockReader, Dataset, FileEntry, Manifest};
use crate::progress::{Progress, Unit};
use crate::{Result, storage};

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damage: one line each, naming the file.
    pub wrong: Vec<String>,
    /// Files the manifest does not know; they do no harm.
    pub unknown: Vec<String>,
}

/// Verifies the dataset at `dir`.
///
/// # Errors
/// The manifest itself is missing, damaged or newer; without it nothing can be said of the rest.
pub fn verify(dir: &Path) -> Result<Report> {
    let manifest = Manifest::load(dir)?;
    let mut report = Report { files: 1, ..Report::default() };
    report.bytes = storage::stat(&dir.join(MANIFEST))?.map_or(0, |stat| stat.size);
    let mut known = BTreeSet::from([MANIFEST.to_owned()]);
    let mut expected: Vec<(String, &FileEntry)> = vec![(INDEX.to_owned(), &manifest.index)];
    expected.extend(manifest.files.iter().map(|(name, entry)| (name.to_string(), entry)));
    for (split, entry) in &manifest.splits {
        expected.extend(entry.shards.iter().map(|shard| (format!("{split}/{}", shard.name), &shard.file)));
    }
    let progress = Progress::new("verifying", Unit::Bytes, Some(expected.iter().map(|(_, entry)| entry.bytes).sum()));
    for (name, entry) in expected {
        let path = dir.join(&name);
        match storage::hash_file(&path) {
            Ok((hash, bytes)) => {
                report.files += 1;
                report.bytes += bytes;
                if bytes != entry.bytes {
                    report.wrong.push(format!(
                        "{}: is {bytes} bytes long, the manifest says {}",
                        path.display(),
                        entry.bytes
                    ));
                } else if hash != entry.blake3 {
                    report.wrong.push(format!("{}: its bytes changed (BLAKE3 is not the manifest's)", path.display()));
                }
            }
            Err(error) => report.wrong.push(error.to_string()),
        }
        progress.add(entry.bytes);
        known.insert(name);
    }
    if report.wrong.is_empty() {
        check_blocks(dir, &manifest, &mut report);
    }
    match storage::list_files(dir) {
        Ok(files) => {
            let names = files.iter().map(|file| file.relative.to_string_lossy().into_owned());
            report.unknown.extend(names.filter(|name| !known.contains(name)));
        }
        Err(error) => report.unknown.push(error.to_string()),
    }
    Ok(report)
}

/// With every hash right, reads every block through the reader: index, shards and manifest must agree,
/// and no id may exceed the tokenizer's largest.
fn check_blocks(dir: &Path, manifest: &Manifest, report: &mut Report) {
    let dataset = match Dataset::open(dir) {
        Ok(dataset) => dataset,
        Err(error) => {
            report.wrong.push(error.to_string());
            return;
        }
    };
    let mut ids = Vec::new();
    for split in manifest.splits.keys() {
        let reader = match dataset.split(*split) {
            Ok(Some(reader)) => reader,
            Ok(None) => continue,
            Err(error) => {
                report.wrong.push(error.to_string());
                continue;
            }
        };
        let largest = manifest.head.largest_token_id;
        let (mut first_beyond, mut beyond, mut tokens) = (None, 0u64, 0);
        for block in 0..reader.len() {
            ids.clear();
            if let Err(error) = reader.read_block(block, &mut ids) {
                report.wrong.push(error.to_string());
            } else if let Some(id) = ids.iter().find(|id| **id > largest) {
                first_beyond.get_or_insert((block, *id));
                beyond += 1;
            }
            match reader.valid_tokens(block) {
                Ok(valid) => tokens += valid as u64,
                Err(error) => report.wrong.push(error.to_string()),
            }
        }
        let in_blocks = manifest.splits[split].ledger.in_blocks;
        if tokens != in_blocks && report.wrong.is_empty() {
            report.wrong.push(format!("split {split} has {tokens} tokens in its blocks, the ledger says {in_blocks}"));
        }
        if let Some((block, id)) = first_beyond {
            report.wrong.push(format!(
                "{beyond} blocks of split {split} hold ids beyond the tokenizer's largest, {largest}; first id {id} in block {block}"
            ));
        }
    }
}
