//! From the files that a tokenizer was published with to its tokenizer.json: SentencePiece models, tiktoken files,
//! and vocab.json with merges.txt.
//!
//! The result is what transformers 5.23 builds from the same directory, part by part, so that ids are its own. For
//! classes whose code comes with the model (Baichuan, ChatGLM, Qwen), it is what that code does with the library it
//! calls, as far as tokenizer.json can say it.

mod bpe;
mod byte_level;
mod class;
mod parts;
mod pieces;
mod sentencepiece;
mod special;
mod tiktoken;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

use crate::model_config::json_file;
use class::class_of;
use parts::Parts;
use sentencepiece::Model;
use special::SpecialTokens;
use tiktoken::Ranks;

/// A vocabulary file beyond this is not one.
const LIMIT: u64 = 64 << 20;

/// Files that hold a SentencePiece model, or, where their authors say so, tiktoken's ranks.
const MODELS: [&str; 4] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"];

/// A tokenizer.json made of other files.
pub(super) struct Converted {
    /// tokenizer.json.
    pub json: Vec<u8>,
    /// The tokenizer_config.json to go with it, so that transformers loads the same.
    pub config: Value,
    /// The file it was made of.
    pub from: PathBuf,
}

/// Whether `dir` holds a SentencePiece model that stands beside tokenizer.json for a class that would read it.
pub(super) fn has_sentencepiece(dir: &Path) -> Result<bool> {
    if class::is_fast_only(&json_file(dir, "tokenizer_config.json")?) {
        return Ok(false);
    }
    Ok(match first_of(dir, &MODELS)? {
        Some(path) => Model::parse(&storage::read_at_most(&path, LIMIT)?).is_ok(),
        None => false,
    })
}

/// Converts what `dir` holds besides tokenizer.json; `None` if that is nothing to convert.
///
/// # Errors
/// [`Error::Config`] naming the file and what is wrong with it, or the class that is not converted here.
pub(super) fn convert(dir: &Path) -> Result<Option<Converted>> {
    let config = json_file(dir, "tokenizer_config.json")?;
    let source = Source::find(dir)?;
    let Some((from, source)) = source else { return Ok(None) };
    let refuse = |why: String| Error::config(from.display().to_string(), why);
    let class = class_of(&config, &json_file(dir, "config.json")?).map_err(|class| {
        refuse(format!(
            "belongs to the class {class}, which is not converted here; save it once with AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes a tokenizer.json"
        ))
    })?;
    let special = SpecialTokens::read(
        &config,
        &json_file(dir, "special_tokens_map.json")?,
        &json_file(dir, "added_tokens.json")?,
    );
    let cannot = |why: String| refuse(format!("cannot be converted to a tokenizer.json ({why})"));
    let parts = Parts::of(class, source, special, &config).map_err(cannot)?;
    parts.check_ids(class).map_err(cannot)?;
    Ok(Some(Converted { config: parts.config(class, config), json: parts.json(), from }))
}

/// What a directory holds.
enum Source {
    SentencePiece(Model),
    Tiktoken(Ranks),
    Files { vocab: Vec<u8>, merges: Vec<u8> },
}

impl Source {
    /// The first of the files that are read here.
    fn find(dir: &Path) -> Result<Option<(PathBuf, Self)>> {
        if let Some(path) = first_of(dir, &MODELS)? {
            let bytes = storage::read_at_most(&path, LIMIT)?;
            // As transformers does: a .model that is no SentencePiece model may hold tiktoken's ranks.
            let why = match Model::parse(&bytes) {
                Ok(model) => return Ok(Some((path, Self::SentencePiece(model)))),
                Err(why) => why,
            };
            return match Ranks::parse(&bytes) {
                Ok(ranks) => Ok(Some((path, Self::Tiktoken(ranks)))),
                Err(_) => Err(Error::config(
                    path.display().to_string(),
                    format!("is neither a SentencePiece model ({why}) nor a tiktoken file; copy it again"),
                )),
            };
        }
        let is_tiktoken = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tiktoken");
        if let Some(path) = storage::files_in(dir)?.into_iter().find(is_tiktoken) {
            let ranks = Ranks::parse(&storage::read_at_most(&path, LIMIT)?)
                .map_err(|why| Error::config(path.display().to_string(), format!("is no tiktoken file: {why}")))?;
            return Ok(Some((path, Self::Tiktoken(ranks))));
        }
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        if storage::stat(&vocab)?.is_none() || storage::stat(&merges)?.is_none() {
            return Ok(None);
        }
        let files = Self::Files {
            vocab: storage::read_at_most(&vocab, LIMIT)?,
            merges: storage::read_at_most(&merges, LIMIT)?,
        };
        Ok(Some((vocab, files)))
    }
}

fn first_of(dir: &Path, names: &[&str]) -> Result<Option<PathBuf>> {
    for name in names {
        let path = dir.join(name);
        if storage::stat(&path)?.is_some() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
