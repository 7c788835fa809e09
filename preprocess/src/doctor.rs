//! `preprocess doctor`: what this machine has, and what to do about what it lacks.

use std::path::Path;

use indicatif::HumanBytes;
use serde::Serialize;
use tokenmill_shared::storage;

/// What was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// What to do, if anything.
    pub remedy: Option<String>,
    /// Whether nothing works like this.
    pub fatal: bool,
}

/// Looks at processor, memory, disks and driver. `dirs`: where cache and output lie, by their flag.
pub fn examine(dirs: &[(&'static str, &Path)]) -> Vec<Finding> {
    let mut findings = vec![processor(), memory(), open_files()];
    for (what, dir) in dirs {
        findings.push(disk(what, dir));
    }
    findings.push(driver());
    findings
}

fn fine(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, found: found.into(), remedy: None, fatal: false }
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    #[cfg(target_arch = "x86_64")]
    let (has, lacks): (Vec<_>, Vec<_>) = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("AVX-512", std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw")),
        ("bf16", std::is_x86_feature_detected!("avx512bf16")),
    ]
    .into_iter()
    .partition(|(_, has)| *has);
    #[cfg(not(target_arch = "x86_64"))]
    let (has, lacks): (Vec<(&str, bool)>, Vec<(&str, bool)>) = (vec![("those of its architecture", true)], Vec::new());
    let names = |list: &[(&str, bool)]| list.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let finding = fine("processor", format!("{cores} cores, {}", names(&has)));
    if lacks.iter().any(|(name, _)| *name == "AVX2") {
        let remedy = "without AVX2 tokenizing and training take some times as long; use a processor from 2013 or later";
        return Finding { remedy: Some(remedy.to_owned()), ..finding };
    }
    finding
}

/// The number in a file of one line, or after a name in one of many.
pub fn number(path: &str, name: &str) -> Option<u64> {
    let text = storage::read_at_most(Path::new(path), 1 << 20).ok()?;
    let text = String::from_utf8(text).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Text in flight, as much ids, and what the threads need: see `docs/preparing.md`.
const WANTED_BYTES: u64 = 1 << 30;

fn memory() -> Finding {
    // /proc has no size, so that a bounded read of it is what there is in it.
    let free = number("/proc/meminfo", "MemAvailable:").map(|kib| kib << 10);
    let limit = number("/sys/fs/cgroup/memory.max", "").filter(|limit| *limit < 1 << 60);
    let Some(free) = free.map(|free| limit.map_or(free, |limit| free.min(limit))) else {
        return fine("memory", "cannot be told on this system");
    };
    let finding = fine("memory", format!("{} may be used", HumanBytes(free)));
    if free < WANTED_BYTES {
        let remedy = "preparing takes up to 1 GiB; end other programs, or use fewer --preprocessing_num_workers";
        return Finding { remedy: Some(remedy.to_owned()), ..finding };
    }
    finding
}

/// A writer has two files of each split open, the store some; a reader every shard of a dataset.
const WANTED_FILES: u64 = 1024;

fn open_files() -> Finding {
    let Some(limit) = number("/proc/self/limits", "Max open files") else {
        return fine("open files", "no limit that can be told");
    };
    let finding = fine("open files", format!("at most {limit}"));
    if limit < WANTED_FILES {
        let remedy = "a dataset of 128 GB has 1000 files; raise the limit with `ulimit -n 65536`";
        return Finding { remedy: Some(remedy.to_owned()), ..finding };
    }
    finding
}

fn disk(what: &'static str, dir: &Path) -> Finding {
    let failed = |error: &dyn std::fmt::Display| Finding {
        what,
        found: error.to_string(),
        remedy: Some(format!("give another directory by {what}")),
        fatal: true,
    };
    let heed = match storage::create_dir_all(dir).and_then(|()| storage::probe(dir)) {
        Ok(heed) => heed,
        Err(error) => return failed(&error),
    };
    match storage::disk(dir) {
        Ok(disk) => {
            let found = format!(
                "{} on {}, {} free; it locks and renames",
                dir.display(),
                disk.kind,
                HumanBytes(disk.free_bytes)
            );
            let low = disk.free_bytes < 1 << 30;
            let low = low.then_some("less than 1 GiB is free; `preprocess cache prune` makes room");
            let remedies: Vec<&str> = heed.into_iter().chain(low).collect();
            Finding { remedy: (!remedies.is_empty()).then(|| remedies.join("\n     ")), ..fine(what, found) }
        }
        Err(error) => failed(&error),
    }
}

fn driver() -> Finding {
    let version = storage::read_at_most(Path::new("/proc/driver/nvidia/version"), 1 << 16);
    match version.ok().and_then(|text| String::from_utf8(text).ok()) {
        Some(text) => fine("NVIDIA driver", text.lines().next().unwrap_or_default().to_owned()),
        None => fine("NVIDIA driver", "none; preparing needs none, and training is on the CPU then"),
    }
}

/// A line for each.
pub fn lines(findings: &[Finding]) -> Vec<String> {
    let line = |finding: &Finding| {
        let mark = if finding.fatal {
            "bad "
        } else if finding.remedy.is_some() {
            "look"
        } else {
            "ok  "
        };
        let remedy = finding.remedy.as_ref().map_or(String::new(), |remedy| format!("\n     {remedy}"));
        format!("{mark} {}: {}{remedy}", finding.what, finding.found)
    };
    findings.iter().map(line).collect()
}
