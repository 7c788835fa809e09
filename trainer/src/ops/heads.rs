//! Between `(batch × time, features)`, as projections have it, and `(batch, heads, time, head_dim)`, in which attention
//! works head by head on contiguous memory.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values, write};

/// Which features of a row belong to which head: those of head h begin at `offset + h · stride`.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// Heads.
    pub heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Where the first head begins.
    pub offset: usize,
    /// From the beginning of one head to that of the next.
    pub stride: usize,
}

impl Columns {
    /// Heads that fill the row.
    pub fn whole(heads: usize, head_dim: usize) -> Self {
        Self { heads, head_dim, offset: 0, stride: head_dim }
    }

    fn start(&self, head: usize) -> usize {
        self.offset + head * self.stride
    }
}

/// `x`: (batch × time, features). Returns (batch, heads, time, head_dim).
pub fn split(x: &Tensor, batch: usize, columns: Columns) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (time, head_dim) = (rows / batch, columns.head_dim);
    let input = values(x)?;
    let mut y = vec![0.0; rows * columns.heads * head_dim];
    y.par_chunks_mut(time * head_dim).enumerate().for_each(|(head, y)| {
        let (batch, head) = (head / columns.heads, head % columns.heads);
        for (step, y) in y.chunks_exact_mut(head_dim).enumerate() {
            y.copy_from_slice(&input[(batch * time + step) * width + columns.start(head)..][..head_dim]);
        }
    });
    tensor(y, (batch, columns.heads, time, head_dim))
}

/// The inverse of [`split`] where heads fill the row, and its backward. Returns (batch × time, heads × head_dim).
pub fn merge(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, time, head_dim) = x.dims4()?;
    let mut y = vec![0.0; x.elem_count()];
    copy_into(&values(x)?, time, &mut y, heads * head_dim, Columns::whole(heads, head_dim));
    tensor(y, (batch * time, heads * head_dim))
}

/// Writes `x`, (batch, heads, time, head_dim), into its features of `y`, (batch × time, features), in place: the backward
/// of [`split`].
pub fn merge_into(x: &Tensor, y: &Tensor, columns: Columns) -> Result<()> {
    let ((_, _, time, _), (_, width)) = (x.dims4()?, y.dims2()?);
    let input = values(x)?;
    write(y, |y| copy_into(&input, time, y, width, columns))
}

fn copy_into(x: &[f32], time: usize, y: &mut [f32], width: usize, columns: Columns) {
    let Columns { heads, head_dim, .. } = columns;
    y.par_chunks_mut(width).with_min_len(16).enumerate().for_each(|(row, y)| {
        let (batch, step) = (row / time, row % time);
        for head in 0..heads {
            y[columns.start(head)..][..head_dim]
                .copy_from_slice(&x[((batch * heads + head) * time + step) * head_dim..][..head_dim]);
        }
    });
}
