//! The learning rate of every step, as `transformers/optimization.py` has it.

mod adaptive;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokenmill_shared::{Error, Result};

pub use adaptive::{Adaptive, Course};

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// Down to 0 in a line
    Linear,
    /// Down to 0 along half a cosine
    Cosine,
    /// Along a cosine that jumps back up num_cycles times
    CosineWithRestarts,
    /// Down to lr_end along a power
    Polynomial,
    /// 1 throughout, without warm-up
    Constant,
    /// Warm-up, then 1
    ConstantWithWarmup,
    /// By the inverse of the root of the step
    InverseSqrt,
    /// Down to min_lr or min_lr_rate along half a cosine
    CosineWithMinLr,
    /// The same with a warm-up that begins at warmup_lr_rate
    CosineWarmupWithMinLr,
    /// Warm-up, then 1, then down over num_decay_steps
    WarmupStableDecay,
    /// Down by a factor when evaluations no longer get better
    ReduceLrOnPlateau,
    /// Up while evaluations get better, down when they do not
    Greedy,
}

impl Kind {
    /// Whether it follows evaluations instead of being a function of the step.
    pub fn is_adaptive(self) -> bool {
        matches!(self, Self::ReduceLrOnPlateau | Self::Greedy)
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Every setting that `--lr_scheduler_kwargs` may hold, for one kind or another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    num_cycles: Option<f64>,
    power: Option<f64>,
    lr_end: Option<f64>,
    timescale: Option<f64>,
    min_lr: Option<f64>,
    min_lr_rate: Option<f64>,
    warmup_lr_rate: Option<f64>,
    num_decay_steps: Option<f64>,
    num_stable_steps: Option<f64>,
    warmup_type: Option<Curve>,
    decay_type: Option<Curve>,
    min_lr_ratio: Option<f64>,
}

/// The course of a stage of warmup_stable_decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Curve {
    Linear,
    Cosine,
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// A schedule over a whole run, a function of the step; for the kinds that follow evaluations see [`Adaptive`].
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    kind: Kind,
    settings: Settings,
    learning_rate: f64,
    pub(crate) warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// A schedule of `total_steps` steps whose peak is `learning_rate`; `kwargs` is `--lr_scheduler_kwargs`.
    ///
    /// # Errors
    /// A setting that the kind does not have, lacks or cannot take.
    pub fn new(
        kind: Kind,
        kwargs: &Map<String, Value>,
        learning_rate: f64,
        warmup_steps: u64,
        total_steps: u64,
    ) -> Result<Self> {
        if kind.is_adaptive() {
            let settings = Settings::default();
            return Ok(Self { kind, settings, learning_rate, warmup_steps: 0, total_steps });
        }
        let refuse = |reason: String| Error::config("--lr_scheduler_kwargs", reason);
        let (allowed, required): (&[&str], Option<&[&str]>) = match kind {
            Kind::Linear | Kind::Constant | Kind::ConstantWithWarmup | Kind::ReduceLrOnPlateau | Kind::Greedy => {
                (&[], None)
            }
            Kind::Cosine | Kind::CosineWithRestarts => (&["num_cycles"], None),
            Kind::Polynomial => (&["power", "lr_end"], None),
            Kind::InverseSqrt => (&["timescale"], None),
            Kind::CosineWithMinLr => (&["num_cycles", "min_lr", "min_lr_rate"], Some(&["min_lr", "min_lr_rate"])),
            Kind::CosineWarmupWithMinLr => {
                (&["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"], Some(&["min_lr", "min_lr_rate"]))
            }
            Kind::WarmupStableDecay => (
                &["num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"],
                Some(&["num_decay_steps"]),
            ),
        };
        refuse_unknown(kind, kwargs, allowed)?;
        let given = required.map(|names| names.iter().filter(|name| kwargs.contains_key(**name)).count());
        if given.is_some_and(|count| count != 1) {
            let names = required.unwrap_or_default().join(", ");
            return Err(refuse(format!("{} needs one of {names}", kind.name())));
        }
        let settings: Settings =
            serde_json::from_value(Value::Object(kwargs.clone())).map_err(|error| refuse(error.to_string()))?;
        let schedule = Self { kind, settings, learning_rate, warmup_steps, total_steps };
        if kind == Kind::Polynomial && schedule.lr_end() >= learning_rate {
            return Err(refuse(format!("lr_end {} must be below --learning_rate {learning_rate}", schedule.lr_end())));
        }
        Ok(schedule)
    }

    fn lr_end(&self) -> f64 {
        self.settings.lr_end.unwrap_or(1e-7)
    }

    /// The lowest factor of the kinds that end above 0.
    fn lowest(&self) -> f64 {
        let of_rate = self.settings.min_lr.map(|lowest| lowest / self.learning_rate);
        of_rate.or(self.settings.min_lr_rate).or(self.settings.min_lr_ratio).unwrap_or(0.0)
    }

    /// The factor on the peak learning rate after `done` completed steps.
    pub fn factor(&self, done: u64) -> f64 {
        let (done, warmup, total) = (done as f64, self.warmup_steps as f64, self.total_steps as f64);
        let settings = &self.settings;
        match self.kind {
            Kind::Constant | Kind::ReduceLrOnPlateau | Kind::Greedy => return 1.0,
            Kind::WarmupStableDecay => return self.stages(done),
            Kind::CosineWarmupWithMinLr if done < warmup => {
                return match settings.warmup_lr_rate {
                    None => (done + 1.0) / warmup.max(1.0),
                    Some(first) => first + (1.0 - first) * done / (warmup - 1.0).max(1.0),
                };
            }
            _ if done < warmup => return done / warmup.max(1.0),
            _ => {}
        }
        let progress = (done - warmup) / (total - warmup).max(1.0);
        match self.kind {
            Kind::Linear => (1.0 - progress).max(0.0),
            Kind::Cosine => half_cosine(progress, settings.num_cycles).max(0.0),
            Kind::CosineWithRestarts if progress >= 1.0 => 0.0,
            Kind::CosineWithRestarts => {
                let position = (settings.num_cycles.unwrap_or(1.0) * progress) % 1.0;
                (0.5 * (1.0 + (std::f64::consts::PI * position).cos())).max(0.0)
            }
            Kind::Polynomial => {
                let end = self.lr_end() / self.learning_rate;
                let left = if done > total { 0.0 } else { 1.0 - (done - warmup) / (total - warmup) };
                (1.0 - end) * left.powf(settings.power.unwrap_or(1.0)) + end
            }
            Kind::InverseSqrt => {
                let timescale = settings.timescale.unwrap_or(if warmup > 0.0 { warmup } else { 10_000.0 });
                ((done + timescale - warmup) / timescale).sqrt().recip()
            }
            Kind::CosineWithMinLr => self.above_lowest(half_cosine(progress, settings.num_cycles)).max(0.0),
            Kind::CosineWarmupWithMinLr => {
                let progress = (done - warmup + 1.0) / (total - warmup).max(1.0);
                self.above_lowest(half_cosine(progress, settings.num_cycles)).max(0.0)
            }
            Kind::ConstantWithWarmup => 1.0,
            Kind::Constant | Kind::WarmupStableDecay | Kind::ReduceLrOnPlateau | Kind::Greedy => {
                unreachable!("returned above")
            }
        }
    }

    fn above_lowest(&self, factor: f64) -> f64 {
        factor * (1.0 - self.lowest()) + self.lowest()
    }

    fn stages(&self, done: f64) -> f64 {
        let (warmup, total, settings) = (self.warmup_steps as f64, self.total_steps as f64, &self.settings);
        let decay = settings.num_decay_steps.unwrap_or(0.0);
        let stable = settings.num_stable_steps.unwrap_or(total - warmup - decay);
        if done < warmup {
            let progress = done / warmup.max(1.0);
            let factor = match settings.warmup_type.unwrap_or(Curve::Linear) {
                Curve::Linear => progress,
                Curve::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * progress).cos()),
                Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            };
            return self.above_lowest(factor).max(0.0);
        }
        if done < warmup + stable {
            return 1.0;
        }
        if done >= warmup + stable + decay {
            return self.lowest();
        }
        let progress = (done - warmup - stable) / decay.max(1.0);
        let factor = match settings.decay_type.unwrap_or(Curve::Cosine) {
            Curve::Linear => 1.0 - progress,
            Curve::Cosine => half_cosine(progress, settings.num_cycles),
            Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
        };
        self.above_lowest(factor).max(0.0)
    }
}

fn refuse_unknown(kind: Kind, kwargs: &Map<String, Value>, allowed: &[&str]) -> Result<()> {
    let Some(unknown) = kwargs.keys().find(|key| !allowed.contains(&key.as_str())) else { return Ok(()) };
    let has = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    Err(Error::config("--lr_scheduler_kwargs", format!("{} has no setting {unknown}; it has: {has}", kind.name())))
}

/// ½(1 + cos 2πcp); with the default c of ½ it goes from 1 to 0 once.
fn half_cosine(progress: f64, cycles: Option<f64>) -> f64 {
    0.5 * (1.0 + (2.0 * std::f64::consts::PI * cycles.unwrap_or(0.5) * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schedule(kind: &str, kwargs: &Value, warmup: u64, total: u64) -> Result<Schedule> {
        Schedule::new(Kind::from_str(kind, false).unwrap(), kwargs.as_object().unwrap(), 1e-3, warmup, total)
    }

    /// Golden vectors of transformers 5.23 (`tests/data/schedules.py`): peak 1e-3, factors of steps 0 to 12.
    #[test]
    fn factors_equal_the_reference() {
        let golden: Vec<Value> = serde_json::from_str(include_str!("../../tests/data/schedules.json")).unwrap();
        let mut kinds: Vec<_> = golden.iter().map(|case| case["kind"].as_str().unwrap()).collect();
        for case in &golden {
            let number = |key: &str| case[key].as_u64().unwrap();
            let schedule =
                schedule(case["kind"].as_str().unwrap(), &case["kwargs"], number("warmup"), number("total")).unwrap();
            for (done, expected) in case["factors"].as_array().unwrap().iter().enumerate() {
                let (found, expected) = (schedule.factor(done as u64), expected.as_f64().unwrap());
                assert!((found - expected).abs() < 1e-12, "{case}: step {done} has {found}, not {expected}");
            }
        }
        kinds.dedup();
        let of_the_step = Kind::value_variants().iter().filter(|kind| !kind.is_adaptive());
        assert_eq!(kinds.len(), of_the_step.count(), "every kind has a golden vector");
    }

    #[test]
    fn settings_of_another_kind_are_refused_by_name() {
        let refused = |kind, kwargs| schedule(kind, &kwargs, 2, 10).unwrap_err().to_string();
        assert!(refused("linear", json!({"num_cycles": 2})).contains("num_cycles"));
        assert!(refused("cosine_with_min_lr", json!({})).contains("min_lr, min_lr_rate"));
        assert!(refused("cosine_with_min_lr", json!({"min_lr": 1e-5, "min_lr_rate": 0.1})).contains("needs one of"));
        assert!(refused("polynomial", json!({"lr_end": 1.0})).contains("below --learning_rate"));
        assert!(refused("warmup_stable_decay", json!({"num_decay_steps": 2, "decay_type": "x"})).contains('x'));
    }
}
