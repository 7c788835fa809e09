//! What a run remembers: our state, exact to the bit, and Hugging Face's `trainer_state.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenmill_shared::dataset::FileEntry;
use tokenmill_shared::{Error, Result};

use crate::plan::{ResultSettings, Steps};
use crate::schedule::Course;
use crate::text_order::Place;
use crate::train::{Best, LossScale};

/// The version this program writes.
const VERSION: u32 = 1;

/// Running sums of a training run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Sum of the losses of all steps.
    pub loss_sum: f64,
    /// Sum of the losses since the last log.
    pub loss_since_log: f64,
    /// Steps since the last log.
    pub steps_since_log: u64,
    /// Ids trained on, padding included.
    pub tokens: u64,
    /// Steps that updated nothing because something was not finite.
    pub skipped: u64,
    /// Those of them since the last update.
    pub skipped_in_a_row: u64,
    /// Seconds of training before this process.
    pub seconds: f64,
    /// Ids trained on without padding.
    pub tokens_without_padding: u64,
    /// Steps by which the data lag behind, because epochs were begun again.
    pub data_lag: u64,
    /// How the loss is scaled, if it is.
    pub loss_scale: Option<LossScale>,
}

/// Our state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// What a resumed run must share.
    pub settings: ResultSettings,
    /// Running sums. Floats are written with the shortest digits that read back as the same bits.
    pub counters: Counters,
    /// The best evaluation so far, if that is kept track of.
    pub best: Option<Best>,
    /// Where a schedule that follows evaluations stands.
    pub course: Option<Course>,
    /// Steps that are left out, because going on from them led nowhere.
    pub left_out: BTreeSet<u64>,
    /// Whether the optimizer's state was left out, so that nothing can go on from here.
    pub only_model: bool,
    /// Of live text, where the next step begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Place>,
    /// Entries of the log so far.
    pub log_history: Vec<Value>,
    /// Size and BLAKE3 of every other file of the checkpoint.
    pub files: BTreeMap<String, FileEntry>,
    /// BLAKE3 of this JSON with this field empty.
    blake3: String,
}

impl State {
    /// A state to be saved.
    pub fn new(
        step: u64,
        settings: ResultSettings,
        counters: Counters,
        best: Option<Best>,
        log_history: Vec<Value>,
    ) -> Self {
        Self {
            version: VERSION,
            step,
            settings,
            counters,
            best,
            course: None,
            left_out: BTreeSet::new(),
            only_model: false,
            position: None,
            log_history,
            files: BTreeMap::new(),
            blake3: String::new(),
        }
    }

    /// The bytes of the file.
    pub(super) fn seal(&mut self) -> Vec<u8> {
        self.blake3 = String::new();
        self.blake3 = blake3::hash(&super::pretty(self)).to_hex().to_string();
        super::pretty(self)
    }

    /// Reads and checks the file's bytes.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::corrupt(path, "is damaged; use an older checkpoint");
        let mut state: Self = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        if state.version > VERSION {
            return Err(Error::config(
                path.display().to_string(),
                format!("has version {}, this program reads up to {VERSION}", state.version),
            ));
        }
        if state.seal() != bytes {
            return Err(damaged());
        }
        Ok(state)
    }

    /// Refuses to go on under settings that would show the remaining steps other data.
    pub fn check_settings(&self, settings: &ResultSettings) -> Result<()> {
        let (saved, now) = (json!(self.settings), json!(settings));
        let differs = saved.as_object().into_iter().flatten().find(|(field, value)| now[field.as_str()] != **value);
        match differs {
            Some((field, value)) => Err(Error::config(
                "--resume_from_checkpoint",
                format!(
                    "the checkpoint was made with {field} = {value}, now it is {}; use the same, or start anew in another --output_dir",
                    now[field.as_str()]
                ),
            )),
            None => Ok(()),
        }
    }
}

/// What Hugging Face's `trainer_state.json` is made of.
#[derive(Debug)]
pub struct TrainerState<'a> {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Step counts and intervals.
    pub steps: &'a Steps,
    /// Epochs of the whole run.
    pub num_train_epochs: f64,
    /// Floating-point operations, as the Trainer counts them.
    pub total_flos: f64,
    /// Entries of the log.
    pub log_history: &'a [Value],
    /// The best evaluation and its checkpoint, if one was saved.
    pub best: Option<(Best, Option<String>)>,
    /// Blocks in a micro-batch.
    pub batch_size: usize,
    /// Input tokens, if they are counted.
    pub num_input_tokens_seen: u64,
}

impl TrainerState<'_> {
    /// Exactly Hugging Face's twenty keys, sorted; an extra one would break its loader.
    pub fn json(&self) -> Value {
        let Self { step, epoch, steps, num_train_epochs, total_flos, log_history, best, batch_size, .. } = self;
        let (best, best_checkpoint) = best.clone().unzip();
        let interval = |every: Option<u64>| every.unwrap_or(500);
        json!({
            "best_global_step": best.map(|best: Best| best.step),
            "best_metric": best.map(|best| best.value),
            "best_model_checkpoint": best_checkpoint.flatten(),
            "epoch": epoch,
            "eval_steps": interval(steps.evaluate_every),
            "global_step": step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": log_history,
            "logging_steps": interval(steps.log_every),
            "max_steps": steps.total,
            "num_input_tokens_seen": self.num_input_tokens_seen,
            "num_train_epochs": num_train_epochs.ceil() as u64,
            "save_steps": interval(steps.save_every),
            "stateful_callbacks": {"TrainerControl": {
                "args": {
                    "should_epoch_stop": false, "should_evaluate": false, "should_log": false, "should_save": true,
                    "should_training_stop": *step >= steps.total,
                },
                "attributes": {},
            }},
            "total_flos": total_flos,
            "train_batch_size": batch_size,
            "trial_name": null,
            "trial_params": null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Kind, Schedule};
    use tokenmill_shared::mixture::Mixture;
    use tokenmill_shared::random::{Purpose, Stream};

    #[test]
    fn trainer_state_has_the_keys_of_the_reference_and_no_other() {
        let schedule = Schedule::new(Kind::Linear, &serde_json::Map::new(), 1e-3, 0, 8).unwrap();
        let steps = Steps {
            micro_batches_per_epoch: 10,
            per_epoch: 5,
            total: 8,
            schedule,
            log_every: Some(2),
            evaluate_every: None,
            save_every: Some(3),
        };
        let state = TrainerState {
            step: 8,
            epoch: 1.6,
            steps: &steps,
            num_train_epochs: 1.6,
            total_flos: 1.0,
            log_history: &[],
            best: None,
            batch_size: 4,
            num_input_tokens_seen: 0,
        }
        .json();
        // The keys of a real one, written by transformers 5.23.
        let reference = "best_global_step best_metric best_model_checkpoint epoch eval_steps global_step is_hyper_param_search \
            is_local_process_zero is_world_process_zero log_history logging_steps max_steps num_input_tokens_seen num_train_epochs \
            save_steps stateful_callbacks total_flos train_batch_size trial_name trial_params";
        assert!(state.as_object().unwrap().keys().eq(reference.split_whitespace()));
    }

    #[test]
    fn a_state_reads_back_to_the_bit_and_damage_shows() {
        let settings = ResultSettings {
            dataset: "d".into(),
            train_blocks: 9,
            blocks_per_epoch: 9,
            blocks_per_step: 4,
            data_seed: 1,
            random_order: true,
            quantisation: None,
            document_mask: false,
            mixture: Mixture::default(),
            shuffle_window: None,
        };
        let counters = Counters { loss_sum: 0.1 + 0.2, loss_since_log: 1.0 / 3.0, ..Counters::default() };
        // Every double, not only short ones: serde_json needs its feature `float_roundtrip` for that.
        let losses = Stream::new(1, Purpose::Order, 0);
        let mut log_history = vec![json!({"loss": 1e-300})];
        log_history.extend((0..200).map(|at| json!({"loss": losses.normal(at)})));
        let mut state = State::new(7, settings, counters, None, log_history);
        let bytes = state.seal();
        assert_eq!(State::parse(Path::new("s"), &bytes).unwrap(), state);
        for bit in (0..bytes.len() * 8).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(State::parse(Path::new("s"), &damaged).is_err(), "bit {bit}");
        }
        let other = ResultSettings { data_seed: 2, ..state.settings.clone() };
        assert!(state.check_settings(&other).unwrap_err().to_string().contains("data_seed"));
    }
}
