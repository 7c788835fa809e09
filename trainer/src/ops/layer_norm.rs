//! LayerNorm: `y = (x − mean) / √(variance + ε) · w + b` over the features of a row (Ba et al. 2016).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values, write};
use super::simd::{self, LANES, sum};
use crate::gradients::Gradients;

/// Rows whose weight gradients are summed together; pieces are added in index order.
const PIECE_ROWS: usize = 64;

/// What the backward needs of each row: its mean and 1/√(variance + ε).
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    means: Vec<f32>,
    scales: Vec<f32>,
}

/// `x`: (…, features); `weight`, `bias`: (features). Returns y of x's shape.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<(Tensor, Statistics)> {
    let width = weight.elem_count();
    let (input, weight, bias) = (values(x)?, values(weight)?, values(bias)?);
    let rows = input.len() / width;
    let mut y = vec![0.0; input.len()];
    let (mut means, mut scales) = (vec![0.0; rows], vec![0.0; rows]);
    let pieces = y.par_chunks_mut(PIECE_ROWS * width).zip(input.par_chunks(PIECE_ROWS * width));
    let statistics = means.par_chunks_mut(PIECE_ROWS).zip(scales.par_chunks_mut(PIECE_ROWS));
    pieces.zip(statistics).for_each(|((y, x), (means, scales))| {
        simd::run(
            #[inline(always)]
            || {
                let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for ((y, x), (mean, scale)) in rows.zip(means.iter_mut().zip(scales)) {
                    *mean = sum(x) / width as f32;
                    // Deviations first: the difference of mean(x²) and mean² would cancel.
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = x - *mean);
                    *scale = 1.0 / (simd::dot(y, y) / width as f32 + epsilon as f32).sqrt();
                    for ((y, w), b) in y.iter_mut().zip(&*weight).zip(&*bias) {
                        *y = *y * *scale * w + b;
                    }
                }
            },
        );
    });
    Ok((tensor(y, x.shape())?, Statistics { means, scales }))
}

/// Given dy, the input x and the statistics of the forward: adds the gradient of x to `dx` in place (or sets it, unless
/// `add`) and those of weight and bias to their slots. `weight` comes with its index among the parameters, `bias` is one.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    (weight, weight_index): (&Tensor, usize),
    bias_index: usize,
    statistics: &Statistics,
    (dx, add): (&Tensor, bool),
    gradients: &mut Gradients,
) -> Result<()> {
    let width = weight.elem_count();
    let (dy, x, weight) = (values(dy)?, values(x)?, values(weight)?);
    // Of each piece of rows the gradient of the weight, then that of the bias.
    let mut pieces = vec![0.0; statistics.scales.len().div_ceil(PIECE_ROWS) * 2 * width];
    write(dx, |dx| {
        let inputs = dx
            .par_chunks_mut(PIECE_ROWS * width)
            .zip(dy.par_chunks(PIECE_ROWS * width))
            .zip(x.par_chunks(PIECE_ROWS * width));
        let rows = statistics.means.par_chunks(PIECE_ROWS).zip(statistics.scales.par_chunks(PIECE_ROWS));
        inputs.zip(rows).zip(pieces.par_chunks_mut(2 * width)).for_each(|((((dx, dy), x), (means, scales)), piece)| {
            let (dw, db) = piece.split_at_mut(width);
            simd::run(
                #[inline(always)]
                || {
                    let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
                    for (((dx, dy), x), (mean, scale)) in rows.zip(means.iter().zip(scales)) {
                        row_backward(dy, x, &weight, (*mean, *scale), (dx, add), (dw, db));
                    }
                },
            );
        });
    })?;
    let collect = |from: usize| {
        let pieces = &pieces;
        move |gradient: &mut [f32], add: bool| {
            if !add {
                gradient.fill(0.0);
            }
            for piece in pieces.chunks_exact(2 * width) {
                gradient.iter_mut().zip(&piece[from..from + width]).for_each(|(sum, piece)| *sum += piece);
            }
        }
    };
    gradients.slot(weight_index).write(collect(0))?;
    gradients.slot(bias_index).write(collect(width))
}

/// With n = (x − mean)·s and g = dy·w: dx = s·(g − mean(g) − n·mean(g·n)); dw += dy·n; db += dy.
#[inline(always)]
fn row_backward(
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    (mean, scale): (f32, f32),
    (dx, add): (&mut [f32], bool),
    (dw, db): (&mut [f32], &mut [f32]),
) {
    let width = weight.len();
    let (mut of_g, mut of_gn) = ([0f32; LANES], [0f32; LANES]);
    let whole = width / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let (dy, weight, x) = (&dy[start..start + LANES], &weight[start..start + LANES], &x[start..start + LANES]);
        for lane in 0..LANES {
            let g = dy[lane] * weight[lane];
            of_g[lane] += g;
            of_gn[lane] += g * (x[lane] - mean) * scale;
        }
    }
    let (mut sum_g, mut sum_gn) = (of_g.iter().sum::<f32>(), of_gn.iter().sum::<f32>());
    for at in whole..width {
        let g = dy[at] * weight[at];
        sum_g += g;
        sum_gn += g * (x[at] - mean) * scale;
    }
    let (mean_g, mean_gn) = (sum_g / width as f32, sum_gn / width as f32);
    let values = dx.iter_mut().zip(dw).zip(db).zip(dy).zip(x).zip(weight);
    for (((((dx, dw), db), dy), x), weight) in values {
        let normed = (x - mean) * scale;
        let gradient = scale * (dy * weight - mean_g - normed * mean_gn);
        *dx = if add { *dx + gradient } else { gradient };
        *dw += dy * normed;
        *db += dy;
    }
}
