//! Lion (Chen et al. 2023): steps of one size, by the sign of a momentum.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{PIECE, write};
use super::simd;

/// The figures of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub learning_rate: f64,
    /// Share of the momentum in the step.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What the gradient is multiplied by first (clipping).
    pub gradient_scale: f64,
}

/// p ← p(1 − lr·wd) − lr · sign(β₁m + (1−β₁)g); m ← β₂m + (1−β₂)g.
/// `parameter`, `momentum`: one shape, changed in place; `gradient`: as many values.
pub fn update(parameter: &Tensor, gradient: &[f32], momentum: &Tensor, update: Update) -> Result<()> {
    let keep = (1.0 - update.learning_rate * update.weight_decay) as f32;
    let (rate, beta1, beta2, scale) =
        (update.learning_rate as f32, update.beta1 as f32, update.beta2 as f32, update.gradient_scale as f32);
    let mut result = Ok(());
    write(momentum, |momentum| {
        result = write(parameter, |parameter| {
            let pieces = parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
            pieces.zip(momentum.par_chunks_mut(PIECE)).for_each(|((p, g), m)| {
                simd::run(
                    #[inline(always)]
                    || {
                        for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
                            let g = g * scale;
                            let direction = beta1 * *m + (1.0 - beta1) * g;
                            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
                            *p = *p * keep - rate * sign;
                            *m = beta2 * *m + (1.0 - beta2) * g;
                        }
                    },
                );
            });
        });
    })?;
    result
}
