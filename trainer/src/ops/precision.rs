//! Mixed precision: the operands of matrix products in fewer bits, everything else in float32.

use std::borrow::Cow;

use half::bf16;
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
}

impl Precision {
    /// An operand of a product.
    pub fn operand<'a>(self, values: &'a [f32]) -> Cow<'a, [f32]> {
        match self {
            Self::F32 => Cow::Borrowed(values),
            Self::Bf16 => {
                let mut rounded = vec![0.0; values.len()];
                let pieces = rounded.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
                pieces.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to = round(*from)));
                Cow::Owned(rounded)
            }
        }
    }

    /// The result of a product, in place.
    pub fn result(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            values.par_chunks_mut(PIECE).for_each(|piece| piece.iter_mut().for_each(|value| *value = round(*value)));
        }
    }
}

/// The nearest bfloat16, ties to even.
fn round(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}
