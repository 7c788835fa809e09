//! The commands of the `preprocess` program.

mod cache;
mod look;
mod machine;
mod prepare;
mod serve;
mod tokenizer;

use std::ffi::OsString;
use std::io::Write;

use clap::Command;
use tokenmill_shared::config::{completions, manual, with_arguments};
use tokenmill_shared::{Error, Result};

use crate::serve::ServeArguments;

const USAGE: &str =
    "usage: preprocess prepare|explain|trace|inspect|verify|cache|serve|tokenizer|doctor|completions|man …
  prepare --tokenizer_name_or_path DIR --train_file_dir DIR --block_size N --output_dir DIR
                      text to packed blocks; only what is new is tokenized; --dry_run says what it takes
  explain <the same>  which partitions would be reused, and why not the others
  trace <the same> --split train --block 0 --position 0
                      the file and the byte that a token came from
  inspect DATASET     what is in a dataset; --split train --row 0 --decode shows a block
  verify DATASET      reads every byte and names what is wrong
  cache list|prune    what is kept for reuse; --older_than 30d, --max_size 20G make room
  serve --dataset_dir NAME=DIR --text_dir NAME=DIR
                      datasets, text as it is prepared, and tokenizing, over Arrow Flight
  tokenizer extend --tokenizer_name_or_path DIR --train_file_dir DIR --output_dir DIR
                      new pieces for a tokenizer, from a corpus or a --word_list
  doctor              what this machine has, and what to do about what it lacks
  completions SHELL   for bash, zsh, fish, elvish or powershell
  man [COMMAND]       the manual page, for `man -l -`
Each takes --help.";

/// Runs the command in `argv`, program name first.
pub fn run(argv: Vec<OsString>) -> Result<()> {
    let name = argv.get(1).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
    let rest = argv.into_iter().skip(1).collect::<Vec<_>>();
    let word = || rest.get(1).map(|word| word.to_string_lossy().into_owned());
    match name.as_str() {
        "prepare" => prepare::run_prepare(rest),
        "explain" => prepare::run_explain(rest),
        "trace" => prepare::run_trace(rest),
        "inspect" => look::run_inspect(rest),
        "verify" => look::run_verify(rest),
        "cache" => cache::run(rest),
        "serve" => serve::run(rest),
        "tokenizer" => tokenizer::run(rest),
        "doctor" => machine::run_doctor(rest),
        "completions" => {
            print_lines(&[completions(program(), &word().unwrap_or_default())?]);
            Ok(())
        }
        "man" => {
            print_lines(&[manual(program(), word().as_deref())?]);
            Ok(())
        }
        "-h" | "--help" | "help" => {
            println!("{USAGE}");
            Ok(())
        }
        "-V" | "--version" => {
            println!("tokenmill preprocess {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        "" => Err(Error::config("command", format!("is missing\n{USAGE}"))),
        other => Err(Error::config(other, format!("is not a command\n{USAGE}"))),
    }
}

/// The whole program as one command, for what is generated from it.
fn program() -> Command {
    let about = "Text to packed blocks of token ids, and looking at them";
    Command::new("preprocess").version(env!("CARGO_PKG_VERSION")).about(about).subcommands([
        with_arguments::<prepare::PrepareArguments>(prepare::prepare_command()),
        with_arguments::<prepare::ExplainArguments>(prepare::explain_command()),
        with_arguments::<prepare::TraceArguments>(prepare::trace_command()),
        with_arguments::<look::InspectArguments>(look::inspect_command()),
        with_arguments::<look::VerifyArguments>(look::verify_command()),
        cache::command(),
        with_arguments::<ServeArguments>(serve::command()),
        tokenizer::command(),
        with_arguments::<machine::DoctorArguments>(machine::doctor_command()),
    ])
}

/// A command of the program.
fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name).bin_name(format!("preprocess {name}")).about(about)
}

/// The help of a command that has commands.
fn print_help(mut command: Command) {
    print_lines(&[command.render_help().to_string()]);
}

/// One JSON value on standard output.
fn print_json(value: &impl serde::Serialize) {
    print_lines(&[serde_json::to_string_pretty(value).expect("plain data")]);
}

/// Results on standard output. A reader that went away is not our failure.
fn print_lines(lines: &[String]) {
    let mut out = std::io::stdout().lock();
    let _ = lines.iter().try_for_each(|line| writeln!(out, "{line}"));
}
