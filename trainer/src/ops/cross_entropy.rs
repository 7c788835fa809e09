//! The output projection and cross-entropy in one: the logits of a whole batch never exist.
//!
//! Some rows at a time are multiplied with one slice of the vocabulary after another. While a slice's logits are in the
//! cache, what each row's softmax needs of them is summed up; then, slice by slice again, they become their own gradient
//! in place, which goes into the gradients of input and weight at once (as in Liger's fused linear cross-entropy).
//! A slice is one thread's alone, so that nobody waits within a product.

use std::cell::RefCell;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{PIECE, tensor, values};
use super::matmul::{Matrix, product_alone};
use super::precision::Precision;
use super::simd;
use crate::gradients::Slot;

/// Logits in memory at once.
const LOGITS: usize = 8 << 20;

/// Tokens in a slice of the vocabulary: the logits of 262 rows (a vocabulary of 32,000) are 0.5 MiB, half of a core's
/// second-level cache.
const SLICE: usize = 512;

/// Tasks of the backward, each of slices that follow each other: every one sums up a gradient of x by itself, which are
/// then added in order.
const TASKS: usize = 16;

/// A row without a label.
pub const IGNORE: u32 = u32::MAX;

thread_local! {
    /// Kept from step to step, because new pages cost more than what is written into them.
    static KEPT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

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

/// Rows whose logits are in memory at once.
fn rows_at_once(vocab: usize) -> usize {
    (LOGITS / vocab.max(1)).clamp(16, 1024)
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

/// The logits of some rows, slice after slice of the vocabulary, row after row in each.
struct Logits<'a> {
    values: &'a mut [f32],
    rows: usize,
    vocab: usize,
    /// Of each row.
    softmax: Vec<Softmax>,
}

/// What a row's probabilities are made of.
#[derive(Debug, Clone, Copy)]
struct Softmax {
    /// The largest logit.
    largest: f32,
    /// Σ e^(logit − largest).
    sum: f64,
    /// Σ logit.
    total: f64,
}

impl Softmax {
    const NOTHING: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0, total: 0.0 };

    #[inline(always)]
    fn of(logits: &[f32]) -> Self {
        let largest = simd::max(logits);
        Self { largest, sum: simd::sum_of_exp(logits, largest).into(), total: simd::sum(logits).into() }
    }

    /// With the logits of the next slice.
    fn and(self, next: &Self) -> Self {
        let largest = self.largest.max(next.largest);
        let scaled = |one: &Self| one.sum * f64::from(one.largest - largest).exp();
        Self { largest, sum: scaled(&self) + scaled(next), total: self.total + next.total }
    }
}

impl<'a> Logits<'a> {
    /// The logits of the rows of `x`, in `values`.
    fn new(x: Matrix<'_>, weight: Matrix<'_>, head: Head<'_>, values: &'a mut [f32], precision: Precision) -> Self {
        let ((rows, _), (vocab, _)) = (x.shape(), weight.shape());
        let values = &mut values[..rows * vocab];
        let mut parts = vec![Softmax::NOTHING; rows * vocab.div_ceil(SLICE)];
        let slices = values.par_chunks_mut(SLICE * rows).zip(parts.par_chunks_mut(rows)).enumerate();
        slices.for_each(|(slice, (logits, parts))| {
            let tokens = logits.len() / rows;
            product_alone(x, weight.rows(slice * SLICE, tokens).t(), logits, false, precision);
            for (row, part) in logits.chunks_exact_mut(tokens).zip(parts) {
                simd::run(
                    #[inline(always)]
                    || {
                        head.cap(row);
                        *part = Softmax::of(row);
                    },
                );
            }
        });
        let of_row = |row| parts.iter().skip(row).step_by(rows).fold(Softmax::NOTHING, |all, part| all.and(part));
        let softmax = (0..rows).map(of_row).collect();
        Self { values, rows, vocab, softmax }
    }

    /// The logits of `row` for the slice that begins with token `first`.
    fn of(&self, row: usize, first: usize) -> &[f32] {
        let tokens = SLICE.min(self.vocab - first);
        &self.values[first * self.rows + row * tokens..][..tokens]
    }

    /// Adds what the labels cost.
    fn add_to(&self, loss: &mut Loss, labels: &[u32]) {
        for (row, label) in labels.iter().enumerate().filter(|(_, label)| **label != IGNORE) {
            let (softmax, label) = (&self.softmax[row], *label as usize);
            let at_label = self.of(row, label / SLICE * SLICE)[label % SLICE];
            let log_sum = softmax.sum.ln() + f64::from(softmax.largest);
            loss.nll += log_sum - f64::from(at_label);
            loss.smooth += log_sum - softmax.total / self.vocab as f64;
            loss.tokens += 1;
        }
    }

    /// Labels that are the most probable token; of equal ones the first is, as argmax has it.
    fn correct(&self, labels: &[u32]) -> u64 {
        let is_first = |(row, label): (usize, &u32)| {
            let (label, largest) = (*label as usize, self.softmax[row].largest);
            let slices = (0..=label).step_by(SLICE);
            let before = |first| &self.of(row, first)[..SLICE.min(label - first)];
            self.of(row, label / SLICE * SLICE)[label % SLICE] == largest
                && slices.map(before).all(|logits| simd::max(logits) < largest)
        };
        labels.par_iter().enumerate().filter(|(_, label)| **label != IGNORE).filter(|one| is_first(*one)).count() as u64
    }
}

/// Loss and accuracy. `x`: (rows, features); `labels`: an id or [`IGNORE`] for each row.
pub fn forward(x: &Tensor, head: Head<'_>, labels: &[u32], precision: Precision) -> Result<Loss> {
    let ((rows, width), (vocab, _)) = (x.dims2()?, head.weight.dims2()?);
    check(labels, rows, vocab)?;
    let (x, weight) = (values(x)?, values(head.weight)?);
    let (x, weight) = (Matrix::new(&x, rows, width), Matrix::new(&weight, vocab, width));
    let mut kept = kept(rows, vocab);
    let mut loss = Loss::default();
    for begin in (0..rows).step_by(rows_at_once(vocab)) {
        let count = rows_at_once(vocab).min(rows - begin);
        let labels = &labels[begin..][..count];
        let logits = Logits::new(x.rows(begin, count), weight, head, &mut kept, precision);
        logits.add_to(&mut loss, labels);
        loss.correct += logits.correct(labels);
    }
    KEPT.set(kept);
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
    let (input, weight) = (Matrix::new(&input, rows, width), Matrix::new(&weight, vocab, width));
    let of_task = vocab.div_ceil(SLICE).div_ceil(TASKS) * SLICE;
    let mut kept = kept(rows, vocab);
    let mut parts = vec![0.0; vocab.div_ceil(of_task) * rows_at_once(vocab).min(rows) * width];
    let mut dx = vec![0.0; rows * width];
    let mut loss = Loss::default();
    slot.write_if_any(|mut dw, mut add| {
        for begin in (0..rows).step_by(rows_at_once(vocab)) {
            let count = rows_at_once(vocab).min(rows - begin);
            let (x, labels) = (input.rows(begin, count), &labels[begin..][..count]);
            let logits = Logits::new(x, weight, head, &mut kept, precision);
            logits.add_to(&mut loss, labels);
            let Logits { values, softmax, .. } = logits;
            let dw: Vec<Option<&mut [f32]>> = match dw.as_deref_mut() {
                Some(dw) => dw.chunks_mut(of_task * width).map(Some).collect(),
                None => (0..vocab.div_ceil(of_task)).map(|_| None).collect(),
            };
            let parts = &mut parts[..vocab.div_ceil(of_task) * count * width];
            let tasks = values.par_chunks_mut(of_task * count).zip(parts.par_chunks_mut(count * width)).zip(dw);
            tasks.enumerate().for_each(|(task, ((logits, dx), mut dw))| {
                for (slice, logits) in logits.chunks_mut(SLICE * count).enumerate() {
                    let (first, tokens) = (task * of_task + slice * SLICE, logits.len() / count);
                    to_gradients(logits, (first, vocab), labels, &softmax, (scale, smoothing), head.softcap);
                    let dlogits = Matrix::new(logits, count, tokens);
                    product_alone(dlogits, weight.rows(first, tokens), dx, slice > 0, precision);
                    if let Some(dw) = dw.as_deref_mut() {
                        let dw = &mut dw[slice * SLICE * width..][..tokens * width];
                        product_alone(dlogits.t(), x, dw, add, precision);
                    }
                }
            });
            let dx = dx[begin * width..][..count * width].par_chunks_mut(PIECE).enumerate();
            dx.for_each(|(piece, dx)| {
                for part in parts.chunks_exact(count * width) {
                    dx.iter_mut().zip(&part[piece * PIECE..]).for_each(|(dx, part)| *dx += part);
                }
            });
            add = true;
        }
    })?;
    KEPT.set(kept);
    Ok((loss, tensor(dx, (rows, width))?))
}

/// Room for the logits of as many of `rows` as there are at once.
fn kept(rows: usize, vocab: usize) -> Vec<f32> {
    let mut kept = KEPT.take();
    let count = rows_at_once(vocab).min(rows) * vocab;
    if kept.len() < count {
        kept.resize(count, 0.0);
    }
    kept
}

/// Turns the logits of the slice that begins with token `first` into their gradients; those of a row without a label are
/// zero.
fn to_gradients(
    logits: &mut [f32],
    (first, vocab): (usize, usize),
    labels: &[u32],
    softmax: &[Softmax],
    (scale, smoothing): (f32, f32),
    softcap: Option<f32>,
) {
    let tokens = logits.len() / labels.len();
    let uniform = scale * smoothing / vocab as f32;
    for ((row, label), softmax) in logits.chunks_exact_mut(tokens).zip(labels).zip(softmax) {
        if *label == IGNORE {
            row.fill(0.0);
            continue;
        }
        let label = (*label as usize).checked_sub(first).filter(|label| *label < tokens);
        simd::run(
            #[inline(always)]
            || to_gradient(row, label, softmax, (scale, smoothing, uniform), softcap),
        );
    }
}

/// A row of them: `scale · (softmax − (1 − smoothing) · one-hot − smoothing / vocab)` times the slope of the cap;
/// `uniform` is what smoothing takes from each.
#[inline(always)]
fn to_gradient(
    logits: &mut [f32],
    label: Option<usize>,
    softmax: &Softmax,
    (scale, smoothing, uniform): (f32, f32, f32),
    softcap: Option<f32>,
) {
    let (largest, factor) = (softmax.largest, (f64::from(scale) / softmax.sum) as f32);
    let slope = |logit: f32, cap: f32| 1.0 - (logit / cap) * (logit / cap);
    let at_label = label.map(|label| scale * (1.0 - smoothing) * softcap.map_or(1.0, |cap| slope(logits[label], cap)));
    match softcap {
        None => logits.iter_mut().for_each(|x| *x = simd::exp(*x - largest) * factor - uniform),
        Some(cap) => {
            logits.iter_mut().for_each(|x| *x = (simd::exp(*x - largest) * factor - uniform) * slope(*x, cap));
        }
    }
    if let (Some(label), Some(at_label)) = (label, at_label) {
        logits[label] -= at_label;
    }
}
