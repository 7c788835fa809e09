//! The run: data → model → loss → backward → optimizer → checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Map, Value, json};
use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_shared::dataset::{Dataset, Split, SplitReader};
use tokenmill_shared::progress::{Progress, Unit};
use tokenmill_shared::{Error, Result, storage};

use crate::arguments::{Strategy, TrainerArguments};
use crate::checkpoint::{self, Companions, Counters, State};
use crate::data::{Loader, StepBatches};
use crate::evaluate::{Metrics, evaluate};
use crate::model::Model;
use crate::ops::cpu::values;
use crate::optimizer::Optimizer;
use crate::plan::{Plan, ResultSettings, Steps};
use crate::{report, sample};

/// Set by SIGINT or SIGTERM: finish the step, save, stop.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether optimizer steps are being made, so that there is something to save.
static TRAINING: AtomicBool = AtomicBool::new(false);

/// What SIGINT and SIGTERM do. During training the step is finished and a checkpoint saved; at any other time,
/// or asked again, the process ends at once, which is safe since everything is published whole or not at all.
pub fn interrupt() {
    let again = INTERRUPTED.swap(true, Ordering::Relaxed);
    if again || !TRAINING.load(Ordering::Relaxed) {
        eprintln!("trainer: {}", Error::Interrupted);
        std::process::exit(Error::Interrupted.exit_code().into());
    }
    eprintln!("finishing this step and saving a checkpoint; once more to stop without");
}

/// Runs what `arguments` ask for.
pub fn run(arguments: TrainerArguments) -> Result<()> {
    let plan = Plan::new(arguments)?;
    let dataset = plan.open_dataset()?;
    let resume = find_checkpoint(&plan)?;
    let model = match &resume {
        Some((dir, _)) => plan.open_resumed(dir)?,
        None => plan.open_model()?,
    };
    plan.check_fit(&model, &dataset)?;
    storage::create_dir_all(&plan.output_dir)?;
    let _lock = lock(&plan.output_dir)?;
    storage::remove_stale_temporaries(&plan.output_dir)?;
    let mut run = Run::new(plan, dataset, model)?;
    run.show_sample("before training")?;
    if run.plan.train {
        run.train(resume)?;
        run.show_sample("after training")?;
    }
    if run.plan.evaluate {
        run.final_evaluation()?;
    }
    run.say_where();
    Ok(())
}

/// Two runs in one directory would rotate each other's checkpoints away.
fn lock(output_dir: &Path) -> Result<storage::Lock> {
    let busy = || {
        Error::config(
            "--output_dir",
            format!("{} is in use by another trainer; wait for it or choose another directory", output_dir.display()),
        )
    };
    storage::lock_file(&output_dir.join(".tokenmill-lock"), false)?.ok_or_else(busy)
}

/// The checkpoint to go on from. Checkpoints of another run are never mixed with those of this one.
fn find_checkpoint(plan: &Plan) -> Result<Option<(PathBuf, State)>> {
    if !plan.train {
        return Ok(None);
    }
    match plan.arguments.resume_from_checkpoint.as_deref() {
        Some(asked) if !matches!(asked.to_ascii_lowercase().as_str(), "false" | "none" | "") => {
            checkpoint::find(&plan.output_dir, asked).map(Some)
        }
        _ if checkpoint::list(&plan.output_dir)?.is_empty() => Ok(None),
        _ => Err(Error::config(
            "--output_dir",
            format!(
                "{} already holds checkpoints; go on from them with --resume_from_checkpoint true, or choose another directory",
                plan.output_dir.display()
            ),
        )),
    }
}

/// A run in progress.
struct Run {
    plan: Plan,
    dataset: Dataset,
    model: Model,
    companions: Companions,
    validation: Option<SplitReader>,
    log_history: Vec<Value>,
    began: Instant,
    /// The evaluation of the weights as they are now, if there was one.
    evaluated_last: Option<Metrics>,
    epoch: f64,
}

impl Run {
    fn new(plan: Plan, dataset: Dataset, model: Model) -> Result<Self> {
        let model_dir = plan.arguments.model_name_or_path.clone();
        let companions = checkpoint::companions(&dataset.tokenizer_dir(), model_dir.as_deref())?;
        let validation = dataset.split(Split::Validation)?;
        if plan.evaluate && validation.as_ref().is_none_or(SplitReader::is_empty) {
            let reason = "there are no validation blocks; give --validation_file_dir or --validation_split_percentage";
            return Err(Error::config(if plan.arguments.do_eval { "--do_eval" } else { "--eval_strategy" }, reason));
        }
        Ok(Self {
            plan,
            dataset,
            model,
            companions,
            validation,
            log_history: Vec::new(),
            began: Instant::now(),
            evaluated_last: None,
            epoch: 0.0,
        })
    }

    /// All optimizer steps, from the first or from a checkpoint.
    fn train(&mut self, resume: Option<(PathBuf, State)>) -> Result<()> {
        let blocks = self.plan.blocks(&self.dataset, Split::Train);
        let reader = self.dataset.split(Split::Train)?.filter(|reader| !reader.is_empty() && blocks > 0);
        let reader = Arc::new(reader.ok_or_else(|| {
            Error::config("--train_file_dir", "makes no training block; give more text or a smaller --block_size")
        })?);
        let settings = self.plan.result_settings(&self.dataset, blocks);
        let steps = self.plan.steps(blocks)?;
        let mut optimizer = Optimizer::new(&self.model, &self.plan.arguments)?;
        let mut counters = Counters::default();
        if let Some((dir, state)) = resume {
            state.check_settings(&settings)?;
            if state.step > steps.total {
                let reason = format!(
                    "{} is at step {}, beyond the {} steps of this run; raise --max_steps or --num_train_epochs",
                    dir.display(),
                    state.step,
                    steps.total
                );
                return Err(Error::config("--resume_from_checkpoint", reason));
            }
            checkpoint::load_optimizer(&dir, &self.model, &mut optimizer)?;
            optimizer.step = state.step;
            counters = state.counters;
            self.log_history = state.log_history;
            eprintln!("going on from {} at step {}", dir.display(), state.step);
        }
        self.write_arguments()?;
        let first = optimizer.step;
        let batch_size = self.plan.arguments.per_device_train_batch_size;
        let mut loader = Loader::start(reader, settings.clone(), batch_size, first, steps.total);
        let progress = Progress::new("training", Unit::Count, Some(steps.total.saturating_sub(first)));
        self.began = Instant::now();
        let seconds_before = counters.seconds;
        let mut tokens_here = 0;
        TRAINING.store(true, Ordering::Relaxed);
        for step in first + 1..=steps.total {
            let batches = loader.next_step()?;
            self.evaluated_last = None;
            let loss = self.train_step(&mut optimizer, &batches, step, &steps, &mut counters)?;
            tokens_here += batches.label_tokens();
            self.epoch = self.epoch_at(step, &steps);
            counters.seconds = seconds_before + self.began.elapsed().as_secs_f64();

            let seconds = self.began.elapsed().as_secs_f64();
            let waiting = 100.0 * loader.waited().as_secs_f64() / seconds;
            progress.remark(&format!(
                "loss {:.4}, {:.0} tokens/s, {waiting:.1} % waiting for data",
                loss.loss,
                tokens_here as f64 / seconds
            ));
            progress.add(1);
            let arguments = &self.plan.arguments;
            let due = |every: Option<u64>, strategy: Strategy| {
                at_interval(step, every) || strategy == Strategy::Epoch && step == steps.total
            };
            let (log, evaluate) =
                (due(steps.log_every, arguments.logging_strategy), due(steps.evaluate_every, arguments.eval_strategy));
            if log {
                self.log_step(step, &loss, &mut counters, &progress);
            }
            if evaluate {
                self.evaluate_at(step, &progress)?;
            }
            let interrupted = INTERRUPTED.load(Ordering::Relaxed);
            let last = step == steps.total && steps.save_every.is_some();
            if at_interval(step, steps.save_every) || last || interrupted {
                let dir = self.save_checkpoint(step, &steps, &settings, &counters, &optimizer)?;
                progress.line(&format!("saved {}", dir.display()));
            }
            if interrupted && step < steps.total {
                progress.line("go on later with the same command and --resume_from_checkpoint true");
                return Err(Error::Interrupted);
            }
        }
        TRAINING.store(false, Ordering::Relaxed);
        drop(progress);
        self.finish_training(&steps, &counters, tokens_here, first, loader.waited().as_secs_f64())
    }

    /// Forward and backward over the micro-batches of a step, checks, one update.
    fn train_step(
        &mut self,
        optimizer: &mut Optimizer,
        batches: &StepBatches,
        step: u64,
        steps: &Steps,
        counters: &mut Counters,
    ) -> Result<StepLoss> {
        // A padded block of one token has no label; alone in a step it moves nothing.
        let tokens = batches.label_tokens().max(1);
        let nll = self.forward_backward(batches, tokens)?;
        let loss = nll / tokens as f64;
        let norm = self.model.gradients().norm().map_err(|error| Error::config("gradients", error.to_string()))?;
        if !loss.is_finite() || !norm.is_finite() {
            let reason = format!(
                "the loss is {loss} and the gradient norm {norm}, on training blocks {:?}; this step updated nothing: go back to a checkpoint, lower --learning_rate, or look at these blocks with `preprocess inspect`",
                batches.blocks
            );
            return Err(Error::Numeric { step, reason });
        }
        if optimizer.step == 0 {
            self.model.gradients().check_all_written(step)?;
        }
        let learning_rate = self.plan.arguments.learning_rate * steps.schedule.factor(step - 1);
        optimizer.update(&self.model, learning_rate, norm)?;
        counters.loss_sum += loss;
        counters.loss_since_log += loss;
        counters.steps_since_log += 1;
        counters.tokens += batches.input_tokens();
        Ok(StepLoss { loss, norm, learning_rate })
    }

    /// Gradients of the mean over all labels of the step; returns the summed loss.
    fn forward_backward(&mut self, batches: &StepBatches, tokens: u64) -> Result<f64> {
        let scale = (1.0 / tokens as f64) as f32;
        self.model.clear_gradients();
        let mut nll = 0.0;
        for batch in &batches.micro_batches {
            nll += self.model.forward_backward(batch, scale, self.plan.arguments.gradient_checkpointing)?.nll;
        }
        Ok(nll)
    }

    fn log_step(&mut self, step: u64, last: &StepLoss, counters: &mut Counters, progress: &Progress) {
        let loss = counters.loss_since_log / counters.steps_since_log as f64;
        (counters.loss_since_log, counters.steps_since_log) = (0.0, 0);
        let StepLoss { norm, learning_rate, .. } = last;
        self.log_history.push(
            json!({"epoch": self.epoch, "grad_norm": norm, "learning_rate": learning_rate, "loss": loss, "step": step}),
        );
        progress.line(&format!(
            "step {step}: loss {loss:.4}, grad_norm {norm:.3}, learning_rate {learning_rate:.3e}, epoch {:.2}",
            self.epoch
        ));
    }

    fn evaluate_at(&mut self, step: u64, progress: &Progress) -> Result<()> {
        let metrics = self.evaluate()?;
        let mut entry = metrics.log_entry();
        entry.insert("epoch".to_owned(), json!(self.epoch));
        entry.insert("step".to_owned(), json!(step));
        entry.sort_keys();
        self.log_history.push(Value::Object(entry));
        self.evaluated_last = Some(metrics);
        progress.line(&format!(
            "step {step}: validation loss {:.4}, perplexity {:.2}, {:.3} bits per byte",
            metrics.loss,
            metrics.perplexity(),
            metrics.bits_per_byte
        ));
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Metrics> {
        let blocks = self.plan.blocks(&self.dataset, Split::Validation);
        let reader = self.validation.as_ref().expect("checked at the start");
        evaluate(
            &mut self.model,
            reader,
            self.dataset.manifest(),
            blocks,
            self.plan.arguments.per_device_eval_batch_size,
        )
    }

    fn epoch_at(&self, step: u64, steps: &Steps) -> f64 {
        let (epoch, in_epoch) = ((step - 1) / steps.per_epoch, (step - 1) % steps.per_epoch + 1);
        let micro_batches =
            (in_epoch * self.plan.arguments.gradient_accumulation_steps as u64).min(steps.micro_batches_per_epoch);
        epoch as f64 + micro_batches as f64 / steps.micro_batches_per_epoch as f64
    }

    /// 6 · tokens · parameters without embeddings, as the Trainer counts.
    fn total_flos(&self, tokens: u64) -> f64 {
        let parameters = self.model.parameters().iter().filter(|parameter| !parameter.name.contains("embed_tokens"));
        6.0 * tokens as f64 * parameters.map(|parameter| parameter.tensor.elem_count() as f64).sum::<f64>()
    }

    fn trainer_state(&self, step: u64, steps: &Steps, counters: &Counters) -> Value {
        let arguments = &self.plan.arguments;
        let epochs = if arguments.max_steps > 0 {
            steps.total as f64 / steps.per_epoch as f64
        } else {
            arguments.num_train_epochs
        };
        let flos = self.total_flos(counters.tokens);
        checkpoint::trainer_state(
            step,
            self.epoch,
            steps,
            epochs,
            flos,
            &self.log_history,
            arguments.per_device_train_batch_size,
        )
    }

    fn save_checkpoint(
        &self,
        step: u64,
        steps: &Steps,
        settings: &ResultSettings,
        counters: &Counters,
        optimizer: &Optimizer,
    ) -> Result<PathBuf> {
        self.check_weights_finite(step)?;
        let state = State::new(step, settings.clone(), *counters, self.log_history.clone());
        let trainer_state = self.trainer_state(step, steps, counters);
        let limit = self.plan.arguments.save_total_limit;
        checkpoint::save(&self.plan.output_dir, &self.model, optimizer, &self.companions, state, &trainer_state, limit)
    }

    /// An update can overflow where its gradient did not; such weights must not become the newest checkpoint.
    fn check_weights_finite(&self, step: u64) -> Result<()> {
        for parameter in self.model.parameters() {
            let name = &parameter.name;
            let weights = values(&parameter.tensor).map_err(|error| Error::config(name.as_str(), error.to_string()))?;
            if !weights.iter().all(|weight| weight.is_finite()) {
                let reason = format!(
                    "{name} is not finite after the update; nothing was saved: go back to a checkpoint, lower --learning_rate"
                );
                return Err(Error::Numeric { step, reason });
            }
        }
        Ok(())
    }

    /// The model and the results in the output directory.
    fn finish_training(
        &mut self,
        steps: &Steps,
        counters: &Counters,
        tokens_here: u64,
        first: u64,
        waited: f64,
    ) -> Result<()> {
        self.check_weights_finite(steps.total)?;
        let output_dir = self.plan.output_dir.clone();
        let seconds = counters.seconds.max(1e-9);
        let done = steps.total.max(1) as f64;
        let samples = done
            * self.plan.arguments.per_device_train_batch_size as f64
            * self.plan.arguments.gradient_accumulation_steps as f64;
        let rounded = |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
        self.epoch = self.epoch_at(steps.total.max(1), steps);
        let mut results = Map::from_iter([
            ("epoch".to_owned(), json!(self.epoch)),
            ("total_flos".to_owned(), json!(self.total_flos(counters.tokens))),
            ("train_loss".to_owned(), json!(counters.loss_sum / done)),
            ("train_runtime".to_owned(), json!(rounded(seconds, 4))),
            ("train_samples_per_second".to_owned(), json!(rounded(samples / seconds, 3))),
            ("train_steps_per_second".to_owned(), json!(rounded(done / seconds, 3))),
        ]);
        let mut entry = results.clone();
        entry.insert("step".to_owned(), json!(steps.total));
        entry.sort_keys();
        self.log_history.push(Value::Object(entry));
        results.insert("train_samples".to_owned(), json!(self.plan.blocks(&self.dataset, Split::Train)));
        checkpoint::write_model(&output_dir, &self.model, &self.companions)?;
        let mut state =
            serde_json::to_vec_pretty(&self.trainer_state(steps.total, steps, counters)).expect("plain data");
        state.push(b'\n');
        storage::replace(&output_dir.join("trainer_state.json"), &state)?;
        report::write_results(&output_dir, "train", &results)?;
        if let Some(svg) = report::loss_chart(&self.log_history) {
            storage::replace(&output_dir.join("loss.svg"), svg.as_bytes())?;
        }
        let here = self.began.elapsed().as_secs_f64();
        eprintln!(
            "trained {} steps in {here:.1} s: {:.0} tokens/s, {:.1} % of the time waiting for data, peak memory {}",
            steps.total - first,
            tokens_here as f64 / here,
            100.0 * waited / here,
            report::peak_memory_text()
        );
        Ok(())
    }

    fn final_evaluation(&mut self) -> Result<()> {
        let metrics = match self.evaluated_last {
            Some(metrics) => metrics,
            None => self.evaluate()?,
        };
        let mut results = metrics.results();
        if self.plan.train {
            results.insert("epoch".to_owned(), json!(self.epoch));
        }
        report::write_results(&self.plan.output_dir, "eval", &results)?;
        eprintln!(
            "validation: loss {:.4}, perplexity {:.2}, accuracy {:.2} %, {:.3} bits per byte",
            metrics.loss,
            metrics.perplexity(),
            100.0 * metrics.accuracy,
            metrics.bits_per_byte
        );
        Ok(())
    }

    fn write_arguments(&self) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&self.plan.arguments).expect("plain data");
        bytes.push(b'\n');
        storage::replace(&self.plan.output_dir.join("training_args.json"), &bytes)
    }

    fn show_sample(&mut self, when: &str) -> Result<()> {
        let Some(prompt) = self.plan.arguments.sample_prompt.clone() else { return Ok(()) };
        let tokenizer = Tokenizer::load(&self.dataset.tokenizer_dir())?;
        let text = sample::continuation(
            &mut self.model,
            &tokenizer,
            &prompt,
            self.plan.arguments.sample_tokens,
            self.plan.arguments.seed,
        )?;
        eprintln!("sample {when}:\n  {}", text.trim_end().replace('\n', "\n  "));
        Ok(())
    }

    fn say_where(&self) {
        let dir = self.plan.output_dir.display();
        if self.plan.train {
            let curve = if report::loss_chart(&self.log_history).is_some() {
                format!("; the loss curve is {dir}/loss.svg")
            } else {
                String::new()
            };
            eprintln!("model, tokenizer and results are in {dir}{curve}");
        } else {
            eprintln!("results are in {dir}");
        }
    }
}

/// What one step found.
struct StepLoss {
    loss: f64,
    norm: f64,
    learning_rate: f64,
}

fn at_interval(step: u64, every: Option<u64>) -> bool {
    every.is_some_and(|every| step.is_multiple_of(every.max(1)))
}
