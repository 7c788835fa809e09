//! Going on from a checkpoint: ours, to the bit, or the Hugging Face Trainer's, as far as it goes.

use std::path::Path;

use serde_json::Value;
use tokenmill_shared::{Error, Result};

use super::Run;
use crate::checkpoint::{self, Counters, Saved, State, TrainerCheckpoint};
use crate::data::blocks_before;
use crate::optimizer::Optimizer;
use crate::plan::{ResultSettings, Steps};
use crate::training_set::Source;

/// Where a run begins.
#[derive(Debug, Default)]
pub(super) struct Begin {
    /// Steps done before.
    pub first: u64,
    pub counters: Counters,
    pub log_history: Vec<Value>,
}

impl Run {
    /// Loads the state of the checkpoint in `dir`, whose weights are those of the model already.
    pub(super) fn go_on_from(
        &mut self,
        dir: &Path,
        saved: Saved,
        settings: &ResultSettings,
        steps: &Steps,
        optimizer: &mut Optimizer,
    ) -> Result<Begin> {
        let step = match &saved {
            Saved::Ours(state) => {
                state.check_settings(settings)?;
                state.step
            }
            Saved::Trainer(state) => state.step,
        };
        if step > steps.total {
            let reason = format!(
                "{} is at step {step}, beyond the {} steps of this run; raise --max_steps or --num_train_epochs",
                dir.display(),
                steps.total
            );
            return Err(Error::config("--resume_from_checkpoint", reason));
        }
        let mut begin = match saved {
            Saved::Ours(state) => self.go_on_from_ours(dir, *state, optimizer)?,
            Saved::Trainer(state) => self.go_on_from_trainer(dir, state, settings, steps, optimizer)?,
        };
        if self.plan.arguments.ignore_data_skip && self.log.is_none() {
            let lag = &mut begin.counters.data_lag;
            *lag += (step - *lag) % steps.per_epoch;
        }
        eprintln!("going on from {} at step {step}", dir.display());
        Ok(begin)
    }

    fn go_on_from_ours(&mut self, dir: &Path, state: State, optimizer: &mut Optimizer) -> Result<Begin> {
        checkpoint::load_optimizer(dir, &self.model, optimizer)?;
        let overflowed = state.counters.loss_scale.map_or(0, |loss_scale| loss_scale.overflowed);
        optimizer.updates = state.step - state.counters.skipped - overflowed;
        if let (Some(adaptive), Some(course)) = (&mut self.adaptive, state.course) {
            adaptive.set_course(course);
        }
        self.best = state.best;
        self.position = state.position;
        self.left_out.extend(state.left_out);
        Ok(Begin { first: state.step, counters: state.counters, log_history: state.log_history })
    }

    /// Goes back to the newest whole checkpoint, weights and all, from step `from`, which is left out from now on.
    pub(super) fn roll_back(
        &mut self,
        from: u64,
        settings: &ResultSettings,
        steps: &Steps,
        optimizer: &mut Optimizer,
    ) -> Result<Begin> {
        self.left_out.insert(from);
        let newest = checkpoint::list(&self.plan.output_dir)?.into_iter().rev();
        let whole =
            newest.filter(|(step, _)| *step < from).find_map(|(_, dir)| Some((checkpoint::verify(&dir).ok()?, dir)));
        let Some((saved, dir)) = whole else {
            let reason =
                "there is no checkpoint to go back to; give a smaller --save_steps, or --nonfinite_action skip";
            return Err(Error::Numeric { step: from, reason: reason.to_owned() });
        };
        self.model = self.plan.open_resumed(&dir)?;
        self.plan.set_up(&mut self.model)?;
        *optimizer = Optimizer::new(&self.model, &self.plan.arguments)?;
        let begin = self.go_on_from(&dir, saved, settings, steps, optimizer)?;
        self.log_mut().go_back(begin.log_history.clone())?;
        Ok(begin)
    }

    /// What the Trainer does not save is said: its order of blocks above all.
    fn go_on_from_trainer(
        &mut self,
        dir: &Path,
        state: TrainerCheckpoint,
        settings: &ResultSettings,
        steps: &Steps,
        optimizer: &mut Optimizer,
    ) -> Result<Begin> {
        let step = state.step;
        if matches!(self.data.source, Source::Live(_)) {
            let reason = format!(
                "{} was saved by the Hugging Face Trainer, and does not say where in the text it stopped; go on without --streaming, or start from its weights with --model_name_or_path",
                dir.display()
            );
            return Err(Error::config("--resume_from_checkpoint", reason));
        }
        let say = |what: &str| eprintln!("{} was saved by the Hugging Face Trainer: {what}", dir.display());
        optimizer.updates = step;
        if checkpoint::has_optimizer(dir)? {
            for difference in checkpoint::load_optimizer(dir, &self.model, optimizer)? {
                say(&format!("its optimizer's {difference}, by this run's flags"));
            }
        } else {
            optimizer.updates = 0;
            say("it has no optimizer.pt, so the optimizer starts anew");
        }
        let next = self.plan.arguments.learning_rate * steps.schedule.factor(step);
        if let Some(theirs) = checkpoint::next_learning_rate(dir)?.filter(|theirs| differ(*theirs, next, 1e-6)) {
            say(&format!("its next learning rate was {theirs:.4e}, by this run's flags it is {next:.4e}"));
        }
        let epoch = if step == 0 { 0.0 } else { self.epoch_at(step, steps) };
        if differ(state.epoch, epoch, 1e-3) {
            say(&format!(
                "it is at epoch {:.3}, step {step} of this run is at {epoch:.3}: the blocks or the batch size differ, so some text is seen again or left out",
                state.epoch
            ));
        }
        if settings.random_order {
            say(
                "the order of its blocks is not known here, so this epoch's may come again or be left out; --train_sampling_strategy sequential goes on exactly",
            );
        }
        self.best = state.best();
        let tokens = blocks_before(settings, step) * self.data.block_size as u64;
        let counters = Counters { loss_sum: state.loss_sum(), tokens, ..Counters::default() };
        Ok(Begin { first: step, counters, log_history: state.log_history })
    }
}

fn differ(one: f64, other: f64, tolerance: f64) -> bool {
    (one - other).abs() > tolerance * one.abs().max(other.abs())
}
