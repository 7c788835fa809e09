//! The tokens of a vocabulary by their bytes: a piece that is one needs no merging.
//!
//! Of the words that a text brings for the first time a fifth to a half are tokens.

use std::collections::HashMap;

use super::cache::{self, Key};
use super::huge::Huge;

/// Tokens by their bytes.
pub(super) struct Vocabulary {
    /// Tokens with short keys: open-addressed, at most two thirds full.
    short: Huge<Token>,
    /// Of a hash to the place in the table.
    shift: u32,
    long: HashMap<Box<[u8]>, (u32, bool)>,
}

/// A token with a short key; 0 is the key of none.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct Token {
    key: Key,
    id: u32,
    /// Whether merging its bytes gives it.
    merges: u32,
}

impl Vocabulary {
    /// Of tokens, their ids, and whether merging a token's bytes gives it. Of tokens with the same bytes the first counts.
    pub(super) fn new<'a>(tokens: impl ExactSizeIterator<Item = (&'a [u8], u32, bool)>) -> Self {
        let size = (tokens.len() * 3 / 2).next_power_of_two().max(2);
        let mut all = Self { short: Huge::new(size), shift: 64 - size.trailing_zeros(), long: HashMap::new() };
        for (token, id, merges) in tokens {
            let key = cache::key(token, 0, token.len(), false);
            if cache::is_long(key) {
                all.long.entry(token.into()).or_insert((id, merges));
                continue;
            }
            let at = all.place(key);
            if all.short[at].key == 0 {
                all.short[at] = Token { key, id, merges: merges.into() };
            }
        }
        all
    }

    /// Begins to bring nearer what [`get`](Self::get) looks at.
    #[inline(always)]
    pub(super) fn prefetch(&self, key: Key) {
        self.short.prefetch(self.home(cache::without_kind(key)));
    }

    /// The id of the token `piece`, of which `key` is the key, and whether merging gives it.
    pub(super) fn get(&self, key: Key, piece: &[u8]) -> Option<(u32, bool)> {
        if cache::is_long(key) {
            return self.long.get(piece).copied();
        }
        let token = &self.short[self.place(cache::without_kind(key))];
        (token.key != 0).then_some((token.id, token.merges != 0))
    }

    /// Where the token with this key is, or would be.
    fn place(&self, key: Key) -> usize {
        let mut at = self.home(key);
        while self.short[at].key != key && self.short[at].key != 0 {
            at = (at + 1) & (self.short.len() - 1);
        }
        at
    }

    #[inline(always)]
    fn home(&self, key: Key) -> usize {
        (cache::hash_key(key) >> self.shift) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::key;
    use super::*;

    #[test]
    fn tokens_are_found_and_nothing_else() {
        let tokens: Vec<Vec<u8>> =
            (0..5000u32).map(|n| format!("{n}").repeat(n as usize % 9 + 1).into_bytes()).collect();
        let gives = |token: &[u8], id: u32| token.len() as u32 > id % 5;
        let numbered = tokens.iter().zip(7..5007).map(|(token, id)| (token.as_slice(), id, gives(token, id)));
        let vocabulary = Vocabulary::new(numbered.rev());
        for (n, token) in tokens.iter().enumerate() {
            let (id, merges) = vocabulary.get(key(token, 0, token.len(), false), token).unwrap();
            assert_eq!(tokens[id as usize - 7], *token, "{n}");
            assert_eq!(merges, gives(token, id));
            let longer = [token.as_slice(), b"x"].concat();
            assert!(vocabulary.get(key(&longer, 0, longer.len(), false), &longer).is_none());
        }
    }
}
