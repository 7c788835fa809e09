//! The model that a run begins with or goes on with, and whether it fits what is asked of it.

use std::path::Path;

use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_shared::{Error, Result};

use super::Plan;
use crate::model::{Config, EmbeddingNoise, Model, Positions};
use crate::ops::precision::Precision;
use crate::training_set::TrainingSet;
use crate::vocabulary::NewTokens;

impl Plan {
    /// Finds what is new to the model in the tokenizer of the data. Weights are not read.
    ///
    /// # Errors
    /// See [`NewTokens::plan`].
    pub fn find_new_tokens(&mut self, data: &TrainingSet) -> Result<()> {
        self.new_tokens = NewTokens::plan(&self.arguments, data, self.train)?;
        Ok(())
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
        // Where positions go on, that is said once the blocks are there.
        if finished || !matches!(config.positions, Positions::Learned) {
            return Ok(());
        }
        let longest = Tokenizer::longest_input(self.tokenizer_dir()?)?.unwrap_or(usize::MAX);
        check_positions(&config, arguments.data.block_size().min(longest))
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
        model.set_padding_row(asked.padding_row);
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

    /// Freezes all rows of embedding and head but the new ones, if that was asked for.
    fn train_rows(&self, model: &mut Model) -> Result<()> {
        match &self.new_tokens {
            Some(new_tokens) if self.arguments.train_new_rows_only => {
                model.train_rows_only(new_tokens.untrained.clone())
            }
            _ => Ok(()),
        }
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
