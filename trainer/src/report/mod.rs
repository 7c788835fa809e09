//! What a run says: the log and who is told, the results files, memory, the curve as a picture.

mod chart;
mod log;
pub mod memory;
mod tensorboard;

use std::path::Path;

use serde_json::{Map, Value};
use tokenmill_shared::{Result, storage};

pub use chart::loss_chart;
pub use log::{Log, Reports};
pub use memory::{Stage, peak_memory_text};

/// Writes `<name>_results.json` and merges its entries into `all_results.json`: sorted, indented by four,
/// as the Trainer writes them.
pub fn write_results(output_dir: &Path, name: &str, results: &Map<String, Value>) -> Result<()> {
    storage::replace(&output_dir.join(format!("{name}_results.json")), &indented(results))?;
    let path = output_dir.join("all_results.json");
    let mut all: Map<String, Value> = match storage::stat(&path)? {
        Some(_) => serde_json::from_slice(&storage::read(&path)?).unwrap_or_default(),
        None => Map::new(),
    };
    all.extend(results.clone());
    storage::replace(&path, &indented(&all))
}

fn indented(results: &Map<String, Value>) -> Vec<u8> {
    let mut results = results.clone();
    results.sort_keys();
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    serde::Serialize::serialize(&results, &mut serializer).expect("plain data");
    bytes
}
