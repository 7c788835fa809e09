//! From what was said to what will be done: paths resolved, contradictions refused with both names, step
//! counts computed.

mod data;
#[cfg(feature = "cuda")]
mod gpu;
mod model;
mod quantisation;
mod settings;
mod steps;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokenmill_shared::config::HubArguments;
use tokenmill_shared::storage::Lock;
use tokenmill_shared::{Error, Result, hub, progress, storage};

pub use self::settings::ResultSettings;
pub use self::steps::Steps;
use crate::arguments::{Debug, LogLevel, Strategy, TrainerArguments};
#[cfg(feature = "cuda")]
use crate::cuda::Device;
use crate::model::Quantisation;
use crate::optim_args;
use crate::optimizer::Rule;
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
    gpu: Option<Arc<Device>>,
}

impl Plan {
    /// Resolves `arguments`.
    pub fn new(mut arguments: TrainerArguments) -> Result<Self> {
        if std::mem::take(&mut arguments.adafactor) {
            arguments.optim = Rule::Adafactor;
        }
        let output_dir = arguments.output_dir.clone().ok_or_else(|| Error::config("--output_dir", "is missing"))?;
        if storage::is_remote(&output_dir) {
            let reason = format!(
                "{} is in a store, and what is trained must be on a disk; give a directory",
                output_dir.display()
            );
            return Err(Error::config("--output_dir", reason));
        }
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
            data::check_streaming(&arguments)?;
        }
        data::say_ignored_service_flags(&arguments);
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
        let quantisation = quantisation::quantisation(&arguments)?;
        quantisation::say_ignored_adapter_flags(&arguments);
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
}

/// The files that a model of random weights is made by.
fn configuration_and_tokenizer(names: &[String]) -> Vec<String> {
    let mut files = hub::configuration_files(names);
    let tokenizer = if files.is_empty() { Vec::new() } else { hub::tokenizer_files(names) };
    files.extend(tokenizer.into_iter().filter(|name| name != "config.json"));
    files
}

fn both(one: &str, other: &str) -> Error {
    Error::config(one, format!("and {other} are both given; give one"))
}

#[cfg(test)]
mod tests {
    use tokenmill_shared::config::{DataArguments, SampleBy};

    use super::*;

    pub(super) fn plan(change: impl FnOnce(&mut TrainerArguments)) -> Result<Plan> {
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

    #[test]
    fn contradictions_name_both_flags() {
        let error = plan(|arguments| arguments.data.train_file_dir = Some("t".into())).unwrap_err().to_string();
        assert!(error.contains("--train_file_dir") && error.contains("--dataset_dir"), "{error}");
        let base = |arguments: &mut TrainerArguments| arguments.init_from_config = Some("c".into());
        let error = plan(base).unwrap_err().to_string();
        assert!(error.contains("--model_name_or_path") && error.contains("--init_from_config"), "{error}");
        let data = DataArguments { sample_by: SampleBy::Document, ..DataArguments::default() };
        let error = data::refuse_data_flags(&data, "--dataset_dir").unwrap_err().to_string();
        assert!(error.contains("--sample_by"), "{error}");
    }
}
