//! Loss scaling for float16, as `torch.amp.GradScaler` has it.

use serde::{Deserialize, Serialize};

/// Updates without an overflow until the scale grows.
const GROWTH_INTERVAL: u64 = 2000;

/// What the loss is multiplied by so that small gradients do not vanish in float16, and how it came to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor now.
    pub scale: f64,
    /// Updates since it changed.
    pub good_steps: u64,
    /// Steps that updated nothing because a gradient overflowed. They do not advance the schedule.
    pub overflowed: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: 65_536.0, good_steps: 0, overflowed: 0 }
    }
}

impl LossScale {
    /// An update was made.
    pub fn updated(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            // Beyond what float32 holds it stays.
            if self.scale * 2.0 <= f64::from(f32::MAX) {
                self.scale *= 2.0;
            }
            self.good_steps = 0;
        }
    }

    /// A gradient was not finite: nothing was updated.
    pub fn overflowed(&mut self) {
        self.scale *= 0.5;
        self.good_steps = 0;
        self.overflowed += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values of torch (`tests/data/loss_scale.py`): the scale after runs of good steps and overflows.
    #[test]
    fn the_scale_after_every_run_of_steps_equals_the_reference() {
        let golden: Vec<(bool, u64, f64)> =
            serde_json::from_str(include_str!("../../../tests/data/loss_scale.json")).unwrap();
        assert!(golden.len() > 5);
        let mut scale = LossScale::default();
        for (good, times, expected) in golden {
            for _ in 0..times {
                if good { scale.updated() } else { scale.overflowed() }
            }
            assert_eq!(scale.scale, expected, "after {times} steps, {good}");
        }
    }
}
