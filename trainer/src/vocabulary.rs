//! Which tokens are new to the model, and what their rows begin from; decided, and refused, before weights are loaded.
//!
//! The tokenizer of the data may have more tokens than the model. What the model knows is what the tokenizer in its own
//! directory has (of a model with an adapter, that in the adapter's, if there is one): rows beyond that, of which some
//! checkpoints have spares, stand for nothing yet.

use std::ops::Range;
use std::path::Path;

use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_shared::{Error, Result, storage};

use crate::arguments::{NewTokenInit, TrainerArguments};
use crate::model::{AdapterOutline, Config};
use crate::training_set::TrainingSet;

/// Tokens that the model has no trained rows for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTokens {
    /// Id of the first one.
    pub first: usize,
    /// For each the ids of the pieces that the model's tokenizer cuts it into.
    pub pieces: Vec<Vec<u32>>,
    /// Rows that embedding and head shall have: at least one for every token.
    pub rows: usize,
    /// Rows that nothing has trained yet: those of the tokens, and those that are added to fill up.
    pub untrained: Range<usize>,
}

impl NewTokens {
    /// The new tokens of the tokenizer of `data`; `None` if there are none and the model keeps its size.
    ///
    /// # Errors
    /// A tokenizer that is no extension of the model's; rows that nothing would train; a way of beginning that needs a
    /// tokenizer the model lacks.
    pub fn plan(arguments: &TrainerArguments, data: &TrainingSet, train: bool) -> Result<Option<Self>> {
        let needed = data.largest_token_id as usize + 1;
        let Some(model_dir) = arguments.model_name_or_path.as_deref() else {
            return Self::from_scratch(arguments, needed).map(|()| None);
        };
        let config = Config::load(model_dir)?;
        let adapter_dir = arguments.peft_path.as_deref().filter(|_| arguments.use_peft);
        let adapter = adapter_dir.map(|dir| AdapterOutline::read(dir, &config)).transpose()?;
        let rows_now = adapter.as_ref().and_then(|adapter| adapter.rows).unwrap_or(config.vocab_size);
        let rows = match arguments.pad_to_multiple_of {
            Some(0) => return Err(Error::config("--pad_to_multiple_of", "cannot be 0")),
            multiple => rows_now.max(needed).next_multiple_of(multiple.unwrap_or(1)),
        };
        let nothing_new = |first| {
            if arguments.train_new_rows_only {
                return Err(no_new_rows(needed, first));
            }
            let padded = Self { first: rows_now, pieces: Vec::new(), rows, untrained: rows_now..rows };
            Ok((rows > rows_now).then_some(padded))
        };
        let of_the_model = dir_of_tokenizer([adapter_dir, Some(model_dir)])?;
        if needed <= rows_now && of_the_model.map_or(Ok(true), |dir| is_that_of(dir, data))? {
            return nothing_new(if of_the_model.is_some() { needed } else { rows_now });
        }
        let new = Tokenizer::load(&data.tokenizer_dir)?;
        let known = of_the_model.map(|dir| known_tokens(dir, &new, arguments.data.use_fast_tokenizer)).transpose()?;
        let first = known.as_ref().map_or(rows_now, |old| (old.largest_id() as usize + 1).min(rows_now));
        if needed <= first {
            return nothing_new(first);
        }
        let modules = adapter.as_ref().map_or(&arguments.modules_to_save, |adapter| &adapter.modules_to_save);
        if train {
            refuse_untrained_rows(arguments, modules, &config, needed - first)?;
        }
        let of_the_model = known.filter(|old| (old.largest_id() as usize) < rows_now);
        let pieces = match &of_the_model {
            _ if arguments.new_token_init != NewTokenInit::MeanOfPieces => vec![Vec::new(); needed - first],
            Some(old) => pieces(old, &new, first..needed)?,
            None => {
                let reason = format!(
                    "mean_of_pieces needs the tokenizer that the model was trained with, and {} holds none for its {rows_now} rows; put it there and give the extended one with --tokenizer_name_or_path, or use --new_token_init mean_resizing",
                    model_dir.display()
                );
                return Err(Error::config("--new_token_init", reason));
            }
        };
        let end = if rows > rows_now { rows } else { needed };
        Ok(Some(Self { first, pieces, rows, untrained: first..end }))
    }

    /// Random weights have rows for what the configuration says, and no tokenizer whose pieces could be a beginning.
    fn from_scratch(arguments: &TrainerArguments, needed: usize) -> Result<()> {
        let path = arguments.init_from_config.as_deref().expect("one of both is given");
        let rows = Config::load(path)?.vocab_size;
        for (flag, given) in [
            ("--train_new_rows_only", arguments.train_new_rows_only),
            ("--pad_to_multiple_of", arguments.pad_to_multiple_of.is_some()),
        ] {
            if given {
                let reason = "is for a model that there is; with --init_from_config set vocab_size in config.json";
                return Err(Error::config(flag, reason));
            }
        }
        if needed > rows {
            let reason = format!(
                "the tokenizer's largest id is {}, the model has {rows} rows; set vocab_size in {} to {needed} or more",
                needed - 1,
                path.display()
            );
            return Err(Error::config("--tokenizer_name_or_path", reason));
        }
        Ok(())
    }

    /// What becomes of the model, for people.
    pub fn line(&self, init: NewTokenInit, rows_now: usize) -> String {
        let begin = match init {
            NewTokenInit::MeanOfPieces => "begin as the mean of their old pieces",
            NewTokenInit::MeanResizing => "begin near the mean of all rows",
            NewTokenInit::Normal => "begin as random ones",
        };
        let (tokens, first) = (self.pieces.len(), self.first);
        format!(
            "{tokens} new tokens from id {first} on: their rows {begin}; vocab_size was {rows_now} and is {}",
            self.rows
        )
    }
}

/// The first of `dirs` that has a tokenizer.
fn dir_of_tokenizer(dirs: [Option<&Path>; 2]) -> Result<Option<&Path>> {
    for dir in dirs.into_iter().flatten() {
        if Tokenizer::is_in(dir)? {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// Whether the tokenizer.json in `dir` is that of the dataset to the byte: then neither need be loaded, which takes 0.7
/// seconds for that of Qwen2.5.
fn is_that_of(dir: &Path, data: &TrainingSet) -> Result<bool> {
    let path = dir.join("tokenizer.json");
    if storage::stat(&path)?.is_none() {
        return Ok(false);
    }
    Ok(storage::hash_file(&path)? == storage::hash_file(&data.tokenizer_dir.join("tokenizer.json"))?)
}

/// The tokenizer in `dir`, of what the model knows. `new` must give its tokens the same ids.
fn known_tokens(dir: &Path, new: &Tokenizer, use_fast_tokenizer: Option<bool>) -> Result<Tokenizer> {
    let old = Tokenizer::open(dir, use_fast_tokenizer)?;
    if old.largest_id() < new.largest_id() && old.blake3 != new.blake3 {
        let differs = (0..=old.largest_id()).find_map(|id| {
            let token = old.token(id)?;
            let there = new.token(id).map(|token| token.content);
            (there.as_ref() != Some(&token.content)).then_some((id, token.content, there.unwrap_or_default()))
        });
        if let Some((id, was, is)) = differs {
            let reason = format!(
                "is no extension of the tokenizer in {}: id {id} is {was:?} there and {is:?} here, so rows would stand for other tokens; make one with `preprocess tokenizer extend`",
                dir.display()
            );
            return Err(Error::config("--tokenizer_name_or_path", reason));
        }
    }
    Ok(old)
}

/// For every new id, the ids that `old` has for its token.
fn pieces(old: &Tokenizer, new: &Tokenizer, ids: Range<usize>) -> Result<Vec<Vec<u32>>> {
    ids.map(|id| {
        let Some(token) = new.token(id as u32) else { return Ok(Vec::new()) };
        old.segment(&token).map_err(|why| {
            Error::config(
                "--new_token_init",
                format!("{:?} has no pieces in the model's tokenizer ({why})", token.content),
            )
        })
    })
    .collect()
}

fn no_new_rows(needed: usize, known: usize) -> Error {
    let reason = format!(
        "there are no new rows: the tokenizer has ids up to {}, the model's own up to {}; give the extended one, or remove the flag",
        needed - 1,
        known - 1
    );
    Error::config("--train_new_rows_only", reason)
}

/// Beside adapters, rows are trained only where a flag says so.
fn refuse_untrained_rows(
    arguments: &TrainerArguments,
    modules_to_save: &[String],
    config: &Config,
    new_tokens: usize,
) -> Result<()> {
    let (embedding, head) = (
        modules_to_save.iter().any(|name| config.is_embedding(name)),
        modules_to_save.iter().any(|name| config.is_head(name)),
    );
    if !arguments.use_peft {
        return Ok(());
    }
    if arguments.train_new_rows_only {
        if embedding || head {
            let reason = "trains some rows, --modules_to_save all rows of the embedding or the head; give one of both";
            return Err(Error::config("--train_new_rows_only", reason));
        }
        return Ok(());
    }
    let whole = embedding && head || config.tie_word_embeddings && (embedding || head);
    if whole {
        return Ok(());
    }
    let (has, lacks) = match (embedding, head) {
        (true, _) => ("the embedding", "the head"),
        (_, true) => ("the head", "the embedding"),
        _ => ("adapters", "the embedding and the head"),
    };
    let remedy = if arguments.peft_path.is_some() {
        "fold the adapter of --peft_path in with `trainer merge` and go on with --modules_to_save embed_tokens,lm_head, or use --train_new_rows_only"
    } else {
        "use --modules_to_save embed_tokens,lm_head, which trains all rows, or --train_new_rows_only"
    };
    let reason = format!(
        "the tokenizer has {new_tokens} tokens that the model does not know, and their rows would stay as they begin: {has} would be trained, {lacks} would not; {remedy}"
    );
    Err(Error::config("--modules_to_save", reason))
}
