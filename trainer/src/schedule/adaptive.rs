//! Schedules that follow an evaluation: reduce_lr_on_plateau as `torch.optim.lr_scheduler.ReduceLROnPlateau` has it,
//! greedy as `transformers.optimization.GreedyLR` has it (arXiv 2512.14527). Neither warms up.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenmill_shared::{Error, Result};

use super::{Kind, refuse_unknown};

/// Whether less or more of the metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Min,
    Max,
}

/// Whether `threshold` is a share of the best value or an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ThresholdMode {
    Rel,
    Abs,
}

/// `--lr_scheduler_kwargs`; those that only greedy has are absent for the other.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Settings {
    mode: Mode,
    factor: f64,
    patience: u64,
    threshold: f64,
    threshold_mode: ThresholdMode,
    cooldown: u64,
    min_lr: f64,
    eps: f64,
    #[serde(default)]
    warmup: u64,
    #[serde(default)]
    max_lr: f64,
    #[serde(default)]
    smooth: bool,
    #[serde(default)]
    window_size: usize,
    #[serde(default)]
    reset_start: u64,
}

/// Where such a schedule stands; part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The learning rate now.
    learning_rate: f64,
    /// The best value so far.
    best: Option<f64>,
    /// Evaluations in a row that were not better, and that were.
    bad: u64,
    good: u64,
    /// Evaluations still to be passed over after going down, and after going up.
    cooldown: u64,
    warmup: u64,
    /// Reductions at the lowest rate until the start is gone back to.
    until_reset: u64,
    /// The values that are averaged, oldest first, and their sum.
    window: Vec<f64>,
    window_sum: f64,
}

/// A learning rate that depends on the evaluations so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Adaptive {
    greedy: bool,
    settings: Settings,
    initial: f64,
    course: Course,
}

impl Adaptive {
    /// The schedule of `kind`, beginning at `learning_rate`; `None` if `kind` is a function of the step.
    ///
    /// # Errors
    /// A setting that the kind does not have or cannot take.
    pub fn new(kind: Kind, kwargs: &Map<String, Value>, learning_rate: f64) -> Result<Option<Self>> {
        let defaults = match kind {
            Kind::ReduceLrOnPlateau => json!({
                "mode": "min", "factor": 0.1, "patience": 10, "threshold": 1e-4, "threshold_mode": "rel",
                "cooldown": 0, "min_lr": 0.0, "eps": 1e-8,
            }),
            Kind::Greedy => json!({
                "mode": "min", "factor": 0.95, "patience": 10, "threshold": 1e-6, "threshold_mode": "abs",
                "cooldown": 0, "warmup": 0, "min_lr": 1e-3, "max_lr": 1.0, "eps": 1e-8, "smooth": false,
                "window_size": 50, "reset_start": 500,
            }),
            _ => return Ok(None),
        };
        let mut all = defaults.as_object().cloned().unwrap_or_default();
        refuse_unknown(kind, kwargs, &all.keys().map(String::as_str).collect::<Vec<_>>())?;
        all.extend(kwargs.clone());
        let refuse = |reason: String| Error::config("--lr_scheduler_kwargs", reason);
        let settings: Settings =
            serde_json::from_value(Value::Object(all)).map_err(|error| refuse(error.to_string()))?;
        if !(settings.factor > 0.0 && settings.factor < 1.0) {
            return Err(refuse(format!("factor must be between 0 and 1, not {}", settings.factor)));
        }
        let course = Course::start(learning_rate, settings.reset_start);
        Ok(Some(Self { greedy: kind == Kind::Greedy, settings, initial: learning_rate, course }))
    }

    /// The learning rate now.
    pub fn learning_rate(&self) -> f64 {
        self.course.learning_rate
    }

    /// Where the schedule stands.
    pub fn course(&self) -> &Course {
        &self.course
    }

    /// Goes on from where another stood.
    pub fn set_course(&mut self, course: Course) {
        self.course = course;
    }

    /// An evaluation found `metric`.
    pub fn step(&mut self, metric: f64) {
        if self.greedy { self.step_greedy(metric) } else { self.step_plateau(metric) }
    }

    fn step_plateau(&mut self, metric: f64) {
        let better = self.is_better(metric);
        let (settings, course) = (&self.settings, &mut self.course);
        if better {
            course.best = Some(metric);
        }
        course.bad = if better { 0 } else { course.bad + 1 };
        if course.cooldown > 0 {
            course.cooldown -= 1;
            course.bad = 0;
        }
        if course.bad > settings.patience {
            course.lower(settings);
            course.cooldown = settings.cooldown;
            course.bad = 0;
        }
    }

    fn step_greedy(&mut self, metric: f64) {
        let metric = if self.settings.smooth { self.course.average(metric, self.settings.window_size) } else { metric };
        let better = self.is_better(metric);
        let (settings, course) = (&self.settings, &mut self.course);
        if course.cooldown > 0 || course.warmup > 0 {
            let counter = if course.cooldown > 0 { &mut course.cooldown } else { &mut course.warmup };
            *counter -= 1;
            (course.bad, course.good) = (0, 0);
            return;
        }
        if better {
            course.best = Some(metric);
            (course.bad, course.good) = (0, course.good + 1);
        } else {
            (course.bad, course.good) = (course.bad + 1, 0);
        }
        if course.good > settings.patience {
            let higher = (course.learning_rate / settings.factor).min(settings.max_lr);
            if higher - course.learning_rate > settings.eps {
                course.learning_rate = higher;
            }
            (course.until_reset, course.warmup, course.good) = (settings.reset_start, settings.warmup, 0);
        } else if course.bad > settings.patience {
            course.lower(settings);
            course.cooldown = settings.cooldown;
            if course.learning_rate <= settings.min_lr {
                course.until_reset = course.until_reset.saturating_sub(1);
                if course.until_reset == 0 {
                    *course = Course::start(self.initial, settings.reset_start);
                    // The reference sets the cooldown after going back to the start.
                    course.cooldown = settings.cooldown;
                }
            }
            course.bad = 0;
        }
    }

    fn is_better(&self, metric: f64) -> bool {
        let Some(best) = self.course.best else { return metric.is_finite() };
        let threshold = self.settings.threshold;
        match (self.settings.mode, self.settings.threshold_mode) {
            (Mode::Min, ThresholdMode::Rel) => metric < best * (1.0 - threshold),
            (Mode::Min, ThresholdMode::Abs) => metric < best - threshold,
            (Mode::Max, ThresholdMode::Rel) => metric > best * (1.0 + threshold),
            (Mode::Max, ThresholdMode::Abs) => metric > best + threshold,
        }
    }
}

impl Course {
    fn start(learning_rate: f64, reset_start: u64) -> Self {
        Self {
            learning_rate,
            best: None,
            bad: 0,
            good: 0,
            cooldown: 0,
            warmup: 0,
            until_reset: reset_start,
            window: Vec::new(),
            window_sum: 0.0,
        }
    }

    fn lower(&mut self, settings: &Settings) {
        let lower = (self.learning_rate * settings.factor).max(settings.min_lr);
        if self.learning_rate - lower > settings.eps {
            self.learning_rate = lower;
        }
    }

    /// The mean of the last `size` values, `value` included.
    fn average(&mut self, value: f64, size: usize) -> f64 {
        self.window.push(value);
        self.window_sum += value;
        if self.window.len() > size {
            self.window_sum -= self.window.remove(0);
        }
        self.window_sum / self.window.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    fn adaptive(kind: &str, kwargs: &Value) -> Result<Option<Adaptive>> {
        Adaptive::new(Kind::from_str(kind, false).unwrap(), kwargs.as_object().unwrap(), 1e-2)
    }

    /// Golden values of torch and transformers 5.23 (`tests/data/adaptive_schedules.py`): the rate after each metric.
    #[test]
    fn rates_after_every_evaluation_equal_the_reference() {
        let golden: Vec<Value> =
            serde_json::from_str(include_str!("../../../tests/data/adaptive_schedules.json")).unwrap();
        let mut kinds: Vec<_> = golden.iter().map(|case| case["kind"].as_str().unwrap()).collect();
        for case in &golden {
            let mut schedule = adaptive(case["kind"].as_str().unwrap(), &case["kwargs"]).unwrap().unwrap();
            let steps = case["metrics"].as_array().unwrap().iter().zip(case["rates"].as_array().unwrap());
            for (at, (metric, rate)) in steps.enumerate() {
                // What a checkpoint keeps is all there is.
                let saved = serde_json::to_string(schedule.course()).unwrap();
                schedule.set_course(Course::start(0.5, 1));
                schedule.set_course(serde_json::from_str(&saved).unwrap());
                schedule.step(metric.as_f64().unwrap());
                let (found, expected) = (schedule.learning_rate(), rate.as_f64().unwrap());
                assert!((found - expected).abs() < 1e-15, "{}: {at}: {found}, not {expected}", case["kwargs"]);
            }
        }
        kinds.dedup();
        assert_eq!(kinds, ["reduce_lr_on_plateau", "greedy"]);
    }

    #[test]
    fn settings_are_checked_by_name() {
        let refused = |kind, kwargs| adaptive(kind, &kwargs).unwrap_err().to_string();
        assert!(refused("reduce_lr_on_plateau", json!({"window_size": 3})).contains("window_size"));
        assert!(refused("greedy", json!({"factor": 1.5})).contains("factor"));
        assert!(refused("greedy", json!({"mode": "up"})).contains("up"));
        assert!(adaptive("linear", &json!({})).unwrap().is_none());
    }
}
