//! Checkpoints of the Hugging Face Trainer: what a run needs of `trainer_state.json` to go on from one.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

use super::STATE_LIMIT;
use crate::train::Best;

/// What the Trainer remembers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TrainerCheckpoint {
    /// Optimizer steps done.
    #[serde(rename = "global_step")]
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Entries of the log.
    pub log_history: Vec<Value>,
    best_metric: Option<f64>,
    best_global_step: Option<u64>,
}

impl TrainerCheckpoint {
    /// Reads `trainer_state.json` in `dir`; `None` if there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("trainer_state.json");
        if storage::stat(&path)?.is_none() {
            return Ok(None);
        }
        let bytes = without_nan(storage::read_at_most(&path, STATE_LIMIT)?);
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::corrupt(&path, format!("is no state of the Trainer ({error}); use an older checkpoint"))
        })
    }

    /// The best evaluation so far, if the Trainer kept track of it.
    pub fn best(&self) -> Option<Best> {
        Some(Best { value: self.best_metric?, step: self.best_global_step? })
    }

    /// The sum of the losses of all steps: those between two entries of the log had its mean, and so are taken those
    /// after the last.
    pub fn loss_sum(&self) -> f64 {
        let (mut sum, mut logged, mut last) = (0.0, 0, 0.0);
        for entry in &self.log_history {
            let (Some(loss), Some(step)) = (entry["loss"].as_f64(), entry["step"].as_u64()) else { continue };
            sum += loss * step.saturating_sub(logged) as f64;
            (logged, last) = (step.max(logged), loss);
        }
        sum + last * self.step.saturating_sub(logged) as f64
    }
}

/// Python writes NaN and the infinities as words that JSON does not have; each becomes a null.
fn without_nan(mut bytes: Vec<u8>) -> Vec<u8> {
    let (mut at, mut in_text) = (0, false);
    while at < bytes.len() {
        let word = ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| bytes[at..].starts_with(word.as_bytes()));
        match (bytes[at], word) {
            (b'\\', _) if in_text => at += 1,
            (b'"', _) => in_text = !in_text,
            (_, Some(word)) if !in_text => {
                bytes.splice(at..at + word.len(), *b"null");
                at += 3;
            }
            _ => {}
        }
        at += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_between_logs_are_summed_and_nan_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(TrainerCheckpoint::read(dir.path()).unwrap(), None);
        let text = r#"{"global_step": 7, "epoch": 1.5, "best_metric": -Infinity, "best_global_step": null, "run": "NaN \" NaN",
            "log_history": [{"loss": 4.0, "step": 2}, {"eval_loss": NaN, "step": 2}, {"loss": 3.0, "step": 5}]}"#;
        storage::replace(&dir.path().join("trainer_state.json"), text.as_bytes()).unwrap();
        let state = TrainerCheckpoint::read(dir.path()).unwrap().unwrap();
        assert_eq!((state.step, state.best(), state.loss_sum()), (7, None, 2.0 * 4.0 + 3.0 * 3.0 + 2.0 * 3.0));
        assert_eq!(without_nan(br#"{"a\"NaN": NaN}"#.to_vec()), br#"{"a\"NaN": null}"#);
        storage::replace(&dir.path().join("trainer_state.json"), &text.as_bytes()[..90]).unwrap();
        assert!(TrainerCheckpoint::read(dir.path()).unwrap_err().to_string().contains("trainer_state.json"));
    }
}
