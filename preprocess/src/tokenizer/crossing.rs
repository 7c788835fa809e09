//! Where text can be cut without changing any id: between two characters that no token holds side by side, not even
//! parts of them.
//!
//! A token of bytes may end within a character, or begin within one. So for a border between two characters four kinds
//! of tokens matter: with both characters whole, with only the last bytes of the left one, only the first bytes of the
//! right one, or both. What is found in tokens is kept in a hashed bitmap: a collision forbids a cut, nothing more.

/// From here on scripts are written without spaces, and runs of them are words of any length. Only borders of such
/// characters are kept and asked for; between others there is little to gain.
pub(super) const IDEOGRAPHS: u32 = 0x2e80;

/// Bits of the bitmap for each border in it: one border in sixteen or fewer is not cut for another's sake. Llama 3 needs
/// 16 KiB, Qwen 64; the first-level cache keeps more of these than of 256, where half of all time was waiting for them.
const BITS_EACH: usize = 16;

/// What of a character a token shows beside a border matters only if some token shows a part there. Of each character
/// three bits say so as the left one of a border, three as the right one; only where they meet are parts looked up.
/// They allow for more than there is: parts are told apart by one byte.
mod side {
    /// As it is, before a part of the right one.
    pub(super) const WHOLE_BEFORE_PART: u8 = 1;
    /// By its last bytes, before the whole right one.
    pub(super) const PART_BEFORE_WHOLE: u8 = 2;
    /// By its last bytes, before a part of the right one.
    pub(super) const PART_BEFORE_PART: u8 = 4;
    /// The same bits of a right one.
    pub(super) const RIGHT: u8 = 4;
}

/// Borders between characters that tokens cross.
pub(super) struct Crossings {
    bits: Box<[u64]>,
    /// Of a hash to the bit.
    shift: u32,
    sides: Box<[u8]>,
}

impl Crossings {
    /// Of tokens given as bytes.
    pub(super) fn of<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut borders = Vec::new();
        let mut sides = vec![0; 0x11_0000].into_boxed_slice();
        // Sides of all characters that end or begin with a byte.
        let (mut ends, mut begins) = ([0; 256], [0; 256]);
        for token in tokens {
            for at in 1..token.len() {
                let (Some(left), Some(right)) = (Part::before(&token[..at]), Part::after(&token[at..])) else {
                    continue;
                };
                let is_kept = |part: &Part| part.whole.is_none_or(|character| character as u32 >= IDEOGRAPHS);
                if is_kept(&left) || is_kept(&right) {
                    borders.push(left.key() << 32 | right.key());
                }
                let kind = match (left.whole, right.whole) {
                    (Some(_), Some(_)) => continue,
                    (Some(_), None) => side::WHOLE_BEFORE_PART,
                    (None, Some(_)) => side::PART_BEFORE_WHOLE,
                    (None, None) => side::PART_BEFORE_PART,
                };
                match left.whole {
                    Some(character) => sides[character as usize] |= kind,
                    None => ends[left.bytes as usize & 0xff] |= kind,
                }
                match right.whole {
                    Some(character) => sides[character as usize] |= kind << side::RIGHT,
                    None => begins[usize::from(token[at])] |= kind << side::RIGHT,
                }
            }
        }
        for character in (0x80..0x11_0000).filter_map(char::from_u32) {
            let mut buffer = [0; 4];
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            sides[character as usize] |= ends[usize::from(bytes[bytes.len() - 1])] | begins[usize::from(bytes[0])];
        }
        borders.sort_unstable();
        borders.dedup();
        let count = (BITS_EACH * borders.len()).next_power_of_two().max(64);
        let mut crossings = Self { bits: vec![0; count / 64].into(), shift: 64 - count.trailing_zeros(), sides };
        for border in borders {
            let bit = crossings.bit(border);
            crossings.bits[bit / 64] |= 1 << (bit % 64);
        }
        crossings
    }

    /// Whether nothing is ever merged across the border between two characters, as far as that is known.
    #[inline(always)]
    pub(super) fn can_cut(&self, left: u32, right: u32) -> bool {
        (left.max(right) >= IDEOGRAPHS)
            & !self.crosses(character(left), character(right))
            & !(self.may_show_parts(left, right) && self.contains_parts(left, right))
    }

    /// Whether some token may show only a part of one of two characters beside their border.
    #[inline(always)]
    pub(super) fn may_show_parts(&self, left: u32, right: u32) -> bool {
        self.sides[left as usize] & self.sides[right as usize] >> side::RIGHT & 7 != 0
    }

    #[inline(always)]
    fn crosses(&self, left: u64, right: u64) -> bool {
        let bit = self.bit(left << 32 | right);
        self.bits[bit / 64] >> (bit % 64) & 1 == 1
    }

    #[inline(always)]
    fn bit(&self, border: u64) -> usize {
        // Multiplication spreads to the high bits; this is asked once a Chinese character.
        (border.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// Whether a token may show a part of one of them or of both.
    #[cold]
    fn contains_parts(&self, left: u32, right: u32) -> bool {
        let [mut before, mut after] = [[0; 4]; 2];
        let utf8 = |code: u32| char::from_u32(code).expect("a character of a text");
        let (before, after) = (utf8(left).encode_utf8(&mut before), utf8(right).encode_utf8(&mut after));
        let (before, after) = (before.as_bytes(), after.as_bytes());
        let lefts = || (1..before.len()).map(|from| pack(&before[from..])).chain([character(left)]);
        let rights = || (1..after.len()).map(|to| pack(&after[..to])).chain([character(right)]);
        lefts().any(|left| rights().any(|right| self.crosses(left, right)))
    }
}

/// A whole character in a hash; parts of one are packed bytes, which are below 2²⁴.
#[inline(always)]
fn character(code: u32) -> u64 {
    u64::from(code) | 1 << 24
}

/// Up to four bytes in one number.
fn pack(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |packed, byte| packed << 8 | u64::from(*byte))
}

/// What of a character a token shows beside a border: all of it, or only some of its bytes.
struct Part {
    bytes: u64,
    whole: Option<char>,
}

impl Part {
    /// In a hash.
    fn key(&self) -> u64 {
        self.whole.map_or(self.bytes, |whole| character(whole.into()))
    }

    /// Before a border: the last bytes if the token begins within the character. `None` if these bytes stand before no
    /// border of valid text.
    fn before(bytes: &[u8]) -> Option<Self> {
        let tail = bytes.iter().rev().take_while(|byte| is_continuation(**byte)).count();
        let begin = bytes.len() - tail;
        match begin.checked_sub(1) {
            Some(lead) if length(bytes[lead])? == tail + 1 => Self::whole(&bytes[lead..]),
            None if (1..=3).contains(&tail) => Some(Self { bytes: pack(bytes), whole: None }),
            _ => None,
        }
    }

    /// After a border: the first bytes if the token ends within the character.
    fn after(bytes: &[u8]) -> Option<Self> {
        let length = length(*bytes.first()?)?;
        if length <= bytes.len() {
            return Self::whole(&bytes[..length]);
        }
        bytes[1..].iter().all(|byte| is_continuation(*byte)).then(|| Self { bytes: pack(bytes), whole: None })
    }

    fn whole(bytes: &[u8]) -> Option<Self> {
        let character = std::str::from_utf8(bytes).ok()?.chars().next()?;
        Some(Self { bytes: pack(bytes), whole: Some(character) })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_with_whole_and_cut_characters_cross_borders() {
        let text = "中文";
        let bytes = text.as_bytes();
        let crosses = |token: &[u8]| !Crossings::of(std::iter::once(token)).can_cut('中'.into(), '文'.into());
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
