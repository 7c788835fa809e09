//! The regular expressions of the known families as scanners, which look at each character once.

use super::super::unicode::{Classes, LETTER, LOWER, MARK, NUMBER, SPACE, SYMBOL, UPPER, decode};
use super::super::windows::{Rules, Source};

/// Classes of ASCII in a table that stays in the cache.
const ASCII: [u8; 128] = {
    let mut classes = [0; 128];
    let mut at = 0;
    while at < 128 {
        let byte = at as u8;
        classes[at] = match byte {
            b'a'..=b'z' => LETTER | LOWER,
            b'A'..=b'Z' => LETTER | UPPER,
            b'0'..=b'9' => NUMBER,
            b' ' | 9..=13 => SPACE,
            b'!'..=b'~' => SYMBOL,
            _ => 0,
        };
        at += 1;
    }
    classes
};

/// A text that is scanned. A scanner is given where a word begins and returns where it ends.
#[derive(Clone, Copy)]
pub(super) struct Scan<'a> {
    text: &'a [u8],
    classes: Classes,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a [u8], classes: Classes) -> Self {
        Self { text, classes }
    }

    #[inline(always)]
    pub(super) fn windows<Scanner>(self, rules: Rules, scanner: Scanner) -> Source<'a, Scanner> {
        Source { text: self.text, rules, classes: self.classes, scanner }
    }

    #[inline(always)]
    pub(super) fn all(self, scanner: impl Fn(Self, usize) -> usize, mut each: impl FnMut(usize, usize)) {
        let mut at = 0;
        while at < self.text.len() {
            let end = scanner(self, at);
            each(at, end);
            at = end;
        }
    }

    /// Classes and length of the character at `at`; nothing at the end.
    #[inline(always)]
    fn class(self, at: usize) -> (u8, usize) {
        match self.text.get(at) {
            None => (0, 0),
            Some(byte) if *byte < 0x80 => (ASCII[usize::from(*byte)], 1),
            Some(_) => {
                let (character, bytes) = decode(self.text, at);
                (self.classes.of(character), bytes)
            }
        }
    }

    #[inline(always)]
    fn byte(self, at: usize) -> u8 {
        self.text.get(at).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn is_newline(self, at: usize) -> bool {
        matches!(self.byte(at), b'\r' | b'\n')
    }

    /// The end of a run of characters from `at` on that `is` holds for.
    #[inline(always)]
    fn run(self, mut at: usize, is: impl Fn(u8) -> bool) -> usize {
        loop {
            let (class, bytes) = self.class(at);
            if bytes == 0 || !is(class) {
                return at;
            }
            at += bytes;
        }
    }

    /// The end of a run of letters. Words are short and their length is not to be predicted, so eight bytes are looked
    /// at in one go.
    #[inline(always)]
    fn letters(self, mut at: usize) -> usize {
        while let Some(eight) = self.text.get(at..at + 8) {
            let others = non_letters(u64::from_le_bytes(eight.try_into().expect("eight bytes")));
            if others == 0 {
                at += 8;
                continue;
            }
            at += others.trailing_zeros() as usize / 8;
            break;
        }
        // An ASCII byte that is no letter, any other character, or the last bytes of the text.
        self.run(at, |class| class & LETTER != 0)
    }

    /// `[^\s\p{L}\p{N}]+`, from `at` on.
    #[inline(always)]
    fn others(self, at: usize) -> usize {
        self.run(at, |class| class & (SPACE | LETTER | NUMBER) == 0)
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d` at an apostrophe: its end.
    #[inline(always)]
    fn contraction(self, at: usize, any_case: bool) -> Option<usize> {
        let lower = |at: usize| {
            let byte = self.byte(at);
            if any_case { byte.to_ascii_lowercase() } else { byte }
        };
        match (lower(at + 1), lower(at + 2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
            // The long s, which is an s in any case.
            (0xc5, 0xbf) if any_case => Some(at + 3),
            _ => None,
        }
    }

    /// White space that no other rule wants: `\s+(?!\S)|\s+`, and before them `\s*[\r\n]+` if `newlines`.
    #[inline(always)]
    fn space(self, at: usize, newlines: bool) -> usize {
        let (mut end, mut last, mut newline) = (at, at, 0);
        loop {
            let (class, bytes) = self.class(end);
            if class & SPACE == 0 {
                break;
            }
            last = end;
            end += bytes;
            if newlines && self.is_newline(last) {
                newline = end;
            }
        }
        if newline > 0 {
            newline
        } else if end < self.text.len() && last > at {
            last
        } else {
            end
        }
    }

    #[inline(always)]
    pub(super) fn gpt2(self, at: usize) -> usize {
        if self.byte(at) == b'\''
            && let Some(end) = self.contraction(at, false)
        {
            return end;
        }
        let start = at + usize::from(self.byte(at) == b' ');
        let (class, bytes) = self.class(start);
        if class & LETTER != 0 {
            self.letters(start)
        } else if class & NUMBER != 0 {
            self.run(start, |class| class & NUMBER != 0)
        } else if bytes > 0 && class & SPACE == 0 {
            self.others(start)
        } else {
            self.space(at, false)
        }
    }

    #[inline(always)]
    pub(super) fn cl100k(self, at: usize, digits: usize) -> usize {
        let (class, bytes) = self.class(at);
        if class & LETTER != 0 {
            return self.letters(at);
        }
        if class & NUMBER != 0 {
            return self.digits(at, digits);
        }
        if self.byte(at) == b'\''
            && let Some(end) = self.contraction(at, true)
        {
            return end;
        }
        let (next, next_bytes) = self.class(at + bytes);
        if next & LETTER != 0 && !self.is_newline(at) {
            return self.letters(at + bytes);
        }
        self.symbols_or_space(at, class, next, next_bytes, |byte| matches!(byte, b'\r' | b'\n'))
    }

    /// ` ?[^\s\p{L}\p{N}]+` with what `after` allows behind it, or white space.
    #[inline(always)]
    fn symbols_or_space(self, at: usize, class: u8, next: u8, next_bytes: usize, after: impl Fn(u8) -> bool) -> usize {
        let is_other = |class: u8| class & (SPACE | LETTER | NUMBER) == 0;
        let spaced = self.byte(at) == b' ' && next_bytes > 0 && is_other(next);
        if is_other(class) || spaced {
            let mut end = self.others(at + usize::from(spaced));
            while end < self.text.len() && after(self.text[end]) {
                end += 1;
            }
            return end;
        }
        self.space(at, true)
    }

    /// At most `most` numbers.
    #[inline(always)]
    fn digits(self, mut at: usize, most: usize) -> usize {
        for _ in 0..most {
            let (class, bytes) = self.class(at);
            if class & NUMBER == 0 {
                break;
            }
            at += bytes;
        }
        at
    }

    #[inline(always)]
    pub(super) fn o200k(self, at: usize) -> usize {
        let (class, bytes) = self.class(at);
        if class & NUMBER != 0 {
            return self.digits(at, 3);
        }
        let (next, next_bytes) = self.class(at + bytes);
        let word = if class & LETTER != 0 {
            self.cased(at)
        } else if !self.is_newline(at) && next & (LETTER | MARK) != 0 {
            // `[^\r\n\p{L}\p{N}]?` takes this character, or leaves it to the word where nothing else makes a word with
            // a small letter at its end; only a mark can begin one.
            match self.cased(at + bytes) {
                Cased { small: false, .. } if class & MARK != 0 => self.cased(at),
                word => word,
            }
        } else if class & MARK != 0 {
            self.cased(at)
        } else {
            return self.symbols_or_space(at, class, next, next_bytes, |byte| matches!(byte, b'\r' | b'\n' | b'/'));
        };
        if self.byte(word.end) == b'\'' { self.contraction(word.end, true).unwrap_or(word.end) } else { word.end }
    }

    /// `[U]*[l]+`, or else `[U]+[l]*`, where U is any letter or mark but a small one and l any but a capital one.
    #[inline(always)]
    fn cased(self, at: usize) -> Cased {
        let is_any = |class: u8| class & (LETTER | MARK) != 0;
        let (mut end, mut after_both) = (at, 0);
        loop {
            let (class, bytes) = self.class(end);
            if !is_any(class) || class & LOWER != 0 {
                break;
            }
            end += bytes;
            if class & UPPER == 0 {
                after_both = end;
            }
        }
        let small = self.run(end, |class| is_any(class) && class & UPPER == 0);
        if small > end {
            Cased { end: small, small: true }
        } else if after_both > 0 {
            Cased { end: after_both, small: true }
        } else {
            Cased { end, small: false }
        }
    }

    pub(super) fn deepseek(self, mut each: impl FnMut(usize, usize)) {
        let mut at = 0;
        while at < self.text.len() {
            if self.class(at).0 & NUMBER != 0 {
                let end = self.digits(at, 3);
                each(at, end);
                at = end;
                continue;
            }
            let first = is_cjk(decode(self.text, at).0);
            let end = self.while_at(at, |character, class| is_cjk(character) == first && class & NUMBER == 0);
            Scan { text: &self.text[..end], ..self }.deepseek_rest(at, &mut each);
            at = end;
        }
    }

    /// The end of a run of characters that `is` holds for, given code points and classes.
    #[inline(always)]
    fn while_at(self, mut at: usize, is: impl Fn(u32, u8) -> bool) -> usize {
        while at < self.text.len() {
            let (character, bytes) = decode(self.text, at);
            if !is(character, self.classes.of(character)) {
                break;
            }
            at += bytes;
        }
        at
    }

    /// The third regular expression, on a run of Chinese characters or text without them and numbers. What it does not match
    /// is a word too.
    #[inline(always)]
    fn deepseek_rest(self, mut at: usize, each: &mut impl FnMut(usize, usize)) {
        let mut gap = at;
        while at < self.text.len() {
            let end = self.deepseek_word(at);
            if end > at {
                if gap < at {
                    each(gap, at);
                }
                each(at, end);
                at = end;
                gap = end;
            } else {
                at += self.class(at).1;
            }
        }
        if gap < at {
            each(gap, at);
        }
    }

    /// The end of what matches at `at`; `at` if nothing does.
    #[inline(always)]
    fn deepseek_word(self, at: usize) -> usize {
        let is_word = |class: u8| class & (LETTER | MARK) != 0;
        let (class, bytes) = self.class(at);
        if class & LETTER != 0 {
            return self.run(at, is_word);
        }
        if self.byte(at).is_ascii_punctuation() && self.byte(at + 1).is_ascii_alphabetic() {
            let letters = self.text[at + 1..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
            return at + 1 + letters;
        }
        let (next, _) = self.class(at + bytes);
        if class & SYMBOL == 0 && !self.is_newline(at) && is_word(next) {
            return self.run(at + bytes, is_word);
        }
        if class & MARK != 0 {
            return self.run(at, is_word);
        }
        let spaced = usize::from(self.byte(at) == b' ');
        if class & SYMBOL != 0 || (spaced == 1 && next & SYMBOL != 0) {
            let mut end = self.run(at + spaced, |class| class & SYMBOL != 0);
            while self.is_newline(end) {
                end += 1;
            }
            return end;
        }
        if class & SPACE != 0 { self.space(at, true) } else { at }
    }
}

/// Where a word of letters ends, and whether it ends in letters that can be small.
#[derive(Clone, Copy)]
struct Cased {
    end: usize,
    small: bool,
}

/// `[一-龥぀-ゟ゠-ヿ]`
#[inline(always)]
fn is_cjk(character: u32) -> bool {
    matches!(character, 0x3040..=0x30ff | 0x4e00..=0x9fa5)
}

/// The highest bit of each byte that is not an ASCII letter.
#[inline(always)]
fn non_letters(bytes: u64) -> u64 {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const EACH: u64 = 0x0101_0101_0101_0101;
    let lower = (bytes | (0x20 * EACH)) & !HIGH;
    let from_a = lower + (0x80 - b'a' as u64) * EACH;
    let beyond_z = lower + (0x7f - b'z' as u64) * EACH;
    !(from_a & !beyond_z & !bytes) & HIGH
}
