//! `silu(gate) · up`, the gated activation of llama's feed-forward layer. silu(x) = x / (1 + e⁻ˣ).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{tensor, values};
use super::simd::{self, exp};

/// Values of one piece of work.
const PIECE: usize = 8192;

/// `gate`, `up`: the same shape. Returns that shape.
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (g, u) = (values(gate)?, values(up)?);
    let mut y = vec![0.0; g.len()];
    y.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).zip(u.par_chunks(PIECE)).for_each(|((y, g), u)| {
        simd::run(
            #[inline(always)]
            || {
                for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                    *y = g / (1.0 + exp(-g)) * u;
                }
            },
        );
    });
    tensor(y, gate.shape())
}

/// The gradients of gate and up.
pub fn backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
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
                    let sigmoid = 1.0 / (1.0 + exp(-g));
                    let silu = g * sigmoid;
                    *du = dy * silu;
                    *dg = dy * u * (sigmoid + silu * (1.0 - sigmoid));
                }
            },
        );
    });
    Ok((tensor(dg, gate.shape())?, tensor(du, up.shape())?))
}
