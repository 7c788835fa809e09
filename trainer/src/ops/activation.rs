//! The activations of feed-forward layers, alone or gated: `f(gate) · up` (llama's SwiGLU, gemma's GeGLU).
//!
//! silu(x) = x / (1 + e⁻ˣ); gelu(x) = x · Φ(x) with the normal distribution Φ; its tanh form (Hendrycks and Gimpel
//! 2016) is x · σ(2u) with u = √(2/π) · (x + 0.044715 x³), because (1 + tanh u) / 2 = σ(2u).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values};
use super::simd::{self, exp};

/// Values of one piece of work.
const PIECE: usize = 8192;

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// x · Φ(x).
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
}

impl Activation {
    /// The activation that configurations of Hugging Face call `name`. Several names are one formula, whose constants
    /// differ in digits that f32 does not have.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            _ => None,
        }
    }
}

/// f and its slope at a point.
trait Function {
    fn value(x: f32) -> f32;
    fn value_and_slope(x: f32) -> (f32, f32);
}

struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x / (1.0 + exp(-x))
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let sigmoid = 1.0 / (1.0 + exp(-x));
        let silu = x * sigmoid;
        (silu, sigmoid + silu * (1.0 - sigmoid))
    }
}

struct Gelu;

/// 1/√2 and 1/√(2π).
const INVERSE_ROOT_TWO: f32 = std::f32::consts::FRAC_1_SQRT_2;
const INVERSE_ROOT_TAU: f32 = 0.398_942_3;

/// Φ(x), within 2e-7: erf by Abramowitz and Stegun 7.1.26, on the side where nothing cancels.
#[inline(always)]
fn normal_distribution(x: f32) -> f32 {
    let z = x.abs() * INVERSE_ROOT_TWO;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = 1.061_405_4f32;
    let p = -1.453_152 + t * p;
    let p = 1.421_413_7 + t * p;
    let p = -0.284_496_74 + t * p;
    let p = 0.254_829_6 + t * p;
    let tail = 0.5 * t * p * exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

impl Function for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal_distribution(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let below = normal_distribution(x);
        (x * below, below + x * INVERSE_ROOT_TAU * exp(-0.5 * x * x))
    }
}

struct GeluTanh;

/// 2 √(2/π).
const TWICE_ROOT: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

impl Function for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x / (1.0 + exp(-TWICE_ROOT * x * (1.0 + CUBIC * x * x)))
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let sigmoid = 1.0 / (1.0 + exp(-TWICE_ROOT * x * (1.0 + CUBIC * x * x)));
        let value = x * sigmoid;
        (value, sigmoid + value * (1.0 - sigmoid) * TWICE_ROOT * (1.0 + 3.0 * CUBIC * x * x))
    }
}

/// f(x), in x's shape.
pub fn forward(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => alone::<Silu>(x),
        Activation::Gelu => alone::<Gelu>(x),
        Activation::GeluTanh => alone::<GeluTanh>(x),
    }
}

fn alone<F: Function>(x: &Tensor) -> Result<Tensor> {
    let input = values(x)?;
    let mut y = vec![0.0; input.len()];
    y.par_chunks_mut(PIECE).zip(input.par_chunks(PIECE)).for_each(|(y, x)| {
        simd::run(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = F::value(*x)),
        );
    });
    tensor(y, x.shape())
}

/// The gradient of x, given that of f(x).
pub fn backward(activation: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => alone_backward::<Silu>(dy, x),
        Activation::Gelu => alone_backward::<Gelu>(dy, x),
        Activation::GeluTanh => alone_backward::<GeluTanh>(dy, x),
    }
}

fn alone_backward<F: Function>(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (dy, input) = (values(dy)?, values(x)?);
    let mut dx = vec![0.0; input.len()];
    dx.par_chunks_mut(PIECE).zip(dy.par_chunks(PIECE)).zip(input.par_chunks(PIECE)).for_each(|((dx, dy), x)| {
        simd::run(
            #[inline(always)]
            || dx.iter_mut().zip(dy).zip(x).for_each(|((dx, dy), x)| *dx = dy * F::value_and_slope(*x).1),
        );
    });
    tensor(dx, x.shape())
}

/// f(gate) · up. `gate`, `up`: the same shape. Returns that shape.
pub fn gated_forward(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => gated::<Silu>(gate, up),
        Activation::Gelu => gated::<Gelu>(gate, up),
        Activation::GeluTanh => gated::<GeluTanh>(gate, up),
    }
}

fn gated<F: Function>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (g, u) = (values(gate)?, values(up)?);
    let mut y = vec![0.0; g.len()];
    y.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).zip(u.par_chunks(PIECE)).for_each(|((y, g), u)| {
        simd::run(
            #[inline(always)]
            || {
                for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                    *y = F::value(*g) * u;
                }
            },
        );
    });
    tensor(y, gate.shape())
}

/// The gradients of gate and up, given that of f(gate) · up.
pub fn gated_backward(activation: Activation, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    match activation {
        Activation::Silu => gated_slopes::<Silu>(dy, gate, up),
        Activation::Gelu => gated_slopes::<Gelu>(dy, gate, up),
        Activation::GeluTanh => gated_slopes::<GeluTanh>(dy, gate, up),
    }
}

fn gated_slopes<F: Function>(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    let (y, g, u) = (values(dy)?, values(gate)?, values(up)?);
    let (mut dg, mut du) = (vec![0.0; g.len()], vec![0.0; g.len()]);
    let pieces = dg
        .par_chunks_mut(PIECE)
        .zip(du.par_chunks_mut(PIECE))
        .zip(y.par_chunks(PIECE))
        .zip(g.par_chunks(PIECE))
        .zip(u.par_chunks(PIECE));
    pieces.for_each(|((((dg, du), dy), g), u)| {
        simd::run(
            #[inline(always)]
            || {
                for ((((dg, du), dy), g), u) in dg.iter_mut().zip(du).zip(dy).zip(g).zip(u) {
                    let (value, slope) = F::value_and_slope(*g);
                    *du = dy * value;
                    *dg = dy * u * slope;
                }
            },
        );
    });
    Ok((tensor(dg, gate.shape())?, tensor(du, up.shape())?))
}
