//! `--debug underflow_overflow`: where numbers first leave their range. A step whose loss or gradients are not finite
//! is computed again, output by output; since it is a function of (weights, step, blocks), it fails in the same place.

use tokenmill_shared::{Error, Result};

use super::Run;
use crate::data::StepBatches;
use crate::model::Magnitudes;

/// Outputs that are shown, as transformers' `DebugUnderflowOverflow` does.
const SHOWN: usize = 21;

impl Run {
    /// Shows the outputs of step `step` up to the first that is not finite; returns the error that names it.
    pub(super) fn find_overflow(&mut self, step: u64, batches: &StepBatches) -> Result<Error> {
        for (number, batch) in batches.micro_batches.iter().enumerate() {
            self.model.set_pass(step, number);
            let mut outputs = self.model.trace(batch)?;
            outputs.push(Magnitudes::of("loss", &[self.model.evaluate(batch)?.nll as f32]));
            if let Some(error) = show(step, &format!("micro-batch {number}"), &outputs) {
                return Ok(error);
            }
        }
        let mut gradients = Vec::new();
        let parameters = self.model.parameters();
        let look = |index: usize, gradient: &[f32]| {
            gradients.push(Magnitudes::of(format!("gradient of {}", parameters[index].name), gradient));
            Ok(())
        };
        self.model.gradients().for_each(look).map_err(|error| Error::config("gradients", error.to_string()))?;
        // The backward comes to the last parameters first.
        gradients.reverse();
        let nothing =
            || Error::Numeric { step, reason: "every output is finite when made again; report this".to_owned() };
        Ok(show(step, "backward", &gradients).unwrap_or_else(nothing))
    }
}

/// Prints what led to the first output that is not finite.
fn show(step: u64, pass: &str, outputs: &[Magnitudes]) -> Option<Error> {
    let at = outputs.iter().position(|output| !output.finite)?;
    eprintln!("step {step}, {pass}: smallest and largest magnitude of the last outputs");
    outputs[(at + 1).saturating_sub(SHOWN)..=at].iter().for_each(|output| eprintln!("{output}"));
    let reason = format!(
        "{pass}: {} is the first that is not finite, see above; lower --learning_rate, or multiply in more bits",
        outputs[at].name
    );
    Some(Error::Numeric { step, reason })
}
