//! What a run reads: datasets that are there, prepared now, mixed, at a service, or text as it is read; and what is
//! evaluated.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use tokenmill_preprocess::{Live, Output, PrepareOptions, Tuning, cache_dir, prepare};
use tokenmill_shared::config::{Compat, DataArguments, ValidationText};
use tokenmill_shared::dataset::{Dataset, Split};
use tokenmill_shared::{Error, Result};

use super::Plan;
use crate::arguments::{Sampling, Shuffle, TrainerArguments};
use crate::evaluate::EvaluationSet;
use crate::mixed::{Given, Mixed};
use crate::service::{Access, Connection, Service};
use crate::training_set::{Source, TrainingSet};

impl Plan {
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
}

/// What cannot be while text is prepared.
pub(super) fn check_streaming(arguments: &TrainerArguments) -> Result<()> {
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

/// Flags of a service do nothing where there is none.
pub(super) fn say_ignored_service_flags(arguments: &TrainerArguments) {
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

/// With a dataset that is made elsewhere, given by `flag`, flags that shape datasets would silently do nothing.
pub(super) fn refuse_data_flags(data: &DataArguments, flag_given: &str) -> Result<()> {
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
