//! `doctor`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Command};
use tokenmill_shared::config::parse;
use tokenmill_shared::{Error, Result};

use super::{command, print_json, print_lines};
use crate::doctor;
use crate::job::cache_dir;

/// See [`doctor_command`].
#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct DoctorArguments {
    /// The cache (default: $XDG_CACHE_HOME/tokenmill or ~/.cache/tokenmill)
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Where a dataset would go, if its disk is to be looked at
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn doctor_command() -> Command {
    command("doctor", "What this machine has, and what to do about what it lacks.")
}

pub(super) fn run_doctor(argv: Vec<OsString>) -> Result<()> {
    let arguments: DoctorArguments = parse(doctor_command(), argv)?;
    let cache_dir = cache_dir(arguments.cache_dir.as_deref())?;
    let mut dirs = vec![("--cache_dir", cache_dir.as_path())];
    dirs.extend(arguments.output_dir.as_deref().map(|dir| ("--output_dir", dir)));
    let findings = doctor::examine(&dirs);
    if arguments.json {
        print_json(&findings);
    } else {
        print_lines(&doctor::lines(&findings));
    }
    match findings.iter().find(|finding| finding.fatal) {
        Some(finding) => Err(Error::config(finding.what, format!("cannot be used: {}", finding.found))),
        None => Ok(()),
    }
}
