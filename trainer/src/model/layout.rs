//! What weights a model has: their names in Hugging Face checkpoints, in the order of its `named_parameters()`, and
//! which of them each part of a layer uses. Each family lays out its own with a [`Builder`].

use super::config::{Config, NormKind};

/// One parameter that a configuration calls for.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub name: String,
    pub shape: Vec<usize>,
    pub decay: bool,
    pub start: Start,
}

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Start {
    /// Normal, of this spread.
    Normal(f64),
    /// Uniform within plus and minus this bound.
    Uniform(f64),
    Constant(f32),
}

/// Indices of a norm's parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    pub weight: usize,
    pub bias: Option<usize>,
}

/// Indices of a projection's parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Projection {
    pub weight: usize,
    pub bias: Option<usize>,
    /// Whether the weight is (in, out).
    pub input_first: bool,
}

/// The projections of queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Qkv {
    Separate([Projection; 3]),
    /// One projection: all queries, all keys, all values.
    Blocks(Projection),
    /// One projection: of each head its query, key and value.
    PerHead(Projection),
}

/// The feed-forward layer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FeedForward {
    /// down(f(gate) · up).
    Gated { gate: Projection, up: Projection, down: Projection },
    /// The same, gate and up one projection after the other.
    GatedAsOne { gate_up: Projection, down: Projection },
    /// down(f(up)).
    Plain { up: Projection, down: Projection },
}

impl FeedForward {
    /// The projection back into the residual stream.
    pub fn down(&self) -> Projection {
        match *self {
            Self::Gated { down, .. } | Self::GatedAsOne { down, .. } | Self::Plain { down, .. } => down,
        }
    }
}

/// Indices of one layer's parameters. A family lists the parts in the order of its checkpoints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    pub input_norm: Norm,
    pub qkv: Qkv,
    /// Norms of each query's and key's head.
    pub head_norms: Option<[Norm; 2]>,
    pub output: Projection,
    /// Norm of what attention adds to the residual stream.
    pub attention_norm: Option<Norm>,
    pub feed_forward_norm: Norm,
    pub feed_forward: FeedForward,
    /// Norm of what the feed-forward layer adds to the residual stream.
    pub output_norm: Option<Norm>,
}

impl Layer {
    pub(crate) fn projections(&self) -> Vec<Projection> {
        let mut all = match self.qkv {
            Qkv::Separate(three) => three.to_vec(),
            Qkv::Blocks(one) | Qkv::PerHead(one) => vec![one],
        };
        all.push(self.output);
        match self.feed_forward {
            FeedForward::Gated { gate, up, down } => all.extend([gate, up, down]),
            FeedForward::GatedAsOne { gate_up, down } => all.extend([gate_up, down]),
            FeedForward::Plain { up, down } => all.extend([up, down]),
        }
        all
    }
}

/// The parameters of a model and where they are used.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The parameters, in order.
    pub specs: Vec<Spec>,
    pub embedding: usize,
    /// A learned vector for each position.
    pub positions: Option<usize>,
    /// Norm of the embedded tokens.
    pub embedding_norm: Option<Norm>,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    /// The output projection; in a tied model the embedding.
    pub head: usize,
    /// The module of the embedding, and that of a head of its own; their weights are `<module>.weight`.
    pub embedding_module: String,
    pub head_module: String,
}

impl Layout {
    /// The projections of all layers, in parameter order.
    pub fn projections(&self) -> Vec<Projection> {
        let mut all: Vec<_> = self.layers.iter().flat_map(Layer::projections).collect();
        all.sort_by_key(|projection| projection.weight);
        all
    }
}

/// Lays out parameters one after the other.
#[derive(Debug)]
pub(crate) struct Builder {
    specs: Vec<Spec>,
    /// What the names of the parameters to come begin with.
    pub prefix: String,
    spread: f64,
    norm: NormKind,
}

impl Builder {
    pub fn new(config: &Config) -> Self {
        Self { specs: Vec::new(), prefix: String::new(), spread: config.initializer_range, norm: config.norm }
    }

    fn add(&mut self, name: &str, shape: &[usize], decay: bool, start: Start) -> usize {
        self.specs.push(Spec { name: format!("{}{name}", self.prefix), shape: shape.to_vec(), decay, start });
        self.specs.len() - 1
    }

    /// The matrix `<name>.weight`, (rows, columns).
    pub fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> usize {
        self.add(&format!("{name}.weight"), &[rows, columns], true, Start::Normal(self.spread))
    }

    /// A projection from `input` to `output` features.
    pub fn linear(&mut self, name: &str, input: usize, output: usize, bias: bool) -> Projection {
        let weight = self.matrix(name, output, input);
        Projection { weight, bias: bias.then(|| self.bias(name, output)), input_first: false }
    }

    /// The same with the input first, and a bias.
    pub fn conv1d(&mut self, name: &str, input: usize, output: usize) -> Projection {
        let weight = self.matrix(name, input, output);
        Projection { weight, bias: Some(self.bias(name, output)), input_first: true }
    }

    fn bias(&mut self, name: &str, width: usize) -> usize {
        self.add(&format!("{name}.bias"), &[width], false, Start::Constant(0.0))
    }

    /// A norm of the model's kind.
    pub fn norm(&mut self, name: &str, width: usize) -> Norm {
        let (one, has_bias) = match self.norm {
            NormKind::Rms { offset } => (1.0 - offset, false),
            NormKind::Layer => (1.0, true),
        };
        let weight = self.add(&format!("{name}.weight"), &[width], false, Start::Constant(one));
        Norm { weight, bias: has_bias.then(|| self.bias(name, width)) }
    }

    /// Makes the projection laid out last begin smaller, because one more is added to the residual stream in each of so
    /// many places (GPT-2's rule).
    pub fn scaled_for_residuals(&mut self, projection: Projection, places: usize) -> Projection {
        self.specs[projection.weight].start = Start::Normal(self.spread / (places as f64).sqrt());
        projection
    }

    /// Separate projections of queries, keys and values, as llama names them.
    pub fn separate(&mut self, config: &Config, bias: bool) -> Qkv {
        let (hidden, queries, keys) = (config.hidden_size, config.query_width(), config.key_width());
        Qkv::Separate([
            self.linear("self_attn.q_proj", hidden, queries, bias),
            self.linear("self_attn.k_proj", hidden, keys, bias),
            self.linear("self_attn.v_proj", hidden, keys, bias),
        ])
    }

    /// A gated feed-forward layer, as llama names it.
    pub fn gated(&mut self, config: &Config, bias: bool) -> FeedForward {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        FeedForward::Gated {
            gate: self.linear("mlp.gate_proj", hidden, inner, bias),
            up: self.linear("mlp.up_proj", hidden, inner, bias),
            down: self.linear("mlp.down_proj", inner, hidden, bias),
        }
    }

    /// The embedding, all layers and the last norm under llama's names, the head under `lm_head`.
    pub fn llama_like(mut self, config: &Config, layer: impl Fn(&mut Self) -> Layer) -> Layout {
        let embedding = self.matrix("model.embed_tokens", config.vocab_size, config.hidden_size);
        let layers = self.layers("model.layers", config, layer);
        let final_norm = self.norm("model.norm", config.hidden_size);
        self.finish(config, "lm_head", Parts { embedding, positions: None, embedding_norm: None, layers, final_norm })
    }

    /// All layers; `name` and a number are what their names begin with.
    pub fn layers(&mut self, name: &str, config: &Config, layer: impl Fn(&mut Self) -> Layer) -> Vec<Layer> {
        let layers = (0..config.num_hidden_layers).map(|number| {
            self.prefix = format!("{name}.{number}.");
            layer(self)
        });
        let layers = layers.collect();
        self.prefix.clear();
        layers
    }

    /// The layout, with a head of this name unless the model is tied.
    pub fn finish(mut self, config: &Config, head: &str, parts: Parts) -> Layout {
        let Parts { embedding, positions, embedding_norm, layers, final_norm } = parts;
        let embedding_module = self.specs[embedding].name.trim_end_matches(".weight").to_owned();
        let mut head_index = embedding;
        if !config.tie_word_embeddings {
            head_index = self.matrix(head, config.vocab_size, config.hidden_size);
        }
        if config.normalized_head {
            self.specs[head_index].start = Start::Uniform(1.0 / (config.hidden_size as f64).sqrt());
        }
        Layout {
            specs: self.specs,
            embedding,
            positions,
            embedding_norm,
            layers,
            final_norm,
            head: head_index,
            embedding_module,
            head_module: head.to_owned(),
        }
    }
}

/// What a layout has besides its parameters and head; see [`Layout`].
#[derive(Debug)]
pub(crate) struct Parts {
    pub embedding: usize,
    pub positions: Option<usize>,
    pub embedding_norm: Option<Norm>,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
}
