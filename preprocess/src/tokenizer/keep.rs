//! A tokenizer's files in the cache, for those that want a directory of them.

use std::path::{Path, PathBuf};

use serde_json::json;
use tokenmill_shared::{Result, storage};

/// A directory that holds `files`, names and bytes, in the cache under the hash of all of them.
pub fn keep(cache_dir: &Path, files: &[(&str, &[u8])]) -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in files {
        hasher.update(json!([name, blake3::hash(bytes).to_hex().as_str()]).to_string().as_bytes());
    }
    let dir = cache_dir.join("tokenizers").join(&hasher.finalize().to_hex()[..32]);
    storage::create_dir_all(&dir)?;
    for (name, bytes) in files {
        storage::replace(&dir.join(name), bytes)?;
    }
    Ok(dir)
}
