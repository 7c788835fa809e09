//! The end of a run: the model, the results and the last evaluation in the output directory.

use serde_json::{Map, Value, json};
use tokenmill_shared::{Result, storage};

use super::Run;
use crate::checkpoint::{self, Counters};
use crate::plan::Steps;
use crate::report::{self, Stage};
use crate::training_set::Source;

/// What a finished training run made of its steps.
pub(super) struct Finished {
    pub counters: Counters,
    /// Label tokens of the steps this process made, which began after step `first`.
    pub tokens: u64,
    pub first: u64,
    /// Seconds spent waiting for data.
    pub waited: f64,
    pub memory: Stage,
}

impl Run {
    /// Writes the model and the results of training.
    pub(super) fn finish_training(&mut self, steps: &Steps, finished: Finished) -> Result<()> {
        let Finished { counters, tokens, first, waited, memory } = finished;
        self.check_weights_finite(steps.total)?;
        let output_dir = self.plan.output_dir.clone();
        let seconds = counters.seconds.max(1e-9);
        let done = steps.total.max(1) as f64;
        let arguments = &self.plan.arguments;
        let samples =
            done * arguments.per_device_train_batch_size as f64 * arguments.gradient_accumulation_steps as f64;
        let rounded = |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
        self.epoch = self.epoch_at((steps.total - counters.data_lag).max(1), steps);
        let mut results = Map::from_iter([
            ("epoch".to_owned(), json!(self.epoch)),
            ("total_flos".to_owned(), json!(self.total_flos(counters.tokens))),
            ("train_loss".to_owned(), json!(counters.loss_sum / done)),
            ("train_runtime".to_owned(), json!(rounded(seconds, 4))),
            ("train_samples_per_second".to_owned(), json!(rounded(samples / seconds, 3))),
            ("train_steps_per_second".to_owned(), json!(rounded(done / seconds, 3))),
        ]);
        results.extend(std::mem::take(&mut self.loading));
        results.extend(self.memory_of(memory));
        self.log_mut().push(steps.total, results.clone())?;
        let per_epoch = self.blocks.map_or_else(|| json!(samples), |blocks| json!(blocks));
        results.insert("train_samples".to_owned(), per_epoch);
        if let Some(loss_scale) = counters.loss_scale.filter(|loss_scale| loss_scale.overflowed > 0) {
            let overflowed = loss_scale.overflowed;
            eprintln!(
                "{overflowed} of {} steps updated nothing while the scale of the loss was looked for",
                steps.total
            );
        }
        if counters.skipped > 0 {
            eprintln!("{} of {} steps updated nothing: something was not finite", counters.skipped, steps.total);
            results.insert("train_skipped_steps".to_owned(), json!(counters.skipped));
        }
        let here = self.began.elapsed().as_secs_f64();
        results.insert("train_data_wait".to_owned(), json!(rounded(waited / here.max(1e-9), 6)));
        if let Source::Live(text) = &self.data.source {
            eprintln!("{}", text.made());
        }
        eprintln!(
            "trained {} steps in {here:.1} s: {:.0} tokens/s, {:.1} % of the time waiting for data, peak memory {}",
            steps.total - first,
            tokens as f64 / here,
            100.0 * waited / here,
            report::peak_memory_text()
        );
        #[cfg(feature = "cuda")]
        self.plan.say_gpu_memory()?;
        if self.plan.arguments.load_best_model_at_end {
            self.load_best()?;
        }
        checkpoint::write_model(&output_dir, &self.contents(&self.plan.base_name()))?;
        let state = self.trainer_state(steps.total, steps, &counters);
        let mut state = serde_json::to_vec_pretty(&state).expect("plain data");
        state.push(b'\n');
        storage::replace(&output_dir.join("trainer_state.json"), &state)?;
        report::write_results(&output_dir, "train", &results)?;
        if let Some(svg) = report::loss_chart(self.log_entries()) {
            storage::replace(&output_dir.join("loss.svg"), svg.as_bytes())?;
        }
        Ok(())
    }

    /// Goes back to the weights of the best evaluation.
    fn load_best(&mut self) -> Result<()> {
        let Some((best, dir)) = self.best.and_then(|best| Some((best, self.best_checkpoint(0)?))) else {
            eprintln!("no checkpoint is the best: none was saved at an evaluation; the last weights are kept");
            return Ok(());
        };
        checkpoint::verify(&dir)?;
        self.model = self.plan.open_resumed(&dir)?;
        self.plan.set_up(&mut self.model)?;
        self.evaluated_last = None;
        eprintln!("the weights are those of {}, whose evaluation was the best: {:.4}", dir.display(), best.value);
        Ok(())
    }

    /// Evaluates the weights as they are, if that was not just done, and writes the results.
    pub(super) fn final_evaluation(&mut self) -> Result<()> {
        let memory = Stage::begin("eval");
        if self.plan.changes_evaluation() {
            self.plan.set_up_evaluation(&mut self.model)?;
            self.evaluated_last = None;
        }
        let metrics = match self.evaluated_last.take() {
            Some(metrics) => metrics,
            None => self.evaluate()?,
        };
        let sets = || self.validation.iter().map(|set| set.name.as_deref()).zip(&metrics);
        let mut results: Map<String, Value> = sets().flat_map(|(name, metrics)| metrics.results(name)).collect();
        if self.plan.train {
            results.insert("epoch".to_owned(), json!(self.epoch));
        }
        results.extend(self.memory_of(memory));
        report::write_results(&self.plan.output_dir, "eval", &results)?;
        for (name, metrics) in sets() {
            eprintln!(
                "validation{}: loss {:.4}, perplexity {:.2}, accuracy {:.2} %, {:.3} bits per byte",
                name.map(|name| format!(" on {name}")).unwrap_or_default(),
                metrics.loss,
                metrics.perplexity(),
                100.0 * metrics.accuracy,
                metrics.bits_per_byte
            );
        }
        Ok(())
    }

    /// The figures of a stage, if they are asked for.
    pub(super) fn memory_of(&self, stage: Stage) -> Map<String, Value> {
        if self.plan.arguments.skip_memory_metrics { Map::new() } else { stage.end() }
    }
}
