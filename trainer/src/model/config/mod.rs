//! `config.json` of Hugging Face, as transformers 4 and 5 write it, resolved into what the decoder needs.
//!
//! What the families have in common is here; what each reads and how it names its weights is in [`super::families`].

mod fields;
mod rope;

use std::path::Path;

use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

pub use fields::Resolved;
pub(super) use fields::{Fields, wrong};
pub(super) use rope::{Defaults, WHOLE};

use super::adapter;
use super::families::{self, Family};
use super::layout::Layout;
use crate::ops::activation::Activation;
use crate::ops::rope::Rope;

/// A config.json beyond this is not one.
const CONFIG_LIMIT: u64 = 1 << 20;

/// The norms of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// RMSNorm, whose weights are added to `offset`.
    Rms {
        /// 0, or 1 in gemma.
        offset: f32,
    },
    /// LayerNorm, with a bias.
    Layer,
}

/// How a layer's two branches and the residual stream go together: with a = attention(norm(x)),
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// h = x + a; h + feed_forward(norm(h)).
    Sequential,
    /// x + a + feed_forward(norm(x)).
    Parallel,
    /// As sequential, but what is added to is the normed value: h = norm(x) + a, and so on.
    Normed,
}

/// How a model knows where a token is.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated, in each layer by one of these.
    Rotary(Vec<Rope>),
    /// Scores fall with the distance.
    Alibi,
    /// A vector for each position is added to the embedding; beyond the last there is none.
    Learned,
}

/// What differs between layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerKind {
    /// Keys that a query sees, itself included; without a window, all before it.
    pub window: Option<usize>,
    /// Which of the rotations.
    pub rope: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
}

/// Shares that are dropped while training.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DropoutRates {
    /// Of the embedded tokens.
    pub embedding: f32,
    /// Of the weights of attention.
    pub attention: f32,
    /// Of what attention adds to the residual stream.
    pub attention_output: f32,
    /// Of what the feed-forward layer adds to it.
    pub feed_forward_output: f32,
}

/// The sizes of a model, under transformers' usual names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
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
    /// The norms.
    pub norm: NormKind,
    /// ε of the norms.
    pub norm_epsilon: f64,
    /// Of the feed-forward layer.
    pub activation: Activation,
    /// How branches join.
    pub residual: Residual,
    /// How positions are told apart.
    pub positions: Positions,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// For each layer, what differs.
    pub layers: Vec<LayerKind>,
    /// Cap of the scores of attention.
    pub attention_softcap: Option<f32>,
    /// Cap of the logits.
    pub logit_softcap: Option<f32>,
    /// What embedded tokens are multiplied by.
    pub embedding_scale: f32,
    /// A token whose row of the embedding gets no gradient for being looked up.
    pub padding_row: Option<u32>,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the rows of the output projection are scaled to length 1 before they are used.
    pub normalized_head: bool,
    /// Dropout.
    pub dropout: DropoutRates,
    /// Spread of initial weights.
    pub initializer_range: f64,
}

impl Config {
    /// Reads `config.json` in `dir`, or the file itself if `dir` is one.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = if dir.is_dir() { dir.join("config.json") } else { dir.to_owned() };
        if storage::stat(&path)?.is_none() {
            let reason = "does not exist; give a directory with a Hugging Face model, or its name on a hub";
            return Err(Error::config(path.display().to_string(), reason));
        }
        let bytes = storage::read_at_most(&path, CONFIG_LIMIT)?;
        let json = serde_json::from_slice(&bytes)
            .map_err(|error| Error::config(path.display().to_string(), format!("is not JSON ({error})")))?;
        Self::resolve(json).map_err(|(field, reason)| Error::config(format!("{}: {field}", path.display()), reason))
    }

    /// Resolves a configuration. Errors are a field and what is wrong with it.
    pub fn resolve(json: Value) -> Resolved<Self> {
        let model_type = json["model_type"].as_str().unwrap_or_default();
        let Some(family) = Family::of(model_type) else {
            let built: Vec<_> = Family::ALL.iter().map(|family| family.model_type()).collect();
            return wrong(
                "model_type",
                format!("is {model_type:?}, a family that is not built; built are {}", built.join(", ")),
            );
        };
        families::resolve(family, &Fields(&json))
    }

    /// A configuration of these sizes that is otherwise like llama's, without positions and weights: what a family
    /// starts from.
    pub(super) fn new(fields: &Fields<'_>, family: Family, sizes: Sizes) -> Resolved<Self> {
        let Sizes { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = sizes;
        if kv_heads == 0 || heads % kv_heads != 0 {
            let reason = format!("is {kv_heads}, which does not divide {heads} attention heads");
            return wrong("num_key_value_heads", reason);
        }
        if head_dim == 0 {
            return wrong("head_dim", "is 0");
        }
        let layer = LayerKind { window: None, rope: 0, scale: 1.0 / (head_dim as f32).sqrt() };
        Ok(Self {
            json: fields.0.clone(),
            family,
            vocab_size: sizes.vocab_size,
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            num_hidden_layers: sizes.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            norm: NormKind::Rms { offset: 0.0 },
            norm_epsilon: fields.number("rms_norm_eps", 1e-6),
            activation: Activation::Silu,
            residual: Residual::Sequential,
            positions: Positions::Alibi,
            max_position_embeddings: fields.optional(&["max_position_embeddings"]).unwrap_or(2048),
            layers: vec![layer; sizes.num_hidden_layers],
            attention_softcap: None,
            logit_softcap: None,
            embedding_scale: 1.0,
            padding_row: None,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false),
            normalized_head: false,
            dropout: DropoutRates::default(),
            initializer_range: fields.number("initializer_range", 0.02),
        })
    }

    /// Features of all query heads together.
    pub(super) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Features of all key heads together, and of all value heads.
    pub(super) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The parameters and where they are used.
    pub(crate) fn layout(&self) -> Layout {
        families::layout(self)
    }

    /// The modules of the input embedding and of the output projection.
    pub(super) fn row_modules(&self) -> [String; 2] {
        let layout = self.layout();
        [layout.embedding_module, layout.head_module]
    }

    /// Whether `name`, as `modules_to_save` has it, means the input embedding.
    pub(crate) fn is_embedding(&self, name: &str) -> bool {
        name == "embeddings" || adapter::is_named(&self.row_modules()[0], name)
    }

    /// Whether `name`, as `modules_to_save` has it, means the output projection.
    pub(crate) fn is_head(&self, name: &str) -> bool {
        name == "lm_head" || adapter::is_named(&self.row_modules()[1], name)
    }
}
