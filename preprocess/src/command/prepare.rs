//! `prepare`, and what is asked about the same text under the same settings: `explain` and `trace`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Command};
use indicatif::HumanBytes;
use tokenmill_shared::config::{Compat, DataArguments, HubArguments, parse};
use tokenmill_shared::dataset::Split;
use tokenmill_shared::{Error, Result, hub, storage};

use super::{command, print_json, print_lines};
use crate::explain::explain;
use crate::job::{Job, Output, PrepareOptions, Tuning};
use crate::{estimate, prepare, report, trace};

/// What text becomes which dataset.
#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct JobArguments {
    /// Directory or hub id of the tokenizer (tokenizer.json and its configuration)
    #[arg(long, value_name = "DIR", help_heading = "Prepare")]
    tokenizer_name_or_path: Option<PathBuf>,
    /// Directory or hub id of the model, asked for its end-of-sequence id when the tokenizer names none
    #[arg(long, value_name = "DIR", help_heading = "Prepare")]
    model_name_or_path: Option<PathBuf>,
    /// Where the dataset goes
    #[arg(long, value_name = "DIR", help_heading = "Prepare")]
    output_dir: Option<PathBuf>,
    #[command(flatten)]
    hub: HubArguments,
    #[command(flatten)]
    data: DataArguments,
}

impl JobArguments {
    fn options(&self) -> Result<PrepareOptions> {
        let required =
            |path: &Option<PathBuf>, flag: &str| path.clone().ok_or_else(|| Error::config(flag, "is missing"));
        let find = |path: &PathBuf, flag: &str, wanted: hub::Wanted<'_>| {
            hub::model_directory(flag, path, wanted, &self.hub, self.data.cache_dir.as_deref())
        };
        let flag = "--tokenizer_name_or_path";
        let tokenizer = self.tokenizer_name_or_path.clone().or_else(|| self.model_name_or_path.clone());
        let model = self.model_name_or_path.as_ref();
        self.data.say_without_effect();
        if self.data.is_compat(Compat::Hf457) {
            eprintln!("--compat hf-4.57 has no effect here: it is for the losses of the trainer");
        }
        Ok(PrepareOptions {
            data: self.data.clone(),
            hub: self.hub.clone(),
            tokenizer: find(&required(&tokenizer, flag)?, flag, &hub::tokenizer_files)?,
            model: model.map(|path| find(path, "--model_name_or_path", &hub::configuration_files)).transpose()?,
            output: Output::Directory(required(&self.output_dir, "--output_dir")?),
            tuning: Tuning::default(),
        })
    }
}

/// See [`prepare_command`].
#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct PrepareArguments {
    /// Write nothing: say how many partitions, bytes and tokens there are, and what disk and time it takes
    #[arg(long, help_heading = "Prepare")]
    dry_run: bool,
    /// Write a page about the dataset there: lengths, sources, kinds of tokens, what was left out
    #[arg(long, value_name = "FILE.html", help_heading = "Prepare")]
    report: Option<PathBuf>,
    /// Print the result as one JSON object on standard output
    #[arg(long, help_heading = "Prepare")]
    json: bool,
    #[command(flatten)]
    job: JobArguments,
}

/// See [`explain_command`].
#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct ExplainArguments {
    /// Print the result as JSON on standard output
    #[arg(long, help_heading = "Prepare")]
    json: bool,
    #[command(flatten)]
    job: JobArguments,
}

/// See [`trace_command`].
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct TraceArguments {
    /// The split of the block
    #[arg(long, value_name = "train|validation", help_heading = "Trace")]
    split: Split,
    /// The block, from 0
    #[arg(long, value_name = "N", help_heading = "Trace")]
    block: u64,
    /// The id in the block, from 0
    #[arg(long, value_name = "N", help_heading = "Trace")]
    position: u64,
    /// Print the result as one JSON object on standard output
    #[arg(long, help_heading = "Trace")]
    json: bool,
    #[command(flatten)]
    job: JobArguments,
}

impl Default for TraceArguments {
    fn default() -> Self {
        Self { split: Split::Train, block: 0, position: 0, json: false, job: JobArguments::default() }
    }
}

pub(super) fn prepare_command() -> Command {
    command(
        "prepare",
        "Text to packed token blocks. Text in flight is bounded by 64 MiB whatever the input; the result never depends on threads, machines or file order on disk.",
    )
}

pub(super) fn explain_command() -> Command {
    command("explain", "Which partitions would be reused, and why not the others.")
}

pub(super) fn trace_command() -> Command {
    command("trace", "The file and the byte that a token of a dataset came from. Give what `prepare` was given.")
}

pub(super) fn run_prepare(argv: Vec<OsString>) -> Result<()> {
    let arguments: PrepareArguments = parse(prepare_command(), argv)?;
    let options = arguments.job.options()?;
    if arguments.dry_run {
        let job = Job::new(&options)?;
        let estimate = estimate::estimate(&job)?;
        estimate.lines().iter().for_each(|line| eprintln!("{line}"));
        if arguments.json {
            print_json(&estimate);
        }
        return estimate::check_room(&job, &options.output, &estimate);
    }
    let prepared = prepare(&options)?;
    prepared.lines().iter().for_each(|line| eprintln!("{line}"));
    if let Some(path) = &arguments.report {
        storage::replace(path, report::html(&prepared).as_bytes())?;
        eprintln!("what it is like: {}", path.display());
    }
    if arguments.json {
        print_json(&prepared);
    }
    Ok(())
}

pub(super) fn run_explain(argv: Vec<OsString>) -> Result<()> {
    let mut arguments: ExplainArguments = parse(explain_command(), argv)?;
    arguments.job.output_dir.get_or_insert_default();
    let job = Job::new(&arguments.job.options()?)?;
    let explained = explain(&job)?;
    if arguments.json {
        print_json(&explained);
        return Ok(());
    }
    let mut lines = Vec::new();
    for (index, partition) in explained.iter().enumerate() {
        let verb = if partition.reused { "reuse" } else { "tokenize" };
        let files = match partition.file_count {
            1 => partition.files.0.clone(),
            count => format!("{} … {} ({count} files)", partition.files.0, partition.files.1),
        };
        lines.push(format!(
            "{index:5} {verb:8} {:>10} {:>9} documents  {files}: {} [{}]",
            HumanBytes(partition.text_bytes).to_string(),
            partition.documents,
            partition.reason,
            &partition.fingerprint[..12]
        ));
    }
    let reused = explained.iter().filter(|partition| partition.reused).count();
    lines.push(format!("{reused} of {} partitions would be reused", explained.len()));
    print_lines(&lines);
    Ok(())
}

pub(super) fn run_trace(argv: Vec<OsString>) -> Result<()> {
    let arguments: TraceArguments = parse(trace_command(), argv)?;
    let options = arguments.job.options()?;
    let Output::Directory(dir) = &options.output else { unreachable!("the command line names a directory") };
    let job = Job::new(&options)?;
    let traced = trace::trace(&job, dir, arguments.split, arguments.block, arguments.position)?;
    if arguments.json {
        print_json(&traced);
    } else {
        print_lines(&traced.lines());
    }
    Ok(())
}
