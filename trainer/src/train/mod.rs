//! The run: data → model → loss → backward → optimizer → checkpoint.

mod batch_size;
mod best;
mod debug;
mod documents;
mod loss_scale;
mod results;
mod resume;
mod step;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_shared::dataset::{BlockReader, Split};
use tokenmill_shared::progress::{Progress, Unit};
use tokenmill_shared::{Error, Result, storage};

pub use self::best::Best;
use self::best::Criterion;
pub use self::loss_scale::LossScale;
use self::results::Finished;
use self::resume::Begin;
use self::step::{Made, StepLoss};
use crate::allocator;
use crate::arguments::{CountedTokens, SaveStrategy, Strategy, TrainerArguments};
use crate::checkpoint::{self, Companions, Contents, Counters, LearningRate, Saved, State, TrainerState};
use crate::data::Loader;
use crate::evaluate::{EvaluationSet, Metrics, evaluate};
use crate::model::Model;
use crate::ops::cpu::values;
use crate::optimizer::Optimizer;
use crate::plan::{Plan, ResultSettings, Steps};
use crate::report::{self, Log, Reports, Stage};
use crate::sample;
use crate::schedule::Adaptive;
use crate::text_order::{Place, Shuffled, TextOrder};
use crate::training_set::{Source, TrainingSet};

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
    allocator::keep_freed_memory();
    let mut plan = Plan::new(arguments)?;
    #[cfg(feature = "cuda")]
    plan.find_gpu()?;
    let reports = Reports::parse(&plan.arguments.report_to)?;
    plan.fetch()?;
    let memory = Stage::begin("init");
    plan.check_model()?;
    let data = plan.open_data()?;
    let resume = find_checkpoint(&plan)?;
    plan.find_new_tokens(&data)?;
    let model = match &resume {
        Some((dir, _)) => plan.open_resumed(dir)?,
        None => plan.open_model()?,
    };
    plan.check_fit(&model, &data)?;
    storage::create_dir_all(&plan.output_dir)?;
    let _lock = lock(&plan.output_dir)?;
    storage::remove_stale_temporaries(&plan.output_dir)?;
    let mut run = Run::new(plan, data, model, reports, memory)?;
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
fn find_checkpoint(plan: &Plan) -> Result<Option<(PathBuf, Saved)>> {
    if !plan.train {
        return Ok(None);
    }
    match plan.arguments.resume_from_checkpoint.as_deref() {
        Some(asked) if !matches!(asked.to_ascii_lowercase().as_str(), "false" | "none" | "") => {
            checkpoint::find(&plan.output_dir, asked).map(Some)
        }
        _ if plan.arguments.overwrite_output_dir || checkpoint::list(&plan.output_dir)?.is_empty() => Ok(None),
        _ => Err(Error::config(
            "--output_dir",
            format!(
                "{} already holds checkpoints; go on from them with --resume_from_checkpoint true, start anew with --overwrite_output_dir true, which moves them aside, or choose another directory",
                plan.output_dir.display()
            ),
        )),
    }
}

/// A run in progress.
struct Run {
    plan: Plan,
    data: TrainingSet,
    model: Model,
    config_text: String,
    companions: Companions,
    validation: Vec<EvaluationSet>,
    reports: Reports,
    /// Open while training.
    log: Option<Log>,
    /// The memory figures of loading.
    loading: serde_json::Map<String, Value>,
    criterion: Option<Criterion>,
    /// The training blocks of a dataset by their numbers, open while training.
    training: Option<Arc<dyn BlockReader>>,
    /// Blocks of an epoch, if they are known.
    blocks: Option<u64>,
    /// Where in live text the next step begins.
    position: Option<Place>,
    /// Steps that are left out.
    left_out: BTreeSet<u64>,
    /// A learning rate that follows evaluations.
    adaptive: Option<Adaptive>,
    best: Option<Best>,
    began: Instant,
    /// The evaluation of the weights as they are now, if there was one.
    evaluated_last: Option<Vec<Metrics>>,
    epoch: f64,
}

impl Run {
    fn new(plan: Plan, data: TrainingSet, mut model: Model, reports: Reports, memory: Stage) -> Result<Self> {
        plan.set_up(&mut model)?;
        let config = plan.arguments.model_name_or_path.as_ref().or(plan.arguments.init_from_config.as_ref());
        let config_text = config.map_or_else(|| Ok(String::new()), |path| checkpoint::config_text(path))?;
        let model_dir = plan.arguments.model_name_or_path.clone().filter(|_| !plan.arguments.use_peft);
        let companions = checkpoint::companions(Some(&data.tokenizer_dir), model_dir.as_deref())?;
        let validation = plan.validation_sets(&data)?;
        if plan.evaluate && validation.is_empty() {
            let reason = "there are no validation blocks; give --validation_file_dir or --validation_split_percentage";
            return Err(Error::config(if plan.arguments.do_eval { "--do_eval" } else { "--eval_strategy" }, reason));
        }
        let mut run = Self {
            plan,
            data,
            model,
            config_text,
            companions,
            validation,
            reports,
            log: None,
            loading: serde_json::Map::new(),
            criterion: None,
            training: None,
            blocks: None,
            position: None,
            left_out: BTreeSet::new(),
            adaptive: None,
            best: None,
            began: Instant::now(),
            evaluated_last: None,
            epoch: 0.0,
        };
        run.loading = run.memory_of(memory);
        Ok(run)
    }

    /// All optimizer steps, from the first or from a checkpoint.
    fn train(&mut self, resume: Option<(PathBuf, Saved)>) -> Result<()> {
        self.open_training()?;
        let mut optimizer = Optimizer::new(&self.model, &self.plan.arguments)?;
        if self.plan.arguments.auto_find_batch_size {
            self.find_batch_size(&optimizer)?;
        }
        let settings = self.plan.result_settings(&self.data, self.blocks);
        let steps = self.plan.steps(self.blocks)?;
        let arguments = &self.plan.arguments;
        self.criterion = Criterion::new(arguments, &steps, &self.validation)?;
        self.adaptive =
            Adaptive::new(arguments.lr_scheduler_type, &arguments.lr_scheduler_kwargs, arguments.learning_rate)?;
        let mut begin = Begin::default();
        if let Some((dir, saved)) = resume {
            begin = self.go_on_from(&dir, saved, &settings, &steps, &mut optimizer)?;
        } else if self.plan.arguments.overwrite_output_dir
            && let Some(aside) = checkpoint::set_aside(&self.plan.output_dir)?
        {
            eprintln!("starting anew; the old checkpoints are in {}", aside.display());
        }
        let Begin { first, mut counters, log_history } = begin;
        let fresh = || Some(counters.loss_scale.unwrap_or_default());
        counters.loss_scale = self.plan.arguments.fp16.then(fresh).flatten();
        self.write_arguments()?;
        self.open_log(log_history)?;
        let batch_size = self.plan.arguments.per_device_train_batch_size;
        let lag = counters.data_lag;
        let load = |run: &Self, from: u64| run.load(&settings, batch_size, from - lag..steps.total - lag);
        let mut loader = load(self, first);
        let progress = Progress::new("training", Unit::Count, Some(steps.total.saturating_sub(first)));
        let memory = Stage::begin("train");
        self.began = Instant::now();
        if self.plan.arguments.eval_on_start && first == 0 && steps.evaluate_every.is_some() {
            self.evaluate_at(0, &progress)?;
        }
        let seconds_before = counters.seconds;
        let mut tokens_here = 0;
        TRAINING.store(true, Ordering::Relaxed);
        let mut done = first;
        while done < steps.total {
            let step = done + 1;
            let batches = loader.next_step()?;
            self.evaluated_last = None;
            let Made::Step(loss) = self.train_step(&mut optimizer, &batches, step, &steps, &mut counters)? else {
                let begin = self.roll_back(step, &settings, &steps, &mut optimizer)?;
                (done, counters) = (begin.first, Counters { data_lag: lag, ..begin.counters });
                loader = load(self, done);
                continue;
            };
            done = step;
            self.position = batches.live.as_ref().map(|(next, _)| next.clone());
            tokens_here += batches.label_tokens();
            self.epoch = self.epoch_at(step - lag, &steps);
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
                let step = if strategy == Strategy::Epoch { step - lag } else { step };
                at_interval(step, every) || strategy == Strategy::Epoch && step + lag == steps.total
            };
            let log = due(steps.log_every, arguments.logging_strategy) || arguments.logging_first_step && step == 1;
            let reached = if arguments.eval_strategy == Strategy::Epoch { self.epoch } else { step as f64 };
            let evaluate = due(steps.evaluate_every, arguments.eval_strategy) && reached >= arguments.eval_delay;
            let save_at = if arguments.save_strategy == SaveStrategy::Epoch { step - lag } else { step };
            let save = at_interval(save_at, steps.save_every);
            let save_best = arguments.save_strategy == SaveStrategy::Best;
            if log {
                self.log_step(step, &loss, &mut counters, &progress)?;
            }
            let improved = evaluate && self.evaluate_at(step, &progress)?;
            let interrupted = INTERRUPTED.load(Ordering::Relaxed);
            let last = step == steps.total && steps.save_every.is_some();
            if save || last || interrupted || save_best && improved {
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
        let waited = loader.waited().as_secs_f64();
        self.finish_training(&steps, Finished { counters, tokens: tokens_here, first, waited, memory })
    }

    /// Opens the training blocks, and counts them as far as they are known.
    fn open_training(&mut self) -> Result<()> {
        match &self.data.source {
            Source::Prepared(dataset) => {
                let reader = dataset.recut(Split::Train, self.data.block_size)?.filter(|reader| !reader.is_empty());
                let none = "makes no training block; give more text or a smaller --block_size";
                let reader = reader.ok_or_else(|| Error::config("--train_file_dir", none))?;
                let limit = self.plan.arguments.data.train_blocks_limit();
                self.blocks = Some(reader.len().min(limit.unwrap_or(u64::MAX)));
                self.training = Some(reader.into());
            }
            Source::Mixed(mixed) => {
                let limit = self.plan.arguments.data.train_blocks_limit();
                let blocks = mixed.len().min(limit.unwrap_or(u64::MAX));
                mixed.lines(blocks).for_each(|line| eprintln!("{line}"));
                self.blocks = Some(blocks);
                self.training = Some(Arc::clone(mixed) as Arc<dyn BlockReader>);
            }
            Source::Served(service) => {
                let none = || service.error("it has no training block; serve a dataset with some");
                let reader = service.reader(Split::Train).ok_or_else(none)?;
                let limit = self.plan.arguments.data.train_blocks_limit();
                self.blocks = Some(reader.len().min(limit.unwrap_or(u64::MAX)));
                self.training = Some(Arc::new(reader));
            }
            Source::Live(text) => {
                let (known, limit) = (text.known_blocks, self.plan.arguments.data.train_blocks_limit());
                self.blocks = known.map(|known| known.min(limit.unwrap_or(u64::MAX))).or(limit);
            }
        }
        Ok(())
    }

    /// The steps `steps`, of those that draw data.
    fn load(&self, settings: &ResultSettings, batch_size: usize, steps: Range<u64>) -> Loader {
        match &self.data.source {
            Source::Prepared(_) | Source::Mixed(_) => {
                let reader = self.training.clone().expect("open while training");
                Loader::start(reader, settings.clone(), batch_size, steps.start, steps.end)
            }
            Source::Served(service) => {
                Loader::served(Arc::clone(service), settings.clone(), batch_size, steps.start, steps.end)
            }
            Source::Live(text) => {
                let blocks_per_step = settings.blocks_per_step as usize;
                let mut order = TextOrder::new(Arc::clone(text), self.position.clone(), blocks_per_step);
                order.shuffled = settings.shuffle_window.map(|window| Shuffled { window, seed: settings.data_seed });
                order.limit = self.plan.arguments.data.train_blocks_limit();
                order.drop_last = self.plan.drop_last();
                order.document_mask = settings.document_mask;
                Loader::live(order, batch_size, steps.end - steps.start)
            }
        }
    }

    /// The log goes on after `entries`.
    fn open_log(&mut self, entries: Vec<Value>) -> Result<()> {
        let json = |value: &Value| serde_json::to_string_pretty(value).expect("plain data");
        let texts = [("args", json(&json!(self.plan.said()))), ("model_config", json(&self.model.config().json))];
        let logging_dir = self.plan.arguments.logging_dir.as_deref();
        self.log = Some(Log::open(&self.plan.output_dir, entries, &self.reports, logging_dir, &texts)?);
        Ok(())
    }

    fn log_mut(&mut self) -> &mut Log {
        self.log.as_mut().expect("opened before the first step")
    }

    fn log_entries(&self) -> &[Value] {
        self.log.as_ref().map_or(&[], Log::entries)
    }

    fn log_step(&mut self, step: u64, last: &StepLoss, counters: &mut Counters, progress: &Progress) -> Result<()> {
        let loss = counters.loss_since_log / counters.steps_since_log as f64;
        (counters.loss_since_log, counters.steps_since_log) = (0.0, 0);
        let StepLoss { norm, learning_rate, .. } = last;
        let figures = [("epoch", self.epoch), ("grad_norm", *norm), ("learning_rate", *learning_rate), ("loss", loss)];
        let mut entry: serde_json::Map<_, _> =
            figures.map(|(key, value)| (key.to_owned(), json!(value))).into_iter().collect();
        if self.plan.arguments.include_num_input_tokens_seen != CountedTokens::No {
            let seen = self.input_tokens_seen(counters);
            entry.insert("num_input_tokens_seen".to_owned(), json!(seen));
            entry.insert("train_tokens_per_second".to_owned(), json!((seen as f64 / counters.seconds).round()));
        }
        self.log_mut().push(step, entry)?;
        progress.line(&format!(
            "step {step}: loss {loss:.4}, grad_norm {norm:.3}, learning_rate {learning_rate:.3e}, epoch {:.2}",
            self.epoch
        ));
        Ok(())
    }

    /// Evaluates, logs, and says whether this is the best so far.
    fn evaluate_at(&mut self, step: u64, progress: &Progress) -> Result<bool> {
        let metrics = self.evaluate()?;
        for (index, metrics) in metrics.iter().enumerate() {
            let name = self.validation[index].name.clone();
            let mut entry = metrics.log_entry(name.as_deref());
            entry.insert("epoch".to_owned(), json!(self.epoch));
            self.log_mut().push(step, entry)?;
            progress.line(&format!(
                "step {step}: validation{} loss {:.4}, perplexity {:.2}, {:.3} bits per byte",
                name.map(|name| format!(" on {name}:")).unwrap_or_default(),
                metrics.loss,
                metrics.perplexity(),
                metrics.bits_per_byte
            ));
        }
        self.evaluated_last = Some(metrics.clone());
        // Nothing is saved before the first step, so nothing there can be the best.
        let Some(criterion) = self.criterion.as_ref().filter(|_| step > 0) else { return Ok(false) };
        if let Some(adaptive) = &mut self.adaptive {
            adaptive.step(criterion.value(&metrics));
        }
        Ok(criterion.improves(&mut self.best, &metrics, step))
    }

    /// The metrics of each validation set.
    fn evaluate(&mut self) -> Result<Vec<Metrics>> {
        let (batch_size, mean) = (self.plan.arguments.per_device_eval_batch_size, self.plan.loss_mean());
        let document_mask = self.plan.arguments.document_mask;
        let sets = self.validation.iter();
        sets.map(|set| evaluate(&mut self.model, set, batch_size, mean, document_mask)).collect()
    }

    fn epoch_at(&self, step: u64, steps: &Steps) -> f64 {
        let (epoch, in_epoch) = ((step - 1) / steps.per_epoch, (step - 1) % steps.per_epoch + 1);
        let micro_batches =
            (in_epoch * self.plan.arguments.gradient_accumulation_steps as u64).min(steps.micro_batches_per_epoch);
        epoch as f64 + micro_batches as f64 / steps.micro_batches_per_epoch as f64
    }

    /// The input tokens that are counted.
    fn input_tokens_seen(&self, counters: &Counters) -> u64 {
        match self.plan.arguments.include_num_input_tokens_seen {
            CountedTokens::No => 0,
            CountedTokens::All => counters.tokens,
            CountedTokens::NonPadding => counters.tokens_without_padding,
        }
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
        let best = self.best.map(|best| (best, self.best_checkpoint(step).map(|path| path.display().to_string())));
        TrainerState {
            step,
            epoch: self.epoch,
            steps,
            num_train_epochs: epochs,
            total_flos: self.total_flos(counters.tokens),
            log_history: self.log_entries(),
            best,
            batch_size: arguments.per_device_train_batch_size,
            num_input_tokens_seen: self.input_tokens_seen(counters),
        }
        .json()
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
        optimizer.fetch(&self.model)?;
        let mut state = State::new(step, settings.clone(), *counters, self.best, self.log_entries().to_vec());
        state.left_out = self.left_out.clone();
        state.position = self.position.clone();
        state.course = self.adaptive.as_ref().map(|adaptive| adaptive.course().clone());
        let trainer_state = self.trainer_state(step, steps, counters);
        let limit = self.plan.arguments.save_total_limit;
        let peak = self.plan.arguments.learning_rate;
        checkpoint::save(
            &self.plan.output_dir,
            &self.contents(&self.plan.base_name()),
            (!self.plan.arguments.save_only_model).then_some(optimizer),
            LearningRate { peak, next: self.learning_rate(steps, step, counters) },
            state,
            &trainer_state,
            limit,
        )
    }

    /// What a checkpoint and the output directory hold of the model.
    fn contents<'a>(&'a self, base: &'a str) -> Contents<'a> {
        Contents { model: &self.model, config_text: &self.config_text, base, companions: &self.companions }
    }

    /// The checkpoint of the best evaluation, if one was saved there or is being saved at step `now`.
    fn best_checkpoint(&self, now: u64) -> Option<PathBuf> {
        let best = self.best?.step;
        let path = self.plan.output_dir.join(format!("checkpoint-{best}"));
        (best == now || storage::stat(&path).ok().flatten().is_some()).then_some(path)
    }

    /// An update can overflow where its gradient did not; such weights must not become the newest checkpoint.
    fn check_weights_finite(&self, step: u64) -> Result<()> {
        self.model.fetch()?;
        for parameter in self.model.parameters().iter().filter(|parameter| parameter.trainable) {
            let name = &parameter.name;
            let weights = values(&parameter.tensor).map_err(|error| Error::config(name.as_str(), error.to_string()))?;
            if !weights.par_iter().with_min_len(1 << 14).all(|weight| weight.is_finite()) {
                let reason = format!(
                    "{name} is not finite after the update; nothing was saved: go back to a checkpoint, lower --learning_rate"
                );
                return Err(Error::Numeric { step, reason });
            }
        }
        Ok(())
    }

    fn write_arguments(&self) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(&self.plan.said()).expect("plain data");
        bytes.push(b'\n');
        storage::replace(&self.plan.output_dir.join("training_args.json"), &bytes)
    }

    fn show_sample(&mut self, when: &str) -> Result<()> {
        let Some(prompt) = self.plan.arguments.sample_prompt.clone() else { return Ok(()) };
        let tokenizer = Tokenizer::load(&self.data.tokenizer_dir)?;
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
            let curve = if report::loss_chart(self.log_entries()).is_some() {
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

fn at_interval(step: u64, every: Option<u64>) -> bool {
    every.is_some_and(|every| step.is_multiple_of(every.max(1)))
}
