//! Up to 64 characters of text that holds ideographs, decoded side by side.
//!
//! Character by character, decoding and looking up classes took a third of all time on Chinese. With AVX-512 (VBMI2) the
//! first bytes of characters are moved together, and the bytes after them, so that one register holds each; sixteen
//! characters are then put together, and looked up, at a time.
#![allow(unsafe_code)] // vector instructions, where the processor has them

use super::unicode::{Classes, LETTER, NUMBER, SPACE, decode};
use super::windows::{Vectors, WINDOW};

/// Room for characters: a step of decoding may bring a whole window more than are wanted.
const ROOM: usize = 2 * WINDOW;

/// Characters that stand side by side.
pub(super) struct Line {
    /// How many there are, at most [`WINDOW`]; what lies behind them does not count.
    pub(super) count: usize,
    /// Their code points.
    pub(super) codes: [u32; ROOM],
    /// Where each begins, counted from the first.
    pub(super) begins: [u8; ROOM],
    /// Those that are ASCII; 128 in place of the others.
    ascii: [u8; ROOM],
}

/// Classes of characters, one bit each.
pub(super) struct Masks {
    pub(super) letters: u64,
    pub(super) digits: u64,
    pub(super) spaces: u64,
}

impl Line {
    /// The characters of `text` from `at` on.
    #[inline(always)]
    pub(super) fn new(vectors: Vectors, text: &[u8], at: usize) -> Self {
        let mut line = Self { count: 0, codes: [0; ROOM], begins: [0; ROOM], ascii: [0x80; ROOM] };
        #[cfg(target_arch = "x86_64")]
        if vectors == Vectors::Avx512 {
            // SAFETY: `Vectors` says what was detected.
            if unsafe { x86::decode_all(text, at, &mut line) } {
                return line;
            }
        }
        let _ = vectors;
        line.decode_each(text, at);
        line
    }

    /// One after the other.
    fn decode_each(&mut self, text: &[u8], at: usize) {
        let (mut count, mut end) = (0, at);
        while count < WINDOW && end < text.len() {
            let (character, bytes) = decode(text, end);
            self.codes[count] = character;
            self.begins[count] = (end - at) as u8;
            self.ascii[count] = character.min(0x80) as u8;
            end += bytes;
            count += 1;
        }
        self.count = count;
    }

    /// Those that are ASCII; 128 in place of the others, and behind them.
    #[inline(always)]
    pub(super) fn ascii(&self) -> &[u8; WINDOW] {
        self.ascii.first_chunk().expect("a window")
    }

    /// The classes of the characters; bits behind them do not count.
    #[inline(always)]
    pub(super) fn masks(&self, vectors: Vectors, classes: Classes) -> Masks {
        #[cfg(target_arch = "x86_64")]
        if vectors == Vectors::Avx512 {
            // SAFETY: `Vectors` says what was detected.
            return unsafe { x86::masks(self, classes) };
        }
        let _ = vectors;
        let mut masks = Masks { letters: 0, digits: 0, spaces: 0 };
        for (number, code) in self.codes[..self.count].iter().enumerate() {
            let class = classes.of(*code);
            let bit = |of: u8| u64::from(class & of != 0) << number;
            masks.letters |= bit(LETTER);
            masks.digits |= bit(NUMBER);
            masks.spaces |= bit(SPACE);
        }
        masks
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Classes, LETTER, Line, Masks, NUMBER, SPACE, WINDOW};

    /// Characters that are put together at a time.
    pub(in super::super) const LANES: usize = 16;

    /// `false`, and nothing decoded, near the end of the text and where there are characters of four bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn decode_all(text: &[u8], at: usize, line: &mut Line) -> bool {
        let bytes = |value: u8| _mm512_set1_epi8(value as i8);
        // SAFETY: 64 numbers lie there.
        let counting = unsafe { _mm512_loadu_si512(COUNTING.as_ptr().cast()) };
        let (mut count, mut from) = (0, 0);
        while count < WINDOW {
            // A character that begins in these 64 bytes ends two bytes behind them at most.
            let Some(around) = text.get(at + from..at + from + WINDOW + 2) else { return false };
            // SAFETY: 66 bytes lie there.
            let [first, second, third] =
                [0, 1, 2].map(|offset| unsafe { _mm512_loadu_si512(around.as_ptr().add(offset).cast()) });
            if _mm512_cmpge_epu8_mask(first, bytes(0xf0)) != 0 {
                return false;
            }
            let begins = !_mm512_cmplt_epu8_mask(_mm512_sub_epi8(first, bytes(0x80)), bytes(0x40));
            let first = _mm512_maskz_compress_epi8(begins, first);
            let second = _mm512_maskz_compress_epi8(begins, second);
            let third = _mm512_maskz_compress_epi8(begins, third);
            let places = _mm512_maskz_compress_epi8(begins, _mm512_add_epi8(counting, bytes(from as u8)));
            // SAFETY: `count` is below 64 and each array has 128 places.
            unsafe {
                _mm512_storeu_si512(line.begins.as_mut_ptr().add(count).cast(), places);
                _mm512_storeu_si512(line.ascii.as_mut_ptr().add(count).cast(), _mm512_min_epu8(first, bytes(0x80)));
            }
            let quarters = quarters(first).into_iter().zip(quarters(second)).zip(quarters(third));
            for (number, ((first, second), third)) in quarters.enumerate() {
                let codes = put_together(first, second, third);
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(line.codes.as_mut_ptr().add(count + LANES * number).cast(), codes) };
            }
            count += begins.count_ones() as usize;
            from += WINDOW;
        }
        line.count = WINDOW;
        true
    }

    const COUNTING: [u8; WINDOW] = {
        let mut counting = [0; WINDOW];
        let mut at = 0;
        while at < WINDOW {
            counting[at] = at as u8;
            at += 1;
        }
        counting
    };

    /// Sixteen bytes each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quarters(bytes: __m512i) -> [__m128i; 4] {
        [
            _mm512_castsi512_si128(bytes),
            _mm512_extracti32x4_epi32::<1>(bytes),
            _mm512_extracti32x4_epi32::<2>(bytes),
            _mm512_extracti32x4_epi32::<3>(bytes),
        ]
    }

    /// The code points of characters of up to three bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn put_together(first: __m128i, second: __m128i, third: __m128i) -> __m512i {
        let (first, second, third) =
            (_mm512_cvtepu8_epi32(first), _mm512_cvtepu8_epi32(second), _mm512_cvtepu8_epi32(third));
        let all = |value: i32| _mm512_set1_epi32(value);
        let low = |byte: __m512i| _mm512_and_si512(byte, all(0x3f));
        let of_two = _mm512_or_si512(_mm512_slli_epi32::<6>(_mm512_and_si512(first, all(0x1f))), low(second));
        let of_three = _mm512_or_si512(
            _mm512_slli_epi32::<12>(_mm512_and_si512(first, all(0xf))),
            _mm512_or_si512(_mm512_slli_epi32::<6>(low(second)), low(third)),
        );
        let codes = _mm512_mask_mov_epi32(first, _mm512_cmpge_epu32_mask(first, all(0xc0)), of_two);
        _mm512_mask_mov_epi32(codes, _mm512_cmpge_epu32_mask(first, all(0xe0)), of_three)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn masks(line: &Line, classes: Classes) -> Masks {
        let mut masks = Masks { letters: 0, digits: 0, spaces: 0 };
        for number in 0..WINDOW / LANES {
            let codes = codes(line, number);
            // SAFETY: code points, of each of which four bytes can be read.
            let found = unsafe { _mm512_i32gather_epi32::<1>(codes, classes.table().as_ptr().cast()) };
            let bits = |class: u8| {
                let mask = _mm512_test_epi32_mask(found, _mm512_set1_epi32(class.into()));
                u64::from(mask) << (LANES * number)
            };
            masks.letters |= bits(LETTER);
            masks.digits |= bits(NUMBER);
            masks.spaces |= bits(SPACE);
        }
        masks
    }

    /// Sixteen code points.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn codes(line: &Line, number: usize) -> __m512i {
        let codes: &[u32] = &line.codes[LANES * number..][..LANES];
        // SAFETY: sixteen lie there.
        unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_ways_decode_alike(
            text in "[a-d中-丯，。é\u{7ff}\u{800}\u{ffff} \u{10000}\u{10ffff}]{0,200}|[中a，é0 ]{60,200}",
        ) {
            let text = text.as_bytes();
            let classes = Classes::load();
            let mut expected = Line { count: 0, codes: [0; ROOM], begins: [0; ROOM], ascii: [0x80; ROOM] };
            expected.decode_each(text, 0);
            for vectors in Vectors::all() {
                let line = Line::new(vectors, text, 0);
                let count = line.count;
                prop_assert_eq!(count, expected.count);
                prop_assert_eq!(&line.codes[..count], &expected.codes[..count]);
                prop_assert_eq!(&line.begins[..count], &expected.begins[..count]);
                prop_assert_eq!(&line.ascii[..count], &expected.ascii[..count]);
                let (masks, expected) = (line.masks(vectors, classes), expected.masks(Vectors::Portable, classes));
                let counted = if count == WINDOW { u64::MAX } else { (1 << count) - 1 };
                prop_assert_eq!(masks.letters & counted, expected.letters);
                prop_assert_eq!(masks.digits & counted, expected.digits);
                prop_assert_eq!(masks.spaces & counted, expected.spaces);
            }
        }
    }
}
