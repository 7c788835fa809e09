//! `y = x Wᵀ + b` with a quantised, frozen weight: its values are restored a few rows at a time, into one buffer.
//!
//! Rows are taken in panels of fixed size and in order, so that no bit depends on the number of threads. The weight has
//! no gradient; that of x is `dy W`.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{add, tensor, values, write};
use super::llm_int8;
use super::matmul::{Matrix, product, product_columns};
use super::precision::Precision;
use super::quantised::Quantised;

/// Values of a weight that are in memory at once: 4 MiB.
const PANEL_VALUES: usize = 1 << 20;

/// Shows `see` the weight: the first row of each panel, and its values in rows.
fn panels(weight: &Quantised, mut see: impl FnMut(usize, &[f32])) {
    let (rows, columns) = weight.dims();
    let count = (PANEL_VALUES / columns.max(1)).next_multiple_of(16).min(rows.max(1));
    let mut panel = vec![0.0; count * columns];
    for first in (0..rows).step_by(count) {
        let panel = &mut panel[..count.min(rows - first) * columns];
        weight.restore(first, panel);
        see(first, panel);
    }
}

/// `x`: (rows, in); `weight`: (out, in); `bias`: (out). Returns (rows, out).
pub fn forward(x: &Tensor, weight: &Quantised, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let ((rows, input), (output, weight_input)) = (x.dims2()?, weight.dims());
    if input != weight_input {
        bail!("quantised linear: x has {input} features, the weight takes {weight_input}");
    }
    let mut y = vec![0.0; rows * output];
    if let Some(bias) = bias {
        let bias = values(bias)?;
        y.par_chunks_mut(output).with_min_len(64).for_each(|row| row.copy_from_slice(&bias));
    }
    add_product(&values(x)?, rows, weight, &mut y, precision);
    precision.result(&mut y);
    tensor(y, (rows, output))
}

/// `residual + x Wᵀ (+ b)`; the result of a product in fewer bits is rounded before it is added.
pub fn forward_add(
    x: &Tensor,
    weight: &Quantised,
    bias: Option<&Tensor>,
    residual: &Tensor,
    precision: Precision,
) -> Result<Tensor> {
    let y = forward(x, weight, bias, precision)?;
    add(&y, residual)?;
    Ok(y)
}

fn add_product(x: &[f32], rows: usize, weight: &Quantised, y: &mut [f32], precision: Precision) {
    let (output, input) = weight.dims();
    if let Some((codes, scales, threshold)) = weight.int8_parts() {
        return llm_int8::add_product((x, rows), (codes, scales), threshold, y);
    }
    let x = Matrix::new(x, rows, input);
    panels(weight, |first, panel| {
        let panel = Matrix::new(panel, panel.len() / input, input).t();
        product_columns(x, panel, y, (first, output), true, precision);
    });
}

/// The gradient of `x`: `dy W`. Returns (rows, in).
pub fn backward_input(dy: &Tensor, weight: &Quantised, precision: Precision) -> Result<Tensor> {
    let ((rows, _), (_, input)) = (dy.dims2()?, weight.dims());
    let mut dx = vec![0.0; rows * input];
    input_gradient(&values(dy)?, rows, weight, &mut dx, precision);
    tensor(dx, (rows, input))
}

/// Adds the gradient of `x` to `dx`: (rows, in), in place.
pub fn backward_input_add(dy: &Tensor, weight: &Quantised, dx: &Tensor, precision: Precision) -> Result<()> {
    let (rows, _) = dy.dims2()?;
    let dy = values(dy)?;
    write(dx, |dx| input_gradient(&dy, rows, weight, dx, precision))
}

/// Adds `dy W` to `dx`.
fn input_gradient(dy: &[f32], rows: usize, weight: &Quantised, dx: &mut [f32], precision: Precision) {
    let (output, input) = weight.dims();
    let dy = Matrix::new(dy, rows, output);
    panels(weight, |first, panel| {
        let count = panel.len() / input;
        let panel = Matrix::new(panel, count, input);
        product(dy.columns(first, count), panel, dx, true, precision);
    });
}
