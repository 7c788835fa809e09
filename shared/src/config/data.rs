//! The data parameters: what to read, how to cut it into documents and blocks. Both programs take them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{Compat, PackingStrategy, boolean};
use crate::{Error, Result, storage};

/// What one document is in a plain-text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum SampleBy {
    /// Every line (Hugging Face's rule); blank lines are documents too.
    Line,
    /// Runs of text between empty lines.
    Paragraph,
    /// The whole file.
    Document,
}

/// How validation documents are chosen when there is no `--validation_file_dir`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum ValidationSplitMode {
    /// The first p percent of the documents (Hugging Face's rule).
    Head,
    /// By a hash of the file or record, so that the choice is stable as the corpus grows.
    Hash,
}

/// What happens to the tokens at the end of a split that do not fill a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Remainder {
    /// Left out, and counted.
    Drop,
    /// Padded to a whole block; padding is never a label.
    Pad,
}

/// How text files are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
pub enum Encoding {
    /// By a byte order mark, or else by the first bytes that tell: UTF-8, GB18030 or UTF-16, each file by itself.
    #[serde(rename = "auto")]
    Auto,
    /// UTF-8.
    #[default]
    #[serde(rename = "utf-8", alias = "utf8")]
    #[value(name = "utf-8", alias = "utf8")]
    Utf8,
    /// GB18030, with GBK and GB2312 in it.
    #[serde(rename = "gb18030", alias = "gbk", alias = "gb2312")]
    #[value(name = "gb18030", aliases = ["gbk", "gb2312"])]
    Gb18030,
    /// UTF-16, in the order that a byte order mark says, or else low byte first.
    #[serde(rename = "utf-16", alias = "utf16")]
    #[value(name = "utf-16", alias = "utf16")]
    Utf16,
}

/// What becomes of bytes that are not in a file's encoding; Python's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum EncodingErrors {
    /// The record is bad.
    #[default]
    Strict,
    /// U+FFFD stands for them.
    Replace,
    /// They are left out.
    Ignore,
}

/// What becomes of records that cannot be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum OnBadRecord {
    /// The first one ends the run.
    #[default]
    Fail,
    /// They are left out, counted and reported.
    Skip,
    /// The same, and they are written into a file beside the dataset.
    Quarantine,
}

/// Tokens in a block where nothing else is said, as in MedicalGPT's `pretraining.py`.
const BLOCK_SIZE: usize = 1024;

impl Remainder {
    /// Whether a split of so many tokens ends in a padded block. One without a full block does, so that a split of any
    /// token is never empty.
    pub fn pads(self, tokens: u64, block_size: u64) -> bool {
        !tokens.is_multiple_of(block_size) && (self == Self::Pad || tokens < block_size)
    }
}

/// The data parameters. Names and defaults are those of `run_clm.py` and MedicalGPT's `pretraining.py`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
#[serde(default, deny_unknown_fields)]
#[command(rename_all = "snake_case")]
pub struct DataArguments {
    /// A dataset of text files in place of --train_file_dir: a local directory or a hub id; its splits are used
    #[arg(long, value_name = "DIR|ID")]
    pub dataset_name: Option<String>,
    /// Which configuration of that dataset
    #[arg(long, value_name = "NAME")]
    pub dataset_config_name: Option<String>,
    /// Directory of training text: **/*.txt, .jsonl, .json, .csv, .tsv, .parquet, .arrow, also .gz, .zst, .bz2 or .xz
    #[arg(long, value_name = "DIR")]
    pub train_file_dir: Option<PathBuf>,
    /// Files of training text in place of it, in this order: names, patterns ('*.txt'), @LIST, or - for standard input
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub train_file: Vec<String>,
    /// Files of validation text, given in the same ways
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub validation_file: Vec<String>,
    /// Directory of validation text, of the same kinds; or several sets, each name=DIR, evaluated apart
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub validation_file_dir: Vec<PathBuf>,
    /// Percent of the training documents that become validation when there is no --validation_file_dir
    #[arg(long, value_name = "PERCENT")]
    pub validation_split_percentage: f64,
    /// Which documents those are: the first ones (head) or by content hash (hash)
    #[arg(long)]
    pub validation_split_mode: ValidationSplitMode,
    /// Tokens in a block, the training sample (default: 1024, or those of --dataset_dir, which is cut anew for others)
    #[arg(long, value_name = "TOKENS")]
    pub block_size: Option<usize>,
    /// Several documents in a block; false: one document a block, truncated or padded
    #[arg(long)]
    pub packing: bool,
    /// How documents are packed: one after the other and cut anywhere, or whole unless longer than a block (padding is said before anything is written)
    #[arg(long)]
    pub packing_strategy: PackingStrategy,
    /// Do what these programs do where ours differs. run_clm and medicalgpt: the blocks that they make of 1000 documents at a time; medicalgpt also: FP4 for --load_in_4bit without --qlora and nothing for --qlora alone; hf-4.57: the Trainer's means of losses from 4.46 to 4.57
    #[arg(long, value_name = "PROGRAM", num_args = 1.., value_delimiter = ',')]
    pub compat: Vec<Compat>,
    /// Blocks all have the same length; with --compat medicalgpt this says whether documents are packed, as it did there from 2024 to 2026
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = boolean)]
    pub group_by_length: Option<bool>,
    /// What one document is in a .txt file: line, paragraph or document
    #[arg(long)]
    pub sample_by: SampleBy,
    /// Keep the newline at the end of each line of a .txt file
    #[arg(long)]
    pub keep_linebreaks: bool,
    /// true: tokenizer.json; false: the SentencePiece model if there is one (default: tokenizer.json if there is one)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = boolean)]
    pub use_fast_tokenizer: Option<bool>,
    /// The field or column that holds the text of records; /a/b for a nested one
    #[arg(long, value_name = "NAME")]
    pub text_field: String,
    /// Several fields and what stands between them, in place of --text_field: '{title}\n{text}'
    #[arg(long, value_name = "TEMPLATE")]
    pub text_template: Option<String>,
    /// How text is encoded: auto finds it out for every file
    #[arg(long)]
    pub encoding: Encoding,
    /// Bytes that are not in that encoding: a bad record (strict), U+FFFD (replace) or nothing (ignore)
    #[arg(long)]
    pub encoding_errors: EncodingErrors,
    /// Records that cannot be used: fail, skip, or quarantine (skip, and keep them in a file)
    #[arg(long)]
    pub on_bad_record: OnBadRecord,
    /// How many records may be left out so before the run fails after all (-1: any number)
    #[arg(long, value_name = "RECORDS")]
    pub max_bad_records: i64,
    /// Leave out documents of fewer characters, the newline at the end of a line not counted
    #[arg(long, value_name = "CHARACTERS")]
    pub min_chars: Option<u64>,
    /// Leave out documents of more characters
    #[arg(long, value_name = "CHARACTERS")]
    pub max_chars: Option<u64>,
    /// Keep only the first of documents with the same tokens, validation text before training text
    #[arg(long)]
    pub deduplicate: bool,
    /// Pass over the first N documents of the training text
    #[arg(long, value_name = "DOCUMENTS")]
    pub skip_documents: Option<u64>,
    /// Take only N documents of the training text, after those that are passed over
    #[arg(long, value_name = "DOCUMENTS")]
    pub take_documents: Option<u64>,
    /// Add the special tokens that calling the Hugging Face tokenizer adds (Llama-2: BOS)
    #[arg(long)]
    pub add_special_tokens: bool,
    /// Append the end-of-sequence token after each document that does not end with it
    #[arg(long)]
    pub append_eos: bool,
    /// Tokens at the end of a split that fill no block: drop or pad
    #[arg(long)]
    pub remainder: Remainder,
    /// Use only the first N training blocks (-1 or 0: all)
    #[arg(long, value_name = "BLOCKS")]
    pub max_train_samples: Option<i64>,
    /// Use only the first N validation blocks (-1 or 0: all)
    #[arg(long, value_name = "BLOCKS")]
    pub max_eval_samples: Option<i64>,
    /// Threads for preparing data; the result never depends on it (default: all cores)
    #[arg(long, value_name = "THREADS")]
    pub preprocessing_num_workers: Option<usize>,
    /// Where token partitions are kept for reuse (default: $XDG_CACHE_HOME/tokenmill or ~/.cache/tokenmill)
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Keep token partitions in the cache and reuse them
    #[arg(long)]
    pub token_cache: bool,
    /// Tokenize again even what is in the cache
    #[arg(long)]
    pub overwrite_cache: bool,
    /// Read every input file again to hash it, whatever its size and times say
    #[arg(long)]
    pub rehash: bool,
}

impl Default for DataArguments {
    fn default() -> Self {
        Self {
            dataset_name: None,
            dataset_config_name: None,
            train_file_dir: None,
            train_file: Vec::new(),
            validation_file: Vec::new(),
            validation_file_dir: Vec::new(),
            validation_split_percentage: 1.0,
            validation_split_mode: ValidationSplitMode::Head,
            block_size: None,
            packing: true,
            packing_strategy: PackingStrategy::Concatenate,
            compat: Vec::new(),
            group_by_length: None,
            sample_by: SampleBy::Line,
            keep_linebreaks: true,
            use_fast_tokenizer: None,
            text_field: "text".to_owned(),
            text_template: None,
            encoding: Encoding::Utf8,
            encoding_errors: EncodingErrors::Strict,
            on_bad_record: OnBadRecord::Fail,
            max_bad_records: 1000,
            min_chars: None,
            max_chars: None,
            deduplicate: false,
            skip_documents: None,
            take_documents: None,
            add_special_tokens: true,
            append_eos: true,
            remainder: Remainder::Drop,
            max_train_samples: None,
            max_eval_samples: None,
            preprocessing_num_workers: None,
            cache_dir: None,
            token_cache: true,
            overwrite_cache: false,
            rehash: false,
        }
    }
}

/// What `--validation_file_dir` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValidationText {
    /// Nothing.
    None,
    /// The directory of the one set.
    One(PathBuf),
    /// Sets with names, each in its directory.
    Named(Vec<(String, PathBuf)>),
}

impl DataArguments {
    /// What `--validation_file_dir` names: `name=DIR` is a set with a name, unless there is a directory that is called so.
    ///
    /// # Errors
    /// Several directories of which one has no name, or two have the same.
    pub fn validation_text(&self) -> Result<ValidationText> {
        const FLAG: &str = "--validation_file_dir";
        let mut named: Vec<(String, PathBuf)> = Vec::new();
        for given in &self.validation_file_dir {
            let split = given.to_str().and_then(|given| given.split_once('='));
            let is_name = |name: &str| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
            };
            match split.filter(|(name, dir)| is_name(name) && !dir.is_empty()) {
                Some((name, dir)) if storage::stat(given)?.is_none() => {
                    if named.iter().any(|(other, _)| other == name) {
                        return Err(Error::config(FLAG, format!("has two sets of the name {name}")));
                    }
                    named.push((name.to_owned(), dir.into()));
                }
                _ if self.validation_file_dir.len() == 1 => return Ok(ValidationText::One(given.clone())),
                _ => {
                    let reason = format!("has several sets, and {} has no name; give name=DIR", given.display());
                    return Err(Error::config(FLAG, reason));
                }
            }
        }
        Ok(if named.is_empty() { ValidationText::None } else { ValidationText::Named(named) })
    }

    /// Tokens in a block that is packed.
    pub fn block_size(&self) -> usize {
        self.block_size.unwrap_or(BLOCK_SIZE)
    }

    /// `max_bad_records` as a bound; none for a negative number.
    pub fn bad_records_limit(&self) -> Option<u64> {
        u64::try_from(self.max_bad_records).ok()
    }

    /// `max_train_samples` as a bound on blocks; −1 and 0 mean all of them, as for Hugging Face.
    pub fn train_blocks_limit(&self) -> Option<u64> {
        limit(self.max_train_samples)
    }

    /// `max_eval_samples` as a bound on blocks.
    pub fn validation_blocks_limit(&self) -> Option<u64> {
        limit(self.max_eval_samples)
    }
}

fn limit(samples: Option<i64>) -> Option<u64> {
    samples.and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_sets_have_names_or_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a=b");
        storage::create_dir_all(&odd).unwrap();
        let text = |given: &[&str]| {
            let validation_file_dir = given.iter().map(PathBuf::from).collect();
            DataArguments { validation_file_dir, ..DataArguments::default() }.validation_text()
        };
        assert_eq!(text(&[]).unwrap(), ValidationText::None);
        for path in ["some/dir", odd.to_str().unwrap(), "some/wiki=dir", "=dir", "wiki="] {
            assert_eq!(text(&[path]).unwrap(), ValidationText::One(path.into()), "{path}");
        }
        let sets = [("wiki", "w=1"), ("news-2", "n")].map(|(name, path)| (name.to_owned(), path.into()));
        assert_eq!(text(&["wiki=w=1", "news-2=n"]).unwrap(), ValidationText::Named(sets.to_vec()));
        for (given, part) in [(["wiki=w", "n"], "n has no name"), (["wiki=w", "wiki=v"], "two sets of the name wiki")] {
            let error = text(&given).unwrap_err().to_string();
            assert!(error.contains("--validation_file_dir") && error.contains(part), "{error}");
        }
    }
}
