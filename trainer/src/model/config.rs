//! `config.json` of Hugging Face, as transformers 4 and 5 write it, resolved into what the decoder needs.

use std::path::Path;

use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

use crate::ops::rope::{Rope, Scaling};

/// A config.json beyond this is not one.
const CONFIG_LIMIT: u64 = 1 << 20;

/// A model family that is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3 and what copies it.
    Llama,
    /// Mistral: a sliding window in every layer.
    Mistral,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: norms on the heads of q and k.
    Qwen3,
}

impl Family {
    const ALL: [(&'static str, Self, &'static str); 4] = [
        ("llama", Self::Llama, "LlamaForCausalLM"),
        ("mistral", Self::Mistral, "MistralForCausalLM"),
        ("qwen2", Self::Qwen2, "Qwen2ForCausalLM"),
        ("qwen3", Self::Qwen3, "Qwen3ForCausalLM"),
    ];
}

/// One parameter that a configuration calls for.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub name: String,
    pub shape: Vec<usize>,
    pub decay: bool,
    pub kind: SpecKind,
}

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpecKind {
    Weight,
    Norm,
    Bias,
}

/// A resolved configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file as it was read, unknown keys and their order included.
    pub json: Value,
    /// The family.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Spread of initial weights.
    pub initializer_range: f64,
    /// Biases of q, k and v.
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub output_bias: bool,
    /// Biases of the feed-forward layer.
    pub mlp_bias: bool,
    /// Norms on the heads of q and k.
    pub head_norms: bool,
    /// For each layer the sliding window, if it has one.
    pub windows: Vec<Option<usize>>,
    rope: Rope,
}

impl Config {
    /// Reads `config.json` in `dir`, or the file itself if `dir` is one.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = if dir.is_dir() { dir.join("config.json") } else { dir.to_owned() };
        if storage::stat(&path)?.is_none() {
            let reason = "does not exist; give a local Hugging Face model directory (names on a hub are not built yet)";
            return Err(Error::config(path.display().to_string(), reason));
        }
        let bytes = storage::read_at_most(&path, CONFIG_LIMIT)?;
        let json = serde_json::from_slice(&bytes)
            .map_err(|error| Error::config(path.display().to_string(), format!("is not JSON ({error})")))?;
        Self::resolve(json).map_err(|(field, reason)| Error::config(format!("{}: {field}", path.display()), reason))
    }

    /// Resolves a configuration. Errors are a field and what is wrong with it.
    pub fn resolve(json: Value) -> std::result::Result<Self, (String, String)> {
        let fail = |field: &str, reason: String| (field.to_owned(), reason);
        let model_type = json["model_type"].as_str().unwrap_or_default();
        let Some((_, family, _)) = Family::ALL.into_iter().find(|(name, ..)| *name == model_type) else {
            let built: Vec<_> = Family::ALL.iter().map(|(name, ..)| *name).collect();
            return Err(fail(
                "model_type",
                format!("is {model_type:?}, a family that is not built; built are {}", built.join(", ")),
            ));
        };
        let optional = |field: &str| json[field].as_u64().map(|value| value as usize);
        let size = |field: &str| match optional(field) {
            Some(value) if value > 0 => Ok(value),
            _ => Err(fail(field, "is missing or not a positive integer".to_owned())),
        };
        let flag = |field: &str| json[field].as_bool().unwrap_or(false);
        let number = |field: &str, default: f64| json[field].as_f64().unwrap_or(default);

        let (hidden_size, heads, layers) =
            (size("hidden_size")?, size("num_attention_heads")?, size("num_hidden_layers")?);
        let kv_heads = optional("num_key_value_heads").unwrap_or(if family == Family::Mistral { 8 } else { heads });
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(fail(
                "num_key_value_heads",
                format!("is {kv_heads}, which does not divide {heads} attention heads"),
            ));
        }
        let default_head_dim = if family == Family::Qwen3 { 128 } else { hidden_size / heads };
        let head_dim = optional("head_dim").unwrap_or(default_head_dim);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(fail("head_dim", format!("is {head_dim}; rotary embedding needs an even number")));
        }
        let activation = json["hidden_act"].as_str().unwrap_or("silu");
        if activation != "silu" && activation != "swish" {
            return Err(fail("hidden_act", format!("is {activation:?}; only silu is built")));
        }
        if number("attention_dropout", 0.0) != 0.0 {
            return Err(fail("attention_dropout", "is not 0; dropout is not built yet".to_owned()));
        }
        let max_position_embeddings = optional("max_position_embeddings").unwrap_or(2048);
        let llama = family == Family::Llama;
        let bias = flag("attention_bias") && (llama || family == Family::Qwen3);
        let rope = rope(&json, head_dim, max_position_embeddings)?;
        let windows = windows(&json, family, layers)?;
        Ok(Self {
            family,
            vocab_size: size("vocab_size")?,
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: number("rms_norm_eps", 1e-6),
            max_position_embeddings,
            tie_word_embeddings: flag("tie_word_embeddings"),
            initializer_range: number("initializer_range", 0.02),
            qkv_bias: bias || family == Family::Qwen2,
            output_bias: bias,
            mlp_bias: flag("mlp_bias") && llama,
            head_norms: family == Family::Qwen3,
            windows,
            rope,
            json,
        })
    }

    /// The rotation of queries and keys.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// The class name that transformers gives this family.
    pub fn architecture(&self) -> &'static str {
        let (_, _, name) = Family::ALL[self.family as usize];
        name
    }

    /// The parameters in Hugging Face's `named_parameters()` order.
    pub(super) fn parameters(&self) -> Vec<Spec> {
        let mut specs = Vec::new();
        let mut add = |name: String, shape: &[usize], kind: SpecKind| {
            specs.push(Spec { name, shape: shape.to_vec(), decay: kind == SpecKind::Weight, kind });
        };
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        add("model.embed_tokens.weight".to_owned(), &[self.vocab_size, hidden], SpecKind::Weight);
        for layer in 0..self.num_hidden_layers {
            let mut linear = |name: &str, shape: [usize; 2], bias: bool| {
                add(format!("model.layers.{layer}.{name}.weight"), &shape, SpecKind::Weight);
                if bias {
                    add(format!("model.layers.{layer}.{name}.bias"), &shape[..1], SpecKind::Bias);
                }
            };
            linear("self_attn.q_proj", [q, hidden], self.qkv_bias);
            linear("self_attn.k_proj", [kv, hidden], self.qkv_bias);
            linear("self_attn.v_proj", [kv, hidden], self.qkv_bias);
            linear("self_attn.o_proj", [hidden, q], self.output_bias);
            let mut norm =
                |name: &str, width: usize| add(format!("model.layers.{layer}.{name}.weight"), &[width], SpecKind::Norm);
            if self.head_norms {
                norm("self_attn.q_norm", self.head_dim);
                norm("self_attn.k_norm", self.head_dim);
            }
            let mut linear = |name: &str, shape: [usize; 2], bias: bool| {
                add(format!("model.layers.{layer}.{name}.weight"), &shape, SpecKind::Weight);
                if bias {
                    add(format!("model.layers.{layer}.{name}.bias"), &shape[..1], SpecKind::Bias);
                }
            };
            linear("mlp.gate_proj", [inner, hidden], self.mlp_bias);
            linear("mlp.up_proj", [inner, hidden], self.mlp_bias);
            linear("mlp.down_proj", [hidden, inner], self.mlp_bias);
            let mut norm =
                |name: &str, width: usize| add(format!("model.layers.{layer}.{name}.weight"), &[width], SpecKind::Norm);
            norm("input_layernorm", hidden);
            norm("post_attention_layernorm", hidden);
        }
        add("model.norm.weight".to_owned(), &[hidden], SpecKind::Norm);
        if !self.tie_word_embeddings {
            add("lm_head.weight".to_owned(), &[self.vocab_size, hidden], SpecKind::Weight);
        }
        specs
    }
}

/// The sliding window of each layer.
fn windows(json: &Value, family: Family, layers: usize) -> std::result::Result<Vec<Option<usize>>, (String, String)> {
    let window = match &json["sliding_window"] {
        Value::Null if json.get("sliding_window").is_none() => Some(4096),
        value => value.as_u64().map(|window| window as usize).filter(|window| *window > 0),
    };
    match family {
        Family::Llama => Ok(vec![None; layers]),
        Family::Mistral => Ok(vec![window; layers]),
        Family::Qwen2 | Family::Qwen3 => {
            let window = window.filter(|_| json["use_sliding_window"].as_bool().unwrap_or(false));
            if let Some(types) = json["layer_types"].as_array() {
                if types.len() != layers {
                    return Err((
                        "layer_types".to_owned(),
                        format!("names {} layers, there are {layers}", types.len()),
                    ));
                }
                return Ok(types.iter().map(|kind| window.filter(|_| kind == "sliding_attention")).collect());
            }
            let full = json["max_window_layers"].as_u64().unwrap_or(28) as usize;
            Ok((0..layers).map(|layer| window.filter(|_| layer >= full)).collect())
        }
    }
}

/// Rotary settings: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of 4.
fn rope(json: &Value, head_dim: usize, max_position_embeddings: usize) -> std::result::Result<Rope, (String, String)> {
    let nested = if json["rope_parameters"].is_object() { &json["rope_parameters"] } else { &json["rope_scaling"] };
    let theta = nested["rope_theta"].as_f64().or_else(|| json["rope_theta"].as_f64()).unwrap_or(10_000.0);
    let kind = nested["rope_type"].as_str().or_else(|| nested["type"].as_str()).unwrap_or("default");
    let optional = |field: &str| nested[field].as_f64();
    let number = |field: &str| {
        optional(field)
            .filter(|value| *value > 0.0)
            .ok_or_else(|| (format!("rope {field}"), format!("is missing or not positive; rope type {kind} needs it")))
    };
    if optional("partial_rotary_factor")
        .or_else(|| json["partial_rotary_factor"].as_f64())
        .is_some_and(|share| share != 1.0)
    {
        return Err((
            "partial_rotary_factor".to_owned(),
            "is not 1; partial rotation is not built for these families".to_owned(),
        ));
    }
    let scaling = match kind {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: number("factor")? },
        "dynamic" => Scaling::Dynamic { factor: number("factor")?, max_position_embeddings },
        "llama3" => Scaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")?,
        },
        "yarn" => {
            let original =
                number("original_max_position_embeddings").or_else(|error| match max_position_embeddings {
                    0 => Err(error),
                    positions => Ok(positions as f64),
                })?;
            let factor = optional("factor").unwrap_or(max_position_embeddings as f64 / original);
            let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
            let nonzero = |field: &str| optional(field).filter(|value| *value != 0.0);
            let attention_factor =
                optional("attention_factor").unwrap_or_else(|| match (nonzero("mscale"), nonzero("mscale_all_dim")) {
                    (Some(mscale), Some(all)) => scale(mscale) / scale(all),
                    _ => scale(1.0),
                });
            Scaling::Yarn {
                factor,
                beta_fast: nonzero("beta_fast").unwrap_or(32.0),
                beta_slow: nonzero("beta_slow").unwrap_or(1.0),
                original_max_position_embeddings: original,
                attention_factor,
                truncate: nested["truncate"].as_bool().unwrap_or(true),
            }
        }
        other => {
            return Err((
                "rope_type".to_owned(),
                format!("is {other:?}; built are default, linear, dynamic, llama3 and yarn"),
            ));
        }
    };
    Ok(Rope { theta, head_dim, scaling })
}
