//! Pieces from a word list: the merges that lead to each word, made of what its old segmentation leaves.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use tokenizers::utils::SysRegex;
use tokenmill_shared::{Error, Result, storage};

use super::vocabulary::{SPACE, Style, Vocabulary};
use crate::tokenizer::reference::Reference;

/// A list beyond this is not one.
const LIST_LIMIT: u64 = 256 << 20;

/// Longer words are left out: they are lines of a text that is no list.
const WORD_CHARACTERS: usize = 64;

/// Words that were left out, by reason.
pub(super) type LeftOut = BTreeMap<&'static str, usize>;

/// The words of a list, and those left out.
pub(super) struct Words {
    words: Vec<String>,
    left_out: LeftOut,
}

/// Reads the list at `path`: a word a line, what follows a tab left out, as in the `.vocab` files of SentencePiece.
pub(super) fn read(path: &Path, pattern: Option<&str>, limit: Option<usize>) -> Result<Words> {
    let flag = "--word_list";
    if storage::stat(path)?.is_none() {
        return Err(Error::config(flag, format!("{} does not exist; correct the path", path.display())));
    }
    if path.is_dir() {
        return Err(Error::config(flag, format!("{} is a directory; give the file", path.display())));
    }
    let bytes = storage::read_at_most(path, LIST_LIMIT)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        let reason = format!("{} is no list of words: line {line} is not UTF-8; give a text file", path.display());
        Error::config(flag, reason)
    })?;
    let pattern = pattern
        .map(SysRegex::new)
        .transpose()
        .map_err(|error| Error::config("--word_pattern", format!("is no regular expression ({error})")))?;
    let matches = |word: &str| pattern.as_ref().is_none_or(|pattern| pattern.find_iter(word).next().is_some());
    let mut left_out = LeftOut::new();
    let mut seen = HashSet::new();
    let mut words = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let word = line.split('\t').next().unwrap_or_default();
        let reason = if word.chars().all(|character| character.is_whitespace() || character == SPACE) {
            "blank"
        } else if word.chars().any(char::is_control) {
            "a control character in it"
        } else if is_control_piece(word) {
            "a control or byte piece, in angle brackets"
        } else if word.chars().count() > WORD_CHARACTERS {
            "longer than 64 characters"
        } else if !matches(word) {
            "--word_pattern does not match"
        } else if !seen.insert(word) {
            "listed before"
        } else {
            words.push(word.to_owned());
            if limit.is_some_and(|limit| words.len() >= limit) {
                break;
            }
            continue;
        };
        *left_out.entry(reason).or_default() += 1;
    }
    Ok(Words { words, left_out })
}

/// `<s>`, `</h1>`, `<reserved_7>`, `<0x0A>`: special to the tokenizer they come from, not text.
fn is_control_piece(word: &str) -> bool {
    word.chars().count() > 2 && word.starts_with('<') && word.ends_with('>')
}

/// Adds the words, with the characters and helper pieces that lead to them; says which were left out, and how many helper
/// pieces there are. `path` is that of tokenizer.json.
///
/// Words of few old pieces come first, so that longer ones are made of them. A word is cut as the tokenizer cuts it with
/// everything added so far, and two neighbouring parts are joined, those whose union is a word or a piece before others,
/// until one is left.
pub(super) fn add(vocabulary: &mut Vocabulary, path: &Path, words: Words) -> Result<(LeftOut, usize)> {
    let reference = Reference::load(path, &vocabulary.to_json())?;
    let Words { words, mut left_out } = words;
    let mut wanted: Vec<(Vec<u32>, String)> = Vec::new();
    for word in words {
        let reason = match spell(vocabulary, &reference, &word) {
            Ok(piece) if vocabulary.is_old(&piece) => "a piece already",
            // A character that an earlier word needed.
            Ok(piece) if vocabulary.id(&piece).is_some() => continue,
            Ok(piece) => match characters(vocabulary, &piece) {
                Some(mut ids) => {
                    vocabulary.merge(&mut ids);
                    wanted.push((ids, piece));
                    continue;
                }
                None => "bytes that the vocabulary lacks",
            },
            Err(reason) => reason,
        };
        *left_out.entry(reason).or_default() += 1;
    }
    wanted.sort_by_key(|(ids, _)| ids.len());
    let names: HashSet<String> = wanted.iter().map(|(_, piece)| piece.clone()).collect();
    for (mut ids, _) in wanted {
        vocabulary.merge(&mut ids);
        while ids.len() > 1 {
            let union = |pair: &[u32]| format!("{}{}", vocabulary.piece(pair[0]), vocabulary.piece(pair[1]));
            let known = |pair: &[u32]| {
                let union = union(pair);
                names.contains(&union) || vocabulary.id(&union).is_some()
            };
            // Then bytes of one character, so that no helper ends inside of the next.
            let same_character = |pair: &[u32]| vocabulary.characters(vocabulary.piece(pair[1])) == 0;
            let at = ids.windows(2).position(known).or_else(|| ids.windows(2).position(same_character)).unwrap_or(0);
            vocabulary.add_merge(ids[at], ids[at + 1]);
            vocabulary.merge(&mut ids);
        }
    }
    let is_helper = |(piece, _): &&(String, u32)| !names.contains(piece) && piece.chars().nth(1).is_some();
    let helpers = vocabulary.new_pieces().iter().filter(is_helper).count();
    Ok((left_out, helpers))
}

/// The piece that a word would be, if text can ever be cut into it.
fn spell(vocabulary: &Vocabulary, reference: &Reference, word: &str) -> Result<String, &'static str> {
    const NORMALIZED: &str = "the tokenizer's normalizer writes it otherwise";
    const BORDER: &str = "the tokenizer cuts text inside it";
    let text = word.replace(SPACE, " ");
    let normalized = reference.normalize(&text).map_err(|_| NORMALIZED)?;
    match vocabulary.style {
        Style::ByteLevel => {
            if normalized != text {
                return Err(NORMALIZED);
            }
            let piece = vocabulary.spelled(&text);
            let space = vocabulary.spelled(" ");
            match &reference.pre_tokens(&text).map_err(|_| BORDER)?[..] {
                // The pre-tokenizer may put a space before every text.
                [one] if *one == piece || one.strip_prefix(&space) == Some(&piece) => Ok(piece),
                _ => Err(BORDER),
            }
        }
        Style::SentencePiece => {
            let piece = vocabulary.spelled(&text);
            let normalized = vocabulary.spelled(&normalized);
            if normalized != piece && normalized.strip_prefix(SPACE) != Some(piece.as_str()) {
                return Err(NORMALIZED);
            }
            if piece.trim_start_matches(SPACE).contains(SPACE) {
                return Err(BORDER);
            }
            Ok(piece)
        }
    }
}

/// The ids of a piece's characters; in SentencePiece style, characters without one become pieces.
fn characters(vocabulary: &mut Vocabulary, piece: &str) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for character in piece.chars() {
        let character = character.to_string();
        ids.push(match vocabulary.style {
            Style::ByteLevel => vocabulary.id(&character)?,
            Style::SentencePiece => vocabulary.add_piece(&character),
        });
    }
    Some(ids)
}
