//! The tokens of a vocabulary by their bytes: a piece that is one needs no merging.
//!
//! Of the words that a text brings for the first time a fifth to a half are tokens. Found here, they cost two reads.

use super::cache::hash_bytes;
use super::huge::Huge;

/// Tokens by their bytes.
pub(super) struct Vocabulary {
    /// Open-addressed, at most half full: part of the hash above the number of the token; 0 is empty.
    slots: Huge<u64>,
    /// A bit for each token's hash: most words that are none are told here, in an eighth of the memory.
    filter: Box<[u64]>,
    /// By number: where a token's bytes begin, its id, and whether merging its bytes gives it.
    tokens: Box<[Token]>,
    bytes: Box<[u8]>,
}

#[derive(Clone, Copy)]
struct Token {
    begin: u32,
    id: u32,
    merges: bool,
}

/// Bits for the number of a token.
const NUMBER_BITS: u32 = 24;

impl Vocabulary {
    /// Of tokens and their ids, fewer than 2²⁴; `merges` says whether merging a token's bytes gives it. Of tokens with the
    /// same bytes the first counts.
    pub(super) fn new<'a>(
        tokens: impl ExactSizeIterator<Item = (&'a [u8], u32)>,
        mut merges: impl FnMut(&'a [u8], u32) -> bool,
    ) -> Self {
        let count = tokens.len();
        assert!(count < 1 << NUMBER_BITS, "ids are checked before");
        let slots = Huge::new((2 * count).next_power_of_two().max(2));
        let filter = vec![0; (16 * count).next_power_of_two().max(64) / 64].into_boxed_slice();
        let mut all = Self { slots, filter, tokens: Box::default(), bytes: Box::default() };
        let (mut list, mut bytes) = (Vec::with_capacity(count + 1), Vec::new());
        for (token, id) in tokens {
            let hash = hash(token);
            let mut at = all.home(hash);
            while all.slots[at] != 0 {
                at = (at + 1) % all.slots.len();
            }
            all.slots[at] = hash << NUMBER_BITS | list.len() as u64;
            let (word, bit) = all.bit(hash);
            all.filter[word] |= bit;
            list.push(Token { begin: bytes.len() as u32, id, merges: merges(token, id) });
            bytes.extend_from_slice(token);
        }
        list.push(Token { begin: bytes.len() as u32, id: 0, merges: false });
        (all.tokens, all.bytes) = (list.into_boxed_slice(), bytes.into_boxed_slice());
        all
    }

    /// The id of the token `piece`, and whether merging gives it.
    pub(super) fn get(&self, piece: &[u8]) -> Option<(u32, bool)> {
        let hash = hash(piece);
        let (word, bit) = self.bit(hash);
        if self.filter[word] & bit == 0 {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if slot >> NUMBER_BITS == hash << NUMBER_BITS >> NUMBER_BITS {
                let number = (slot % (1 << NUMBER_BITS)) as usize;
                let [token, next] = [self.tokens[number], self.tokens[number + 1]];
                if self.bytes[token.begin as usize..next.begin as usize] == *piece {
                    return Some((token.id, token.merges));
                }
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// Of the filter.
    fn bit(&self, hash: u64) -> (usize, u64) {
        ((hash >> 32) as usize & (self.filter.len() - 1), 1 << (hash >> 26 & 63))
    }

    fn home(&self, hash: u64) -> usize {
        (hash >> NUMBER_BITS) as usize & (self.slots.len() - 1)
    }
}

/// Never 0 in the bits that a slot keeps.
fn hash(bytes: &[u8]) -> u64 {
    hash_bytes(bytes) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_and_nothing_else() {
        let tokens: Vec<Vec<u8>> =
            (0..5000u32).map(|n| format!("{n}").repeat(n as usize % 9 + 1).into_bytes()).collect();
        let vocabulary = Vocabulary::new(
            tokens.iter().enumerate().map(|(n, token)| (token.as_slice(), n as u32 + 7)).rev(),
            |token, id| token.len() as u32 > id % 5,
        );
        for (n, token) in tokens.iter().enumerate() {
            let (id, merges) = vocabulary.get(token).unwrap();
            assert_eq!(tokens[id as usize - 7], *token, "{n}");
            assert_eq!(merges, token.len() as u32 > id % 5);
            assert!(vocabulary.get(&[token.as_slice(), b"x"].concat()).is_none());
        }
        assert!(vocabulary.get(b"").is_none());
    }
}
