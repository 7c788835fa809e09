//! The command-line grammar of `HfArgumentParser`, so that existing shell scripts run.
//!
//! `--a_b` and `--a-b`; `--flag`, `--flag True|yes|t|y|1`, `--flag=false|no|f|n|0`, `--no_flag`; lists as repeated
//! words; a flag given twice counts the last time; negative numbers are values; a configuration file in place of
//! the first flag. Source: `transformers/hf_argparser.py`.

use std::ffi::OsString;

use clap::builder::{Arg, ArgAction, Command};

use super::file;
use super::known::{KNOWN, Known, Takes, Verdict};
use crate::{Error, Result};

/// Adapts a derived command to the grammar: hyphen aliases, booleans with an optional value, last wins.
pub fn with_grammar(command: Command) -> Command {
    command.args_override_self(true).mut_args(|arg| {
        let arg = match arg.get_long() {
            Some(long) if long.contains('_') => {
                let hyphenated = long.replace('_', "-");
                arg.alias(hyphenated)
            }
            _ => arg,
        };
        if matches!(arg.get_action(), ArgAction::SetTrue) && arg.get_long() != Some("help") {
            return arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .value_name("BOOL")
                .default_missing_value("true")
                .value_parser(boolean);
        }
        // A list given twice is the last one, not both.
        let is_list = matches!(arg.get_action(), ArgAction::Append)
            && arg.get_num_args().is_some_and(|range| range.max_values() > 1);
        let arg = if is_list { arg.action(ArgAction::Set) } else { arg };
        arg.allow_negative_numbers(true)
    })
}

/// `command` with the arguments of `T`, in this grammar.
pub fn with_arguments<T: clap::Args>(command: Command) -> Command {
    with_grammar(keeping_about(command, T::augment_args))
}

/// What `augment` makes of `command`, which stays about what it is about: clap puts the doc comment of the arguments there.
fn keeping_about(command: Command, augment: impl FnOnce(Command) -> Command) -> Command {
    let about = command.get_about().cloned();
    let command = augment(command);
    match about {
        Some(about) => command.about(about).long_about(None),
        None => command,
    }
}

/// Parses `argv` (program name first) into `T`: its defaults, overlaid by what is given. A flag that is known and
/// stands for nothing here is refused, or said to have no effect, with the reason.
///
/// # Errors
/// [`Error::Config`] naming the flag: unknown (with the nearest name), refused (with the reason), or a
/// value that cannot be read; or the configuration file. `--help` and `--version` print and exit.
pub fn parse<T: clap::Args + Default>(command: Command, argv: impl IntoIterator<Item = OsString>) -> Result<T> {
    let command = with_grammar(keeping_about(command, T::augment_args_for_update));
    let mut argv: Vec<OsString> = argv.into_iter().collect();
    if command.get_positionals().next().is_none() {
        argv = file::expand(argv)?;
    }
    let mut command = with_known(command);
    let argv = expand_negations(&command, argv);
    let mut matches = command
        .try_get_matches_from_mut(&argv)
        .map_err(|error| word_too_many(&error, &argv).unwrap_or(explain(&error)))?;
    for known in KNOWN {
        judge(known, &matches)?;
    }
    let mut arguments = T::default();
    arguments.update_from_arg_matches_mut(&mut matches).map_err(|error| explain(&error))?;
    Ok(arguments)
}

/// Adds the known flags that `command` has no argument for, so that they and their values are recognised.
fn with_known(command: Command) -> Command {
    let is_built = |name: &str, arg: &Arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    };
    let missing: Vec<_> =
        KNOWN.iter().filter(|known| !command.get_arguments().any(|arg| is_built(known.name, arg))).collect();
    command.args(missing.into_iter().map(|known| {
        let arg = Arg::new(known.name).long(known.name).alias(known.name.replace('_', "-")).hide(true);
        match known.takes {
            Takes::Boolean => arg
                .num_args(0..=1)
                .default_missing_value("true")
                .value_parser(|text: &str| boolean(text).map(|value| value.to_string())),
            Takes::Value => arg.num_args(1).allow_hyphen_values(true),
            Takes::List => arg.num_args(0..),
        }
    }))
}

fn judge(known: &Known, matches: &clap::ArgMatches) -> Result<()> {
    // Absent where the program gives the flag a meaning of its own.
    let Ok(Some(values)) = matches.try_get_many::<String>(known.name) else { return Ok(()) };
    match known.verdict_on(&values.cloned().collect::<Vec<_>>()) {
        Some(Verdict::Refused(reason)) => Err(Error::config(format!("--{}", known.name), reason.en)),
        Some(Verdict::NoEffect(reason)) => {
            eprintln!("--{} has no effect here: {}", known.name, reason.en);
            Ok(())
        }
        None => Ok(()),
    }
}

/// `--no_x` becomes `--x=false` for every boolean `x`.
fn expand_negations(command: &Command, argv: Vec<OsString>) -> Vec<OsString> {
    let find = |name: &str| command.get_arguments().find(|arg| arg.get_long() == Some(name));
    let is_boolean =
        |arg: &Arg| arg.get_num_args().is_some_and(|range| range.min_values() == 0 && range.max_values() == 1);
    let positive = |word: &OsString| {
        let name = word.to_str()?.strip_prefix("--")?.replace('-', "_");
        let positive = name.strip_prefix("no_").filter(|_| find(&name).is_none())?;
        find(positive).is_some_and(is_boolean).then(|| format!("--{positive}=false").into())
    };
    argv.into_iter().map(|word| positive(&word).unwrap_or(word)).collect()
}

/// A word that follows a flag and does not belong to it. It is not repeated: it may be a secret.
fn word_too_many(error: &clap::Error, argv: &[OsString]) -> Option<Error> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument || word.starts_with('-') {
        return None;
    }
    let before = argv.iter().take_while(|given| *given != word.as_str());
    let flag = before.filter_map(|given| given.to_str()).filter(|given| given.starts_with("--")).last();
    let flag = flag.map_or("command line", |flag| flag.split('=').next().unwrap_or(flag));
    Some(Error::config(flag, "is followed by a word too many; every value follows the flag it belongs to"))
}

fn explain(error: &clap::Error) -> Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        error.exit();
    }
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let flag = context(ContextKind::InvalidArg).unwrap_or_else(|| "command line".to_owned());
    let flag = flag.split_whitespace().next().unwrap_or_default().to_owned();
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    let reason = match error.kind() {
        ErrorKind::UnknownArgument => match context(ContextKind::SuggestedArg).filter(|near| is_near(&flag, near)) {
            Some(near) => format!("unknown flag; did you mean {near}?"),
            None => "unknown flag; --help lists them all".to_owned(),
        },
        _ if value.is_empty() && error.kind() == ErrorKind::InvalidValue => "needs a value".to_owned(),
        ErrorKind::InvalidValue => match context(ContextKind::ValidValue) {
            Some(valid) => format!("cannot be {value:?}; it is one of {valid}"),
            None => format!("cannot be {value:?}"),
        },
        ErrorKind::ValueValidation => {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("cannot be {value:?}: {cause}")
        }
        _ => error.to_string().trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned(),
    };
    Error::config(flag, reason)
}

/// Whether who wrote `flag` may have meant `other`: the beginning of it, or one letter in three or fewer is wrong. What clap
/// finds nearest may be far: of `--dataset_dir`, where that is no flag, `--dataloader_persistent_workers`.
fn is_near(flag: &str, other: &str) -> bool {
    let [flag, other] = [flag, other].map(|name| name.trim_start_matches('-').replace('-', "_"));
    let (shorter, longer) = if flag.len() < other.len() { (&flag, &other) } else { (&other, &flag) };
    let begins = shorter.len() >= 4 && longer.starts_with(shorter.as_str());
    begins || strsim::osa_distance(&flag, &other) * 3 <= shorter.chars().count()
}

/// A truth value as Hugging Face's parser reads it.
pub fn boolean(text: &str) -> std::result::Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "t" | "y" | "1" => Ok(true),
        "false" | "no" | "f" | "n" | "0" => Ok(false),
        _ => Err("use true or false (also yes/no, t/f, y/n, 1/0)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DataArguments, SampleBy};

    fn data(words: &[&str]) -> Result<DataArguments> {
        let argv = std::iter::once("test").chain(words.iter().copied()).map(OsString::from);
        parse::<DataArguments>(Command::new("test"), argv)
    }

    #[test]
    fn booleans_read_as_hugging_face_reads_them() {
        for (words, expected) in [
            (vec!["--keep_linebreaks"], true),
            (vec!["--keep_linebreaks", "False"], false),
            (vec!["--keep-linebreaks=no"], false),
            (vec!["--no_keep_linebreaks"], false),
            (vec!["--keep_linebreaks", "0", "--keep_linebreaks", "1"], true),
            (vec![], true),
        ] {
            assert_eq!(data(&words).unwrap().keep_linebreaks, expected, "{words:?}");
        }
    }

    #[test]
    fn hyphens_repeats_and_negative_numbers_are_accepted() {
        let arguments =
            data(&["--block-size", "8", "--block_size", "16", "--max_train_samples", "-1", "--sample_by", "document"])
                .unwrap();
        assert_eq!((arguments.block_size, arguments.max_train_samples), (Some(16), Some(-1)));
        assert_eq!(arguments.sample_by, SampleBy::Document);
    }

    #[derive(Debug, Default, clap::Args)]
    #[command(rename_all = "snake_case")]
    struct Lists {
        #[arg(long, num_args = 1.., value_delimiter = ',')]
        target_modules: Vec<String>,
    }

    #[test]
    fn a_list_is_its_words_and_given_again_it_is_the_last() {
        let words = "test --target_modules a,b c --target-modules d e".split(' ').map(OsString::from);
        assert_eq!(parse::<Lists>(Command::new("test"), words).unwrap().target_modules, ["d", "e"]);
        let words = "test --target_modules a,b c".split(' ').map(OsString::from);
        assert_eq!(parse::<Lists>(Command::new("test"), words).unwrap().target_modules, ["a", "b", "c"]);
    }

    /// They are known from other scripts; what they ask for is the case here anyway.
    #[test]
    fn flags_without_effect_are_taken_with_their_values() {
        let words =
            ["--ddp_timeout", "30000", "--no_log_on_each_node", "--label_names", "labels", "--torch_compile", "False"];
        let more = ["--push-to-hub", "no", "--deepspeed", "none", "--local_rank", "-1", "--block_size", "8"];
        assert_eq!(data(&[&words[..], &more[..]].concat()).unwrap().block_size, Some(8));
        assert!(data(&["--hub_model_id", "org/x", "--hub_strategy"]).unwrap_err().to_string().contains("hub_strategy"));
    }

    #[test]
    fn only_a_flag_that_is_near_is_suggested() {
        for (flag, other) in [
            ("--blok_size", "--block_size"),
            ("--learning-rat", "--learning_rate"),
            ("--block", "--block_size"),
            ("--lora_rnak", "--lora_rank"),
            ("--pakcing", "--packing"),
        ] {
            assert!(is_near(flag, other), "{flag} {other}");
        }
        for (flag, other) in [
            ("--dataset_dir", "--dataloader_persistent_workers"),
            ("--per_gpu", "--use_cpu"),
            ("--no", "--no_cuda"),
            ("--seed", "--fp16"),
        ] {
            assert!(!is_near(flag, other), "{flag} {other}");
        }
        let said = data(&["--text_dir", "x"]).unwrap_err().to_string();
        assert!(said.contains("--help lists them all"), "{said}");
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (words, part) in [
            (vec!["--blok_size", "3"], "--block_size"),
            (vec!["--block_size", "many"], "many"),
            (vec!["--sample_by", "word"], "line, paragraph, document"),
            (vec!["--keep_linebreaks", "maybe"], "true or false"),
            (vec!["--block_size", "8", "stray"], "--block_size: is followed by a word too many"),
            (vec!["--deepspeed", "x.json"], "not built yet"),
            (vec!["--optim_target_modules", "a=1"], "not built yet"),
        ] {
            let error = data(&words).unwrap_err();
            assert!(error.to_string().contains(part), "{words:?}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
