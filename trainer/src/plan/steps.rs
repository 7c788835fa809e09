//! How many steps there are, what happens at which, and what a step's loss is the mean over.

use tokenmill_shared::config::Compat;
use tokenmill_shared::{Error, Result};

use super::Plan;
use crate::arguments::{SaveStrategy, Strategy};
use crate::data::LossMean;
use crate::schedule::Schedule;

/// Step counts and intervals.
#[derive(Debug, Clone)]
pub struct Steps {
    /// Micro-batches in an epoch.
    pub micro_batches_per_epoch: u64,
    /// Optimizer steps in an epoch; the last may have fewer micro-batches.
    pub per_epoch: u64,
    /// Optimizer steps in the run.
    pub total: u64,
    /// The learning rate's course.
    pub schedule: Schedule,
    /// Steps between logs.
    pub log_every: Option<u64>,
    /// Steps between evaluations.
    pub evaluate_every: Option<u64>,
    /// Steps between checkpoints.
    pub save_every: Option<u64>,
}

impl Plan {
    /// The steps of a run over `blocks` training blocks; without their number an epoch is the whole run, as the Trainer
    /// has it.
    ///
    /// # Errors
    /// An interval that cannot be; epochs whose length is not known.
    pub fn steps(&self, blocks: Option<u64>) -> Result<Steps> {
        let arguments = &self.arguments;
        let accumulation = arguments.gradient_accumulation_steps as u64;
        if blocks.is_none() {
            self.refuse_unknown_epochs()?;
        }
        let whole_run = u64::try_from(arguments.max_steps).unwrap_or(0) * accumulation;
        let micro_batches = blocks.map_or(whole_run, |blocks| {
            self.blocks_per_epoch(blocks).div_ceil(arguments.per_device_train_batch_size as u64)
        });
        let per_epoch = micro_batches.div_ceil(accumulation);
        let total = match u64::try_from(arguments.max_steps) {
            Ok(steps) if steps > 0 => steps,
            _ => (arguments.num_train_epochs * per_epoch as f64).ceil() as u64,
        };
        let interval = |flag: &str, value: f64, strategy: Strategy| -> Result<Option<u64>> {
            match strategy {
                Strategy::No => Ok(None),
                Strategy::Epoch => Ok(Some(per_epoch)),
                Strategy::Steps if value.is_finite() && value > 0.0 => {
                    Ok(Some(if value < 1.0 { (value * total as f64).ceil() } else { value.floor() } as u64))
                }
                Strategy::Steps => Err(Error::config(flag, format!("cannot be {value} when the strategy is steps"))),
            }
        };
        let warmup_steps = match arguments.warmup_steps {
            0.0 => (arguments.warmup_ratio * total as f64).ceil(),
            share if share < 1.0 => (share * total as f64).ceil(),
            steps => steps.floor(),
        };
        Ok(Steps {
            micro_batches_per_epoch: micro_batches,
            per_epoch,
            total,
            schedule: Schedule::new(
                arguments.lr_scheduler_type,
                &arguments.lr_scheduler_kwargs,
                arguments.learning_rate,
                warmup_steps as u64,
                total,
            )?,
            log_every: interval("--logging_steps", arguments.logging_steps, arguments.logging_strategy)?,
            evaluate_every: interval(
                "--eval_steps",
                arguments.eval_steps.unwrap_or(arguments.logging_steps),
                arguments.eval_strategy,
            )?,
            save_every: match arguments.save_strategy {
                SaveStrategy::No | SaveStrategy::Best => None,
                SaveStrategy::Steps => interval("--save_steps", arguments.save_steps, Strategy::Steps)?,
                SaveStrategy::Epoch => Some(per_epoch),
            },
        })
    }

    /// Refuses what needs the length of an epoch.
    fn refuse_unknown_epochs(&self) -> Result<()> {
        let arguments = &self.arguments;
        let unknown =
            "an epoch, and how many blocks it has is known only after --streaming has read all of the text once";
        let by_epochs = [
            ("--logging_strategy", arguments.logging_strategy == Strategy::Epoch),
            ("--eval_strategy", arguments.eval_strategy == Strategy::Epoch),
            ("--save_strategy", arguments.save_strategy == SaveStrategy::Epoch),
        ];
        if arguments.max_steps <= 0 {
            let reason = format!("counts in {unknown}; give --max_steps or --max_train_samples");
            return Err(Error::config("--num_train_epochs", reason));
        }
        match by_epochs.into_iter().find(|(_, by_epochs)| *by_epochs) {
            Some((flag, _)) => Err(Error::config(
                flag,
                format!("waits for the end of {unknown}; use steps, or give --max_train_samples"),
            )),
            None => Ok(()),
        }
    }

    /// Blocks of an epoch, of `blocks` training blocks.
    pub(super) fn blocks_per_epoch(&self, blocks: u64) -> u64 {
        let batch = self.drop_last_size;
        if self.arguments.dataloader_drop_last { blocks / batch * batch } else { blocks }
    }

    /// The size of micro-batches that an epoch is whole in, if what is left is left out.
    pub fn drop_last(&self) -> Option<usize> {
        self.arguments.dataloader_drop_last.then_some(self.drop_last_size as usize)
    }

    /// What a step's loss is the mean over.
    pub fn loss_mean(&self) -> LossMean {
        match (self.arguments.data.is_compat(Compat::Hf457), self.arguments.label_smoothing_factor > 0.0) {
            (false, _) => LossMean::Predicted,
            (true, false) => LossMean::AllLabels,
            (true, true) => LossMean::MicroBatches,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::tests::plan;

    /// The Trainer's arithmetic: 40 samples, batch 4, accumulation 2, 1.6 epochs make 8 steps.
    #[test]
    fn steps_are_counted_as_the_reference_counts_them() {
        let steps = |blocks: u64, batch: usize, accumulation: usize, epochs: f64| {
            let plan = plan(|arguments| {
                arguments.per_device_train_batch_size = batch;
                arguments.gradient_accumulation_steps = accumulation;
                arguments.num_train_epochs = epochs;
                arguments.warmup_steps = 0.1;
            });
            let steps = plan.unwrap().steps(Some(blocks)).unwrap();
            (steps.per_epoch, steps.total, steps.schedule.warmup_steps)
        };
        assert_eq!(steps(40, 4, 2, 1.6), (5, 8, 1));
        assert_eq!(steps(41, 4, 2, 1.0), (6, 6, 1));
        assert_eq!(steps(3, 8, 4, 3.0), (1, 3, 1));
    }
}
