//! `y = x Wᵀ + b`, the projection of every transformer layer.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{add, tensor, values, write};
use super::matmul::{Matrix, product};
use super::precision::Precision;
use crate::gradients::Slot;

/// A weight and how it lies in memory.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    /// (out, in), or (in, out) if `input_first`.
    pub tensor: &'a Tensor,
    /// As the `Conv1D` of gpt2 has it.
    pub input_first: bool,
}

impl<'a> From<&'a Tensor> for Weight<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self { tensor, input_first: false }
    }
}

impl Weight<'_> {
    /// Outputs and inputs.
    pub fn dims(&self) -> Result<(usize, usize)> {
        let (rows, columns) = self.tensor.dims2()?;
        Ok(if self.input_first { (columns, rows) } else { (rows, columns) })
    }

    /// Its values as an (out, in) matrix.
    fn matrix<'v>(&self, values: &'v [f32]) -> Result<Matrix<'v>> {
        let (output, input) = self.dims()?;
        Ok(if self.input_first { Matrix::new(values, input, output).t() } else { Matrix::new(values, output, input) })
    }
}

/// `x`: (rows, in); `bias`: (out). Returns (rows, out).
pub fn forward(x: &Tensor, weight: Weight<'_>, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let ((rows, input), (output, weight_input)) = (x.dims2()?, weight.dims()?);
    if input != weight_input {
        bail!("linear: x has {input} features, the weight takes {weight_input}");
    }
    let mut y = vec![0.0; rows * output];
    if let Some(bias) = bias {
        let bias = values(bias)?;
        y.par_chunks_mut(output).with_min_len(64).for_each(|row| row.copy_from_slice(&bias));
    }
    let (x, w) = (values(x)?, values(weight.tensor)?);
    product(Matrix::new(&x, rows, input), weight.matrix(&w)?.t(), &mut y, bias.is_some(), precision);
    precision.result(&mut y);
    tensor(y, (rows, output))
}

/// `residual + x Wᵀ (+ b)`: the projection back into the residual stream. In float32 it takes one pass; the result of
/// a product in fewer bits is rounded before it is added.
pub fn forward_add(
    x: &Tensor,
    weight: Weight<'_>,
    bias: Option<&Tensor>,
    residual: &Tensor,
    precision: Precision,
) -> Result<Tensor> {
    if precision != Precision::F32 {
        let y = forward(x, weight, bias, precision)?;
        add(&y, residual)?;
        return Ok(y);
    }
    let ((rows, input), (output, _)) = (x.dims2()?, weight.dims()?);
    let mut y = values(residual)?.to_vec();
    if let Some(bias) = bias {
        let bias = values(bias)?;
        y.par_chunks_mut(output).for_each(|row| row.iter_mut().zip(&*bias).for_each(|(y, b)| *y += b));
    }
    let (x, w) = (values(x)?, values(weight.tensor)?);
    product(Matrix::new(&x, rows, input), weight.matrix(&w)?.t(), &mut y, true, precision);
    tensor(y, (rows, output))
}

/// The gradient of `x`: `dy W`. Returns (rows, in).
pub fn backward_input(dy: &Tensor, weight: Weight<'_>, precision: Precision) -> Result<Tensor> {
    let ((rows, _), (_, input)) = (dy.dims2()?, weight.dims()?);
    let mut dx = vec![0.0; rows * input];
    input_gradient(dy, weight, &mut dx, false, precision)?;
    tensor(dx, (rows, input))
}

/// Adds the gradient of `x` to `dx`: (rows, in), in place.
pub fn backward_input_add(dy: &Tensor, weight: Weight<'_>, dx: &Tensor, precision: Precision) -> Result<()> {
    let mut result = Ok(());
    write(dx, |dx| result = input_gradient(dy, weight, dx, true, precision))?;
    result
}

fn input_gradient(dy: &Tensor, weight: Weight<'_>, dx: &mut [f32], add: bool, precision: Precision) -> Result<()> {
    let (rows, output) = dy.dims2()?;
    let (dy, w) = (values(dy)?, values(weight.tensor)?);
    product(Matrix::new(&dy, rows, output), weight.matrix(&w)?, dx, add, precision);
    Ok(())
}

/// Adds the gradient of the weight, `dyᵀ x` (or `xᵀ dy`, if its input comes first), to its slot.
pub fn backward_weight(dy: &Tensor, x: &Tensor, input_first: bool, slot: Slot<'_>, precision: Precision) -> Result<()> {
    let ((rows, output), (_, input)) = (dy.dims2()?, x.dims2()?);
    let (dy, x) = (values(dy)?, values(x)?);
    slot.write(|dw, add| {
        let (dy, x) = (Matrix::new(&dy, rows, output), Matrix::new(&x, rows, input));
        let (left, right) = if input_first { (x, dy) } else { (dy, x) };
        product(left.t(), right, dw, add, precision)
    })
}

/// Adds the gradient of the bias, the sum of `dy` over rows, to its slot.
pub fn backward_bias(dy: &Tensor, slot: Slot<'_>) -> Result<()> {
    let (_, output) = dy.dims2()?;
    let dy = values(dy)?;
    slot.write(|db, add| {
        if !add {
            db.fill(0.0);
        }
        for row in dy.chunks_exact(output) {
            db.iter_mut().zip(row).for_each(|(b, y)| *b += y);
        }
    })
}
