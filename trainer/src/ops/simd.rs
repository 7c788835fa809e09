//! Loops compiled for the processor at hand, and the few functions they share.
//!
//! The baseline of x86-64 is SSE2; [`run`] compiles a closure for AVX2 or AVX-512 too and picks at run
//! time. Sums are kept in 16 lanes added in a fixed order, so their bits do not depend on the choice.

/// Lanes of a sum.
pub const LANES: usize = 16;

/// Runs `work` with the widest instructions this processor has. Functions it calls must be `inline(always)`.
#[inline]
pub fn run<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// e^x with a relative error below 4e-7 on [-87, 88], clamped outside: range reduction to ±ln 2 / 2 with
/// Cody and Waite's two-part constant, then a polynomial of degree 6.
///
/// No number is cast. A cast of Rust's saturates, which compilers do value by value; with it the head of a step took 360 ms
/// instead of 331 (15M parameters, 1,024 tokens).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: a sum with it is rounded to an integer, which is in its lowest bits.
    const ROUNDING: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUNDING;
    let n = rounded - ROUNDING;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.394_5e-3f32;
    let p = 8.333_681e-3 + r * p;
    let p = 4.166_642e-2 + r * p;
    let p = 0.166_666_67 + r * p;
    let p = 0.5 + r * p;
    let p = 1.0 + r * p;
    let p = 1.0 + r * p;
    // The lowest nine bits of `ROUNDING` are zero: what is left is the exponent of 2ⁿ.
    p * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// tanh x with a relative error below 4e-7: near 0, where 1 − 2/(e²ˣ + 1) cancels, by Cephes' polynomial.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3f32;
    let p = 2.063_908_8e-2 + z * p;
    let p = -5.373_971_6e-2 + z * p;
    let p = 0.133_314_42 + z * p;
    let p = -0.333_332_8 + z * p;
    let near = x + x * z * p;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// Σ aᵢ bᵢ.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_whole, a_rest) = a.split_at(a.len() / LANES * LANES);
    let (b_whole, b_rest) = b.split_at(a_whole.len());
    for (a, b) in a_whole.chunks_exact(LANES).zip(b_whole.chunks_exact(LANES)) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Σ xᵢ.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.split_at(x.len() / LANES * LANES);
    for x in whole.chunks_exact(LANES) {
        for lane in 0..LANES {
            lanes[lane] += x[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// The largest value.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = x.split_at(x.len() / LANES * LANES);
    for x in whole.chunks_exact(LANES) {
        for lane in 0..LANES {
            lanes[lane] = if x[lane] > lanes[lane] { x[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

/// Replaces x by e^(x·scale − shift) and returns the sum.
#[inline(always)]
pub fn exp_and_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = x.len() / LANES * LANES;
    let (whole, rest) = x.split_at_mut(whole);
    for x in whole.chunks_exact_mut(LANES) {
        for lane in 0..LANES {
            x[lane] = exp(x[lane] * scale - shift);
            lanes[lane] += x[lane];
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for x in rest {
        *x = exp(*x * scale - shift);
        sum += *x;
    }
    sum
}

/// Σ e^(x − shift).
#[inline(always)]
pub fn sum_of_exp(x: &[f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.split_at(x.len() / LANES * LANES);
    for x in whole.chunks_exact(LANES) {
        for lane in 0..LANES {
            lanes[lane] += exp(x[lane] - shift);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| exp(x - shift)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_four_ten_millionths() {
        let error = |step: i32| {
            let x = step as f32 / 1000.0;
            (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs()
        };
        let worst = (-86_000..88_000).map(error).fold(0.0, f64::max);
        assert!(worst < 4e-7, "{worst}");
        assert!(exp(-1000.0) < 1e-37 && exp(0.0) == 1.0);
    }

    #[test]
    fn tanh_is_within_four_ten_millionths() {
        let error = |step: i32| {
            let x = step as f32 / 1000.0;
            (f64::from(tanh(x)) / f64::from(x).tanh() - 1.0).abs()
        };
        let worst = (1..20_000).flat_map(|step| [error(step), error(-step)]).fold(0.0, f64::max);
        assert!(worst < 4e-7, "{worst}");
        assert_eq!((tanh(0.0), tanh(100.0), tanh(-100.0)), (0.0, 1.0, -1.0));
    }
}
