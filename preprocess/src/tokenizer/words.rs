//! Pre-tokenizers: where text is cut into words before merging.
//!
//! The regular expressions of the known families are recognised letter by letter and stand here as scanners, which
//! look at each character once; others run in the reference's own engine. Both are asked for the same thing, so in the
//! tests one is the oracle of the other.

use serde_json::Value;
use tokenizers::utils::SysRegex;

use super::unicode::{Classes, LETTER, LOWER, MARK, NUMBER, SPACE, SYMBOL, UPPER, decode};
use super::windows::{Rules, Sink, Source, Vectors};

/// The regular expression of `ByteLevel` with `use_regex`, as the reference has it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3, and GPT-4's cl100k.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2 to 3: numbers digit by digit.
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's o200k.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek V3, one after the other: each cuts what the one before it left.
const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

/// A recognised pre-tokenizer.
#[derive(Debug)]
pub(super) enum Words {
    Gpt2,
    /// Llama 3 and Qwen: at most so many digits a word.
    Cl100k(usize),
    O200k,
    DeepSeek,
    /// Regular expressions, each cutting what the one before it left.
    Other(Vec<Split>),
}

/// One `Split` of a pre-tokenizer.
#[derive(Debug)]
pub(super) struct Split {
    regex: SysRegex,
    /// Whether text between matches is a word too (`Isolated`) or dropped (`Removed`, inverted).
    keep_gaps: bool,
}

impl Words {
    /// The pre-tokenizer of a byte-level tokenizer.json; `None` if it does other things than splitting.
    pub(super) fn recognise(pre_tokenizer: &Value) -> Option<Self> {
        let stages = match pre_tokenizer["type"].as_str()? {
            "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.as_slice(),
            _ => std::slice::from_ref(pre_tokenizer),
        };
        let (last, before) = stages.split_last()?;
        if last["type"] != "ByteLevel" || last["add_prefix_space"] != Value::Bool(false) {
            return None;
        }
        let mut splits = before.iter().map(pattern).collect::<Option<Vec<_>>>()?;
        if last["use_regex"].as_bool().unwrap_or(true) {
            splits.push((GPT2, true));
        }
        let of: Vec<&str> = splits.iter().map(|(pattern, _)| *pattern).collect();
        Some(match of.as_slice() {
            // These match every character, so nothing lies between matches.
            [GPT2] => Self::Gpt2,
            [LLAMA3] => Self::Cl100k(3),
            [QWEN] => Self::Cl100k(1),
            [O200K] => Self::O200k,
            _ if of == DEEPSEEK && splits.iter().all(|(_, keep_gaps)| *keep_gaps) => Self::DeepSeek,
            _ => Self::Other(regexes(&splits)?),
        })
    }

    /// Whether cutting a text can panic: the reference's regular expression engine does, at its limit of retries.
    pub(super) fn can_panic(&self) -> bool {
        matches!(self, Self::Other(_))
    }

    /// Gives `sink` every word of `text`, in order.
    #[inline(always)]
    pub(super) fn for_each(&self, text: &str, classes: Classes, vectors: Vectors, sink: &mut impl Sink) {
        let scan = Scan { text: text.as_bytes(), classes };
        match self {
            Self::Gpt2 => scan.windows(Rules::Gpt2, |at| scan.gpt2(at)).for_each(vectors, sink),
            Self::Cl100k(digits) => {
                scan.windows(Rules::Cl100k(*digits), |at| scan.cl100k(at, *digits)).for_each(vectors, sink);
            }
            Self::O200k => scan.all(|scan, at| scan.o200k(at), |begin, end| sink.word(begin, end, false)),
            Self::DeepSeek => scan.deepseek(|begin, end| sink.word(begin, end, false)),
            Self::Other(splits) => split(splits, text, 0, &mut |begin, end| sink.word(begin, end, false)),
        }
    }
}

fn pattern(stage: &Value) -> Option<(&str, bool)> {
    let keep_gaps = match (stage["behavior"].as_str()?, stage["invert"].as_bool()?) {
        ("Isolated", _) => true,
        ("Removed", true) => false,
        _ => return None,
    };
    let pattern = (stage["type"] == "Split").then(|| stage["pattern"]["Regex"].as_str())??;
    Some((pattern, keep_gaps))
}

fn regexes(splits: &[(&str, bool)]) -> Option<Vec<Split>> {
    let split = |(pattern, keep_gaps): &(&str, bool)| {
        Some(Split { regex: SysRegex::new(pattern).ok()?, keep_gaps: *keep_gaps })
    };
    splits.iter().map(split).collect()
}

/// Calls `each` with what `splits` leave of `text`, which begins at `offset`.
fn split(splits: &[Split], text: &str, offset: usize, each: &mut impl FnMut(usize, usize)) {
    let Some((first, rest)) = splits.split_first() else {
        if !text.is_empty() {
            each(offset, offset + text.len());
        }
        return;
    };
    let mut end = 0;
    for (from, to) in first.regex.find_iter(text) {
        if first.keep_gaps && from > end {
            split_more(rest, &text[end..from], offset + end, each);
        }
        split_more(rest, &text[from..to], offset + from, each);
        end = to;
    }
    if first.keep_gaps && end < text.len() {
        split_more(rest, &text[end..], offset + end, each);
    }
}

/// Breaks the recursion of types.
fn split_more(splits: &[Split], text: &str, offset: usize, each: &mut dyn FnMut(usize, usize)) {
    split(splits, text, offset, &mut |begin, end| each(begin, end));
}

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
struct Scan<'a> {
    text: &'a [u8],
    classes: Classes,
}

impl<'a> Scan<'a> {
    #[inline(always)]
    fn windows<Scanner>(self, rules: Rules, scanner: Scanner) -> Source<'a, Scanner> {
        Source { text: self.text, rules, classes: self.classes, scanner }
    }

    #[inline(always)]
    fn all(self, scanner: impl Fn(Self, usize) -> usize, mut each: impl FnMut(usize, usize)) {
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
    fn gpt2(self, at: usize) -> usize {
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
    fn cl100k(self, at: usize, digits: usize) -> usize {
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
    fn o200k(self, at: usize) -> usize {
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

    fn deepseek(self, mut each: impl FnMut(usize, usize)) {
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::super::line::Line;
    use super::*;

    /// The words of a text; where ideographs are cut apart also the cuts.
    struct Found<'a> {
        text: &'a str,
        words: Vec<String>,
        cuts: bool,
        /// Ends of pieces that are not whole words.
        parts: Vec<usize>,
    }

    impl Sink for Found<'_> {
        fn word(&mut self, begin: usize, end: usize, is_ascii: bool) {
            assert!(!is_ascii || self.text[begin..end].is_ascii());
            self.words.push(self.text[begin..end].to_owned());
        }

        fn piece(&mut self, begin: usize, end: usize, is_word: bool) {
            assert!(self.cuts || is_word);
            if !is_word {
                self.parts.push(end);
            }
            self.word(begin, end, false);
        }

        fn cuts(&self, _vectors: Vectors, line: &Line) -> u64 {
            let is_cut = |number: &usize| self.cuts && line.codes[number - 1].max(line.codes[*number]) >= 0x2e80;
            (1..line.count).filter(is_cut).fold(0, |cuts, number| cuts | 1 << number)
        }
    }

    /// The words, by all vectors of this processor.
    fn of(text: &str, words: &Words) -> Vec<String> {
        let vectors = Vectors::all().take(if words.can_panic() { 1 } else { usize::MAX });
        let mut all = vectors.map(|vectors| {
            let mut found = Found { text, words: Vec::new(), cuts: false, parts: Vec::new() };
            words.for_each(text, Classes::load(), vectors, &mut found);
            (vectors, found.words)
        });
        let (_, found) = all.next().unwrap();
        all.for_each(|(vectors, others)| assert_eq!(others, found, "{vectors:?} on {text:?}"));
        found
    }

    /// Scanners and the regular expressions they stand for.
    static BOTH: LazyLock<Vec<(Words, Words)>> = LazyLock::new(|| {
        let regex = |patterns: &[&str]| {
            Words::Other(regexes(&patterns.iter().map(|pattern| (*pattern, true)).collect::<Vec<_>>()).unwrap())
        };
        vec![
            (Words::Gpt2, regex(&[GPT2])),
            (Words::Cl100k(3), regex(&[LLAMA3])),
            (Words::Cl100k(1), regex(&[QWEN])),
            (Words::O200k, regex(&[O200K])),
            (Words::DeepSeek, regex(&DEEPSEEK)),
        ]
    });

    #[test]
    fn every_character_in_company_is_cut_as_the_regular_expressions_cut_it() {
        for characters in (0..=0x10_ffff).filter_map(char::from_u32).collect::<Vec<_>>().chunks(64) {
            let mut text = String::new();
            for character in characters {
                for (before, after) in [
                    ("", ""),
                    ("a", "A"),
                    ("1", "1"),
                    (" ", " "),
                    ("'", "x"),
                    ("中", "\u{301}"),
                    ("\n", "!"),
                    ("!", "\n"),
                ] {
                    text += &format!("{before}{character}{after}");
                }
            }
            for (scanner, regex) in BOTH.iter() {
                if of(&text, scanner) != of(&text, regex) {
                    let (ours, theirs) = (of(&text, scanner), of(&text, regex));
                    let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(0);
                    panic!(
                        "{scanner:?}: {:?} is {:?}",
                        &ours[differs.saturating_sub(2)..][..4],
                        &theirs[differs.saturating_sub(2)..][..4]
                    );
                }
            }
        }
    }

    #[test]
    fn windows_may_end_anywhere() {
        const ENDS: [&str; 14] = [
            "'re",
            "x'll y",
            "'s't",
            "'Ve",
            "'\u{17f}a",
            "\n\n  x",
            "  \n \t\n  y",
            " \n(",
            "12345 6",
            "!?\n\n\n a",
            "\t( (b",
            " 中文ab，",
            "\u{3000}\u{3000}中 \u{301}",
            "\r\n'd",
        ];
        for filler in ["a", "1", " ", "!", "\n", "中", "é", "a b"] {
            for count in 0..=66 {
                let text: String = ENDS.iter().map(|end| filler.repeat(count) + end).collect();
                for (scanner, regex) in BOTH.iter() {
                    assert_eq!(of(&text, scanner), of(&text, regex), "{scanner:?} on {text:?}");
                }
            }
        }
    }

    #[test]
    fn chinese_words_are_cut_and_whole_ones_are_called_whole() {
        let text = "中文，abc 字母\n\n 12中 a，文".repeat(9);
        let words = of(&text, &Words::Cl100k(3));
        let mut found = Found { text: &text, words: Vec::new(), cuts: true, parts: Vec::new() };
        Words::Cl100k(3).for_each(&text, Classes::load(), Vectors::detect(), &mut found);
        assert!(found.words.len() > words.len());
        let mut end = 0;
        let mut borders = std::collections::BTreeSet::from([0]);
        for word in &words {
            end += word.len();
            borders.insert(end);
        }
        let mut begin = 0;
        for piece in &found.words {
            let end = begin + piece.len();
            let is_word = borders.contains(&begin) && borders.contains(&end);
            assert_eq!(is_word, !found.parts.contains(&end), "{piece:?}");
            begin = end;
        }
        assert_eq!(begin, text.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn scanners_cut_as_the_regular_expressions_do(
            pieces in prop::collection::vec(
                prop_oneof![
                    "[a-cA-C]{1,3}", "[ \\t\\r\\n\u{a0}\u{3000}]{1,4}", "[0-9٣½]{1,5}", "['sSdDlLvVeErRtTmMſ]{1,5}", "[!-/\u{2014}\u{3002}/]{1,3}",
                    "[中文のカー々\u{4dbf}]{1,3}", "[\u{300}-\u{303}\u{1f3fb}\u{200d}]{1,2}", "[ǅʰßÄäΣσЖж]{1,3}", "[\u{1}\u{85}\u{200b}\u{e000}\u{378}]", "\\PC{1,2}", any::<String>(),
                ],
                0..12,
            )
        ) {
            let text = pieces.concat();
            for (scanner, regex) in BOTH.iter() {
                prop_assert_eq!(of(&text, scanner), of(&text, regex), "{:?} on {:?}", scanner, text);
            }
        }
    }
}
