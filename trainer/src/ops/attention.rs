//! Causal attention with grouped keys and values inside each document, forward and backward: optionally with a sliding
//! window, soft-capped scores, ALiBi and dropout of the weights.
//!
//! Scores exist for `BLOCK_ROWS` queries of one head at a time, never as a time × time matrix; the
//! backward computes them again from the log of each row's sum, as in FlashAttention (Dao et al. 2022). No score is
//! computed between documents.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values};
use super::documents::Documents;
use super::dropout::Dropout;
use super::matmul::{Matrix, product_alone};
use super::precision::Precision;
use super::simd::{self, dot, exp, exp_and_sum};

/// Queries whose scores are in memory at once: 64 rows of 1,024 keys are 256 KiB, which fits the L2 cache.
const BLOCK_ROWS: usize = 64;

/// What the backward needs besides its inputs and output: the log of the sum of each row's exponentials.
pub type LogSums = Vec<f32>;

/// What becomes of the products of queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// The documents of the batch: a query sees keys of its own.
    pub documents: &'a Documents,
    /// What they are multiplied by: 1/√head_dim, usually.
    pub scale: f32,
    /// Keys that a query sees, itself included; without a window, all that are not later.
    pub window: Option<usize>,
    /// Each score becomes `cap · tanh(score / cap)` (gemma2).
    pub softcap: Option<f32>,
    /// What a score loses for each step between query and key, for each head ([ALiBi](super::alibi)).
    pub slopes: Option<&'a [f32]>,
    /// Of the weights, while training.
    pub dropout: Option<Dropout>,
    /// Of the products.
    pub precision: Precision,
}

impl Scores<'_> {
    /// The queries of a sequence, as many at a time as have scores in memory, with the beginning of their document.
    fn blocks(&self, sequence: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        self.documents.of(sequence).flat_map(|document| {
            let Range { start, end } = document;
            (start..end).step_by(BLOCK_ROWS).map(move |begin| (begin..end.min(begin + BLOCK_ROWS), start))
        })
    }

    /// The first key that query `query` of the document that begins at `start` sees; the last is `query` itself.
    fn first(&self, query: usize, start: usize) -> usize {
        self.window.map_or(start, |window| (query + 1).saturating_sub(window).max(start))
    }

    /// Turns the products of a query with the keys it sees, the last of them its own, into scores, all but a factor that
    /// is returned. `head` counts through the batch.
    #[inline(always)]
    fn of(&self, products: &mut [f32], head: usize) -> f32 {
        let mut scale = self.scale;
        if let Some(cap) = self.softcap {
            products.iter_mut().for_each(|x| *x = cap * simd::tanh(*x * scale / cap));
            scale = 1.0;
        }
        if let Some(slopes) = self.slopes {
            let (slope, last) = (slopes[head % slopes.len()], products.len() - 1);
            products.iter_mut().enumerate().for_each(|(key, x)| *x = *x * scale - slope * (last - key) as f32);
            scale = 1.0;
        }
        scale
    }

    /// Multiplies the weights of a query, from key `first` on, by their part of the mask.
    fn drop(&self, weights: &mut [f32], (head, time, query, first): (usize, usize, usize, usize)) {
        if let Some(dropout) = &self.dropout {
            dropout.apply_from(weights, (head * time + query) * time + first);
        }
    }
}

/// `q`: (batch, heads, time, head_dim); `k`, `v`: (batch, kv_heads, time, head_dim); query i sees keys j with
/// 0 ≤ i − j (< window) of its document. Returns the output in q's shape and what the backward needs.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, kind: Scores<'_>) -> Result<(Tensor, LogSums)> {
    let (_, heads, time, dim) = q.dims4()?;
    let (_, kv_heads, _, _) = k.dims4()?;
    let (queries, keys, mut_values) = (values(q)?, values(k)?, values(v)?);
    let head = time * dim;
    let mut output = vec![0.0; queries.len()];
    let mut log_sums = vec![0.0; queries.len() / dim];
    output.par_chunks_mut(head).zip(log_sums.par_chunks_mut(time)).enumerate().for_each_init(
        || vec![0.0; BLOCK_ROWS * time],
        |scores, (index, (output, log_sums))| {
            let kv = index / heads * kv_heads + index % heads / (heads / kv_heads);
            let (q, k, v) =
                (&queries[index * head..][..head], &keys[kv * head..][..head], &mut_values[kv * head..][..head]);
            for (block, start) in kind.blocks(index / heads) {
                let begin = block.start;
                let (rows, first) = (block.len(), kind.first(begin, start));
                let columns = block.end - first;
                let key_block = Matrix::new(&k[first * dim..], columns, dim);
                product_alone(Matrix::new(&q[begin * dim..], rows, dim), key_block.t(), scores, false, kind.precision);
                for row in 0..rows {
                    let query = begin + row;
                    let seen = kind.first(query, start) - first..query + 1 - first;
                    let row = &mut scores[row * columns..][..columns];
                    row[..seen.start].fill(0.0);
                    row[seen.end..].fill(0.0);
                    let weights = &mut row[seen];
                    log_sums[query] = simd::run(
                        #[inline(always)]
                        || {
                            let scale = kind.of(weights, index);
                            softmax(weights, scale)
                        },
                    );
                    kind.drop(weights, (index, time, query, kind.first(query, start)));
                }
                let value_block = Matrix::new(&v[first * dim..], columns, dim);
                product_alone(
                    Matrix::new(scores, rows, columns),
                    value_block,
                    &mut output[begin * dim..],
                    false,
                    kind.precision,
                );
            }
        },
    );
    Ok((tensor(output, q.shape())?, log_sums))
}

/// Softmax of `scale · x` in place; returns the log of the sum of exponentials.
#[inline(always)]
fn softmax(x: &mut [f32], scale: f32) -> f32 {
    let largest = simd::max(x) * scale;
    let sum = exp_and_sum(x, scale, largest);
    let inverse = 1.0 / sum;
    x.iter_mut().for_each(|x| *x *= inverse);
    largest + sum.ln()
}

/// The gradients of q, k and v, given that of the output and what [`forward`] returned.
pub fn backward(
    dout: &Tensor,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    output: &Tensor,
    log_sums: &LogSums,
    kind: Scores<'_>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (_, heads, time, dim) = q.dims4()?;
    let (_, kv_heads, _, _) = k.dims4()?;
    let (dout, queries, keys, key_values, output) =
        (values(dout)?, values(q)?, values(k)?, values(v)?, values(output)?);
    let (head, group) = (time * dim, heads / kv_heads);
    let (mut dq, mut dk, mut dv) = (vec![0.0; queries.len()], vec![0.0; keys.len()], vec![0.0; keys.len()]);
    // One task a key head, so that its query heads add to dk and dv in a fixed order.
    let tasks = dq.par_chunks_mut(group * head).zip(dk.par_chunks_mut(head)).zip(dv.par_chunks_mut(head)).enumerate();
    tasks.for_each_init(
        || (vec![0.0; BLOCK_ROWS * time], vec![0.0; BLOCK_ROWS * time]),
        |(weights, dweights), (kv, ((dq, dk), dv))| {
            let (k, v) = (&keys[kv * head..][..head], &key_values[kv * head..][..head]);
            for member in 0..group {
                let index = kv * group + member;
                let (q, dout, output) =
                    (&queries[index * head..][..head], &dout[index * head..][..head], &output[index * head..][..head]);
                let log_sums = &log_sums[index * time..][..time];
                let dq = &mut dq[member * head..][..head];
                for (block, start) in kind.blocks(kv / kv_heads) {
                    let begin = block.start;
                    let (rows, first) = (block.len(), kind.first(begin, start));
                    let columns = block.end - first;
                    let block = |x, from: usize, rows| {
                        Matrix::new(&<[f32]>::split_at(x, from * dim).1[..rows * dim], rows, dim)
                    };
                    let (q_block, dout_block) = (block(q, begin, rows), block(dout, begin, rows));
                    let (k_block, v_block) = (block(k, first, columns), block(v, first, columns));
                    product_alone(q_block, k_block.t(), weights, false, kind.precision);
                    product_alone(dout_block, v_block.t(), dweights, false, kind.precision);
                    for row in 0..rows {
                        let query = begin + row;
                        let seen = kind.first(query, start) - first..query + 1 - first;
                        let (weights, dweights) =
                            (&mut weights[row * columns..][..columns], &mut dweights[row * columns..][..columns]);
                        let range = query * dim..(query + 1) * dim;
                        for (outside, doutside) in [(0, seen.start), (seen.end, columns)] {
                            weights[outside..doutside].fill(0.0);
                            dweights[outside..doutside].fill(0.0);
                        }
                        let (weights, dweights) = (&mut weights[seen.clone()], &mut dweights[seen]);
                        let place = (index, time, query, kind.first(query, start));
                        kind.drop(dweights, place);
                        simd::run(
                            #[inline(always)]
                            || {
                                let mean = dot(&dout[range.clone()], &output[range]);
                                to_gradients(&kind, weights, dweights, (index, log_sums[query], mean));
                            },
                        );
                        kind.drop(weights, place);
                    }
                    let (weights, dscores) =
                        (Matrix::new(weights, rows, columns), Matrix::new(dweights, rows, columns));
                    product_alone(weights.t(), dout_block, &mut dv[first * dim..], true, kind.precision);
                    product_alone(dscores, k_block, &mut dq[begin * dim..], false, kind.precision);
                    product_alone(dscores.t(), q_block, &mut dk[first * dim..], true, kind.precision);
                }
            }
        },
    );
    Ok((tensor(dq, q.shape())?, tensor(dk, k.shape())?, tensor(dv, v.shape())?))
}

/// Turns the products of a query with its keys into the weights of those keys, and the gradients of the weights into
/// those of the products: ds = p·(dp − Σ p·dp), where the sum over keys is `mean`.
#[inline(always)]
fn to_gradients(
    kind: &Scores<'_>,
    weights: &mut [f32],
    dweights: &mut [f32],
    (head, log_sum, mean): (usize, f32, f32),
) {
    if let Some(cap) = kind.softcap {
        // The slope of the cap, before the products that it is a function of are gone.
        let rows = weights.iter().zip(dweights.iter_mut());
        let slope = |product: f32| {
            let capped = simd::tanh(product * kind.scale / cap);
            1.0 - capped * capped
        };
        rows.for_each(|(product, dweight)| *dweight = (*dweight - mean) * slope(*product));
        let scale = kind.of(weights, head);
        for (weight, dweight) in weights.iter_mut().zip(dweights) {
            *weight = exp(*weight * scale - log_sum);
            *dweight *= *weight * kind.scale;
        }
        return;
    }
    let scale = kind.of(weights, head);
    for (weight, dweight) in weights.iter_mut().zip(dweights) {
        *weight = exp(*weight * scale - log_sum);
        *dweight = *weight * (*dweight - mean) * kind.scale;
    }
}
