//! LoRA (Hu et al. 2021): beside a frozen projection, `y += s · dropout(x) Aᵀ Bᵀ`.
//!
//! Both directions go through the rows once, some at a time on each thread: between products this thin, reading and
//! writing x and y and waiting for each other would cost more than the arithmetic. The backward makes `dropout(x) Aᵀ`
//! again instead of keeping it: with rank r it costs r/out of the projection.

use std::borrow::Cow;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::cpu::{values, write};
use super::dropout::Dropout;
use super::matmul::{Matrix, Threads, matmul};
use super::precision::Precision;
use crate::gradients::Gradients;

/// Rows that a thread takes at once; their gradients of A and B are added up in the order of rows. 128 rows of 1,024
/// features are half an L2 cache.
const ROWS: usize = 128;

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

/// A and B as they are multiplied.
struct Operands<'a> {
    a: Cow<'a, [f32]>,
    b: Cow<'a, [f32]>,
    rank: usize,
    input: usize,
    output: usize,
}

impl Operands<'_> {
    fn a(&self) -> Matrix<'_> {
        Matrix::new(&self.a, self.rank, self.input)
    }

    fn b(&self) -> Matrix<'_> {
        Matrix::new(&self.b, self.output, self.rank)
    }
}

impl Pair<'_> {
    fn operands<'v>(&self, a: &'v [f32], b: &'v [f32]) -> Result<Operands<'v>> {
        let ((rank, input), (output, _)) = (self.a.0.dims2()?, self.b.0.dims2()?);
        Ok(Operands { a: self.precision.operand(a), b: self.precision.operand(b), rank, input, output })
    }

    /// What A multiplies of `x`, rows of the batch from value `start` on, and the product `s · x Aᵀ`, (rows, rank).
    fn down<'x>(&self, x: &'x [f32], start: usize, with: &Operands<'_>) -> (Cow<'x, [f32]>, Vec<f32>) {
        let x = match self.dropout {
            None => self.precision.operand(x),
            Some(dropout) => {
                let mut dropped = x.to_vec();
                dropout.apply_from(&mut dropped, start);
                Cow::Owned(self.precision.operand(&dropped).into_owned())
            }
        };
        let rows = x.len() / with.input;
        let mut u = vec![0.0; rows * with.rank];
        matmul(Matrix::new(&x, rows, with.input), with.a().t(), &mut u, false, Threads::One);
        u.iter_mut().for_each(|u| *u *= self.scale);
        (x, self.precision.operand(&u).into_owned())
    }

    /// Adds to `y`, (rows, out), in place. `x`: (rows, in).
    pub fn forward_add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let (a, b, x) = (values(self.a.0)?, values(self.b.0)?, values(x)?);
        let with = self.operands(&a, &b)?;
        write(y, |y| {
            let pieces = y.par_chunks_mut(ROWS * with.output).zip(x.par_chunks(ROWS * with.input));
            pieces.enumerate().for_each(|(piece, (y, x))| {
                let (_, u) = self.down(x, piece * ROWS * with.input, &with);
                let u = Matrix::new(&u, u.len() / with.rank, with.rank);
                matmul(u, with.b().t(), y, true, Threads::One);
            });
        })
    }

    /// Given the gradient of y, adds that of x to `dx`, (rows, in), in place, and those of A and B to their slots.
    pub fn backward(&self, dy: &Tensor, x: &Tensor, dx: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let (a, b, x, dy) = (values(self.a.0)?, values(self.b.0)?, values(x)?, values(dy)?);
        let with = self.operands(&a, &b)?;
        let mut parts = Vec::new();
        write(dx, |dx| {
            let pieces = dx.par_chunks_mut(ROWS * with.input).zip(x.par_chunks(ROWS * with.input));
            let pieces = pieces.zip(dy.par_chunks(ROWS * with.output)).enumerate();
            let found = pieces.map(|(piece, ((dx, x), dy))| self.backward_piece(dy, x, dx, piece, &with));
            found.collect_into_vec(&mut parts);
        })?;
        let (of_a, of_b): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        for (slot, parts) in [(self.a.1, of_a), (self.b.1, of_b)] {
            gradients.slot(slot).write(|gradient, add| {
                if !add {
                    gradient.fill(0.0);
                }
                for part in &parts {
                    gradient.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                }
            })?;
        }
        Ok(())
    }

    /// The same of some rows: adds to `dx`, returns what the gradients of A and B get.
    fn backward_piece(
        &self,
        dy: &[f32],
        x: &[f32],
        dx: &mut [f32],
        piece: usize,
        with: &Operands<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let start = piece * ROWS * with.input;
        let (x, u) = self.down(x, start, with);
        let dy = self.precision.operand(dy);
        let rows = x.len() / with.input;
        let (x, dy) = (Matrix::new(&x, rows, with.input), Matrix::new(&dy, rows, with.output));
        let mut db = vec![0.0; with.output * with.rank];
        matmul(dy.t(), Matrix::new(&u, rows, with.rank), &mut db, false, Threads::One);
        let mut du = vec![0.0; rows * with.rank];
        matmul(dy, with.b(), &mut du, false, Threads::One);
        du.iter_mut().for_each(|du| *du *= self.scale);
        let du = self.precision.operand(&du);
        let du = Matrix::new(&du, rows, with.rank);
        let mut da = vec![0.0; with.rank * with.input];
        matmul(du.t(), x, &mut da, false, Threads::One);
        match self.dropout {
            None => matmul(du, with.a(), dx, true, Threads::One),
            Some(dropout) => {
                let mut through = vec![0.0; dx.len()];
                matmul(du, with.a(), &mut through, false, Threads::One);
                dropout.apply_from(&mut through, start);
                dx.iter_mut().zip(&through).for_each(|(dx, through)| *dx += through);
            }
        }
        (da, db)
    }
}
