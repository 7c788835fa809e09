//! Seeded initial weights: a function of (seed, parameter index, value index), on any machine the same.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use tokenmill_shared::random::{Purpose, Stream};

use super::layout::{Spec, Start};
use crate::ops::cpu::tensor;

/// The tensors of all parameters, in order.
pub(super) fn tensors(specs: &[Spec], seed: u64) -> Result<Vec<Tensor>> {
    let fresh = specs.iter().enumerate().map(|(index, spec)| {
        let len: usize = spec.shape.iter().product();
        let stream = Stream::new(seed, Purpose::Initialise, index as u64);
        let random = |value: &(dyn Fn(u64) -> f64 + Sync)| -> Vec<f32> {
            (0..len).into_par_iter().map(|at| value(at as u64) as f32).collect()
        };
        let values = match spec.start {
            Start::Constant(value) => vec![value; len],
            Start::Normal(spread) => random(&|at| stream.normal(at) * spread),
            Start::Uniform(bound) => random(&|at| (2.0 * stream.uniform(at) - 1.0) * bound),
        };
        tensor(values, spec.shape.as_slice())
    });
    fresh.collect()
}
