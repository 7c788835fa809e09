//! Plain gradient descent, as `torch.optim.SGD` without momentum.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{PIECE, write};

/// p ← p − lr·(scale·g + wd·p): here weight decay is part of the gradient. `gradient`: as many values as `parameter`.
pub fn update(parameter: &Tensor, gradient: &[f32], learning_rate: f64, weight_decay: f64, scale: f64) -> Result<()> {
    let (rate, decay, scale) = (learning_rate as f32, weight_decay as f32, scale as f32);
    write(parameter, |parameter| {
        parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE)).for_each(|(p, g)| {
            p.iter_mut().zip(g).for_each(|(p, g)| *p -= rate * (g * scale + decay * *p));
        });
    })
}
