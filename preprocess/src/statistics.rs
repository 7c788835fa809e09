//! What documents and tokens are like, counted while they are packed.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use tokenmill_shared::dataset::{Statistics, TokenWidth};

use crate::store::DocumentEntry;
use crate::tokenizer::Tokenizer;

/// Documents of one split by length, and how often each token occurs.
pub struct Counter {
    width: TokenWidth,
    documents_by_tokens: Vec<u64>,
    occurrences: Vec<u64>,
    /// Those that are not in `occurrences` yet: of 150,000 tokens they take half the memory, which is read at random.
    recent: Vec<u32>,
    /// Tokens that are in `recent`.
    recent_tokens: u32,
}

impl Counter {
    /// For ids up to `largest_id`.
    pub fn new(width: TokenWidth, largest_id: u32) -> Self {
        let ids = largest_id as usize + 1;
        let (occurrences, recent) = (vec![0; ids], vec![0; ids]);
        Self { width, documents_by_tokens: Vec::new(), occurrences, recent, recent_tokens: 0 }
    }

    /// Counts a document of so many tokens.
    pub fn document(&mut self, tokens: u64) {
        let bucket = tokens.checked_ilog2().map_or(0, |power| power as usize + 1);
        if self.documents_by_tokens.len() <= bucket {
            self.documents_by_tokens.resize(bucket + 1, 0);
        }
        self.documents_by_tokens[bucket] += 1;
    }

    /// Counts the tokens of a document, or of a part of one; ids are little-endian.
    pub fn count(&mut self, ids: &[u8]) {
        let tokens = ids.len() / self.width.bytes();
        match self.recent_tokens.checked_add(tokens as u32) {
            Some(sum) => self.recent_tokens = sum,
            None => {
                self.add_recent();
                self.recent_tokens = tokens as u32;
            }
        }
        let mut count = |id: usize| self.recent[id] += 1;
        match self.width {
            TokenWidth::U16 => {
                ids.chunks_exact(2).for_each(|id| count(usize::from(u16::from_le_bytes([id[0], id[1]]))));
            }
            TokenWidth::U32 => {
                ids.chunks_exact(4).for_each(|id| count(u32::from_le_bytes([id[0], id[1], id[2], id[3]]) as usize));
            }
        }
    }

    fn add_recent(&mut self) {
        for (all, recent) in self.occurrences.iter_mut().zip(&mut self.recent) {
            *all += u64::from(std::mem::take(recent));
        }
    }

    /// What was counted, by what `tokenizer` says that tokens are; on the current rayon pool, because of 150,000 tokens
    /// that takes a tenth of a second.
    pub fn finish(mut self, tokenizer: &Tokenizer) -> Statistics {
        self.add_recent();
        let counted: Vec<_> = self.occurrences.into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
        let kinds: Vec<_> = counted.par_iter().map(|(id, count)| (kind_of(tokenizer, *id as u32), *count)).collect();
        let mut tokens_by_kind: BTreeMap<String, u64> = BTreeMap::new();
        for (kind, count) in kinds {
            *tokens_by_kind.entry(kind.to_owned()).or_default() += count;
        }
        Statistics { documents_by_tokens: self.documents_by_tokens, tokens_by_kind }
    }
}

/// What a token is made of.
fn kind_of(tokenizer: &Tokenizer, id: u32) -> &'static str {
    if tokenizer.token(id).is_some_and(|token| token.added) {
        return "special";
    }
    tokenizer.decode(&[id]).map_or("other", |text| kind_of_text(&text))
}

/// The first of these that any of its characters is.
fn kind_of_text(text: &str) -> &'static str {
    let any = |is: fn(char) -> bool| text.chars().any(is);
    if any(is_han) {
        "han"
    } else if any(is_of_code) || is_indentation(text) {
        "code"
    } else if any(|letter| letter.is_alphabetic() && (letter as u32) < 0x250) {
        "latin"
    } else if any(char::is_alphabetic) {
        "other_letters"
    } else if any(|letter| letter == char::REPLACEMENT_CHARACTER) {
        "parts_of_characters"
    } else if any(char::is_numeric) {
        "digits"
    } else if !text.is_empty() && text.chars().all(char::is_whitespace) {
        "space"
    } else {
        "punctuation"
    }
}

/// What programs are full of and prose hardly has.
fn is_of_code(character: char) -> bool {
    "{}[]<>=_\\|^~`".contains(character)
}

fn is_indentation(text: &str) -> bool {
    text.len() > 1 && text.chars().all(|blank| matches!(blank, ' ' | '\t'))
}

fn is_han(letter: char) -> bool {
    matches!(letter as u32, 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

/// What came from one place below the input directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SourceCount {
    /// Documents.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub text_bytes: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// Places that are told apart; what comes from others is counted together.
const MOST_SOURCES: usize = 200;

/// What came from where: the directories right below the input, and files that lie in none.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Sources(pub BTreeMap<String, SourceCount>);

impl Sources {
    /// Counts a document, or a part of one, of the file at this path, relative to the input directory.
    pub fn add(&mut self, relative: &Path, document: DocumentEntry) {
        let first = relative.components().next().map(|first| first.as_os_str().to_string_lossy());
        let mut name = first.unwrap_or_default();
        if self.0.len() >= MOST_SOURCES && !self.0.contains_key(name.as_ref()) {
            name = "others".into();
        }
        let count = match self.0.get_mut(name.as_ref()) {
            Some(count) => count,
            None => self.0.entry(name.into_owned()).or_default(),
        };
        count.documents += u64::from(document.extent.ends);
        count.text_bytes += u64::from(document.text_bytes);
        count.tokens += u64::from(document.tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_of_the_kind_of_their_rarest_letter() {
        for (text, kind) in [
            ("磨坊", "han"),
            ("A股", "han"),
            (" the", "latin"),
            ("naïve", "latin"),
            ("вода", "other_letters"),
            ("\u{fffd}", "parts_of_characters"),
            (" 1984", "digits"),
            ("\n\n", "space"),
            ("    ", "code"),
            ("max_len", "code"),
            (" ==", "code"),
            ("});", "code"),
            (" ", "space"),
            ("();", "punctuation"),
            ("", "punctuation"),
        ] {
            assert_eq!(kind_of_text(text), kind, "{text:?}");
        }
    }

    #[test]
    fn lengths_are_counted_by_powers_of_two() {
        let mut counter = Counter::new(TokenWidth::U16, 7);
        for tokens in [0usize, 1, 2, 3, 4, 7, 8] {
            counter.count(&[5, 0].repeat(tokens));
            counter.document(tokens as u64);
        }
        assert_eq!(counter.documents_by_tokens, [1, 1, 2, 2, 1]);
        counter.add_recent();
        assert_eq!(counter.occurrences[5], 25);
    }
}
