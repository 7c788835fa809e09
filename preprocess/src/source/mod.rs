//! Which files are read, in which order: everything below a directory that has a known extension, sorted
//! by the bytes of its relative path, so that the order never depends on the file system; or files one by one.

mod files;
pub(crate) mod pattern;
mod texts;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokenmill_shared::storage::{self, Stat, TemporaryFile};
use tokenmill_shared::{Error, Location, Result};

pub use self::texts::{Text, texts};

/// How a file's content becomes records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `.txt`: lines, paragraphs or one document.
    Text,
    /// `.jsonl`: one object a line.
    JsonLines,
    /// `.json`: an array of objects, or objects one after another.
    Json,
    /// `.parquet`: columns of strings.
    Parquet,
    /// `.csv`: rows, of which the first names the columns.
    Csv,
    /// `.tsv`: the same with tabs.
    Tsv,
    /// `.arrow`: record batches, as a stream or a file.
    Arrow,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz`, one member or several.
    Gzip,
    /// `.zst`, one frame or several.
    Zstd,
    /// `.bz2`, one stream or several.
    Bzip2,
    /// `.xz`, one stream or several.
    Xz,
}

/// One input file.
#[derive(Debug, Clone)]
pub struct Input {
    /// The path to open.
    pub path: PathBuf,
    /// What it is called in messages.
    pub name: PathBuf,
    /// Its path relative to the directory that was given.
    pub relative: PathBuf,
    /// What the file system said when it was listed.
    pub stat: Stat,
    /// What its records are.
    pub kind: Kind,
    /// How it is compressed.
    pub compression: Compression,
    /// The file that holds it for as long as it is read, where it had none.
    pub spooled: Option<Arc<TemporaryFile>>,
}

/// What is read, in words.
pub const READ: &str = ".txt, .jsonl, .json, .csv, .tsv, .parquet or .arrow (also .gz, .zst, .bz2 or .xz of these)";

impl Input {
    /// The whole file as a place.
    pub fn at(&self) -> Location {
        Location::file(&self.name)
    }
}

/// Every input below `dir`, in input order. `flag` is named in errors.
///
/// # Errors
/// The directory is missing or holds no file of a known kind.
pub fn list(dir: &Path, flag: &str) -> Result<Vec<Input>> {
    let shown = dir.display();
    // A store has no directories; what is below a name is listed.
    let is_local = !storage::is_remote(dir);
    if is_local && storage::stat(dir)?.is_none() {
        return Err(Error::config(flag, format!("{shown} does not exist; correct the path")));
    }
    if is_local && !dir.is_dir() {
        return Err(Error::config(
            flag,
            format!("{shown} is a file; give it as --train_file, or the directory that holds it"),
        ));
    }
    if is_local && flag != "--dataset_name" && is_saved_dataset(dir)? {
        return Err(Error::config(flag, format!("{shown} is a dataset that was saved; give it as --dataset_name")));
    }
    let files = storage::list_files(dir)?;
    let found = files.len();
    let inputs: Vec<Input> = files
        .into_iter()
        .filter_map(|entry| {
            let (kind, compression) = recognise(entry.relative.to_str()?)?;
            let name = entry.path.clone();
            Some(Input {
                path: entry.path,
                name,
                relative: entry.relative,
                stat: entry.stat,
                kind,
                compression,
                spooled: None,
            })
        })
        .collect();
    if inputs.is_empty() {
        let reason = format!("{shown} holds no {READ} file among its {found} files");
        return Err(Error::config(flag, reason));
    }
    Ok(inputs)
}

/// Whether `dir` is a dataset as `save_to_disk` writes one, whose files are not all text.
fn is_saved_dataset(dir: &Path) -> Result<bool> {
    Ok(storage::stat(&dir.join("dataset_dict.json"))?.is_some()
        || (storage::stat(&dir.join("state.json"))?.is_some()
            && storage::stat(&dir.join("dataset_info.json"))?.is_some()))
}

/// What a file of that name holds, and how it is compressed; `None` if it is not read.
pub fn recognise(name: &str) -> Option<(Kind, Compression)> {
    let name = name.to_ascii_lowercase();
    let (stem, compression) = match name.rsplit_once('.') {
        Some((stem, "gz")) => (stem, Compression::Gzip),
        Some((stem, "zst")) => (stem, Compression::Zstd),
        Some((stem, "bz2")) => (stem, Compression::Bzip2),
        Some((stem, "xz")) => (stem, Compression::Xz),
        _ => (name.as_str(), Compression::None),
    };
    let kind = match stem.rsplit_once('.')?.1 {
        "txt" => Kind::Text,
        "jsonl" => Kind::JsonLines,
        "json" => Kind::Json,
        "parquet" => Kind::Parquet,
        "csv" => Kind::Csv,
        "tsv" => Kind::Tsv,
        "arrow" => Kind::Arrow,
        _ => return None,
    };
    Some((kind, compression))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_recognised_through_compression_and_case() {
        assert_eq!(recognise("a/b.txt"), Some((Kind::Text, Compression::None)));
        assert_eq!(recognise("B.JSONL.GZ"), Some((Kind::JsonLines, Compression::Gzip)));
        assert_eq!(recognise("x.parquet.zst"), Some((Kind::Parquet, Compression::Zstd)));
        assert_eq!(recognise("x.json"), Some((Kind::Json, Compression::None)));
        assert_eq!(recognise("x.csv.bz2"), Some((Kind::Csv, Compression::Bzip2)));
        assert_eq!(recognise("x.TSV.xz"), Some((Kind::Tsv, Compression::Xz)));
        assert_eq!(recognise("x.arrow"), Some((Kind::Arrow, Compression::None)));
        for other in ["x.gz", "x.pdf", "txt", "x.txt.rar", "readme"] {
            assert_eq!(recognise(other), None, "{other}");
        }
    }
}
