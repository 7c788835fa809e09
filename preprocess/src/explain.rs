//! `preprocess explain`: for every partition, whether it would be reused, and if not, why.
//!
//! The reason comes from what the last finished run over the same directory left behind: its settings and
//! the hash of every file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenmill_shared::{Result, storage};

use crate::job::Job;
use crate::plan::{Partition, Source};
use crate::summary::first_difference;

/// What a finished run leaves behind for each input directory.
#[derive(Default, Serialize, Deserialize)]
struct LastRun {
    settings: Value,
    files: BTreeMap<String, String>,
}

/// One partition, explained.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// The files its documents are from, relative to the input directory: the first and the last.
    pub files: (String, String),
    /// How many files.
    pub file_count: usize,
    /// Documents in it.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub text_bytes: u64,
    /// Its name in the store.
    pub fingerprint: String,
    /// Whether the store holds it.
    pub reused: bool,
    /// Why, or why not.
    pub reason: String,
}

/// Explains every partition of a job, in order.
pub fn explain(job: &Job) -> Result<Vec<Explained>> {
    let mut explained = Vec::new();
    for (source, _) in &job.sources {
        let last = last_run(job, source)?;
        for partition in &source.partitions {
            let name = |part: Option<&crate::plan::Part>| {
                part.map(|part| source.inputs[part.file].relative.display().to_string()).unwrap_or_default()
            };
            let stored = match &job.store {
                Some(store) if !job.data.overwrite_cache => store.contains(&partition.fingerprint)?,
                _ => false,
            };
            explained.push(Explained {
                files: (name(partition.parts.first()), name(partition.parts.last())),
                file_count: partition.parts.len(),
                documents: partition.documents(),
                text_bytes: partition.text_bytes,
                fingerprint: partition.fingerprint.clone(),
                reused: stored,
                reason: if stored {
                    "same documents, tokenizer and settings as before".to_owned()
                } else {
                    why_not(job, source, partition, last.as_ref())
                },
            });
        }
    }
    Ok(explained)
}

fn why_not(job: &Job, source: &Source, partition: &Partition, last: Option<&LastRun>) -> String {
    if job.store.is_none() {
        return "token_cache is off".to_owned();
    }
    if job.data.overwrite_cache {
        return "overwrite_cache is set".to_owned();
    }
    let Some(last) = last else { return "this directory was not prepared before".to_owned() };
    if let Some(field) = first_difference(&last.settings, &settings(job)) {
        return format!("{field} changed since the last run");
    }
    for part in &partition.parts {
        let input = &source.inputs[part.file];
        let name = input.relative.to_string_lossy();
        match last.files.get(name.as_ref()) {
            None => return format!("{name} is new"),
            Some(hash) if *hash != source.scans[part.file].blake3 => return format!("{name} changed"),
            Some(_) => {}
        }
    }
    "its files are the same but were grouped differently, or it was pruned".to_owned()
}

/// Remembers a finished run, so that the next one can be explained.
pub fn remember(job: &Job) -> Result<()> {
    if job.store.is_none() {
        return Ok(());
    }
    for (source, _) in &job.sources {
        let hashes = source.inputs.iter().zip(&source.scans);
        let files =
            hashes.map(|(input, scan)| (input.relative.to_string_lossy().into_owned(), scan.blake3.clone())).collect();
        let run = LastRun { settings: settings(job), files };
        storage::replace(&path(job, source)?, &serde_json::to_vec(&run).expect("plain data"))?;
    }
    Ok(())
}

fn last_run(job: &Job, source: &Source) -> Result<Option<LastRun>> {
    let path = path(job, source)?;
    if storage::stat(&path)?.is_none() {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&storage::read(&path)?).ok())
}

fn settings(job: &Job) -> Value {
    json!({"tokens": job.token_settings, "documents": job.rules})
}

/// The directory's own path is not part of any result, only of this memory's name.
fn path(job: &Job, source: &Source) -> Result<PathBuf> {
    let runs = job.cache_dir.join("runs");
    storage::create_dir_all(&runs)?;
    let root = storage::canonicalize(&source.root)?;
    let name = blake3::hash(root.to_string_lossy().as_bytes()).to_hex();
    Ok(runs.join(format!("{}.json", &name[..32])))
}
