#![doc = include_str!("docs/training.md")]

pub mod arguments;
pub mod checkpoint;
mod data;
mod evaluate;
pub mod gradients;
mod launcher;
mod merge;
pub mod model;
pub mod ops;
mod optimizer;
pub mod parameters;
mod plan;
mod report;
mod sample;
mod schedule;
pub mod torch;
mod train;

use std::ffi::OsString;

use clap::Command;
use tokenmill_shared::config::parse;
use tokenmill_shared::{Error, Result};

/// Runs the `trainer` program with `argv`, program name first.
pub fn run(argv: Vec<OsString>) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    if argv.get(1).is_some_and(|word| word == "merge") {
        let about = "Folds an adapter into the model it was trained beside: one Hugging Face checkpoint.";
        let command = Command::new("merge").bin_name("trainer merge").about(about).version(version);
        return merge::merge(parse(command, argv.into_iter().skip(1))?);
    }
    if argv.get(1).is_some_and(|word| word == "parameters") {
        let chinese = argv.get(2).is_some_and(|word| word == "zh");
        let language = if chinese { parameters::Language::Chinese } else { parameters::Language::English };
        print!("{}", parameters::table(language));
        return Ok(());
    }
    let about = "Continues the pretraining of a Hugging Face causal language model. Flags are those of run_clm.py and MedicalGPT's pretraining.py; one that is not built yet is refused by name. `trainer merge` folds an adapter into its model, `trainer parameters` explains every flag (`trainer parameters zh` in Chinese).";
    let command = Command::new("trainer").about(about).version(version);
    let arguments = parse(command, argv)?;
    launcher::check()?;
    ctrlc::set_handler(train::interrupt).map_err(|error| Error::config("signals", error.to_string()))?;
    train::run(arguments)
}
