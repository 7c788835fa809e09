//! File names that a manifest may contain: nothing that could leave the dataset's directory.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which part of the data a model learns from and which it is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Learned from.
    Train,
    /// Measured on.
    Validation,
}

impl Split {
    /// Both, in the order of files and reports.
    pub const ALL: [Self; 2] = [Self::Train, Self::Validation];

    /// The name of its directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|split| split.as_str() == text).ok_or_else(|| "use train or validation".to_owned())
    }
}

/// What a file of a split holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardKind {
    /// Blocks of token ids.
    Data,
    /// Where documents begin in those blocks.
    Documents,
}

impl ShardKind {
    /// Both, in the order of their numbers in the index.
    pub const ALL: [Self; 2] = [Self::Data, Self::Documents];
}

/// `data-NNNNN.arrow` or `documents-NNNNN.arrow`, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardName {
    /// What it holds.
    pub kind: ShardKind,
    /// Its number in the split, from 0.
    pub number: u32,
}

impl ShardName {
    /// The file's path in the dataset at `dir`.
    pub fn path(self, dir: &Path, split: Split) -> PathBuf {
        dir.join(split.as_str()).join(self.to_string())
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ShardKind::Data => "data",
            ShardKind::Documents => "documents",
        };
        write!(f, "{kind}-{:05}.arrow", self.number)
    }
}

impl From<ShardName> for String {
    fn from(name: ShardName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for ShardName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parse = || {
            let (kind, rest) = text.split_once('-')?;
            let kind = match kind {
                "data" => ShardKind::Data,
                "documents" => ShardKind::Documents,
                _ => return None,
            };
            let digits = rest.strip_suffix(".arrow")?;
            let plain = digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
            let name = Self { kind, number: plain.then(|| digits.parse().ok())?? };
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or_else(|| format!("{text:?} is not the name of a shard"))
    }
}

/// The directory of the tokenizer's files in a dataset.
pub const TOKENIZER_DIR: &str = "tokenizer";

/// The path in a dataset of a file other than shards, index and manifest: `dataset_dict.json`, a split's
/// `state.json` or `dataset_info.json`, a plain name in `tokenizer/`, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    /// `dataset_dict.json`, which `datasets.load_from_disk` reads first.
    pub fn dataset_dict() -> Self {
        Self("dataset_dict.json".to_owned())
    }

    /// A split's `state.json`, which lists its shards for `datasets`.
    pub fn state(split: Split) -> Self {
        Self(format!("{split}/state.json"))
    }

    /// A split's `dataset_info.json`.
    pub fn dataset_info(split: Split) -> Self {
        Self(format!("{split}/dataset_info.json"))
    }

    /// A file of the tokenizer; `None` if `name` is not one plain component.
    pub fn tokenizer(name: &str) -> Option<Self> {
        let plain = !name.is_empty()
            && name.len() <= 255
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        plain.then(|| Self(format!("{TOKENIZER_DIR}/{name}")))
    }

    /// The file's path in the dataset at `dir`.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(&self.0)
    }

    /// Whether it is a file of the tokenizer.
    pub fn is_tokenizer(&self) -> bool {
        self.0.starts_with(TOKENIZER_DIR)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl TryFrom<String> for FileName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let of_splits = Split::ALL.into_iter().flat_map(|split| [Self::state(split), Self::dataset_info(split)]);
        let tokenizer = text.strip_prefix(TOKENIZER_DIR).and_then(|rest| rest.strip_prefix('/'));
        std::iter::once(Self::dataset_dict())
            .chain(of_splits)
            .chain(tokenizer.and_then(Self::tokenizer))
            .find(|name| name.0 == text)
            .ok_or_else(|| format!("{text:?} is not the name of a file of a dataset"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::Mutator;
    use crate::night::Run;

    /// Whatever is taken for a name is a file below the dataset's directory, and is written as it was read.
    #[test]
    fn no_name_leaves_the_directory() {
        const SEEDS: [&str; 9] = [
            "data-00000.arrow",
            "documents-00017.arrow",
            "dataset_dict.json",
            "train/state.json",
            "validation/dataset_info.json",
            "tokenizer/tokenizer.json",
            "tokenizer/../../etc/passwd",
            "/etc/passwd",
            "..\\..\u{2215}..",
        ];
        const PARTS: [&str; 12] =
            ["/", "..", ".", "\\", "\0", "~", "//", "tokenizer/", "train/", "-", "%2e%2e", "\u{202e}"];
        let ledger = Run::of("names of files, changed", 10_000, 10_000_000);
        let mut mutator = Mutator::new(ledger.seed);
        let dir = Path::new("/data/set");
        let is_inside = |path: &Path| {
            let plain = |part| matches!(part, std::path::Component::Normal(_));
            path.strip_prefix(dir).is_ok_and(|rest| rest.components().all(plain) && rest.components().count() <= 2)
        };
        let mut taken = 0;
        for _ in 0..ledger.size {
            let mut bytes = mutator.choose(&SEEDS).as_bytes().to_vec();
            if mutator.below(2) == 0 {
                let at = mutator.below(bytes.len() + 1);
                bytes.splice(at..at, mutator.choose(&PARTS).bytes());
            }
            let text = String::from_utf8_lossy(&mutator.change(&bytes)).into_owned();
            if let Ok(name) = ShardName::try_from(text.clone()) {
                assert!(name.to_string() == text && is_inside(&name.path(dir, Split::Train)), "{text:?}");
                taken += 1;
            }
            if let Ok(name) = FileName::try_from(text.clone()) {
                assert!(name.to_string() == text && is_inside(&name.path(dir)), "{text:?}");
                taken += 1;
            }
        }
        assert!(taken > ledger.size / 50 && taken < ledger.size / 2, "{taken}");
        ledger.passed();
    }

    #[test]
    fn only_our_names_parse() {
        for good in ["data-00000.arrow", "documents-00017.arrow", "data-123456.arrow"] {
            assert_eq!(ShardName::try_from(good.to_owned()).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "data-0.arrow",
            "data-000001.arrow",
            "../data-00000.arrow",
            "data-00000.arrow/..",
            "data-+0001.arrow",
            "/data-00000.arrow",
            "data-00000.arrow\0",
            "Data-00000.arrow",
            "data-99999999999.arrow",
            "data-00000.arrow ",
        ] {
            assert!(ShardName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_names_inside_a_dataset_parse() {
        for good in ["dataset_dict.json", "train/state.json", "validation/dataset_info.json", "tokenizer/merges.txt"] {
            assert_eq!(FileName::try_from(good.to_owned()).unwrap().to_string(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "/etc/passwd",
            "../dataset_dict.json",
            "train/../state.json",
            "test/state.json",
            "train/data-00000.arrow",
            "tokenizer",
            "tokenizer/",
            "tokenizer/..",
            "tokenizer/.hidden",
            "tokenizer/a/b",
            "tokenizer/a\0b",
            "tokenizer/ä",
            "tokenizer/a\\b",
        ] {
            assert!(FileName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
