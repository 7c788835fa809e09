//! Reading PEFT's adapters: whatever shape the rows of embeddings have, they become what `modules_to_save` alone would
//! have written.
//!
//! PEFT 0.21 writes four: the trained tensor under the module's own name; that and two copies, `modules_to_save` and
//! `original_module`, if the vocabulary had been resized; untrained rows, if it had been resized and nothing was to be
//! saved; and single trained rows, `token_adapter.trainable_tokens_delta`, which replace those of the base.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};
use tokenmill_shared::{Error, Result, storage};

use super::adapter::{LoraSettings, PREFIX, is_named};
use super::{Config, Model, Parameter, tensor_error};
use crate::ops::cpu::{tensor, values};

/// An adapter_config.json beyond this is not one.
const CONFIG_LIMIT: u64 = 1 << 20;

/// An adapter's two files.
pub(super) struct AdapterFile {
    /// Of `adapter_config.json`.
    pub settings: LoraSettings,
    /// Of `adapter_model.safetensors` or `.bin`, by PEFT's names.
    pub tensors: BTreeMap<String, Tensor>,
    /// For a module, the ids of its rows that were trained alone.
    trained_rows: Vec<(String, Vec<usize>)>,
    /// Whether tied weights were trained as one.
    keeps_ties: bool,
    /// Modules of which only rows came, and the rest is the base's.
    pub filled: Vec<String>,
}

/// What an adapter says before its tensors are read.
#[derive(Debug)]
pub struct AdapterOutline {
    /// Modules that are trained whole.
    pub modules_to_save: Vec<String>,
    /// Rows of the embedding or the head that the model has with it, if any come with it.
    pub rows: Option<usize>,
}

impl AdapterOutline {
    /// Reads the configuration in `dir` and the header of the tensors; `config` is that of the base.
    ///
    /// # Errors
    /// No adapter there, or a kind that is not built.
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        let modules = config.row_modules();
        let file = read_config(dir, &modules)?;
        let shapes = super::weights::tensor_shapes(dir, "adapter_model")?;
        let whole = modules.iter().flat_map(|module| {
            ["weight", "modules_to_save.weight", "token_adapter.base_layer.weight"]
                .map(|rest| format!("{PREFIX}{module}.{rest}"))
        });
        let rows = whole.filter_map(|name| shapes.get(&name)?.first().copied()).max();
        let alone = file.trained_rows.iter().flat_map(|(_, ids)| ids).max().map(|id| config.vocab_size.max(id + 1));
        Ok(Self { modules_to_save: file.settings.modules_to_save, rows: rows.max(alone) })
    }
}

impl AdapterFile {
    /// Reads both files; copies that PEFT keeps beside trained modules are left out.
    /// `modules` are those of embedding and head.
    pub fn read(dir: &Path, modules: &[String; 2]) -> Result<Self> {
        let mut file = read_config(dir, modules)?;
        file.tensors = super::weights::read_all_tensors(dir, "adapter_model")?;
        let copies: Vec<_> = file.tensors.keys().filter(|name| name.contains(".original_module.")).cloned().collect();
        for copy in copies {
            file.tensors.remove(&copy);
        }
        let trained: Vec<_> = file.tensors.keys().filter(|name| name.contains(".modules_to_save.")).cloned().collect();
        for name in trained {
            if let Some(tensor) = file.tensors.remove(&name) {
                file.tensors.insert(name.replace(".modules_to_save.", "."), tensor);
            }
        }
        Ok(file)
    }

    fn is_trained_whole(&self, module: &str) -> bool {
        self.settings.modules_to_save.iter().any(|name| is_named(module, name))
    }

    /// Puts rows that were trained alone into the whole matrix: the one that is there, or `base`, which they may extend.
    fn fill_rows(&mut self, dir: &Path, module: &str, base: &Tensor, tied_to: Option<&str>) -> Result<()> {
        let adapter = format!("{PREFIX}{module}.token_adapter");
        let own_base = self.tensors.remove(&format!("{adapter}.base_layer.weight"));
        let Some(rows) = self.tensors.remove(&format!("{adapter}.trainable_tokens_delta")) else { return Ok(()) };
        let damaged = |reason: String| Error::corrupt(dir, format!("{adapter}.trainable_tokens_delta {reason}"));
        let (_, ids) = self
            .trained_rows
            .iter()
            .find(|(name, _)| is_named(module, name) || tied_to.is_some_and(|module| is_named(module, name)))
            .ok_or_else(|| damaged("has no trainable_token_indices in adapter_config.json".to_owned()))?;
        let plain = format!("{PREFIX}{module}.weight");
        let whole = own_base.or_else(|| self.tensors.remove(&plain));
        if whole.is_none() {
            self.filled.push(module.to_owned());
        }
        let whole = whole.as_ref().unwrap_or(base);
        let (count, width) = whole.dims2().map_err(tensor_error)?;
        let beyond: BTreeSet<usize> = ids.iter().copied().filter(|id| *id >= count).collect();
        let grown = count + beyond.len();
        if rows.dims() != [ids.len(), width] || beyond.last().is_some_and(|last| *last >= grown) {
            let shape = rows.dims();
            return Err(damaged(format!(
                "of shape {shape:?} does not fit {} ids and {count} rows of {width}",
                ids.len()
            )));
        }
        let rows = values(&rows).map_err(tensor_error)?;
        let mut whole = values(whole).map_err(tensor_error)?.to_vec();
        whole.resize(grown * width, 0.0);
        for (id, row) in ids.iter().zip(rows.chunks_exact(width)) {
            whole[id * width..][..width].copy_from_slice(row);
        }
        self.tensors.insert(plain, tensor(whole, (grown, width)).map_err(tensor_error)?);
        Ok(())
    }
}

impl Model {
    /// Makes the model one that the adapter's rows fit: with as many rows, tied or not. Then the file holds no tensor of
    /// an embedding or head but those that are the model's parameters.
    pub(super) fn adopt_rows(&mut self, dir: &Path, mut file: AdapterFile) -> Result<AdapterFile> {
        let modules = self.config.row_modules();
        let [embedding, head] = modules.each_ref().map(|module| format!("{PREFIX}{module}.weight"));
        for module in &modules {
            let base = self.rows_of(module).clone(); // shares its memory
            let tied_to = self.config.tie_word_embeddings.then_some(modules[0].as_str());
            file.fill_rows(dir, module, &base, tied_to)?;
        }
        if self.config.tie_word_embeddings {
            let (e, h) = (file.tensors.get(&embedding), file.tensors.get(&head));
            // Without a word about ties PEFT trains a copy of its own for each name.
            let apart = match (e, h) {
                (Some(e), Some(h)) => !file.keeps_ties && !same_values(e, h)?,
                (Some(_), None) => !file.keeps_ties && file.is_trained_whole(&modules[0]),
                (None, Some(_)) => !file.keeps_ties && file.is_trained_whole(&modules[1]),
                (None, None) => false,
            };
            if apart {
                eprintln!("{}: embedding and head were trained apart; they are no longer tied", dir.display());
                self.untie()?;
            } else if let Some(rows) = file.tensors.remove(&head) {
                file.tensors.entry(embedding.clone()).or_insert(rows);
            }
        }
        let of = |module: &str, name: &str| {
            let rows = self.rows_of(module).dims();
            file.tensors.get(name).filter(|tensor| tensor.dims() != rows).cloned()
        };
        let resized = [(&modules[0], of(&modules[0], &embedding)), (&modules[1], of(&modules[1], &head))];
        let (tied, hidden) = (self.config.tie_word_embeddings, self.config.hidden_size);
        let count = match &resized {
            [(_, None), (_, None)] => return Ok(file),
            [(_, Some(e)), (_, None)] if tied => e.dims()[0],
            [(_, Some(e)), (_, Some(h))] if e.dims() == h.dims() => e.dims()[0],
            _ => {
                let reason = format!(
                    "has other rows than the model's {} for only one of embedding and head; resize the base to fit first",
                    self.config.vocab_size
                );
                return Err(Error::corrupt(dir, reason));
            }
        };
        for (module, tensor) in resized {
            let Some(tensor) = tensor else { continue };
            if tensor.dims() != [count, hidden] {
                let (shape, name) = (tensor.dims(), format!("{PREFIX}{module}.weight"));
                return Err(Error::corrupt(
                    dir,
                    format!("{name} has shape {shape:?}, the model has {hidden} features"),
                ));
            }
            let name = format!("{module}.weight");
            let copy = tensor.copy().map_err(tensor_error)?;
            let parameter = self.parameters.iter_mut().find(|parameter| parameter.name == name);
            parameter.expect("looked up above").tensor = copy;
        }
        self.config.vocab_size = count;
        self.config.json["vocab_size"] = json!(count);
        Ok(file)
    }

    /// The matrix of the embedding or of the head, which may be the same.
    fn rows_of(&self, module: &str) -> &Tensor {
        let module = if self.config.tie_word_embeddings { self.layout.embedding_module.as_str() } else { module };
        let name = format!("{module}.weight");
        let found = self.parameters.iter().find(|parameter| parameter.name == name);
        &found.expect("every model has both").tensor
    }

    /// Gives the head a matrix of its own, equal to the embedding.
    fn untie(&mut self) -> Result<()> {
        let [embedding, head] = self.config.row_modules();
        let tensor = self.rows_of(&embedding).copy().map_err(tensor_error)?;
        self.parameters.push(Parameter { name: format!("{head}.weight"), tensor, decay: true, trainable: true });
        self.config.tie_word_embeddings = false;
        self.layout = self.config.layout();
        self.config.json["tie_word_embeddings"] = json!(false);
        Ok(())
    }
}

fn same_values(a: &Tensor, b: &Tensor) -> Result<bool> {
    let (left, right) = (values(a).map_err(tensor_error)?, values(b).map_err(tensor_error)?);
    Ok(a.dims() == b.dims() && *left == *right)
}

/// What `adapter_config.json` of `dir` says, with an empty set of tensors.
fn read_config(dir: &Path, [embedding, head]: &[String; 2]) -> Result<AdapterFile> {
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
    for field in ["use_dora", "lora_bias", "layers_to_transform", "exclude_modules"] {
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
    let settings = LoraSettings {
        rank: rank as usize,
        alpha,
        dropout: json["lora_dropout"].as_f64().unwrap_or(0.0),
        use_rslora: json["use_rslora"].as_bool().unwrap_or(false),
        target_modules: names("target_modules"),
        modules_to_save: names("modules_to_save"),
    };
    let ids = |value: &Value| -> Option<Vec<usize>> {
        value.as_array()?.iter().map(|id| id.as_u64().map(|id| id as usize)).collect()
    };
    let trained_rows = match &json["trainable_token_indices"] {
        Value::Null => Some(Vec::new()),
        // A list is of the embedding, and of a head tied to it.
        list @ Value::Array(_) => ids(list).map(|ids| vec![(embedding.clone(), ids.clone()), (head.clone(), ids)]),
        Value::Object(modules) => modules.iter().map(|(name, list)| Some((name.clone(), ids(list)?))).collect(),
        _ => None,
    };
    let Some(trained_rows) = trained_rows else {
        return refuse(format!(
            "has trainable_token_indices {}, which are no token ids",
            json["trainable_token_indices"]
        ));
    };
    let keeps_ties = json["ensure_weight_tying"].as_bool().unwrap_or(false);
    Ok(AdapterFile { settings, tensors: BTreeMap::new(), trained_rows, keeps_ties, filled: Vec::new() })
}
