//! The product of LLM.int8 (Dettmers et al. 2022): 8-bit integers times 8-bit integers, and outliers apart.
//!
//! Activations are rounded to float16. Columns in which one of them reaches the threshold are multiplied as they are
//! with the restored weights; of the others each row is divided by its largest magnitude, rounded to −127 … 127, and
//! multiplied with the weight's integers, exactly. Source: bitsandbytes 0.50 (`backends/default/ops.py`).

use half::f16;
use rayon::prelude::*;

use super::matmul::{Matrix, Threads, matmul};

/// Integers of 7 bits whose products may be summed in float32 without rounding: 127² · 1024 < 2²⁴.
const EXACT: usize = 1024;

/// Columns of the result that are computed at once.
const PANEL: usize = 256;

/// Adds `x Wᵀ` to `y`, (rows, out). `x` and its rows; the weight's integers, row-major, and the scales of its rows. With
/// a threshold of 0 there are no outliers.
pub(super) fn add_product((x, rows): (&[f32], usize), (codes, scales): (&[i8], &[f32]), threshold: f32, y: &mut [f32]) {
    let (output, input) = (scales.len(), x.len() / rows.max(1));
    let half = |value: &f32| f16::from_f32(*value).to_f32();
    let is_outlier = |value: f32| threshold > 0.0 && value.abs() >= threshold;
    let outliers: Vec<usize> =
        (0..input).into_par_iter().filter(|at| x[*at..].iter().step_by(input).any(|x| is_outlier(half(x)))).collect();
    let mut rounded = vec![0.0; x.len()];
    let row_scales: Vec<f32> = rounded
        .par_chunks_mut(input)
        .zip(x.par_chunks(input))
        .map(|(rounded, x)| {
            let ordinary = || x.iter().map(half).map(|x| if is_outlier(x) { 0.0 } else { x });
            let largest = ordinary().fold(0f32, |largest, x| largest.max(x.abs()));
            let factor = if largest > 0.0 { 1.0 / largest * 127.0 } else { 0.0 };
            rounded.iter_mut().zip(ordinary()).for_each(|(rounded, x)| *rounded = (x * factor).round_ties_even());
            outliers.iter().for_each(|at| rounded[*at] = 0.0);
            largest
        })
        .collect();
    let apart: Vec<f32> = x.chunks(input).flat_map(|x| outliers.iter().map(|at| x[*at])).collect();
    for first in (0..output).step_by(PANEL) {
        let count = PANEL.min(output - first);
        let codes = &codes[first * input..][..count * input];
        let scales = &scales[first..][..count];
        let mut sums = vec![0f64; rows * count];
        let integers: Vec<f32> = codes.par_iter().map(|code| f32::from(*code)).collect();
        let (x_integers, w_integers) = (Matrix::new(&rounded, rows, input), Matrix::new(&integers, count, input));
        let mut part = vec![0.0; rows * count];
        for begin in (0..input).step_by(EXACT) {
            let width = EXACT.min(input - begin);
            let (x, w) = (x_integers.columns(begin, width), w_integers.columns(begin, width));
            matmul(x, w.t(), &mut part, false, Threads::All);
            sums.iter_mut().zip(&part).for_each(|(sum, part)| *sum += f64::from(*part));
        }
        if !outliers.is_empty() {
            let restore = |(codes, scale): (&[i8], &f32)| -> Vec<f32> {
                outliers.iter().map(|at| f32::from(codes[*at]) * scale * (1.0 / 127.0)).collect()
            };
            let restored: Vec<f32> = codes.chunks(input).zip(scales).flat_map(restore).collect();
            let restored = Matrix::new(&restored, count, outliers.len()).t();
            matmul(Matrix::new(&apart, rows, outliers.len()), restored, &mut part, false, Threads::All);
        } else {
            part.fill(0.0);
        }
        y.par_chunks_mut(output).zip(sums.par_chunks(count)).zip(part.par_chunks(count)).zip(&row_scales).for_each(
            |(((y, sums), part), row_scale)| {
                for (((y, sum), part), scale) in y[first..].iter_mut().zip(sums).zip(part).zip(scales) {
                    *y += *sum as f32 * (row_scale * scale) * (1.0 / (127.0 * 127.0)) + part;
                }
            },
        );
    }
}
