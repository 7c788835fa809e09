//! Datasets in the directories that Hugging Face's libraries make: those of `save_to_disk`, and a repository's in the cache
//! of the hub.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

use super::{FLAG, SplitFiles};

/// What `save_to_disk` writes beside the files of a dataset, or a directory above for several splits.
const STATE: &str = "state.json";
const SPLITS: &str = "dataset_dict.json";

/// Such a file, at most: it names some files.
const STATE_LIMIT: u64 = 64 << 20;

#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
    /// An order of rows that is not that of the files, before datasets 2.
    #[serde(rename = "_indices_data_files", default)]
    indices: Value,
}

#[derive(Deserialize)]
struct DataFile {
    filename: PathBuf,
}

#[derive(Deserialize)]
struct Splits {
    splits: Vec<String>,
}

/// The files of a dataset that `save_to_disk` wrote; `None` if `dir` is none.
pub(super) fn saved_to_disk(dir: &Path) -> Result<Option<SplitFiles>> {
    let mut validation = BTreeSet::new();
    let train = if is_saved(dir)? {
        files_of(dir, Path::new(""))?
    } else if storage::stat(&dir.join(SPLITS))?.is_some() {
        let Splits { splits } = parse(&dir.join(SPLITS))?;
        if !splits.iter().any(|split| split == "train") {
            let reason = format!("{} has the splits {}, and no train to learn from", dir.display(), splits.join(", "));
            return Err(Error::config(FLAG, reason));
        }
        if splits.iter().any(|split| split == "validation") {
            validation = files_of(dir, Path::new("validation"))?;
        }
        files_of(dir, Path::new("train"))?
    } else {
        return Ok(None);
    };
    Ok(Some(SplitFiles { dir: dir.to_owned(), train, validation }))
}

/// Whether a directory is one split as `save_to_disk` writes it.
fn is_saved(dir: &Path) -> Result<bool> {
    Ok(storage::stat(&dir.join(STATE))?.is_some() && storage::stat(&dir.join("dataset_info.json"))?.is_some())
}

fn files_of(dir: &Path, split: &Path) -> Result<BTreeSet<PathBuf>> {
    let path = dir.join(split).join(STATE);
    let State { data_files, indices } = parse(&path)?;
    let none = indices.is_null() || indices.as_array().is_some_and(Vec::is_empty);
    if !none {
        let reason = "has rows in another order than its files; save it again after flatten_indices()";
        return Err(Error::config(FLAG, format!("{} {reason}", path.display())));
    }
    let mut files = BTreeSet::new();
    for DataFile { filename } in data_files {
        let relative = split.join(&filename);
        if filename.is_absolute() || storage::stat(&dir.join(&relative))?.is_none() {
            let reason = format!("{} names {}, which is not beside it", path.display(), filename.display());
            return Err(Error::config(FLAG, reason));
        }
        files.insert(relative);
    }
    Ok(files)
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let bytes = storage::read_at_most(path, STATE_LIMIT)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::corrupt(path, format!("cannot be read ({error}); save the dataset again")))
}

/// The files of a repository's directory in the cache of the hub (`datasets--ORG--NAME`): those of its branch `main`, or of
/// the one commit that is there. Any other directory is itself.
pub(super) fn snapshot_of(dir: &Path) -> Result<PathBuf> {
    let snapshots = dir.join("snapshots");
    if storage::stat(&snapshots)?.is_none() || storage::stat(&dir.join("blobs"))?.is_none() {
        return Ok(dir.to_owned());
    }
    let main = dir.join("refs/main");
    if storage::stat(&main)?.is_some() {
        let commit = String::from_utf8_lossy(&storage::read_at_most(&main, 1 << 10)?).trim().to_owned();
        let snapshot = snapshots.join(&commit);
        if !commit.contains(['/', '.']) && storage::stat(&snapshot)?.is_some() {
            return Ok(snapshot);
        }
    }
    match &storage::list_directories(&snapshots)?[..] {
        [one] => Ok(one.clone()),
        several => {
            let reason = format!(
                "{} holds {} commits and says of none that it is main; give one of the directories in its snapshots",
                dir.display(),
                several.len()
            );
            Err(Error::config(FLAG, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = dir.join(name);
            storage::create_dir_all(path.parent().unwrap()).unwrap();
            storage::replace(&path, content.as_bytes()).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let state = |names: &str, more: &str| format!("{{\"_data_files\": [{names}]{more}}}");
        let file = "{\"filename\": \"data.arrow\"}";
        for (files, part) in [
            (vec![("dataset_dict.json", "{\"splits\": [\"test\"]}".to_owned())], "no train"),
            (vec![("state.json", state("{\"filename\": \"/etc/passwd\"}", ""))], "not beside it"),
            (vec![("state.json", state("{\"filename\": \"gone.arrow\"}", ""))], "gone.arrow"),
            (
                vec![("state.json", state(file, ", \"_indices_data_files\": [1]")), ("data.arrow", String::new())],
                "flatten_indices",
            ),
            (vec![("state.json", "{".to_owned())], "cannot be read"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &[("dataset_info.json", "{}")]);
            files.iter().for_each(|(name, content)| write(dir.path(), &[(*name, content.as_str())]));
            let error = saved_to_disk(dir.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_directory_of_the_hub_s_cache_is_its_main_branch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert_eq!(snapshot_of(path).unwrap(), path);
        write(path, &[("blobs/x", ""), ("snapshots/aaa/a.txt", "")]);
        assert_eq!(snapshot_of(path).unwrap(), path.join("snapshots/aaa"));
        write(path, &[("snapshots/bbb/a.txt", "")]);
        assert!(snapshot_of(path).unwrap_err().to_string().contains("2 commits"));
        write(path, &[("refs/main", "bbb")]);
        assert_eq!(snapshot_of(path).unwrap(), path.join("snapshots/bbb"));
    }
}
