//! `preprocess cache`: what is in the cache, and making room in it.
//!
//! All of it can be made again, so pruning never loses more than time. Token partitions and what the scans found are kept
//! as long as any job runs on the cache; a dataset as long as one is written or trained on. A cache in a store holds token
//! partitions only, which jobs copy before they use them: there nothing is in use, and nothing says when it last was.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::HumanBytes;
use serde::Serialize;
use tokenmill_shared::dataset::{Dataset, MANIFEST};
use tokenmill_shared::storage::{self, Lock};
use tokenmill_shared::{Error, Result};

use crate::store::{IN_USE, TOKENS};

/// The directory of datasets in a cache.
const DATASETS: &str = "datasets";

/// What a part of the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Token partitions.
    Tokens,
    /// Datasets that the trainer prepared by itself.
    Datasets,
    /// What scans found, what `explain` compares with, tokenizers of live text, locks: small.
    Other,
}

/// One thing that is there or not: a token partition, a dataset, a small file.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its file or directory.
    pub path: PathBuf,
    /// Bytes of it.
    pub bytes: u64,
    /// When it was made or last used, in seconds since 1970.
    pub used: u64,
}

/// Everything in the cache, what was used longest ago first.
pub fn list(cache_dir: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let is_remote = storage::is_remote(cache_dir);
    let kinds: &[&str] = if is_remote { &[TOKENS] } else { &[TOKENS, "scans", "runs", "locks", "tokenizers"] };
    for name in kinds {
        let dir = cache_dir.join(name);
        if !is_remote && storage::stat(&dir)?.is_none() {
            continue;
        }
        let kind = if *name == TOKENS { Kind::Tokens } else { Kind::Other };
        for file in storage::list_files(&dir)? {
            let name = file.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Temporaries are somebody's work, or removed by the next job.
            if !name.starts_with('.') {
                entries.push(Entry { kind, path: file.path, bytes: file.stat.size, used: seconds(file.stat.mtime_ns) });
            }
        }
    }
    let datasets = if is_remote { Vec::new() } else { storage::list_directories(&cache_dir.join(DATASETS))? };
    for dir in datasets {
        if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        let files = storage::list_files(&dir)?;
        let newest = files.iter().map(|file| file.stat.mtime_ns).max().unwrap_or_default();
        let used = storage::stat(&beside(&dir, "in-use"))?.map_or(newest, |stat| stat.mtime_ns.max(newest));
        let bytes = files.iter().map(|file| file.stat.size).sum();
        entries.push(Entry { kind: Kind::Datasets, path: dir, bytes, used: seconds(used) });
    }
    entries.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    Ok(entries)
}

/// The size of all of it by kind, a line each.
pub fn lines(entries: &[Entry]) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, name) in [(Kind::Tokens, "token partitions"), (Kind::Datasets, "datasets"), (Kind::Other, "small files")]
    {
        let of_kind: Vec<_> = entries.iter().filter(|entry| entry.kind == kind).collect();
        let bytes = of_kind.iter().map(|entry| entry.bytes).sum();
        let oldest = of_kind.first().map_or(String::new(), |entry| format!(", the oldest used {} ago", age(entry)));
        lines.push(format!("{} {name}, {}{oldest}", of_kind.len(), HumanBytes(bytes)));
    }
    lines
}

/// What goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Criteria {
    /// What was not used for longer.
    pub older_than: Option<Duration>,
    /// What was used longest ago, until no more is left than this.
    pub max_bytes: Option<u64>,
}

/// What pruning did.
#[derive(Debug, Default, Serialize)]
pub struct Pruned {
    /// What is gone.
    pub removed: Vec<Entry>,
    /// What would have gone, and is in use.
    pub in_use: Vec<Entry>,
    /// Bytes that are left.
    pub left_bytes: u64,
}

/// Removes what `criteria` say and no running job needs.
pub fn prune(cache_dir: &Path, criteria: Criteria) -> Result<Pruned> {
    let entries = list(cache_dir)?;
    let mut pruned = Pruned { left_bytes: entries.iter().map(|entry| entry.bytes).sum(), ..Pruned::default() };
    if entries.is_empty() {
        return Ok(pruned);
    }
    let alone = if storage::is_remote(cache_dir) {
        None
    } else {
        let tokens = cache_dir.join(TOKENS);
        storage::create_dir_all(&tokens)?;
        // A job that starts now waits until this is dropped.
        storage::lock_file(&tokens.join(IN_USE), false)?
    };
    let is_free = storage::is_remote(cache_dir) || alone.is_some();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for entry in entries {
        let old = criteria.older_than.is_some_and(|limit| now.saturating_sub(entry.used) >= limit.as_secs());
        let too_much = criteria.max_bytes.is_some_and(|limit| pruned.left_bytes > limit) && entry.bytes > 0;
        if !old && !too_much {
            continue;
        }
        let gone = match entry.kind {
            Kind::Datasets => remove_dataset(&entry.path)?,
            Kind::Tokens | Kind::Other if is_free => storage::remove_file(&entry.path).map(|()| true)?,
            Kind::Tokens | Kind::Other => false,
        };
        if gone {
            pruned.left_bytes -= entry.bytes;
            pruned.removed.push(entry);
        } else {
            pruned.in_use.push(entry);
        }
    }
    Ok(pruned)
}

/// Removes a dataset that is neither written nor read now, its locks with it.
fn remove_dataset(dir: &Path) -> Result<bool> {
    let (writing, reading) = (beside(dir, "lock"), beside(dir, "in-use"));
    let Some(_writing) = storage::lock_file(&writing, false)? else { return Ok(false) };
    let Some(_reading) = storage::lock_file(&reading, false)? else { return Ok(false) };
    storage::remove_dir_all(dir)?;
    storage::remove_file(&reading)?;
    storage::remove_file(&writing)?;
    Ok(true)
}

/// Keeps a dataset of the cache from being pruned for as long as the lock is held.
pub fn in_use(dataset_dir: &Path) -> Result<Lock> {
    let path = beside(dataset_dir, "in-use");
    let lock = storage::lock_file_shared(&path)?;
    storage::touch(&path);
    Ok(lock)
}

/// The dataset of `fingerprint`, if the cache holds it, as this version makes it; it is not pruned as long as the lock is held.
///
/// # Errors
/// One that is damaged.
pub fn dataset(cache_dir: &Path, fingerprint: &str) -> Result<Option<(Dataset, Lock)>> {
    let dir = dataset_dir(cache_dir, fingerprint);
    let is_there = || storage::stat(&dir.join(MANIFEST)).map(|stat| stat.is_some());
    if !is_there()? {
        return Ok(None);
    }
    let lock = in_use(&dir)?;
    // Pruned since.
    if !is_there()? {
        return Ok(None);
    }
    let dataset = Dataset::open(&dir)?;
    let is_same = dataset.manifest().head.fingerprint == fingerprint && dataset.manifest().is_of_this_version();
    Ok(is_same.then_some((dataset, lock)))
}

/// Where the dataset of `fingerprint` is.
pub fn dataset_dir(cache_dir: &Path, fingerprint: &str) -> PathBuf {
    cache_dir.join(DATASETS).join(&fingerprint[..32])
}

/// The right to write a dataset of the cache, waiting for another process that has it.
pub fn writing(dataset_dir: &Path) -> Result<Lock> {
    Ok(storage::lock_file(&beside(dataset_dir, "lock"), true)?.expect("it was waited for"))
}

fn beside(dir: &Path, extension: &str) -> PathBuf {
    dir.with_extension(extension)
}

fn seconds(nanoseconds: i128) -> u64 {
    u64::try_from(nanoseconds / 1_000_000_000).unwrap_or(0)
}

fn age(entry: &Entry) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    indicatif::HumanDuration(Duration::from_secs(now.saturating_sub(entry.used))).to_string()
}

/// A size such as `20G`: a number, and K, M, G or T for powers of 1024.
pub fn bytes(text: &str) -> std::result::Result<u64, String> {
    with_unit(text, &[("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)])
        .ok_or_else(|| "use a number of bytes, or one with K, M, G or T, such as 20G".to_owned())
}

/// A time such as `30d`: a number, and s, m, h, d or w.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    with_unit(text, &[("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)])
        .map(Duration::from_secs)
        .ok_or_else(|| "use a number with s, m, h, d or w, such as 30d".to_owned())
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let (_, unit) = units.iter().find(|(name, _)| *name == &text[digits.len()..])?;
    digits.parse::<u64>().ok()?.checked_mul(*unit)
}

/// Refuses to prune without a criterion.
pub fn criteria(older_than: Option<Duration>, max_bytes: Option<u64>) -> Result<Criteria> {
    if older_than.is_none() && max_bytes.is_none() {
        return Err(Error::config("cache prune", "needs --older_than or --max_size; --older_than 0s removes all"));
    }
    Ok(Criteria { older_than, max_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_store_keeps_its_partitions_from_being_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(dir.path()).unwrap();
        store.create("abcdef").unwrap().publish().unwrap();
        let all = Criteria { older_than: Some(Duration::ZERO), max_bytes: None };
        let pruned = prune(dir.path(), all).unwrap();
        assert_eq!((pruned.removed.len(), pruned.in_use.len()), (0, 1));
        assert!(store.contains("abcdef").unwrap());
        // As it is by the job's other threads.
        let other = store.clone();
        drop(store);
        assert_eq!(prune(dir.path(), all).unwrap().in_use.len(), 1);
        drop(other);
        assert_eq!(prune(dir.path(), all).unwrap().removed.len(), 1);
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(["0", "17", "20G", "3K"].map(bytes), [Ok(0), Ok(17), Ok(20 << 30), Ok(3 << 10)]);
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert!(["", "G", "20 G", "20X", "-1", "99999999999T"].iter().all(|text| bytes(text).is_err()));
        assert!(["30", "d", "1y"].iter().all(|text| duration(text).is_err()));
    }
}
