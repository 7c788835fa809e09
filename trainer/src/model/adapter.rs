//! Adapters: which projections have a low-rank pair beside them, which modules are trained whole, and PEFT's files.
//!
//! Source of names and files: peft 0.21 (`adapter_config.json`, `adapter_model.safetensors`). Adapters with rows of
//! embeddings come in several shapes; [`super::adapter_rows`] makes one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use regex::Regex;
use serde_json::{Value, json};
use tokenmill_shared::random::{Purpose, Stream};
use tokenmill_shared::{Error, Result};

use super::adapter_rows::AdapterFile;
use super::dropout::{Place, Seed};
use super::{Model, Parameter, tensor_error};
use crate::ops::cpu::{tensor, values, write};
use crate::ops::linear::Weight;
use crate::ops::lora::Pair;
use crate::ops::matmul::{Matrix, Threads, matmul};
use crate::ops::precision::Precision;

pub(super) const PREFIX: &str = "base_model.model.";

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
    /// Frozen parameters whose values came with an adapter instead of the base: they are saved with it again.
    kept: BTreeSet<usize>,
    /// Of these, the ones of which single rows came with it.
    kept_in_part: BTreeSet<usize>,
}

impl Adapters {
    /// Rows that came alone are saved alone again, since they are trained alone.
    pub(super) fn save_rows_alone(&mut self) {
        self.kept.retain(|index| !self.kept_in_part.contains(index));
    }

    /// The share of a pair's input that is dropped while training.
    #[cfg(feature = "cuda")]
    pub(crate) fn dropout(&self) -> f32 {
        self.settings.dropout as f32
    }

    /// The pair beside the weight of index `weight`, with dropout if there is a seed for it.
    pub(crate) fn pair<'a>(
        &self,
        parameters: &'a [Parameter],
        weight: usize,
        seed: Option<Seed>,
        precision: Precision,
    ) -> Option<Pair<'a>> {
        let (a, b) = *self.pairs.get(&weight)?;
        let dropout = seed.and_then(|seed| seed.dropout(self.settings.dropout as f32, Place::Adapter(weight)));
        let scale = self.settings.scale();
        Some(Pair { a: (&parameters[a].tensor, a), b: (&parameters[b].tensor, b), scale, dropout, precision })
    }
}

impl Model {
    /// Freezes the model and puts adapters beside it: A uniform in ±1/√in (kaiming with a = √5), B zero.
    ///
    /// # Errors
    /// A target or module that the model does not have.
    pub fn add_adapters(&mut self, mut settings: LoraSettings, seed: u64) -> Result<()> {
        let targets = self.targets(&settings.target_modules)?;
        settings.modules_to_save = self.module_names(settings.modules_to_save);
        let head = &self.layout.head_module;
        if self.config.tie_word_embeddings && settings.modules_to_save.iter().any(|name| is_named(head, name)) {
            eprintln!("--modules_to_save: embedding and head are tied and stay so; they are trained as one");
        }
        let whole = self.modules_to_save(&settings.modules_to_save)?;
        whole.iter().try_for_each(|index| self.restore_one(*index))?;
        for (index, parameter) in self.parameters.iter_mut().enumerate() {
            parameter.trainable = whole.contains(&index);
        }
        let mut pairs = BTreeMap::new();
        for (index, input_first) in targets.into_iter().filter(|(index, _)| !whole.contains(index)) {
            let weight = &self.parameters[index];
            let (output, input) = Weight { tensor: &weight.tensor, input_first }.dims().map_err(tensor_error)?;
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
        self.adapters = Some(Adapters { settings, pairs, kept: BTreeSet::new(), kept_in_part: BTreeSet::new() });
        self.renew_gradients()
    }

    /// The settings of the adapters, if there are any.
    pub fn lora_settings(&self) -> Option<&LoraSettings> {
        self.adapters.as_ref().map(|adapters| &adapters.settings)
    }

    /// Indices of the trained parameters in the order of torch's `named_parameters()`: a pair comes where the
    /// projection it stands beside does.
    pub fn trained_in_order(&self) -> Vec<usize> {
        let mut places: Vec<_> = (0..self.parameters.len()).map(|index| (index, 0)).collect();
        for (weight, (a, b)) in self.adapters.iter().flat_map(|adapters| &adapters.pairs) {
            (places[*a], places[*b]) = ((*weight, 1), (*weight, 2));
        }
        let trained = self.parameters.iter().enumerate().filter(|(_, parameter)| parameter.trainable);
        let mut order: Vec<usize> = trained.map(|(index, _)| index).collect();
        order.sort_by_key(|index| places[*index]);
        order
    }

    /// Projections that may have a pair: the index and module of the weight, and whether its input comes first.
    fn linear_modules(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        self.layout.projections().into_iter().filter_map(|projection| {
            let module = self.parameters[projection.weight].name.strip_suffix(".weight")?;
            Some((projection.weight, module, projection.input_first))
        })
    }

    /// The weights that `wanted` means, and whether their inputs come first.
    fn targets(&self, wanted: &[String]) -> Result<BTreeMap<usize, bool>> {
        let flag = "--target_modules";
        if let [one] = wanted
            && matches!(one.as_str(), "all" | "all-linear")
        {
            return Ok(self.linear_modules().map(|(index, _, input_first)| (index, input_first)).collect());
        }
        let mut targets = BTreeMap::new();
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
            let found = self.linear_modules().filter(|(_, module, _)| matches(module));
            let found: Vec<_> = found.map(|(index, _, input_first)| (index, input_first)).collect();
            if found.is_empty() {
                let leaves: BTreeSet<&str> =
                    self.linear_modules().filter_map(|(_, module, _)| module.rsplit('.').next()).collect();
                let leaves: Vec<_> = leaves.into_iter().collect();
                let reason = format!("{name:?} is no projection of this model; it has {}", leaves.join(", "));
                return Err(Error::config(flag, reason));
            }
            targets.extend(found);
        }
        Ok(targets)
    }

    /// Resolves the roles `embeddings` and `lm_head` into the family's names. Tied weights stay tied: PEFT is told both.
    fn module_names(&self, wanted: Vec<String>) -> Vec<String> {
        let (embedding, head) = (&self.layout.embedding_module, &self.layout.head_module);
        let mut names: Vec<String> = Vec::new();
        for asked in wanted {
            let name = match asked.as_str() {
                "embeddings" => last_name(embedding).to_owned(),
                "lm_head" => last_name(head).to_owned(),
                _ => asked,
            };
            let is_either = is_named(embedding, &name) || is_named(head, &name);
            let meant = if is_either && self.config.tie_word_embeddings {
                vec![last_name(embedding).to_owned(), last_name(head).to_owned()]
            } else {
                vec![name]
            };
            names.extend(meant.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
        }
        names
    }

    /// The parameters of the named modules.
    fn modules_to_save(&self, wanted: &[String]) -> Result<BTreeSet<usize>> {
        let (embedding, head) = (last_name(&self.layout.embedding_module), &self.layout.head_module);
        let tied = self.config.tie_word_embeddings;
        let mut whole = BTreeSet::new();
        for name in wanted {
            let name = if tied && is_named(head, name) { embedding } else { name.as_str() };
            let of_module = |parameter: &Parameter| {
                parameter.name.rsplit_once('.').is_some_and(|(module, _)| is_named(module, name))
            };
            let found = self.parameters.iter().enumerate().filter(|(_, parameter)| of_module(parameter));
            let found: Vec<_> = found.map(|(index, _)| index).collect();
            if found.is_empty() {
                let usual = [embedding, last_name(head)].join(" and ");
                let reason = format!("{name:?} is no module of this model; usual are {usual}");
                return Err(Error::config("--modules_to_save", reason));
            }
            whole.extend(found);
        }
        Ok(whole)
    }

    /// What an adapter file holds: PEFT's name and the tensor of every trained parameter, and of those that came with an
    /// adapter. Rows that are trained alone are PEFT's `trainable_tokens_delta`, which replaces those of the base. PEFT
    /// asks for both names of tied weights.
    pub fn adapter_tensors(&self) -> Vec<(String, Tensor)> {
        let kept = |index: usize| self.adapters.as_ref().is_some_and(|adapters| adapters.kept.contains(&index));
        let mut named: Vec<(String, Tensor)> = Vec::new();
        for (index, parameter) in self.parameters.iter().enumerate() {
            let name = &parameter.name;
            if self.rows_trained_of(name).is_some() {
                let adapter = format!("{PREFIX}{}.token_adapter", name.trim_end_matches(".weight"));
                let rows = self.trained(parameter).tensor;
                named.push((format!("{adapter}.trainable_tokens_delta"), rows));
                if kept(index) {
                    named.push((format!("{adapter}.base_layer.weight"), parameter.tensor.clone())); // shares its memory
                }
            } else if parameter.trainable || kept(index) {
                named.push((format!("{PREFIX}{name}"), parameter.tensor.clone())); // shares its memory
            }
        }
        if self.config.tie_word_embeddings {
            let of_embedding = format!("{PREFIX}{}.", self.layout.embedding_module);
            let of_head = named.iter().filter_map(|(name, tensor)| {
                let rest = name.strip_prefix(&of_embedding)?;
                Some((format!("{PREFIX}{}.{rest}", self.layout.head_module), tensor.clone()))
            });
            named.extend(of_head.collect::<Vec<_>>());
        }
        named
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
        let input_first = self.linear_modules().any(|(index, _, input_first)| input_first && chosen.contains(&index));
        let all_of_them =
            self.linear_modules().filter(|(index, ..)| leaves.contains(&leaf(index))).count() == chosen.len();
        let targets = if all_of_them {
            leaves.into_iter().collect::<Vec<_>>()
        } else {
            chosen.iter().map(|index| self.parameters[**index].name.trim_end_matches(".weight").to_owned()).collect()
        };
        let mut json = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": input_first,
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
        });
        // Known to PEFT since 0.18: without it both names of tied weights would be trained apart.
        if self.config.tie_word_embeddings
            && settings.modules_to_save.iter().any(|name| is_named(&self.layout.head_module, name))
        {
            json["ensure_weight_tying"] = json!(true);
        }
        if let Some(rows) = &self.trained_rows {
            let both = self.config.row_modules();
            let modules = if self.config.tie_word_embeddings { &both[..1] } else { &both[..] };
            let ids: Vec<usize> = rows.clone().collect();
            let indices = modules.iter().map(|module| (last_name(module).to_owned(), json!(ids)));
            json["trainable_token_indices"] = Value::Object(indices.collect());
        }
        json
    }

    /// Puts the adapter in `dir`, written by PEFT or by us, beside the model. Rows of embeddings that come with it
    /// replace the model's.
    ///
    /// # Errors
    /// A kind of adapter that is not built, or tensors that do not fit the model.
    pub fn load_adapters(&mut self, dir: &Path, seed: u64) -> Result<()> {
        let file = AdapterFile::read(dir, &self.config.row_modules())?;
        let AdapterFile { settings, mut tensors, filled, .. } = self.adopt_rows(dir, file)?;
        let kept = self.kept_rows(&settings, &tensors);
        let in_part =
            |index: &usize| filled.iter().any(|module| self.parameters[*index].name == format!("{module}.weight"));
        let kept_in_part = kept.iter().copied().filter(in_part).collect();
        self.add_adapters(settings, seed)?;
        for (index, parameter) in self.parameters.iter().enumerate() {
            if !parameter.trainable && !kept.contains(&index) {
                continue;
            }
            let name = format!("{PREFIX}{}", parameter.name);
            let Some(tensor) = tensors.remove(&name) else {
                let reason = format!("lacks {name}; it was made for another model or other modules");
                return Err(Error::corrupt(dir, reason));
            };
            if tensor.dims() != parameter.tensor.dims() {
                let (theirs, ours) = (tensor.dims(), parameter.tensor.dims());
                let reason = format!("{name} has shape {theirs:?}, the model asks for {ours:?}");
                return Err(Error::corrupt(dir, reason));
            }
            let from = values(&tensor).map_err(tensor_error)?;
            write(&parameter.tensor, |values| values.copy_from_slice(&from)).map_err(tensor_error)?;
        }
        if let Some(name) = tensors.keys().next() {
            return Err(Error::corrupt(dir, format!("holds {name}, which nothing here stands for")));
        }
        if let Some(adapters) = &mut self.adapters {
            (adapters.kept, adapters.kept_in_part) = (kept, kept_in_part);
        }
        Ok(())
    }

    /// Embedding and head, where the adapter has rows of them that it does not train.
    fn kept_rows(&self, settings: &LoraSettings, tensors: &BTreeMap<String, Tensor>) -> BTreeSet<usize> {
        let modules = self.config.row_modules();
        let is_kept = |parameter: &Parameter| {
            let Some(module) = parameter.name.strip_suffix(".weight").filter(|name| modules.iter().any(|m| m == name))
            else {
                return false;
            };
            let trained = settings.modules_to_save.iter().any(|name| is_named(module, name));
            !trained && tensors.contains_key(&format!("{PREFIX}{}", parameter.name))
        };
        let kept = self.parameters.iter().enumerate().filter(|(_, parameter)| is_kept(parameter));
        kept.map(|(index, _)| index).collect()
    }

    /// Folds the adapters into the weights they stand beside: `W += s · B A`, or its transpose. Every parameter is trainable
    /// again, and in float32.
    pub fn merge_adapters(&mut self) -> Result<()> {
        self.restore()?;
        let Some(adapters) = self.adapters.take() else { return Ok(()) };
        let scale = adapters.settings.scale();
        let input_first = self.linear_modules().filter(|(.., input_first)| *input_first);
        let input_first: BTreeSet<usize> = input_first.map(|(index, ..)| index).collect();
        for (index, (a, b)) in &adapters.pairs {
            let [weight, a, b] = [index, a, b].map(|index| &self.parameters[*index].tensor);
            let ((rank, input), (output, _)) = (a.dims2().map_err(tensor_error)?, b.dims2().map_err(tensor_error)?);
            let mut scaled = values(b).map_err(tensor_error)?.to_vec();
            scaled.iter_mut().for_each(|b| *b *= scale);
            let a = values(a).map_err(tensor_error)?;
            let (a, b) = (Matrix::new(&a, rank, input), Matrix::new(&scaled, output, rank));
            // (B A)ᵀ = Aᵀ Bᵀ where the input comes first.
            let (left, right) = if input_first.contains(index) { (a.t(), b.t()) } else { (b, a) };
            write(weight, |weight| matmul(left, right, weight, true, Threads::All)).map_err(tensor_error)?;
        }
        if let Some((first, _)) = adapters.pairs.values().min() {
            self.parameters.truncate(*first);
        }
        self.parameters.iter_mut().for_each(|parameter| parameter.trainable = true);
        self.trained_rows = None;
        self.renew_gradients()
    }
}

/// Whether `name` is the module's last name or names.
pub(super) fn is_named(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// The last name of a module.
fn last_name(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}
