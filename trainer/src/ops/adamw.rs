//! AdamW, one pass over parameter, gradient and both moments.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::blockwise::{BLOCK, Map};
use super::cpu::{PIECE, write, write_bytes};
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

/// What every value of one update is computed with; the layout is that of `AdamW` in cuda/kernels/optimizer.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constants {
    before: f32,
    after: f32,
    size: f32,
    factor: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    scale: f32,
}

impl Constants {
    pub(crate) fn new(update: Update) -> Self {
        let step = update.step as i32;
        let (correction1, correction2) = (1.0 - update.beta1.powi(step), (1.0 - update.beta2.powi(step)).sqrt());
        let keep = (1.0 - update.learning_rate * update.weight_decay) as f32;
        // Both formulas as (p·before − size · m/(√v·factor + ε)) · after.
        let (before, size, factor, after) = match update.formula {
            Formula::Torch => (keep, update.learning_rate / correction1, 1.0 / correction2, 1.0),
            Formula::HuggingFace => (1.0, update.learning_rate * correction2 / correction1, 1.0, keep),
        };
        Self {
            before,
            after,
            size: size as f32,
            factor: factor as f32,
            beta1: update.beta1 as f32,
            beta2: update.beta2 as f32,
            epsilon: update.epsilon as f32,
            scale: update.gradient_scale as f32,
        }
    }

    fn run(self, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let Self { before, after, size, factor, beta1, beta2, epsilon, scale } = self;
        simd::run(
            #[inline(always)]
            || {
                for (((p, g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
                    let g = g * scale;
                    *m = beta1 * *m + (1.0 - beta1) * g;
                    *v = beta2 * *v + (1.0 - beta2) * g * g;
                    *p = (*p * before - size * *m / (v.sqrt() * factor + epsilon)) * after;
                }
            },
        );
    }
}

/// m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; then with c₁ = 1−β₁ᵗ, c₂ = √(1−β₂ᵗ), of torch
/// p ← p(1 − lr·wd) − lr/c₁ · m/(√v/c₂ + ε), and of Hugging Face p ← (p − lr·c₂/c₁ · m/(√v + ε))(1 − lr·wd).
/// `parameter`, `first`, `second`: one shape, changed in place; `gradient`: as many values.
pub fn update(parameter: &Tensor, gradient: &[f32], first: &Tensor, second: &Tensor, update: Update) -> Result<()> {
    let constants = Constants::new(update);
    let mut result = Ok(());
    write(first, |first| {
        result = write(second, |second| {
            let inner = write(parameter, |parameter| {
                let pieces = parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
                pieces.zip(first.par_chunks_mut(PIECE)).zip(second.par_chunks_mut(PIECE)).for_each(
                    |(((p, g), m), v)| {
                        if update.step == 1 {
                            // They are zeros as the system gives them: pages that hold nothing until they are written to. A
                            // page that is read first costs two faults in place of one, the second with an interrupt on
                            // every processor.
                            m.fill(0.0);
                            v.fill(0.0);
                        }
                        constants.run(p, g, m, v);
                    },
                );
            });
            debug_assert!(inner.is_ok(), "parameters are f32 tensors in CPU memory");
        });
    })?;
    result
}

/// The same with both moments in 8 bits ([`blockwise`](super::blockwise)), decoded, updated and encoded block by
/// block, as bitsandbytes does. `moments`: indices of the first, its scales, indices of the second, its scales.
pub fn update_8bit(parameter: &Tensor, gradient: &[f32], moments: [&Tensor; 4], update: Update) -> Result<()> {
    let constants = Constants::new(update);
    let [first, first_scales, second, second_scales] = moments;
    let one = |p: &mut [f32], g: &[f32], (m, m_scale): (&mut [u8], &mut f32), (v, v_scale): (&mut [u8], &mut f32)| {
        let (mut first, mut second) = ([0f32; BLOCK], [0f32; BLOCK]);
        let (first, second) = (&mut first[..p.len()], &mut second[..p.len()]);
        Map::signed().decode(m, *m_scale, first);
        Map::unsigned().decode(v, *v_scale, second);
        constants.run(p, g, first, second);
        *m_scale = Map::signed().encode(first, m);
        *v_scale = Map::unsigned().encode(second, v);
    };
    let mut results = [Ok(()), Ok(()), Ok(()), Ok(())];
    let [a, b, c, d] = &mut results;
    *a = write_bytes(first, |first| {
        *b = write_bytes(second, |second| {
            *c = write(first_scales, |first_scales| {
                *d = write(second_scales, |second_scales| {
                    let inner = write(parameter, |parameter| {
                        let blocks = parameter.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK));
                        let first = first.par_chunks_mut(BLOCK).zip(first_scales);
                        let second = second.par_chunks_mut(BLOCK).zip(second_scales);
                        let all = blocks.zip(first).zip(second).with_min_len(PIECE / BLOCK);
                        all.for_each(|(((p, g), m), v)| one(p, g, m, v));
                    });
                    debug_assert!(inner.is_ok(), "parameters are f32 tensors in CPU memory");
                });
            });
        });
    });
    results.into_iter().collect()
}
