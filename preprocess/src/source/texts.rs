//! Which inputs the data parameters name: the text to train on, and that to validate on if it comes apart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokenmill_shared::config::{DataArguments, HubArguments, ValidationText};
use tokenmill_shared::{Error, Result};

use super::{Input, files, list};
use crate::hub_dataset::{self, SplitFiles};

/// Text of one split, or of both.
#[derive(Debug, Clone)]
pub struct Text {
    /// The directory that paths of its inputs are relative to.
    pub root: PathBuf,
    /// What it was given by.
    pub flag: &'static str,
    /// Its files, in input order.
    pub inputs: Vec<Input>,
}

impl Text {
    /// All files below a directory.
    pub fn of_directory(dir: &Path, flag: &'static str) -> Result<Self> {
        Ok(Self { root: dir.to_owned(), flag, inputs: list(dir, flag)? })
    }

    /// The error for text without a document, of which so many records were left out.
    pub fn without_document(&self, rejected: u64) -> Error {
        let shown = if self.root == Path::new(".") { "they name".into() } else { self.root.to_string_lossy() };
        let why = match rejected {
            0 => String::new(),
            _ => format!(
                ": all {rejected} records are left out, for their length (--min_chars, --max_chars) or as bad ones (--on_bad_record)"
            ),
        };
        Error::config(self.flag, format!("the files in {shown} hold no document{why}"))
    }
}

/// The text to train on, and that to validate on if it comes apart. Standard input is kept in `spool_dir`.
///
/// # Errors
/// None or several of the flags that name text; what they name is not there.
pub fn texts(data: &DataArguments, hub: &HubArguments, spool_dir: &Path) -> Result<(Text, Option<Text>)> {
    let given = [
        ("--dataset_name", data.dataset_name.is_some()),
        ("--train_file_dir", data.train_file_dir.is_some()),
        ("--train_file", !data.train_file.is_empty()),
    ];
    one_of(&given)?;
    one_of(&[
        ("--dataset_name", data.dataset_name.is_some()),
        ("--validation_file_dir", !data.validation_file_dir.is_empty()),
        ("--validation_file", !data.validation_file.is_empty()),
    ])?;
    if let Some(SplitFiles { dir, train, validation }) = hub_dataset::find(data, hub)? {
        let flag = "--dataset_name";
        let all = Text::of_directory(&dir, flag)?;
        let only = |names: &BTreeSet<PathBuf>| {
            let inputs = all.inputs.iter().filter(|input| names.contains(&input.relative)).cloned().collect();
            Text { root: dir.clone(), flag, inputs }
        };
        return Ok((only(&train), (!validation.is_empty()).then(|| only(&validation))));
    }
    let named = |words: &[String], flag| {
        Ok::<_, Error>(Text { root: ".".into(), flag, inputs: files::named(words, flag, spool_dir)? })
    };
    let train = match &data.train_file_dir {
        Some(dir) => Text::of_directory(dir, "--train_file_dir")?,
        None if !data.train_file.is_empty() => named(&data.train_file, "--train_file")?,
        None => {
            let missing = "is missing; give the directory that holds the text, or --train_file or --dataset_name";
            return Err(Error::config("--train_file_dir", missing));
        }
    };
    let flag = "--validation_file_dir";
    let validation = match data.validation_text()? {
        ValidationText::None if !data.validation_file.is_empty() => {
            Some(named(&data.validation_file, "--validation_file")?)
        }
        ValidationText::None => None,
        ValidationText::One(dir) => Some(Text::of_directory(&dir, flag)?),
        ValidationText::Named(_) => {
            let reason = "has sets with names, and a dataset has one for validation; give one directory, or several to `trainer`, which prepares each";
            return Err(Error::config(flag, reason));
        }
    };
    let reads = |text: &Text| text.inputs.iter().any(|input| input.spooled.is_some());
    if reads(&train) && validation.as_ref().is_some_and(reads) {
        return Err(Error::config("--validation_file", "and --train_file both name standard input; one can have it"));
    }
    Ok((train, validation))
}

/// Refuses two flags for one thing.
fn one_of(flags: &[(&str, bool)]) -> Result<()> {
    let given: Vec<&str> = flags.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
    match given[..] {
        [one, other, ..] => Err(Error::config(one, format!("and {other} are both given; give one"))),
        _ => Ok(()),
    }
}
