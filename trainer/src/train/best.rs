//! Which evaluation was the best so far, and by what.

use serde::{Deserialize, Serialize};
use tokenmill_shared::{Error, Result};

use crate::arguments::{SaveStrategy, Strategy, TrainerArguments};
use crate::evaluate::{EvaluationSet, Metrics, metric_name};
use crate::plan::Steps;

/// What is looked at, and which way.
#[derive(Debug, Clone, PartialEq)]
pub struct Criterion {
    /// Which set's, of several.
    set: usize,
    /// The name without `eval_` and the set's.
    metric: String,
    greater_is_better: bool,
}

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its value.
    pub value: f64,
    /// The step it was made at.
    pub step: u64,
}

impl Criterion {
    /// What `arguments` ask for; `None` if nothing depends on the best.
    ///
    /// # Errors
    /// `--load_best_model_at_end` without an evaluation at every save; a metric that none of `sets` has.
    pub fn new(arguments: &TrainerArguments, steps: &Steps, sets: &[EvaluationSet]) -> Result<Option<Self>> {
        let wanted = arguments.load_best_model_at_end
            || arguments.save_strategy == SaveStrategy::Best
            || arguments.metric_for_best_model.is_some()
            || arguments.lr_scheduler_type.is_adaptive();
        if !wanted {
            return Ok(None);
        }
        let flag = "--load_best_model_at_end";
        if arguments.load_best_model_at_end && arguments.save_strategy != SaveStrategy::Best {
            let same = match arguments.save_strategy {
                SaveStrategy::No => arguments.eval_strategy == Strategy::No,
                SaveStrategy::Steps => arguments.eval_strategy == Strategy::Steps,
                SaveStrategy::Epoch | SaveStrategy::Best => arguments.eval_strategy == Strategy::Epoch,
            };
            if !same || arguments.eval_strategy == Strategy::No {
                return Err(Error::config(flag, "needs --eval_strategy and --save_strategy to be the same"));
            }
            if let (Some(save), Some(evaluate)) = (steps.save_every, steps.evaluate_every)
                && !save.is_multiple_of(evaluate)
            {
                let reason = format!("needs --save_steps {save} to be a multiple of --eval_steps {evaluate}");
                return Err(Error::config(flag, reason));
            }
        }
        if arguments.save_strategy == SaveStrategy::Best && arguments.eval_strategy == Strategy::No {
            return Err(Error::config("--save_strategy best", "needs --eval_strategy steps or epoch"));
        }
        if sets.is_empty() {
            return Ok(None);
        }
        let name = arguments.metric_for_best_model.as_deref().unwrap_or("loss");
        let asked = if name.starts_with("eval_") { name.to_owned() } else { format!("eval_{name}") };
        let mut there = Vec::new();
        for (set, name) in sets.iter().map(|set| set.name.as_deref()).enumerate() {
            there.extend(Metrics::NAMES.map(|metric| (set, metric, metric_name(name, metric))));
        }
        let Some((set, metric, _)) = there.iter().find(|(.., name)| *name == asked) else {
            let there: Vec<&str> = there.iter().map(|(.., name)| name.trim_start_matches("eval_")).collect();
            let reason = format!("cannot be {name:?}; there are {}", there.join(", "));
            return Err(Error::config("--metric_for_best_model", reason));
        };
        let greater_is_better = arguments.greater_is_better.unwrap_or(*metric == "accuracy");
        Ok(Some(Self { set: *set, metric: (*metric).to_owned(), greater_is_better }))
    }

    /// What is looked at in `metrics`, those of each set.
    pub fn value(&self, metrics: &[Metrics]) -> f64 {
        metrics.get(self.set).and_then(|metrics| metrics.value(&self.metric)).unwrap_or(f64::NAN)
    }

    /// Whether `metrics`, of `step`, are better than `best`; if so they become it.
    pub fn improves(&self, best: &mut Option<Best>, metrics: &[Metrics], step: u64) -> bool {
        let value = self.value(metrics);
        let better =
            best.is_none_or(|best| if self.greater_is_better { value > best.value } else { value < best.value });
        if better {
            *best = Some(Best { value, step });
        }
        better
    }
}
