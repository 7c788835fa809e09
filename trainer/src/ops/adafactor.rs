//! Adafactor (Shazeer and Stern 2018) as the Trainer runs it: no first moment, no relative step, no scaling by the
//! parameter. Of a matrix only the row and column means of the squared gradient are kept.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{values, write};

/// Columns of one piece of work; rows are taken whole.
const COLUMNS: usize = 1 << 10;

/// The update is scaled down to this root mean square.
const CLIP: f64 = 1.0;

/// Added to the squared gradient.
const EPSILON: f32 = 1e-30;

/// The figures of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Updates including this one.
    pub step: u64,
    /// What the gradient is multiplied by first (clipping).
    pub gradient_scale: f64,
}

/// The shapes of what is kept for a parameter of shape `dims`: means of rows and of columns, or of every value of a
/// vector.
pub fn state_dims(dims: &[usize]) -> Vec<Vec<usize>> {
    match dims {
        [rows @ .., columns] if !rows.is_empty() => vec![rows.to_vec(), vec![*columns]],
        dims => vec![dims.to_vec()],
    }
}

/// With β = 1 − t^−0.8: kept ← β·kept + (1−β)·(g² + 1e-30); u = g/√estimate; u ← u / max(1, rms(u));
/// p ← p(1 − lr·wd) − lr·u. `state`: tensors of [`state_dims`], changed in place as `parameter` is.
pub fn update(parameter: &Tensor, gradient: &[f32], state: &[Tensor], update: Update) -> Result<()> {
    let columns = *parameter.dims().last().unwrap_or(&1);
    let beta = (1.0 - (update.step as f64).powf(-0.8)) as f32;
    let scale = update.gradient_scale as f32;
    let square = |g: f32| (g * scale) * (g * scale) + EPSILON;
    let (row_factors, column_factors) = match state {
        [row, column] => {
            write(row, |row| {
                row.par_iter_mut().zip(gradient.par_chunks(columns)).for_each(|(row, g)| {
                    let sum: f64 = g.iter().map(|g| f64::from(square(*g))).sum();
                    *row = beta * *row + (1.0 - beta) * (sum / columns as f64) as f32;
                });
            })?;
            write(column, |column| {
                let rows = gradient.len() / columns;
                column.par_chunks_mut(COLUMNS).enumerate().for_each(|(piece, column)| {
                    let mut sums = vec![0f64; column.len()];
                    for row in gradient.chunks(columns) {
                        let row = &row[piece * COLUMNS..][..column.len()];
                        sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += f64::from(square(*g)));
                    }
                    for (column, sum) in column.iter_mut().zip(sums) {
                        *column = beta * *column + (1.0 - beta) * (sum / rows as f64) as f32;
                    }
                });
            })?;
            let row = values(row)?;
            let mean = (row.iter().map(|row| f64::from(*row)).sum::<f64>() / row.len() as f64) as f32;
            let row_factors: Vec<f32> = row.iter().map(|row| (row / mean).sqrt().recip()).collect();
            (row_factors, values(column)?.iter().map(|column| column.sqrt().recip()).collect::<Vec<f32>>())
        }
        [all] => {
            write(all, |all| {
                all.iter_mut().zip(gradient).for_each(|(all, g)| *all = beta * *all + (1.0 - beta) * square(*g));
            })?;
            (vec![1.0], values(all)?.iter().map(|all| all.sqrt().recip()).collect())
        }
        _ => candle_core::bail!("adafactor keeps one tensor or two of a parameter, not {}", state.len()),
    };
    // Rows summed one by one and added in order, so that the bits do not depend on threads.
    let squares: Vec<f64> = gradient
        .par_chunks(columns)
        .zip(&row_factors)
        .map(|(g, row)| {
            g.iter().zip(&column_factors).map(|(g, column)| f64::from(g * scale * row * column).powi(2)).sum()
        })
        .collect();
    let rms = (squares.iter().sum::<f64>() / gradient.len().max(1) as f64).sqrt();
    let rate = (update.learning_rate / (rms / CLIP).max(1.0)) as f32;
    let keep = (1.0 - update.learning_rate * update.weight_decay) as f32;
    write(parameter, |parameter| {
        parameter.par_chunks_mut(columns).zip(gradient.par_chunks(columns)).zip(&row_factors).for_each(
            |((p, g), row)| {
                for ((p, g), column) in p.iter_mut().zip(g).zip(&column_factors) {
                    *p = *p * keep - rate * (g * scale * row * column);
                }
            },
        );
    })
}
