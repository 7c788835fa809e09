//! LoRA (Hu et al. 2021): beside a frozen projection, `y += s · dropout(x) Aᵀ Bᵀ`.
//!
//! The backward makes `dropout(x) Aᵀ` again instead of keeping it: with rank r it costs r/out of the projection.

use candle_core::{Result, Tensor};

use super::cpu::{values, write};
use super::dropout::Dropout;
use super::matmul::{Matrix, Threads, matmul};
use super::precision::Precision;
use crate::gradients::Gradients;

/// The two matrices beside a projection.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// A: (rank, in), and its index among the parameters.
    pub a: (&'a Tensor, usize),
    /// B: (out, rank), and its index.
    pub b: (&'a Tensor, usize),
    /// s.
    pub scale: f32,
    /// On the input of A, while training.
    pub dropout: Option<Dropout>,
    /// Of the products.
    pub precision: Precision,
}

impl Pair<'_> {
    /// The input of A (if dropout made another of it) and its product `s · x Aᵀ`, (rows, rank).
    fn down(&self, x: &[f32], rows: usize) -> Result<(Option<Vec<f32>>, Vec<f32>)> {
        let (rank, input) = self.a.0.dims2()?;
        let dropped = self.dropout.map(|dropout| {
            let mut dropped = x.to_vec();
            dropout.apply_to(&mut dropped);
            dropped
        });
        let mut u = vec![0.0; rows * rank];
        let (x, a) = (dropped.as_deref().unwrap_or(x), values(self.a.0)?);
        let (x, a) = (self.precision.operand(x), self.precision.operand(&a));
        matmul(Matrix::new(&x, rows, input), Matrix::new(&a, rank, input).t(), &mut u, false, Threads::All);
        u.iter_mut().for_each(|u| *u *= self.scale);
        Ok((dropped, u))
    }

    /// Adds to `y`, (rows, out), in place. `x`: (rows, in).
    pub fn forward_add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let ((rows, _), (output, rank)) = (x.dims2()?, self.b.0.dims2()?);
        let (_, u) = self.down(&values(x)?, rows)?;
        let b = values(self.b.0)?;
        let (u, b) = (self.precision.operand(&u), self.precision.operand(&b));
        write(y, |y| matmul(Matrix::new(&u, rows, rank), Matrix::new(&b, output, rank).t(), y, true, Threads::All))
    }

    /// Given the gradient of y, adds that of x to `dx`, (rows, in), in place, and those of A and B to their slots.
    pub fn backward(&self, dy: &Tensor, x: &Tensor, dx: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let ((rows, input), (output, rank)) = (x.dims2()?, self.b.0.dims2()?);
        let (x, dy) = (values(x)?, values(dy)?);
        let (dropped, u) = self.down(&x, rows)?;
        let (b, a) = (values(self.b.0)?, values(self.a.0)?);
        let operand = |values| self.precision.operand(values);
        let (x, dy, b, a, u) =
            (operand(dropped.as_deref().unwrap_or(&x)), operand(&dy), operand(&b), operand(&a), operand(&u));
        let (x, dy, u) = (Matrix::new(&x, rows, input), Matrix::new(&dy, rows, output), Matrix::new(&u, rows, rank));
        gradients.slot(self.b.1).write(|db, add| matmul(dy.t(), u, db, add, Threads::All))?;
        let mut du = vec![0.0; rows * rank];
        matmul(dy, Matrix::new(&b, output, rank), &mut du, false, Threads::All);
        du.iter_mut().for_each(|du| *du *= self.scale);
        let du = operand(&du);
        let (du, a) = (Matrix::new(&du, rows, rank), Matrix::new(&a, rank, input));
        gradients.slot(self.a.1).write(|da, add| matmul(du.t(), x, da, add, Threads::All))?;
        let Some(dropout) = self.dropout else {
            return write(dx, |dx| matmul(du, a, dx, true, Threads::All));
        };
        let mut through = vec![0.0; rows * input];
        matmul(du, a, &mut through, false, Threads::All);
        dropout.apply_to(&mut through);
        write(dx, |dx| dx.iter_mut().zip(&through).for_each(|(dx, through)| *dx += through))
    }
}
