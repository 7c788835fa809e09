//! Where text can be cut without changing any id: between two characters that no token holds side by side, not even
//! parts of them.
//!
//! A token of bytes may end within a character, or begin within one. So for a border between two characters four kinds
//! of tokens matter: with both characters whole, with only the last bytes of the left one, only the first bytes of the
//! right one, or both. What is found in tokens is kept in a hashed bitmap: a collision forbids a cut, nothing more.
#![allow(unsafe_code)] // vector instructions, where the processor has them

use super::line::Line;
use super::unicode::CODE_POINTS;
use super::windows::Vectors;
#[cfg(target_arch = "x86_64")]
use super::windows::below;

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
    bits: Box<[u32]>,
    /// Of a hash to the bit.
    shift: u32,
    sides: Box<[u8]>,
}

/// What a border's left and right side, and both together, are multiplied by: of 32 bits, so that sixteen borders are
/// hashed at a time.
const LEFT: u32 = 0x9e37_79b1;
const RIGHT: u32 = 0x85eb_ca77;
const BOTH: u32 = 0x2c1b_3c6d;

impl Crossings {
    /// Of tokens given as bytes.
    pub(super) fn of<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut borders = Vec::new();
        let mut sides = vec![0; CODE_POINTS].into_boxed_slice();
        // Sides of all characters that end or begin with a byte.
        let (mut ends, mut begins) = ([0; 256], [0; 256]);
        for token in tokens {
            for at in 1..token.len() {
                let (Some(left), Some(right)) = (Part::before(&token[..at]), Part::after(&token[at..])) else {
                    continue;
                };
                let is_kept = |part: &Part| part.whole.is_none_or(|character| character as u32 >= IDEOGRAPHS);
                if is_kept(&left) || is_kept(&right) {
                    borders.push((left.key(), right.key()));
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
        let mut crossings = Self { bits: vec![0; count / 32].into(), shift: 32 - count.trailing_zeros(), sides };
        for (left, right) in borders {
            let bit = crossings.bit(left, right);
            crossings.bits[bit / 32] |= 1 << (bit % 32);
        }
        crossings
    }

    /// Before which characters of a line it can be cut, one bit each; those of the first and behind the last do not count.
    #[inline(always)]
    pub(super) fn cuts(&self, vectors: Vectors, line: &Line) -> u64 {
        #[cfg(target_arch = "x86_64")]
        if vectors == Vectors::Avx512 {
            // SAFETY: `Vectors` says what was detected.
            let (mut cuts, parts) = unsafe { x86::borders(self, line) };
            let mut parts = parts & cuts & below(line.count as u32) & !1;
            while parts != 0 {
                let number = parts.trailing_zeros() as usize;
                parts &= parts - 1;
                if self.contains_parts(line.codes[number - 1], line.codes[number]) {
                    cuts &= !(1 << number);
                }
            }
            return cuts;
        }
        let _ = vectors;
        let border = |number: usize| self.can_cut(line.codes[number - 1], line.codes[number]);
        (1..line.count).fold(0, |cuts, number| cuts | u64::from(border(number)) << number)
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
    fn crosses(&self, left: u32, right: u32) -> bool {
        let bit = self.bit(left, right);
        self.bits[bit / 32] >> (bit % 32) & 1 == 1
    }

    #[inline(always)]
    fn bit(&self, left: u32, right: u32) -> usize {
        let hash = left.wrapping_mul(LEFT).wrapping_add(right.wrapping_mul(RIGHT));
        // Multiplication spreads to the high bits.
        ((hash ^ hash >> 15).wrapping_mul(BOTH) >> self.shift) as usize
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
fn character(code: u32) -> u32 {
    code | WHOLE
}

/// What a whole character has and parts of one have not.
const WHOLE: u32 = 1 << 24;

/// Up to four bytes in one number.
fn pack(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |packed, byte| packed << 8 | u32::from(*byte))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::line::Line;
    use super::super::line::x86::{LANES, codes};
    use super::super::windows::WINDOW;
    use super::{BOTH, Crossings, IDEOGRAPHS, LEFT, RIGHT, WHOLE, side};

    /// Borders before characters of a line that no whole characters cross, and those that parts of some may cross.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn borders(crossings: &Crossings, line: &Line) -> (u64, u64) {
        let all = |value: u32| _mm512_set1_epi32(value as i32);
        let (mut cuts, mut parts) = (0, 0);
        let (mut before, mut sides_before) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for number in 0..WINDOW / LANES {
            let right = codes(line, number);
            let left = _mm512_alignr_epi32::<15>(right, before);
            before = right;
            let is_asked = _mm512_cmpge_epu32_mask(_mm512_max_epu32(left, right), all(IDEOGRAPHS));
            let product =
                |code: __m512i, factor: u32| _mm512_mullo_epi32(_mm512_or_si512(code, all(WHOLE)), all(factor));
            let hash = _mm512_add_epi32(product(left, LEFT), product(right, RIGHT));
            let hash = _mm512_xor_si512(hash, _mm512_srli_epi32::<15>(hash));
            let hash = _mm512_mullo_epi32(hash, all(BOTH));
            let bit = _mm512_srl_epi32(hash, _mm_cvtsi32_si128(crossings.shift as i32));
            // SAFETY: the shift leaves the numbers of bits that are there.
            let words =
                unsafe { _mm512_i32gather_epi32::<4>(_mm512_srli_epi32::<5>(bit), crossings.bits.as_ptr().cast()) };
            // SAFETY: code points, of each of which four bytes can be read.
            let sides = unsafe { _mm512_i32gather_epi32::<1>(right, crossings.sides.as_ptr().cast()) };
            let ones = _mm512_sllv_epi32(all(1), _mm512_and_si512(bit, all(31)));
            let crosses = _mm512_test_epi32_mask(words, ones);
            let sides_left = _mm512_alignr_epi32::<15>(sides, sides_before);
            sides_before = sides;
            let sides_right = _mm512_srli_epi32::<{ side::RIGHT as u32 }>(sides);
            let shown = _mm512_test_epi32_mask(_mm512_and_si512(sides_left, sides_right), all(7));
            cuts |= u64::from(is_asked & !crosses) << (LANES * number);
            parts |= u64::from(shown) << (LANES * number);
        }
        (cuts, parts)
    }
}

/// What of a character a token shows beside a border: all of it, or only some of its bytes.
struct Part {
    bytes: u32,
    whole: Option<char>,
}

impl Part {
    /// In a hash.
    fn key(&self) -> u32 {
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
    fn lines_are_cut_as_borders_are_one_by_one() {
        let tokens = ["中文", "文中", "，的", "的我", "a中", "，"].map(str::as_bytes);
        let parts = [&"，我".as_bytes()[..4], &"，我".as_bytes()[2..], &"的中".as_bytes()[1..5]];
        let crossings = Crossings::of(tokens.into_iter().chain(parts));
        let text = "中文中，我的我是a中文b，的abcé的中，戓".repeat(9);
        let mut cut = 0;
        for vectors in Vectors::all() {
            for at in text.char_indices().map(|(at, _)| at) {
                let line = Line::new(vectors, text.as_bytes(), at);
                let cuts = crossings.cuts(vectors, &line);
                for number in 1..line.count {
                    let expected = crossings.can_cut(line.codes[number - 1], line.codes[number]);
                    assert_eq!(cuts >> number & 1 == 1, expected, "{vectors:?} {at} {number}");
                    cut += usize::from(expected);
                }
            }
        }
        assert!(cut > 0);
    }

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
