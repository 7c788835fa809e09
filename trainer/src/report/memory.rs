//! Resident memory of this process, as the system counts it.

use std::path::Path;

use indicatif::HumanBytes;
use serde_json::{Map, Value, json};
use tokenmill_shared::storage;

/// A figure of `/proc/self/status` in bytes; `None` where the system does not say.
fn status(field: &str) -> Option<u64> {
    let status = String::from_utf8(storage::read(Path::new("/proc/self/status")).ok()?).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Peak memory for people.
pub fn peak_memory_text() -> String {
    status("VmHWM").map_or_else(|| "unknown".to_owned(), |bytes| HumanBytes(bytes).to_string())
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
        Self { name, before: status("VmRSS") }
    }

    /// The Trainer's figures in bytes: what is held more than before, and what was held beyond that at the peak.
    pub fn end(self) -> Map<String, Value> {
        let (Some(before), Some(now), Some(peak)) = (self.before, status("VmRSS"), status("VmHWM")) else {
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
