//! The decoder on a GPU: forward, and the backward that walks it in reverse. The same mathematics as
//! [`crate::model`]'s decoder, from the same configuration and layout.
//!
//! The residual stream, statistics and losses are float32; in bf16, what a projection takes and gives is bf16, as under
//! autocast. A branch is added to the residual stream by the norm that comes next.

use std::sync::Arc;

use tokenmill_shared::{Error, Result};

use super::buffers::{Buffers, Ended, Saved, Sizes, Widths};
use super::device::{Device, Element, Matrix, Memory, Span};
use super::embedding::EmbeddingOrder;
use super::ops::{Branch, Heads, Norm, Ops, Statistics};
use super::weights::Weights;
use crate::model::layout::{self, FeedForward, Layout, Projection, Qkv};
use crate::model::{
    Adapters, Batch, Config, EmbeddingNoise, Parameter, Place, Positions, QuantisedWeights, Residual, Seed,
};
use crate::ops::alibi;
use crate::ops::cross_entropy::{IGNORE, Loss};
use crate::ops::dropout::Dropout;
use crate::ops::precision::Precision;

/// Projections that are one product because their weights lie together.
#[derive(Debug, Clone)]
struct Linear {
    weights: Vec<usize>,
    biases: Vec<usize>,
    input: usize,
    output: usize,
    input_first: bool,
    adapters: Vec<Adapter>,
}

/// A low-rank pair beside one of the weights of a product, and which of its outputs are that weight's.
#[derive(Debug, Clone, Copy)]
struct Adapter {
    weight: usize,
    a: usize,
    b: usize,
    rank: usize,
    scale: f32,
    first: usize,
    output: usize,
}

/// The projections of a layer.
#[derive(Debug, Clone)]
struct Layer {
    qkv: Linear,
    output: Linear,
    up: Linear,
    gated: bool,
    down: Linear,
    heads: Heads,
}

/// A rotation's cosines and sines, for sequences of some length.
#[derive(Debug)]
struct Table {
    cosines: Memory,
    sines: Memory,
    half: usize,
    interleaved: bool,
}

/// A micro-batch's sizes.
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    time: usize,
    /// Whether sequences are cut into documents.
    cut: bool,
}

impl Shape {
    fn of(batch: &Batch) -> Self {
        Self { batch: batch.batch_size, time: batch.seq_len, cut: batch.documents.is_some() }
    }

    fn rows(self) -> usize {
        self.batch * self.time
    }
}

/// A causal language model in the memory of a GPU.
#[derive(Debug)]
pub struct Decoder {
    ops: Ops,
    /// For what is float32 in any case.
    plain: Ops,
    config: Config,
    layout: Layout,
    layers: Vec<Layer>,
    weights: Weights,
    buffers: Option<Buffers>,
    tables: Option<(usize, Vec<Table>)>,
    slopes: Option<Memory>,
    /// The largest rank of adapters, and the share of their input that is dropped while training.
    rank: usize,
    adapter_dropout: f32,
    /// What is dropped in the pass that goes on, and the noise on its embeddings; nothing in an evaluation.
    dropping: Option<Seed>,
    noise: Option<EmbeddingNoise>,
}

/// What a model is, as far as it is copied.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// What is computed.
    pub config: &'a Config,
    /// From which weights.
    pub layout: &'a Layout,
    /// Their values.
    pub parameters: &'a [Parameter],
    /// Those of weights in fewer bits.
    pub quantised: &'a QuantisedWeights,
    /// The pairs beside them.
    pub adapters: Option<&'a Adapters>,
    /// Of the products.
    pub precision: Precision,
}

impl Decoder {
    /// Copies a model to the GPU. What [`unsupported`](super::unsupported) says must have been refused before.
    pub fn new(device: Arc<Device>, parts: Parts<'_>) -> Result<Self> {
        let Parts { config, layout, parameters, quantised, adapters, precision } = parts;
        let element = match precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
            Precision::F16 => return Err(Error::config("--fp16", "is not built for the GPU; use --bf16")),
        };
        let ops = Ops { device: device.clone(), element };
        let dims = |index: usize| -> (usize, usize) {
            let dims = parameters[index].tensor.dims();
            (dims[0], dims[1])
        };
        let linear = |projections: &[Projection]| {
            let input_first = projections[0].input_first;
            let sizes = projections.iter().map(|projection| {
                let (rows, columns) = dims(projection.weight);
                if input_first { (columns, rows) } else { (rows, columns) }
            });
            let sizes: Vec<_> = sizes.collect();
            let mut first = 0;
            let pairs = projections.iter().zip(&sizes).filter_map(|(projection, (output, _))| {
                first += output;
                let pair = adapters?.pair(parameters, projection.weight, None, precision)?;
                let (a, b, rank) = (pair.a.1, pair.b.1, dims(pair.a.1).0);
                let first = first - output;
                Some(Adapter { weight: projection.weight, a, b, rank, scale: pair.scale, first, output: *output })
            });
            Linear {
                adapters: pairs.collect(),
                weights: projections.iter().map(|projection| projection.weight).collect(),
                biases: projections.iter().filter_map(|projection| projection.bias).collect(),
                input: sizes[0].1,
                output: sizes.iter().map(|(output, _)| output).sum(),
                // In fewer bits it is kept the other way round.
                input_first: input_first && !quantised.contains_key(&projections[0].weight),
            }
        };
        let layers = layout.layers.iter().zip(&config.layers).map(|(layer, kind)| {
            let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
            let head_dim = i32::try_from(config.head_dim).expect("sizes of a model fit an int");
            let in_blocks = Heads::in_blocks(heads, kv_heads, config.head_dim);
            let (qkv, heads) = match layer.qkv {
                Qkv::Separate(three) => (linear(&three), in_blocks),
                Qkv::Blocks(one) => (linear(&[one]), in_blocks),
                Qkv::PerHead(one) => {
                    let (q_step, kv_step) = (3 * head_dim, 3 * head_dim);
                    (linear(&[one]), Heads { k: head_dim, v: 2 * head_dim, q_step, kv_step, ..in_blocks })
                }
            };
            let window = kind.window.map_or(0, |window| i32::try_from(window).unwrap_or(i32::MAX));
            let (up, gated, down) = match layer.feed_forward {
                FeedForward::Gated { gate, up, down } => (linear(&[gate, up]), true, down),
                FeedForward::GatedAsOne { gate_up, down } => (linear(&[gate_up]), true, down),
                FeedForward::Plain { up, down } => (linear(&[up]), false, down),
            };
            Layer {
                qkv,
                output: linear(&[layer.output]),
                up,
                gated,
                down: linear(&[down]),
                heads: Heads { scale: kind.scale, window, softcap: config.attention_softcap.unwrap_or(0.0), ..heads },
            }
        });
        let layers: Vec<Layer> = layers.collect();
        let products = layers.iter().flat_map(|layer| [&layer.qkv, &layer.output, &layer.up, &layer.down]);
        let rank = products.flat_map(|linear| &linear.adapters).map(|adapter| adapter.rank).max().unwrap_or(0);
        let slopes = if config.positions == Positions::Alibi {
            let slopes = alibi::slopes(config.num_attention_heads);
            let memory = device.allocate(slopes.len(), 4)?;
            device.upload(&slopes, memory.span)?;
            Some(memory)
        } else {
            None
        };
        Ok(Self {
            weights: Weights::new(ops.clone(), layout, parameters, quantised)?,
            rank,
            adapter_dropout: adapters.map_or(0.0, Adapters::dropout),
            dropping: None,
            noise: None,
            plain: Ops { device, element: Element::F32 },
            ops,
            config: config.clone(),
            layout: layout.clone(),
            layers,
            buffers: None,
            tables: None,
            slopes,
        })
    }

    /// Parameters, gradients and moments.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The same, to be changed.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// Adds the gradients of one micro-batch's loss; see [`Model::forward_backward`](crate::model::Model). `scales`: of
    /// the loss, and of the mean over all tokens in it.
    pub fn forward_backward(
        &mut self,
        batch: &Batch,
        scales: (f32, f32),
        recompute: bool,
        (seed, noise): (Seed, Option<EmbeddingNoise>),
    ) -> Result<Loss> {
        (self.dropping, self.noise) = (Some(seed), noise);
        let layers = self.layers.len();
        let buffers = self.prepare(batch, if recompute { 1 } else { layers }, layers + 1)?;
        let result = self.pass(batch, scales, recompute, buffers);
        self.finish(batch, result)
    }

    /// Loss and accuracy of one micro-batch, without gradients.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<Loss> {
        (self.dropping, self.noise) = (None, None);
        let buffers = self.prepare(batch, 1, 2)?;
        let shape = Shape::of(batch);
        let result = self.forward(shape, &buffers).and_then(|()| self.loss(shape, &buffers, None)).map(|()| buffers);
        self.finish(batch, result)
    }

    /// Logits of the last position of one sequence: (vocab).
    pub fn next_logits(&mut self, input_ids: &[u32]) -> Result<Vec<f32>> {
        let batch = Batch::new(input_ids.to_vec(), 1);
        (self.dropping, self.noise) = (None, None);
        let buffers = self.prepare(&batch, 1, 2)?;
        self.forward(Shape::of(&batch), &buffers)?;
        let (width, vocab, size) = (self.config.hidden_size, self.config.vocab_size, self.ops.element.size());
        let last = buffers.states.part((input_ids.len() - 1) * width, width, size);
        self.head_product(last, 1, &buffers)?;
        let logits = buffers.logits.part(0, vocab, size);
        let mut found = vec![0f32; vocab];
        if size == 4 {
            self.ops.device.download(logits, &mut found)?;
        } else {
            let mut half = vec![half::bf16::ZERO; vocab];
            self.ops.device.download(logits, &mut half)?;
            found.iter_mut().zip(half).for_each(|(to, from)| *to = from.to_f32());
        }
        self.buffers = Some(buffers);
        if let Some(cap) = self.config.logit_softcap {
            found.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(found)
    }

    /// Takes the buffers, made larger where they must be, and sends ids and labels to the GPU.
    fn prepare(&mut self, batch: &Batch, kept: usize, inputs: usize) -> Result<Buffers> {
        let rows = batch.input_ids.len();
        let vocab = self.config.vocab_size as u32;
        if let Some(id) = batch.input_ids.iter().find(|id| **id >= vocab) {
            return Err(Error::config("model", format!("token id {id} has no embedding row; there are {vocab}")));
        }
        let targets = batch.targets();
        if let Some(label) = targets.iter().find(|label| **label != IGNORE && **label >= vocab) {
            let reason = format!("label {label} has no row in the output projection; there are {vocab}");
            return Err(Error::config("model", reason));
        }
        let fits = |has: &Sizes| has.rows >= rows && has.kept >= kept && has.inputs >= inputs;
        let mut buffers = match self.buffers.take() {
            Some(buffers) if fits(&buffers.sizes) => buffers,
            before => {
                let had = before.as_ref().map_or(Sizes { rows: 0, kept: 0, inputs: 0 }, |buffers| buffers.sizes);
                drop(before);
                let sizes =
                    Sizes { rows: rows.max(had.rows), kept: kept.max(had.kept), inputs: inputs.max(had.inputs) };
                let widths = Widths {
                    qkv: self.layers[0].qkv.output,
                    up: self.layers[0].up.output,
                    rank: self.rank,
                    drops: self.adapter_dropout > 0.0,
                };
                Buffers::new(&self.ops, &self.config, sizes, widths)?
            }
        };
        if self.tables.as_ref().is_none_or(|(time, _)| *time != batch.seq_len) {
            self.tables = Some((batch.seq_len, self.make_tables(batch.seq_len)?));
        }
        let mut words: Vec<u32> = batch.input_ids.iter().copied().chain(targets).collect();
        if let Some(documents) = &batch.documents {
            let all = || (0..batch.batch_size).flat_map(|sequence| documents.of(sequence));
            words.extend(all().flat_map(|document| std::iter::repeat_n(document.start as u32, document.len())));
            words.extend(all().flat_map(|document| std::iter::repeat_n(document.end as u32, document.len())));
        }
        self.ops.device.send(&words, &mut buffers.pinned[0], buffers.ids)?;
        Ok(buffers)
    }

    fn make_tables(&self, time: usize) -> Result<Vec<Table>> {
        let Positions::Rotary(ropes) = &self.config.positions else { return Ok(Vec::new()) };
        let device = &self.ops.device;
        let tables = ropes.iter().map(|rope| {
            let table = rope.table(time);
            let [cosines, sines] = [table.cosines(), table.sines()].map(|values| {
                let memory = device.allocate(values.len(), 4)?;
                device.upload(values, memory.span)?;
                Ok(memory)
            });
            let (half, interleaved) = (rope.features / 2, rope.interleaved);
            Ok(Table { cosines: cosines?, sines: sines?, half, interleaved })
        });
        tables.collect()
    }

    /// Waits for the loss of a pass, and keeps its buffers.
    fn finish(&mut self, batch: &Batch, result: Result<Buffers>) -> Result<Loss> {
        let buffers = result?;
        let mut sums = [0f64; 3];
        self.ops.device.download(buffers.sums, &mut sums)?;
        self.buffers = Some(buffers);
        Ok(Loss { nll: sums[0], smooth: sums[1], correct: sums[2] as u64, tokens: batch.label_tokens() })
    }

    fn pass(&mut self, batch: &Batch, scales: (f32, f32), recompute: bool, mut buffers: Buffers) -> Result<Buffers> {
        let shape = Shape::of(batch);
        let size = (shape.rows(), self.config.hidden_size);
        self.forward(shape, &buffers)?;
        self.loss(shape, &buffers, Some(scales))?;
        let b = &buffers;
        let norm = self.norm(self.layout.final_norm);
        let x = (b.input(self.layers.len()), b.states_statistics);
        self.norm_weights_backward(b.dnormed, x, self.layout.final_norm, size.0, b)?;
        self.ops.norm_backward(b.dnormed, x, &norm, (b.dx, false), b.rounded, size)?;
        for number in (0..self.layers.len()).rev() {
            if recompute {
                self.layer(number, shape, None, b)?;
            }
            self.layer_backward(number, shape, b)?;
        }
        self.embed_backward(shape, batch, &mut buffers)?;
        Ok(buffers)
    }

    fn norm(&self, norm: layout::Norm) -> Norm {
        let width = self.config.hidden_size;
        self.norm_of(norm, width)
    }

    fn norm_of(&self, norm: layout::Norm, width: usize) -> Norm {
        Norm {
            weight: self.weights.master(norm.weight, width),
            bias: norm.bias.map(|bias| self.weights.master(bias, width)),
            kind: self.config.norm,
            epsilon: self.config.norm_epsilon as f32,
        }
    }

    /// The gradients of a norm's weight and bias.
    fn norm_weights_backward(
        &mut self,
        dy: Span,
        x: (Span, Statistics),
        norm: layout::Norm,
        rows: usize,
        b: &Buffers,
    ) -> Result<()> {
        let Some(weight) = self.weights.gradient(&[norm.weight]) else { return Ok(()) };
        let bias = norm.bias.and_then(|bias| self.weights.gradient(&[bias]));
        let values = self.norm(norm);
        self.ops.norm_weights_backward(dy, x, &values, (weight, bias), b.pieces, (rows, self.config.hidden_size))
    }

    fn bias(&self, linear: &Linear) -> Option<Span> {
        linear.biases.first().map(|bias| self.weights.master(*bias, linear.output))
    }

    fn weight(&self, linear: &Linear) -> Result<Matrix> {
        let span = self.weights.operand(&linear.weights, linear.input * linear.output)?;
        // (out, in), or stored the other way round.
        Ok(if linear.input_first {
            self.ops.matrix(span, linear.output).t()
        } else {
            self.ops.matrix(span, linear.input)
        })
    }

    /// y: (rows, out) = x Wᵀ, without the bias.
    fn project(&self, x: Span, linear: &Linear, y: Span, rows: usize, b: &Buffers) -> Result<()> {
        let (input, to) = (self.ops.matrix(x, linear.input), self.ops.matrix(y, linear.output));
        let size = (rows, linear.output, linear.input);
        self.ops.device.multiply((input, self.weight(linear)?.t(), to), size, false)?;
        linear.adapters.iter().try_for_each(|adapter| {
            let (_, u) = self.adapter_down(x, linear, adapter, rows, b)?;
            let (_, up) = self.adapter_weights(linear, adapter)?;
            let to = self.outputs_of(y, linear, adapter, rows);
            self.ops.device.multiply((u, up.t(), to), (rows, adapter.output, adapter.rank), true)
        })
    }

    /// A: (rank, in), and B: (out, rank).
    fn adapter_weights(&self, linear: &Linear, adapter: &Adapter) -> Result<(Matrix, Matrix)> {
        let a = self.weights.operand(&[adapter.a], adapter.rank * linear.input)?;
        let b = self.weights.operand(&[adapter.b], adapter.output * adapter.rank)?;
        Ok((self.ops.matrix(a, linear.input), self.ops.matrix(b, adapter.rank)))
    }

    /// The columns of y: (rows, out) that an adapter stands beside.
    fn outputs_of(&self, y: Span, linear: &Linear, adapter: &Adapter, rows: usize) -> Matrix {
        let count = (rows - 1) * linear.output + adapter.output;
        self.ops.matrix(y.part(adapter.first, count, self.ops.element.size()), linear.output)
    }

    fn dropout(&self, rate: f32, place: Place) -> Option<Dropout> {
        self.dropping?.dropout(rate, place)
    }

    fn adapter_dropout(&self, adapter: &Adapter) -> Option<Dropout> {
        self.dropout(self.adapter_dropout, Place::Adapter(adapter.weight))
    }

    fn embedding_dropout(&self) -> Option<Dropout> {
        self.dropout(self.config.dropout.embedding, Place::Embedding)
    }

    /// What is dropped of what attention adds to the residual stream in a layer, and of what the feed-forward layer adds.
    fn end_dropout(&self, number: usize) -> [Option<Dropout>; 2] {
        let rates = self.config.dropout;
        [
            self.dropout(rates.attention_output, Place::AttentionOutput(number)),
            self.dropout(rates.feed_forward_output, Place::FeedForwardOutput(number)),
        ]
    }

    /// What an adapter takes: x: (rows, in), with its part dropped; and `scale · x Aᵀ`, (rows, rank).
    fn adapter_down(
        &self,
        x: Span,
        linear: &Linear,
        adapter: &Adapter,
        rows: usize,
        b: &Buffers,
    ) -> Result<(Matrix, Matrix)> {
        let input = match self.adapter_dropout(adapter) {
            None => x,
            Some(dropout) => {
                self.ops.dropout(b.dropped, x, dropout, false, rows * linear.input)?;
                b.dropped
            }
        };
        let (input, u) = (self.ops.matrix(input, linear.input), self.ops.matrix(b.low_rank, adapter.rank));
        let (down, _) = self.adapter_weights(linear, adapter)?;
        let size = (rows, adapter.rank, linear.input);
        self.ops.device.multiply_scaled((input, down.t(), u), size, adapter.scale, false)?;
        Ok((input, u))
    }

    /// Given dy: (rows, out), adds what goes through an adapter to dx: (rows, in); and the gradients of A and B.
    fn adapter_backward(
        &mut self,
        (dy, x, dx): (Span, Span, Span),
        linear: &Linear,
        adapter: &Adapter,
        rows: usize,
        b: &Buffers,
    ) -> Result<()> {
        let (input, u) = self.adapter_down(x, linear, adapter, rows, b)?;
        let gradients = self.weights.gradient(&[adapter.a]).zip(self.weights.gradient(&[adapter.b]));
        let Some(((of_a, add_a), (of_b, add_b))) = gradients else {
            return Err(Error::config("GPU", "a frozen adapter; report this"));
        };
        let (of_a, of_b) =
            (Matrix::new(of_a, linear.input, Element::F32), Matrix::new(of_b, adapter.rank, Element::F32));
        let dy = self.outputs_of(dy, linear, adapter, rows);
        let (device, (down, up)) = (&self.ops.device, self.adapter_weights(linear, adapter)?);
        device.multiply((dy.t(), u, of_b), (adapter.output, adapter.rank, rows), add_b)?;
        // u is not needed any more.
        let du = u;
        device.multiply_scaled((dy, up, du), (rows, adapter.rank, adapter.output), adapter.scale, false)?;
        device.multiply((du.t(), input, of_a), (adapter.rank, linear.input, rows), add_a)?;
        let size = (rows, linear.input, adapter.rank);
        let Some(dropout) = self.adapter_dropout(adapter) else {
            return device.multiply((du, down, self.ops.matrix(dx, linear.input)), size, true);
        };
        device.multiply((du, down, self.ops.matrix(b.dropped, linear.input)), size, false)?;
        self.ops.dropout(dx, b.dropped, dropout, true, rows * linear.input)
    }

    /// dx: (rows, in) = dy W; and the gradient of the weight, if it is trained, and of its adapters.
    fn project_backward(
        &mut self,
        dy: Span,
        x: Span,
        linear: &Linear,
        dx: Span,
        rows: usize,
        b: &Buffers,
    ) -> Result<()> {
        let gradient = self.weights.gradient(&linear.weights);
        let (dy_matrix, x_matrix) = (self.ops.matrix(dy, linear.output), self.ops.matrix(x, linear.input));
        let device = &self.ops.device;
        if let Some((gradient, add)) = gradient {
            if linear.input_first {
                let gradient = Matrix::new(gradient, linear.output, Element::F32);
                device.multiply((x_matrix.t(), dy_matrix, gradient), (linear.input, linear.output, rows), add)?;
            } else {
                let gradient = Matrix::new(gradient, linear.input, Element::F32);
                device.multiply((dy_matrix.t(), x_matrix, gradient), (linear.output, linear.input, rows), add)?;
            }
        }
        let to = self.ops.matrix(dx, linear.input);
        device.multiply((dy_matrix, self.weight(linear)?, to), (rows, linear.input, linear.output), false)?;
        linear.adapters.iter().try_for_each(|adapter| self.adapter_backward((dy, x, dx), linear, adapter, rows, b))
    }

    /// The gradient of a projection's bias, if it has one.
    fn bias_backward(&mut self, dy: (Span, Element), linear: &Linear, rows: usize, b: &Buffers) -> Result<()> {
        if linear.biases.is_empty() {
            return Ok(());
        }
        let Some(bias) = self.weights.gradient(&linear.biases) else { return Ok(()) };
        self.ops.bias_backward(dy, bias, b.pieces, (rows, linear.output))
    }

    /// Everything up to what the head takes.
    fn forward(&self, shape: Shape, b: &Buffers) -> Result<()> {
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let embedding = self.weights.master(self.layout.embedding, self.config.vocab_size * width);
        let positions = self.layout.positions.map(|index| self.weights.master(index, shape.time * width));
        let sizes = (rows, shape.time, width);
        let to = if self.layout.embedding_norm.is_some() { b.embedded } else { b.input(0) };
        let positions = (positions, Self::documents(shape, b).map(|(starts, _)| starts));
        self.ops.embed(to, b.ids, (embedding, self.config.embedding_scale), positions, sizes)?;
        if let Some(noise) = self.noise {
            self.ops.add_noise(to, noise.stream(), noise.bound(shape.time, width), rows * width)?;
        }
        if let Some(dropout) = self.embedding_dropout() {
            self.plain.dropout(to, to, dropout, false, rows * width)?;
        }
        if let Some(norm) = self.layout.embedding_norm {
            let norm = self.norm(norm);
            self.plain.norm(Some(to), None, (to, b.input(0)), b.embedded_statistics, &norm, (rows, width))?;
        }
        let mut before = None;
        for number in 0..self.layers.len() {
            let branch = self.layer(number, shape, before, b)?;
            before = Some((b.saved(number).middle, branch));
        }
        let (x, branch) = before.map_or((b.input(0), None), |(x, branch)| (x, Some(branch)));
        let norm = self.norm(self.layout.final_norm);
        let sum = b.input(self.layers.len());
        self.ops.norm(Some(x), branch, (sum, b.states), b.states_statistics, &norm, (rows, width))
    }

    /// What a branch adds to the residual stream, given the product of its last projection: that, or the norm of that.
    fn end(
        &self,
        linear: &Linear,
        norm: Option<layout::Norm>,
        (saved, dropout): (Ended, Option<Dropout>),
        rows: usize,
        b: &Buffers,
    ) -> Result<Branch> {
        let branch = Branch { values: b.branch, bias: self.bias(linear), dropout };
        let Some(norm) = norm else { return Ok(branch) };
        let (norm, size) = (self.norm(norm), (rows, self.config.hidden_size));
        self.ops.norm(None, Some(branch), (saved.sum, b.branch), saved.statistics, &norm, size)?;
        Ok(Branch { values: b.branch, bias: None, dropout: None })
    }

    /// The gradient of the product of a branch's last projection, given that of the residual stream; and what that of its
    /// bias is a sum of.
    fn end_backward(
        &mut self,
        norm: Option<layout::Norm>,
        (saved, dropout): (Ended, Option<Dropout>),
        rows: usize,
        b: &Buffers,
    ) -> Result<(Span, (Span, Element))> {
        let size = (rows, self.config.hidden_size);
        let mut dy = b.rounded;
        if let Some(norm) = norm {
            let x = (saved.sum, saved.statistics);
            self.norm_weights_backward(dy, x, norm, rows, b)?;
            let norm = self.norm(norm);
            let to = if self.ops.element == Element::F32 { b.branch } else { b.dbranch };
            self.ops.norm_backward(dy, x, &norm, (to, false), b.branch, size)?;
            dy = b.branch;
        }
        if let Some(dropout) = dropout {
            self.ops.dropout(b.branch, dy, dropout, false, size.0 * size.1)?;
            dy = b.branch;
        }
        // Of what was not changed there is more than was rounded.
        let of_bias = if dy == b.rounded { (b.dx, Element::F32) } else { (dy, self.ops.element) };
        Ok((dy, of_bias))
    }

    /// One layer, from the residual stream and the branch that is still to be added to it, or from its kept input, up to
    /// its own last branch, which is to be added to `middle`.
    fn layer(&self, number: usize, shape: Shape, before: Option<(Span, Branch)>, b: &Buffers) -> Result<Branch> {
        let (layer, parts, saved) = (&self.layers[number], &self.layout.layers[number], b.saved(number));
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let (input, size) = (b.input(number), (rows, width));
        let (x, branch) = before.map_or((input, None), |(x, branch)| (x, Some(branch)));
        let norm = self.norm(parts.input_norm);
        self.ops.norm(Some(x), branch, (input, saved.y), saved.input_statistics, &norm, size)?;
        self.project(saved.y, &layer.qkv, saved.raw, rows, b)?;
        if let Some(bias) = self.bias(&layer.qkv) {
            self.ops.add_bias(saved.raw, bias, (rows, layer.qkv.output))?;
        }
        let heads = self.heads(layer, number, shape, b);
        if let Some(norms) = parts.head_norms {
            let norms = norms.map(|norm| self.norm_of(norm, self.config.head_dim));
            self.ops.head_norms(saved.raw, saved.qkv, &norms, heads)?;
        }
        if let Some(table) = self.table(number) {
            let tables = (table.cosines.span, table.sines.span);
            self.ops.rope(saved.qkv, tables, (table.half, table.interleaved), heads, false)?;
        }
        self.ops.attention(saved.qkv, saved.out, saved.log_sums, self.slopes(), heads)?;
        self.project(saved.out, &layer.output, b.branch, rows, b)?;
        let [of_attention, of_output] = self.end_dropout(number);
        let branch = self.end(&layer.output, parts.attention_norm, (saved.attention_end, of_attention), rows, b)?;
        let norm = self.norm(parts.feed_forward_norm);
        let to = (saved.middle, saved.z);
        if self.config.residual == Residual::Parallel {
            self.ops.add_branch(input, branch, saved.middle, size)?;
            self.ops.norm(Some(input), None, to, saved.middle_statistics, &norm, size)?;
        } else {
            self.ops.norm(Some(input), Some(branch), to, saved.middle_statistics, &norm, size)?;
        }
        self.project(saved.z, &layer.up, saved.up, rows, b)?;
        let inner = (rows, layer.down.input);
        self.ops.activation(self.config.activation, saved.up, self.bias(&layer.up), saved.gated, layer.gated, inner)?;
        self.project(saved.gated, &layer.down, b.branch, rows, b)?;
        self.end(&layer.down, parts.output_norm, (saved.output_end, of_output), rows, b)
    }

    /// Turns the gradient of a layer's output in `dx` into that of its input.
    fn layer_backward(&mut self, number: usize, shape: Shape, b: &Buffers) -> Result<()> {
        let layer = self.layers[number].clone();
        let parts = self.layout.layers[number];
        let Saved { y, raw, qkv, out, log_sums, middle, z, up, gated, .. } = b.saved(number);
        let Saved { input_statistics, middle_statistics, attention_end, output_end, .. } = b.saved(number);
        let [of_attention, of_output] = self.end_dropout(number);
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let element = self.ops.element;

        let (dy, of_bias) = self.end_backward(parts.output_norm, (output_end, of_output), rows, b)?;
        self.bias_backward(of_bias, &layer.down, rows, b)?;
        self.project_backward(dy, gated, &layer.down, b.dgated, rows, b)?;
        let inner = (rows, layer.down.input);
        self.ops.activation_backward(self.config.activation, b.dgated, up, layer.gated, inner)?;
        self.bias_backward((up, element), &layer.up, rows, b)?;
        self.project_backward(up, z, &layer.up, b.dnormed, rows, b)?;
        let parallel = self.config.residual == Residual::Parallel;
        let x = (if parallel { b.input(number) } else { middle }, middle_statistics);
        self.norm_weights_backward(b.dnormed, x, parts.feed_forward_norm, rows, b)?;
        let norm = self.norm(parts.feed_forward_norm);
        let into_dx =
            |decoder: &Self| decoder.ops.norm_backward(b.dnormed, x, &norm, (b.dx, true), b.rounded, (rows, width));
        // In parallel, what attention adds has the gradient of the layer's output.
        if !parallel {
            into_dx(self)?;
        }

        let (dy, of_bias) = self.end_backward(parts.attention_norm, (attention_end, of_attention), rows, b)?;
        self.bias_backward(of_bias, &layer.output, rows, b)?;
        self.project_backward(dy, out, &layer.output, b.dout, rows, b)?;
        let heads = self.heads(&layer, number, shape, b);
        let scratch = (b.delta, b.expanded);
        self.ops.attention_backward(b.dout, (qkv, out, log_sums), scratch, b.dqkv, self.slopes(), heads)?;
        if let Some(table) = self.table(number) {
            let tables = (table.cosines.span, table.sines.span);
            self.ops.rope(b.dqkv, tables, (table.half, table.interleaved), heads, true)?;
        }
        if let Some(norms) = parts.head_norms {
            let [of_q, of_k] = norms.map(|norm| self.weights.gradient(&[norm.weight]));
            let gradients = of_q.zip(of_k).map(|(of_q, of_k)| [of_q, of_k]);
            let norms = norms.map(|norm| self.norm_of(norm, self.config.head_dim));
            self.ops.head_norms_backward(b.dqkv, raw, &norms, gradients, b.pieces, heads)?;
        }
        self.bias_backward((b.dqkv, element), &layer.qkv, rows, b)?;
        self.project_backward(b.dqkv, y, &layer.qkv, b.dattended, rows, b)?;
        if parallel {
            into_dx(self)?;
        }
        let x = (b.input(number), input_statistics);
        self.norm_weights_backward(b.dattended, x, parts.input_norm, rows, b)?;
        let norm = self.norm(parts.input_norm);
        self.ops.norm_backward(b.dattended, x, &norm, (b.dx, true), b.rounded, (rows, width))
    }

    fn heads(&self, layer: &Layer, number: usize, shape: Shape, b: &Buffers) -> Heads {
        let dropout = self.dropout(self.config.dropout.attention, Place::Attention(number));
        let (key, rate) = dropout.map_or((0, 0.0), |dropout| (dropout.stream.key(), dropout.rate));
        let size = |value: usize| i32::try_from(value).expect("sizes of a batch fit an int");
        let (starts, ends) = Self::documents(shape, b).map_or((0, 0), |(starts, ends)| (starts.at, ends.at));
        Heads { batch: size(shape.batch), time: size(shape.time), starts, ends, key, rate, ..layer.heads }
    }

    /// Where the document of each token begins and ends, if sequences are cut.
    fn documents(shape: Shape, b: &Buffers) -> Option<(Span, Span)> {
        let rows = shape.rows();
        shape.cut.then(|| (b.ids.part(2 * rows, rows, 4), b.ids.part(3 * rows, rows, 4)))
    }

    fn table(&self, number: usize) -> Option<&Table> {
        let (_, tables) = self.tables.as_ref()?;
        tables.get(self.config.layers[number].rope)
    }

    fn slopes(&self) -> Option<Span> {
        self.slopes.as_ref().map(|slopes| slopes.span)
    }

    /// Logits of `count` states, into the buffer of logits.
    fn head_product(&self, states: Span, count: usize, b: &Buffers) -> Result<()> {
        let (width, vocab) = (self.config.hidden_size, b.logit_stride);
        let head = self.ops.matrix(self.weights.operand(&[self.layout.head], vocab * width)?, width);
        let (states, logits) = (self.ops.matrix(states, width), self.ops.matrix(b.logits, vocab));
        self.ops.device.multiply((states, head.t(), logits), (count, vocab, width), false)
    }

    /// What the labels cost, summed into `sums`; and, with `scales`, the gradients of the states, into `dnormed`, and of
    /// the head. Logits exist for some rows at a time.
    fn loss(&mut self, shape: Shape, b: &Buffers, scales: Option<(f32, f32)>) -> Result<()> {
        let (rows, width, vocab) = (shape.rows(), self.config.hidden_size, self.config.vocab_size);
        let size = self.ops.element.size();
        let labels = b.ids.part(rows, rows, 4);
        // Rows of zeros take part, and stay zeros.
        let padded = b.logit_stride;
        let mut gradient = scales.and_then(|_| self.weights.gradient_beyond(self.layout.head, padded * width));
        for first in (0..rows).step_by(b.logit_rows) {
            let count = b.logit_rows.min(rows - first);
            let states = b.states.part(first * width, count * width, size);
            self.head_product(states, count, b)?;
            let logits = (b.logits, b.logit_stride, vocab);
            let part = (first, count, rows);
            self.ops.cross_entropy(logits, labels, b.found, part, self.config.logit_softcap, scales)?;
            if scales.is_none() {
                continue;
            }
            let head = self.ops.matrix(self.weights.operand(&[self.layout.head], padded * width)?, width);
            let dlogits = self.ops.matrix(b.logits, b.logit_stride);
            let dstates = self.ops.matrix(b.dnormed.part(first * width, count * width, size), width);
            self.ops.device.multiply((dlogits, head, dstates), (count, width, padded), false)?;
            if let Some((span, add)) = &mut gradient {
                let of_head = Matrix::new(*span, width, Element::F32);
                let states = self.ops.matrix(states, width);
                self.ops.device.multiply((dlogits.t(), states, of_head), (padded, width, count), *add)?;
                *add = true;
            }
        }
        self.ops.sum_doubles(b.sums, b.found, 3, rows)
    }

    /// The gradients of embedding and positions, given that of the residual stream in `dx`: of what is trained of them.
    fn embed_backward(&mut self, shape: Shape, batch: &Batch, b: &mut Buffers) -> Result<()> {
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let norm = self.layout.embedding_norm.map(|norm| norm.weight);
        let all = [Some(self.layout.embedding), self.layout.positions, norm];
        if !all.into_iter().flatten().any(|index| self.weights.is_trained(index)) {
            return Ok(());
        }
        let mut dx = b.dx;
        if let Some(norm) = self.layout.embedding_norm {
            let x = (b.embedded, b.embedded_statistics);
            let (weight, bias) = (self.weights.gradient(&[norm.weight]), norm.bias);
            let bias = bias.and_then(|bias| self.weights.gradient(&[bias]));
            let norm = self.norm(norm);
            if let Some(weight) = weight {
                self.plain.norm_weights_backward(dx, x, &norm, (weight, bias), b.pieces, (rows, width))?;
            }
            // The input of the first layer is not needed any more.
            let to = b.input(0);
            self.plain.norm_backward(dx, x, &norm, (to, false), to, (rows, width))?;
            dx = to;
        }
        if let Some(dropout) = self.embedding_dropout() {
            self.plain.dropout(dx, dx, dropout, false, rows * width)?;
        }
        if let Some(index) = self.layout.positions {
            let order = EmbeddingOrder::new(&batch.attention_documents().positions(), None);
            self.add_rows(index, dx, &order, (1.0, 2), rows, b)?;
        }
        let order = EmbeddingOrder::new(&batch.input_ids, self.config.padding_row);
        self.add_rows(self.layout.embedding, dx, &order, (self.config.embedding_scale, 1), rows, b)
    }

    /// Adds `scale` times the rows of dx, in this order, to the gradient of parameter `index`, if it is trained. The words
    /// go by way of pinned memory `by`.
    fn add_rows(
        &mut self,
        index: usize,
        dx: Span,
        order: &EmbeddingOrder,
        (scale, by): (f32, usize),
        rows: usize,
        b: &mut Buffers,
    ) -> Result<()> {
        let Some(gradient) = self.weights.gradient_in_parts(index)? else { return Ok(()) };
        if order.pieces == 0 {
            return Ok(());
        }
        self.ops.device.send(&order.words, &mut b.pinned[by], b.order)?;
        let size = (rows, self.config.hidden_size);
        self.ops.embed_backward((gradient, b.partial), dx, (order, b.order), scale, size)
    }
}
