//! The operations of a decoder on the GPU: each queues its kernels (`kernels/`) with the sizes they need. Shapes are
//! those of [`crate::ops`]; queries, keys and values of a token lie in one row.

use std::sync::Arc;

use tokenmill_shared::Result;
use tokenmill_shared::random::Stream;

use super::device::{Arg, Device, Element, Matrix, Span};
use super::embedding::EmbeddingOrder;
use crate::model::NormKind;
use crate::ops::activation::Activation;
use crate::ops::adamw::Constants;
use crate::ops::dropout::Dropout;

/// All kernels of the module.
pub const KERNELS: &[&str] = &[
    "activation_backward_bf16",
    "activation_backward_f32",
    "activation_forward_bf16",
    "activation_forward_f32",
    "adamw",
    "add_bias_bf16",
    "add_bias_f32",
    "add_branch_bf16",
    "add_branch_f32",
    "add_noise",
    "attention_backward_kv_128",
    "attention_backward_kv_128_dropping",
    "attention_backward_kv_64",
    "attention_backward_kv_64_dropping",
    "attention_backward_kv_bf16",
    "attention_backward_kv_f32",
    "attention_backward_q_128",
    "attention_backward_q_128_dropping",
    "attention_backward_q_64",
    "attention_backward_q_64_dropping",
    "attention_backward_q_bf16",
    "attention_backward_q_f32",
    "attention_delta_bf16",
    "attention_delta_f32",
    "attention_forward_128",
    "attention_forward_128_dropping",
    "attention_forward_64",
    "attention_forward_64_dropping",
    "attention_forward_bf16",
    "attention_forward_f32",
    "column_sums_bf16",
    "column_sums_f32",
    "cross_entropy_bf16",
    "cross_entropy_f32",
    "dropout_bf16",
    "dropout_f32",
    "embedding_backward",
    "embedding_backward_join",
    "embedding_forward",
    "head_norm_backward_bf16",
    "head_norm_backward_f32",
    "head_norm_forward_bf16",
    "head_norm_forward_f32",
    "join_heads",
    "join_pieces",
    "norm_backward_bf16",
    "norm_backward_f32",
    "norm_forward_bf16",
    "norm_forward_f32",
    "restore_four_bit_bf16",
    "restore_four_bit_f32",
    "restore_int8_bf16",
    "restore_int8_f32",
    "rope_bf16",
    "rope_f32",
    "round_to_bf16",
    "sum_doubles",
    "sum_of_squares",
];

/// As in the kernels.
const PIECE_ROWS: usize = 128;
const NORM_PIECE: usize = 65536;
const HEADS_OF_BLOCK: usize = 8 * 32;
const WARP: usize = 32;

/// Features of a head at most.
pub const LARGEST_HEAD: usize = 256;

/// Where heads are in a row of queries, keys and values; see `heads.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Sequences.
    pub batch: i32,
    /// Tokens of a sequence.
    pub time: i32,
    /// Query heads.
    pub heads: i32,
    /// Key and value heads.
    pub kv_heads: i32,
    /// Features of a head.
    pub head_dim: i32,
    /// Features of a row.
    pub width: i32,
    /// The first query head.
    pub q: i32,
    /// The first key head.
    pub k: i32,
    /// The first value head.
    pub v: i32,
    /// From one query head to the next.
    pub q_step: i32,
    /// From one key or value head to the next.
    pub kv_step: i32,
    /// What products are multiplied by.
    pub scale: f32,
    /// Keys that a query sees; 0: all before it.
    pub window: i32,
    /// Scores become softcap · tanh(score / softcap); 0: they stay.
    pub softcap: f32,
    /// The share of weights that is dropped, by the stream of `key`.
    pub rate: f32,
    /// Where the document of each token begins in its sequence, (batch, time) words on the GPU; 0: each sequence is one.
    pub starts: u64,
    /// Where it ends.
    pub ends: u64,
    /// See `rate`.
    pub key: u64,
}

impl Heads {
    /// Query heads first, then key heads, then value heads.
    pub fn in_blocks(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let size = |value: usize| i32::try_from(value).expect("sizes of a model fit an int");
        Self {
            batch: 0,
            time: 0,
            heads: size(heads),
            kv_heads: size(kv_heads),
            head_dim: size(head_dim),
            width: size((heads + 2 * kv_heads) * head_dim),
            q: 0,
            k: size(heads * head_dim),
            v: size((heads + kv_heads) * head_dim),
            q_step: size(head_dim),
            kv_step: size(head_dim),
            scale: 1.0,
            window: 0,
            softcap: 0.0,
            rate: 0.0,
            starts: 0,
            ends: 0,
            key: 0,
        }
    }

    fn rows(&self) -> usize {
        (self.batch * self.time) as usize
    }
}

/// Weight and bias of a norm, f32.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// (features).
    pub weight: Span,
    /// Of a LayerNorm.
    pub bias: Option<Span>,
    /// See [`NormKind`].
    pub kind: NormKind,
    /// Added to the variance.
    pub epsilon: f32,
}

impl Norm {
    fn offset(&self) -> f32 {
        if let NormKind::Rms { offset } = self.kind { offset } else { 0.0 }
    }
}

/// What is added to the residual stream: values (rows, features) and their bias, f32, of which something is dropped.
#[derive(Debug, Clone, Copy)]
pub struct Branch {
    /// (rows, features).
    pub values: Span,
    /// (features).
    pub bias: Option<Span>,
    /// Of their sum.
    pub dropout: Option<Dropout>,
}

impl Branch {
    fn args(&self) -> [Arg; 4] {
        let (key, rate) = self.dropout.map_or((0, 0.0), |dropout| (dropout.stream.key(), dropout.rate));
        [self.values.into(), self.bias.into(), Arg::Long(key), rate.into()]
    }
}

/// Mean and 1/√variance of each row, f32. Of RMSNorm, the scales alone.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// (rows).
    pub means: Span,
    /// (rows).
    pub scales: Span,
}

/// The blocks of attention on tensor cores, as the kernels are made.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    head_dim: usize,
    /// Queries or keys of a block.
    rows: usize,
}

impl Tiles {
    /// Keys or queries at a time in the backward.
    const STEP: usize = 32;

    /// The kernel of an operation.
    fn kernel(self, operation: &str, heads: &Heads) -> String {
        format!("attention_{operation}_{}{}", self.head_dim, if heads.rate > 0.0 { "_dropping" } else { "" })
    }

    /// Shared memory for so many rows.
    fn bytes(self, rows: usize) -> usize {
        rows * (self.head_dim + 8) * 2
    }
}

/// Queues operations on values of one type.
#[derive(Debug, Clone)]
pub struct Ops {
    /// Where.
    pub device: Arc<Device>,
    /// What the operands of products are made of.
    pub element: Element,
}

impl Ops {
    fn name(&self, operation: &str) -> String {
        format!("{operation}_{}", if self.element == Element::F32 { "f32" } else { "bf16" })
    }

    /// A matrix of rows of `stride` values of this type.
    pub fn matrix(&self, span: Span, stride: usize) -> Matrix {
        Matrix::new(span, stride, self.element)
    }

    /// x: (rows, width) f32 = rows of the embedding (f32) times `scale`, plus the vectors of positions, which begin anew
    /// at `starts`, (rows), if there are any.
    pub fn embed(
        &self,
        x: Span,
        ids: Span,
        (weight, scale): (Span, f32),
        (positions, starts): (Option<Span>, Option<Span>),
        (rows, time, width): (usize, usize, usize),
    ) -> Result<()> {
        let args = [
            x.into(),
            ids.into(),
            weight.into(),
            positions.into(),
            starts.into(),
            scale.into(),
            time.into(),
            width.into(),
        ];
        self.device.launch("embedding_forward", (rows, 1, 1), (256, 1), 0, &args)
    }

    /// Adds scale · dx: (rows, width) f32 to the rows of an embedding's gradient, in an order whose words are on the GPU;
    /// `partial`: (partials of the order, width) f32.
    pub fn embed_backward(
        &self,
        (gradient, partial): (Span, Span),
        dx: Span,
        (order, words): (&EmbeddingOrder, Span),
        scale: f32,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        let pieces = words.part(rows, 4 * order.pieces, 4);
        let args =
            [gradient.into(), partial.into(), dx.into(), words.into(), pieces.into(), scale.into(), width.into()];
        self.device.launch("embedding_backward", (order.pieces, 1, 1), (256, 1), 0, &args)?;
        if order.joins == 0 {
            return Ok(());
        }
        assert!(order.partials * width * 4 <= partial.bytes, "room for the partial sums");
        let joins = words.part(rows + 4 * order.pieces, 4 * order.joins, 4);
        let args = [gradient.into(), partial.into(), joins.into(), width.into()];
        self.device.launch("embedding_backward_join", (order.joins, 1, 1), (256, 1), 0, &args)
    }

    /// y = norm(x + branch), the sum being kept in `sum` if there is a branch. y may be where the branch is.
    pub fn norm(
        &self,
        x: Option<Span>,
        branch: Option<Branch>,
        (sum, y): (Span, Span),
        statistics: Statistics,
        norm: &Norm,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        // A row for each warp in shared memory, up to 48 KiB or one row.
        let warps = ((48 << 10) / (width * 4)).clamp(1, 8);
        let [values, bias, key, rate] =
            branch.map_or([Arg::Null, Arg::Null, Arg::Long(0), 0.0.into()], |branch| branch.args());
        let args = [
            x.into(),
            values,
            bias,
            key,
            rate,
            sum.into(),
            y.into(),
            statistics.means.into(),
            statistics.scales.into(),
            norm.weight.into(),
            norm.bias.into(),
            norm.offset().into(),
            norm.epsilon.into(),
            rows.into(),
            width.into(),
        ];
        let grid = (rows.div_ceil(warps), 1, 1);
        self.device.launch(&self.name("norm_forward"), grid, (warps * WARP, 1), warps * width * 4, &args)
    }

    /// sum: (rows, width) f32 = x + branch.
    pub fn add_branch(&self, x: Span, branch: Branch, sum: Span, (rows, width): (usize, usize)) -> Result<()> {
        let ([values, bias, key, rate], count) = (branch.args(), rows * width);
        let args = [x.into(), values, bias, key, rate, sum.into(), width.into(), Arg::Long(count as u64)];
        self.device.launch(&self.name("add_branch"), ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// x: f32 += noise of this stream within ±`bound`: `count` values.
    pub fn add_noise(&self, x: Span, stream: Stream, bound: f64, count: usize) -> Result<()> {
        let args = [x.into(), Arg::Long(stream.key()), Arg::Double(bound), Arg::Long(count as u64)];
        self.device.launch("add_noise", (count.div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// Adds the gradient of a norm's input to dx (f32), or sets it; `rounded` gets the sum in this type, if that is
    /// another.
    pub fn norm_backward(
        &self,
        dy: Span,
        (x, statistics): (Span, Statistics),
        norm: &Norm,
        (dx, add): (Span, bool),
        rounded: Span,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        let args = [
            dy.into(),
            x.into(),
            norm.bias.map(|_| statistics.means).into(),
            statistics.scales.into(),
            norm.weight.into(),
            norm.offset().into(),
            dx.into(),
            (rounded != dx).then_some(rounded).into(),
            add.into(),
            rows.into(),
            width.into(),
        ];
        self.device.launch(&self.name("norm_backward"), (rows.div_ceil(8), 1, 1), (8 * WARP, 1), 0, &args)
    }

    /// The gradients of a norm's weight and bias, (features) f32: set or, each where its flag says so, added to.
    pub fn norm_weights_backward(
        &self,
        dy: Span,
        (x, statistics): (Span, Statistics),
        norm: &Norm,
        (weight, bias): ((Span, bool), Option<(Span, bool)>),
        pieces: Span,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        let count = rows.div_ceil(PIECE_ROWS);
        let of_bias = pieces.part(count * width, if bias.is_some() { count * width } else { 0 }, 4);
        let args = [
            dy.into(),
            x.into(),
            norm.bias.map(|_| statistics.means).into(),
            statistics.scales.into(),
            pieces.into(),
            bias.map(|_| of_bias).into(),
            rows.into(),
            width.into(),
        ];
        self.column_sums(&self.name("column_sums"), &args, (rows, width))?;
        self.join(weight, pieces, (count, width))?;
        bias.map_or(Ok(()), |bias| self.join(bias, of_bias, (count, width)))
    }

    /// The sum of dy: (rows, width), over rows: set or added to.
    pub fn bias_backward(
        &self,
        (dy, element): (Span, Element),
        bias: (Span, bool),
        pieces: Span,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        let args = [dy.into(), Arg::Null, Arg::Null, Arg::Null, Arg::Null, pieces.into(), rows.into(), width.into()];
        let name = if element == Element::F32 { "column_sums_f32" } else { "column_sums_bf16" };
        self.column_sums(name, &args, (rows, width))?;
        self.join(bias, pieces, (rows.div_ceil(PIECE_ROWS), width))
    }

    fn column_sums(&self, name: &str, args: &[Arg], (rows, width): (usize, usize)) -> Result<()> {
        self.device.launch(name, (width.div_ceil(4 * WARP), rows.div_ceil(PIECE_ROWS), 1), (WARP, 8), 0, args)
    }

    fn join(&self, (sums, add): (Span, bool), pieces: Span, (count, width): (usize, usize)) -> Result<()> {
        let args = [sums.into(), pieces.into(), count.into(), width.into(), add.into()];
        self.device.launch("join_pieces", (width.div_ceil(WARP), 1, 1), (WARP, 8), 0, &args)
    }

    /// Values that the pieces of column sums take.
    pub fn pieces(rows: usize, width: usize) -> usize {
        2 * rows.div_ceil(PIECE_ROWS) * width
    }

    /// x: (rows, width) += bias.
    pub fn add_bias(&self, x: Span, bias: Span, (rows, width): (usize, usize)) -> Result<()> {
        let count = rows * width;
        let args = [x.into(), bias.into(), width.into(), Arg::Long(count as u64)];
        self.device.launch(&self.name("add_bias"), ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// Rotates queries and keys, in place; the backward is the transposed rotation. `table`: cosines and sines.
    pub fn rope(
        &self,
        x: Span,
        (cosines, sines): (Span, Span),
        (half, interleaved): (usize, bool),
        heads: Heads,
        backward: bool,
    ) -> Result<()> {
        let fours =
            !interleaved && [half, heads.width as usize, heads.head_dim as usize].iter().all(|size| size % 4 == 0);
        let pairs = heads.rows() * (heads.heads + heads.kv_heads) as usize * half / if fours { 4 } else { 1 };
        let sign: f32 = if backward { -1.0 } else { 1.0 };
        let args = [
            x.into(),
            cosines.into(),
            sines.into(),
            Arg::Heads(heads),
            half.into(),
            interleaved.into(),
            fours.into(),
            sign.into(),
        ];
        self.device.launch(&self.name("rope"), (pairs.div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// Normed queries and keys, and values as they are: (rows, width) into y.
    pub fn head_norms(&self, x: Span, y: Span, [q, k]: &[Norm; 2], heads: Heads) -> Result<()> {
        let args = [
            x.into(),
            y.into(),
            q.weight.into(),
            k.weight.into(),
            q.offset().into(),
            q.epsilon.into(),
            Arg::Heads(heads),
        ];
        let all = heads.rows() * (heads.heads + 2 * heads.kv_heads) as usize;
        self.device.launch(&self.name("head_norm_forward"), (all.div_ceil(8), 1, 1), (8 * WARP, 1), 0, &args)
    }

    /// Turns the gradients of normed heads into those of heads, in place; and makes those of the weights, if asked for.
    pub fn head_norms_backward(
        &self,
        dx: Span,
        x: Span,
        [q, k]: &[Norm; 2],
        gradients: Option<[(Span, bool); 2]>,
        pieces: Span,
        heads: Heads,
    ) -> Result<()> {
        let width = heads.head_dim as usize;
        let blocks = (heads.rows() * heads.heads as usize).div_ceil(HEADS_OF_BLOCK);
        let args = [
            dx.into(),
            x.into(),
            q.weight.into(),
            k.weight.into(),
            q.offset().into(),
            q.epsilon.into(),
            pieces.part(0, 2 * blocks * width, 4).into(),
            Arg::Heads(heads),
        ];
        self.device.launch(&self.name("head_norm_backward"), (blocks, 2, 1), (8 * WARP, 1), 0, &args)?;
        let Some([dq, dk]) = gradients else { return Ok(()) };
        self.join(dq, pieces, (blocks, width))?;
        self.join(dk, pieces.part(blocks * width, blocks * width, 4), (blocks, width))
    }

    /// Values that the pieces of the gradients of head norms take.
    pub fn head_pieces(rows: usize, heads: usize, head_dim: usize) -> usize {
        2 * (rows * heads).div_ceil(HEADS_OF_BLOCK) * head_dim
    }

    /// y: (rows, width) = f(x), or f(x's first half) · its second; x becomes x + bias first.
    pub fn activation(
        &self,
        activation: Activation,
        x: Span,
        bias: Option<Span>,
        y: Span,
        gated: bool,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        let count = rows * width;
        let args = [
            x.into(),
            bias.into(),
            y.into(),
            Arg::Int(kind(activation)),
            gated.into(),
            width.into(),
            Arg::Long(count as u64),
        ];
        self.device.launch(&self.name("activation_forward"), ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// Turns x, as the forward left it, into its gradient, given that of y.
    pub fn activation_backward(
        &self,
        activation: Activation,
        dy: Span,
        x: Span,
        gated: bool,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        let count = rows * width;
        let args =
            [dy.into(), x.into(), Arg::Int(kind(activation)), gated.into(), width.into(), Arg::Long(count as u64)];
        self.device.launch(&self.name("activation_backward"), ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// How attention runs on tensor cores, if it does.
    fn tiled(&self, heads: Heads) -> Option<Tiles> {
        let aligned =
            [heads.width, heads.q, heads.k, heads.v, heads.q_step, heads.kv_step].iter().all(|at| at % 8 == 0);
        let rows = match heads.head_dim {
            64 => 128,
            128 => 64,
            _ => return None,
        };
        let head_dim = heads.head_dim as usize;
        (self.element == Element::Bf16 && aligned && heads.softcap == 0.0).then_some(Tiles { head_dim, rows })
    }

    /// out: (rows, heads · head_dim); log_sums: (batch, heads, time) f32, for the backward.
    pub fn attention(&self, qkv: Span, out: Span, log_sums: Span, slopes: Option<Span>, heads: Heads) -> Result<()> {
        let args = [qkv.into(), out.into(), log_sums.into(), slopes.into(), Arg::Heads(heads)];
        let (time, count, batch) = (heads.time as usize, heads.heads as usize, heads.batch as usize);
        match self.tiled(heads) {
            Some(tiles) => {
                let grid = (time.div_ceil(tiles.rows), count, batch);
                self.device.launch(
                    &tiles.kernel("forward", &heads),
                    grid,
                    (128, 1),
                    tiles.bytes(tiles.rows + 4 * 64),
                    &args,
                )
            }
            None => {
                let grid = (time.div_ceil(4), count, batch);
                self.device.launch(&self.name("attention_forward"), grid, (4 * WARP, 1), 0, &args)
            }
        }
    }

    /// The gradients of queries, keys and values, (rows, width), given that of the output. `delta`: (batch, heads,
    /// time) f32; `expanded`: (rows, 2 · heads · head_dim), if heads are grouped.
    pub fn attention_backward(
        &self,
        dout: Span,
        (qkv, out, log_sums): (Span, Span, Span),
        (delta, expanded): (Span, Span),
        dqkv: Span,
        slopes: Option<Span>,
        heads: Heads,
    ) -> Result<()> {
        let all = heads.rows() * heads.heads as usize;
        let args = [dout.into(), out.into(), delta.into(), Arg::Heads(heads)];
        self.device.launch(&self.name("attention_delta"), (all.div_ceil(8), 1, 1), (8 * WARP, 1), 0, &args)?;
        let args =
            [qkv.into(), dout.into(), log_sums.into(), delta.into(), dqkv.into(), slopes.into(), Arg::Heads(heads)];
        let (time, batch) = (heads.time as usize, heads.batch as usize);
        let (count, kv_count) = (heads.heads as usize, heads.kv_heads as usize);
        let Some(tiles) = self.tiled(heads) else {
            let blocks = time.div_ceil(4);
            let block = (4 * WARP, 1);
            self.device.launch(&self.name("attention_backward_q"), (blocks, count, batch), block, 0, &args)?;
            return self.device.launch(&self.name("attention_backward_kv"), (blocks, kv_count, batch), block, 0, &args);
        };
        let grid = (time.div_ceil(tiles.rows), count, batch);
        let shared = tiles.bytes(2 * tiles.rows + 4 * Tiles::STEP);
        self.device.launch(&tiles.kernel("backward_q", &heads), grid, (128, 1), shared, &args)?;
        let grouped = count > kv_count;
        let place = |span: Span, start: usize| Span { at: span.at + 2 * start as u64, bytes: span.bytes - 2 * start };
        let width = count * tiles.head_dim;
        let (dk, dv, stride, step) = if grouped {
            (expanded, place(expanded, width), 2 * width, tiles.head_dim)
        } else {
            let (k, v) = (place(dqkv, heads.k as usize), place(dqkv, heads.v as usize));
            (k, v, heads.width as usize, heads.kv_step as usize)
        };
        let args = [
            qkv.into(),
            dout.into(),
            log_sums.into(),
            delta.into(),
            dk.into(),
            dv.into(),
            stride.into(),
            step.into(),
            slopes.into(),
            Arg::Heads(heads),
        ];
        self.device.launch(
            &tiles.kernel("backward_kv", &heads),
            grid,
            (128, 1),
            shared + 4 * Tiles::STEP * 4,
            &args,
        )?;
        if !grouped {
            return Ok(());
        }
        let values = heads.rows() * 2 * kv_count * tiles.head_dim / 4;
        let args = [expanded.into(), dqkv.into(), Arg::Heads(heads)];
        self.device.launch("join_heads", (values.div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// Turns what logits are made of, (count, vocab) in rows of `stride`, into its gradients if there is a `scale`, and notes
    /// what they cost in rows from `first` of `found`: three columns of `rows` doubles.
    pub fn cross_entropy(
        &self,
        (logits, stride, vocab): (Span, usize, usize),
        labels: Span,
        found: Span,
        (first, count, rows): (usize, usize, usize),
        cap: Option<f32>,
        scales: Option<(f32, f32)>,
    ) -> Result<()> {
        let (scale, smoothing) = scales.unwrap_or_default();
        let args = [
            logits.into(),
            labels.into(),
            found.into(),
            first.into(),
            rows.into(),
            vocab.into(),
            stride.into(),
            cap.unwrap_or(0.0).into(),
            scale.into(),
            smoothing.into(),
            scales.is_some().into(),
        ];
        self.device.launch(&self.name("cross_entropy"), (count, 1, 1), (512, 1), 0, &args)
    }

    /// y = mask · x, or y += mask · x: `count` values.
    pub fn dropout(&self, y: Span, x: Span, dropout: Dropout, add: bool, count: usize) -> Result<()> {
        let args = [
            y.into(),
            x.into(),
            Arg::Long(dropout.stream.key()),
            dropout.rate.into(),
            add.into(),
            Arg::Long(count as u64),
        ];
        self.device.launch(&self.name("dropout"), ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// Turns a weight in 4 bits into its `count` values; see `kernels/quantised.cuh` for the arguments.
    pub fn restore_four_bit(&self, count: usize, args: &[Arg]) -> Result<()> {
        self.device.launch(&self.name("restore_four_bit"), (count.div_ceil(4096), 1, 1), (256, 1), 0, args)
    }

    /// The same of a weight in 8 bits.
    pub fn restore_int8(&self, count: usize, args: &[Arg]) -> Result<()> {
        self.device.launch(&self.name("restore_int8"), (count.div_ceil(1024), 1, 1), (256, 1), 0, args)
    }

    /// to[c] = the sum of the `count` doubles of column c.
    pub fn sum_doubles(&self, to: Span, from: Span, columns: usize, count: usize) -> Result<()> {
        let args = [to.into(), from.into(), count.into()];
        self.device.launch("sum_doubles", (columns, 1, 1), (256, 1), 0, &args)
    }

    /// Doubles that the squares of `count` values take.
    pub fn squares(count: usize) -> usize {
        count.div_ceil(NORM_PIECE)
    }

    /// The sum of the squares of `count` floats, a double.
    pub fn sum_of_squares(&self, sum: Span, x: Span, squares: Span, count: usize) -> Result<()> {
        let args = [squares.into(), x.into(), Arg::Long(count as u64)];
        self.device.launch("sum_of_squares", (Self::squares(count), 1, 1), (256, 1), 0, &args)?;
        self.sum_doubles(sum, squares, 1, Self::squares(count))
    }

    /// One update of `count` parameters, given their gradients and moments, all f32; `copy`: the parameters in bf16.
    pub fn adamw(
        &self,
        [parameter, gradient, first, second]: [Span; 4],
        copy: Option<Span>,
        constants: Constants,
        count: usize,
    ) -> Result<()> {
        let args = [
            parameter.into(),
            gradient.into(),
            first.into(),
            second.into(),
            copy.into(),
            Arg::AdamW(constants),
            Arg::Long(count as u64),
        ];
        self.device.launch("adamw", ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)
    }

    /// `to` = `from` (f32), in bf16.
    pub fn round_to_bf16(&self, to: Span, from: Span, count: usize) -> Result<()> {
        let args = [to.into(), from.into(), Arg::Long(count as u64)];
        self.device.launch("round_to_bf16", ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)
    }
}

fn kind(activation: Activation) -> i32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
    }
}
