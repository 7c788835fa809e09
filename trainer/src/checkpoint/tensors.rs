//! Writing safetensors tensor by tensor: sorted names, contiguous offsets, hashed on the way to the disk.
//!
//! The safetensors crate's own `serialize_to_file` needs no less memory but does not sync. Format:
//! u64 header length, JSON header padded with spaces to 8 bytes, data. Source: safetensors README.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use tokenmill_shared::dataset::FileEntry;
use tokenmill_shared::{Error, Result};

use super::hashed::HashedFile;
use crate::ops::cpu::values;

/// Hugging Face's limit of one file, in decimal bytes.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Values turned into bytes at a time.
const PIECE: usize = 1 << 18;

/// Files written, by name.
pub type Written = BTreeMap<String, FileEntry>;

/// Writes `tensors` (f32, or u8 as they are) as `<stem>.safetensors` in `dir`, or as shards and an index above 5 GB.
pub fn write(dir: &Path, stem: &str, tensors: &[(String, &Tensor)]) -> Result<Written> {
    let bytes = |tensor: &Tensor| size_of(tensor) as u64;
    let total: u64 = tensors.iter().map(|(_, tensor)| bytes(tensor)).sum();
    let mut shards: Vec<Vec<&(String, &Tensor)>> = vec![Vec::new()];
    let mut filled = 0;
    for entry in tensors {
        if filled > 0 && filled + bytes(entry.1) > SHARD_BYTES {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes(entry.1);
        shards.last_mut().expect("never empty").push(entry);
    }
    let mut written = Written::new();
    let mut weight_map = Map::new();
    let count = shards.len();
    for (index, mut shard) in shards.into_iter().enumerate() {
        let name = match count {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{count:05}.safetensors", index + 1),
        };
        shard.sort_by(|a, b| a.0.cmp(&b.0));
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        written.insert(name.clone(), write_one(&dir.join(&name), &shard)?);
    }
    if count > 1 {
        weight_map.sort_keys();
        let parameters: usize = tensors.iter().map(|(_, tensor)| tensor.elem_count()).sum();
        let index =
            json!({"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": weight_map});
        let name = format!("{stem}.safetensors.index.json");
        written.insert(name.clone(), super::write_file(dir, &name, &super::pretty(&index))?);
    }
    Ok(written)
}

fn write_one(path: &Path, tensors: &[&(String, &Tensor)]) -> Result<FileEntry> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += size_of(tensor);
        let dtype = if tensor.dtype() == DType::U8 { "U8" } else { "F32" };
        header.insert(name.clone(), json!({"dtype": dtype, "shape": tensor.dims(), "data_offsets": [start, end]}));
    }
    let mut head = Value::Object(header).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut file = HashedFile::create(path)?;
    file.append(&(head.len() as u64).to_le_bytes())?;
    file.append(&head)?;
    let mut buffer = Vec::with_capacity(4 * PIECE);
    for (name, tensor) in tensors {
        let failed = |error: candle_core::Error| Error::config(name.as_str(), error.to_string());
        if tensor.dtype() == DType::U8 {
            file.append(&tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<u8>()).map_err(failed)?)?;
            continue;
        }
        let tensor = values(tensor).map_err(failed)?;
        for piece in tensor.chunks(PIECE) {
            buffer.clear();
            buffer.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
            file.append(&buffer)?;
        }
    }
    file.publish()
}

fn size_of(tensor: &Tensor) -> usize {
    tensor.dtype().size_in_bytes() * tensor.elem_count()
}
