//! `y = x Wᵀ + b`, the projection of every transformer layer.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{tensor, values, write};
use super::matmul::{Matrix, Threads, matmul};
use super::precision::Precision;
use crate::gradients::Slot;

/// `x`: (rows, in); `weight`: (out, in); `bias`: (out). Returns (rows, out).
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let ((rows, input), (output, weight_input)) = (x.dims2()?, weight.dims2()?);
    if input != weight_input {
        bail!("linear: x has {input} features, the weight takes {weight_input}");
    }
    let mut y = vec![0.0; rows * output];
    if let Some(bias) = bias {
        let bias = values(bias)?;
        y.par_chunks_mut(output).with_min_len(64).for_each(|row| row.copy_from_slice(&bias));
    }
    let (x, weight) = (values(x)?, values(weight)?);
    let (x, weight) = (precision.operand(&x), precision.operand(&weight));
    let weight = Matrix::new(&weight, output, input).t();
    matmul(Matrix::new(&x, rows, input), weight, &mut y, bias.is_some(), Threads::All);
    precision.result(&mut y);
    tensor(y, (rows, output))
}

/// `residual + x Wᵀ (+ b)`: the projection back into the residual stream. In float32 it takes one pass; the result of
/// a product in fewer bits is rounded before it is added.
pub fn forward_add(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: &Tensor,
    precision: Precision,
) -> Result<Tensor> {
    if precision != Precision::F32 {
        return forward(x, weight, bias, precision)? + residual;
    }
    let ((rows, input), (output, _)) = (x.dims2()?, weight.dims2()?);
    let mut y = values(residual)?.to_vec();
    if let Some(bias) = bias {
        let bias = values(bias)?;
        y.par_chunks_mut(output).for_each(|row| row.iter_mut().zip(&*bias).for_each(|(y, b)| *y += b));
    }
    let (x, weight) = (values(x)?, values(weight)?);
    let weight = Matrix::new(&weight, output, input).t();
    matmul(Matrix::new(&x, rows, input), weight, &mut y, true, Threads::All);
    tensor(y, (rows, output))
}

/// The gradient of `x`: `dy W`. Returns (rows, in).
pub fn backward_input(dy: &Tensor, weight: &Tensor, precision: Precision) -> Result<Tensor> {
    let ((rows, _), (_, input)) = (dy.dims2()?, weight.dims2()?);
    let mut dx = vec![0.0; rows * input];
    input_gradient(dy, weight, &mut dx, false, precision)?;
    tensor(dx, (rows, input))
}

/// Adds the gradient of `x` to `dx`: (rows, in), in place.
pub fn backward_input_add(dy: &Tensor, weight: &Tensor, dx: &Tensor, precision: Precision) -> Result<()> {
    let mut result = Ok(());
    write(dx, |dx| result = input_gradient(dy, weight, dx, true, precision))?;
    result
}

fn input_gradient(dy: &Tensor, weight: &Tensor, dx: &mut [f32], add: bool, precision: Precision) -> Result<()> {
    let ((rows, output), (_, input)) = (dy.dims2()?, weight.dims2()?);
    let (dy, weight) = (values(dy)?, values(weight)?);
    let (dy, weight) = (precision.operand(&dy), precision.operand(&weight));
    matmul(Matrix::new(&dy, rows, output), Matrix::new(&weight, output, input), dx, add, Threads::All);
    Ok(())
}

/// Adds the gradient of the weight, `dyᵀ x`, to its slot.
pub fn backward_weight(dy: &Tensor, x: &Tensor, slot: Slot<'_>, precision: Precision) -> Result<()> {
    let ((rows, output), (_, input)) = (dy.dims2()?, x.dims2()?);
    let (dy, x) = (values(dy)?, values(x)?);
    slot.write(|dw, add| {
        let (dy, x) = (precision.operand(&dy), precision.operand(&x));
        matmul(Matrix::new(&dy, rows, output).t(), Matrix::new(&x, rows, input), dw, add, Threads::All)
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
