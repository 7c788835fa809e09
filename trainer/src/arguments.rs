//! The command line: each parameter once, with its Hugging Face name and default.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokenmill_shared::config::{DataArguments, HubArguments, boolean};

use crate::model::LoraSettings;
use crate::optimizer::Rule;
use crate::schedule::Kind;

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many steps.
    Steps,
    /// At the end of every epoch.
    Epoch,
}

/// When a checkpoint is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum SaveStrategy {
    /// Never.
    No,
    /// Every so many steps, and at the end.
    Steps,
    /// At the end of every epoch.
    Epoch,
    /// Whenever an evaluation is the best so far.
    Best,
}

/// What weights are rounded to when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Dtype {
    /// Nothing: as they are in the checkpoint
    #[value(aliases = ["none", "None"])]
    Auto,
    /// Nothing
    #[value(aliases = ["fp32", "torch.float32"])]
    Float32,
    /// bfloat16
    #[value(aliases = ["bf16", "torch.bfloat16"])]
    Bfloat16,
    /// float16
    #[value(aliases = ["fp16", "torch.float16"])]
    Float16,
}

impl Dtype {
    /// Rounds `values` to it.
    pub fn round(self, values: &mut [f32]) {
        match self {
            Self::Auto | Self::Float32 => {}
            Self::Bfloat16 => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
            Self::Float16 => values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
        }
    }
}

/// How the rows of new tokens begin, in the embedding and in the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum NewTokenInit {
    /// The mean of the rows of the pieces that the model's own tokenizer cuts the token into
    MeanOfPieces,
    /// As transformers does since 4.46: near the mean of all rows
    MeanResizing,
    /// As transformers did before: normal, with the configuration's initializer_range
    Normal,
}

/// What is said on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LogLevel {
    /// As without the flag
    Passive,
    /// Everything
    #[value(aliases = ["detail", "trace"])]
    Debug,
    /// Everything
    Info,
    /// No progress bar
    Warning,
    /// Only what goes wrong
    #[value(alias = "critical")]
    Error,
}

/// What becomes of a step whose loss or gradients are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum NonfiniteAction {
    /// It updates nothing and is counted; ten in a row stop the run
    Skip,
    /// The run stops
    Stop,
    /// The run goes back to the newest checkpoint and leaves the step out when it gets there again
    Rollback,
}

/// Which input tokens are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum CountedTokens {
    /// None.
    #[value(aliases = ["false", "False"])]
    No,
    /// All, padding included.
    #[value(aliases = ["true", "True"])]
    All,
    /// All but padding.
    NonPadding,
}

/// What is looked into when something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Debug {
    /// The run stops where numbers first leave their range, and shows what led there
    UnderflowOverflow,
    /// Nothing here: there is no TPU
    TpuMetricsDebug,
}

/// The order in which blocks are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Sampling {
    /// A new seeded permutation every epoch.
    Random,
    /// As they lie in the dataset.
    Sequential,
}

/// How blocks are shuffled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Shuffle {
    /// Over all blocks.
    Global,
    /// Not at all.
    None,
}

/// Everything `trainer` can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
#[serde(default)]
#[command(rename_all = "snake_case")]
pub struct TrainerArguments {
    /// Hugging Face model: a local directory (config.json and safetensors, or .bin) or a hub id
    #[arg(long, value_name = "DIR|ID", help_heading = "Model")]
    pub model_name_or_path: Option<PathBuf>,
    /// Start from random weights of this configuration (a directory, config.json or a hub id)
    #[arg(long, value_name = "PATH|ID", help_heading = "Model")]
    pub init_from_config: Option<PathBuf>,
    /// The family the model must be of: auto, llama, mistral, baichuan, bloom, gpt2, qwen (qwen2, qwen3 too), chatglm (glm, glm4), … as in config.json
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub model_type: Option<String>,
    /// Directory or hub id of the tokenizer (default: the model's)
    #[arg(long, value_name = "DIR|ID", help_heading = "Model")]
    pub tokenizer_name_or_path: Option<PathBuf>,
    /// How the rows of tokens begin that --tokenizer_name_or_path has and the model does not
    #[arg(long, help_heading = "Model")]
    pub new_token_init: NewTokenInit,
    /// Round the rows of the embedding and the head up to a multiple of this
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub pad_to_multiple_of: Option<usize>,
    /// Of the embedding and the head train only the rows of new tokens: beside LoRA adapters, or, with --use_peft false, nothing else
    #[arg(long, help_heading = "Model")]
    pub train_new_rows_only: bool,
    /// What the weights are rounded to when they are loaded; in memory they are float32
    #[arg(long, alias = "dtype", help_heading = "Model")]
    pub torch_dtype: Dtype,
    /// Keep the frozen model in 8 bits: each row by its largest magnitude
    #[arg(long, help_heading = "Model")]
    pub load_in_8bit: bool,
    /// Keep the frozen model in 4 bits: NF4 with double quantisation
    #[arg(long, help_heading = "Model")]
    pub load_in_4bit: bool,
    /// The same: NF4 with double quantisation
    #[arg(long, help_heading = "Model")]
    pub qlora: bool,
    /// With --load_in_8bit, multiply integers as LLM.int8 does, outliers from this magnitude apart (theirs is 6)
    #[arg(long, value_name = "MAGNITUDE", help_heading = "Model")]
    pub int8_threshold: Option<f32>,
    /// Train LoRA adapters beside the frozen model (Hugging Face's default); false trains all parameters
    #[arg(long, help_heading = "Adapters")]
    pub use_peft: bool,
    /// An adapter to go on from: PEFT's directory or a hub id; its own settings count
    #[arg(long, value_name = "DIR|ID", help_heading = "Adapters")]
    pub peft_path: Option<PathBuf>,
    /// Projections that get adapters: all, a list of names, or a regular expression for whole names
    #[arg(long, value_name = "NAMES", num_args = 1.., value_delimiter = ',', help_heading = "Adapters")]
    pub target_modules: Vec<String>,
    /// Rank of the adapters
    #[arg(long, value_name = "RANK", help_heading = "Adapters")]
    pub lora_rank: usize,
    /// Adapters are scaled by alpha / rank
    #[arg(long, value_name = "ALPHA", help_heading = "Adapters")]
    pub lora_alpha: f64,
    /// Share of an adapter's input that is dropped while training
    #[arg(long, value_name = "SHARE", help_heading = "Adapters")]
    pub lora_dropout: f64,
    /// Scale by alpha / √rank instead
    #[arg(long, help_heading = "Adapters")]
    pub use_rslora: bool,
    /// Modules trained whole and saved with the adapters: embed_tokens,lm_head
    #[arg(long, value_name = "NAMES", num_args = 1.., value_delimiter = ',', help_heading = "Adapters")]
    pub modules_to_save: Vec<String>,
    /// A dataset made by `preprocess prepare`, instead of --train_file_dir; or several, mixed by weight, each as NAME=DIR:WEIGHT
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Data")]
    pub dataset_dir: Vec<PathBuf>,
    /// Blocks from `preprocess serve`: grpc://HOST:PORT/NAME, or grpcs:// with TLS
    #[arg(long, value_name = "ADDRESS", help_heading = "Data")]
    pub data_service: Option<String>,
    /// The file that holds the token which the service asks for
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data_service_token_file: Option<PathBuf>,
    /// Who signs the service's certificate, PEM (default: those that browsers trust)
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data_service_ca_file: Option<PathBuf>,
    /// This trainer's certificate, PEM, for a service that asks for one
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data_service_cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub data_service_key_file: Option<PathBuf>,
    /// How long a service that does not answer is waited for
    #[arg(long, value_name = "SECONDS", help_heading = "Data")]
    pub data_service_timeout: f64,
    /// Train while the text of --train_file_dir is being prepared, in its own order: nothing is read before it is needed
    #[arg(long, help_heading = "Data")]
    pub streaming: bool,
    /// With --streaming: keep the token partitions that are made, so that the next epoch and the next run make none
    #[arg(long, help_heading = "Data")]
    pub streaming_cache: bool,
    /// With --streaming: draw blocks in random order from windows of so many, one after the other (default: in the order of the text)
    #[arg(long, value_name = "BLOCKS", help_heading = "Data")]
    pub shuffle_window: Option<usize>,
    /// Documents in a block do not see each other: attention stays inside each, and positions begin anew
    #[arg(long, help_heading = "Data")]
    pub document_mask: bool,
    /// Revision and token of what is named by its hub id.
    #[command(flatten)]
    pub hub: HubArguments,
    /// Text, documents and blocks.
    #[command(flatten)]
    pub data: DataArguments,
    /// Where checkpoints, the model and the results go
    #[arg(long, value_name = "DIR", help_heading = "Training")]
    pub output_dir: Option<PathBuf>,
    /// Start anew although there are checkpoints: they are moved aside
    #[arg(long, help_heading = "Training")]
    pub overwrite_output_dir: bool,
    /// Train (also if neither this nor --do_eval is given)
    #[arg(long, help_heading = "Training")]
    pub do_train: bool,
    /// Evaluate at the end
    #[arg(long, help_heading = "Training")]
    pub do_eval: bool,
    /// Train on the CPU, even where there is a GPU
    #[arg(long, alias = "no_cuda", help_heading = "Training")]
    pub use_cpu: bool,
    /// Blocks in a micro-batch
    #[arg(long, value_name = "BLOCKS", help_heading = "Training")]
    pub per_device_train_batch_size: usize,
    /// Blocks in an evaluation batch
    #[arg(long, value_name = "BLOCKS", help_heading = "Training")]
    pub per_device_eval_batch_size: usize,
    /// Leave out an epoch's last micro-batch if it is short
    #[arg(long, help_heading = "Training")]
    pub dataloader_drop_last: bool,
    /// Use smaller micro-batches, and more of them in a step, if those asked for do not fit into memory
    #[arg(long, help_heading = "Training")]
    pub auto_find_batch_size: bool,
    /// Micro-batches in an optimizer step
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: f64,
    /// Decoupled weight decay, of everything but biases and norms
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub weight_decay: f64,
    /// Decay of AdamW's first moment
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub adam_beta2: f64,
    /// AdamW's epsilon
    #[arg(long, value_name = "EPSILON", help_heading = "Training")]
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this norm; 0 for no limit
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub max_grad_norm: f64,
    /// The optimizer
    #[arg(long, help_heading = "Training")]
    pub optim: Rule,
    /// Settings of the optimizer, name=value with commas between; those of sgd: momentum, dampening, nesterov
    #[arg(long, value_name = "SETTINGS", help_heading = "Training")]
    pub optim_args: Option<String>,
    /// The old way to say --optim adafactor
    #[arg(long, help_heading = "Training")]
    pub adafactor: bool,
    /// Passes over the training blocks; may be fractional
    #[arg(long, value_name = "EPOCHS", help_heading = "Training")]
    pub num_train_epochs: f64,
    /// Optimizer steps, overriding epochs when above 0
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    pub max_steps: i64,
    /// How the learning rate goes after the warm-up
    #[arg(long, help_heading = "Training")]
    pub lr_scheduler_type: Kind,
    /// Settings of the schedule, as JSON: {"num_cycles": 2}
    #[arg(long, value_name = "JSON", value_parser = object, help_heading = "Training")]
    pub lr_scheduler_kwargs: Map<String, Value>,
    /// Warm-up as a share of all steps, used when --warmup_steps is 0
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    pub warmup_ratio: f64,
    /// Steps of linear warm-up; below 1, a share of all steps
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    pub warmup_steps: f64,
    /// Multiply in float16, with the loss scaled up so that gradients do not vanish; bf16 needs no scaling
    #[arg(long, help_heading = "Training")]
    pub fp16: bool,
    /// Evaluate in float16 when not training
    #[arg(long, help_heading = "Training")]
    pub fp16_full_eval: bool,
    /// Multiply in bfloat16; weights, sums, norms, softmax and optimizer stay in float32
    #[arg(long, help_heading = "Training")]
    pub bf16: bool,
    /// Evaluate in bfloat16 when not training
    #[arg(long, help_heading = "Training")]
    pub bf16_full_eval: bool,
    /// Weight of the mean over all tokens in the loss, beside that of the label
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    pub label_smoothing_factor: f64,
    /// Noise on the embeddings while training (NEFTune): uniform within ±alpha / √(tokens · hidden size); 0 for none
    #[arg(long, value_name = "ALPHA", value_parser = number_or_none, help_heading = "Training")]
    pub neftune_noise_alpha: f64,
    /// What becomes of a step whose loss or gradients are not finite
    #[arg(long, help_heading = "Training")]
    pub nonfinite_action: NonfiniteAction,
    /// When to log
    #[arg(long, help_heading = "Training")]
    pub logging_strategy: Strategy,
    /// Steps between logs; below 1, a share of all steps
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    pub logging_steps: f64,
    /// Log the first step too
    #[arg(long, help_heading = "Training")]
    pub logging_first_step: bool,
    /// Log the running mean in place of a loss that is not finite
    #[arg(long, help_heading = "Training")]
    pub logging_nan_inf_filter: bool,
    /// Where TensorBoard's files go (default: a directory of this run in runs/ in --output_dir)
    #[arg(long, value_name = "DIR", help_heading = "Training")]
    pub logging_dir: Option<PathBuf>,
    /// Who is told besides metrics.jsonl: none, all, tensorboard
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', help_heading = "Training")]
    pub report_to: Vec<String>,
    /// A name of the run, for the reports
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub run_name: Option<String>,
    /// Show no progress bar (default: if --log_level is warning or error)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = boolean, help_heading = "Training")]
    pub disable_tqdm: Option<bool>,
    /// What is said on standard error
    #[arg(long, help_heading = "Training")]
    pub log_level: LogLevel,
    /// Leave memory figures out of the results
    #[arg(long, help_heading = "Training")]
    pub skip_memory_metrics: bool,
    /// Log how many input tokens were seen, and how many a second
    #[arg(long, num_args = 0..=1, default_missing_value = "all", help_heading = "Training")]
    pub include_num_input_tokens_seen: CountedTokens,
    /// When a step is not finite, show where numbers first left their range, and stop
    #[arg(long, value_name = "WHAT", num_args = 0.., value_delimiter = ',', help_heading = "Training")]
    pub debug: Vec<Debug>,
    /// When to evaluate
    #[arg(long, alias = "evaluation_strategy", help_heading = "Training")]
    pub eval_strategy: Strategy,
    /// Steps between evaluations (default: logging_steps); below 1, a share of all steps
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    pub eval_steps: Option<f64>,
    /// Steps (epochs, with --eval_strategy epoch) before the first evaluation
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_delay: f64,
    /// Evaluate before the first step
    #[arg(long, help_heading = "Training")]
    pub eval_on_start: bool,
    /// End with the weights of the best checkpoint
    #[arg(long, help_heading = "Training")]
    pub load_best_model_at_end: bool,
    /// What makes a checkpoint the best: loss, nll, perplexity, accuracy, bits_per_byte
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub metric_for_best_model: Option<String>,
    /// Whether more of it is better (default: only of accuracy)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = boolean, help_heading = "Training")]
    pub greater_is_better: Option<bool>,
    /// When to save a checkpoint
    #[arg(long, help_heading = "Training")]
    pub save_strategy: SaveStrategy,
    /// Steps between checkpoints; below 1, a share of all steps
    #[arg(long, value_name = "STEPS", help_heading = "Training")]
    pub save_steps: f64,
    /// Checkpoints kept, the newest ones
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub save_total_limit: Option<usize>,
    /// Leave the optimizer's state out of checkpoints: smaller, but nothing can go on from them
    #[arg(long, help_heading = "Training")]
    pub save_only_model: bool,
    /// Seed of initial weights, and of the order of blocks unless --data_seed is given
    #[arg(long, help_heading = "Training")]
    pub seed: u64,
    /// Seed of the order of blocks
    #[arg(long, help_heading = "Training")]
    pub data_seed: Option<u64>,
    /// The order in which blocks are drawn
    #[arg(long, help_heading = "Training")]
    pub train_sampling_strategy: Sampling,
    /// How random order shuffles
    #[arg(long, help_heading = "Training")]
    pub shuffle: Shuffle,
    /// Keep only each layer's input and compute the rest again in the backward: less memory, the same bits
    #[arg(long, alias = "activation_checkpointing", help_heading = "Training")]
    pub gradient_checkpointing: bool,
    /// Continue from a checkpoint: its path, or true for the newest whole one in --output_dir
    #[arg(long, value_name = "PATH|true", help_heading = "Training")]
    pub resume_from_checkpoint: Option<String>,
    /// When going on, begin the epoch's blocks again instead of after those already seen
    #[arg(long, help_heading = "Training")]
    pub ignore_data_skip: bool,
    /// Print what the model writes after this text, before and after training
    #[arg(long, value_name = "TEXT", help_heading = "Training")]
    pub sample_prompt: Option<String>,
    /// Tokens of that sample
    #[arg(long, value_name = "TOKENS", help_heading = "Training")]
    pub sample_tokens: usize,
}

impl Default for TrainerArguments {
    fn default() -> Self {
        Self {
            model_name_or_path: None,
            init_from_config: None,
            model_type: None,
            tokenizer_name_or_path: None,
            new_token_init: NewTokenInit::MeanOfPieces,
            pad_to_multiple_of: None,
            train_new_rows_only: false,
            torch_dtype: Dtype::Auto,
            load_in_8bit: false,
            load_in_4bit: false,
            qlora: false,
            int8_threshold: None,
            use_peft: true,
            peft_path: None,
            target_modules: vec!["all".to_owned()],
            lora_rank: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.05,
            use_rslora: false,
            modules_to_save: Vec::new(),
            dataset_dir: Vec::new(),
            data_service: None,
            data_service_token_file: None,
            data_service_ca_file: None,
            data_service_cert_file: None,
            data_service_key_file: None,
            data_service_timeout: 600.0,
            streaming: false,
            streaming_cache: true,
            shuffle_window: None,
            document_mask: false,
            hub: HubArguments::default(),
            data: DataArguments::default(),
            output_dir: None,
            overwrite_output_dir: false,
            do_train: false,
            do_eval: false,
            use_cpu: false,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            dataloader_drop_last: false,
            auto_find_batch_size: false,
            gradient_accumulation_steps: 1,
            learning_rate: 5e-5,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            optim: Rule::AdamwTorch,
            optim_args: None,
            adafactor: false,
            num_train_epochs: 3.0,
            max_steps: -1,
            lr_scheduler_type: Kind::Linear,
            lr_scheduler_kwargs: Map::new(),
            warmup_ratio: 0.0,
            warmup_steps: 0.0,
            fp16: false,
            fp16_full_eval: false,
            bf16: false,
            bf16_full_eval: false,
            label_smoothing_factor: 0.0,
            neftune_noise_alpha: 0.0,
            nonfinite_action: NonfiniteAction::Skip,
            logging_strategy: Strategy::Steps,
            logging_steps: 500.0,
            logging_first_step: false,
            logging_nan_inf_filter: true,
            logging_dir: None,
            report_to: Vec::new(),
            run_name: None,
            disable_tqdm: None,
            log_level: LogLevel::Passive,
            skip_memory_metrics: true,
            include_num_input_tokens_seen: CountedTokens::No,
            debug: Vec::new(),
            eval_strategy: Strategy::No,
            eval_steps: None,
            eval_delay: 0.0,
            eval_on_start: false,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            save_strategy: SaveStrategy::Steps,
            save_steps: 500.0,
            save_total_limit: None,
            save_only_model: false,
            seed: 42,
            data_seed: None,
            train_sampling_strategy: Sampling::Random,
            shuffle: Shuffle::Global,
            gradient_checkpointing: false,
            resume_from_checkpoint: None,
            ignore_data_skip: false,
            sample_prompt: None,
            sample_tokens: 48,
        }
    }
}

impl TrainerArguments {
    /// What new adapters are like.
    pub fn lora_settings(&self) -> LoraSettings {
        LoraSettings {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            use_rslora: self.use_rslora,
            target_modules: self.target_modules.clone(),
            modules_to_save: self.modules_to_save.clone(),
        }
    }
}

/// A JSON object, or a Python `None` for an empty one.
fn object(text: &str) -> Result<Map<String, Value>, String> {
    match text.trim() {
        "" | "None" | "none" | "null" => Ok(Map::new()),
        text => serde_json::from_str(text).map_err(|error| format!("give a JSON object: {error}")),
    }
}

/// A number, or a Python `None` for 0.
fn number_or_none(text: &str) -> Result<f64, String> {
    match text.trim() {
        "" | "None" | "none" | "null" => Ok(0.0),
        text => text.parse().map_err(|error| format!("give a number: {error}")),
    }
}
