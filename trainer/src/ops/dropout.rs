//! Inverted dropout: 0 for what is dropped, 1/(1 − rate) times the rest, while training.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use tokenmill_shared::random::Stream;

use super::cpu::{PIECE, write};

/// Dropout whose mask is a function of a stream and the position: made again, in a backward or a resumed run, it is the
/// same.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// The share that is dropped.
    pub rate: f32,
    /// Where the mask comes from.
    pub stream: Stream,
}

impl Dropout {
    /// Multiplies a tensor by the mask, in place; also the backward, on the gradient.
    pub fn apply(&self, x: &Tensor) -> Result<()> {
        write(x, |x| self.apply_to(x))
    }

    /// Multiplies all values of a tensor by the mask.
    pub fn apply_to(&self, x: &mut [f32]) {
        x.par_chunks_mut(PIECE).enumerate().for_each(|(piece, x)| self.apply_from(x, piece * PIECE));
    }

    /// Multiplies the values from position `start` on by their part of the mask, on the calling thread.
    pub fn apply_from(&self, x: &mut [f32], start: usize) {
        let kept = 1.0 / (1.0 - self.rate);
        for (at, x) in x.iter_mut().enumerate() {
            let drop = self.stream.uniform((start + at) as u64) < f64::from(self.rate);
            *x = if drop { 0.0 } else { *x * kept };
        }
    }
}
