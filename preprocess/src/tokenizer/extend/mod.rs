//! `preprocess tokenizer extend`: new pieces for a BPE tokenizer, trained on a corpus or taken from a word list.
//!
//! New pieces are ordinary pieces: entries of the vocabulary that merges lead to. All old merges keep their rank and
//! come before all new ones, so a text is first segmented exactly as before, and then neighbouring old pieces are
//! joined where a new piece says so. Nothing else about the segmentation of old text can change. (In SentencePiece style
//! a new character also takes the place of its byte pieces.) No old id changes.

mod corpus;
mod fertility;
mod train;
mod vocabulary;
mod word_list;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tokenmill_shared::config::HubArguments;
use tokenmill_shared::storage::{self, TemporaryDirectory};
use tokenmill_shared::{Error, Result, hub};

use self::corpus::Corpus;
use self::fertility::Comparison;
use self::train::TrainOptions;
use self::vocabulary::Vocabulary;
use super::Tokenizer;

/// Pieces that are trained unless said otherwise.
const NUM_NEW_TOKENS: usize = 8000;

/// What to extend, by what, and where the result goes.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ExtendArguments {
    /// Directory or hub id of the tokenizer to extend: tokenizer.json with a BPE model, byte-level or SentencePiece style
    #[arg(long, alias = "tokenizer", value_name = "DIR|ID")]
    pub tokenizer_name_or_path: Option<PathBuf>,
    /// Text that new pieces are trained on; with --word_list, text that the result is measured on
    #[arg(long, value_name = "DIR")]
    pub train_file_dir: Option<PathBuf>,
    /// Text of the kind the tokenizer was made for: how much of its segmentation changes is reported
    #[arg(long, value_name = "DIR")]
    pub old_text_dir: Option<PathBuf>,
    /// The field of a record that holds the text
    #[arg(long, value_name = "NAME")]
    pub text_field: String,
    /// Take the words of this file, one a line (what follows a tab is left out), instead of training pieces
    #[arg(long, value_name = "FILE")]
    pub word_list: Option<PathBuf>,
    /// Of the word list take only words that match this regular expression: '^\p{Han}+$'
    #[arg(long, value_name = "REGEX")]
    pub word_pattern: Option<String>,
    /// New pieces to train (8000 unless given), new characters included; of a word list, the first so many words
    #[arg(long, value_name = "N")]
    pub num_new_tokens: Option<usize>,
    /// Occurrences in the corpus that a new piece must have
    #[arg(long, value_name = "N")]
    pub min_frequency: u64,
    /// Share of the corpus' characters that pieces must cover: rarer ones stay byte pieces (SentencePiece style)
    #[arg(long, value_name = "SHARE")]
    pub character_coverage: f64,
    /// Characters of the longest piece that is trained
    #[arg(long, value_name = "N")]
    pub max_token_length: usize,
    /// Where the extended tokenizer goes; must not exist yet
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Print the report as one JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Revision and token of what is named by its hub id.
    #[command(flatten)]
    pub hub: HubArguments,
}

/// SentencePiece's defaults for coverage and length; a piece that occurs once is no piece.
impl Default for ExtendArguments {
    fn default() -> Self {
        Self {
            tokenizer_name_or_path: None,
            train_file_dir: None,
            old_text_dir: None,
            text_field: "text".to_owned(),
            word_list: None,
            word_pattern: None,
            num_new_tokens: None,
            min_frequency: 2,
            character_coverage: 0.9995,
            max_token_length: 16,
            output_dir: None,
            json: false,
            hub: HubArguments::default(),
        }
    }
}

/// What was made.
#[derive(Debug, Serialize)]
pub struct Extended {
    /// Where it lies.
    pub output_dir: PathBuf,
    /// Ids of the old tokenizer: one more than its largest.
    pub old_ids: u32,
    /// Ids of the new one: the rows a model needs.
    pub new_ids: u32,
    /// New pieces that are single characters, which byte pieces stood for before.
    pub new_characters: usize,
    /// New pieces that were trained or taken from the list.
    pub new_pieces: usize,
    /// New pieces that only lead to others: parts of listed words that no list names.
    pub helper_pieces: usize,
    /// Words of the list that were left out, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// The corpus before and after.
    pub corpus: Option<Comparison>,
    /// Old text before and after.
    pub old_text: Option<Comparison>,
}

impl Extended {
    /// The report for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} new ids after {} old ones: {} pieces, {} characters, {} helper pieces",
            self.new_ids - self.old_ids,
            self.old_ids,
            self.new_pieces,
            self.new_characters,
            self.helper_pieces
        )];
        lines.extend(self.left_out.iter().map(|(reason, words)| format!("left out {words} words: {reason}")));
        for (name, comparison) in [("corpus", &self.corpus), ("old text", &self.old_text)] {
            lines.extend(comparison.iter().flat_map(|comparison| comparison.lines(name)));
        }
        lines.push(format!("{} holds the extended tokenizer", self.output_dir.display()));
        lines
    }
}

/// Extends a tokenizer; the output appears whole or not at all.
///
/// # Errors
/// A missing argument, an output directory that exists, a tokenizer that is not BPE of the two styles, a corpus or word
/// list that cannot be read or gives no new piece.
pub fn extend(arguments: &ExtendArguments) -> Result<Extended> {
    let required = |path: &Option<PathBuf>, flag: &str| path.clone().ok_or_else(|| Error::config(flag, "is missing"));
    let flag = "--tokenizer_name_or_path";
    let named = required(&arguments.tokenizer_name_or_path, flag)?;
    let output_dir = required(&arguments.output_dir, "--output_dir")?;
    check(arguments, &output_dir)?;
    let tokenizer_dir = hub::model_directory(flag, &named, &hub::tokenizer_files, &arguments.hub, None)?;
    let open = |dir: &Option<PathBuf>, flag: &str| {
        dir.as_deref().map(|dir| Corpus::open(dir, flag, &arguments.text_field)).transpose()
    };
    let corpus = open(&arguments.train_file_dir, "--train_file_dir")?;
    let old_text = open(&arguments.old_text_dir, "--old_text_dir")?;

    let old = Tokenizer::load(&tokenizer_dir)?;
    let old_ids = old.largest_id() + 1;
    let path = tokenizer_dir.join("tokenizer.json");
    let mut vocabulary = Vocabulary::parse(&path, old.json(), old_ids)?;
    let mut left_out = BTreeMap::new();
    let mut helper_pieces = 0;
    if let Some(list) = &arguments.word_list {
        let words = word_list::read(list, arguments.word_pattern.as_deref(), arguments.num_new_tokens)?;
        (left_out, helper_pieces) = word_list::add(&mut vocabulary, &path, words)?;
    } else if let Some(corpus) = &corpus {
        let options = TrainOptions {
            num_new_tokens: arguments.num_new_tokens.unwrap_or(NUM_NEW_TOKENS),
            min_frequency: arguments.min_frequency,
            character_coverage: arguments.character_coverage,
            max_token_length: arguments.max_token_length,
        };
        train::train(&mut vocabulary, &path, corpus, &options)?;
    }
    let new_pieces = vocabulary.new_pieces().len();
    if new_pieces == 0 {
        let flag = if arguments.word_list.is_some() { "--word_list" } else { "--train_file_dir" };
        let reasons: Vec<_> = left_out.iter().map(|(reason, words)| format!("{words} words: {reason}")).collect();
        let mut reason = "gives no new piece".to_owned();
        if !reasons.is_empty() {
            reason = format!("{reason} ({})", reasons.join("; "));
        }
        return Err(Error::config(flag, reason));
    }
    if let Some(parent) = output_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        storage::create_dir_all(parent)?;
    }
    let directory = TemporaryDirectory::create(&output_dir)?;
    write(directory.path(), &vocabulary, &old)?;
    say_what_transformers_rebuilds(&old);
    // Loaded from what was written: the report is about the files, and they do load.
    let new = Tokenizer::load(directory.path())?;
    let compare = |corpus: &Option<Corpus>| {
        corpus.as_ref().map(|corpus| fertility::compare(corpus, &old, &new, old_ids)).transpose()
    };
    let (corpus, old_text) = (compare(&corpus)?, compare(&old_text)?);
    directory.publish()?;
    Ok(Extended {
        output_dir,
        old_ids,
        new_ids: new.largest_id() + 1,
        new_characters: vocabulary.new_characters(),
        new_pieces: new_pieces - vocabulary.new_characters() - helper_pieces,
        helper_pieces,
        left_out,
        corpus,
        old_text,
    })
}

fn check(arguments: &ExtendArguments, output_dir: &Path) -> Result<()> {
    if arguments.train_file_dir.is_none() && arguments.word_list.is_none() {
        return Err(Error::config("--train_file_dir", "is missing; give text to train pieces on, or a --word_list"));
    }
    if arguments.word_pattern.is_some() && arguments.word_list.is_none() {
        return Err(Error::config("--word_pattern", "is for a --word_list, and none is given"));
    }
    if arguments.num_new_tokens == Some(0) {
        return Err(Error::config("--num_new_tokens", "cannot be 0"));
    }
    if arguments.max_token_length < 2 {
        return Err(Error::config("--max_token_length", "must be 2 or more characters"));
    }
    if !(0.0..=1.0).contains(&arguments.character_coverage) {
        let reason = format!("cannot be {}; it is a share, 0.9995 is usual", arguments.character_coverage);
        return Err(Error::config("--character_coverage", reason));
    }
    if storage::stat(output_dir)?.is_some() {
        let reason = format!("{} exists; choose a directory that does not", output_dir.display());
        return Err(Error::config("--output_dir", reason));
    }
    Ok(())
}

/// Writes every file of the tokenizer's directory, those with pieces extended.
fn write(dir: &Path, vocabulary: &Vocabulary, old: &Tokenizer) -> Result<()> {
    for (name, bytes) in &old.files {
        let bytes = match *name {
            "tokenizer.json" => vocabulary.to_json(),
            "vocab.json" => extended_vocab_json(dir, bytes, vocabulary)?,
            "merges.txt" => extended_merges(bytes, vocabulary),
            "tokenizer.model" | "spiece.model" | "sentencepiece.bpe.model" | "qwen.tiktoken" => {
                eprintln!(
                    "{name} is left out: it does not know the new pieces, and whatever read it would give other ids"
                );
                continue;
            }
            _ => bytes.clone(),
        };
        storage::replace(&dir.join(name), &bytes)?;
    }
    Ok(())
}

fn extended_vocab_json(dir: &Path, bytes: &[u8], vocabulary: &Vocabulary) -> Result<Vec<u8>> {
    let parsed: serde_json::Result<serde_json::Map<String, Value>> = serde_json::from_slice(bytes);
    let mut vocab =
        parsed.map_err(|error| Error::corrupt(dir.join("vocab.json"), format!("is no JSON object ({error})")))?;
    vocab.extend(vocabulary.new_pieces().iter().map(|(piece, id)| (piece.clone(), Value::from(*id))));
    Ok(serde_json::to_vec(&vocab).expect("plain data"))
}

fn extended_merges(bytes: &[u8], vocabulary: &Vocabulary) -> Vec<u8> {
    let mut text = bytes.to_vec();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    for (left, right) in vocabulary.new_merges() {
        text.extend_from_slice(format!("{left} {right}\n").as_bytes());
    }
    text
}

/// transformers 5 makes tokenizers of some classes anew from pieces and merges, and leaves out their normalizer.
fn say_what_transformers_rebuilds(tokenizer: &Tokenizer) {
    let file = tokenizer.files.iter().find(|(name, _)| *name == "tokenizer_config.json");
    let config: Value = file.and_then(|(_, bytes)| serde_json::from_slice(bytes).ok()).unwrap_or_default();
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    if matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast" | "CodeLlamaTokenizer" | "CodeLlamaTokenizerFast") {
        eprintln!(
            "transformers 5 builds a {class} anew and may segment white space differently, as it does with the old one; tokenizer.json as written is what is meant here (PreTrainedTokenizerFast reads it unchanged)"
        );
    }
}
