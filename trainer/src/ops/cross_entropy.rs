//! The output projection and cross-entropy in one: the logits of a whole batch never exist.
//!
//! Rows are taken in chunks; a chunk's logits become their own gradient in place, which goes into the
//! gradients of input and weight at once (as in Liger's fused linear cross-entropy).

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{tensor, values};
use super::matmul::{Matrix, product};
use super::precision::Precision;
use super::simd::{self, exp_and_sum};
use crate::gradients::Slot;

/// Logits in memory at once.
const CHUNK_VALUES: usize = 8 << 20;

/// A row without a label.
pub const IGNORE: u32 = u32::MAX;

/// What a batch's labels cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Sum of −log p(label) over rows with a label, added in row order in f64.
    pub nll: f64,
    /// Rows with a label.
    pub tokens: u64,
    /// Rows whose most probable token is the label.
    pub correct: u64,
    /// Sum over rows with a label of the mean over the vocabulary of −log p: what label smoothing adds.
    pub smooth: f64,
}

impl Loss {
    /// The sum that is minimised under label smoothing of this weight (Szegedy et al. 2016, as the Trainer has it).
    pub fn smoothed(&self, smoothing: f64) -> f64 {
        if smoothing == 0.0 { self.nll } else { (1.0 - smoothing) * self.nll + smoothing * self.smooth }
    }
}

fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_VALUES / vocab.max(1)).clamp(16, 1024)
}

fn check(labels: &[u32], rows: usize, vocab: usize) -> Result<()> {
    if labels.len() != rows {
        bail!("{} labels for {rows} rows", labels.len());
    }
    match labels.iter().find(|label| **label != IGNORE && **label as usize >= vocab) {
        Some(label) => bail!("label {label} has no row in the output projection; there are {vocab}"),
        None => Ok(()),
    }
}

/// The output projection.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// (vocab, features).
    pub weight: &'a Tensor,
    /// Logits are `cap · tanh(product / cap)` (gemma2).
    pub softcap: Option<f32>,
}

impl Head<'_> {
    /// Turns products into logits, in place.
    #[inline(always)]
    pub fn cap(&self, products: &mut [f32]) {
        if let Some(cap) = self.softcap {
            products.iter_mut().for_each(|x| *x = cap * simd::tanh(*x / cap));
        }
    }
}

/// Loss and accuracy. `x`: (rows, features); `labels`: an id or [`IGNORE`] for each row.
pub fn forward(x: &Tensor, head: Head<'_>, labels: &[u32], precision: Precision) -> Result<Loss> {
    let ((rows, width), (vocab, _)) = (x.dims2()?, head.weight.dims2()?);
    check(labels, rows, vocab)?;
    let (x, weight) = (values(x)?, values(head.weight)?);
    let chunk = chunk_rows(vocab).min(rows.max(1));
    let mut logits = vec![0.0; chunk * vocab];
    let mut loss = Loss::default();
    for begin in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - begin);
        let x = Matrix::new(&x[begin * width..], count, width);
        product(x, Matrix::new(&weight, vocab, width).t(), &mut logits, false, precision);
        let found: Vec<(f64, f64, bool)> = logits[..count * vocab]
            .par_chunks_mut(vocab)
            .zip(&labels[begin..begin + count])
            .filter(|(_, label)| **label != IGNORE)
            .map(|(row, label)| {
                simd::run(
                    #[inline(always)]
                    || {
                        head.cap(row);
                        let (largest, at_label) = (simd::max(row), row[*label as usize]);
                        // Of equal logits the first wins, as argmax has it.
                        let correct = row.iter().position(|value| *value == largest) == Some(*label as usize);
                        let mean = f64::from(simd::sum(row)) / row.len() as f64;
                        let sum = exp_and_sum(row, 1.0, largest);
                        let log_sum = f64::from(sum).ln() + f64::from(largest);
                        (log_sum - f64::from(at_label), log_sum - mean, correct)
                    },
                )
            })
            .collect();
        for (nll, smooth, correct) in found {
            loss.nll += nll;
            loss.smooth += smooth;
            loss.tokens += 1;
            loss.correct += u64::from(correct);
        }
    }
    Ok(loss)
}

/// Loss, and the gradients of `scale · ((1 − smoothing) · nll + smoothing · smooth)`: that of x is returned, that of
/// the weight added to its slot.
pub fn forward_backward(
    x: &Tensor,
    head: Head<'_>,
    labels: &[u32],
    (scale, smoothing): (f32, f32),
    precision: Precision,
    slot: Slot<'_>,
) -> Result<(Loss, Tensor)> {
    let ((rows, width), (vocab, _)) = (x.dims2()?, head.weight.dims2()?);
    check(labels, rows, vocab)?;
    let (input, weight) = (values(x)?, values(head.weight)?);
    let chunk = chunk_rows(vocab).min(rows.max(1));
    let mut logits = vec![0.0; chunk * vocab];
    let mut dx = vec![0.0; rows * width];
    let mut loss = Loss::default();
    slot.write_if_any(|mut dw, mut add| {
        for begin in (0..rows).step_by(chunk) {
            let count = chunk.min(rows - begin);
            let x_chunk = Matrix::new(&input[begin * width..], count, width);
            let weight = Matrix::new(&weight, vocab, width);
            product(x_chunk, weight.t(), &mut logits, false, precision);
            let found: Vec<Option<(f64, f64)>> = logits[..count * vocab]
                .par_chunks_mut(vocab)
                .zip(&labels[begin..begin + count])
                .map(|(row, label)| {
                    simd::run(
                        #[inline(always)]
                        || to_gradient(row, *label, (scale, smoothing), head),
                    )
                })
                .collect();
            for (nll, smooth) in found.into_iter().flatten() {
                loss.nll += nll;
                loss.smooth += smooth;
                loss.tokens += 1;
            }
            let dlogits = Matrix::new(&logits, count, vocab);
            product(dlogits, weight, &mut dx[begin * width..], false, precision);
            if let Some(dw) = dw.as_deref_mut() {
                product(dlogits.t(), x_chunk, dw, add, precision);
            }
            add = true;
        }
    })?;
    Ok((loss, tensor(dx, (rows, width))?))
}

/// Turns a row of products into their gradients, `scale · (softmax − (1 − smoothing) · one-hot − smoothing / vocab)` times
/// the slope of the cap; returns −log p(label) and, if there is smoothing, the mean of −log p.
#[inline(always)]
fn to_gradient(row: &mut [f32], label: u32, (scale, smoothing): (f32, f32), head: Head<'_>) -> Option<(f64, f64)> {
    if label == IGNORE {
        row.fill(0.0);
        return None;
    }
    head.cap(row);
    let (largest, at_label) = (simd::max(row), row[label as usize]);
    let mean = if smoothing > 0.0 { f64::from(simd::sum(row)) / row.len() as f64 } else { 0.0 };
    let mut slopes = Vec::new();
    if let Some(cap) = head.softcap {
        slopes.extend(row.iter().map(|logit| 1.0 - (logit / cap) * (logit / cap)));
    }
    let sum = exp_and_sum(row, 1.0, largest);
    let factor = scale / sum;
    row.iter_mut().for_each(|value| *value *= factor);
    row[label as usize] -= scale * (1.0 - smoothing);
    let log_sum = f64::from(sum).ln() + f64::from(largest);
    if smoothing > 0.0 {
        let uniform = scale * smoothing / row.len() as f32;
        row.iter_mut().for_each(|value| *value -= uniform);
    }
    row.iter_mut().zip(&slopes).for_each(|(value, slope)| *value *= slope);
    Some((log_sum - f64::from(at_label), if smoothing > 0.0 { log_sum - mean } else { 0.0 }))
}
