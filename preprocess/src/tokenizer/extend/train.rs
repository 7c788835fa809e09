//! Pieces trained on a corpus: BPE that goes on where the old merges end.
//!
//! The trainer is that of the `tokenizers` crate. It merges characters; here a character of its words stands for an old
//! piece, so that what it finds are merges of old pieces in the order in which they pay off.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenmill_shared::{Error, Result};

use super::corpus::Corpus;
use super::vocabulary::{SPACE, Style, Vocabulary};
use crate::tokenizer::reference::Reference;

/// The trainer counts pairs in an i32.
const TOKENS_LIMIT: u64 = i32::MAX as u64;

/// Old pieces are characters from here on, beyond the surrogates.
const FIRST_SYMBOL: u32 = 0x1_0000;

/// What to train.
pub(super) struct TrainOptions {
    /// New pieces, characters included.
    pub num_new_tokens: usize,
    /// Occurrences that a new piece must have.
    pub min_frequency: u64,
    /// Share of the corpus' characters that pieces cover.
    pub character_coverage: f64,
    /// Characters of the longest piece.
    pub max_token_length: usize,
}

/// Adds pieces that are frequent in `corpus`. `path` is that of tokenizer.json.
pub(super) fn train(vocabulary: &mut Vocabulary, path: &Path, corpus: &Corpus, options: &TrainOptions) -> Result<()> {
    if vocabulary.style == Style::SentencePiece {
        add_characters(vocabulary, &Reference::load(path, &vocabulary.to_json())?, corpus, options)?;
    }
    if vocabulary.new_pieces().len() >= options.num_new_tokens {
        eprintln!(
            "--num_new_tokens {}: all of them are single characters, and none is left for longer pieces; give more, or a smaller --character_coverage",
            options.num_new_tokens
        );
        return Ok(());
    }
    let reference = Reference::load(path, &vocabulary.to_json())?;
    let symbols = Symbols::new(vocabulary, options.max_token_length);
    let (mut words, mut tokens) = (HashMap::<String, u64>::new(), 0);
    corpus.for_each(
        |text| Ok(symbols.words(&reference.encode_words(text)?)),
        |found| {
            for word in found {
                tokens += word.chars().count() as u64;
                *words.entry(word).or_default() += 1;
            }
        },
    )?;
    if tokens > TOKENS_LIMIT {
        let reason = format!("holds {tokens} tokens, {TOKENS_LIMIT} are enough to train on; give a sample of it");
        return Err(Error::config("--train_file_dir", reason));
    }
    for (left, right) in learn(words, options)? {
        if vocabulary.new_pieces().len() >= options.num_new_tokens {
            break;
        }
        let id = |symbols: &str, vocabulary: &Vocabulary| {
            let pieces = symbols.chars().map(|symbol| vocabulary.piece(u32::from(symbol) - FIRST_SYMBOL));
            vocabulary.id(&pieces.collect::<String>())
        };
        // A part is an old piece, or what an earlier merge led to.
        if let (Some(left), Some(right)) = (id(&left, vocabulary), id(&right, vocabulary)) {
            vocabulary.add_merge(left, right);
        }
    }
    Ok(())
}

/// Adds the most frequent characters that have no piece, until `character_coverage` of the corpus is covered.
fn add_characters(
    vocabulary: &mut Vocabulary,
    reference: &Reference,
    corpus: &Corpus,
    options: &TrainOptions,
) -> Result<()> {
    let mut counts = HashMap::<char, u64>::new();
    let characters = |text: &str| {
        let mut counts = HashMap::<char, u64>::new();
        for piece in reference.pre_tokens(&reference.normalize(text)?)? {
            piece.chars().for_each(|character| *counts.entry(character).or_default() += 1);
        }
        Ok(counts)
    };
    corpus.for_each(characters, |found| {
        found.into_iter().for_each(|(character, count)| *counts.entry(character).or_default() += count);
    })?;
    let total: u64 = counts.values().sum();
    let mut by_count: Vec<(char, u64)> = counts.into_iter().collect();
    by_count.sort_by_key(|(character, count)| (std::cmp::Reverse(*count), *character));
    let mut covered = 0;
    for (character, count) in by_count {
        if covered as f64 >= total as f64 * options.character_coverage
            || vocabulary.new_pieces().len() >= options.num_new_tokens
        {
            break;
        }
        covered += count;
        if count >= options.min_frequency && !character.is_whitespace() && !character.is_control() {
            vocabulary.add_piece(&character.to_string());
        }
    }
    Ok(())
}

/// What a piece means for where words begin and end.
struct Symbol {
    /// UTF-8 sequences that begin in it.
    characters: usize,
    /// Of its first and its last character; [`Class::Any`] where the pre-tokenizer has cut already.
    classes: (Class, Class),
    begins_word: bool,
}

/// As SentencePiece cuts before it trains: by script, every number and all punctuation apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Any,
    Ideograph,
    Letter,
    Number,
    Other,
}

impl Class {
    fn of(character: char) -> Self {
        if character.is_numeric() {
            Self::Number
        } else if matches!(u32::from(character), 0x2e80..=0x2fff | 0x3005..=0x3007 | 0x3031..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0xff66..=0xff9f | 0x2_0000..=0x3_ffff)
        {
            Self::Ideograph
        } else if character.is_alphabetic() || ('\u{300}'..='\u{36f}').contains(&character) {
            Self::Letter
        } else {
            Self::Other
        }
    }

    fn joins(self, next: Self) -> bool {
        self == next && self != Self::Number
    }
}

/// Every old piece that may become part of a new one.
struct Symbols {
    by_id: HashMap<u32, Symbol>,
    max_token_length: usize,
}

impl Symbols {
    fn new(vocabulary: &Vocabulary, max_token_length: usize) -> Self {
        let special: HashSet<u32> = vocabulary.special().collect();
        let ordinary = vocabulary.pieces().filter(|(id, _)| !special.contains(id));
        let symbol = |piece: &str| {
            let characters = vocabulary.characters(piece);
            match vocabulary.style {
                Style::ByteLevel => Symbol { characters, classes: (Class::Any, Class::Any), begins_word: false },
                Style::SentencePiece => {
                    let text = piece.trim_start_matches(SPACE);
                    let class = |character: Option<char>| character.map_or(Class::Any, Class::of);
                    let classes = (class(text.chars().next()), class(text.chars().last()));
                    Symbol { characters, classes, begins_word: piece.starts_with(SPACE) }
                }
            }
        };
        let by_id = ordinary.map(|(id, piece)| (id, symbol(piece))).collect();
        Self { by_id, max_token_length }
    }

    /// The words of one document, of two symbols or more: an old piece each, within a pre-token.
    fn words(&self, tokens: &[(u32, Option<u32>)]) -> Vec<String> {
        let (mut words, mut word) = (Vec::new(), String::new());
        let (mut characters, mut before) = (0, None);
        let end = |word: &mut String, words: &mut Vec<String>| {
            if word.chars().nth(1).is_some() {
                words.push(std::mem::take(word));
            }
            word.clear();
        };
        for (id, pre_token) in tokens {
            let Some(symbol) = self.by_id.get(id) else {
                end(&mut word, &mut words);
                before = None;
                continue;
            };
            let goes_on = before.is_some_and(|(last, last_pre_token): (Class, Option<u32>)| {
                let joins = last == Class::Any || last.joins(symbol.classes.0);
                joins && last_pre_token == *pre_token && !symbol.begins_word
            });
            if !goes_on || characters + symbol.characters > self.max_token_length {
                end(&mut word, &mut words);
                characters = 0;
            }
            word.push(char::from_u32(FIRST_SYMBOL + id).expect("beyond the surrogates"));
            characters += symbol.characters;
            before = Some((symbol.classes.1, *pre_token));
        }
        end(&mut word, &mut words);
        words
    }
}

/// The merges of the trainer, best first, as strings of symbols.
fn learn(words: HashMap<String, u64>, options: &TrainOptions) -> Result<Vec<(String, String)>> {
    let alphabet = words.keys().flat_map(|word| word.chars()).collect::<HashSet<_>>().len();
    // Some merges lead to pieces that there are already; so ask for a few more, and stop when there are enough.
    let asked = options.num_new_tokens + options.num_new_tokens / 8 + 64;
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(alphabet + asked)
        .min_frequency(options.min_frequency)
        .build();
    let mut model = BPE::default();
    let counts = words.into_iter().map(|(word, count)| (word.into(), count)).collect();
    let failed = |why: String| Error::config("--train_file_dir", format!("no pieces can be trained on it ({why})"));
    catch_unwind(AssertUnwindSafe(|| trainer.do_train(&counts, &mut model)))
        .map_err(|_| failed("the trainer panicked".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    let trained = serde_json::to_value(&model).map_err(|error| failed(error.to_string()))?;
    serde_json::from_value(trained["merges"].clone()).map_err(|error| failed(error.to_string()))
}
