//! Loading weights: one file or shards of them, any float type into f32, everything checked before it is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

use super::config::Config;
use super::quantised::{self, Quantisation, QuantisedWeights};
use super::tensor_error;
use super::tensor_file::TensorFile;
use crate::arguments::Dtype;
use crate::ops::cpu::tensor;

/// An index beyond this is none.
const INDEX_LIMIT: u64 = 100_000_000;

/// What the files of these names were called before safetensors.
const OLD_NAMES: [(&str, &str); 2] = [("model", "pytorch_model"), ("adapter_model", "adapter_model")];

/// Name, shape and type of a tensor to be loaded.
pub type Wanted = (String, Vec<usize>, DType);

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
    let files = open_files(dir, "model")?;
    let places = renamed(places(&files)?, config);
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
        return Err(Error::corrupt(&place.file.path, reason));
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

/// Loads the named tensors from `<stem>.safetensors` in `dir`, or its shards, or what they were before safetensors, each
/// of the given shape: f32 from any float type, or u8.
pub fn load_tensors(dir: &Path, stem: &str, wanted: &[Wanted]) -> Result<Vec<Tensor>> {
    let files = open_files(dir, stem)?;
    read_all(dir, &places(&files)?, wanted)
}

/// Loads every tensor of `<stem>.safetensors` in `dir`, or its older form, by name.
pub(super) fn read_all_tensors(dir: &Path, stem: &str) -> Result<BTreeMap<String, Tensor>> {
    let files = open_files(dir, stem)?;
    let places = places(&files)?;
    let wanted: Vec<_> =
        places.iter().map(|(name, place)| (name.clone(), place.shape().to_vec(), DType::F32)).collect();
    let tensors = read_all(dir, &places, &wanted)?;
    Ok(wanted.into_iter().map(|(name, ..)| name).zip(tensors).collect())
}

/// The shape of every tensor there, by name.
pub(super) fn tensor_shapes(dir: &Path, stem: &str) -> Result<BTreeMap<String, Vec<usize>>> {
    let files = open_files(dir, stem)?;
    Ok(places(&files)?.into_iter().map(|(name, place)| (name, place.shape().to_vec())).collect())
}

/// A tensor's name in a file.
pub(super) struct TensorPlace<'a> {
    pub(super) file: &'a TensorFile,
    name: &'a str,
}

impl TensorPlace<'_> {
    fn shape(&self) -> &[usize] {
        self.file.shape(self.name)
    }

    /// Its values, of any float type.
    pub(super) fn read(&self) -> Result<Vec<f32>> {
        self.file.read(self.name)
    }

    /// Its bytes, whatever its type.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        self.file.bytes(self.name)
    }
}

/// Which file holds each tensor.
pub(super) type Places<'a> = BTreeMap<String, TensorPlace<'a>>;

fn places(files: &[TensorFile]) -> Result<Places<'_>> {
    let mut places = BTreeMap::new();
    for file in files {
        for name in file.names() {
            if places.insert(name.to_owned(), TensorPlace { file, name }).is_some() {
                return Err(Error::corrupt(
                    &file.path,
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
            let bytes = place.file.unsigned_bytes(place.name)?;
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
    let found = place.shape();
    if found != shape {
        let reason = format!("tensor {name} has shape {found:?}, {shape:?} is called for");
        return Err(Error::corrupt(&place.file.path, reason));
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

/// Opens `<stem>.safetensors` in `dir`, or its shards; where there is neither, the `.bin` file or its shards.
fn open_files(dir: &Path, stem: &str) -> Result<Vec<TensorFile>> {
    let old = OLD_NAMES.iter().find(|(new, _)| *new == stem).map(|(_, old)| format!("{old}.bin"));
    let names: Vec<String> = [format!("{stem}.safetensors")].into_iter().chain(old).collect();
    for name in &names {
        if storage::stat(&dir.join(name))?.is_some() {
            return Ok(vec![TensorFile::open(dir.join(name))?]);
        }
        let index = format!("{name}.index.json");
        if storage::stat(&dir.join(&index))?.is_some() {
            return open_shards(dir, &index);
        }
    }
    let reason = format!("holds no {}, nor an index of shards (.index.json)", names.join(" or "));
    Err(Error::config(dir.display().to_string(), reason))
}

/// Opens the files that the index places tensors in.
fn open_shards(dir: &Path, index_name: &str) -> Result<Vec<TensorFile>> {
    let index = dir.join(index_name);
    let json: Value = serde_json::from_slice(&storage::read_at_most(&index, INDEX_LIMIT)?)
        .map_err(|error| Error::corrupt(&index, format!("is not JSON ({error})")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| Error::corrupt(&index, "has no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let extension = if index_name.ends_with(".bin.index.json") { ".bin" } else { ".safetensors" };
    let mut shards = Vec::new();
    for name in names {
        if name.contains(['/', '\\']) || name.starts_with('.') || !name.ends_with(extension) {
            return Err(Error::corrupt(&index, format!("names a file {name:?} that cannot be a shard")));
        }
        let shard = TensorFile::open(dir.join(name))?;
        let lost = map.iter().find(|(tensor, file)| file.as_str() == Some(name) && !shard.holds(tensor));
        if let Some((lost, _)) = lost {
            let reason = format!("lacks tensor {lost}, which {index_name} places there; fetch it again");
            return Err(Error::corrupt(&shard.path, reason));
        }
        shards.push(shard);
    }
    Ok(shards)
}
