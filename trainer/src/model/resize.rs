//! More rows for the embedding and the head: how those of new tokens begin, and which of them are trained.
//!
//! The rule of transformers 4.46 and later (Hewitt 2021, "Initializing new word embeddings for pretrained language
//! models"): with μ and Σ the mean and the covariance of all old rows, a new row is drawn from N(μ, 1e-9 Σ), or is
//! exactly μ where 1e-9 Σ is not positive definite. It is applied to each matrix by itself.

use std::ops::Range;

use rayon::prelude::*;
use serde_json::json;
use tokenmill_shared::random::{Purpose, Stream};
use tokenmill_shared::{Error, Result};

use super::{EMBEDDING, HEAD, Model, tensor_error};
use crate::arguments::NewTokenInit;
use crate::ops::cpu::{tensor, values};
use crate::ops::matmul::{Matrix, Threads, matmul};
use crate::vocabulary::NewTokens;

/// Of Σ in the distribution of new rows.
const EPSILON: f64 = 1e-9;

impl Model {
    /// Gives embedding and head `new.rows` rows, and those of new tokens their beginning. Rows that are there stay as they
    /// are, but for spare ones that a new token gets and `init` is [`NewTokenInit::MeanOfPieces`].
    pub fn resize_vocabulary(&mut self, new: &NewTokens, init: NewTokenInit, seed: u64) -> Result<()> {
        let (hidden, range) = (self.config.hidden_size, self.config.initializer_range);
        for (index, parameter) in self.parameters.iter_mut().enumerate() {
            if !is_matrix_of_rows(&parameter.name) {
                continue;
            }
            let mut rows = values(&parameter.tensor).map_err(tensor_error)?.to_vec();
            let old_rows = rows.len() / hidden;
            if new.rows < old_rows {
                return Err(Error::config(
                    parameter.name.as_str(),
                    format!("has {old_rows} rows, more than {}", new.rows),
                ));
            }
            let stream = Stream::new(seed, Purpose::NewRows, index as u64);
            match init {
                NewTokenInit::Normal => {
                    let normal = |at: usize| (stream.normal(at as u64) * range) as f32;
                    rows.par_extend((old_rows * hidden..new.rows * hidden).into_par_iter().map(normal));
                }
                NewTokenInit::MeanResizing => {
                    let added = Distribution::of(&rows, hidden).draw(new.rows - old_rows, &stream);
                    rows.extend(added);
                }
                NewTokenInit::MeanOfPieces => {
                    let mean = mean(&rows, hidden);
                    let first = new.first.min(old_rows);
                    let known = rows[..first * hidden].to_vec();
                    rows.resize(new.rows * hidden, 0.0);
                    for (at, row) in rows[first * hidden..].chunks_exact_mut(hidden).enumerate() {
                        let pieces = new.pieces.get(at).map_or(&[][..], Vec::as_slice);
                        // A spare row that no token gets stays as it is.
                        if !pieces.is_empty() || first + at >= old_rows {
                            mean_of_pieces(&known, pieces, &mean, row);
                        }
                    }
                }
            }
            parameter.tensor = tensor(rows, (new.rows, hidden)).map_err(tensor_error)?;
        }
        self.config.vocab_size = new.rows;
        self.config.json["vocab_size"] = json!(new.rows);
        self.renew_gradients()
    }

    /// Trains of embedding and head only the rows `rows`; without adapters, of the whole model only these.
    ///
    /// # Errors
    /// Rows that the model does not have.
    pub fn train_rows_only(&mut self, rows: Range<usize>) -> Result<()> {
        if rows.end > self.config.vocab_size {
            let reason = format!(
                "means rows up to {}, the model has {}; go on with the tokenizer it was trained with",
                rows.end, self.config.vocab_size
            );
            return Err(Error::config("--train_new_rows_only", reason));
        }
        let has_adapters = self.adapters.is_some();
        for parameter in &mut self.parameters {
            let is_adapter = has_adapters && parameter.trainable;
            parameter.trainable = is_matrix_of_rows(&parameter.name) || is_adapter;
        }
        self.trained_rows = Some(rows);
        if let Some(adapters) = &mut self.adapters {
            adapters.save_rows_alone();
        }
        self.renew_gradients()
    }

    /// Of a parameter, the rows that are trained, if they are not all.
    pub(super) fn rows_trained_of(&self, name: &str) -> Option<Range<usize>> {
        self.trained_rows.clone().filter(|_| is_matrix_of_rows(name))
    }
}

/// Whether a row of this parameter stands for a token.
fn is_matrix_of_rows(name: &str) -> bool {
    name.strip_suffix(".weight").is_some_and(|module| module == EMBEDDING || module == HEAD)
}

/// The mean of all rows, summed in f64.
fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0f64; width];
    for row in rows.chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let count = (rows.len() / width) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// Sets `row` to the mean of the rows of `pieces`, summed in f64; without pieces to `otherwise`.
fn mean_of_pieces(known: &[f32], pieces: &[u32], otherwise: &[f32], row: &mut [f32]) {
    let width = row.len();
    let there: Vec<&[f32]> = pieces.iter().filter_map(|id| known.get(*id as usize * width..)?.get(..width)).collect();
    if there.is_empty() {
        row.copy_from_slice(otherwise);
        return;
    }
    for (at, value) in row.iter_mut().enumerate() {
        let sum: f64 = there.iter().map(|piece| f64::from(piece[at])).sum();
        *value = (sum / there.len() as f64) as f32;
    }
}

/// N(μ, 1e-9 Σ) of rows.
struct Distribution {
    mean: Vec<f32>,
    /// Lower triangle L with L Lᵀ = 1e-9 Σ, row-major; none if that is not positive definite.
    factor: Option<Vec<f64>>,
}

impl Distribution {
    fn of(rows: &[f32], width: usize) -> Self {
        let (mean, count) = (mean(rows, width), rows.len() / width);
        let centred: Vec<f32> = rows
            .par_chunks_exact(width)
            .flat_map_iter(|row| row.iter().zip(&mean).map(|(value, mean)| value - mean))
            .collect();
        let mut covariance = vec![0f32; width * width];
        let centred = Matrix::new(&centred, count, width);
        matmul(centred.t(), centred, &mut covariance, false, Threads::All);
        let scaled: Vec<f64> = covariance.iter().map(|value| EPSILON * f64::from(*value) / count as f64).collect();
        Self { mean, factor: cholesky(scaled, width) }
    }

    /// `count` rows, row-major.
    fn draw(&self, count: usize, stream: &Stream) -> Vec<f32> {
        let width = self.mean.len();
        let row = |number: usize| {
            let noise: Vec<f64> = match &self.factor {
                Some(_) => (0..width).map(|at| stream.normal((number * width + at) as u64)).collect(),
                None => Vec::new(),
            };
            (0..width).map(move |at| match &self.factor {
                Some(factor) => {
                    let shift: f64 = factor[at * width..][..=at].iter().zip(&noise).map(|(l, z)| l * z).sum();
                    (f64::from(self.mean[at]) + shift) as f32
                }
                None => self.mean[at],
            })
        };
        (0..count).into_par_iter().flat_map_iter(row).collect()
    }
}

/// The Cholesky factor of a symmetric matrix of `width` rows; `None` if it is not positive definite, as far as the f32
/// values it was made of can tell.
fn cholesky(mut matrix: Vec<f64>, width: usize) -> Option<Vec<f64>> {
    for column in 0..width {
        let (above, below) = matrix.split_at_mut((column + 1) * width);
        let row = &mut above[column * width..];
        let pivot = row[column] - row[..column].iter().map(|value| value * value).sum::<f64>();
        let noise = row[column] * f64::from(f32::EPSILON);
        if pivot.is_nan() || pivot <= noise.max(0.0) {
            return None;
        }
        let diagonal = pivot.sqrt();
        row[column] = diagonal;
        let row = &*row;
        below.par_chunks_exact_mut(width).with_min_len(64).for_each(|other| {
            let dot: f64 = row[..column].iter().zip(&other[..column]).map(|(a, b)| a * b).sum();
            other[column] = (other[column] - dot) / diagonal;
        });
    }
    Some(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::collections::HashMap;
    use std::path::Path;

    fn data(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name)
    }

    /// Of transformers and numpy (`tests/data/resize.py`).
    fn golden() -> HashMap<String, candle_core::Tensor> {
        candle_core::safetensors::load(data("resize.safetensors"), &Device::Cpu).unwrap()
    }

    fn stream() -> Stream {
        Stream::new(1, Purpose::NewRows, 0)
    }

    #[test]
    fn with_a_singular_covariance_new_rows_are_the_mean_to_the_bit() {
        let golden = golden();
        for name in ["embed", "head"] {
            let (rows, resized) = (&golden[&format!("few.{name}")], &golden[&format!("few.{name}.resized")]);
            let rows = values(rows).unwrap().to_vec();
            let drawn = Distribution::of(&rows, 24).draw(4, &stream());
            assert_eq!([rows, drawn].concat(), values(resized).unwrap().to_vec(), "{name}");
        }
    }

    #[test]
    fn otherwise_they_are_drawn_from_the_distribution_of_transformers() {
        let golden = golden();
        let distribution = Distribution::of(&values(&golden["many"]).unwrap(), 8);
        let mean = values(&golden["many.mean"]).unwrap();
        assert!(distribution.mean.iter().zip(mean.iter()).all(|(a, b)| (a - b).abs() < 1e-8));
        let (factor, expected) = (distribution.factor.clone().unwrap(), values(&golden["many.factor"]).unwrap());
        for row in 0..8 {
            for column in 0..=row {
                let (a, b) = (factor[row * 8 + column], f64::from(expected[row * 8 + column]));
                assert!((a - b).abs() < 1e-10, "({row}, {column}): {a} and {b}");
            }
        }
        let (count, drawn) = (20_000, distribution.draw(20_000, &stream()));
        let covariance = |i: usize, j: usize| -> f64 {
            let shift = |at: usize, row: &[f32]| f64::from(row[at]) - f64::from(distribution.mean[at]);
            drawn.chunks_exact(8).map(|row| shift(i, row) * shift(j, row)).sum::<f64>() / f64::from(count)
        };
        for (i, j) in [(0, 0), (3, 3), (7, 7), (1, 0), (5, 2)] {
            let expected: f64 = (0..8.min(i.min(j) + 1)).map(|k| factor[i * 8 + k] * factor[j * 8 + k]).sum();
            let scale = expected.abs().max(2.5e-12);
            assert!(
                (covariance(i, j) - expected).abs() < 0.06 * scale,
                "({i}, {j}): {} and {expected}",
                covariance(i, j)
            );
        }
    }

    #[test]
    fn a_new_row_is_the_mean_of_its_old_pieces_to_the_bit() {
        let golden = golden();
        let mut model = Model::load(&data("fixtures/llama")).unwrap();
        let old = model.config().vocab_size;
        let before = model.parameters().to_vec();
        let listed: Vec<i64> = golden["pieces"].flatten_all().unwrap().to_vec1().unwrap();
        let pieces: Vec<Vec<u32>> =
            listed.chunks(7).map(|ids| ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect()).collect();
        let rows = old + pieces.len();
        let new = NewTokens { first: old, pieces, rows, untrained: old..rows };
        model.resize_vocabulary(&new, NewTokenInit::MeanOfPieces, 7).unwrap();
        assert_eq!((model.config().vocab_size, &model.config().json["vocab_size"]), (rows, &json!(rows)));
        for (parameter, before) in model.parameters().iter().zip(&before) {
            let (now, before) = (values(&parameter.tensor).unwrap(), values(&before.tensor).unwrap());
            assert_eq!(now[..before.len()], before[..], "{}", parameter.name);
            let golden = match parameter.name.as_str() {
                "model.embed_tokens.weight" => &golden["pieces.embed"],
                "lm_head.weight" => &golden["pieces.head"],
                _ => continue,
            };
            assert_eq!(now[before.len()..], values(golden).unwrap()[..], "{}", parameter.name);
        }
    }
}
