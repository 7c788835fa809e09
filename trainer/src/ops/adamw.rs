//! AdamW, one pass over parameter, gradient and both moments.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{PIECE, write};
use super::simd;

/// Whose formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formula {
    /// `torch.optim.AdamW`: decay first; ε beside the root of the bias-corrected second moment.
    Torch,
    /// `transformers.AdamW` until 4.46: ε beside the uncorrected root; decay last.
    HuggingFace,
}

/// The figures of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Whose formula.
    pub formula: Formula,
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Updates including this one.
    pub step: u64,
    /// What the gradient is multiplied by first (clipping).
    pub gradient_scale: f64,
}

/// m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; then with c₁ = 1−β₁ᵗ, c₂ = √(1−β₂ᵗ), of torch
/// p ← p(1 − lr·wd) − lr/c₁ · m/(√v/c₂ + ε), and of Hugging Face p ← (p − lr·c₂/c₁ · m/(√v + ε))(1 − lr·wd).
/// `parameter`, `first`, `second`: one shape, changed in place; `gradient`: as many values.
pub fn update(parameter: &Tensor, gradient: &[f32], first: &Tensor, second: &Tensor, update: Update) -> Result<()> {
    let step = update.step as i32;
    let (correction1, correction2) = (1.0 - update.beta1.powi(step), (1.0 - update.beta2.powi(step)).sqrt());
    let keep = (1.0 - update.learning_rate * update.weight_decay) as f32;
    // Both formulas as (p·before − size · m/(√v·factor + ε)) · after.
    let (before, size, factor, after) = match update.formula {
        Formula::Torch => (keep, update.learning_rate / correction1, 1.0 / correction2, 1.0),
        Formula::HuggingFace => (1.0, update.learning_rate * correction2 / correction1, 1.0, keep),
    };
    let (size, factor) = (size as f32, factor as f32);
    let (beta1, beta2, epsilon, scale) =
        (update.beta1 as f32, update.beta2 as f32, update.epsilon as f32, update.gradient_scale as f32);
    let mut result = Ok(());
    write(first, |first| {
        result = write(second, |second| {
            let inner = write(parameter, |parameter| {
                let pieces = parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
                pieces.zip(first.par_chunks_mut(PIECE)).zip(second.par_chunks_mut(PIECE)).for_each(
                    |(((p, g), m), v)| {
                        simd::run(
                            #[inline(always)]
                            || {
                                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                                    let g = g * scale;
                                    *m = beta1 * *m + (1.0 - beta1) * g;
                                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                                    *p = (*p * before - size * *m / (v.sqrt() * factor + epsilon)) * after;
                                }
                            },
                        );
                    },
                );
            });
            debug_assert!(inner.is_ok(), "parameters are f32 tensors in CPU memory");
        });
    })?;
    result
}
