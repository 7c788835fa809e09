//! The decoder of llama, mistral, qwen2 and qwen3: forward, and the backward that walks it in reverse.
//!
//! ```text
//! ids ─▶ embedding ─▶ [ x + attention(norm(x)) ─▶ x + feed_forward(norm(x)) ] × layers ─▶ norm ─▶ head, loss
//! ```
//! Legend of shapes: N = batch × time rows, D = hidden_size, H = heads, K = key/value heads, C = head_dim,
//! F = intermediate_size.

use candle_core::{Result, Tensor};

use super::config::Config;
use super::quantised::QuantisedWeights;
use super::{Adapters, Batch, Model, Parameter};
use crate::gradients::Gradients;
use crate::ops::cross_entropy::{self, Loss};
use crate::ops::lora::Pair;
use crate::ops::precision::Precision;
use crate::ops::rope::{self, Table};
use crate::ops::{attention, cpu, embedding, heads, linear, quantised_linear, rms_norm, swiglu};

/// Indices of one projection's parameters.
#[derive(Clone, Copy)]
struct Projection {
    weight: usize,
    bias: Option<usize>,
}

/// Indices of one layer's parameters, in the order of [`Config::parameters`].
struct LayerIndices {
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    head_norms: Option<(usize, usize)>,
    gate: Projection,
    up: Projection,
    down: Projection,
    input_norm: usize,
    post_norm: usize,
}

/// Walks the parameters in the order in which the configuration lists them.
struct Indices {
    next: usize,
}

impl Indices {
    fn one(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    fn projection(&mut self, bias: bool) -> Projection {
        Projection { weight: self.one(), bias: bias.then(|| self.one()) }
    }

    fn layers(config: &Config) -> (Vec<LayerIndices>, usize, usize) {
        let mut at = Self { next: 1 };
        let layers = (0..config.num_hidden_layers)
            .map(|_| LayerIndices {
                q: at.projection(config.qkv_bias),
                k: at.projection(config.qkv_bias),
                v: at.projection(config.qkv_bias),
                o: at.projection(config.output_bias),
                head_norms: config.head_norms.then(|| (at.one(), at.one())),
                gate: at.projection(config.mlp_bias),
                up: at.projection(config.mlp_bias),
                down: at.projection(config.mlp_bias),
                input_norm: at.one(),
                post_norm: at.one(),
            })
            .collect();
        let norm = at.one();
        let head = if config.tie_word_embeddings { EMBEDDING } else { at.one() };
        (layers, norm, head)
    }
}

const EMBEDDING: usize = 0;

/// What the layers share.
struct Decoder<'a> {
    config: &'a Config,
    parameters: &'a [Parameter],
    quantised: &'a QuantisedWeights,
    adapters: Option<&'a Adapters>,
    table: &'a Table,
    batch_size: usize,
    /// Whether gradients will follow: dropout is on.
    training: bool,
    precision: Precision,
}

/// What a layer's backward needs of its forward.
struct Saved {
    /// Input, (N, D), and the scales of its norm.
    x: Tensor,
    input_scales: Vec<f32>,
    /// Normed input, (N, D).
    y: Tensor,
    /// Heads before their norms, if there are any: (N·H, C) and (N·K, C), with the scales.
    raw_heads: Option<[(Tensor, Vec<f32>); 2]>,
    /// Rotated queries (B, H, T, C) and keys, and values (B, K, T, C).
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Attention output, (B, H, T, C) and merged (N, H·C), and its log sums.
    output: Tensor,
    merged: Tensor,
    log_sums: attention::LogSums,
    /// After attention, (N, D), and the scales of its norm.
    middle: Tensor,
    middle_scales: Vec<f32>,
    /// Normed, (N, D).
    z: Tensor,
    /// (N, F) each.
    gate: Tensor,
    up: Tensor,
    gated: Tensor,
}

impl<'a> Decoder<'a> {
    fn new(model: &'a Model, batch_size: usize, training: bool) -> Self {
        let (_, table) = model.table.as_ref().expect("made before every pass");
        let (parameters, adapters) = (&model.parameters, model.adapters.as_ref());
        Self {
            config: &model.config,
            parameters,
            quantised: &model.quantised,
            adapters,
            table,
            batch_size,
            training,
            precision: model.precision,
        }
    }

    fn parameter(&self, index: usize) -> &'a Tensor {
        &self.parameters[index].tensor
    }

    fn project(&self, x: &Tensor, projection: Projection) -> Result<Tensor> {
        let bias = projection.bias.map(|bias| self.parameter(bias));
        let y = match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::forward(x, weight, bias, self.precision)?,
            None => linear::forward(x, self.parameter(projection.weight), bias, self.precision)?,
        };
        self.adapter(projection).map_or(Ok(()), |pair| pair.forward_add(x, &y))?;
        Ok(y)
    }

    fn adapter(&self, projection: Projection) -> Option<Pair<'a>> {
        self.adapters?.pair(self.parameters, projection.weight, self.training, self.precision)
    }

    fn project_onto(&self, x: &Tensor, projection: Projection, residual: &Tensor) -> Result<Tensor> {
        let bias = projection.bias.map(|bias| self.parameter(bias));
        let y = match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::forward_add(x, weight, bias, residual, self.precision)?,
            None => linear::forward_add(x, self.parameter(projection.weight), bias, residual, self.precision)?,
        };
        self.adapter(projection).map_or(Ok(()), |pair| pair.forward_add(x, &y))?;
        Ok(y)
    }

    /// One layer: its output (N, D), and what its backward needs.
    fn layer(&self, layer: &LayerIndices, number: usize, x: Tensor) -> Result<(Tensor, Saved)> {
        let config = self.config;
        let epsilon = config.rms_norm_eps;
        let (y, input_scales) = rms_norm::forward(&x, self.parameter(layer.input_norm), epsilon)?;
        let (mut q, mut k) = (self.project(&y, layer.q)?, self.project(&y, layer.k)?);
        let mut raw_heads = None;
        if let Some((q_norm, k_norm)) = layer.head_norms {
            let norm = |x: &Tensor, weight: usize| -> Result<(Tensor, (Tensor, Vec<f32>))> {
                let raw = x.reshape(((), config.head_dim))?;
                let (normed, scales) = rms_norm::forward(&raw, self.parameter(weight), epsilon)?;
                Ok((normed.reshape(x.shape())?, (raw, scales)))
            };
            let (normed_q, raw_q) = norm(&q, q_norm)?;
            let (normed_k, raw_k) = norm(&k, k_norm)?;
            (q, k, raw_heads) = (normed_q, normed_k, Some([raw_q, raw_k]));
        }
        let q = heads::split(&q, self.batch_size, config.num_attention_heads)?;
        let k = heads::split(&k, self.batch_size, config.num_key_value_heads)?;
        let v = heads::split(&self.project(&y, layer.v)?, self.batch_size, config.num_key_value_heads)?;
        rope::forward(&q, self.table)?;
        rope::forward(&k, self.table)?;
        let (output, log_sums) = attention::forward(&q, &k, &v, config.windows[number])?;
        let merged = heads::merge(&output)?;
        let middle = self.project_onto(&merged, layer.o, &x)?;
        let (z, middle_scales) = rms_norm::forward(&middle, self.parameter(layer.post_norm), epsilon)?;
        let (gate, up) = (self.project(&z, layer.gate)?, self.project(&z, layer.up)?);
        let gated = swiglu::forward(&gate, &up)?;
        let result = self.project_onto(&gated, layer.down, &middle)?;
        let saved = Saved {
            x,
            input_scales,
            y,
            raw_heads,
            q,
            k,
            v,
            output,
            merged,
            log_sums,
            middle,
            middle_scales,
            z,
            gate,
            up,
            gated,
        };
        Ok((result, saved))
    }

    /// Given the gradient of a layer's output in `dx` (N, D), turns it into that of its input, in place.
    fn layer_backward(
        &self,
        layer: &LayerIndices,
        number: usize,
        saved: Saved,
        dx: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let config = self.config;
        let dgated = self.projection_backward(dx, &saved.gated, layer.down, gradients)?;
        let (dgate, dup) = swiglu::backward(&dgated, &saved.gate, &saved.up)?;
        let dz = self.projection_backward(&dgate, &saved.z, layer.gate, gradients)?;
        self.projection_backward_add(&dup, &saved.z, layer.up, &dz, gradients)?;
        let post_norm = self.parameter(layer.post_norm);
        rms_norm::backward(
            &dz,
            &saved.middle,
            post_norm,
            &saved.middle_scales,
            dx,
            true,
            gradients.slot(layer.post_norm),
        )?;

        let dmerged = self.projection_backward(dx, &saved.merged, layer.o, gradients)?;
        let doutput = heads::split(&dmerged, self.batch_size, config.num_attention_heads)?;
        let inputs = (&saved.q, &saved.k, &saved.v);
        let (dq, dk, dv) =
            attention::backward(&doutput, inputs, &saved.output, &saved.log_sums, config.windows[number])?;
        rope::backward(&dq, self.table)?;
        rope::backward(&dk, self.table)?;
        let (mut dq, mut dk, dv) = (heads::merge(&dq)?, heads::merge(&dk)?, heads::merge(&dv)?);
        if let (Some((q_norm, k_norm)), Some(raw)) = (layer.head_norms, &saved.raw_heads) {
            for ((dheads, (raw, scales)), norm) in [&mut dq, &mut dk].into_iter().zip(raw).zip([q_norm, k_norm]) {
                let dy = dheads.reshape(raw.shape())?;
                let draw = dy.zeros_like()?;
                rms_norm::backward(&dy, raw, self.parameter(norm), scales, &draw, false, gradients.slot(norm))?;
                *dheads = draw.reshape(dheads.shape())?;
            }
        }
        let dy = self.projection_backward(&dq, &saved.y, layer.q, gradients)?;
        self.projection_backward_add(&dk, &saved.y, layer.k, &dy, gradients)?;
        self.projection_backward_add(&dv, &saved.y, layer.v, &dy, gradients)?;
        let input_norm = self.parameter(layer.input_norm);
        rms_norm::backward(&dy, &saved.x, input_norm, &saved.input_scales, dx, true, gradients.slot(layer.input_norm))
    }

    fn parameter_gradients(
        &self,
        dy: &Tensor,
        x: &Tensor,
        projection: Projection,
        gradients: &mut Gradients,
    ) -> Result<()> {
        linear::backward_weight(dy, x, gradients.slot(projection.weight), self.precision)?;
        projection.bias.map_or(Ok(()), |bias| linear::backward_bias(dy, gradients.slot(bias)))
    }

    fn projection_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        projection: Projection,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        self.parameter_gradients(dy, x, projection, gradients)?;
        let dx = match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::backward_input(dy, weight, self.precision)?,
            None => linear::backward_input(dy, self.parameter(projection.weight), self.precision)?,
        };
        self.adapter(projection).map_or(Ok(()), |pair| pair.backward(dy, x, &dx, gradients))?;
        Ok(dx)
    }

    fn projection_backward_add(
        &self,
        dy: &Tensor,
        x: &Tensor,
        projection: Projection,
        dx: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.parameter_gradients(dy, x, projection, gradients)?;
        match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::backward_input_add(dy, weight, dx, self.precision)?,
            None => linear::backward_input_add(dy, self.parameter(projection.weight), dx, self.precision)?,
        }
        self.adapter(projection).map_or(Ok(()), |pair| pair.backward(dy, x, dx, gradients))
    }
}

/// The residual stream after the last layer and its norm, without anything kept.
fn hidden_states(model: &Model, input_ids: &[u32], batch_size: usize) -> Result<(Tensor, usize)> {
    let decoder = Decoder::new(model, batch_size, false);
    let (layers, norm, head) = Indices::layers(&model.config);
    let mut x = embedding::forward(input_ids, decoder.parameter(EMBEDDING))?;
    for (number, layer) in layers.iter().enumerate() {
        (x, _) = decoder.layer(layer, number, x)?;
    }
    Ok((rms_norm::forward(&x, decoder.parameter(norm), model.config.rms_norm_eps)?.0, head))
}

/// See [`Model::logits`].
pub(super) fn logits(model: &Model, input_ids: &[u32], batch_size: usize, seq_len: usize) -> Result<Tensor> {
    let (states, head) = hidden_states(model, input_ids, batch_size)?;
    linear::forward(&states, &model.parameters[head].tensor, None, model.precision)?.reshape((batch_size, seq_len, ()))
}

/// See [`Model::next_logits`].
pub(super) fn next_logits(model: &Model, input_ids: &[u32]) -> Result<Vec<f32>> {
    let (states, head) = hidden_states(model, input_ids, 1)?;
    let width = model.config.hidden_size;
    let last = cpu::values(&states)?[(input_ids.len() - 1) * width..].to_vec();
    let logits =
        linear::forward(&cpu::tensor(last, (1, width))?, &model.parameters[head].tensor, None, model.precision)?;
    Ok(cpu::values(&logits)?.to_vec())
}

/// See [`Model::evaluate`].
pub(super) fn evaluate(model: &Model, batch: &Batch) -> Result<Loss> {
    let (states, head) = hidden_states(model, &batch.input_ids, batch.batch_size)?;
    cross_entropy::forward(&states, &model.parameters[head].tensor, &batch.targets(), model.precision)
}

/// What is kept of a layer until its backward: everything, or its input.
enum Kept {
    All(Box<Saved>),
    Input(Tensor),
}

/// See [`Model::forward_backward`].
pub(super) fn forward_backward(model: &mut Model, batch: &Batch, scale: f32, recompute: bool) -> Result<Loss> {
    let empty = Gradients::new([])?;
    let mut gradients = std::mem::replace(&mut model.gradients, empty);
    let result = pass(model, batch, scale, recompute, &mut gradients);
    model.gradients = gradients;
    result
}

fn pass(model: &Model, batch: &Batch, scale: f32, recompute: bool, gradients: &mut Gradients) -> Result<Loss> {
    let decoder = Decoder::new(model, batch.batch_size, true);
    let (layers, norm, head) = Indices::layers(&model.config);
    let mut x = embedding::forward(&batch.input_ids, decoder.parameter(EMBEDDING))?;
    if let Some(noise) = model.embedding_noise {
        noise.add_to(&x, batch.seq_len)?;
    }
    let mut kept = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let input = x.clone(); // shares its memory
        let (output, saved) = decoder.layer(layer, number, x)?;
        kept.push(if recompute { Kept::Input(input) } else { Kept::All(Box::new(saved)) });
        x = output;
    }
    let (states, scales) = rms_norm::forward(&x, decoder.parameter(norm), model.config.rms_norm_eps)?;
    let (loss, dstates) = cross_entropy::forward_backward(
        &states,
        decoder.parameter(head),
        &batch.targets(),
        (scale, model.label_smoothing),
        model.precision,
        gradients.slot(head),
    )?;
    let dx = dstates.zeros_like()?;
    rms_norm::backward(&dstates, &x, decoder.parameter(norm), &scales, &dx, false, gradients.slot(norm))?;
    drop((x, states, dstates));
    for (number, layer) in layers.iter().enumerate().rev() {
        let saved = match kept.pop().expect("one for each layer") {
            Kept::All(saved) => *saved,
            Kept::Input(x) => decoder.layer(layer, number, x)?.1,
        };
        decoder.layer_backward(layer, number, saved, &dx, gradients)?;
    }
    embedding::backward(&dx, &batch.input_ids, gradients.slot(EMBEDDING))?;
    Ok(loss)
}
