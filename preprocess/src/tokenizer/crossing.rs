//! Where text can be cut without changing any id: between two characters that no token holds side by side, not even
//! parts of them.
//!
//! A token of bytes may end within a character, or begin within one. So for a border between two characters four kinds
//! of tokens matter: with both characters whole, with only the last bytes of the left one, only the first bytes of the
//! right one, or both. What is found in tokens is kept in a hashed bitmap: a collision forbids a cut, nothing more.

use tokenmill_shared::random::mix;

/// Bits of the bitmap: 512 KiB; the 1.2 million borders in the tokens of GPT-4o fill a quarter of it.
const BITS: usize = 1 << 22;

/// Borders between characters that tokens cross.
#[derive(Debug)]
pub(super) struct Crossings {
    bits: Box<[u64]>,
}

impl Crossings {
    /// Of tokens given as bytes.
    pub(super) fn of<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut crossings = Self { bits: vec![0; BITS / 64].into_boxed_slice() };
        for token in tokens {
            for at in 1..token.len() {
                if let (Some(left), Some(right)) = (ending(&token[..at]), beginning(&token[at..])) {
                    let bit = bit(left, right);
                    crossings.bits[bit / 64] |= 1 << (bit % 64);
                }
            }
        }
        crossings
    }

    /// Whether any token may cross the border between two characters.
    pub(super) fn contains(&self, left: char, right: char) -> bool {
        let (mut left_bytes, mut right_bytes) = ([0; 4], [0; 4]);
        let left = left.encode_utf8(&mut left_bytes).as_bytes();
        let right = right.encode_utf8(&mut right_bytes).as_bytes();
        (0..left.len()).any(|from| {
            (1..=right.len()).any(|to| {
                let bit = bit(pack(&left[from..]), pack(&right[..to]));
                self.bits[bit / 64] >> (bit % 64) & 1 == 1
            })
        })
    }
}

fn bit(left: u64, right: u64) -> usize {
    mix(left << 32 | right) as usize % BITS
}

/// Up to four bytes in one number; a whole character and a part of one are never the same.
fn pack(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |packed, byte| packed << 8 | u64::from(*byte))
}

/// What of a character a token shows before a border: all of it, or its last bytes if the token begins within it.
/// `None` if these bytes stand before no border of valid text.
fn ending(bytes: &[u8]) -> Option<u64> {
    let tail = bytes.iter().rev().take_while(|byte| is_continuation(**byte)).count();
    let begin = bytes.len() - tail;
    match begin.checked_sub(1) {
        Some(lead) if length(bytes[lead])? == tail + 1 => Some(pack(&bytes[lead..])),
        None if (1..=3).contains(&tail) => Some(pack(bytes)),
        _ => None,
    }
}

/// What of a character a token shows after a border: all of it, or its first bytes if the token ends within it.
fn beginning(bytes: &[u8]) -> Option<u64> {
    let length = length(*bytes.first()?)?;
    let there = &bytes[..length.min(bytes.len())];
    there[1..].iter().all(|byte| is_continuation(*byte)).then(|| pack(there))
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Bytes of the character that begins with `byte`.
fn length(byte: u8) -> Option<usize> {
    match byte {
        0..=0x7f => Some(1),
        0xc2..=0xdf => Some(2),
        0xe0..=0xef => Some(3),
        0xf0..=0xf4 => Some(4),
        _ => None,
    }
}

/// Answers of [`Crossings::contains`] that were given before: 128 KiB, the newer in place of the older.
pub(super) struct Memo {
    answers: Box<[u64]>,
}

impl Default for Memo {
    fn default() -> Self {
        Self { answers: vec![u64::MAX; 1 << 14].into_boxed_slice() }
    }
}

impl Memo {
    /// The answer for a pair of characters, from `ask` if it is not known.
    #[inline]
    pub(super) fn get(&mut self, left: char, right: char, ask: impl FnOnce() -> bool) -> bool {
        let pair = u64::from(left) << 32 | u64::from(right) << 1;
        let slot = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
        let answer = &mut self.answers[slot as usize];
        if *answer & !1 != pair {
            *answer = pair | u64::from(ask());
        }
        *answer & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_with_whole_and_cut_characters_cross_borders() {
        let text = "中文";
        let bytes = text.as_bytes();
        let crosses = |token: &[u8]| Crossings::of(std::iter::once(token)).contains('中', '文');
        for from in 0..3 {
            for to in 4..=6 {
                assert!(crosses(&bytes[from..to]), "{from}..{to}");
            }
        }
        assert!(crosses("a中文b".as_bytes()));
        for token in [&bytes[..3], &bytes[3..], "文中".as_bytes(), &bytes[1..3], b"ab", "中丈".as_bytes()] {
            assert!(!crosses(token), "{token:?}");
        }
    }
}
