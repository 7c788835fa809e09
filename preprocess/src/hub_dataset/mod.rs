//! `--dataset_name`: which files of a dataset, a local directory or a repository on the hub, are training text and which
//! are validation text.
//!
//! The rules are those of `datasets.load_dataset`: the `configs` in the card (README.md) name files by patterns; without
//! them the names of files and directories say their split, and if none does, all are training text. Scripts are not run.
//! Source: datasets 4 (`data_files.py`, `load.py`).

mod saved;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use tokenmill_shared::config::{DataArguments, HubArguments};
use tokenmill_shared::hub::{Hub, Kind, Repository};
use tokenmill_shared::{Error, Result, storage};

use crate::source::{self, pattern};

const FLAG: &str = "--dataset_name";
const CARD: &str = "README.md";

/// A card beyond this is not read.
const CARD_LIMIT: u64 = 4 << 20;

/// Files that describe a dataset and are not of it.
const ABOUT: [&str; 5] = [CARD, "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"];

/// Whether a file describes a dataset, or holds what `datasets` computed from one.
fn is_about(name: &str) -> bool {
    let leaf = name.rsplit('/').next().unwrap_or_default();
    ABOUT.contains(&name) || leaf == "dataset_info.json" || (leaf.starts_with("cache-") && leaf.ends_with(".arrow"))
}

/// What separates the name of a split from the rest of a path.
const SEPARATOR: &str = r"[-._ 0-9/]";

/// The files of the splits, below a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitFiles {
    /// The directory.
    pub dir: PathBuf,
    /// Paths of the training text in it.
    pub train: BTreeSet<PathBuf>,
    /// Those of the validation text; none if it is to be taken from the training text.
    pub validation: BTreeSet<PathBuf>,
}

/// Finds, and on the hub fetches, the files of `--dataset_name`; `None` if it is not given.
///
/// # Errors
/// A dataset that is not there, is a script, has no such configuration or no file that can be read.
pub fn find(data: &DataArguments, hub: &HubArguments) -> Result<Option<SplitFiles>> {
    let Some(name) = &data.dataset_name else { return Ok(None) };
    let config = data.dataset_config_name.as_deref();
    let local = Path::new(name);
    if local.is_dir()
        && let Some(found) = saved::saved_to_disk(local)?
    {
        return match config {
            Some(config) => {
                Err(Error::config(FLAG, format!("{name} was saved without configurations, so none is called {config}")))
            }
            None => Ok(Some(found)),
        };
    }
    let as_paths = |names: Vec<String>| names.into_iter().map(PathBuf::from).collect();
    let (dir, splits) = if local.is_dir() {
        let local = &saved::snapshot_of(local)?;
        let files = storage::list_files(local)?;
        let names: Vec<String> =
            files.into_iter().filter_map(|file| Some(file.relative.to_str()?.to_owned())).collect();
        (local.clone(), choose(name, &names, &card(local)?, config)?)
    } else {
        fetch(name, config, data, hub)?
    };
    Ok(Some(SplitFiles { dir, train: as_paths(splits.train), validation: as_paths(splits.validation) }))
}

/// The card first, then the files it names.
fn fetch(name: &str, config: Option<&str>, data: &DataArguments, hub: &HubArguments) -> Result<(PathBuf, Splits)> {
    let repository = Repository { kind: Kind::Dataset, id: name.to_owned(), revision: "main".to_owned() };
    if !repository.has_plain_id() {
        return Err(Error::config(
            FLAG,
            format!("{name} is no directory here, and no dataset on a hub can be called so"),
        ));
    }
    let hub = Hub::new(hub, data.cache_dir.as_deref())?;
    let chosen = RefCell::new(Ok(Splits::default()));
    let files_by = |names: &[String], configs: &[Config]| match choose(name, names, configs, config) {
        Ok(splits) => {
            let all = splits.train.iter().chain(&splits.validation).cloned().collect();
            *chosen.borrow_mut() = Ok(splits);
            all
        }
        Err(error) => {
            *chosen.borrow_mut() = Err(error);
            Vec::new()
        }
    };
    let with_card = |names: &[String]| match names.iter().find(|name| name.as_str() == CARD) {
        Some(card) => vec![card.clone()],
        None => files_by(names, &[]),
    };
    let found = hub.snapshot(FLAG, &repository, &with_card);
    // What was wrong with the choice says more than that nothing was chosen.
    chosen.replace(Ok(Splits::default()))?;
    let configs = card(&found?)?;
    let found = hub.snapshot(FLAG, &repository, &|names: &[String]| files_by(names, &configs));
    let splits = chosen.into_inner()?;
    Ok((found?, splits))
}

/// Names of files by split.
#[derive(Debug, Default, PartialEq, Eq)]
struct Splits {
    train: Vec<String>,
    validation: Vec<String>,
}

/// One of the `configs` in a card.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    config_name: String,
    #[serde(default)]
    default: bool,
    data_dir: Option<String>,
    #[serde(default)]
    data_files: Value,
}

#[derive(Deserialize)]
struct Card {
    #[serde(default)]
    configs: Vec<Config>,
}

/// The `configs` of the card in `dir`; none if there is no card or it has none.
fn card(dir: &Path) -> Result<Vec<Config>> {
    let path = dir.join(CARD);
    if storage::stat(&path)?.is_none() {
        return Ok(Vec::new());
    }
    let bytes = storage::read_at_most(&path, CARD_LIMIT)?;
    let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
    let Some(header) = text.strip_prefix("---\n").and_then(|rest| Some(rest.split_once("\n---")?.0)) else {
        return Ok(Vec::new());
    };
    serde_saphyr::from_str::<Card>(header)
        .map(|card| card.configs)
        .map_err(|error| Error::corrupt(&path, format!("has a header that cannot be read ({error})")))
}

/// The files of the splits among `names`.
fn choose(dataset: &str, names: &[String], configs: &[Config], wanted: Option<&str>) -> Result<Splits> {
    let refuse = |reason: String| Err(Error::config(FLAG, format!("{dataset} {reason}")));
    let leaf = dataset.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let script = format!("{leaf}.py");
    if configs.is_empty() && names.contains(&script) {
        return refuse(format!(
            "is a script ({script}), and scripts of datasets are not run here (nor by datasets 4); fetch its converted files with `hf download {dataset} --repo-type dataset --revision refs/convert/parquet --local-dir DIR` and give --train_file_dir DIR"
        ));
    }
    let config = match (configs, wanted) {
        ([], None | Some("default")) => None,
        ([], Some(wanted)) => return refuse(format!("has no configurations, so none called {wanted}")),
        ([one], None) => Some(one),
        (all, wanted) => {
            let is_meant = |config: &&Config| match wanted {
                Some(wanted) => config.config_name == wanted,
                None => config.default || config.config_name == "default",
            };
            let Some(config) = all.iter().find(is_meant) else {
                let known: Vec<_> = all.iter().map(|config| config.config_name.as_str()).collect();
                return refuse(format!(
                    "has the configurations {}; give one with --dataset_config_name",
                    known.join(", ")
                ));
            };
            Some(config)
        }
    };
    let prefix = config.and_then(|config| config.data_dir.as_deref()).unwrap_or_default();
    let prefix = prefix.trim_start_matches("./").trim_matches('/');
    let inside = |name: &&String| {
        let below = name.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.starts_with('/'));
        below && !name.split('/').any(|part| part.starts_with(['.', '_'])) && !is_about(name)
    };
    let files: Vec<&String> = names.iter().filter(inside).collect();
    let splits = match config.map(|config| &config.data_files).filter(|files| !files.is_null()) {
        Some(patterns) => by_patterns(&files, prefix, patterns)?,
        None => by_names(&of_one_kind(&files)),
    };
    let unreadable = splits.train.iter().chain(&splits.validation).find(|name| source::recognise(name).is_none());
    if let Some(name) = unreadable {
        return refuse(format!("has {name}; what is read is {}", source::READ));
    }
    if splits.train.is_empty() {
        return refuse(format!(
            "has no training text among its {} files that can be read: {}",
            names.len(),
            source::READ
        ));
    }
    Ok(splits)
}

/// The files that can be read, of the kind that most of them are: a licence beside parquet files is no text to learn.
fn of_one_kind<'a>(files: &[&'a String]) -> Vec<&'a String> {
    let kind = |name: &str| source::recognise(name).map(|(kind, _)| format!("{kind:?}"));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for kind in files.iter().filter_map(|name| kind(name)) {
        *counts.entry(kind).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(kind, _)| kind);
    files.iter().copied().filter(|name| kind(name).is_some() && kind(name) == most).collect()
}

/// Splits by what files and directories are called.
fn by_names(files: &[&String]) -> Splits {
    let called = |words: &str| -> Vec<String> {
        let word = Regex::new(&format!("{SEPARATOR}(?:{words}){SEPARATOR}")).expect("a constant pattern");
        files.iter().filter(|name| word.is_match(&format!("/{name}"))).map(|name| (*name).clone()).collect()
    };
    let train = called("train|training");
    let validation = called("validation|valid|dev|val");
    let test = called("test|testing|eval|evaluation");
    if train.is_empty() && validation.is_empty() && test.is_empty() {
        return Splits { train: files.iter().map(|name| (*name).clone()).collect(), validation };
    }
    Splits { train, validation }
}

/// Splits by the patterns of a card: one or several for training, or by split.
fn by_patterns(files: &[&String], prefix: &str, patterns: &Value) -> Result<Splits> {
    let list = |value: &Value| -> Vec<String> {
        match value {
            Value::String(one) => vec![one.clone()],
            Value::Array(all) => all.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect(),
            _ => Vec::new(),
        }
    };
    let mut by_split: Vec<(String, Vec<String>)> = Vec::new();
    match patterns {
        Value::Object(splits) => by_split.extend(splits.iter().map(|(split, paths)| (split.clone(), list(paths)))),
        Value::Array(entries) if entries.iter().all(Value::is_object) => {
            let entry = |entry: &Value| (entry["split"].as_str().unwrap_or("train").to_owned(), list(&entry["path"]));
            by_split.extend(entries.iter().map(entry));
        }
        other => by_split.push(("train".to_owned(), list(other))),
    }
    let mut splits = Splits::default();
    for (split, patterns) in by_split {
        let target = match split.as_str() {
            "train" => &mut splits.train,
            "validation" => &mut splits.validation,
            _ => continue,
        };
        for pattern in patterns {
            let joined = if prefix.is_empty() { pattern.clone() } else { format!("{prefix}/{pattern}") };
            let glob = pattern::compile(joined.trim_start_matches("./"), "the card of --dataset_name")?;
            target.extend(files.iter().filter(|name| glob.is_match(name)).map(|name| (*name).clone()));
        }
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &str, header: &str, wanted: Option<&str>) -> Result<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let readme = format!("---\n{header}\n---\n# About\n");
        storage::replace(&dir.path().join(CARD), readme.as_bytes()).unwrap();
        let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        let splits = choose("org/poems", &names, &card(dir.path())?, wanted)?;
        Ok((splits.train.join(" "), splits.validation.join(" ")))
    }

    fn splits(train: &str, validation: &str) -> (String, String) {
        (train.to_owned(), validation.to_owned())
    }

    /// As `datasets.load_dataset` of version 4 divides the same names.
    #[test]
    fn names_of_files_say_their_split() {
        let by_names = |names: &str| chosen(names, "license: mit", None).unwrap();
        let sharded = "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet";
        let rest = "data/validation-00000-of-00001.parquet data/test-00000-of-00001.parquet README.md LICENSE.txt";
        assert_eq!(by_names(&format!("{sharded} {rest}")), splits(sharded, "data/validation-00000-of-00001.parquet"));
        assert_eq!(by_names("a.txt b/c.txt .git/d.txt"), splits("a.txt b/c.txt", ""));
        assert_eq!(by_names("train/a.jsonl dev/a.jsonl"), splits("train/a.jsonl", "dev/a.jsonl"));
        assert_eq!(by_names("my-train.txt trainer.txt my_val.txt"), splits("my-train.txt", "my_val.txt"));
    }

    /// The cache of `datasets` keeps what it prepared as one Arrow file or several for a split.
    #[test]
    fn a_directory_of_the_cache_of_datasets_is_read() {
        let names = "poems-train.arrow poems-validation.arrow cache-1f.arrow dataset_info.json";
        assert_eq!(chosen(names, "license: mit", None).unwrap(), splits("poems-train.arrow", "poems-validation.arrow"));
        let nested = "default/0.0.0/abc/json-train.arrow default/0.0.0/abc/dataset_info.json";
        assert_eq!(chosen(nested, "license: mit", None).unwrap(), splits("default/0.0.0/abc/json-train.arrow", ""));
    }

    #[test]
    fn a_card_names_files_by_configuration_and_split() {
        let names = "en/a.jsonl en/b.jsonl zh/a.jsonl zh/deep/b.jsonl held/x.jsonl";
        let header = "configs:\n- config_name: en\n  data_files:\n  - split: train\n    path: \"en/*.jsonl\"\n  - split: validation\n    path: [held/?.jsonl]\n\
             - config_name: zh\n  data_dir: zh\n  data_files: \"**\"\n- config_name: both\n  default: true\n  data_files:\n    train: [\"*/a.jsonl\"]\n    test: held/x.jsonl";
        assert_eq!(chosen(names, header, Some("en")).unwrap(), splits("en/a.jsonl en/b.jsonl", "held/x.jsonl"));
        assert_eq!(chosen(names, header, Some("zh")).unwrap(), splits("zh/a.jsonl zh/deep/b.jsonl", ""));
        assert_eq!(chosen(names, header, None).unwrap(), splits("en/a.jsonl zh/a.jsonl", ""));
        let error = chosen(names, header, Some("fr")).unwrap_err().to_string();
        assert!(error.contains("en, zh, both") && error.contains("--dataset_config_name"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        let refused = |names: &str, header: &str, wanted| chosen(names, header, wanted).unwrap_err().to_string();
        assert!(refused("poems.py data.jsonl", "", None).contains("refs/convert/parquet"));
        assert!(refused("a.pdf b.pdf", "", None).contains("no training text"));
        assert!(refused("a.jsonl", "", Some("en")).contains("none called en"));
        let card = "configs:\n- config_name: a\n  data_files: a.pdf";
        assert!(refused("a.pdf", card, None).contains("a.pdf"));
        assert!(refused("a.txt", "configs: 7", None).contains("README.md"));
    }
}
