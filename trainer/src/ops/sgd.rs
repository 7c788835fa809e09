//! Gradient descent, as `torch.optim.SGD`, with or without momentum.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{PIECE, write};

/// How earlier gradients go on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Momentum {
    /// Share of what was gathered that stays; 0 gathers nothing.
    pub momentum: f64,
    /// Share of a gradient that is not gathered.
    pub dampening: f64,
    /// Step by the gradient and what is gathered, instead of the latter alone.
    pub nesterov: bool,
}

/// The figures of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight decay, here a part of the gradient.
    pub weight_decay: f64,
    /// How earlier gradients go on.
    pub momentum: Momentum,
    /// Whether nothing was gathered before.
    pub is_first: bool,
    /// What the gradient is multiplied by first (clipping).
    pub gradient_scale: f64,
}

/// With g = scale·gradient + wd·p: p ← p − lr·g. With momentum μ and dampening δ: b ← g the first time, then
/// b ← μb + (1−δ)g; p ← p − lr·b, or with Nesterov p ← p − lr·(g + μb). `gradient`: as many values as `parameter`;
/// `gathered`: b, of its shape, changed in place.
pub fn update(parameter: &Tensor, gradient: &[f32], gathered: Option<&Tensor>, update: Update) -> Result<()> {
    let (rate, decay, scale) = (update.learning_rate as f32, update.weight_decay as f32, update.gradient_scale as f32);
    let Some(gathered) = gathered else {
        return write(parameter, |parameter| {
            parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE)).for_each(|(p, g)| {
                p.iter_mut().zip(g).for_each(|(p, g)| *p -= rate * (g * scale + decay * *p));
            });
        });
    };
    let Momentum { momentum, dampening, nesterov } = update.momentum;
    let (keep, add) = if update.is_first { (0.0, 1.0) } else { (momentum as f32, 1.0 - dampening as f32) };
    // What the step is made of: the gradient and what is gathered, by these shares.
    let (of_gradient, of_gathered) = if nesterov { (1.0, momentum as f32) } else { (0.0, 1.0) };
    let mut result = Ok(());
    write(gathered, |gathered| {
        result = write(parameter, |parameter| {
            let pieces = parameter.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
            pieces.zip(gathered.par_chunks_mut(PIECE)).for_each(|((p, g), b)| {
                for ((p, g), b) in p.iter_mut().zip(g).zip(b) {
                    let g = g * scale + decay * *p;
                    *b = keep * *b + add * g;
                    *p -= rate * (of_gradient * g + of_gathered * *b);
                }
            });
        });
    })?;
    result
}
