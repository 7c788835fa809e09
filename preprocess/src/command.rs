//! The commands of the `preprocess` program.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Command};
use indicatif::HumanBytes;
use serde_json::json;
use tokenmill_shared::config::{Compat, DataArguments, HubArguments, parse};
use tokenmill_shared::dataset::{self, Dataset, Split};
use tokenmill_shared::{Error, Result, hub};

use crate::explain::explain;
use crate::job::{Job, Output, PrepareOptions, Tuning, cache_dir};
use crate::tokenizer::extend::{ExtendArguments, extend};
use crate::{cache, inspect, prepare};

const USAGE: &str = "usage: preprocess prepare|explain|inspect|verify|cache|tokenizer …
  prepare --tokenizer_name_or_path DIR --train_file_dir DIR --block_size N --output_dir DIR
                      text to packed blocks; only what is new is tokenized
  explain <the same>  which partitions would be reused, and why not the others
  inspect DATASET     what is in a dataset; --split train --row 0 --decode shows a block
  verify DATASET      reads every byte and names what is wrong
  cache list|prune    what is kept for reuse; --older_than 30d, --max_size 20G make room
  tokenizer extend --tokenizer_name_or_path DIR --train_file_dir DIR --output_dir DIR
                      new pieces for a tokenizer, from a corpus or a --word_list
Each takes --help.";

#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
struct PrepareArguments {
    /// Directory or hub id of the tokenizer (tokenizer.json and its configuration)
    #[arg(long, value_name = "DIR", help_heading = "Prepare")]
    tokenizer_name_or_path: Option<PathBuf>,
    /// Directory or hub id of the model, asked for its end-of-sequence id when the tokenizer names none
    #[arg(long, value_name = "DIR", help_heading = "Prepare")]
    model_name_or_path: Option<PathBuf>,
    /// Where the dataset goes
    #[arg(long, value_name = "DIR", help_heading = "Prepare")]
    output_dir: Option<PathBuf>,
    /// Print the result as one JSON object on standard output
    #[arg(long, help_heading = "Prepare")]
    json: bool,
    #[command(flatten)]
    hub: HubArguments,
    #[command(flatten)]
    data: DataArguments,
}

impl PrepareArguments {
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

#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
struct InspectArguments {
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
struct VerifyArguments {
    /// The dataset's directory
    #[arg(value_name = "DATASET")]
    dataset: Option<PathBuf>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command in `argv`, program name first.
pub fn run(argv: Vec<OsString>) -> Result<()> {
    let name = argv.get(1).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
    let rest = argv.into_iter().skip(1).collect::<Vec<_>>();
    match name.as_str() {
        "prepare" => run_prepare(rest),
        "explain" => run_explain(rest),
        "inspect" => run_inspect(rest),
        "verify" => run_verify(rest),
        "cache" => run_cache(rest),
        "tokenizer" => run_tokenizer(rest),
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

fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name).bin_name(format!("preprocess {name}")).about(about)
}

fn run_prepare(argv: Vec<OsString>) -> Result<()> {
    let about = "Text to packed token blocks. Text in flight is bounded by 64 MiB whatever the input; the result never depends on threads, machines or file order on disk.";
    let arguments: PrepareArguments = parse(command("prepare", about), argv)?;
    let prepared = prepare(&arguments.options()?)?;
    for line in prepared.lines() {
        eprintln!("{line}");
    }
    if arguments.json {
        print_json(&prepared);
    }
    Ok(())
}

fn run_explain(argv: Vec<OsString>) -> Result<()> {
    let mut arguments: PrepareArguments =
        parse(command("explain", "Which partitions would be reused, and why not the others."), argv)?;
    arguments.output_dir.get_or_insert_default();
    let job = Job::new(&arguments.options()?)?;
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

fn run_inspect(argv: Vec<OsString>) -> Result<()> {
    let arguments: InspectArguments = parse(command("inspect", "What is in a dataset."), argv)?;
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

fn run_verify(argv: Vec<OsString>) -> Result<()> {
    let arguments: VerifyArguments =
        parse(command("verify", "Reads every byte of a dataset and names what is wrong."), argv)?;
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
        format!("{} things are wrong; prepare the dataset again into a new directory", report.wrong.len()),
    ))
}

#[derive(Debug, Default, Args)]
#[command(rename_all = "snake_case")]
struct CacheArguments {
    /// The cache (default: $XDG_CACHE_HOME/tokenmill or ~/.cache/tokenmill)
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// prune: what was not used for this long
    #[arg(long, value_name = "TIME", value_parser = cache::duration)]
    older_than: Option<Duration>,
    /// prune: what was used longest ago, until the cache is no larger
    #[arg(long, value_name = "SIZE", value_parser = cache::bytes)]
    max_size: Option<u64>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

fn run_cache(argv: Vec<OsString>) -> Result<()> {
    let name = argv.get(1).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
    let (name, about) = match name.as_str() {
        "list" => ("list", "What the cache holds, and when it was last used."),
        "prune" => ("prune", "Makes room in the cache. What a running job needs stays; the rest can be made again."),
        _ => return Err(Error::config("cache", format!("has the commands list and prune, not {name:?}"))),
    };
    let command = Command::new(name).bin_name(format!("preprocess cache {name}")).about(about);
    let arguments: CacheArguments = parse(command, argv.into_iter().skip(1))?;
    let cache_dir = cache_dir(arguments.cache_dir.as_deref())?;
    if name == "list" {
        let entries = cache::list(&cache_dir)?;
        if arguments.json {
            print_json(&entries);
        } else {
            print_lines(&cache::lines(&entries));
        }
        return Ok(());
    }
    let criteria = cache::criteria(arguments.older_than, arguments.max_size)?;
    let pruned = cache::prune(&cache_dir, criteria)?;
    if arguments.json {
        print_json(&pruned);
    }
    let freed = pruned.removed.iter().map(|entry| entry.bytes).sum();
    eprintln!("{} removed, {}; {} are left", pruned.removed.len(), HumanBytes(freed), HumanBytes(pruned.left_bytes));
    if !pruned.in_use.is_empty() {
        eprintln!("{} stay, because a job that is running may need them", pruned.in_use.len());
    }
    Ok(())
}

fn run_tokenizer(argv: Vec<OsString>) -> Result<()> {
    let name = argv.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    if name != "extend" {
        return Err(Error::config("tokenizer", format!("has one command, extend, not {name:?}")));
    }
    let about = "New pieces for a BPE tokenizer, byte-level or SentencePiece style, trained on a corpus or taken from a word list. Old ids stay, old merges come first; fertility before and after is reported.";
    let command = Command::new("extend").bin_name("preprocess tokenizer extend").about(about);
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

fn open(dir: Option<PathBuf>) -> Result<Dataset> {
    Dataset::open(&dir.ok_or_else(|| Error::config("DATASET", "is missing; give the dataset's directory"))?)
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
