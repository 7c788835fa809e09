//! Seeded initial weights: a function of (seed, parameter index, value index), on any machine the same.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use tokenmill_shared::random::{Purpose, Stream};

use super::config::{Config, SpecKind};
use crate::ops::cpu::tensor;

/// The tensors of all parameters, in order.
pub(super) fn tensors(config: &Config, seed: u64) -> Result<Vec<Tensor>> {
    let specs = config.parameters();
    let fresh = specs.iter().enumerate().map(|(index, spec)| {
        let len: usize = spec.shape.iter().product();
        let values = match spec.kind {
            SpecKind::Norm => vec![1.0; len],
            SpecKind::Bias => vec![0.0; len],
            SpecKind::Weight => {
                let stream = Stream::new(seed, Purpose::Initialise, index as u64);
                let normal = |at: usize| (stream.normal(at as u64) * config.initializer_range) as f32;
                (0..len).into_par_iter().map(normal).collect()
            }
        };
        tensor(values, spec.shape.as_slice())
    });
    fresh.collect()
}
