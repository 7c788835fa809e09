//! Noise on embeddings: NEFTune.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use tokenmill_shared::random::{Purpose, Stream};

use crate::ops::cpu::write;

/// Noise that is added to the embeddings while training: NEFTune (Jain et al. 2023), as transformers'
/// `integrations/neftune.py` has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingNoise {
    /// The noise is uniform within ±alpha / √(tokens of a sequence · hidden size).
    pub alpha: f32,
    /// Of the run.
    pub seed: u64,
    /// Which micro-batch of which step is being trained on: the noise is a function of it.
    pub pass: u64,
}

impl EmbeddingNoise {
    /// It is uniform within plus and minus this, on sequences of `seq_len` rows of `width` features.
    pub(crate) fn bound(self, seq_len: usize, width: usize) -> f64 {
        f64::from(self.alpha) / ((seq_len * width) as f64).sqrt()
    }

    /// Where it comes from, value by value.
    pub(crate) fn stream(self) -> Stream {
        Stream::new(self.seed ^ self.pass.rotate_left(32), Purpose::EmbeddingNoise, 0)
    }

    /// Adds it to embeddings (rows, features) of sequences of `seq_len` rows.
    pub(super) fn add_to(self, x: &Tensor, seq_len: usize) -> Result<()> {
        let (_, width) = x.dims2()?;
        let (bound, stream) = (self.bound(seq_len, width), self.stream());
        write(x, |values| {
            values.par_iter_mut().with_min_len(1 << 12).enumerate().for_each(|(at, value)| {
                *value += ((2.0 * stream.uniform(at as u64) - 1.0) * bound) as f32;
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::{tensor, values};

    #[test]
    fn noise_is_uniform_within_its_bound_and_a_function_of_seed_and_pass() {
        let noise = EmbeddingNoise { alpha: 5.0, seed: 1, pass: 3 };
        let made = |noise: EmbeddingNoise| -> Vec<f32> {
            let x = tensor(vec![1.0; 64 * 32], (64, 32)).unwrap();
            noise.add_to(&x, 16).unwrap();
            values(&x).unwrap().iter().map(|value| value - 1.0).collect()
        };
        let found = made(noise);
        let bound = 5.0 / (16f32 * 32.0).sqrt();
        let mean = found.iter().sum::<f32>() / found.len() as f32;
        let variance = found.iter().map(|value| value * value).sum::<f32>() / found.len() as f32;
        assert!(found.iter().all(|value| value.abs() <= bound));
        assert!(mean.abs() < 0.05 * bound && (variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "{mean} {variance}");
        assert_eq!(found, made(noise));
        assert_ne!(found, made(EmbeddingNoise { pass: 4, ..noise }));
        assert_ne!(found, made(EmbeddingNoise { seed: 2, ..noise }));
    }
}
