//! From what was said to what will be done: paths resolved, contradictions refused with both names, step
//! counts computed.

#[cfg(feature = "cuda")]
mod gpu;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokenmill_preprocess::{Live, Output, PrepareOptions, Tuning, cache_dir, prepare};
use tokenmill_shared::config::{Compat, DataArguments, HubArguments, ValidationText};
use tokenmill_shared::dataset::{Dataset, Split};
use tokenmill_shared::mixture::Mixture;
use tokenmill_shared::storage::Lock;
use tokenmill_shared::{Error, Result, hub, progress};

use crate::arguments::{Debug, LogLevel, Sampling, SaveStrategy, Shuffle, Strategy, TrainerArguments};
#[cfg(feature = "cuda")]
use crate::cuda::Device;
use crate::data::LossMean;
use crate::evaluate::EvaluationSet;
use crate::mixed::{Given, Mixed};
use crate::model::{Config, EmbeddingNoise, Model, Positions, Quantisation};
use crate::ops::precision::Precision;
use crate::ops::quantised::Codebook;
use crate::optim_args;
use crate::optimizer::Rule;
use crate::schedule::Schedule;
use crate::service::{Access, Connection, Service};
use crate::training_set::{Source, TrainingSet};
use crate::vocabulary::NewTokens;

/// Everything resolved but the step counts, which need the dataset.
#[derive(Debug)]
pub struct Plan {
    /// What was said, with directories in the place of hub ids once they are fetched.
    pub arguments: TrainerArguments,
    /// The model, its configuration and the tokenizer as they were named.
    named: [Option<PathBuf>; 3],
    /// Where everything goes.
    pub output_dir: PathBuf,
    /// Whether to train.
    pub train: bool,
    /// Whether to evaluate at the end.
    pub evaluate: bool,
    /// What the frozen weights of projections are kept in, if not in float32.
    pub quantisation: Option<Quantisation>,
    /// Tokens of the dataset that are new to the model; known once there is a dataset.
    new_tokens: Option<NewTokens>,
    /// With `--dataloader_drop_last`, blocks that fill no micro-batch of this size are left out of an epoch: that asked
    /// for, whatever size is found to fit.
    drop_last_size: u64,
    /// Datasets of the cache that are read: none is pruned meanwhile.
    in_use: Mutex<Vec<Arc<Lock>>>,
    /// The GPU that is trained on, if not the CPU.
    #[cfg(feature = "cuda")]
    gpu: Option<std::sync::Arc<Device>>,
}

impl Plan {
    /// Resolves `arguments`.
    pub fn new(mut arguments: TrainerArguments) -> Result<Self> {
        if std::mem::take(&mut arguments.adafactor) {
            arguments.optim = Rule::Adafactor;
        }
        let output_dir = arguments.output_dir.clone().ok_or_else(|| Error::config("--output_dir", "is missing"))?;
        match (&arguments.model_name_or_path, &arguments.init_from_config) {
            (None, None) => {
                return Err(Error::config(
                    "--model_name_or_path",
                    "is missing; or start from random weights with --init_from_config",
                ));
            }
            (Some(_), Some(_)) => return Err(both("--model_name_or_path", "--init_from_config")),
            _ => {}
        }
        let data = &arguments.data;
        let given: Vec<&str> = [
            ("--train_file_dir", data.train_file_dir.is_some()),
            ("--train_file", !data.train_file.is_empty()),
            ("--dataset_name", data.dataset_name.is_some()),
            ("--dataset_dir", !arguments.dataset_dir.is_empty()),
            ("--data_service", arguments.data_service.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some(flag))
        .collect();
        match given[..] {
            [] => {
                let missing = "is missing; or give --train_file, --dataset_name, --dataset_dir or --data_service";
                return Err(Error::config("--train_file_dir", missing));
            }
            [_] => {}
            [one, other, ..] => return Err(both(one, other)),
        }
        if arguments.streaming {
            check_streaming(&arguments)?;
        }
        say_ignored_service_flags(&arguments);
        for (flag, value) in [
            ("--per_device_train_batch_size", arguments.per_device_train_batch_size),
            ("--per_device_eval_batch_size", arguments.per_device_eval_batch_size),
            ("--gradient_accumulation_steps", arguments.gradient_accumulation_steps),
        ] {
            if value == 0 {
                return Err(Error::config(flag, "cannot be 0"));
            }
        }
        let finite = |flag: &str, value: f64, allowed: std::ops::Range<f64>| {
            if allowed.contains(&value) { Ok(()) } else { Err(Error::config(flag, format!("cannot be {value}"))) }
        };
        finite("--learning_rate", arguments.learning_rate, 0.0..f64::INFINITY)?;
        finite("--weight_decay", arguments.weight_decay, 0.0..f64::INFINITY)?;
        finite("--adam_beta1", arguments.adam_beta1, 0.0..1.0)?;
        finite("--adam_beta2", arguments.adam_beta2, 0.0..1.0)?;
        finite("--adam_epsilon", arguments.adam_epsilon, 0.0..f64::INFINITY)?;
        finite("--max_grad_norm", arguments.max_grad_norm, 0.0..f64::INFINITY)?;
        finite("--lora_dropout", arguments.lora_dropout, 0.0..1.0)?;
        finite("--lora_alpha", arguments.lora_alpha, 0.0..f64::INFINITY)?;
        if arguments.use_peft && arguments.lora_rank == 0 {
            return Err(Error::config("--lora_rank", "cannot be 0; train all parameters with --use_peft false"));
        }
        optim_args::parse(arguments.optim_args.as_deref(), arguments.optim, |line| eprintln!("{line}"))?;
        let quantisation = quantisation(&arguments)?;
        say_ignored_adapter_flags(&arguments);
        arguments.data.say_without_effect();
        finite("--label_smoothing_factor", arguments.label_smoothing_factor, 0.0..1.0)?;
        finite("--neftune_noise_alpha", arguments.neftune_noise_alpha, 0.0..f64::INFINITY)?;
        if arguments.fp16 && arguments.bf16 {
            return Err(both("--fp16", "--bf16"));
        }
        if arguments.fp16_full_eval && arguments.bf16_full_eval {
            return Err(both("--fp16_full_eval", "--bf16_full_eval"));
        }
        if arguments.fp16 {
            eprintln!("--fp16 scales the loss so that gradients do not vanish; --bf16 is as fast and needs no scaling");
        }
        if arguments.debug.contains(&Debug::TpuMetricsDebug) {
            eprintln!("--debug tpu_metrics_debug has no effect here: there is no TPU");
        }
        if arguments.lr_scheduler_type.is_adaptive() && arguments.eval_strategy == Strategy::No {
            let reason = "follows evaluations; give --eval_strategy steps or epoch";
            return Err(Error::config("--lr_scheduler_type", reason));
        }
        finite("--eval_delay", arguments.eval_delay, 0.0..f64::INFINITY)?;
        finite("--warmup_ratio", arguments.warmup_ratio, 0.0..1.0 + f64::EPSILON)?;
        finite("--warmup_steps", arguments.warmup_steps, 0.0..f64::INFINITY)?;
        if arguments.max_steps <= 0 {
            finite("--num_train_epochs", arguments.num_train_epochs, f64::MIN_POSITIVE..f64::INFINITY)?;
        }
        if arguments.save_total_limit == Some(0) {
            return Err(Error::config(
                "--save_total_limit",
                "cannot be 0; use --save_strategy no to keep no checkpoint",
            ));
        }
        let quiet = matches!(arguments.log_level, LogLevel::Warning | LogLevel::Error);
        progress::hide(arguments.disable_tqdm.unwrap_or(quiet), arguments.log_level == LogLevel::Error);
        let neither = !arguments.do_train && !arguments.do_eval;
        if neither {
            eprintln!("neither --do_train nor --do_eval is given: training");
        }
        let evaluate = arguments.do_eval || arguments.eval_strategy != Strategy::No;
        let named = [
            arguments.model_name_or_path.clone(),
            arguments.init_from_config.clone(),
            arguments.tokenizer_name_or_path.clone(),
        ];
        let drop_last_size = arguments.per_device_train_batch_size as u64;
        let train = arguments.do_train || neither;
        Ok(Self {
            train,
            evaluate,
            drop_last_size,
            quantisation,
            output_dir,
            named,
            arguments,
            new_tokens: None,
            in_use: Mutex::default(),
            #[cfg(feature = "cuda")]
            gpu: None,
        })
    }

    /// Fetches what is named by its hub id.
    pub fn fetch(&mut self) -> Result<()> {
        let TrainerArguments {
            model_name_or_path, init_from_config, tokenizer_name_or_path, peft_path, hub, data, ..
        } = &mut self.arguments;
        let adapter = HubArguments { model_revision: "main".to_owned(), ..hub.clone() };
        for (flag, path, wanted, hub) in [
            ("--model_name_or_path", model_name_or_path, &hub::model_files as hub::Wanted<'_>, &*hub),
            ("--init_from_config", init_from_config, &configuration_and_tokenizer, &*hub),
            ("--tokenizer_name_or_path", tokenizer_name_or_path, &hub::tokenizer_files, &*hub),
            ("--peft_path", peft_path, &hub::model_files, &adapter),
        ] {
            if let Some(given) = path {
                *given = hub::model_directory(flag, given, wanted, hub, data.cache_dir.as_deref())?;
            }
        }
        Ok(())
    }

    /// What was said, with hub ids as they were given.
    pub fn said(&self) -> TrainerArguments {
        let [model_name_or_path, init_from_config, tokenizer_name_or_path] = self.named.clone();
        TrainerArguments { model_name_or_path, init_from_config, tokenizer_name_or_path, ..self.arguments.clone() }
    }

    /// The directory of the tokenizer.
    fn tokenizer_dir(&self) -> Result<&Path> {
        let arguments = &self.arguments;
        let dir = arguments.tokenizer_name_or_path.as_deref().or(arguments.model_name_or_path.as_deref());
        dir.or(arguments.init_from_config.as_deref().filter(|path| path.is_dir()))
            .ok_or_else(|| Error::config("--tokenizer_name_or_path", "is missing"))
    }

    /// What is trained on.
    pub fn open_data(&self) -> Result<TrainingSet> {
        let data = self.open_source()?;
        if self.arguments.shuffle_window.is_some() && !matches!(data.source, Source::Live(_)) {
            eprintln!(
                "--shuffle_window has no effect here: it is for text that is streamed; a dataset is shuffled whole"
            );
        }
        Ok(data)
    }

    /// The dataset as given, or prepared now (or found prepared in the cache), or the text itself.
    fn open_source(&self) -> Result<TrainingSet> {
        if let Some(address) = &self.arguments.data_service {
            return self.open_service(address);
        }
        if self.arguments.streaming {
            let options = self.prepare_options(self.arguments.data.clone())?;
            return TrainingSet::live(Live::open(&options, self.arguments.streaming_cache)?);
        }
        // Flags of a dataset that is made now are in its fingerprint; one that is given may be cut anew.
        match Given::parse(&self.arguments.dataset_dir)? {
            Given::Nothing => TrainingSet::prepared(self.prepared_text()?, None),
            Given::One(dir) => TrainingSet::prepared(self.open_dataset(&dir)?, self.arguments.data.block_size),
            Given::Named(named) => {
                let datasets = named.iter().map(|one| self.open_dataset(&one.dir)).collect::<Result<Vec<_>>>()?;
                Ok(TrainingSet::mixed(Mixed::new(&named, datasets, self.arguments.data.block_size)?))
            }
        }
    }

    fn open_service(&self, address: &str) -> Result<TrainingSet> {
        let arguments = &self.arguments;
        refuse_data_flags(&arguments.data, "--data_service")?;
        let seconds = arguments.data_service_timeout;
        let patience = Duration::try_from_secs_f64(seconds)
            .map_err(|_| Error::config("--data_service_timeout", format!("cannot be {seconds}")))?;
        let access = Access {
            address: address.to_owned(),
            token_file: arguments.data_service_token_file.clone(),
            ca_file: arguments.data_service_ca_file.clone(),
            cert_file: arguments.data_service_cert_file.clone(),
            key_file: arguments.data_service_key_file.clone(),
            patience,
        };
        let service = Service::open(Connection::new(&access)?, arguments.data.block_size)?;
        if service.is_live() {
            check_text_order(arguments)?;
        }
        TrainingSet::served(service, &cache_dir(arguments.data.cache_dir.as_deref())?)
    }

    fn open_dataset(&self, dir: &Path) -> Result<Dataset> {
        let (dataset, data) = (Dataset::open(dir)?, &self.arguments.data);
        refuse_data_flags(data, "--dataset_dir")?;
        if data.is_compat(Compat::RunClm) && dataset.manifest().head.settings["packing"] != "run_clm" {
            let reason =
                "is run_clm, and the dataset of --dataset_dir was packed otherwise; give it to `preprocess prepare`";
            return Err(Error::config("--compat", reason));
        }
        Ok(dataset)
    }

    /// The dataset of the training text, and of what is set aside of it.
    fn prepared_text(&self) -> Result<Dataset> {
        let mut data = self.arguments.data.clone();
        if matches!(data.validation_text()?, ValidationText::Named(_)) {
            // They come apart; nothing of the training text is set aside.
            (data.validation_file_dir, data.validation_split_percentage) = (Vec::new(), 0.0);
        }
        self.prepared(data)
    }

    /// What is evaluated: the dataset's validation split, or the sets with names, each prepared by itself.
    pub fn validation_sets(&self, training: &TrainingSet) -> Result<Vec<EvaluationSet>> {
        let data = &self.arguments.data;
        let sets: Vec<(Option<String>, Option<PathBuf>)> = match (data.validation_text()?, &training.source) {
            (ValidationText::Named(sets), _) => sets.into_iter().map(|(name, dir)| (Some(name), Some(dir))).collect(),
            (ValidationText::One(dir), Source::Live(_)) => vec![(None, Some(dir))],
            (ValidationText::None, Source::Live(_)) if !data.validation_file.is_empty() => vec![(None, None)],
            (_, Source::Live(text)) => return Ok(EvaluationSet::held(text.validation.clone()).into_iter().collect()),
            (_, Source::Served(service)) => {
                return Ok(EvaluationSet::served(service, data.validation_blocks_limit()).into_iter().collect());
            }
            (_, Source::Mixed(mixed)) => {
                let (limit, shares) = (data.validation_blocks_limit(), mixed.mixture.shares());
                let sets = mixed.datasets.iter().zip(shares).map(|(dataset, share)| {
                    let name = Some(share.name.clone());
                    EvaluationSet::open(name, dataset, Split::Validation, training.block_size, limit)
                });
                return sets.filter_map(Result::transpose).collect();
            }
            (_, Source::Prepared(dataset)) => {
                let limit = data.validation_blocks_limit();
                let set = EvaluationSet::open(None, dataset, Split::Validation, training.block_size, limit)?;
                return Ok(set.into_iter().collect());
            }
        };
        let mut opened = Vec::new();
        for (name, dir) in sets.into_iter().filter(|_| self.evaluate) {
            let prepared = self.prepared(DataArguments {
                train_file: if dir.is_some() { Vec::new() } else { data.validation_file.clone() },
                train_file_dir: dir,
                validation_file_dir: Vec::new(),
                validation_file: Vec::new(),
                validation_split_percentage: 0.0,
                dataset_name: None,
                dataset_config_name: None,
                max_train_samples: data.max_eval_samples,
                max_eval_samples: None,
                ..data.clone()
            })?;
            let block_size = prepared.manifest().block_size;
            let set = EvaluationSet::open(name.clone(), &prepared, Split::Train, block_size, None)?;
            let shown = name.unwrap_or_else(|| "its text".to_owned());
            let empty = || Error::config("--validation_file_dir", format!("{shown} makes no block; give more text"));
            opened.push(set.ok_or_else(empty)?);
        }
        Ok(opened)
    }

    fn prepared(&self, data: DataArguments) -> Result<Dataset> {
        let prepared = prepare(&self.prepare_options(data)?)?;
        prepared.lines().iter().for_each(|line| eprintln!("{line}"));
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner).extend(prepared.in_use);
        Dataset::open(&prepared.dataset_dir)
    }

    fn prepare_options(&self, data: DataArguments) -> Result<PrepareOptions> {
        Ok(PrepareOptions {
            data,
            hub: self.arguments.hub.clone(),
            tokenizer: self.tokenizer_dir()?.to_owned(),
            model: self.arguments.model_name_or_path.clone(),
            output: Output::Cache,
            tuning: Tuning::default(),
        })
    }

    /// Finds what is new to the model in the tokenizer of the data. Weights are not read.
    ///
    /// # Errors
    /// See [`NewTokens::plan`].
    pub fn find_new_tokens(&mut self, data: &TrainingSet) -> Result<()> {
        self.new_tokens = NewTokens::plan(&self.arguments, data, self.train)?;
        Ok(())
    }

    /// The model to begin with: the base, its adapters unless all of it is trained, rows for new tokens.
    pub fn open_model(&self) -> Result<Model> {
        let mut model = self.open_base()?;
        let arguments = &self.arguments;
        match &arguments.peft_path {
            _ if !arguments.use_peft => {}
            Some(dir) => model.load_adapters(dir, arguments.seed)?,
            None => model.add_adapters(arguments.lora_settings(), arguments.seed)?,
        }
        if let Some(new_tokens) = &self.new_tokens {
            let rows_now = model.config().vocab_size;
            model.resize_vocabulary(new_tokens, arguments.new_token_init, arguments.seed)?;
            eprintln!("{}", new_tokens.line(arguments.new_token_init, rows_now));
        }
        self.train_rows(&mut model)?;
        Ok(model)
    }

    /// Freezes all rows of embedding and head but the new ones, if that was asked for.
    fn train_rows(&self, model: &mut Model) -> Result<()> {
        match &self.new_tokens {
            Some(new_tokens) if self.arguments.train_new_rows_only => {
                model.train_rows_only(new_tokens.untrained.clone())
            }
            _ => Ok(()),
        }
    }

    /// Reads the model's configuration, so that a model that cannot be trained is refused before data is prepared.
    pub fn check_model(&self) -> Result<()> {
        let arguments = &self.arguments;
        let base = arguments.model_name_or_path.as_deref().or(arguments.init_from_config.as_deref());
        let config = Config::load(base.expect("one of both is given"))?;
        if let (Some(dir), false) = (base, config.json["quantization_config"].is_null()) {
            self.check_quantised(dir, &config)?;
        }
        check_model_type(arguments.model_type.as_deref(), &config)?;
        #[cfg(feature = "cuda")]
        self.check_gpu_takes(&config)?;
        let finished = !arguments.dataset_dir.is_empty() || arguments.data_service.is_some();
        if !finished { check_positions(&config, arguments.data.block_size()) } else { Ok(()) }
    }

    /// Checks what is asked of a checkpoint whose weights are quantised.
    fn check_quantised(&self, dir: &Path, config: &Config) -> Result<()> {
        let method = config.json["quantization_config"]["quant_method"].as_str().unwrap_or("bitsandbytes");
        if method != "bitsandbytes" {
            let reason =
                format!("is quantised by {method}; only bitsandbytes is read, or a model that is not quantised");
            return Err(Error::config(dir.display().to_string(), reason));
        }
        if !self.arguments.use_peft && self.train {
            let reason =
                format!("is false, and the weights of {} are quantised, which cannot be trained", dir.display());
            return Err(Error::config("--use_peft", format!("{reason}; train adapters with --use_peft true")));
        }
        if self.quantisation.is_some() {
            eprintln!("{}: the weights are quantised already, and stay as they are", dir.display());
        }
        Ok(())
    }

    /// What adapters call the model they are beside.
    pub fn base_name(&self) -> String {
        let base = self.named[0].as_deref().or(self.named[1].as_deref());
        base.map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// The base: loaded, or with seeded random weights; rounded, and quantised if that is asked for.
    fn open_base(&self) -> Result<Model> {
        let arguments = &self.arguments;
        if let Some(dir) = &arguments.model_name_or_path {
            return Model::load_frozen(dir, arguments.torch_dtype, self.quantisation);
        }
        let path = arguments.init_from_config.as_deref().expect("one of both is given");
        let mut model = Model::init(Config::load(path)?, arguments.seed)?;
        model.round(arguments.torch_dtype)?;
        self.quantisation.map_or(Ok(()), |quantisation| model.quantise(quantisation))?;
        Ok(model)
    }

    /// The model of the checkpoint in `dir`; another shape than the one asked for is refused by name.
    pub fn open_resumed(&self, dir: &Path) -> Result<Model> {
        if self.arguments.use_peft {
            let mut model = self.open_base()?;
            model.load_adapters(dir, self.arguments.seed)?;
            self.train_rows(&mut model)?;
            return Ok(model);
        }
        let base = self.arguments.model_name_or_path.as_deref().or(self.arguments.init_from_config.as_deref());
        let asked = Config::load(base.expect("one of both is given"))?;
        let mut model = Model::load(dir)?;
        self.train_rows(&mut model)?;
        let saved = model.config();
        let shape = |config: &Config| {
            [
                ("hidden_size", config.hidden_size),
                ("intermediate_size", config.intermediate_size),
                ("num_hidden_layers", config.num_hidden_layers),
                ("num_attention_heads", config.num_attention_heads),
                ("num_key_value_heads", config.num_key_value_heads),
                ("head_dim", config.head_dim),
            ]
        };
        let rows = self.new_tokens.as_ref().map_or(asked.vocab_size, |new_tokens| new_tokens.rows);
        let rows = (("vocab_size", saved.vocab_size), ("vocab_size", rows));
        let shapes = shape(saved).into_iter().zip(shape(&asked));
        let differs = std::iter::once(rows).chain(shapes).find(|(saved, asked)| saved != asked);
        let text = match differs {
            Some(((field, saved), (_, asked))) => format!("{field} = {saved}, the model asked for has {asked}"),
            None if saved.family != asked.family => {
                format!("family {:?}, the model asked for is of {:?}", saved.family, asked.family)
            }
            None => return Ok(model),
        };
        Err(Error::config(
            "--resume_from_checkpoint",
            format!("{} has {text}; use the same model, or start anew in another --output_dir", dir.display()),
        ))
    }

    /// Tells the model how to compute.
    ///
    /// # Errors
    /// Only of a GPU, whose memory it may not fit.
    pub fn set_up(&self, model: &mut Model) -> Result<()> {
        let arguments = &self.arguments;
        model.set_seed(arguments.seed);
        model.precision = match (arguments.fp16, arguments.bf16) {
            (true, _) => Precision::F16,
            (_, true) => Precision::Bf16,
            _ => Precision::F32,
        };
        model.label_smoothing = arguments.label_smoothing_factor as f32;
        let alpha = arguments.neftune_noise_alpha as f32;
        model.embedding_noise = (alpha > 0.0).then_some(EmbeddingNoise { alpha, seed: arguments.seed, pass: 0 });
        self.place(model)
    }

    /// Moves a model to where it computes.
    fn place(&self, model: &mut Model) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return model.move_to(gpu.clone());
        }
        let _ = model;
        Ok(())
    }

    /// What a step's loss is the mean over.
    pub fn loss_mean(&self) -> LossMean {
        match (self.arguments.data.is_compat(Compat::Hf457), self.arguments.label_smoothing_factor > 0.0) {
            (false, _) => LossMean::Predicted,
            (true, false) => LossMean::AllLabels,
            (true, true) => LossMean::MicroBatches,
        }
    }

    /// Whether the model computes otherwise when it is not being trained.
    pub fn changes_evaluation(&self) -> bool {
        self.arguments.fp16_full_eval || self.arguments.bf16_full_eval
    }

    /// Tells the model how to compute when it is not being trained.
    pub fn set_up_evaluation(&self, model: &mut Model) -> Result<()> {
        if self.changes_evaluation() {
            model.precision = if self.arguments.fp16_full_eval { Precision::F16 } else { Precision::Bf16 };
            self.place(model)?;
        }
        Ok(())
    }

    /// Checks that the model can take the blocks.
    pub fn check_fit(&self, model: &Model, data: &TrainingSet) -> Result<()> {
        let config = model.config();
        let largest = data.largest_token_id as usize;
        if largest >= config.vocab_size {
            let reason = format!(
                "the tokenizer's largest id is {largest}, the checkpoint has {} rows; go on with the tokenizer it was trained with, or start anew in another --output_dir",
                config.vocab_size
            );
            return Err(Error::config("--tokenizer_name_or_path", reason));
        }
        if data.block_size < 2 {
            return Err(Error::config(
                "--block_size",
                "must be 2 or more to train: a block of one token predicts nothing",
            ));
        }
        check_positions(config, data.block_size)
    }

    /// Blocks of an epoch, of `blocks` training blocks.
    fn blocks_per_epoch(&self, blocks: u64) -> u64 {
        let batch = self.drop_last_size;
        if self.arguments.dataloader_drop_last { blocks / batch * batch } else { blocks }
    }

    /// The size of micro-batches that an epoch is whole in, if what is left is left out.
    pub fn drop_last(&self) -> Option<usize> {
        self.arguments.dataloader_drop_last.then_some(self.drop_last_size as usize)
    }

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

    /// What a resumed run must share with the one that saved the checkpoint.
    pub fn result_settings(&self, data: &TrainingSet, blocks: Option<u64>) -> ResultSettings {
        let arguments = &self.arguments;
        let live = matches!(data.source, Source::Live(_));
        let random = arguments.train_sampling_strategy == Sampling::Random && arguments.shuffle == Shuffle::Global;
        let random = random && !live;
        // Of live text the count may become known between one run and the next; what counts is what was asked for.
        let asked = || arguments.data.train_blocks_limit().unwrap_or(0);
        let blocks = blocks.filter(|_| !live).unwrap_or_else(asked);
        ResultSettings {
            dataset: data.fingerprint.clone(),
            train_blocks: blocks,
            blocks_per_epoch: self.blocks_per_epoch(blocks),
            blocks_per_step: (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps) as u64,
            data_seed: arguments.data_seed.unwrap_or(arguments.seed),
            random_order: random,
            quantisation: self.quantisation.map(Quantisation::name),
            document_mask: arguments.document_mask,
            shuffle_window: arguments.shuffle_window.filter(|_| live),
            mixture: match &data.source {
                Source::Mixed(mixed) => mixed.mixture.clone(),
                _ => Mixture::default(),
            },
        }
    }
}

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

/// The settings a checkpoint cannot be resumed without: change one and the remaining steps would see other
/// data. Schedule, limits, logging and the split of a step into micro-batches may change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultSettings {
    /// Fingerprint of the dataset.
    pub dataset: String,
    /// Training blocks that are drawn from.
    pub train_blocks: u64,
    /// Those of one epoch: fewer if a short last micro-batch is left out.
    pub blocks_per_epoch: u64,
    /// Blocks in an optimizer step.
    pub blocks_per_step: u64,
    /// Seed of the order.
    pub data_seed: u64,
    /// Whether blocks are drawn in random order.
    pub random_order: bool,
    /// What the frozen weights are kept in, if not in float32.
    #[serde(default)]
    pub quantisation: Option<String>,
    /// Whether documents do not see each other.
    #[serde(default)]
    pub document_mask: bool,
    /// The datasets that are mixed, if any are.
    #[serde(default)]
    pub mixture: Mixture,
    /// Of live text, the windows that it is shuffled in, if it is.
    #[serde(default)]
    pub shuffle_window: Option<usize>,
}

/// What cannot be while text is prepared.
fn check_streaming(arguments: &TrainerArguments) -> Result<()> {
    let finished =
        [("--dataset_dir", !arguments.dataset_dir.is_empty()), ("--data_service", arguments.data_service.is_some())];
    if let Some((flag, _)) = finished.into_iter().find(|(_, given)| *given) {
        return Err(Error::config(
            "--streaming",
            format!("reads text, and {flag} has blocks already; give one of both"),
        ));
    }
    check_text_order(arguments)
}

/// What cannot be where blocks come in the order of the text.
fn check_text_order(arguments: &TrainerArguments) -> Result<()> {
    if arguments.ignore_data_skip {
        let reason = "begins an epoch again to save the time of going on, which with text takes none; remove it";
        return Err(Error::config("--ignore_data_skip", reason));
    }
    let sequential = arguments.train_sampling_strategy == Sampling::Sequential || arguments.shuffle == Shuffle::None;
    match arguments.shuffle_window {
        Some(0) => Err(Error::config("--shuffle_window", "cannot be 0; leave it out for the order of the text")),
        Some(_) if sequential => {
            let flag = if arguments.shuffle == Shuffle::None { "--shuffle" } else { "--train_sampling_strategy" };
            let reason = format!("is for a random order, and {flag} asks for that of the text; leave one of both out");
            Err(Error::config("--shuffle_window", reason))
        }
        None if !sequential => {
            eprintln!(
                "blocks come in the order of the text; where that is sorted, give --shuffle_window, or prepare it, for a random order"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The files that a model of random weights is made by.
fn configuration_and_tokenizer(names: &[String]) -> Vec<String> {
    let mut files = hub::configuration_files(names);
    let tokenizer = if files.is_empty() { Vec::new() } else { hub::tokenizer_files(names) };
    files.extend(tokenizer.into_iter().filter(|name| name != "config.json"));
    files
}

/// Blocks may be longer than a model was made for, but not than its table of positions.
fn check_positions(config: &Config, block_size: usize) -> Result<()> {
    let positions = config.max_position_embeddings;
    if block_size <= positions {
        return Ok(());
    }
    let go_on = match config.positions {
        Positions::Learned => {
            let reason = format!(
                "{block_size} is beyond the {positions} positions that this model ({}) has vectors for; use --block_size {positions} or less",
                config.family.model_type()
            );
            return Err(Error::config("--block_size", reason));
        }
        Positions::Rotary(_) => "rotary embedding goes on beyond them",
        Positions::Alibi => "ALiBi goes on beyond them",
    };
    eprintln!(
        "blocks of {block_size} tokens are longer than the {positions} positions this model was made for; {go_on}"
    );
    Ok(())
}

/// MedicalGPT's `--model_type` names families, some of them several of config.json's.
fn check_model_type(asked: Option<&str>, config: &Config) -> Result<()> {
    let Some(asked) = asked.map(str::to_lowercase).filter(|asked| !matches!(asked.as_str(), "auto" | "none" | ""))
    else {
        return Ok(());
    };
    if config.family.is_called(&asked) {
        return Ok(());
    }
    let found = config.family.model_type();
    Err(Error::config("--model_type", format!("is {asked}, config.json says {found:?}; use auto, or the right model")))
}

/// What the frozen weights are kept in. The combinations are those of MedicalGPT; what differs from it is said.
fn quantisation(arguments: &TrainerArguments) -> Result<Option<Quantisation>> {
    let compat = arguments.data.is_compat(Compat::Medicalgpt);
    let (eight, four, qlora) = (arguments.load_in_8bit, arguments.load_in_4bit, arguments.qlora);
    if eight && four {
        return Err(both("--load_in_8bit", "--load_in_4bit"));
    }
    if arguments.int8_threshold.is_some_and(|threshold| !(0.0..f32::INFINITY).contains(&threshold)) {
        return Err(Error::config("--int8_threshold", "must be 0 (no outliers) or more"));
    }
    if arguments.int8_threshold.is_some() && !eight {
        eprintln!("--int8_threshold has no effect here: it is for --load_in_8bit");
    }
    let nf4 = Quantisation::FourBit { codebook: Codebook::Nf4, double: true };
    let (flag, quantisation) = match (eight, four, qlora) {
        (true, ..) => {
            if qlora {
                eprintln!("--qlora has no effect here: it is for 4 bits, and --load_in_8bit is given");
            }
            ("--load_in_8bit", Quantisation::Int8 { threshold: arguments.int8_threshold })
        }
        (_, true, true) => ("--load_in_4bit", nf4),
        (_, true, false) if compat => {
            ("--load_in_4bit", Quantisation::FourBit { codebook: Codebook::Fp4, double: false })
        }
        (_, true, false) => {
            eprintln!(
                "--load_in_4bit without --qlora: MedicalGPT takes FP4, which is less exact; NF4 with double quantisation is used, as with --qlora (for FP4: --compat medicalgpt)"
            );
            ("--load_in_4bit", nf4)
        }
        (_, false, true) if compat => {
            eprintln!("--qlora has no effect here: without --load_in_4bit MedicalGPT does not quantise");
            return Ok(None);
        }
        (_, false, true) => {
            eprintln!("--qlora without --load_in_4bit: the model is loaded in 4 bits, as if both were given");
            ("--qlora", nf4)
        }
        (false, false, false) => return Ok(None),
    };
    if !arguments.use_peft {
        let reason = format!("is false, and {flag} asks for quantised weights, which cannot be trained");
        return Err(Error::config(
            "--use_peft",
            format!("{reason}; train adapters with --use_peft true, or remove {flag}"),
        ));
    }
    Ok(Some(quantisation))
}

/// A flag for adapters does nothing where there are none, or where an adapter brings its own settings.
fn say_ignored_adapter_flags(arguments: &TrainerArguments) {
    let default = TrainerArguments::default();
    let given = [
        ("--lora_rank", arguments.lora_rank != default.lora_rank),
        ("--lora_alpha", arguments.lora_alpha != default.lora_alpha),
        ("--lora_dropout", arguments.lora_dropout != default.lora_dropout),
        ("--target_modules", arguments.target_modules != default.target_modules),
        ("--modules_to_save", arguments.modules_to_save != default.modules_to_save),
        ("--use_rslora", arguments.use_rslora),
    ];
    let reason = match (&arguments.peft_path, arguments.use_peft) {
        (_, false) => "there are no adapters with --use_peft false".to_owned(),
        (Some(dir), true) => format!("the settings are those of {}", dir.join("adapter_config.json").display()),
        (None, true) => return,
    };
    for (flag, _) in given.into_iter().filter(|(_, given)| *given) {
        eprintln!("{flag} has no effect here: {reason}");
    }
}

/// Flags of a service do nothing where there is none.
fn say_ignored_service_flags(arguments: &TrainerArguments) {
    let given = [
        ("--data_service_token_file", arguments.data_service_token_file.is_some()),
        ("--data_service_ca_file", arguments.data_service_ca_file.is_some()),
        ("--data_service_cert_file", arguments.data_service_cert_file.is_some()),
        ("--data_service_key_file", arguments.data_service_key_file.is_some()),
    ];
    for (flag, _) in given.into_iter().filter(|(_, given)| *given && arguments.data_service.is_none()) {
        eprintln!("{flag} has no effect here: there is no --data_service");
    }
}

fn both(one: &str, other: &str) -> Error {
    Error::config(one, format!("and {other} are both given; give one"))
}

/// With a dataset that is made elsewhere, given by `flag`, flags that shape datasets would silently do nothing.
fn refuse_data_flags(data: &DataArguments, flag_given: &str) -> Result<()> {
    let default = DataArguments::default();
    let kept = DataArguments {
        block_size: data.block_size,
        max_train_samples: data.max_train_samples,
        max_eval_samples: data.max_eval_samples,
        cache_dir: data.cache_dir.clone(),
        compat: data.compat.clone(),
        group_by_length: data.group_by_length,
        preprocessing_num_workers: data.preprocessing_num_workers,
        ..default
    };
    let (given, kept) = (serde_json::json!(data), serde_json::json!(kept));
    let changed = given.as_object().into_iter().flatten().find(|(flag, value)| kept[flag.as_str()] != **value);
    match changed {
        Some((flag, _)) => Err(Error::config(
            format!("--{flag}"),
            match flag_given {
                "--data_service" => "has no effect with --data_service; give it to `preprocess prepare` or `serve`",
                _ => "has no effect with --dataset_dir, which is finished; give it to `preprocess prepare`",
            },
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut TrainerArguments)) -> Result<Plan> {
        let mut arguments = TrainerArguments {
            use_peft: false,
            model_name_or_path: Some("m".into()),
            dataset_dir: vec!["d".into()],
            output_dir: Some("o".into()),
            do_train: true,
            ..TrainerArguments::default()
        };
        change(&mut arguments);
        Plan::new(arguments)
    }

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

    #[test]
    fn combinations_of_quantisation_are_medicalgpts_or_ours() {
        let found = |eight: bool, four: bool, qlora: bool, use_peft: bool, compat: Option<Compat>| {
            let change = |arguments: &mut TrainerArguments| {
                (arguments.load_in_8bit, arguments.load_in_4bit) = (eight, four);
                (arguments.qlora, arguments.use_peft) = (qlora, use_peft);
                arguments.data.compat = compat.into_iter().collect();
            };
            plan(change).map(|plan| plan.quantisation.map(Quantisation::name)).map_err(|error| error.to_string())
        };
        let (nf4, fp4, int8) = (Some("nf4, double".to_owned()), Some("fp4".to_owned()), Some("int8".to_owned()));
        let medicalgpt = Some(Compat::Medicalgpt);
        for compat in [None, medicalgpt] {
            assert_eq!(found(false, false, false, true, compat), Ok(None));
            assert_eq!(found(true, false, false, true, compat), Ok(int8.clone()));
            assert_eq!(found(true, false, true, true, compat), Ok(int8.clone()));
            assert_eq!(found(false, true, true, true, compat), Ok(nf4.clone()));
            let error = found(true, true, false, true, compat).unwrap_err();
            assert!(error.contains("--load_in_8bit") && error.contains("--load_in_4bit"), "{error}");
            for (eight, four, flag) in [(true, false, "--load_in_8bit"), (false, true, "--load_in_4bit")] {
                let error = found(eight, four, true, false, compat).unwrap_err();
                assert!(error.contains("--use_peft") && error.contains(flag), "{error}");
            }
        }
        assert_eq!(found(false, true, false, true, None), Ok(nf4.clone()));
        assert_eq!(found(false, true, false, true, medicalgpt), Ok(fp4));
        assert_eq!(found(false, false, true, true, None), Ok(nf4));
        assert_eq!(found(false, false, true, true, medicalgpt), Ok(None));
        assert!(found(false, false, true, false, None).unwrap_err().contains("--qlora"));
        let error = plan(|arguments| arguments.int8_threshold = Some(-1.0)).unwrap_err().to_string();
        assert!(error.contains("--int8_threshold"), "{error}");
    }

    #[test]
    fn contradictions_name_both_flags() {
        let error = plan(|arguments| arguments.data.train_file_dir = Some("t".into())).unwrap_err().to_string();
        assert!(error.contains("--train_file_dir") && error.contains("--dataset_dir"), "{error}");
        let base = |arguments: &mut TrainerArguments| arguments.init_from_config = Some("c".into());
        let error = plan(base).unwrap_err().to_string();
        assert!(error.contains("--model_name_or_path") && error.contains("--init_from_config"), "{error}");
        let data =
            DataArguments { sample_by: tokenmill_shared::config::SampleBy::Document, ..DataArguments::default() };
        let error = refuse_data_flags(&data, "--dataset_dir").unwrap_err().to_string();
        assert!(error.contains("--sample_by"), "{error}");
    }
}
