//! Rows of the embedding matrix, one for each token.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{tensor, values};
use crate::gradients::Slot;

/// `weight`: (vocab, features). Returns (ids, features), multiplied by `scale`.
pub fn forward(ids: &[u32], weight: &Tensor, scale: f32) -> Result<Tensor> {
    let (vocab, width) = weight.dims2()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        bail!("token id {id} has no embedding row; there are {vocab}");
    }
    let weight = values(weight)?;
    let mut y = vec![0.0; ids.len() * width];
    y.par_chunks_mut(width).with_min_len(64).zip(ids).for_each(|(y, id)| {
        y.iter_mut().zip(&weight[*id as usize * width..][..width]).for_each(|(y, w)| *y = w * scale);
    });
    tensor(y, (ids.len(), width))
}

/// Adds each row of `dy`, multiplied by `scale`, to the gradient row of its id, in token order: rows that occur twice sum the same
/// way whatever the threads. The row of `padding` is left out.
pub fn backward(dy: &Tensor, ids: &[u32], scale: f32, padding: Option<u32>, slot: Slot<'_>) -> Result<()> {
    let (_, width) = dy.dims2()?;
    let dy = values(dy)?;
    slot.write(|dw, add| {
        if !add {
            dw.par_chunks_mut(1 << 16).for_each(|piece| piece.fill(0.0));
        }
        for (dy, id) in dy.chunks_exact(width).zip(ids).filter(|(_, id)| Some(**id) != padding) {
            let row = &mut dw[*id as usize * width..][..width];
            row.iter_mut().zip(dy).for_each(|(w, y)| *w += y * scale);
        }
    })
}
