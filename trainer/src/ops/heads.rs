//! Between `(batch × time, heads × head_dim)`, as projections have it, and `(batch, heads, time, head_dim)`,
//! in which attention works head by head on contiguous memory.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values};

/// `x`: (batch × time, heads × head_dim). Returns (batch, heads, time, head_dim).
pub fn split(x: &Tensor, batch: usize, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (time, head_dim) = (rows / batch, width / heads);
    let input = values(x)?;
    let mut y = vec![0.0; input.len()];
    y.par_chunks_mut(time * head_dim).enumerate().for_each(|(head, y)| {
        let (batch, head) = (head / heads, head % heads);
        for (step, y) in y.chunks_exact_mut(head_dim).enumerate() {
            y.copy_from_slice(&input[(batch * time + step) * width + head * head_dim..][..head_dim]);
        }
    });
    tensor(y, (batch, heads, time, head_dim))
}

/// The inverse of [`split`], and its backward.
pub fn merge(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, time, head_dim) = x.dims4()?;
    let input = values(x)?;
    let mut y = vec![0.0; input.len()];
    y.par_chunks_mut(heads * head_dim).with_min_len(16).enumerate().for_each(|(row, y)| {
        let (batch, step) = (row / time, row % time);
        for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
            y.copy_from_slice(&input[((batch * heads + head) * time + step) * head_dim..][..head_dim]);
        }
    });
    tensor(y, (batch * time, heads * head_dim))
}
