//! The learning rate of every step, as `transformers/optimization.py` has it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// Down to 0 in a line.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// 1 throughout, without warm-up.
    Constant,
    /// Warm-up, then 1.
    ConstantWithWarmup,
}

/// A schedule over a whole run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub kind: Kind,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// All steps.
    pub total_steps: u64,
}

impl Schedule {
    /// The factor on the peak learning rate after `done` completed steps.
    pub fn factor(&self, done: u64) -> f64 {
        let (done, warmup, total) = (done as f64, self.warmup_steps as f64, self.total_steps as f64);
        if self.kind == Kind::Constant {
            return 1.0;
        }
        if done < warmup {
            return done / warmup.max(1.0);
        }
        let rest = (total - warmup).max(1.0);
        match self.kind {
            Kind::Constant | Kind::ConstantWithWarmup => 1.0,
            Kind::Linear => ((total - done) / rest).max(0.0),
            Kind::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * (done - warmup) / rest).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden vectors: `get_scheduler(name, optimizer, 2, 10)` of transformers, factors for steps 0 to 10.
    #[test]
    fn factors_equal_the_reference() {
        let golden: [(Kind, [f64; 11]); 4] = [
            (Kind::Linear, [0., 0.5, 1., 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.]),
            (Kind::Cosine, [0., 0.5, 1., 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806, 0.]),
            (Kind::Constant, [1.; 11]),
            (Kind::ConstantWithWarmup, [0., 0.5, 1., 1., 1., 1., 1., 1., 1., 1., 1.]),
        ];
        for (kind, expected) in golden {
            let schedule = Schedule { kind, warmup_steps: 2, total_steps: 10 };
            for (done, expected) in expected.into_iter().enumerate() {
                assert!((schedule.factor(done as u64) - expected).abs() < 5e-6, "{kind:?} {done}");
            }
        }
    }
}
