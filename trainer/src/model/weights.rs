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

/// What checkpoints hold beside parameters, by the end of its name: causal masks and rotary frequencies, which are
/// computed, not learned.
const BUFFERS: [&str; 5] =
    ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"];

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
    let places = renamed(places(&shards)?, config);
    resolve_tying(config, &places)?;
    let layout = config.layout();
    let head = format!("{}.weight", layout.head_module);
    let mut known: BTreeSet<&str> = layout.specs.iter().map(|spec| spec.name.as_str()).chain([head.as_str()]).collect();
    let beside: Vec<String> = layout.specs.iter().flat_map(|spec| quantised::companions(&spec.name)).collect();
    known.extend(beside.iter().map(String::as_str));
    let is_buffer = |name: &str| BUFFERS.iter().any(|buffer| name.ends_with(buffer));
    let unknown = places.iter().find(|(name, _)| !known.contains(name.as_str()) && !is_buffer(name));
    if let Some((name, place)) = unknown {
        let reason = format!(
            "tensor {name} is not part of a {} model; it would be lost, so nothing is loaded",
            config.family.architecture()
        );
        return Err(Error::corrupt(&place.shard.path, reason));
    }
    let projections = layout.projections().into_iter().map(|projection| (projection.weight, projection.input_first));
    let projections: BTreeMap<usize, bool> = projections.collect();
    let (mut tensors, mut quantised) = (Vec::new(), QuantisedWeights::new());
    for (index, spec) in layout.specs.iter().enumerate() {
        let mut matrix = match projections.get(&index) {
            Some(input_first) => quantised::read(&places, &spec.name, &spec.shape, *input_first)?,
            None => None,
        };
        if matrix.is_none() {
            let mut values = place_of(dir, &places, &spec.name, &spec.shape)?.read()?;
            dtype.round(&mut values);
            let asked = quantisation.zip(projections.get(&index));
            match asked {
                Some((asked, input_first)) => matrix = Some(asked.of(&values, &spec.shape, *input_first)),
                None => tensors.push(tensor(values, spec.shape.as_slice()).map_err(tensor_error)?),
            }
        }
        if let Some(matrix) = matrix {
            tensors.push(quantised::shape_only(&spec.shape)?);
            quantised.insert(index, matrix);
        }
    }
    Ok((tensors, quantised))
}

/// The places under the names that the layout has: old files of some families leave out what all names begin with, and
/// transformers 5 calls every head `lm_head`.
fn renamed<'a>(places: Places<'a>, config: &Config) -> Places<'a> {
    let layout = config.layout();
    let known: BTreeSet<&str> = layout.specs.iter().map(|spec| spec.name.as_str()).collect();
    let name = |name: String| {
        let whole = format!("{}{name}", config.family.prefix());
        match name.as_str() {
            "lm_head.weight" => format!("{}.weight", layout.head_module),
            _ if known.contains(whole.as_str()) => whole,
            _ => name,
        }
    };
    places.into_iter().map(|(found, place)| (name(found), place)).collect()
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
    let wanted: Vec<_> =
        places.iter().map(|(name, place)| (name.clone(), place.info().shape.clone(), DType::F32)).collect();
    let tensors = read_all(dir, &places, &wanted)?;
    Ok(wanted.into_iter().map(|(name, ..)| name).zip(tensors).collect())
}

/// The shape of every tensor of `<stem>.safetensors` in `dir`, by name.
pub(super) fn tensor_shapes(dir: &Path, stem: &str) -> Result<BTreeMap<String, Vec<usize>>> {
    let shards = open_shards(dir, stem)?;
    Ok(places(&shards)?.into_iter().map(|(name, place)| (name, place.info().shape.clone())).collect())
}

/// A tensor's name in a file.
pub(super) struct TensorPlace<'a> {
    pub(super) shard: &'a Shard,
    name: &'a str,
}

impl TensorPlace<'_> {
    fn info(&self) -> &TensorInfo {
        &self.shard.tensors[self.name]
    }

    /// Its values, of any float type.
    pub(super) fn read(&self) -> Result<Vec<f32>> {
        self.shard.read(self.name, self.info())
    }

    /// Its bytes, whatever its type.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        self.shard.bytes(self.info())
    }
}

/// Which file holds each tensor.
pub(super) type Places<'a> = BTreeMap<String, TensorPlace<'a>>;

fn places(shards: &[Shard]) -> Result<Places<'_>> {
    let mut places = BTreeMap::new();
    for shard in shards {
        for name in shard.tensors.keys() {
            if places.insert(name.clone(), TensorPlace { shard, name }).is_some() {
                return Err(Error::corrupt(
                    &shard.path,
                    format!("tensor {name} is also in another file of this checkpoint"),
                ));
            }
        }
    }
    Ok(places)
}

fn read_all(dir: &Path, places: &Places<'_>, wanted: &[Wanted]) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for (name, shape, dtype) in wanted {
        let place = place_of(dir, places, name, shape)?;
        tensors.push(if *dtype == DType::U8 {
            let bytes = place.shard.read_bytes(place.name, place.info(), StoredDtype::U8, 1)?;
            Tensor::from_vec(bytes, shape.as_slice(), &Device::Cpu).map_err(tensor_error)?
        } else {
            tensor(place.read()?, shape.as_slice()).map_err(tensor_error)?
        });
    }
    Ok(tensors)
}

/// Where the tensor of this name is, whose shape must be this.
fn place_of<'p, 'a>(dir: &Path, places: &'p Places<'a>, name: &str, shape: &[usize]) -> Result<&'p TensorPlace<'a>> {
    let Some(place) = places.get(name) else {
        return Err(Error::corrupt(dir, format!("tensor {name} is in none of the checkpoint's files; fetch it again")));
    };
    let found = &place.info().shape;
    if found != shape {
        let reason = format!("tensor {name} has shape {found:?}, {shape:?} is called for");
        return Err(Error::corrupt(&place.shard.path, reason));
    }
    Ok(place)
}

fn resolve_tying(config: &mut Config, places: &Places<'_>) -> Result<()> {
    let layout = config.layout();
    let of = |module: &str| places.get(&format!("{module}.weight"));
    let (head, embedding) = (of(&layout.head_module), of(&layout.embedding_module));
    let tie = match (head, embedding) {
        (None, _) => true,
        (Some(head), Some(embedding)) if config.tie_word_embeddings => head.read()? == embedding.read()?,
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

    fn read(&self, name: &str, info: &TensorInfo) -> Result<Vec<f32>> {
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
        self.bytes(info)
    }

    /// The bytes of a tensor, whatever its type.
    fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end.saturating_sub(start)];
        self.file.read_exact_at(&mut bytes, self.data_start + start as u64)?;
        Ok(bytes)
    }
}
