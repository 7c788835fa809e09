//! One optimizer step: forward and backward over its micro-batches, checks, one update.

use tokenmill_shared::dataset::BlockReader;
use tokenmill_shared::{Error, Result};

use super::{Run, documents};
use crate::arguments::{Debug, NonfiniteAction};
use crate::checkpoint::Counters;
use crate::data::StepBatches;
use crate::optimizer::Optimizer;
use crate::plan::Steps;
use crate::schedule::Adaptive;
use crate::training_set::Source;

/// So many steps in a row that cannot be used stop the run, and so many that would have to be left out.
const SKIPPED_LIMIT: u64 = 10;

/// What to do about it.
const REMEDY: &str =
    "go back to a checkpoint, lower --learning_rate, or look at these blocks with `preprocess inspect`";

/// What became of a step.
pub(super) enum Made {
    /// It was made, or passed over.
    Step(StepLoss),
    /// The run must go back to a checkpoint.
    Nothing,
}

/// What one step found.
pub(super) struct StepLoss {
    /// Mean over the labels of what is minimised.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub norm: f64,
    /// The learning rate it was made with.
    pub learning_rate: f64,
}

impl Run {
    /// Makes step `step` and counts it. A step whose loss or gradients are not finite updates nothing.
    pub(super) fn train_step(
        &mut self,
        optimizer: &mut Optimizer,
        batches: &StepBatches,
        step: u64,
        steps: &Steps,
        counters: &mut Counters,
    ) -> Result<Made> {
        if self.left_out.contains(&step) {
            counters.skipped += 1;
            eprintln!("step {step} is left out");
            let loss = counters.loss_since_log / counters.steps_since_log.max(1) as f64;
            count(counters, batches, loss);
            return Ok(Made::Step(StepLoss {
                loss,
                norm: 0.0,
                learning_rate: self.learning_rate(steps, step - 1, counters),
            }));
        }
        let scale = counters.loss_scale.map_or(1.0, |loss_scale| loss_scale.scale);
        let loss = self.forward_backward(step, batches, scale)?;
        let norm = self.model.gradient_norm()? / scale;
        let learning_rate = self.learning_rate(steps, step - 1, counters);
        if loss.is_finite() && norm.is_finite() {
            if optimizer.updates == 0 {
                self.model.check_gradients(step)?;
            }
            optimizer.update(&mut self.model, learning_rate, norm, scale.recip())?;
            counters.skipped_in_a_row = 0;
            if let Some(loss_scale) = &mut counters.loss_scale {
                loss_scale.updated();
            }
        } else if let Some(loss_scale) = counters.loss_scale.as_mut().filter(|_| loss.is_finite() && scale > 1.0) {
            loss_scale.overflowed();
            eprintln!("step {step}: a gradient overflowed float16; the loss is now scaled by {}", loss_scale.scale);
        } else {
            let found = self.describe(loss, norm, batches)?;
            if self.plan.arguments.debug.contains(&Debug::UnderflowOverflow) {
                eprintln!("step {step}: {found}");
                return Err(self.find_overflow(step, batches)?);
            }
            if self.plan.arguments.nonfinite_action == NonfiniteAction::Rollback {
                return self.must_go_back(step, &found);
            }
            self.skip_or_stop(step, &found, counters)?;
        }
        let counted = if loss.is_finite() || !self.plan.arguments.logging_nan_inf_filter {
            loss
        } else {
            counters.loss_since_log / counters.steps_since_log.max(1) as f64
        };
        count(counters, batches, counted);
        Ok(Made::Step(StepLoss { loss, norm, learning_rate }))
    }

    /// The learning rate after `done` steps.
    pub(super) fn learning_rate(&self, steps: &Steps, done: u64, counters: &Counters) -> f64 {
        let overflowed = counters.loss_scale.map_or(0, |loss_scale| loss_scale.overflowed);
        let of_the_step = || self.plan.arguments.learning_rate * steps.schedule.factor(done - overflowed);
        self.adaptive.as_ref().map_or_else(of_the_step, Adaptive::learning_rate)
    }

    /// What was found in a step that cannot be used, and in which documents.
    fn describe(&self, loss: f64, norm: f64, batches: &StepBatches) -> Result<String> {
        let of_reader = |reader: &dyn BlockReader, blocks: &[u64]| {
            let documents = documents::text(&documents::of_blocks(reader, blocks)?);
            Ok(format!("{blocks:?} ({documents})"))
        };
        let blocks = match (&batches.live, &self.data.source) {
            (Some((_, documents)), _) => format!("{:?} ({})", batches.blocks, documents::text(documents)),
            (None, Source::Mixed(mixed)) => mixed.by_dataset(&batches.blocks, of_reader)?.join(" and "),
            (None, _) => of_reader(self.training.as_deref().expect("open while training"), &batches.blocks)?,
        };
        Ok(format!(
            "the loss is {loss} and the gradient norm {norm}, on training blocks {blocks}; this step updated nothing"
        ))
    }

    fn must_go_back(&self, step: u64, found: &str) -> Result<Made> {
        if self.left_out.len() as u64 >= SKIPPED_LIMIT {
            let reason = format!("{found}, and {SKIPPED_LIMIT} steps are left out already: {REMEDY}");
            return Err(Error::Numeric { step, reason });
        }
        eprintln!("step {step}: {found}; going back to a checkpoint, from where on step {step} is left out");
        Ok(Made::Nothing)
    }

    fn skip_or_stop(&self, step: u64, found: &str, counters: &mut Counters) -> Result<()> {
        counters.skipped += 1;
        counters.skipped_in_a_row += 1;
        if self.plan.arguments.nonfinite_action == NonfiniteAction::Stop {
            return Err(Error::Numeric { step, reason: format!("{found}: {REMEDY}") });
        }
        if counters.skipped_in_a_row >= SKIPPED_LIMIT {
            let reason = format!("{found}, as the {} before it: {REMEDY}", SKIPPED_LIMIT - 1);
            return Err(Error::Numeric { step, reason });
        }
        eprintln!("step {step}: {found}");
        Ok(())
    }

    /// Gradients of `scale` times the loss of the step; returns the loss.
    fn forward_backward(&mut self, step: u64, batches: &StepBatches, scale: f64) -> Result<f64> {
        self.model.clear_gradients();
        let recompute = self.plan.arguments.gradient_checkpointing;
        let divisors = batches.divisors(self.plan.loss_mean());
        let mut sum = 0.0;
        for (number, (batch, divisor)) in batches.micro_batches.iter().zip(divisors).enumerate() {
            self.model.set_pass(step, number);
            let loss = self.model.forward_backward(batch, (scale / divisor) as f32, recompute)?;
            sum += loss.smoothed(self.model.label_smoothing.into()) / divisor;
        }
        Ok(sum)
    }
}

/// Counts a step whose loss is `loss`.
fn count(counters: &mut Counters, batches: &StepBatches, loss: f64) {
    counters.loss_sum += loss;
    counters.loss_since_log += loss;
    counters.steps_since_log += 1;
    counters.tokens += batches.input_tokens();
    counters.tokens_without_padding += batches.input_tokens_without_padding();
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokenmill_shared::config::DataArguments;
    use tokenmill_shared::storage;

    use crate::arguments::TrainerArguments;
    use crate::model::dropped_gradient;
    use crate::train::run;

    const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 1024, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}"#;

    #[test]
    fn a_lost_gradient_stops_the_run_before_anything_is_updated() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        storage::create_dir_all(&path("text")).unwrap();
        storage::replace(&path("text/a.txt"), "the mill grinds words\n".repeat(20).as_bytes()).unwrap();
        storage::replace(&path("config.json"), CONFIG.as_bytes()).unwrap();
        let arguments = |output: &str| TrainerArguments {
            use_peft: false,
            init_from_config: Some(path("config.json")),
            tokenizer_name_or_path: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tokenizers/bytes")),
            data: DataArguments {
                train_file_dir: Some(path("text")),
                cache_dir: Some(path("cache")),
                validation_split_percentage: 0.0,
                block_size: Some(8),
                ..DataArguments::default()
            },
            output_dir: Some(path(output)),
            do_train: true,
            max_steps: 2,
            ..TrainerArguments::default()
        };
        for name in ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"] {
            dropped_gradient::set(Some(name));
            let ended = run(arguments("out"));
            dropped_gradient::set(None);
            let error = ended.unwrap_err();
            assert_eq!(error.exit_code(), 1);
            let said = error.to_string();
            assert!(said.contains("step 1") && said.contains(name) && said.contains("nothing was updated"), "{said}");
            assert!(storage::stat(&path("out/model.safetensors")).unwrap().is_none());
        }
        run(arguments("whole")).unwrap();
    }
}
