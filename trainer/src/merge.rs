//! `trainer merge`: folds an adapter into the model it stands beside, as one Hugging Face checkpoint.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use tokenmill_shared::config::HubArguments;
use tokenmill_shared::storage::{self, TemporaryDirectory};
use tokenmill_shared::{Error, Result, hub};

use crate::checkpoint::{self, Contents};
use crate::model::Model;

/// What to merge into what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Args)]
#[command(rename_all = "snake_case")]
pub struct MergeArguments {
    /// The model the adapter was trained beside
    #[arg(long, alias = "base_model", value_name = "DIR")]
    pub model_name_or_path: Option<PathBuf>,
    /// The adapter: adapter_config.json and adapter_model.safetensors or .bin
    #[arg(long, alias = "lora_model", value_name = "DIR")]
    pub peft_path: Option<PathBuf>,
    /// Directory of the tokenizer (default: the adapter's, then the model's)
    #[arg(long, alias = "tokenizer_path", value_name = "DIR")]
    pub tokenizer_name_or_path: Option<PathBuf>,
    /// Where the merged model goes; must not exist yet
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Revision and token of what is named by its hub id.
    #[command(flatten)]
    pub hub: HubArguments,
}

/// Merges; the output appears whole or not at all.
///
/// # Errors
/// A missing argument, an output directory that exists, an adapter that does not fit the model.
pub fn merge(arguments: MergeArguments) -> Result<()> {
    let required = |path: Option<PathBuf>, flag: &str| path.ok_or_else(|| Error::config(flag, "is missing"));
    let named = required(arguments.model_name_or_path, "--model_name_or_path")?;
    let adapter = required(arguments.peft_path, "--peft_path")?;
    let output_dir = required(arguments.output_dir, "--output_dir")?;
    if storage::stat(&output_dir)?.is_some() {
        let reason = format!("{} exists; choose a directory that does not", output_dir.display());
        return Err(Error::config("--output_dir", reason));
    }
    let find = |flag: &str, path: &Path, wanted: hub::Wanted<'_>| {
        hub::model_directory(flag, path, wanted, &arguments.hub, None)
    };
    let base = find("--model_name_or_path", &named, &hub::model_files)?;
    let adapter = find("--peft_path", &adapter, &hub::model_files)?;
    let tokenizer = arguments.tokenizer_name_or_path.as_deref();
    let tokenizer = tokenizer.map(|path| find("--tokenizer_name_or_path", path, &hub::tokenizer_files)).transpose()?;
    let mut model = Model::load(&base)?;
    if model.is_quantised() {
        eprintln!(
            "{}: the weights are quantised; the merged model has their restored values in float32, which are not those they were made of",
            base.display()
        );
    }
    model.load_adapters(&adapter, 0)?;
    model.merge_adapters()?;
    let with_tokenizer = |dir: &PathBuf| storage::stat(&dir.join("tokenizer.json")).ok().flatten().is_some();
    let tokenizer = tokenizer.or_else(|| Some(adapter.clone()).filter(with_tokenizer));
    let tokenizer = tokenizer.or_else(|| Some(base.clone()).filter(with_tokenizer));
    let companions = checkpoint::companions(tokenizer.as_deref(), Some(&base))?;
    let config_text = checkpoint::config_text(&base)?;
    if let Some(parent) = output_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        storage::create_dir_all(parent)?;
    }
    let directory = TemporaryDirectory::create(&output_dir)?;
    let base = named.display().to_string();
    let contents = Contents { model: &model, config_text: &config_text, base: &base, companions: &companions };
    checkpoint::write_model(directory.path(), &contents)?;
    directory.publish()?;
    eprintln!("{} holds {base} with {} folded in", output_dir.display(), adapter.display());
    Ok(())
}
