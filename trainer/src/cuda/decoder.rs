//! The decoder on a GPU: forward, and the backward that walks it in reverse. The same mathematics as
//! [`crate::model`]'s decoder, from the same configuration and layout.
//!
//! The residual stream, statistics and losses are float32; in bf16, what a projection takes and gives is bf16, as under
//! autocast. A branch is added to the residual stream by the norm that comes next.

use std::sync::Arc;

use tokenmill_shared::{Error, Result};

use super::buffers::{Buffers, Saved, Sizes};
use super::device::{Device, Element, Matrix, Memory, Span};
use super::embedding::EmbeddingOrder;
use super::ops::{Heads, Norm, Ops, Statistics};
use super::weights::Weights;
use crate::model::layout::{self, FeedForward, Layout, Projection, Qkv};
use crate::model::{Batch, Config, Parameter, Positions};
use crate::ops::alibi;
use crate::ops::cross_entropy::{IGNORE, Loss};
use crate::ops::precision::Precision;

/// Projections that are one product because their weights lie together.
#[derive(Debug, Clone)]
struct Linear {
    weights: Vec<usize>,
    biases: Vec<usize>,
    input: usize,
    output: usize,
    input_first: bool,
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
}

impl Shape {
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
}

impl Decoder {
    /// Copies a model to the GPU. What [`unsupported`](super::unsupported) says must have been refused before.
    pub fn new(
        device: Arc<Device>,
        config: &Config,
        layout: &Layout,
        parameters: &[Parameter],
        precision: Precision,
    ) -> Result<Self> {
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
            Linear {
                weights: projections.iter().map(|projection| projection.weight).collect(),
                biases: projections.iter().filter_map(|projection| projection.bias).collect(),
                input: sizes[0].1,
                output: sizes.iter().map(|(output, _)| output).sum(),
                input_first,
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
                heads: Heads { scale: kind.scale, window, ..heads },
            }
        });
        let layers = layers.collect();
        let slopes = if config.positions == Positions::Alibi {
            let slopes = alibi::slopes(config.num_attention_heads);
            let memory = device.allocate(slopes.len(), 4)?;
            device.upload(&slopes, memory.span)?;
            Some(memory)
        } else {
            None
        };
        Ok(Self {
            weights: Weights::new(ops.clone(), layout, parameters)?,
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
    pub fn forward_backward(&mut self, batch: &Batch, scales: (f32, f32), recompute: bool) -> Result<Loss> {
        let layers = self.layers.len();
        let buffers = self.prepare(batch, if recompute { 1 } else { layers }, layers + 1)?;
        let result = self.pass(batch, scales, recompute, buffers);
        self.finish(batch, result)
    }

    /// Loss and accuracy of one micro-batch, without gradients.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<Loss> {
        let buffers = self.prepare(batch, 1, 2)?;
        let shape = Shape { batch: batch.batch_size, time: batch.seq_len };
        let result = self.forward(shape, &buffers).and_then(|()| self.loss(shape, &buffers, None)).map(|()| buffers);
        self.finish(batch, result)
    }

    /// Logits of the last position of one sequence: (vocab).
    pub fn next_logits(&mut self, input_ids: &[u32]) -> Result<Vec<f32>> {
        let labels = vec![-100; input_ids.len()];
        let batch = Batch { input_ids: input_ids.to_vec(), labels, batch_size: 1, seq_len: input_ids.len() };
        let buffers = self.prepare(&batch, 1, 2)?;
        self.forward(Shape { batch: 1, time: input_ids.len() }, &buffers)?;
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
                let widths = (self.layers[0].qkv.output, self.layers[0].up.output);
                Buffers::new(&self.ops, &self.config, sizes, widths)?
            }
        };
        if self.tables.as_ref().is_none_or(|(time, _)| *time != batch.seq_len) {
            self.tables = Some((batch.seq_len, self.make_tables(batch.seq_len)?));
        }
        let words: Vec<u32> = batch.input_ids.iter().copied().chain(targets).collect();
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
        let shape = Shape { batch: batch.batch_size, time: batch.seq_len };
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
        let weight = self.weights.gradient(&[norm.weight]);
        let bias = norm.bias.map(|bias| self.weights.gradient(&[bias]));
        let values = self.norm(norm);
        self.ops.norm_weights_backward(dy, x, &values, (weight, bias), b.pieces, (rows, self.config.hidden_size))
    }

    fn bias(&self, linear: &Linear) -> Option<Span> {
        linear.biases.first().map(|bias| self.weights.master(*bias, linear.output))
    }

    fn weight(&self, linear: &Linear) -> Matrix {
        let span = self.weights.operand(linear.weights[0], linear.input * linear.output);
        // (out, in), or stored the other way round.
        if linear.input_first { self.ops.matrix(span, linear.output).t() } else { self.ops.matrix(span, linear.input) }
    }

    /// y: (rows, out) = x Wᵀ, without the bias.
    fn project(&self, x: Span, linear: &Linear, y: Span, rows: usize) -> Result<()> {
        let (x, y) = (self.ops.matrix(x, linear.input), self.ops.matrix(y, linear.output));
        self.ops.device.multiply((x, self.weight(linear).t(), y), (rows, linear.output, linear.input), false)
    }

    /// dx: (rows, in) = dy W; and the gradient of the weight.
    fn project_backward(&mut self, dy: Span, x: Span, linear: &Linear, dx: Span, rows: usize) -> Result<()> {
        let (dy, x) = (self.ops.matrix(dy, linear.output), self.ops.matrix(x, linear.input));
        let (gradient, add) = self.weights.gradient(&linear.weights);
        let device = &self.ops.device;
        if linear.input_first {
            let gradient = Matrix::new(gradient, linear.output, Element::F32);
            device.multiply((x.t(), dy, gradient), (linear.input, linear.output, rows), add)?;
        } else {
            let gradient = Matrix::new(gradient, linear.input, Element::F32);
            device.multiply((dy.t(), x, gradient), (linear.output, linear.input, rows), add)?;
        }
        let dx = self.ops.matrix(dx, linear.input);
        device.multiply((dy, self.weight(linear), dx), (rows, linear.input, linear.output), false)
    }

    /// The gradient of a projection's bias, if it has one.
    fn bias_backward(&mut self, dy: (Span, Element), linear: &Linear, rows: usize, b: &Buffers) -> Result<()> {
        if linear.biases.is_empty() {
            return Ok(());
        }
        let bias = self.weights.gradient(&linear.biases);
        self.ops.bias_backward(dy, bias, b.pieces, (rows, linear.output))
    }

    /// Everything up to what the head takes.
    fn forward(&self, shape: Shape, b: &Buffers) -> Result<()> {
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let embedding = self.weights.master(self.layout.embedding, self.config.vocab_size * width);
        let positions = self.layout.positions.map(|index| self.weights.master(index, shape.time * width));
        let sizes = (rows, shape.time, width);
        let to = if self.layout.embedding_norm.is_some() { b.embedded } else { b.input(0) };
        self.ops.embed(to, b.ids, (embedding, self.config.embedding_scale), positions, sizes)?;
        if let Some(norm) = self.layout.embedding_norm {
            let norm = self.norm(norm);
            self.plain.norm(to, None, (to, b.input(0)), b.embedded_statistics, &norm, (rows, width))?;
        }
        let mut before = None;
        for (number, layer) in self.layers.iter().enumerate() {
            self.layer(number, shape, before, b)?;
            before = Some((b.saved(number).middle, (b.branch, self.bias(&layer.down))));
        }
        let (x, branch) = before.map_or((b.input(0), None), |(x, branch)| (x, Some(branch)));
        let norm = self.norm(self.layout.final_norm);
        let sum = b.input(self.layers.len());
        self.ops.norm(x, branch, (sum, b.states), b.states_statistics, &norm, (rows, width))
    }

    /// One layer, from the residual stream and the branch that is still to be added to it, or from its kept input, up to
    /// its own last branch.
    fn layer(
        &self,
        number: usize,
        shape: Shape,
        before: Option<(Span, (Span, Option<Span>))>,
        b: &Buffers,
    ) -> Result<()> {
        let (layer, parts, saved) = (&self.layers[number], &self.layout.layers[number], b.saved(number));
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let (input, size) = (b.input(number), (rows, width));
        let (x, branch) = before.map_or((input, None), |(x, branch)| (x, Some(branch)));
        let norm = self.norm(parts.input_norm);
        self.ops.norm(x, branch, (input, saved.y), saved.input_statistics, &norm, size)?;
        self.project(saved.y, &layer.qkv, saved.raw, rows)?;
        if let Some(bias) = self.bias(&layer.qkv) {
            self.ops.add_bias(saved.raw, bias, (rows, layer.qkv.output))?;
        }
        let heads = self.heads(layer, shape);
        if let Some(norms) = parts.head_norms {
            let norms = norms.map(|norm| self.norm_of(norm, self.config.head_dim));
            self.ops.head_norms(saved.raw, saved.qkv, &norms, heads)?;
        }
        if let Some(table) = self.table(number) {
            let tables = (table.cosines.span, table.sines.span);
            self.ops.rope(saved.qkv, tables, (table.half, table.interleaved), heads, false)?;
        }
        self.ops.attention(saved.qkv, saved.out, saved.log_sums, self.slopes(), heads)?;
        self.project(saved.out, &layer.output, b.branch, rows)?;
        let branch = Some((b.branch, self.bias(&layer.output)));
        let norm = self.norm(parts.feed_forward_norm);
        self.ops.norm(input, branch, (saved.middle, saved.z), saved.middle_statistics, &norm, size)?;
        self.project(saved.z, &layer.up, saved.up, rows)?;
        let inner = (rows, layer.down.input);
        self.ops.activation(self.config.activation, saved.up, self.bias(&layer.up), saved.gated, layer.gated, inner)?;
        self.project(saved.gated, &layer.down, b.branch, rows)
    }

    /// Turns the gradient of a layer's output in `dx` into that of its input.
    fn layer_backward(&mut self, number: usize, shape: Shape, b: &Buffers) -> Result<()> {
        let layer = self.layers[number].clone();
        let parts = self.layout.layers[number];
        let Saved { y, raw, qkv, out, log_sums, middle, z, up, gated, input_statistics, middle_statistics } =
            b.saved(number);
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let element = self.ops.element;

        self.bias_backward((b.dx, Element::F32), &layer.down, rows, b)?;
        self.project_backward(b.rounded, gated, &layer.down, b.dgated, rows)?;
        let inner = (rows, layer.down.input);
        self.ops.activation_backward(self.config.activation, b.dgated, up, layer.gated, inner)?;
        self.bias_backward((up, element), &layer.up, rows, b)?;
        self.project_backward(up, z, &layer.up, b.dnormed, rows)?;
        let x = (middle, middle_statistics);
        self.norm_weights_backward(b.dnormed, x, parts.feed_forward_norm, rows, b)?;
        let norm = self.norm(parts.feed_forward_norm);
        self.ops.norm_backward(b.dnormed, x, &norm, (b.dx, true), b.rounded, (rows, width))?;

        self.bias_backward((b.dx, Element::F32), &layer.output, rows, b)?;
        self.project_backward(b.rounded, out, &layer.output, b.dout, rows)?;
        let heads = self.heads(&layer, shape);
        let scratch = (b.delta, b.expanded);
        self.ops.attention_backward(b.dout, (qkv, out, log_sums), scratch, b.dqkv, self.slopes(), heads)?;
        if let Some(table) = self.table(number) {
            let tables = (table.cosines.span, table.sines.span);
            self.ops.rope(b.dqkv, tables, (table.half, table.interleaved), heads, true)?;
        }
        if let Some(norms) = parts.head_norms {
            let gradients = norms.map(|norm| self.weights.gradient(&[norm.weight]));
            let norms = norms.map(|norm| self.norm_of(norm, self.config.head_dim));
            self.ops.head_norms_backward(b.dqkv, raw, &norms, gradients, b.pieces, heads)?;
        }
        self.bias_backward((b.dqkv, element), &layer.qkv, rows, b)?;
        self.project_backward(b.dqkv, y, &layer.qkv, b.dnormed, rows)?;
        let x = (b.input(number), input_statistics);
        self.norm_weights_backward(b.dnormed, x, parts.input_norm, rows, b)?;
        let norm = self.norm(parts.input_norm);
        self.ops.norm_backward(b.dnormed, x, &norm, (b.dx, true), b.rounded, (rows, width))
    }

    fn heads(&self, layer: &Layer, shape: Shape) -> Heads {
        let size = |value: usize| i32::try_from(value).expect("sizes of a batch fit an int");
        Heads { batch: size(shape.batch), time: size(shape.time), ..layer.heads }
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
        let head = self.ops.matrix(self.weights.operand(self.layout.head, vocab * width), width);
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
        let mut gradient = scales.map(|_| self.weights.gradient_beyond(self.layout.head, padded * width));
        for first in (0..rows).step_by(b.logit_rows) {
            let count = b.logit_rows.min(rows - first);
            let states = b.states.part(first * width, count * width, size);
            self.head_product(states, count, b)?;
            let logits = (b.logits, b.logit_stride, vocab);
            self.ops.cross_entropy(logits, labels, b.found, (first, count, rows), scales)?;
            if let Some((span, add)) = &mut gradient {
                let head = self.ops.matrix(self.weights.operand(self.layout.head, padded * width), width);
                let dlogits = self.ops.matrix(b.logits, b.logit_stride);
                let dstates = self.ops.matrix(b.dnormed.part(first * width, count * width, size), width);
                self.ops.device.multiply((dlogits, head, dstates), (count, width, padded), false)?;
                let of_head = Matrix::new(*span, width, Element::F32);
                let states = self.ops.matrix(states, width);
                self.ops.device.multiply((dlogits.t(), states, of_head), (padded, width, count), *add)?;
                *add = true;
            }
        }
        self.ops.sum_doubles(b.sums, b.found, 3, rows)
    }

    /// The gradients of embedding and positions, given that of the residual stream in `dx`.
    fn embed_backward(&mut self, shape: Shape, batch: &Batch, b: &mut Buffers) -> Result<()> {
        let (rows, width) = (shape.rows(), self.config.hidden_size);
        let mut dx = b.dx;
        if let Some(norm) = self.layout.embedding_norm {
            let x = (b.embedded, b.embedded_statistics);
            let (weight, bias) = (self.weights.gradient(&[norm.weight]), norm.bias);
            let bias = bias.map(|bias| self.weights.gradient(&[bias]));
            let norm = self.norm(norm);
            self.plain.norm_weights_backward(dx, x, &norm, (weight, bias), b.pieces, (rows, width))?;
            // The input of the first layer is not needed any more.
            let to = b.input(0);
            self.plain.norm_backward(dx, x, &norm, (to, false), to, (rows, width))?;
            dx = to;
        }
        if let Some(positions) = self.layout.positions {
            let gradient = self.weights.gradient_in_parts(positions)?;
            let args = [gradient.into(), dx.into(), shape.batch.into(), shape.time.into(), width.into(), true.into()];
            self.ops.device.launch("positions_backward", (shape.time, 1, 1), (256, 1), 0, &args)?;
        }
        let order = EmbeddingOrder::new(&batch.input_ids);
        self.ops.device.send(&order.words, &mut b.pinned[1], b.order)?;
        let gradient = self.weights.gradient_in_parts(self.layout.embedding)?;
        let pieces = b.order.part(rows, 4 * order.pieces, 4);
        let scale = self.config.embedding_scale;
        let args =
            [gradient.into(), b.partial.into(), dx.into(), b.order.into(), pieces.into(), scale.into(), width.into()];
        self.ops.device.launch("embedding_backward", (order.pieces, 1, 1), (256, 1), 0, &args)?;
        if order.joins == 0 {
            return Ok(());
        }
        assert!(order.partials * width * 4 <= b.partial.bytes, "room for the partial sums");
        let joins = b.order.part(rows + 4 * order.pieces, 4 * order.joins, 4);
        let args = [gradient.into(), b.partial.into(), joins.into(), width.into()];
        self.ops.device.launch("embedding_backward_join", (order.joins, 1, 1), (256, 1), 0, &args)
    }
}
