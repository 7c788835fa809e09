//! What is in a dataset: `inspect` and `verify`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Command};
use indicatif::HumanBytes;
use serde_json::json;
use tokenmill_shared::config::parse;
use tokenmill_shared::dataset::{self, Dataset, Split};
use tokenmill_shared::{Error, Result};

use super::{command, print_json, print_lines};
use crate::inspect;

#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct InspectArguments {
    /// The dataset's directory
    #[arg(value_name = "DATASET")]
    dataset: Option<PathBuf>,
    /// Show a block of this split
    #[arg(long, value_name = "train|validation")]
    split: Option<Split>,
    /// The block to show
    #[arg(long, value_name = "N")]
    row: Option<u64>,
    /// Show the block as text
    #[arg(long)]
    decode: bool,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct VerifyArguments {
    /// The dataset's directory
    #[arg(value_name = "DATASET")]
    dataset: Option<PathBuf>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn inspect_command() -> Command {
    command("inspect", "What is in a dataset.")
}

pub(super) fn verify_command() -> Command {
    command("verify", "Reads every byte of a dataset and names what is wrong.")
}

pub(super) fn run_inspect(argv: Vec<OsString>) -> Result<()> {
    let arguments: InspectArguments = parse(inspect_command(), argv)?;
    let dataset = open(arguments.dataset)?;
    if arguments.split.is_some() || arguments.row.is_some() || arguments.decode {
        let split = arguments.split.unwrap_or(Split::Train);
        let block = inspect::block(&dataset, split, arguments.row.unwrap_or(0), arguments.decode)?;
        match block["text"].as_str().filter(|_| !arguments.json) {
            Some(text) => print_lines(&[text.to_owned()]),
            None => print_json(&block),
        }
    } else if arguments.json {
        print_json(dataset.manifest());
    } else {
        print_lines(&inspect::describe(&dataset));
    }
    Ok(())
}

pub(super) fn run_verify(argv: Vec<OsString>) -> Result<()> {
    let arguments: VerifyArguments = parse(verify_command(), argv)?;
    let dir = arguments.dataset.ok_or_else(|| Error::config("DATASET", "is missing; give the dataset's directory"))?;
    let report = dataset::verify(&dir)?;
    if arguments.json {
        print_json(&json!({"ok": report.wrong.is_empty(), "report": report}));
    }
    for name in &report.unknown {
        eprintln!("not part of the dataset: {name}");
    }
    for wrong in &report.wrong {
        eprintln!("wrong: {wrong}");
    }
    if report.wrong.is_empty() {
        eprintln!("{}: every byte is right ({} files, {})", dir.display(), report.files, HumanBytes(report.bytes));
        return Ok(());
    }
    Err(Error::corrupt(
        dir,
        format!("is damaged ({} found); prepare the dataset again into a new directory", report.wrong.len()),
    ))
}

fn open(dir: Option<PathBuf>) -> Result<Dataset> {
    Dataset::open(&dir.ok_or_else(|| Error::config("DATASET", "is missing; give the dataset's directory"))?)
}
