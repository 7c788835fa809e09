//! Evaluation: loss, perplexity, accuracy and bits per byte over the validation blocks.

use std::time::Instant;

use serde_json::{Map, Value, json};
use tokenmill_shared::Result;
use tokenmill_shared::dataset::{Manifest, Split, SplitReader};
use tokenmill_shared::progress::{Progress, Unit};

use crate::data::read_batch;
use crate::model::Model;

/// What an evaluation found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Metrics {
    /// What training minimises: mean −log p of a label, smoothed if label smoothing is on.
    pub loss: f64,
    /// Mean −log p of a label.
    pub nll: f64,
    /// Share of labels that were the most probable token.
    pub accuracy: f64,
    /// Loss in bits for each byte of the text the labels stand for.
    pub bits_per_byte: f64,
    /// Wall time in seconds.
    pub runtime: f64,
    /// Blocks.
    pub samples: u64,
    /// Batches.
    pub batches: u64,
}

/// Evaluates `model` on the first `blocks` blocks.
pub fn evaluate(
    model: &mut Model,
    reader: &SplitReader,
    manifest: &Manifest,
    blocks: u64,
    batch_size: usize,
) -> Result<Metrics> {
    let began = Instant::now();
    let progress = Progress::new("evaluating", Unit::Count, Some(blocks));
    let (mut loss, mut nll, mut tokens, mut correct) = (0.0, 0.0, 0, 0);
    let numbers: Vec<u64> = (0..blocks).collect();
    for batch in numbers.chunks(batch_size) {
        let found = model.evaluate(&read_batch(reader, batch)?)?;
        nll += found.nll;
        loss += found.smoothed(model.label_smoothing.into());
        tokens += found.tokens;
        correct += found.correct;
        progress.add(batch.len() as u64);
    }
    let split = &manifest.splits[&Split::Validation];
    // The bytes of the labels' text: the split's bytes, by the share of its tokens that are labels here.
    let bytes = split.text_bytes as f64 * tokens as f64 / (split.ledger.read as f64).max(1.0);
    Ok(Metrics {
        loss: loss / tokens as f64,
        nll: nll / tokens as f64,
        accuracy: correct as f64 / tokens as f64,
        bits_per_byte: nll / std::f64::consts::LN_2 / bytes,
        runtime: began.elapsed().as_secs_f64(),
        samples: blocks,
        batches: blocks.div_ceil(batch_size as u64),
    })
}

impl Metrics {
    /// What [`value`](Self::value) knows.
    pub const NAMES: [&str; 5] = ["loss", "nll", "perplexity", "accuracy", "bits_per_byte"];

    /// A metric by its name with `eval_`.
    pub fn value(&self, name: &str) -> Option<f64> {
        match name.strip_prefix("eval_")? {
            "loss" => Some(self.loss),
            "nll" => Some(self.nll),
            "perplexity" => Some(self.perplexity()),
            "accuracy" => Some(self.accuracy),
            "bits_per_byte" => Some(self.bits_per_byte),
            _ => None,
        }
    }

    /// e to the mean −log p, infinite where that overflows.
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }

    /// The entry of `log_history`, without epoch and step.
    pub fn log_entry(&self) -> Map<String, Value> {
        let rounded = |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
        let entry = json!({
            "eval_accuracy": self.accuracy,
            "eval_bits_per_byte": self.bits_per_byte,
            "eval_loss": self.loss,
            "eval_runtime": rounded(self.runtime, 4),
            "eval_samples_per_second": rounded(self.samples as f64 / self.runtime, 3),
            "eval_steps_per_second": rounded(self.batches as f64 / self.runtime, 3),
        });
        let mut entry = entry.as_object().cloned().unwrap_or_default();
        if self.loss != self.nll {
            entry.insert("eval_nll".to_owned(), json!(self.nll));
        }
        entry
    }

    /// The entries of `eval_results.json`, without epoch.
    pub fn results(&self) -> Map<String, Value> {
        let mut results = self.log_entry();
        results.insert("eval_samples".to_owned(), self.samples.into());
        let perplexity = self.perplexity();
        let perplexity = if perplexity.is_finite() { json!(perplexity) } else { json!("inf") };
        results.insert("perplexity".to_owned(), perplexity);
        results
    }
}
