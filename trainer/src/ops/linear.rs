//! `y = x Wᵀ + b`, the projection of every transformer layer.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{tensor, values, write};
use super::matmul::{Matrix, Threads, matmul};
use crate::gradients::Slot;

/// `x`: (rows, in); `weight`: (out, in); `bias`: (out). Returns (rows, out).
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((rows, input), (output, weight_input)) = (x.dims2()?, weight.dims2()?);
    if input != weight_input {
        bail!("linear: x has {input} features, the weight takes {weight_input}");
    }
    let mut y = vec![0.0; rows * output];
    if let Some(bias) = bias {
        let bias = values(bias)?;
        y.par_chunks_mut(output).with_min_len(64).for_each(|row| row.copy_from_slice(&bias));
    }
    matmul(
        Matrix::new(&values(x)?, rows, input),
        Matrix::new(&values(weight)?, output, input).t(),
        &mut y,
        bias.is_some(),
        Threads::All,
    );
    tensor(y, (rows, output))
}

/// `residual + x Wᵀ (+ b)`: the projection back into the residual stream, in one pass.
pub fn forward_add(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
    let ((rows, input), (output, _)) = (x.dims2()?, weight.dims2()?);
    let mut y = values(residual)?.to_vec();
    if let Some(bias) = bias {
        let bias = values(bias)?;
        y.par_chunks_mut(output).for_each(|row| row.iter_mut().zip(&*bias).for_each(|(y, b)| *y += b));
    }
    matmul(
        Matrix::new(&values(x)?, rows, input),
        Matrix::new(&values(weight)?, output, input).t(),
        &mut y,
        true,
        Threads::All,
    );
    tensor(y, (rows, output))
}

/// The gradient of `x`: `dy W`. Returns (rows, in).
pub fn backward_input(dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((rows, output), (_, input)) = (dy.dims2()?, weight.dims2()?);
    let mut dx = vec![0.0; rows * input];
    matmul(
        Matrix::new(&values(dy)?, rows, output),
        Matrix::new(&values(weight)?, output, input),
        &mut dx,
        false,
        Threads::All,
    );
    tensor(dx, (rows, input))
}

/// Adds the gradient of `x` to `dx`: (rows, in), in place.
pub fn backward_input_add(dy: &Tensor, weight: &Tensor, dx: &Tensor) -> Result<()> {
    let ((rows, output), (_, input)) = (dy.dims2()?, weight.dims2()?);
    let (dy, weight) = (values(dy)?, values(weight)?);
    write(dx, |dx| matmul(Matrix::new(&dy, rows, output), Matrix::new(&weight, output, input), dx, true, Threads::All))
}

/// Adds the gradient of the weight, `dyᵀ x`, to its slot.
pub fn backward_weight(dy: &Tensor, x: &Tensor, slot: Slot<'_>) -> Result<()> {
    let ((rows, output), (_, input)) = (dy.dims2()?, x.dims2()?);
    let (dy, x) = (values(dy)?, values(x)?);
    slot.write(|dw, add| {
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
