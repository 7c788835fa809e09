//! Adapters: which projections have a low-rank pair beside them, which modules are trained whole, and PEFT's files.
//!
//! Source of names and files: peft 0.21 (`adapter_config.json`, `adapter_model.safetensors`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use regex::Regex;
use serde_json::{Value, json};
use tokenmill_shared::random::{Purpose, Stream};
use tokenmill_shared::{Error, Result, storage};

use super::{Model, Parameter, tensor_error};
use crate::ops::cpu::{tensor, values, write};
use crate::ops::lora::{Dropout, Pair};
use crate::ops::matmul::{Matrix, Threads, matmul};
use crate::ops::precision::Precision;

/// An adapter_config.json beyond this is not one.
const CONFIG_LIMIT: u64 = 1 << 20;

const PREFIX: &str = "base_model.model.";

/// What adapters are like.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// The product is scaled by alpha / rank.
    pub alpha: f64,
    /// Share of A's input that is dropped while training.
    pub dropout: f64,
    /// Scale by alpha / √rank instead (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Leaf names of the projections, or `all`; or one regular expression for whole names.
    pub target_modules: Vec<String>,
    /// Leaf names of modules that are trained whole and saved with the adapter.
    pub modules_to_save: Vec<String>,
}

impl LoraSettings {
    fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// The adapters of a model.
#[derive(Debug, Clone)]
pub struct Adapters {
    settings: LoraSettings,
    /// For the index of a weight, those of its A and B.
    pairs: BTreeMap<usize, (usize, usize)>,
    seed: u64,
    /// Which micro-batch of which step is being trained on: what dropout depends on.
    pass: u64,
}

impl Adapters {
    /// The pair beside the weight of index `weight`, for training or not.
    pub(super) fn pair<'a>(
        &self,
        parameters: &'a [Parameter],
        weight: usize,
        training: bool,
        precision: Precision,
    ) -> Option<Pair<'a>> {
        let (a, b) = *self.pairs.get(&weight)?;
        let rate = self.settings.dropout as f32;
        let dropout = (training && rate > 0.0).then(|| {
            let stream = Stream::new(self.seed ^ self.pass.rotate_left(32), Purpose::Dropout, weight as u64);
            Dropout { rate, stream }
        });
        let scale = self.settings.scale();
        Some(Pair { a: (&parameters[a].tensor, a), b: (&parameters[b].tensor, b), scale, dropout, precision })
    }
}

impl Model {
    /// Freezes the model and puts adapters beside it: A uniform in ±1/√in (kaiming with a = √5), B zero.
    ///
    /// # Errors
    /// A target or module that the model does not have.
    pub fn add_adapters(&mut self, settings: LoraSettings, seed: u64) -> Result<()> {
        let targets = self.targets(&settings.target_modules)?;
        let whole = self.modules_to_save(&settings.modules_to_save)?;
        for (index, parameter) in self.parameters.iter_mut().enumerate() {
            parameter.trainable = whole.contains(&index);
        }
        let mut pairs = BTreeMap::new();
        for index in targets.into_iter().filter(|index| !whole.contains(index)) {
            let weight = &self.parameters[index];
            let (output, input) = weight.tensor.dims2().map_err(tensor_error)?;
            let module = weight.name.trim_end_matches(".weight").to_owned();
            let (stream, rank) = (Stream::new(seed, Purpose::Adapter, index as u64), settings.rank);
            let bound = 1.0 / (input as f64).sqrt();
            let a = (0..rank * input).map(|at| ((2.0 * stream.uniform(at as u64) - 1.0) * bound) as f32).collect();
            let first = self.parameters.len();
            for (name, values, shape) in
                [("lora_A", a, (rank, input)), ("lora_B", vec![0.0; output * rank], (output, rank))]
            {
                let tensor = tensor(values, shape).map_err(tensor_error)?;
                let name = format!("{module}.{name}.weight");
                self.parameters.push(Parameter { name, tensor, decay: true, trainable: true });
            }
            pairs.insert(index, (first, first + 1));
        }
        self.adapters = Some(Adapters { settings, pairs, seed, pass: 0 });
        self.renew_gradients()
    }

    /// The settings of the adapters, if there are any.
    pub fn lora_settings(&self) -> Option<&LoraSettings> {
        self.adapters.as_ref().map(|adapters| &adapters.settings)
    }

    /// Says which micro-batch of which step comes next, so that dropout masks and noise are a function of it.
    pub fn set_pass(&mut self, step: u64, micro_batch: usize) {
        let pass = step << 20 | micro_batch as u64;
        if let Some(adapters) = &mut self.adapters {
            adapters.pass = pass;
        }
        if let Some(noise) = &mut self.embedding_noise {
            noise.pass = pass;
        }
    }

    /// Projections that may have a pair: matrices but the embeddings and the output projection.
    fn linear_modules(&self) -> impl Iterator<Item = (usize, &str)> {
        self.parameters.iter().enumerate().filter_map(|(index, parameter)| {
            let module = parameter.name.strip_suffix(".weight")?;
            let is_matrix = parameter.tensor.rank() == 2 && parameter.decay;
            let is_projection = !module.contains("embed") && !module.ends_with("lm_head");
            (is_matrix && is_projection).then_some((index, module))
        })
    }

    fn targets(&self, wanted: &[String]) -> Result<BTreeSet<usize>> {
        let flag = "--target_modules";
        if let [one] = wanted
            && matches!(one.as_str(), "all" | "all-linear")
        {
            return Ok(self.linear_modules().map(|(index, _)| index).collect());
        }
        let mut targets = BTreeSet::new();
        for name in wanted {
            // As PEFT reads a single string: a regular expression for whole names, if it can be nothing else.
            let pattern = name
                .contains(['*', '[', '(', '\\', '|', '^', '$', '+', '?'])
                .then(|| Regex::new(&format!("^(?:{name})$")))
                .transpose()
                .map_err(|error| Error::config(flag, format!("{name:?} is no regular expression ({error})")))?;
            let matches = |module: &str| match &pattern {
                Some(pattern) => pattern.is_match(module),
                None => is_named(module, name),
            };
            let found: Vec<_> =
                self.linear_modules().filter(|(_, module)| matches(module)).map(|(index, _)| index).collect();
            if found.is_empty() {
                let leaves: BTreeSet<&str> =
                    self.linear_modules().filter_map(|(_, module)| module.rsplit('.').next()).collect();
                let leaves: Vec<_> = leaves.into_iter().collect();
                let reason = format!("{name:?} is no projection of this model; it has {}", leaves.join(", "));
                return Err(Error::config(flag, reason));
            }
            targets.extend(found);
        }
        Ok(targets)
    }

    fn modules_to_save(&self, wanted: &[String]) -> Result<BTreeSet<usize>> {
        let mut whole = BTreeSet::new();
        for name in wanted {
            // By role: the input and the output embedding, whatever the family calls them.
            let name = if name == "embeddings" { "embed_tokens" } else { name.as_str() };
            let tied = name == "lm_head" && self.config.tie_word_embeddings;
            if tied {
                eprintln!(
                    "--modules_to_save {name}: it is tied to the embedding and stays so; the embedding is trained"
                );
            }
            let name = if tied { "embed_tokens" } else { name };
            let of_module = |parameter: &Parameter| {
                parameter.name.rsplit_once('.').is_some_and(|(module, _)| is_named(module, name))
            };
            let found = self.parameters.iter().enumerate().filter(|(_, parameter)| of_module(parameter));
            let found: Vec<_> = found.map(|(index, _)| index).collect();
            if found.is_empty() {
                let reason = format!("{name:?} is no module of this model; usual are embed_tokens and lm_head");
                return Err(Error::config("--modules_to_save", reason));
            }
            whole.extend(found);
        }
        Ok(whole)
    }

    /// What an adapter file holds: PEFT's name and the tensor of every trained parameter.
    pub fn adapter_tensors(&self) -> Vec<(String, &Tensor)> {
        let trained = self.parameters.iter().filter(|parameter| parameter.trainable);
        trained.map(|parameter| (format!("{PREFIX}{}", parameter.name), &parameter.tensor)).collect()
    }

    /// `adapter_config.json` as PEFT reads it, with the keys that every version of it knows.
    pub fn adapter_config(&self, base: &str) -> Value {
        let Some(settings) = self.lora_settings() else { return Value::Null };
        let adapters = self.adapters.iter().flat_map(|adapters| adapters.pairs.keys());
        let leaf = |index: &usize| {
            self.parameters[*index].name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default().to_owned()
        };
        let whole = |names: &[String]| (!names.is_empty()).then(|| names.to_vec());
        // Leaf names say what was adapted unless a regular expression chose among equals.
        let leaves: BTreeSet<String> = adapters.clone().map(leaf).collect();
        let chosen: BTreeSet<&usize> = adapters.collect();
        let all_of_them =
            self.linear_modules().filter(|(index, _)| leaves.contains(&leaf(index))).count() == chosen.len();
        let targets = if all_of_them {
            leaves.into_iter().collect::<Vec<_>>()
        } else {
            chosen.iter().map(|index| self.parameters[**index].name.trim_end_matches(".weight").to_owned()).collect()
        };
        json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": settings.alpha,
            "lora_dropout": settings.dropout,
            "modules_to_save": whole(&settings.modules_to_save),
            "peft_type": "LORA",
            "r": settings.rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_rslora": settings.use_rslora,
        })
    }

    /// Puts the adapter in `dir`, written by PEFT or by us, beside the model.
    ///
    /// # Errors
    /// A kind of adapter that is not built, or tensors that do not fit the model.
    pub fn load_adapters(&mut self, dir: &Path, seed: u64) -> Result<()> {
        self.add_adapters(read_settings(dir)?, seed)?;
        let found = super::weights::read_all_tensors(dir, "adapter_model")?;
        let mut used = BTreeSet::new();
        for parameter in self.parameters.iter().filter(|parameter| parameter.trainable) {
            let (module, leaf) = parameter.name.rsplit_once('.').unwrap_or_default();
            // Where PEFT kept base and trained rows side by side, the trained ones count.
            let names = [format!("{PREFIX}{module}.modules_to_save.{leaf}"), format!("{PREFIX}{}", parameter.name)];
            let Some((name, tensor)) = names.iter().find_map(|name| found.get_key_value(name)) else {
                let reason = format!("lacks {}; it was made for another model or other modules", names[1]);
                return Err(Error::corrupt(dir, reason));
            };
            if tensor.dims() != parameter.tensor.dims() {
                let (theirs, ours) = (tensor.dims(), parameter.tensor.dims());
                let reason = format!("{name} has shape {theirs:?}, the model asks for {ours:?}");
                return Err(Error::corrupt(dir, reason));
            }
            let from = values(tensor).map_err(tensor_error)?;
            write(&parameter.tensor, |values| values.copy_from_slice(&from)).map_err(tensor_error)?;
            used.extend(names);
        }
        let stranger = found.keys().find(|name| {
            let base_copy = name.contains(".original_module.");
            // Rows of the base, saved because its vocabulary had been resized.
            let base_rows = name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight");
            !used.contains(*name) && !base_copy && !base_rows
        });
        match stranger {
            Some(name) => Err(Error::corrupt(dir, format!("holds {name}, which nothing here stands for"))),
            None => Ok(()),
        }
    }

    /// Folds the adapters into the weights they stand beside: `W += s · B A`. Every parameter is trainable again.
    pub fn merge_adapters(&mut self) -> Result<()> {
        let Some(adapters) = self.adapters.take() else { return Ok(()) };
        let scale = adapters.settings.scale();
        for (weight, (a, b)) in &adapters.pairs {
            let [weight, a, b] = [weight, a, b].map(|index| &self.parameters[*index].tensor);
            let ((rank, input), (output, _)) = (a.dims2().map_err(tensor_error)?, b.dims2().map_err(tensor_error)?);
            let mut scaled = values(b).map_err(tensor_error)?.to_vec();
            scaled.iter_mut().for_each(|b| *b *= scale);
            let a = values(a).map_err(tensor_error)?;
            let (a, b) = (Matrix::new(&a, rank, input), Matrix::new(&scaled, output, rank));
            write(weight, |weight| matmul(b, a, weight, true, Threads::All)).map_err(tensor_error)?;
        }
        if let Some((first, _)) = adapters.pairs.values().min() {
            self.parameters.truncate(*first);
        }
        self.parameters.iter_mut().for_each(|parameter| parameter.trainable = true);
        self.renew_gradients()
    }
}

/// Whether `name` is the module's last name or names.
fn is_named(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// The settings in `adapter_config.json` of `dir`.
fn read_settings(dir: &Path) -> Result<LoraSettings> {
    let path = dir.join("adapter_config.json");
    if storage::stat(&path)?.is_none() {
        return Err(Error::config(dir.display().to_string(), "holds no adapter_config.json, so it is no adapter"));
    }
    let json: Value = serde_json::from_slice(&storage::read_at_most(&path, CONFIG_LIMIT)?)
        .map_err(|error| Error::corrupt(&path, format!("is not JSON ({error})")))?;
    let refuse = |reason: String| Err(Error::config(path.display().to_string(), reason));
    if json["peft_type"] != "LORA" {
        return refuse(format!("has peft_type {}; only LORA is built", json["peft_type"]));
    }
    for field in ["use_dora", "lora_bias", "layers_to_transform", "exclude_modules", "trainable_token_indices"] {
        if !matches!(&json[field], Value::Null | Value::Bool(false)) {
            return refuse(format!("has {field} {}, which is not built", json[field]));
        }
    }
    for field in ["rank_pattern", "alpha_pattern"] {
        if json[field].as_object().is_some_and(|pattern| !pattern.is_empty()) {
            return refuse(format!("has {field} {}, which is not built", json[field]));
        }
    }
    if json["bias"].as_str().is_some_and(|bias| bias != "none") {
        return refuse(format!("has bias {}; only none is built", json["bias"]));
    }
    let names = |field: &str| -> Vec<String> {
        match &json[field] {
            Value::String(one) => vec![one.clone()],
            Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    };
    let (Some(rank), Some(alpha)) = (json["r"].as_u64().filter(|rank| *rank > 0), json["lora_alpha"].as_f64()) else {
        return refuse("has no r or lora_alpha".to_owned());
    };
    Ok(LoraSettings {
        rank: rank as usize,
        alpha,
        dropout: json["lora_dropout"].as_f64().unwrap_or(0.0),
        use_rslora: json["use_rslora"].as_bool().unwrap_or(false),
        target_modules: names("target_modules"),
        modules_to_save: names("modules_to_save"),
    })
}
