//! Rotary position embedding of all or the first features of a head, with every frequency scaling of the families. A
//! feature is rotated with that half the rotated features away ("rotate_half"), or with its neighbour (glm).
//!
//! Formulas: `transformers/modeling_rope_utils.py`. Frequencies, angles and rotations are f32 there, so they are here.

use std::f64::consts::PI;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::write;
use super::simd;

/// How the frequencies are scaled for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// Divided by `factor`.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// The base grows with sequences beyond `max_position_embeddings` ("NTK").
    Dynamic {
        /// How fast.
        factor: f64,
        /// From where.
        max_position_embeddings: usize,
    },
    /// Llama 3: by wavelength, blended between two bounds.
    Llama3 {
        /// Divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// The context of the original model.
        original_max_position_embeddings: f64,
    },
    /// YaRN: interpolated by dimension, and attention scaled.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations above which dimensions are kept.
        beta_fast: f64,
        /// Rotations below which dimensions are divided.
        beta_slow: f64,
        /// The context of the original model.
        original_max_position_embeddings: f64,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
        /// Whether the bounds are rounded to whole dimensions.
        truncate: bool,
    },
}

/// The rotation of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Features of a head that are rotated: its first ones.
    pub features: usize,
    /// Scaling.
    pub scaling: Scaling,
    /// Whether neighbours are rotated together.
    pub interleaved: bool,
}

/// cos and sin of every position and frequency: `time × features / 2` each.
#[derive(Debug, Clone)]
pub struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    interleaved: bool,
}

#[cfg(feature = "cuda")]
impl Table {
    /// All cosines: (time, features / 2).
    pub fn cosines(&self) -> &[f32] {
        &self.cos
    }

    /// All sines.
    pub fn sines(&self) -> &[f32] {
        &self.sin
    }
}

impl Rope {
    /// The table for sequences of `time` positions.
    pub fn table(&self, time: usize) -> Table {
        let (frequencies, factor) = self.frequencies(time);
        let angles: Vec<f32> =
            (0..time).flat_map(|step| frequencies.iter().map(move |frequency| step as f32 * frequency)).collect();
        let scaled = |function: fn(f64) -> f64| {
            angles.iter().map(|angle| function(f64::from(*angle)) as f32 * factor as f32).collect()
        };
        Table { cos: scaled(f64::cos), sin: scaled(f64::sin), half: self.features / 2, interleaved: self.interleaved }
    }

    /// Inverse frequencies, and what cos and sin are multiplied by.
    fn frequencies(&self, time: usize) -> (Vec<f32>, f64) {
        let dim = self.features as f64;
        let of_base = |base: f64| -> Vec<f32> {
            let exponent = |index: usize| (2 * index) as f32 / self.features as f32;
            (0..self.features / 2).map(|index| 1.0 / (base as f32).powf(exponent(index))).collect()
        };
        let plain = of_base(self.theta);
        match self.scaling {
            Scaling::Default => (plain, 1.0),
            Scaling::Linear { factor } => (plain.iter().map(|frequency| frequency / factor as f32).collect(), 1.0),
            Scaling::Dynamic { factor, max_position_embeddings } => {
                let longest = time.max(max_position_embeddings) as f64 / max_position_embeddings as f64;
                let base = self.theta * (factor * longest - (factor - 1.0)).powf(dim / (dim - 2.0));
                (of_base(base), 1.0)
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let blend = |frequency: &f32| {
                    let frequency = f64::from(*frequency);
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original_max_position_embeddings / high_freq_factor {
                        return frequency as f32;
                    }
                    if wavelength > original_max_position_embeddings / low_freq_factor {
                        return (frequency / factor) as f32;
                    }
                    let smooth = (original_max_position_embeddings / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
                };
                (plain.iter().map(blend).collect(), 1.0)
            }
            Scaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                attention_factor,
                truncate,
            } => {
                let bound = |rotations: f64| {
                    dim * (original_max_position_embeddings / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let round = |value: f64, to: fn(f64) -> f64| if truncate { to(value) } else { value };
                let low = round(bound(beta_fast), f64::floor).max(0.0);
                let high = round(bound(beta_slow), f64::ceil).min(dim - 1.0);
                let high = if low == high { high + 0.001 } else { high };
                let blend = |(index, frequency): (usize, &f32)| {
                    let keep = 1.0 - ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let frequency = f64::from(*frequency);
                    (frequency / factor * (1.0 - keep) + frequency * keep) as f32
                };
                (plain.iter().enumerate().map(blend).collect(), attention_factor)
            }
        }
    }
}

/// Rotates `x`: (batch, heads, time, head_dim), each by its entry of `positions`, (batch × time), in place.
pub fn forward(x: &Tensor, table: &Table, positions: &[u32]) -> Result<()> {
    rotate(x, table, positions, 1.0)
}

/// The backward of [`forward`], in place: the transposed rotation.
pub fn backward(dx: &Tensor, table: &Table, positions: &[u32]) -> Result<()> {
    rotate(dx, table, positions, -1.0)
}

fn rotate(x: &Tensor, table: &Table, positions: &[u32], sign: f32) -> Result<()> {
    let (batch, heads, time, head_dim) = x.dims4()?;
    if head_dim < 2 * table.half || table.cos.len() < time * table.half {
        bail!("rope: the table is for {} features and {} positions", 2 * table.half, table.cos.len() / table.half);
    }
    if positions.len() != batch * time || positions.iter().any(|position| *position as usize >= time) {
        bail!("rope: {} positions for {batch} sequences of {time}", positions.len());
    }
    write(x, |x| {
        x.par_chunks_mut(time * head_dim).enumerate().for_each(|(index, head)| {
            let positions = &positions[index / heads * time..][..time];
            simd::run(
                #[inline(always)]
                || {
                    for (position, x) in positions.iter().zip(head.chunks_exact_mut(head_dim)) {
                        let range = *position as usize * table.half..(*position as usize + 1) * table.half;
                        let (cos, sin) = (&table.cos[range.clone()], &table.sin[range]);
                        if table.interleaved {
                            for ((pair, cos), sin) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
                                let (a, b) = (pair[0], pair[1]);
                                pair[0] = a * cos - b * sin * sign;
                                pair[1] = b * cos + a * sin * sign;
                            }
                            continue;
                        }
                        let (low, high) = x.split_at_mut(table.half);
                        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                            let (a, b) = (*low, *high);
                            *low = a * cos - b * sin * sign;
                            *high = b * cos + a * sin * sign;
                        }
                    }
                },
            );
        });
    })
}
