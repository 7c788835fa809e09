//! `--train_file` and `--validation_file`: files one by one, shell patterns, lists of files, and standard input.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenmill_shared::storage::{self, TemporaryFile};
use tokenmill_shared::{Error, Result};

use super::pattern::{self, is_pattern};
use super::{Input, READ, recognise};
use crate::decode::READ_BYTES;

/// Standard input, with what it is.
const STDIN: &str = "stdin:";

/// A list of files, at most: some hundred thousand names.
const LIST_LIMIT: u64 = 64 << 20;

/// The inputs that `words` name, in their order; those of one pattern by the bytes of their paths. Standard input is kept
/// in a file in `spool_dir` for as long as it is read.
///
/// # Errors
/// A file that is not there or is of no kind that is read, a pattern of none, one that is named twice.
pub(super) fn named(words: &[String], flag: &str, spool_dir: &Path) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for word in words {
        add(word, flag, spool_dir, &mut inputs)?;
    }
    let mut names: Vec<&PathBuf> = inputs.iter().map(|input| &input.relative).collect();
    names.sort();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::config(flag, format!("names {} twice", pair[0].display())));
    }
    Ok(inputs)
}

fn add(word: &str, flag: &str, spool_dir: &Path, inputs: &mut Vec<Input>) -> Result<()> {
    if word == "-" || word.starts_with(STDIN) {
        inputs.push(standard_input(word, flag, spool_dir)?);
        return Ok(());
    }
    let path = Path::new(word);
    if let Some(list) = word.strip_prefix('@') {
        let text = storage::read_at_most(Path::new(list), LIST_LIMIT)?;
        let text = String::from_utf8_lossy(&text);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            inputs.push(file(Path::new(line), flag)?);
        }
        return Ok(());
    }
    if is_pattern(word) && storage::stat(path)?.is_none() {
        let found = pattern::expand(word, flag)?;
        let readable = found.iter().filter(|path| path.to_str().is_some_and(|path| recognise(path).is_some()));
        let before = inputs.len();
        for path in readable {
            inputs.push(file(path, flag)?);
        }
        if inputs.len() == before {
            let reason = format!("{word} matches no {READ} file (and {} others)", found.len());
            return Err(Error::config(flag, reason));
        }
        return Ok(());
    }
    inputs.push(file(path, flag)?);
    Ok(())
}

fn file(path: &Path, flag: &str) -> Result<Input> {
    let shown = path.display();
    let Some(stat) = storage::stat(path)? else {
        return Err(Error::config(flag, format!("{shown} does not exist; correct the path")));
    };
    if path.is_dir() {
        return Err(Error::config(flag, format!("{shown} is a directory; give it as {flag}_dir")));
    }
    let Some((kind, compression)) = path.to_str().and_then(recognise) else {
        return Err(Error::config(flag, format!("{shown} is of no kind that is read: {READ}")));
    };
    Ok(Input {
        path: path.to_owned(),
        name: path.to_owned(),
        relative: path.to_owned(),
        stat,
        kind,
        compression,
        spooled: None,
    })
}

/// `-` is text; `stdin:jsonl.gz` says what else comes.
fn standard_input(word: &str, flag: &str, spool_dir: &Path) -> Result<Input> {
    let kind = recognise(&format!("stdin.{}", word.strip_prefix(STDIN).unwrap_or("txt")));
    let Some((kind, compression)) = kind else {
        return Err(Error::config(flag, format!("{word} says no kind that is read: {READ}")));
    };
    storage::create_dir_all(spool_dir)?;
    storage::remove_stale_temporaries(spool_dir)?;
    let mut spooled = TemporaryFile::create(&spool_dir.join("stdin"))?;
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => spooled.append(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::storage("read", Path::new("standard input"))(error)),
        }
    }
    let path = spooled.temporary_path().to_owned();
    let stat = storage::stat(&path)?.ok_or_else(|| Error::config(flag, "what was read is gone"))?;
    Ok(Input {
        path,
        name: "standard input".into(),
        relative: word.into(),
        stat,
        kind,
        compression,
        spooled: Some(Arc::new(spooled)),
    })
}
