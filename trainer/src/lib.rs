#![doc = include_str!("docs/training.md")]

mod allocator;
pub mod arguments;
pub mod checkpoint;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod data;
mod evaluate;
pub mod gradients;
mod launcher;
mod merge;
mod mixed;
pub mod model;
pub mod ops;
mod optim_args;
mod optimizer;
pub mod parameters;
mod plan;
mod report;
mod sample;
mod schedule;
pub mod service;
mod text_order;
pub mod torch;
mod train;
mod training_set;
pub mod vocabulary;

use std::ffi::OsString;
use std::io::Write;

use arguments::TrainerArguments;
use clap::Command;
use tokenmill_shared::config::{completions, manual, parse, with_arguments};
use tokenmill_shared::{Error, Result};

const ABOUT: &str = "Continues the pretraining of a Hugging Face causal language model. Flags are those of run_clm.py and MedicalGPT's pretraining.py; one that is not built yet is refused by name. `trainer merge` folds an adapter into its model, `trainer explain` shows how flags are read, `trainer parameters` lists every flag (`trainer parameters zh` in Chinese), `trainer completions SHELL` and `trainer man` print what shells and `man -l -` read.";
const MERGE: &str = "Folds an adapter into the model it was trained beside: one Hugging Face checkpoint.";

/// Runs the `trainer` program with `argv`, program name first.
pub fn run(argv: Vec<OsString>) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    if argv.get(1).is_some_and(|word| word == "merge") {
        let command = Command::new("merge").bin_name("trainer merge").about(MERGE).version(version);
        return merge::merge(parse(command, argv.into_iter().skip(1))?);
    }
    if argv.get(1).is_some_and(|word| word == "parameters") {
        let chinese = argv.get(2).is_some_and(|word| word == "zh");
        let language = if chinese { parameters::Language::Chinese } else { parameters::Language::English };
        print!("{}", parameters::table(language));
        return Ok(());
    }
    if argv.get(1).is_some_and(|word| word == "explain") {
        let about = "Shows how flags or a configuration file are read, as JSON, and runs nothing.";
        let command = Command::new("explain").bin_name("trainer explain").about(about).version(version);
        let arguments: TrainerArguments = parse(command, argv.into_iter().skip(1))?;
        // Who reads only the first lines closes the pipe; that is no failure.
        let _ = writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&arguments).expect("plain data"));
        return Ok(());
    }
    let word = argv.get(2).map(|word| word.to_string_lossy().into_owned());
    let generated = match argv.get(1).and_then(|word| word.to_str()) {
        Some("completions") => Some(completions(program(), &word.unwrap_or_default())?),
        Some("man") => Some(manual(program(), word.as_deref())?),
        _ => None,
    };
    if let Some(text) = generated {
        let _ = write!(std::io::stdout(), "{text}");
        return Ok(());
    }
    let command = Command::new("trainer").about(ABOUT).version(version);
    let arguments = parse(command, argv)?;
    launcher::check()?;
    ctrlc::set_handler(train::interrupt).map_err(|error| Error::config("signals", error.to_string()))?;
    train::run(arguments)
}

/// The whole program as one command, for what is generated from it.
fn program() -> Command {
    let trainer = Command::new("trainer").version(env!("CARGO_PKG_VERSION")).about(ABOUT);
    let merge = Command::new("merge").about(MERGE);
    with_arguments::<TrainerArguments>(trainer).subcommand(with_arguments::<merge::MergeArguments>(merge))
}
