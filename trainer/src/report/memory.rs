//! Resident memory of this process, as the system counts it.

use std::path::Path;

use indicatif::HumanBytes;
use serde_json::{Map, Value, json};
use tokenmill_shared::storage::{self, AppendFile};

/// A figure of `/proc/self/status` in bytes; `None` where the system does not say.
fn status(field: &str) -> Option<u64> {
    let status = String::from_utf8(storage::read(Path::new("/proc/self/status")).ok()?).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// What this process holds now, in bytes.
pub fn resident() -> Option<u64> {
    status("VmRSS")
}

/// The most it held since the start, or since [`forget_peak`].
pub fn peak() -> Option<u64> {
    status("VmHWM")
}

/// Begins the search for the peak again, where the system lets us; see proc(5), `clear_refs`.
pub fn forget_peak() {
    let _ = AppendFile::open(Path::new("/proc/self/clear_refs")).and_then(|mut file| file.append(b"5"));
}

/// Bytes that can still be had: of the machine, and of the control group this process is in.
pub fn available() -> Option<u64> {
    let read = |path: &str| String::from_utf8(storage::read(Path::new(path)).ok()?).ok();
    let meminfo = read("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|most| most.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    Some(machine.min(group.unwrap_or(u64::MAX)))
}

/// Peak memory for people.
pub fn peak_memory_text() -> String {
    peak().map_or_else(|| "unknown".to_owned(), |bytes| HumanBytes(bytes).to_string())
}

/// A stage of a run (`init`, `train`, `eval`) whose memory is measured, as `--skip_memory_metrics false` asks.
#[derive(Debug)]
pub struct Stage {
    name: &'static str,
    before: Option<u64>,
}

impl Stage {
    /// Begins a stage.
    pub fn begin(name: &'static str) -> Self {
        Self { name, before: resident() }
    }

    /// The Trainer's figures in bytes: what is held more than before, and what was held beyond that at the peak.
    pub fn end(self) -> Map<String, Value> {
        let (Some(before), Some(now), Some(peak)) = (self.before, resident(), peak()) else {
            return Map::new();
        };
        let name = self.name;
        let mut figures = Map::from_iter([
            (format!("{name}_mem_cpu_alloc_delta"), json!(now as i64 - before as i64)),
            (format!("{name}_mem_cpu_peaked_delta"), json!(peak.saturating_sub(now.max(before)))),
        ]);
        if name == "init" {
            figures.insert("before_init_mem_cpu".to_owned(), json!(before));
        }
        figures
    }
}
