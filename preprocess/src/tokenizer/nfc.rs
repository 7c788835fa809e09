//! NFC, which hardly any text needs: what it may change is looked for, and only that is normalized.
//!
//! Most characters are told by their first byte: ASCII and ideographs are never changed. The others are looked up.
#![allow(unsafe_code)] // vector instructions, where the processor has them

use std::borrow::Cow;

use super::unicode::{COMPOSES, Classes, decode};
use super::windows::Vectors;

/// Bytes that are looked at in one go.
const WINDOW: usize = 64;

/// `text` in NFC; `normalize` gives that of a part of it.
pub(super) fn compose(
    vectors: Vectors,
    classes: Classes,
    text: &str,
    normalize: impl Fn(&str) -> Result<String, String>,
) -> Result<Cow<'_, str>, String> {
    let bytes = text.as_bytes();
    let composes = |at: usize| classes.of(decode(bytes, at).0) & COMPOSES != 0;
    let (mut normalized, mut done, mut from) = (String::new(), 0, 0);
    while from < bytes.len() {
        let mut asked = match bytes.get(from..from + WINDOW) {
            Some(window) => asked(vectors, window.try_into().expect("a window")),
            None => bytes[from..].iter().rev().fold(0, |asked, byte| asked << 1 | u64::from(is_asked(*byte))),
        };
        let window = from;
        from = (from + WINDOW).min(bytes.len());
        while asked != 0 {
            let at = window + asked.trailing_zeros() as usize;
            asked &= asked - 1;
            if at < done || !composes(at) {
                continue;
            }
            // From the character before it, which nothing before that changes, to the next one that nothing changes.
            let begin = text[done..at].char_indices().next_back().map_or(at, |(before, _)| done + before);
            let mut end = at;
            while end < bytes.len() && composes(end) {
                end += decode(bytes, end).1;
            }
            normalized.push_str(&text[done..begin]);
            normalized.push_str(&normalize(&text[begin..end])?);
            done = end;
        }
    }
    if done == 0 {
        return Ok(Cow::Borrowed(text));
    }
    normalized.push_str(&text[done..]);
    Ok(Cow::Owned(normalized))
}

/// Whether the character that begins with `byte` is looked up; no byte within a character is.
fn is_asked(byte: u8) -> bool {
    byte >= 0xc0 && !(0xe4..0xea).contains(&byte)
}

/// The bytes that [`is_asked`] holds for, one bit each.
#[inline(always)]
fn asked(vectors: Vectors, window: &[u8; WINDOW]) -> u64 {
    match vectors {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vectors` says what was detected.
        Vectors::Avx512 => unsafe { x86::avx512(window) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vectors` says what was detected.
        Vectors::Avx2 => unsafe { x86::avx2(window) },
        Vectors::Portable => window.iter().rev().fold(0, |asked, byte| asked << 1 | u64::from(is_asked(*byte))),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::WINDOW;

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn avx512(window: &[u8; WINDOW]) -> u64 {
        // SAFETY: 64 bytes lie there.
        let all = unsafe { _mm512_loadu_si512(window.as_ptr().cast()) };
        let set = |byte: u8| _mm512_set1_epi8(byte as i8);
        let begins = _mm512_cmpge_epu8_mask(all, set(0xc0));
        begins & !_mm512_cmplt_epu8_mask(_mm512_sub_epi8(all, set(0xe4)), set(6))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(window: &[u8; WINDOW]) -> u64 {
        let half = |at: usize| {
            // SAFETY: 32 bytes lie there, at 0 and at 32.
            let all = unsafe { _mm256_loadu_si256(window.as_ptr().add(at).cast()) };
            let set = |byte: u8| _mm256_set1_epi8(byte as i8);
            let at_least = |byte: u8| _mm256_cmpeq_epi8(_mm256_max_epu8(all, set(byte)), all);
            let ideographs = _mm256_andnot_si256(at_least(0xea), at_least(0xe4));
            _mm256_movemask_epi8(_mm256_andnot_si256(ideographs, at_least(0xc0))) as u32
        };
        u64::from(half(0)) | u64::from(half(32)) << 32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::{NormalizedString, Normalizer, normalizers::unicode};

    use super::*;

    fn whole(text: &str) -> String {
        let mut text = NormalizedString::from(text);
        unicode::NFC.normalize(&mut text).unwrap();
        text.get().to_owned()
    }

    #[test]
    fn every_byte_is_told_by_all_vectors() {
        let bytes: Vec<u8> = (0..=255).collect();
        for window in bytes.windows(WINDOW) {
            let window = window.try_into().unwrap();
            for vectors in Vectors::all() {
                assert_eq!(asked(vectors, window), asked(Vectors::Portable, window), "{vectors:?}");
            }
        }
        assert_eq!((0xc0..=255).filter(|byte| !is_asked(*byte)).collect::<Vec<_>>(), [228, 229, 230, 231, 232, 233]);
    }

    #[test]
    fn what_is_not_looked_up_is_never_changed() {
        for first in ('\0'..='\u{7f}').chain('\u{4000}'..='\u{9fff}') {
            assert_eq!(Classes::load().of(first.into()) & COMPOSES, 0, "{first:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn parts_make_the_whole(
            parts in prop::collection::vec(
                prop_oneof!["[a-z中国，。 ]{0,70}", "[aeou가각\u{1100}\u{1161}\u{11a8}\u{300}-\u{345}\u{5ae}か\u{3099}\u{2126}\u{f900}]{1,6}", any::<String>()],
                0..6,
            ),
        ) {
            let text = parts.concat();
            for vectors in Vectors::all() {
                let composed = compose(vectors, Classes::load(), &text, |part| Ok(whole(part))).unwrap();
                prop_assert_eq!(&composed, &whole(&text), "{:?} on {:?}", vectors, text);
            }
        }
    }
}
