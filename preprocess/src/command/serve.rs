//! `preprocess serve`.

use std::ffi::OsString;

use clap::Command;
use tokenmill_shared::Result;
use tokenmill_shared::config::parse;

use crate::serve::{ServeArguments, serve};

pub(super) fn command() -> Command {
    let about = "Prepared datasets, text that is prepared as it is read, and tokenizing, to any Arrow Flight client. On this machine only, unless TLS and a token are given.";
    super::command("serve", about)
}

pub(super) fn run(argv: Vec<OsString>) -> Result<()> {
    serve(&parse::<ServeArguments>(command(), argv)?)
}
