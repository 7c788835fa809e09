//! Loading safetensors: single or sharded, any float type into f32, everything checked before it is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype as StoredDtype, Metadata, TensorInfo};
use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

use super::config::Config;
use super::quantised::{self, Quantisation, QuantisedWeights};
use super::tensor_error;
use crate::arguments::Dtype;
use crate::ops::cpu::tensor;

/// As in the safetensors crate.
const HEADER_LIMIT: u64 = 100_000_000;

/// Name, shape and type of a tensor to be loaded.
pub type Wanted = (String, Vec<usize>, DType);

/// One open file and what its header says.
pub(super) struct Shard {
    file: storage::File,
    pub(super) path: PathBuf,
    tensors: BTreeMap<String, TensorInfo>,
    data_start: u64,
}

/// Loads the tensors of all parameters, in parameter order. Resolves tying: a configuration that ties is
/// obeyed unless the file holds a different head; a head that is missing is tied.
/// Weights of projections that are quantised in the checkpoint, or are to be, come apart; in their place is a tensor
/// without values. The others are rounded to `dtype`.
pub(super) fn load(
    dir: &Path,
    config: &mut Config,
    dtype: Dtype,
    quantisation: Option<Quantisation>,
) -> Result<(Vec<Tensor>, QuantisedWeights)> {
    let shards = open_shards(dir, "model")?;
    let places = places(&shards)?;
    resolve_tying(config, &places)?;
    let specs = config.parameters();
    let mut known: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    if config.tie_word_embeddings {
        known.insert("lm_head.weight");
    }
    let beside: Vec<String> = specs.iter().flat_map(|spec| quantised::companions(&spec.name)).collect();
    known.extend(beside.iter().map(String::as_str));
    // Old llama checkpoints carry rotary buffers; they are computed, not learned.
    let unknown = places.keys().find(|name| !known.contains(**name) && !name.ends_with("rotary_emb.inv_freq"));
    if let Some(name) = unknown {
        let reason = format!(
            "tensor {name} is not part of a {} model; it would be lost, so nothing is loaded",
            config.architecture()
        );
        return Err(Error::corrupt(&places[*name].path, reason));
    }
    let (mut tensors, mut quantised) = (Vec::new(), QuantisedWeights::new());
    for (index, spec) in specs.iter().enumerate() {
        let mut matrix = quantised::read(&places, &spec.name, &spec.shape)?;
        if matrix.is_none() {
            let mut values = shard_of(dir, &places, &spec.name, &spec.shape)?.floats(&spec.name)?;
            dtype.round(&mut values);
            let asked = quantisation.filter(|_| quantised::is_projection(&spec.name, &spec.shape));
            match asked {
                Some(asked) => matrix = Some(asked.of(&values, spec.shape[1])),
                None => tensors.push(tensor(values, spec.shape.as_slice()).map_err(tensor_error)?),
            }
        }
        if let Some(matrix) = matrix {
            let (rows, columns) = matrix.dims();
            tensors.push(quantised::shape_only(rows, columns)?);
            quantised.insert(index, matrix);
        }
    }
    Ok((tensors, quantised))
}

/// Loads the named tensors from `<stem>.safetensors` in `dir`, or its shards, each of the given shape: f32 from any
/// float type, or u8.
pub fn load_tensors(dir: &Path, stem: &str, wanted: &[Wanted]) -> Result<Vec<Tensor>> {
    let shards = open_shards(dir, stem)?;
    read_all(dir, &places(&shards)?, wanted)
}

/// Loads every tensor of `<stem>.safetensors` in `dir`, by name.
pub(super) fn read_all_tensors(dir: &Path, stem: &str) -> Result<BTreeMap<String, Tensor>> {
    let shards = open_shards(dir, stem)?;
    let places = places(&shards)?;
    let wanted: Vec<_> = places
        .iter()
        .map(|(name, shard)| ((*name).to_owned(), shard.tensors[*name].shape.clone(), DType::F32))
        .collect();
    let tensors = read_all(dir, &places, &wanted)?;
    Ok(wanted.into_iter().map(|(name, ..)| name).zip(tensors).collect())
}

/// The shape of every tensor of `<stem>.safetensors` in `dir`, by name.
pub(super) fn tensor_shapes(dir: &Path, stem: &str) -> Result<BTreeMap<String, Vec<usize>>> {
    let shards = open_shards(dir, stem)?;
    Ok(places(&shards)?.into_iter().map(|(name, shard)| (name.to_owned(), shard.tensors[name].shape.clone())).collect())
}

/// Which file holds each tensor.
fn places(shards: &[Shard]) -> Result<BTreeMap<&str, &Shard>> {
    let mut places = BTreeMap::new();
    for shard in shards {
        for name in shard.tensors.keys() {
            if places.insert(name.as_str(), shard).is_some() {
                return Err(Error::corrupt(
                    &shard.path,
                    format!("tensor {name} is also in another file of this checkpoint"),
                ));
            }
        }
    }
    Ok(places)
}

fn read_all(dir: &Path, places: &BTreeMap<&str, &Shard>, wanted: &[Wanted]) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for (name, shape, dtype) in wanted {
        let shard = shard_of(dir, places, name, shape)?;
        tensors.push(if *dtype == DType::U8 {
            let bytes = shard.read_bytes(name, &shard.tensors[name], StoredDtype::U8, 1)?;
            Tensor::from_vec(bytes, shape.as_slice(), &Device::Cpu).map_err(tensor_error)?
        } else {
            tensor(shard.floats(name)?, shape.as_slice()).map_err(tensor_error)?
        });
    }
    Ok(tensors)
}

/// The file that holds the tensor of this name, whose shape must be this.
fn shard_of<'a>(dir: &Path, places: &BTreeMap<&str, &'a Shard>, name: &str, shape: &[usize]) -> Result<&'a Shard> {
    let Some(shard) = places.get(name) else {
        return Err(Error::corrupt(dir, format!("tensor {name} is in none of the checkpoint's files; fetch it again")));
    };
    let found = &shard.tensors[name].shape;
    if found != shape {
        let reason = format!("tensor {name} has shape {found:?}, {shape:?} is called for");
        return Err(Error::corrupt(&shard.path, reason));
    }
    Ok(shard)
}

fn resolve_tying(config: &mut Config, places: &BTreeMap<&str, &Shard>) -> Result<()> {
    let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
    let tie = match (places.get(head), places.get(embedding)) {
        (None, _) => true,
        (Some(head_shard), Some(embedding_shard)) if config.tie_word_embeddings => {
            head_shard.floats(head)? == embedding_shard.floats(embedding)?
        }
        _ => config.tie_word_embeddings,
    };
    if tie != config.tie_word_embeddings {
        config.tie_word_embeddings = tie;
        config.json["tie_word_embeddings"] = Value::Bool(tie);
    }
    Ok(())
}

fn open_shards(dir: &Path, stem: &str) -> Result<Vec<Shard>> {
    let (single, index_name) = (format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json"));
    if storage::stat(&dir.join(&single))?.is_some() {
        return Ok(vec![Shard::open(dir.join(&single))?]);
    }
    let index = dir.join(&index_name);
    if storage::stat(&index)?.is_none() {
        let old = storage::stat(&dir.join("pytorch_model.bin"))?.is_some();
        let hint = if old {
            "; it has a pytorch_model.bin, which is not read yet: save it with save_pretrained(..., safe_serialization=True)"
        } else {
            ""
        };
        return Err(Error::config(dir.display().to_string(), format!("holds neither {single} nor {index_name}{hint}")));
    }
    let json: Value = serde_json::from_slice(&storage::read_at_most(&index, HEADER_LIMIT)?)
        .map_err(|error| Error::corrupt(&index, format!("is not JSON ({error})")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| Error::corrupt(&index, "has no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let mut shards = Vec::new();
    for name in names {
        if name.contains(['/', '\\']) || name.starts_with('.') || !name.ends_with(".safetensors") {
            return Err(Error::corrupt(&index, format!("names a file {name:?} that cannot be a shard")));
        }
        let shard = Shard::open(dir.join(name))?;
        if let Some(lost) =
            map.iter().find(|(tensor, file)| file.as_str() == Some(name) && !shard.tensors.contains_key(*tensor))
        {
            return Err(Error::corrupt(
                &shard.path,
                format!("lacks tensor {}, which {index_name} places there; fetch it again", lost.0),
            ));
        }
        shards.push(shard);
    }
    Ok(shards)
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let file = storage::open(&path)?;
        let size = file.size()?;
        let damaged = |why: String| Error::corrupt(&path, format!("{why}; fetch the checkpoint again"));
        let mut length = [0; 8];
        if size < 8 {
            return Err(damaged(format!("is truncated: {size} bytes are no safetensors file")));
        }
        file.read_exact_at(&mut length, 0)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_LIMIT || header_bytes > size - 8 {
            return Err(damaged(format!(
                "is truncated or damaged: its header says {header_bytes} bytes, the file has {size}"
            )));
        }
        let mut header = vec![0; 8 + header_bytes as usize];
        file.read_exact_at(&mut header, 0)?;
        let metadata: Metadata = serde_json::from_slice(&header[8..])
            .map_err(|error| damaged(format!("has an invalid header ({error})")))?;
        let tensors: BTreeMap<String, TensorInfo> =
            metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        let data_start = 8 + header_bytes;
        let end = tensors.values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        if data_start + end != size {
            return Err(damaged(format!(
                "is truncated or damaged: its tensors end at byte {}, the file at {size}",
                data_start + end
            )));
        }
        Ok(Self { file, path, tensors, data_start })
    }

    /// The values of the tensor `name`, which must be there, in any float type.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let info = &self.tensors[name];
        let width = match info.dtype {
            StoredDtype::F32 => 4,
            StoredDtype::BF16 | StoredDtype::F16 => 2,
            other => {
                return Err(Error::corrupt(
                    &self.path,
                    format!("tensor {name} is {other:?}; f32, bf16 and f16 are read"),
                ));
            }
        };
        let bytes = self.read_bytes(name, info, info.dtype, width)?;
        let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        Ok(match info.dtype {
            StoredDtype::F32 => {
                bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
            }
            StoredDtype::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
            _ => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        })
    }

    /// The bytes of a tensor of type `dtype`, whose values take `width` of them.
    fn read_bytes(&self, name: &str, info: &TensorInfo, dtype: StoredDtype, width: usize) -> Result<Vec<u8>> {
        let (start, end) = info.data_offsets;
        let count: usize = info.shape.iter().product();
        if info.dtype != dtype {
            let reason = format!("tensor {name} is {:?}, {dtype:?} is called for", info.dtype);
            return Err(Error::corrupt(&self.path, reason));
        }
        if end.checked_sub(start) != count.checked_mul(width) {
            return Err(Error::corrupt(
                &self.path,
                format!("tensor {name} has {} bytes for shape {:?}", end.saturating_sub(start), info.shape),
            ));
        }
        self.bytes(name)
    }

    /// The bytes of the tensor `name`, which must be there, whatever its type.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (start, end) = self.tensors[name].data_offsets;
        let mut bytes = vec![0; end.saturating_sub(start)];
        self.file.read_exact_at(&mut bytes, self.data_start + start as u64)?;
        Ok(bytes)
    }
}
