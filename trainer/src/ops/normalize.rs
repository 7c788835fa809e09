//! Rows scaled to length 1: `y = x / max(|x|, ε)`, for Baichuan2's output projection.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values};
use super::simd::dot;
use crate::gradients::Slot;

/// As `torch.nn.functional.normalize` has it: a row of zeros stays one.
const EPSILON: f32 = 1e-12;

fn length(row: &[f32]) -> f32 {
    dot(row, row).sqrt().max(EPSILON)
}

/// `x`: (rows, features). Returns the same shape.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let mut y = values(x)?.to_vec();
    y.par_chunks_mut(width).with_min_len(16).for_each(|row| {
        let length = length(row);
        row.iter_mut().for_each(|y| *y /= length);
    });
    tensor(y, x.shape())
}

/// Adds the gradient of x, `(dy − y (y · dy)) / |x|`, to its slot. `dy`: row-major, of x's shape.
pub fn backward(dy: &[f32], x: &Tensor, slot: Slot<'_>) -> Result<()> {
    let (_, width) = x.dims2()?;
    let x = values(x)?;
    slot.write(|dx, add| {
        let rows = dx.par_chunks_mut(width).zip(dy.par_chunks(width)).zip(x.par_chunks(width));
        rows.with_min_len(16).for_each(|((dx, dy), x)| {
            let inverse = 1.0 / length(x);
            let along = dot(x, dy) * inverse * inverse;
            for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                let gradient = (dy - x * along) * inverse;
                *dx = if add { *dx + gradient } else { gradient };
            }
        });
    })
}
