//! `cache list` and `cache prune`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Command};
use indicatif::HumanBytes;
use tokenmill_shared::config::{parse, with_arguments};
use tokenmill_shared::{Error, Result};

use super::{print_help, print_json, print_lines};
use crate::cache;
use crate::job::cache_dir;

const LIST: (&str, &str) = ("list", "What the cache holds, and when it was last used.");
const PRUNE: (&str, &str) =
    ("prune", "Makes room in the cache. What a running job needs stays; the rest can be made again.");

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

pub(super) fn run(argv: Vec<OsString>) -> Result<()> {
    let name = argv.get(1).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
    let (name, about) = match name.as_str() {
        "list" => LIST,
        "prune" => PRUNE,
        "-h" | "--help" => {
            print_help(command());
            return Ok(());
        }
        _ => return Err(Error::config("cache", format!("has the commands list and prune, not {name:?}"))),
    };
    let command = Command::new(name).bin_name(format!("preprocess cache {name}")).about(about);
    let arguments: CacheArguments = parse(command, argv.into_iter().skip(1))?;
    let cache_dir = match arguments.cache_dir {
        Some(dir) => dir,
        None => cache_dir(None)?,
    };
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

pub(super) fn command() -> Command {
    let both = [LIST, PRUNE].map(|(name, about)| with_arguments::<CacheArguments>(Command::new(name).about(about)));
    super::command("cache", "What is kept for reuse").subcommands(both)
}
