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

/// The name of a file in the dataset's `tokenizer/` directory: one plain component.
pub(super) fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn tokenizer_files_are_plain_names() {
        assert!(is_plain_file_name("tokenizer.json"));
        for bad in ["", ".", "..", "a/b", "../x", ".hidden", "a\0b", "ä"] {
            assert!(!is_plain_file_name(bad), "{bad:?}");
        }
    }
}
