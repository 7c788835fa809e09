//! The decoder of all families: forward, and the backward that walks it in reverse.
//!
//! ```text
//! ids ─▶ embedding ─▶ [ x + attention(norm(x)) ─▶ x + feed_forward(norm(x)) ] × layers ─▶ norm ─▶ head, loss
//! ```
//! What differs between families is in [`Config`] (what is computed) and [`Layout`] (from which weights); a family has no
//! code of its own here. Legend of shapes: N = batch × time rows, D = hidden_size, H = heads, K = key/value heads,
//! C = head_dim, F = intermediate_size.

mod attention;
mod feed_forward;
mod parts;

use std::borrow::Cow;

use candle_core::{Result, Tensor};

use self::parts::{End, SavedEnd, Statistics};
use super::config::{Config, Positions, Residual};
use super::dropout::{Place, Seed};
use super::layout::{Layer, Layout};
use super::quantised::QuantisedWeights;
use super::{Adapters, Batch, EmbeddingNoise, Magnitudes, Model, Parameter};
use crate::gradients::Gradients;
use crate::ops::cross_entropy::{self, Head, Loss};
use crate::ops::documents::Documents;
use crate::ops::dropout::Dropout;
use crate::ops::precision::Precision;
use crate::ops::rope::Table;
use crate::ops::{alibi, cpu, embedding, linear, normalize};

/// What the layers share.
struct Decoder<'a> {
    config: &'a Config,
    layout: &'a Layout,
    parameters: &'a [Parameter],
    quantised: &'a QuantisedWeights,
    adapters: Option<&'a Adapters>,
    /// Rotations, if positions are rotary.
    tables: &'a [Table],
    /// Penalties for distance, if positions are ALiBi.
    slopes: Option<Vec<f32>>,
    batch_size: usize,
    /// What attention stays inside, and the position of each token, (N).
    documents: Cow<'a, Documents>,
    positions: Vec<u32>,
    /// What is dropped, if gradients will follow.
    dropout_seed: Option<Seed>,
    /// On the embedded tokens, if gradients will follow.
    noise: Option<EmbeddingNoise>,
    precision: Precision,
}

/// What a layer's backward needs of its forward, except what is soon computed again: the merged heads and the activated
/// features are more than a fifth of what a llama layer would keep, and no matrix product is needed for them.
struct Saved {
    /// Input and normed input, (N, D).
    x: Tensor,
    x_statistics: Statistics,
    y: Tensor,
    attention: attention::Saved,
    attention_end: SavedEnd,
    /// What the feed-forward layer is for, and that normed, (N, D).
    middle: Tensor,
    middle_statistics: Statistics,
    z: Tensor,
    feed_forward: feed_forward::Saved,
    feed_forward_end: SavedEnd,
}

impl<'a> Decoder<'a> {
    fn new(model: &'a Model, batch: &'a Batch, training: bool) -> Self {
        let documents = batch.attention_documents();
        let slopes = || alibi::slopes(model.config.num_attention_heads);
        Self {
            config: &model.config,
            layout: &model.layout,
            parameters: &model.parameters,
            quantised: &model.quantised,
            adapters: model.adapters.as_ref(),
            tables: model.tables.as_ref().map(|(_, tables)| &tables[..]).expect("made before every pass"),
            slopes: (model.config.positions == Positions::Alibi).then(slopes),
            batch_size: batch.batch_size,
            positions: documents.positions(),
            documents,
            dropout_seed: training.then_some(model.dropout_seed),
            noise: model.embedding_noise.filter(|_| training),
            precision: model.precision,
        }
    }

    fn dropout(&self, rate: f32, place: Place) -> Option<Dropout> {
        self.dropout_seed?.dropout(rate, place)
    }

    /// The residual stream before the first layer, (N, D), and what the backward needs of its norm, if it has one.
    fn embed(&self, ids: &[u32]) -> Result<(Tensor, SavedEnd)> {
        let layout = self.layout;
        let mut x = embedding::forward(ids, self.parameter(layout.embedding), self.config.embedding_scale)?;
        self.noise.map_or(Ok(()), |noise| noise.add_to(&x, ids.len() / self.batch_size))?;
        if let Some(positions) = layout.positions {
            x = (x + embedding::forward(&self.positions, self.parameter(positions), 1.0)?)?;
        }
        let dropout = self.dropout(self.config.dropout.embedding, Place::Embedding);
        dropout.map_or(Ok(()), |dropout| dropout.apply(&x))?;
        let Some(norm) = layout.embedding_norm else { return Ok((x, None)) };
        let (normed, statistics) = self.norm(&x, norm)?;
        Ok((normed, Some((x, statistics))))
    }

    fn embed_backward(&self, mut dx: Tensor, ids: &[u32], saved: &SavedEnd, gradients: &mut Gradients) -> Result<()> {
        let layout = self.layout;
        if let (Some(norm), Some((raw, statistics))) = (layout.embedding_norm, saved) {
            let draw = raw.zeros_like()?;
            self.norm_backward(&dx, (raw, statistics), norm, (&draw, false), gradients)?;
            dx = draw;
        }
        let dropout = self.dropout(self.config.dropout.embedding, Place::Embedding);
        dropout.map_or(Ok(()), |dropout| dropout.apply(&dx))?;
        if let Some(positions) = layout.positions {
            embedding::backward(&dx, &self.positions, 1.0, None, gradients.slot(positions))?;
        }
        let (scale, padding) = (self.config.embedding_scale, self.config.padding_row);
        embedding::backward(&dx, ids, scale, padding, gradients.slot(layout.embedding))
    }

    fn attention_end(&self, layer: &Layer, number: usize) -> End {
        let dropout = self.dropout(self.config.dropout.attention_output, Place::AttentionOutput(number));
        End { projection: layer.output, dropout, norm: layer.attention_norm }
    }

    fn feed_forward_end(&self, layer: &Layer, number: usize) -> End {
        let dropout = self.dropout(self.config.dropout.feed_forward_output, Place::FeedForwardOutput(number));
        End { projection: layer.feed_forward.down(), dropout, norm: layer.output_norm }
    }

    /// One layer: its output (N, D), and what its backward needs.
    fn layer(&self, layer: &Layer, number: usize, x: Tensor) -> Result<(Tensor, Saved)> {
        let residual = self.config.residual;
        let (y, x_statistics) = self.norm(&x, layer.input_norm)?;
        let (merged, attention) = self.attention(&y, layer, number)?;
        let onto = if residual == Residual::Normed { &y } else { &x };
        let (after, attention_end) = self.end(&merged, &self.attention_end(layer, number), onto)?;
        let middle = if residual == Residual::Parallel { x.clone() } else { after.clone() };
        let (z, middle_statistics) = self.norm(&middle, layer.feed_forward_norm)?;
        let (activated, feed_forward) = self.feed_forward(&z, layer.feed_forward)?;
        let onto = if residual == Residual::Normed { &z } else { &after };
        let (result, feed_forward_end) = self.end(&activated, &self.feed_forward_end(layer, number), onto)?;
        let saved = Saved {
            x,
            x_statistics,
            y,
            attention,
            attention_end,
            middle,
            middle_statistics,
            z,
            feed_forward,
            feed_forward_end,
        };
        Ok((result, saved))
    }

    /// Given the gradient of a layer's output in `dx` (N, D), turns it into that of its input, in place.
    fn layer_backward(
        &self,
        layer: &Layer,
        number: usize,
        saved: Saved,
        dx: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let x = (&saved.x, &saved.x_statistics);
        let middle = (&saved.middle, &saved.middle_statistics);
        let end = self.feed_forward_end(layer, number);
        let activated = self.activated(&saved.feed_forward)?;
        let dgated = self.end_backward(dx, &activated, &end, &saved.feed_forward_end, gradients)?;
        drop(activated);
        let dz = self.feed_forward_backward(&dgated, &saved.z, layer.feed_forward, &saved.feed_forward, gradients)?;
        drop(dgated);
        let attention = |dx: &Tensor, gradients: &mut Gradients| {
            let end = self.attention_end(layer, number);
            let merged = saved.attention.merged()?;
            let dmerged = self.end_backward(dx, &merged, &end, &saved.attention_end, gradients)?;
            drop(merged);
            self.attention_backward(&dmerged, &saved.y, layer, number, &saved.attention, gradients)
        };
        let norm = |dy: &Tensor, x, norm, add: bool, gradients: &mut Gradients| {
            self.norm_backward(dy, x, norm, (dx, add), gradients)
        };
        match self.config.residual {
            Residual::Sequential => {
                norm(&dz, middle, layer.feed_forward_norm, true, gradients)?;
                let dy = attention(dx, gradients)?;
                norm(&dy, x, layer.input_norm, true, gradients)
            }
            Residual::Parallel => {
                let dy = attention(dx, gradients)?;
                norm(&dz, middle, layer.feed_forward_norm, true, gradients)?;
                norm(&dy, x, layer.input_norm, true, gradients)
            }
            Residual::Normed => {
                norm(&(dz + dx)?, middle, layer.feed_forward_norm, false, gradients)?;
                let dy = (attention(dx, gradients)? + dx)?;
                norm(&dy, x, layer.input_norm, false, gradients)
            }
        }
    }

    /// The weight of the output projection: as it is, or normalised.
    fn head_weight(&self) -> Result<Cow<'a, Tensor>> {
        let weight = self.parameter(self.layout.head);
        Ok(if self.config.normalized_head { Cow::Owned(normalize::forward(weight)?) } else { Cow::Borrowed(weight) })
    }

    fn head<'w>(&self, weight: &'w Tensor) -> Head<'w> {
        Head { weight, softcap: self.config.logit_softcap }
    }

    /// Loss, and the gradient of the states (N, D) that the head takes; that of the head goes to its slot.
    fn loss(
        &self,
        states: &Tensor,
        batch: &Batch,
        scales: (f32, f32),
        gradients: &mut Gradients,
    ) -> Result<(Loss, Tensor)> {
        let (weight, index) = (self.head_weight()?, self.layout.head);
        let (head, targets) = (self.head(&weight), batch.targets());
        if !self.config.normalized_head || !self.parameters[index].trainable {
            return cross_entropy::forward_backward(
                states,
                head,
                &targets,
                scales,
                self.precision,
                gradients.slot(index),
            );
        }
        let (name, count) = (self.parameters[index].name.clone(), weight.elem_count());
        let mut of_normalized = Gradients::new([(name, Some((count, 0..count)))])?;
        let slot = of_normalized.slot(0);
        let found = cross_entropy::forward_backward(states, head, &targets, scales, self.precision, slot)?;
        of_normalized
            .for_each(|_, gradient| normalize::backward(gradient, self.parameter(index), gradients.slot(index)))?;
        Ok(found)
    }

    /// Logits of states, (N, vocab).
    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let weight = self.head_weight()?;
        let logits = linear::forward(states, weight.as_ref().into(), None, self.precision)?;
        cpu::write(&logits, |logits| self.head(&weight).cap(logits))?;
        Ok(logits)
    }

    /// The residual stream after the last layer and its norm, (N, D), without anything kept.
    fn states(&self, input_ids: &[u32]) -> Result<Tensor> {
        let (mut x, _) = self.embed(input_ids)?;
        for (number, layer) in self.layout.layers.iter().enumerate() {
            (x, _) = self.layer(layer, number, x)?;
        }
        Ok(self.norm(&x, self.layout.final_norm)?.0)
    }
}

/// See [`Model::logits`].
pub(super) fn logits(model: &Model, batch: &Batch) -> Result<Tensor> {
    let decoder = Decoder::new(model, batch, false);
    decoder.logits(&decoder.states(&batch.input_ids)?)?.reshape((batch.batch_size, batch.seq_len, ()))
}

/// See [`Model::next_logits`].
pub(super) fn next_logits(model: &Model, sequence: &Batch) -> Result<Vec<f32>> {
    let decoder = Decoder::new(model, sequence, false);
    let (states, width) = (decoder.states(&sequence.input_ids)?, model.config.hidden_size);
    let last = cpu::values(&states)?[(sequence.seq_len - 1) * width..].to_vec();
    Ok(cpu::values(&decoder.logits(&cpu::tensor(last, (1, width))?)?)?.to_vec())
}

/// See [`Model::evaluate`].
pub(super) fn evaluate(model: &Model, batch: &Batch) -> Result<Loss> {
    let decoder = Decoder::new(model, batch, false);
    let (states, weight) = (decoder.states(&batch.input_ids)?, decoder.head_weight()?);
    cross_entropy::forward(&states, decoder.head(&weight), &batch.targets(), model.precision)
}

/// See [`Model::trace`].
pub(super) fn trace(model: &Model, batch: &Batch) -> Result<Vec<Magnitudes>> {
    let decoder = Decoder::new(model, batch, true);
    let (mut x, _) = decoder.embed(&batch.input_ids)?;
    let mut found = vec![Magnitudes::of_tensor("embeddings", &x)?];
    for (number, layer) in model.layout.layers.iter().enumerate() {
        x = decoder.layer(layer, number, x)?.0;
        found.push(Magnitudes::of_tensor(format!("layer {number}"), &x)?);
    }
    found.push(Magnitudes::of_tensor("final norm", &decoder.norm(&x, model.layout.final_norm)?.0)?);
    Ok(found)
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
    let decoder = Decoder::new(model, batch, true);
    let layers = &model.layout.layers;
    let (mut x, embedded) = decoder.embed(&batch.input_ids)?;
    let mut kept = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let input = x.clone(); // shares its memory
        let (output, saved) = decoder.layer(layer, number, x)?;
        kept.push(if recompute { Kept::Input(input) } else { Kept::All(Box::new(saved)) });
        x = output;
    }
    let (states, statistics) = decoder.norm(&x, model.layout.final_norm)?;
    let (loss, dstates) = decoder.loss(&states, batch, (scale, model.label_smoothing), gradients)?;
    let dx = dstates.zeros_like()?;
    decoder.norm_backward(&dstates, (&x, &statistics), model.layout.final_norm, (&dx, false), gradients)?;
    drop((x, states, dstates));
    for (number, layer) in layers.iter().enumerate().rev() {
        let saved = match kept.pop().expect("one for each layer") {
            Kept::All(saved) => *saved,
            Kept::Input(x) => decoder.layer(layer, number, x)?.1,
        };
        decoder.layer_backward(layer, number, saved, &dx, gradients)?;
    }
    decoder.embed_backward(dx, &batch.input_ids, &embedded, gradients)?;
    Ok(loss)
}
