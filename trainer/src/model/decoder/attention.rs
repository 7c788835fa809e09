//! The attention of a layer: queries, keys and values of a normed input, up to the merged heads that the output
//! projection takes.

use candle_core::{Result, Tensor};

use super::Decoder;
use super::parts::Statistics;
use crate::gradients::Gradients;
use crate::model::dropout::Place;
use crate::model::layout::{Layer, Qkv};
use crate::ops::attention::{self, LogSums, Scores};
use crate::ops::heads::{self, Columns};
use crate::ops::precision::Precision;
use crate::ops::rope::{self, Table};

/// What the backward needs.
pub(super) struct Saved {
    /// Queries and keys before their head norms, if there are any, with the statistics.
    raw: Option<[(Tensor, Statistics); 2]>,
    /// Rotated queries (B, H, T, C) and keys, and values (B, K, T, C).
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Output, (B, H, T, C), and its log sums.
    output: Tensor,
    log_sums: LogSums,
}

impl Saved {
    /// What the output projection took, (N, H·C).
    pub(super) fn merged(&self) -> Result<Tensor> {
        heads::merge(&self.output)
    }
}

impl Decoder<'_> {
    /// `y`: (N, D). Returns the merged heads, (N, H·C).
    pub(super) fn attention(&self, y: &Tensor, layer: &Layer, number: usize) -> Result<(Tensor, Saved)> {
        let [mut q, mut k, v] = self.queries_keys_values(y, layer.qkv)?;
        let mut raw = None;
        if let Some([q_norm, k_norm]) = layer.head_norms {
            let ((normed_q, q_statistics), (normed_k, k_statistics)) = (self.norm(&q, q_norm)?, self.norm(&k, k_norm)?);
            raw = Some([(q, q_statistics), (k, k_statistics)]);
            (q, k) = (normed_q, normed_k);
        }
        if let Some(table) = self.table(number) {
            rope::forward(&q, table, &self.positions)?;
            rope::forward(&k, table, &self.positions)?;
        }
        let (output, log_sums) = attention::forward(&q, &k, &v, self.scores(number))?;
        let saved = Saved { raw, q, k, v, output, log_sums };
        Ok((saved.merged()?, saved))
    }

    /// The gradient of `y`, (N, D), given that of the merged heads.
    pub(super) fn attention_backward(
        &self,
        dmerged: &Tensor,
        y: &Tensor,
        layer: &Layer,
        number: usize,
        saved: &Saved,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let columns = Columns::whole(self.config.num_attention_heads, self.config.head_dim);
        let doutput = heads::split(dmerged, self.batch_size, columns)?;
        let inputs = (&saved.q, &saved.k, &saved.v);
        let (mut dq, mut dk, dv) =
            attention::backward(&doutput, inputs, &saved.output, &saved.log_sums, self.scores(number))?;
        if let Some(table) = self.table(number) {
            rope::backward(&dq, table, &self.positions)?;
            rope::backward(&dk, table, &self.positions)?;
        }
        if let (Some(norms), Some(raw)) = (layer.head_norms, &saved.raw) {
            for ((dheads, (raw, statistics)), norm) in [&mut dq, &mut dk].into_iter().zip(raw).zip(norms) {
                let draw = raw.zeros_like()?;
                self.norm_backward(dheads, (raw, statistics), norm, (&draw, false), gradients)?;
                *dheads = draw;
            }
        }
        self.queries_keys_values_backward([&dq, &dk, &dv], y, layer.qkv, gradients)
    }

    fn table(&self, number: usize) -> Option<&Table> {
        self.tables.get(self.config.layers[number].rope)
    }

    fn scores(&self, number: usize) -> Scores<'_> {
        let layer = self.config.layers[number];
        Scores {
            documents: &self.documents,
            scale: layer.scale,
            window: layer.window,
            softcap: self.config.attention_softcap,
            slopes: self.slopes.as_deref(),
            dropout: self.dropout(self.config.dropout.attention, Place::Attention(number)),
            // float16 would lose the gradients of scores, which are far below the others'.
            precision: if self.precision == Precision::Bf16 { Precision::Bf16 } else { Precision::F32 },
        }
    }

    /// Where queries, keys and values are in the features of one projection.
    fn columns(&self, per_head: bool) -> [Columns; 3] {
        let (heads, head_dim) = (self.config.num_attention_heads, self.config.head_dim);
        [0, 1, 2].map(|which| {
            let (offset, stride) =
                if per_head { (which * head_dim, 3 * head_dim) } else { (which * heads * head_dim, head_dim) };
            Columns { heads, head_dim, offset, stride }
        })
    }

    /// Heads of queries, (B, H, T, C), keys and values, (B, K, T, C).
    fn queries_keys_values(&self, y: &Tensor, qkv: Qkv) -> Result<[Tensor; 3]> {
        let (projection, per_head) = match qkv {
            Qkv::Separate([q, k, v]) => {
                let of = |projection, heads| {
                    heads::split(
                        &self.project(y, projection)?,
                        self.batch_size,
                        Columns::whole(heads, self.config.head_dim),
                    )
                };
                let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
                return Ok([of(q, heads)?, of(k, kv_heads)?, of(v, kv_heads)?]);
            }
            Qkv::Blocks(projection) => (projection, false),
            Qkv::PerHead(projection) => (projection, true),
        };
        let all = self.project(y, projection)?;
        let [q, k, v] = self.columns(per_head).map(|columns| heads::split(&all, self.batch_size, columns));
        Ok([q?, k?, v?])
    }

    fn queries_keys_values_backward(
        &self,
        dheads: [&Tensor; 3],
        y: &Tensor,
        qkv: Qkv,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (projection, per_head) = match qkv {
            Qkv::Separate(projections) => {
                let [dq, dk, dv] = dheads.map(heads::merge);
                let dy = self.projection_backward(&dq?, y, projections[0], gradients)?;
                self.projection_backward_add(&dk?, y, projections[1], &dy, gradients)?;
                self.projection_backward_add(&dv?, y, projections[2], &dy, gradients)?;
                return Ok(dy);
            }
            Qkv::Blocks(projection) => (projection, false),
            Qkv::PerHead(projection) => (projection, true),
        };
        let (rows, _) = y.dims2()?;
        let all = Tensor::zeros((rows, 3 * self.config.query_width()), y.dtype(), y.device())?;
        for (dheads, columns) in dheads.into_iter().zip(self.columns(per_head)) {
            heads::merge_into(dheads, &all, columns)?;
        }
        self.projection_backward(&all, y, projection, gradients)
    }
}
