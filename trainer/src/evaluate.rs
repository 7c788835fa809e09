//! Evaluation: loss, perplexity, accuracy and bits per byte over validation blocks, of one set or of several with names.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tokenmill_shared::Result;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_shared::progress::{Progress, Unit};

use crate::data::{LossMean, read_batch};
use crate::model::Model;
use crate::service::Service;
use crate::training_set::Held;

/// The blocks of an evaluation.
#[derive(Debug)]
pub struct EvaluationSet {
    /// What its metrics are called by, if there are several sets.
    pub name: Option<String>,
    reader: Arc<dyn BlockReader>,
    /// Blocks that are used.
    blocks: u64,
    /// Bytes of text for each token that was read.
    bytes_per_token: f64,
}

impl EvaluationSet {
    /// The blocks of a split, of `block_size`, the first `limit` of them if that is given; `None` if there are none.
    ///
    /// # Errors
    /// Shards that are missing or damaged.
    pub fn open(
        name: Option<String>,
        dataset: &Dataset,
        split: Split,
        block_size: usize,
        limit: Option<u64>,
    ) -> Result<Option<Self>> {
        let reader = dataset.recut(split, block_size)?.filter(|reader| !reader.is_empty());
        Ok(reader.map(|reader| {
            let manifest = &dataset.manifest().splits[&split];
            let bytes_per_token = manifest.text_bytes as f64 / (manifest.ledger.read as f64).max(1.0);
            Self { name, blocks: reader.len().min(limit.unwrap_or(u64::MAX)), reader: reader.into(), bytes_per_token }
        }))
    }

    /// The validation blocks of a service; `None` if it has none.
    pub fn served(service: &Service, limit: Option<u64>) -> Option<Self> {
        let reader = service.reader(Split::Validation)?;
        let bytes_per_token = service.description.splits[&Split::Validation].bytes_per_token;
        let blocks = reader.len().min(limit.unwrap_or(u64::MAX));
        Some(Self { name: None, blocks, reader: Arc::new(reader), bytes_per_token })
    }

    /// Blocks that were set aside; `None` if there are none.
    pub fn held(held: Arc<Held>) -> Option<Self> {
        let (blocks, bytes_per_token) = (held.len(), held.bytes_per_token());
        (blocks > 0).then(|| Self { name: None, blocks, reader: held, bytes_per_token })
    }
}

/// What a metric of the set called `name` is called: `eval_loss`, `eval_wiki_loss`.
pub fn metric_name(name: Option<&str>, metric: &str) -> String {
    name.map_or_else(|| format!("eval_{metric}"), |name| format!("eval_{name}_{metric}"))
}

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

/// Evaluates `model` on `set`; losses are the means that `mean` says. With `document_mask` documents do not see each other.
pub fn evaluate(
    model: &mut Model,
    set: &EvaluationSet,
    batch_size: usize,
    mean: LossMean,
    document_mask: bool,
) -> Result<Metrics> {
    let began = Instant::now();
    let blocks = set.blocks;
    let progress = Progress::new("evaluating", Unit::Count, Some(blocks));
    let (mut loss, mut nll, mut tokens, mut labels, mut correct) = (0.0, 0.0, 0, 0, 0);
    let numbers: Vec<u64> = (0..blocks).collect();
    for batch in numbers.chunks(batch_size) {
        let batch = read_batch(set.reader.as_ref(), batch, document_mask)?;
        let found = model.evaluate(&batch)?;
        labels += batch.given_labels();
        nll += found.nll;
        loss += found.smoothed(model.label_smoothing.into());
        tokens += found.tokens;
        correct += found.correct;
        progress.add(batch.batch_size as u64);
    }
    // The bytes of the labels' text: the split's bytes, by the share of its tokens that are labels here.
    let bytes = set.bytes_per_token * tokens as f64;
    let divisor = if mean == LossMean::AllLabels { labels } else { tokens } as f64;
    Ok(Metrics {
        loss: loss / divisor,
        nll: nll / divisor,
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

    /// A metric by its name, one of [`NAMES`](Self::NAMES).
    pub fn value(&self, name: &str) -> Option<f64> {
        match name {
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

    /// The entry of `log_history` for the set called `name`, without epoch and step.
    pub fn log_entry(&self, name: Option<&str>) -> Map<String, Value> {
        let rounded = |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
        let mut figures = vec![
            ("accuracy", self.accuracy),
            ("bits_per_byte", self.bits_per_byte),
            ("loss", self.loss),
            ("runtime", rounded(self.runtime, 4)),
            ("samples_per_second", rounded(self.samples as f64 / self.runtime, 3)),
            ("steps_per_second", rounded(self.batches as f64 / self.runtime, 3)),
        ];
        if self.loss != self.nll {
            figures.push(("nll", self.nll));
        }
        figures.into_iter().map(|(metric, value)| (metric_name(name, metric), json!(value))).collect()
    }

    /// The entries of `eval_results.json` for the set called `name`, without epoch.
    pub fn results(&self, name: Option<&str>) -> Map<String, Value> {
        let mut results = self.log_entry(name);
        results.insert(metric_name(name, "samples"), self.samples.into());
        let perplexity = self.perplexity();
        let perplexity = if perplexity.is_finite() { json!(perplexity) } else { json!("inf") };
        // The scripts call it so, without `eval_`.
        let of_one = || "perplexity".to_owned();
        results.insert(name.map_or_else(of_one, |_| metric_name(name, "perplexity")), perplexity);
        results
    }
}
