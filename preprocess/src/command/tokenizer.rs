//! `tokenizer extend`.

use std::ffi::OsString;

use clap::Command;
use tokenmill_shared::config::{parse, with_arguments};
use tokenmill_shared::{Error, Result};

use super::{print_help, print_json};
use crate::tokenizer::extend::{ExtendArguments, extend};

const EXTEND: &str = "New pieces for a BPE tokenizer, byte-level or SentencePiece style, trained on a corpus or taken from a word list. Old ids stay, old merges come first; fertility before and after is reported.";

pub(super) fn run(argv: Vec<OsString>) -> Result<()> {
    let name = argv.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    if matches!(name, "-h" | "--help") {
        print_help(command());
        return Ok(());
    }
    if name != "extend" {
        return Err(Error::config("tokenizer", format!("has one command, extend, not {name:?}")));
    }
    let command = Command::new("extend").bin_name("preprocess tokenizer extend").about(EXTEND);
    let arguments: ExtendArguments = parse(command, argv.into_iter().skip(1))?;
    let extended = extend(&arguments)?;
    for line in extended.lines() {
        eprintln!("{line}");
    }
    if arguments.json {
        print_json(&extended);
    }
    Ok(())
}

pub(super) fn command() -> Command {
    super::command("tokenizer", "Making tokenizers")
        .subcommand(with_arguments::<ExtendArguments>(Command::new("extend").about(EXTEND)))
}
