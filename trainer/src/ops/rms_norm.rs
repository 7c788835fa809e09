//! RMSNorm: `y = x / √(mean(x²) + ε) · (w + offset)`, normalised in f32 before the weight (llama's order). The offset is
//! 0, or 1 in gemma, whose weights begin as zeros.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values, write};
use super::simd::{self, LANES, dot};
use crate::gradients::Slot;

/// Rows whose weight gradients are summed together; pieces are added in index order.
const PIECE_ROWS: usize = 64;

/// `x`: (…, features); `weight`: (features). Returns y of x's shape and 1/√(mean(x²) + ε) of each row.
pub fn forward(x: &Tensor, weight: &Tensor, offset: f32, epsilon: f64) -> Result<(Tensor, Vec<f32>)> {
    let width = weight.elem_count();
    let (input, weight) = (values(x)?, shifted(weight, offset)?);
    let rows = input.len() / width;
    let mut y = vec![0.0; input.len()];
    let mut scales = vec![0.0; rows];
    let pieces = y.par_chunks_mut(PIECE_ROWS * width).zip(input.par_chunks(PIECE_ROWS * width));
    pieces.zip(scales.par_chunks_mut(PIECE_ROWS)).for_each(|((y, x), scales)| {
        simd::run(
            #[inline(always)]
            || {
                for ((y, x), scale) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(scales) {
                    *scale = 1.0 / (dot(x, x) / width as f32 + epsilon as f32).sqrt();
                    for ((y, x), w) in y.iter_mut().zip(x).zip(&weight) {
                        *y = x * *scale * w;
                    }
                }
            },
        );
    });
    Ok((tensor(y, x.shape())?, scales))
}

/// w + offset.
fn shifted(weight: &Tensor, offset: f32) -> Result<Vec<f32>> {
    Ok(values(weight)?.iter().map(|weight| weight + offset).collect())
}

/// Given dy, the input x and the scales of the forward: adds the gradient of x to `dx` in place (or sets
/// it, unless `add`) and that of the weight to its slot.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    (weight, offset): (&Tensor, f32),
    scales: &[f32],
    dx: &Tensor,
    add: bool,
    slot: Slot<'_>,
) -> Result<()> {
    let width = weight.elem_count();
    let (dy, x, weight) = (values(dy)?, values(x)?, shifted(weight, offset)?);
    let mut pieces = vec![0.0; scales.len().div_ceil(PIECE_ROWS) * width];
    write(dx, |dx| {
        let inputs = dx
            .par_chunks_mut(PIECE_ROWS * width)
            .zip(dy.par_chunks(PIECE_ROWS * width))
            .zip(x.par_chunks(PIECE_ROWS * width));
        inputs.zip(scales.par_chunks(PIECE_ROWS)).zip(pieces.par_chunks_mut(width)).for_each(
            |((((dx, dy), x), scales), dw)| {
                simd::run(
                    #[inline(always)]
                    || {
                        let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
                        for (((dx, dy), x), scale) in rows.zip(scales) {
                            row_backward(dy, x, &weight, *scale, dx, add, dw);
                        }
                    },
                );
            },
        );
    })?;
    slot.write(|dw, add| {
        if !add {
            dw.fill(0.0);
        }
        for piece in pieces.chunks_exact(width) {
            dw.iter_mut().zip(piece).for_each(|(w, piece)| *w += piece);
        }
    })
}

/// dx = s·(dy·w − x·s²·mean(dy·w·x)); dw += dy·x·s.
#[inline(always)]
fn row_backward(dy: &[f32], x: &[f32], weight: &[f32], scale: f32, dx: &mut [f32], add: bool, dw: &mut [f32]) {
    let width = weight.len();
    let mut lanes = [0f32; LANES];
    let whole = width / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let (dy, weight, x) = (&dy[start..start + LANES], &weight[start..start + LANES], &x[start..start + LANES]);
        for lane in 0..LANES {
            lanes[lane] += dy[lane] * weight[lane] * x[lane];
        }
    }
    let rest: f32 = (whole..width).map(|at| dy[at] * weight[at] * x[at]).sum();
    let mean = (lanes.iter().sum::<f32>() + rest) * scale * scale / width as f32;
    let values = dx.iter_mut().zip(dw).zip(dy).zip(x).zip(weight);
    for ((((dx, dw), dy), x), weight) in values {
        let gradient = scale * (dy * weight - x * mean);
        *dx = if add { *dx + gradient } else { gradient };
        *dw += dy * x * scale;
    }
}
