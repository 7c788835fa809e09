//! The memory that a pass over a micro-batch uses, made once and used again: what layers keep for their backward, and
//! what lives within one operation.

use std::sync::Arc;

use tokenmill_shared::Result;

use super::device::{Device, Memory, Pinned, Span};
use super::ops::{Ops, Statistics};
use super::weights::VOCABULARY_MULTIPLE;
use crate::model::{Config, Residual};

/// Bytes of logits in memory at once.
const LOGITS_BYTES: usize = 512 << 20;

/// How large it all is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens of a micro-batch.
    pub rows: usize,
    /// Layers whose values are kept.
    pub kept: usize,
    /// Layers whose input is kept, and the output of the last.
    pub inputs: usize,
}

/// Features of a row.
#[derive(Debug, Clone, Copy)]
pub struct Widths {
    /// Of queries, keys and values together.
    pub qkv: usize,
    /// Of what is activated.
    pub up: usize,
    /// Of the narrow side of adapters; 0 if there are none.
    pub rank: usize,
    /// Whether something of their input is dropped.
    pub drops: bool,
}

/// What the norm of a branch keeps: the branch, (N, D) f32, and its statistics. Nothing where branches are not normed.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// (N, D) f32.
    pub sum: Span,
    /// Of `sum`.
    pub statistics: Statistics,
}

/// What a layer keeps for its backward; N rows. See `decoder.rs` for the order in which it is made.
#[derive(Debug, Clone, Copy)]
pub struct Saved {
    /// Normed input, (N, D).
    pub y: Span,
    /// Queries, keys and values before the norms of their heads, (N, W); of a model without them, the same as `qkv`.
    pub raw: Span,
    /// Queries and keys, rotated, and values, (N, W).
    pub qkv: Span,
    /// Output of attention, (N, H·C).
    pub out: Span,
    /// (B, H, T) f32.
    pub log_sums: Span,
    /// The residual stream after attention, (N, D) f32.
    pub middle: Span,
    /// That normed, (N, D).
    pub z: Span,
    /// What is activated, (N, F), or gate and up, (N, 2F).
    pub up: Span,
    /// What the last projection takes, (N, F).
    pub gated: Span,
    /// Of the first norm.
    pub input_statistics: Statistics,
    /// Of the second.
    pub middle_statistics: Statistics,
    /// What attention adds.
    pub attention_end: Ended,
    /// What the feed-forward layer adds.
    pub output_end: Ended,
}

/// All of it.
#[derive(Debug)]
pub struct Buffers {
    /// For how much.
    pub sizes: Sizes,
    /// Of layers, in turn.
    saved: Vec<Saved>,
    /// The residual stream before each layer and after the last, in turn, (N, D) f32.
    inputs: Vec<Span>,
    /// What a branch adds to the residual stream, (N, D), or the gradient of that.
    pub branch: Span,
    /// The same gradient in f32, where branches are normed and `branch` is not f32.
    pub dbranch: Span,
    /// Embedded tokens before their norm, (N, D) f32, and its statistics.
    pub embedded: Span,
    /// Of the embedding's norm.
    pub embedded_statistics: Statistics,
    /// What the head takes, (N, D).
    pub states: Span,
    /// Of the last norm.
    pub states_statistics: Statistics,
    /// Gradient of the residual stream, (N, D) f32, and the same in the type of products.
    pub dx: Span,
    /// See `dx`.
    pub rounded: Span,
    /// Gradient of a normed input, (N, D).
    pub dnormed: Span,
    /// That of attention's, (N, D): another place where branches are parallel.
    pub dattended: Span,
    /// Of what the last projection takes, (N, F).
    pub dgated: Span,
    /// Of attention's output, (N, H·C).
    pub dout: Span,
    /// Of queries, keys and values, (N, W).
    pub dqkv: Span,
    /// Of keys and values, of each query head by itself, (N, 2·H·C); nothing if heads are not grouped.
    pub expanded: Span,
    /// (B, H, T) f32.
    pub delta: Span,
    /// Pieces of sums over rows, f32.
    pub pieces: Span,
    /// Logits of `logit_rows` rows of `logit_stride`.
    pub logits: Span,
    /// See `logits`.
    pub logit_rows: usize,
    /// See `logits`.
    pub logit_stride: usize,
    /// What A makes of an adapter's input, or its gradient, (N, R).
    pub low_rank: Span,
    /// An adapter's input with its part dropped, or what comes back, (N, widest input); nothing if nothing is dropped.
    pub dropped: Span,
    /// Ids, labels, and where the document of each token begins and ends, (4, N) words.
    pub ids: Span,
    /// What each row costs, (3, N) doubles.
    pub found: Span,
    /// Their sums, 3 doubles.
    pub sums: Span,
    /// Order and pieces of the embedding's gradient, words; see [`EmbeddingOrder`](super::embedding::EmbeddingOrder).
    pub order: Span,
    /// Its partial sums, (N / PIECE + 1, D) f32.
    pub partial: Span,
    /// What `ids`, and `order` of ids and of positions, are sent by.
    pub pinned: [Pinned; 3],
    _memory: Vec<Memory>,
}

/// Words that [`Buffers::order`] holds for `rows` tokens.
pub fn order_words(rows: usize) -> usize {
    9 * rows
}

/// Allocates spans and keeps the memory.
struct Allocator<'d> {
    device: &'d Arc<Device>,
    memory: Vec<Memory>,
}

impl Allocator<'_> {
    fn span(&mut self, count: usize, size: usize) -> Result<Span> {
        let memory = self.device.allocate(count, size)?;
        let span = memory.span;
        self.memory.push(memory);
        Ok(span)
    }

    fn statistics(&mut self, rows: usize) -> Result<Statistics> {
        Ok(Statistics { means: self.span(rows, 4)?, scales: self.span(rows, 4)? })
    }
}

impl Buffers {
    /// Memory for passes of these sizes.
    pub fn new(ops: &Ops, config: &Config, sizes: Sizes, widths: Widths) -> Result<Self> {
        let Widths { qkv: qkv_width, up: up_width, rank, drops } = widths;
        let Sizes { rows, kept, inputs } = sizes;
        let mut at = Allocator { device: &ops.device, memory: Vec::new() };
        let size = ops.element.size();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (heads, head_dim) = (config.num_attention_heads, config.head_dim);
        let out_width = heads * head_dim;
        let head_norms = config.layout().layers.iter().any(|layer| layer.head_norms.is_some());
        let normed = config.layout().layers.iter().any(|layer| layer.attention_norm.or(layer.output_norm).is_some());
        let ended = |at: &mut Allocator<'_>| -> Result<Ended> {
            let rows = if normed { rows } else { 0 };
            Ok(Ended { sum: at.span(rows * hidden, 4)?, statistics: at.statistics(rows)? })
        };
        let mut saved = Vec::with_capacity(kept);
        for _ in 0..kept {
            let qkv = at.span(rows * qkv_width, size)?;
            saved.push(Saved {
                y: at.span(rows * hidden, size)?,
                raw: if head_norms { at.span(rows * qkv_width, size)? } else { qkv },
                qkv,
                out: at.span(rows * out_width, size)?,
                log_sums: at.span(rows * heads, 4)?,
                middle: at.span(rows * hidden, 4)?,
                z: at.span(rows * hidden, size)?,
                up: at.span(rows * up_width, size)?,
                gated: at.span(rows * inner, size)?,
                input_statistics: at.statistics(rows)?,
                middle_statistics: at.statistics(rows)?,
                attention_end: ended(&mut at)?,
                output_end: ended(&mut at)?,
            });
        }
        let inputs = (0..inputs).map(|_| at.span(rows * hidden, 4)).collect::<Result<_>>()?;
        let logit_stride = config.vocab_size.next_multiple_of(VOCABULARY_MULTIPLE);
        let most = (LOGITS_BYTES / (logit_stride * size) / 128 * 128).max(128);
        let logit_rows = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(8);
        let widest = hidden.max(qkv_width).max(up_width);
        let (dx, dnormed) = (at.span(rows * hidden, 4)?, at.span(rows * hidden, size)?);
        let parallel = config.residual == Residual::Parallel;
        Ok(Self {
            sizes,
            saved,
            inputs,
            branch: at.span(rows * hidden, size)?,
            dbranch: at.span(if normed && size != 4 { rows * hidden } else { 0 }, 4)?,
            embedded: at.span(rows * hidden, 4)?,
            embedded_statistics: at.statistics(rows)?,
            states: at.span(rows * hidden, size)?,
            states_statistics: at.statistics(rows)?,
            dx,
            rounded: if size == 4 { dx } else { at.span(rows * hidden, size)? },
            dnormed,
            dattended: if parallel { at.span(rows * hidden, size)? } else { dnormed },
            dgated: at.span(rows * inner, size)?,
            dout: at.span(rows * out_width, size)?,
            dqkv: at.span(rows * qkv_width, size)?,
            expanded: at.span(if heads == config.num_key_value_heads { 0 } else { 2 * rows * out_width }, size)?,
            delta: at.span(rows * heads, 4)?,
            pieces: at.span(Ops::pieces(rows, widest).max(Ops::head_pieces(rows, heads, head_dim)), 4)?,
            logits: at.span(logit_rows * logit_stride, size)?,
            logit_rows,
            logit_stride,
            low_rank: at.span(rows * rank, size)?,
            dropped: at.span(if drops { rows * hidden.max(inner).max(out_width) } else { 0 }, size)?,
            ids: at.span(4 * rows, 4)?,
            found: at.span(3 * rows, 8)?,
            sums: at.span(3, 8)?,
            order: at.span(order_words(rows), 4)?,
            partial: at.span((rows / super::embedding::PIECE + 1) * 2 * hidden, 4)?,
            pinned: [ops.device.pin(4 * rows)?, ops.device.pin(order_words(rows))?, ops.device.pin(order_words(rows))?],
            _memory: at.memory,
        })
    }

    /// What layer `number` keeps.
    pub fn saved(&self, number: usize) -> Saved {
        self.saved[number % self.saved.len()]
    }

    /// The residual stream before layer `number`.
    pub fn input(&self, number: usize) -> Span {
        self.inputs[number % self.inputs.len()]
    }
}
