//! Mixed precision: the operands of matrix products in fewer bits, everything else in float32.

use std::borrow::Cow;

use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cpu::PIECE;

/// What the operands of projections are rounded to before they are multiplied; sums are made in float32. Norms,
/// softmax, rotary embedding, residual stream, loss, gradients and optimizer stay in float32 throughout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bfloat16, as autocast does.
    Bf16,
    /// To float16, as autocast does; beyond 65,504 it is infinite.
    F16,
}

impl Precision {
    /// An operand of a product.
    pub fn operand<'a>(self, values: &'a [f32]) -> Cow<'a, [f32]> {
        match self {
            Self::F32 => Cow::Borrowed(values),
            Self::Bf16 => Cow::Owned(rounded(values, |value| bf16::from_f32(value).to_f32())),
            Self::F16 => Cow::Owned(rounded(values, |value| f16::from_f32(value).to_f32())),
        }
    }

    /// The result of a product, in place.
    pub fn result(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::Bf16 => round(values, |value| bf16::from_f32(value).to_f32()),
            Self::F16 => round(values, |value| f16::from_f32(value).to_f32()),
        }
    }
}

fn rounded(values: &[f32], nearest: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut rounded = vec![0.0; values.len()];
    let pieces = rounded.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
    pieces.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to = nearest(*from)));
    rounded
}

fn round(values: &mut [f32], nearest: impl Fn(f32) -> f32 + Sync) {
    values.par_chunks_mut(PIECE).for_each(|piece| piece.iter_mut().for_each(|value| *value = nearest(*value)));
}
