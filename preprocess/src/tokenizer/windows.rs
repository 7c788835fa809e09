//! Words of ASCII text, 64 bytes at a time.
//!
//! A window is classified by vector instructions into masks, one bit a byte, and from the masks arithmetic gives the
//! bits where words begin. A window begins where a word does, and no rule looks back beyond that, so nothing is carried
//! from window to window: what a window leaves undecided at its end, the next one begins with. Scanning English
//! character by character took a third of all time.
//!
//! Characters beyond ASCII end a window. Where Chinese, Japanese or Korean begins, a window is of 64 characters (`line`),
//! whose classes are looked up; the same arithmetic gives the words, and their cuts come from it too. Any other word that
//! holds such a character is for the scanners of `words`.
#![allow(unsafe_code)] // vector instructions, where the processor has them

use super::line::{Line, Masks};
use super::unicode::Classes;

/// Bytes or characters of a window.
pub(super) const WINDOW: usize = 64;

/// The classes of a window's bytes or characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Bytes before the first that is not ASCII, or characters.
    valid: u32,
    letters: u64,
    digits: u64,
    /// White space: 9 to 13 and the blank.
    spaces: u64,
    blanks: u64,
    newlines: u64,
    apostrophes: u64,
}

/// The vector instructions of this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vectors {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// None that are used here: bytes in 64-bit registers.
    Portable,
}

impl Vectors {
    /// The best that this processor has.
    pub(super) fn detect() -> Self {
        Self::all().next().expect("one is portable")
    }

    /// All that this processor has, the best first.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let special = {
            // All that `x86` enables: a virtual machine may hide any of them.
            let has_avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi2");
            [(Self::Avx512, has_avx2 && has_avx512), (Self::Avx2, has_avx2)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let special: [(Self, bool); 0] = [];
        special.into_iter().filter(|(_, has)| *has).map(|(vectors, _)| vectors).chain([Self::Portable])
    }
}

/// How a family of tokenizers cuts ASCII text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    Gpt2,
    /// At most so many digits a word: 1 or 3.
    Cl100k(usize),
}

/// Where words go, in order.
pub(super) trait Sink {
    /// The word from `begin` to `end`; `is_ascii` if it is known to be of ASCII only.
    fn word(&mut self, begin: usize, end: usize, is_ascii: bool);

    /// A word, or a part of one that was cut.
    fn piece(&mut self, begin: usize, end: usize, is_word: bool);

    /// Before which of the characters a word is to be cut, one bit each; those of the first and behind the last do not
    /// count.
    fn cuts(&self, vectors: Vectors, line: &Line) -> u64;
}

/// A text with its scanner.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, Scanner> {
    pub(super) text: &'a [u8],
    pub(super) rules: Rules,
    pub(super) classes: Classes,
    /// Is given where a word begins that no window decides, and returns where it ends.
    pub(super) scanner: Scanner,
}

impl<Scanner: Fn(usize) -> usize> Source<'_, Scanner> {
    /// Gives the words of the text to `sink`.
    #[inline(always)]
    pub(super) fn for_each(self, vectors: Vectors, sink: &mut impl Sink) {
        match vectors {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Vectors` says what was detected.
            Vectors::Avx512 => unsafe { x86::avx512(self, sink) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Vectors` says what was detected.
            Vectors::Avx2 => unsafe { x86::avx2(self, sink) },
            Vectors::Portable => self.all(vectors, portable, sink),
        }
    }

    #[inline(always)]
    fn all(&self, vectors: Vectors, classify: impl Fn(&[u8; WINDOW]) -> Window, sink: &mut impl Sink) {
        let mut at = 0;
        while let Some(mut first) = self.text.get(at).copied() {
            if first < 0x80
                && let Some(bytes) = self.text.get(at..at + WINDOW)
            {
                let bytes = bytes.try_into().expect("a window");
                let window = classify(bytes).only_valid();
                let mut starts = window.starts(self.rules, bytes, |_| false);
                if starts != 0 {
                    let base = at;
                    while starts != 0 {
                        let end = base + starts.trailing_zeros() as usize;
                        starts &= starts - 1;
                        sink.word(at, end, true);
                        at = end;
                    }
                    continue;
                }
                first = bytes.get(window.valid as usize).copied().unwrap_or(0);
            }
            // Chinese, Japanese, Korean.
            if (0xe3..0xee).contains(&first)
                && let Some(end) = self.characters(at, vectors, &classify, sink)
            {
                at = end;
                continue;
            }
            let end = (self.scanner)(at);
            sink.word(at, end, false);
            at = end;
        }
    }

    /// The words that begin among the next 64 characters, but the last, cut into pieces; where the last begins. `None` if
    /// that is the first.
    #[inline(always)]
    fn characters(
        &self,
        at: usize,
        vectors: Vectors,
        classify: impl Fn(&[u8; WINDOW]) -> Window,
        sink: &mut impl Sink,
    ) -> Option<usize> {
        let line = Line::new(vectors, self.text, at);
        let Masks { letters, digits, spaces } = line.masks(vectors, self.classes);
        let cuts = sink.cuts(vectors, &line);
        let (ascii, begins) = (line.ascii(), &line.begins);
        let window = Window { valid: line.count as u32, letters, digits, spaces, ..classify(ascii) };
        let is_long_s = |number: usize| {
            begins[..WINDOW]
                .get(number)
                .is_some_and(|begin| self.text[at + usize::from(*begin)..].starts_with("\u{17f}".as_bytes()))
        };
        let starts = window.starts(self.rules, ascii, is_long_s);
        let last = starts.checked_ilog2()?;
        let mut ends = (starts | cuts) & below(last + 1) & !1;
        let (mut begin, mut whole) = (at, true);
        while ends != 0 {
            let number = ends.trailing_zeros() as usize;
            ends &= ends - 1;
            let end = at + usize::from(begins[number]);
            let is_start = starts >> number & 1 == 1;
            sink.piece(begin, end, whole & is_start);
            (begin, whole) = (end, is_start);
        }
        Some(begin)
    }
}

impl Window {
    /// Without what is beyond ASCII.
    #[inline(always)]
    fn only_valid(self) -> Self {
        let valid = below(self.valid);
        Self {
            valid: self.valid,
            letters: self.letters & valid,
            digits: self.digits & valid,
            spaces: self.spaces & valid,
            blanks: self.blanks & valid,
            newlines: self.newlines & valid,
            apostrophes: self.apostrophes & valid,
        }
    }

    /// Where words begin, but the first: bits beyond what is decided are left out. `is_long_s` says whether a character is
    /// the long s, an s in any case.
    #[inline(always)]
    fn starts(&self, rules: Rules, ascii: &[u8; WINDOW], is_long_s: impl Fn(usize) -> bool) -> u64 {
        let starts = match rules {
            Rules::Gpt2 => self.gpt2(ascii),
            Rules::Cl100k(digits) => self.cl100k(ascii, is_long_s, digits),
        };
        starts & self.decided() & !1
    }

    #[inline(always)]
    fn gpt2(&self, ascii: &[u8; WINDOW]) -> u64 {
        let Self { letters, digits, spaces, blanks, .. } = *self;
        let symbols = self.symbols();
        let after_blank = blanks << 1;
        let begin = |class: u64| class & !(class << 1) & !after_blank;
        let (skipped, contracted) = self.contractions(ascii, |_| false, begin(symbols) & letters >> 1, false);
        let words = begin(letters) & !skipped | begin(digits) | begin(symbols);
        // Whether the last letter begins a word after an apostrophe, the next window sees.
        let undecided = self.apostrophes << 1 & 1 << (WINDOW - 1);
        (words | contracted | first(spaces) | spaces & !(spaces >> 1)) & !undecided
    }

    #[inline(always)]
    fn cl100k(&self, ascii: &[u8; WINDOW], is_long_s: impl Fn(usize) -> bool, most_digits: usize) -> u64 {
        let Self { letters, digits, spaces, blanks, newlines, .. } = *self;
        let symbols = self.symbols();
        // A symbol after a blank belongs to it; one before a letter, and no other, begins that word.
        let free = first(symbols) & !(blanks << 1);
        let prefixes = free & letters >> 1;
        let (_, contracted) = self.contractions(ascii, is_long_s, prefixes, true);
        let letters = first(letters) & (digits | newlines | symbols & !prefixes) << 1;
        let digits = if most_digits == 1 { digits } else { threes(digits) };
        // Newlines after symbols belong to these.
        let after_symbols = symbols << 1 & newlines;
        let taken = (newlines.wrapping_add(after_symbols) ^ newlines) & newlines;
        let spaces = spaces & !taken;
        let newlines = newlines & !taken;
        // White space goes up to the last newline of a run; of what is after it all but the last.
        let rest = spaces & !newlines;
        let mut after_newlines = rest & newlines << 1;
        let mut before_newlines = rest.wrapping_add(after_newlines) & !rest & newlines;
        while before_newlines != 0 {
            let end = before_newlines.trailing_zeros();
            before_newlines &= before_newlines - 1;
            let before = after_newlines & ((1 << end) - 1);
            if before != 0 {
                after_newlines &= !(1 << (63 - before.leading_zeros()));
            }
        }
        letters | contracted | free | digits | first(spaces) | after_newlines | rest & !(self.spaces >> 1)
    }

    /// Of symbols that begin a word before a letter the apostrophes of `'s|'t|'re|'ve|'m|'ll|'d`: the letters after
    /// them, which begin no word, and the ends.
    #[inline(always)]
    fn contractions(
        &self,
        ascii: &[u8; WINDOW],
        is_long_s: impl Fn(usize) -> bool,
        before_letters: u64,
        any_case: bool,
    ) -> (u64, u64) {
        let mut apostrophes = self.apostrophes & before_letters;
        let (mut skipped, mut ends) = (0, 0);
        while apostrophes != 0 {
            let at = apostrophes.trailing_zeros() as usize;
            apostrophes &= apostrophes - 1;
            let lower = |at: usize| {
                let byte = ascii.get(at).copied().unwrap_or(0);
                if any_case { byte.to_ascii_lowercase() } else { byte }
            };
            let letters = match (lower(at + 1), lower(at + 2)) {
                (b's' | b't' | b'm' | b'd', _) => 1,
                (b'r' | b'v', b'e') | (b'l', b'l') => 2,
                (0x80.., _) if is_long_s(at + 1) => 1,
                _ => continue,
            };
            skipped |= 2 << at;
            ends |= (2 << at) << letters;
        }
        (skipped, ends)
    }

    fn symbols(&self) -> u64 {
        below(self.valid) & !(self.letters | self.digits | self.spaces)
    }

    /// Bits up to which it is decided where words begin: white space at the end may go on.
    fn decided(&self) -> u64 {
        let behind = 64 - self.valid;
        let trailing = (!(self.spaces << (behind & 63))).leading_zeros();
        if trailing == 0 { below(self.valid) } else { 2u64.wrapping_shl(self.valid - trailing).wrapping_sub(1) }
    }
}

/// The lowest `count` bits.
#[inline(always)]
pub(super) fn below(count: u32) -> u64 {
    if count < 64 { (1 << count) - 1 } else { u64::MAX }
}

/// The first bit of each run.
#[inline(always)]
fn first(runs: u64) -> u64 {
    runs & !(runs << 1)
}

/// Of each run the first bit, and every third.
#[inline(always)]
fn threes(runs: u64) -> u64 {
    let fourth = runs & runs << 1 & runs << 2 & runs << 3;
    let mut all = first(runs);
    let mut more = all << 3 & fourth;
    while more != 0 {
        all |= more;
        more = more << 3 & fourth;
    }
    all
}

/// Eight bytes a step.
fn portable(bytes: &[u8; WINDOW]) -> Window {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const EACH: u64 = 0x0101_0101_0101_0101;
    /// The highest bits of bytes, in order.
    fn gather(bits: u64) -> u64 {
        (bits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
    }
    let mut window = Window { valid: 0, letters: 0, digits: 0, spaces: 0, blanks: 0, newlines: 0, apostrophes: 0 };
    let mut ascii = 0;
    for (number, eight) in bytes.chunks_exact(8).enumerate() {
        let eight = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let low = eight & !HIGH;
        // Of bytes below 128: the highest bit says whether they are at least `from`.
        let at_least = |bytes: u64, from: u8| bytes + EACH * (0x80 - u64::from(from));
        let among = |bytes: u64, from: u8, to: u8| at_least(bytes, from) & !at_least(bytes, to + 1) & !eight & HIGH;
        let at = |bits: u64| gather(bits) << (8 * number);
        let blanks = among(low, b' ', b' ');
        window.letters |= at(among(low | (0x20 * EACH), b'a', b'z'));
        window.digits |= at(among(low, b'0', b'9'));
        window.spaces |= at(among(low, 9, 13) | blanks);
        window.blanks |= at(blanks);
        window.newlines |= at(among(low, b'\n', b'\n') | among(low, b'\r', b'\r'));
        window.apostrophes |= at(among(low, b'\'', b'\''));
        ascii |= at(!eight & HIGH);
    }
    window.valid = ascii.trailing_ones();
    window
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Sink, Source, Vectors, WINDOW, Window};

    /// [`Source::all`] with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn avx512(source: Source<'_, impl Fn(usize) -> usize>, sink: &mut impl Sink) {
        source.all(Vectors::Avx512, |bytes| classify_avx512(bytes), sink);
    }

    /// [`Source::all`] with AVX2.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn avx2(source: Source<'_, impl Fn(usize) -> usize>, sink: &mut impl Sink) {
        source.all(Vectors::Avx2, |bytes| classify_avx2(bytes), sink);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn classify_avx512(bytes: &[u8; WINDOW]) -> Window {
        // SAFETY: 64 bytes lie there.
        let all = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        let set = |byte: u8| _mm512_set1_epi8(byte as i8);
        let is = |byte: u8| _mm512_cmpeq_epi8_mask(all, set(byte));
        let among =
            |bytes: __m512i, from: u8, count: u8| _mm512_cmplt_epu8_mask(_mm512_sub_epi8(bytes, set(from)), set(count));
        let blanks = is(b' ');
        Window {
            valid: _mm512_movepi8_mask(all).trailing_zeros(),
            letters: among(_mm512_or_si512(all, set(0x20)), b'a', 26),
            digits: among(all, b'0', 10),
            spaces: among(all, 9, 5) | blanks,
            blanks,
            newlines: is(b'\n') | is(b'\r'),
            apostrophes: is(b'\''),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn classify_avx2(bytes: &[u8; WINDOW]) -> Window {
        // SAFETY: 64 bytes lie there.
        let (low, high) = unsafe {
            let halves: *const __m256i = bytes.as_ptr().cast();
            (_mm256_loadu_si256(halves), _mm256_loadu_si256(halves.add(1)))
        };
        let set = |byte: u8| _mm256_set1_epi8(byte as i8);
        let mask = |low: __m256i, high: __m256i| {
            u64::from(_mm256_movemask_epi8(low) as u32) | u64::from(_mm256_movemask_epi8(high) as u32) << 32
        };
        let is = |byte: u8| mask(_mm256_cmpeq_epi8(low, set(byte)), _mm256_cmpeq_epi8(high, set(byte)));
        let among = |low: __m256i, high: __m256i, from: u8, count: u8| {
            let half = |bytes: __m256i| {
                let offset = _mm256_sub_epi8(bytes, set(from));
                _mm256_cmpeq_epi8(_mm256_min_epu8(offset, set(count - 1)), offset)
            };
            mask(half(low), half(high))
        };
        let lower = |bytes: __m256i| _mm256_or_si256(bytes, set(0x20));
        let blanks = is(b' ');
        Window {
            valid: mask(low, high).trailing_zeros(),
            letters: among(lower(low), lower(high), b'a', 26),
            digits: among(low, high, b'0', 10),
            spaces: among(low, high, 9, 5) | blanks,
            blanks,
            newlines: is(b'\n') | is(b'\r'),
            apostrophes: is(b'\''),
        }
    }
}
