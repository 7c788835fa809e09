//! What preparing asks of a model's configuration: its end-of-sequence id, and how long a block may be.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

/// A configuration beyond this is not one.
const LIMIT: u64 = 16 << 20;

/// Families whose positions are rows of a table, so that there is none beyond the last.
const ABSOLUTE: [&str; 9] =
    ["gpt2", "gpt_bigcode", "gpt_neo", "opt", "openai-gpt", "biogpt", "xglm", "ctrl", "imagegpt"];

/// The end-of-sequence id of the model whose configuration lies in `dir`; of a list, the first.
pub fn model_eos(dir: &Path) -> Result<Option<u32>> {
    for name in ["config.json", "generation_config.json"] {
        let value = &json_file(dir, name)?["eos_token_id"];
        let value = value.as_array().and_then(|list| list.first()).unwrap_or(value);
        if let Some(id) = value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Refuses blocks longer than the table of positions of the model in `dir`, if it has one.
///
/// # Errors
/// [`Error::Config`] with the number of positions.
pub fn check_positions(dir: &Path, block_size: usize) -> Result<()> {
    let config = json_file(dir, "config.json")?;
    let family = config["model_type"].as_str().unwrap_or_default();
    let count = ["n_positions", "max_position_embeddings"].iter().find_map(|field| config[*field].as_u64());
    match count {
        Some(count) if ABSOLUTE.contains(&family) && block_size as u64 > count => {
            let reason = format!(
                "{block_size} is beyond the {count} positions that the model in {} ({family}) has; use --block_size {count} or less",
                dir.display()
            );
            Err(Error::config("--block_size", reason))
        }
        _ => Ok(()),
    }
}

/// A JSON file in `dir`; null if there is none.
pub fn json_file(dir: &Path, name: &str) -> Result<Value> {
    let path: PathBuf = dir.join(name);
    if storage::stat(&path)?.is_none() {
        return Ok(Value::Null);
    }
    let bytes = storage::read_at_most(&path, LIMIT)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::config(path.display().to_string(), format!("is not JSON ({error})")))
}
