//! Mixed precision: the operands of matrix products in fewer bits, everything else in float32.

use std::borrow::Cow;

use half::f16;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cpu::PIECE;
use super::simd;

/// What the operands of projections, and in bfloat16 those of attention, are rounded to before they are multiplied; sums are
/// made in float32. Norms, softmax, rotary embedding, residual stream, loss, gradients and optimizer stay in float32 throughout.
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
            Self::Bf16 => Cow::Owned(rounded(values, nearest_bf16)),
            Self::F16 => Cow::Owned(rounded(values, |value| f16::from_f32(value).to_f32())),
        }
    }

    /// The result of a product, in place.
    pub fn result(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::Bf16 => round(values, nearest_bf16),
            Self::F16 => round(values, |value| f16::from_f32(value).to_f32()),
        }
    }
}

/// The nearest bfloat16, of two the even one: what `half` makes of it, without a branch, so that compilers take 16 at once.
#[inline(always)]
fn nearest_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    if value.is_nan() { value } else { f32::from_bits(nearest) }
}

fn rounded(values: &[f32], nearest: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut rounded = vec![0.0; values.len()];
    let pieces = rounded.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
    pieces.for_each(|(to, from)| {
        simd::run(
            #[inline(always)]
            || to.iter_mut().zip(from).for_each(|(to, from)| *to = nearest(*from)),
        );
    });
    rounded
}

fn round(values: &mut [f32], nearest: impl Fn(f32) -> f32 + Sync) {
    values.par_chunks_mut(PIECE).for_each(|piece| {
        simd::run(
            #[inline(always)]
            || piece.iter_mut().for_each(|value| *value = nearest(*value)),
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn the_nearest_is_that_of_half() {
        let random = (0..1_000_000u32).map(|at| at.wrapping_mul(2_654_435_761));
        let ties = (0..1 << 16).flat_map(|high: u32| [0x7fff, 0x8000, 0x8001].map(|low| high << 16 | low));
        for value in random.chain(ties).map(f32::from_bits) {
            let (found, expected) = (nearest_bf16(value), bf16::from_f32(value).to_f32());
            assert!(found == expected || (found.is_nan() && expected.is_nan()), "{value}: {found}, {expected}");
        }
    }
}
