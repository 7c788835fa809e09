//! Causal attention with grouped keys and values and an optional sliding window, forward and backward.
//!
//! Scores exist for `BLOCK_ROWS` queries of one head at a time, never as a time × time matrix; the
//! backward computes them again from the log of each row's sum, as in FlashAttention (Dao et al. 2022).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values};
use super::matmul::{Matrix, Threads, matmul};
use super::simd::{self, dot, exp, exp_and_sum};

/// Queries whose scores are in memory at once: 64 rows of 1,024 keys are 256 KiB, which fits the L2 cache.
const BLOCK_ROWS: usize = 64;

/// What the backward needs besides its inputs and output: the log of the sum of each row's exponentials.
pub type LogSums = Vec<f32>;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
struct Mask {
    window: Option<usize>,
}

impl Mask {
    /// The first key that query `query` sees; the last is `query` itself.
    fn first(self, query: usize) -> usize {
        self.window.map_or(0, |window| (query + 1).saturating_sub(window))
    }
}

/// `q`: (batch, heads, time, head_dim); `k`, `v`: (batch, kv_heads, time, head_dim); query i sees keys j with
/// 0 ≤ i − j (< `window`). Returns the output in q's shape and what the backward needs.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<usize>) -> Result<(Tensor, LogSums)> {
    let (_, heads, time, dim) = q.dims4()?;
    let (_, kv_heads, _, _) = k.dims4()?;
    let (queries, keys, mut_values) = (values(q)?, values(k)?, values(v)?);
    let (scale, mask, head) = (1.0 / (dim as f32).sqrt(), Mask { window }, time * dim);
    let mut output = vec![0.0; queries.len()];
    let mut log_sums = vec![0.0; queries.len() / dim];
    output.par_chunks_mut(head).zip(log_sums.par_chunks_mut(time)).enumerate().for_each_init(
        || vec![0.0; BLOCK_ROWS * time],
        |scores, (index, (output, log_sums))| {
            let kv = index / heads * kv_heads + index % heads / (heads / kv_heads);
            let (q, k, v) =
                (&queries[index * head..][..head], &keys[kv * head..][..head], &mut_values[kv * head..][..head]);
            for begin in (0..time).step_by(BLOCK_ROWS) {
                let end = time.min(begin + BLOCK_ROWS);
                let (rows, first) = (end - begin, mask.first(begin));
                let columns = end - first;
                let key_block = Matrix::new(&k[first * dim..], columns, dim);
                matmul(Matrix::new(&q[begin * dim..], rows, dim), key_block.t(), scores, false, Threads::One);
                for row in 0..rows {
                    let query = begin + row;
                    let seen = mask.first(query) - first..query + 1 - first;
                    let row = &mut scores[row * columns..][..columns];
                    row[..seen.start].fill(0.0);
                    row[seen.end..].fill(0.0);
                    log_sums[query] = simd::run(
                        #[inline(always)]
                        || softmax(&mut row[seen], scale),
                    );
                }
                let value_block = Matrix::new(&v[first * dim..], columns, dim);
                matmul(
                    Matrix::new(scores, rows, columns),
                    value_block,
                    &mut output[begin * dim..],
                    false,
                    Threads::One,
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
    window: Option<usize>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (_, heads, time, dim) = q.dims4()?;
    let (_, kv_heads, _, _) = k.dims4()?;
    let (dout, queries, keys, key_values, output) =
        (values(dout)?, values(q)?, values(k)?, values(v)?, values(output)?);
    let (scale, mask, head, group) = (1.0 / (dim as f32).sqrt(), Mask { window }, time * dim, heads / kv_heads);
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
                for begin in (0..time).step_by(BLOCK_ROWS) {
                    let end = time.min(begin + BLOCK_ROWS);
                    let (rows, first) = (end - begin, mask.first(begin));
                    let columns = end - first;
                    let block = |x, from: usize, rows| {
                        Matrix::new(&<[f32]>::split_at(x, from * dim).1[..rows * dim], rows, dim)
                    };
                    let (q_block, dout_block) = (block(q, begin, rows), block(dout, begin, rows));
                    let (k_block, v_block) = (block(k, first, columns), block(v, first, columns));
                    matmul(q_block, k_block.t(), weights, false, Threads::One);
                    matmul(dout_block, v_block.t(), dweights, false, Threads::One);
                    for row in 0..rows {
                        let query = begin + row;
                        let seen = mask.first(query) - first..query + 1 - first;
                        let (weights, dweights) =
                            (&mut weights[row * columns..][..columns], &mut dweights[row * columns..][..columns]);
                        let range = query * dim..(query + 1) * dim;
                        simd::run(
                            #[inline(always)]
                            || {
                                let mean = dot(&dout[range.clone()], &output[range]);
                                for (outside, doutside) in [(0, seen.start), (seen.end, columns)] {
                                    weights[outside..doutside].fill(0.0);
                                    dweights[outside..doutside].fill(0.0);
                                }
                                for (weight, dweight) in weights[seen.clone()].iter_mut().zip(&mut dweights[seen]) {
                                    *weight = exp(*weight * scale - log_sums[query]);
                                    *dweight = *weight * (*dweight - mean) * scale;
                                }
                            },
                        );
                    }
                    let (weights, dscores) =
                        (Matrix::new(weights, rows, columns), Matrix::new(dweights, rows, columns));
                    matmul(weights.t(), dout_block, &mut dv[first * dim..], true, Threads::One);
                    matmul(dscores, k_block, &mut dq[begin * dim..], false, Threads::One);
                    matmul(dscores.t(), q_block, &mut dk[first * dim..], true, Threads::One);
                }
            }
        },
    );
    Ok((tensor(dq, q.shape())?, tensor(dk, k.shape())?, tensor(dv, v.shape())?))
}
