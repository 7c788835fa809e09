//! Pre-tokenizers: where text is cut into words before merging.
//!
//! The regular expressions of the known families are recognised letter by letter and stand here as scanners, which
//! look at each character once; others run in the reference's own engine. Both are asked for the same thing, so in the
//! tests one is the oracle of the other.

mod scan;

use serde_json::Value;
use tokenizers::utils::SysRegex;

use self::scan::Scan;
use super::unicode::Classes;
use super::windows::{Rules, Sink, Vectors};

/// The regular expression of `ByteLevel` with `use_regex`, as the reference has it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3, and GPT-4's cl100k.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2 to 3: numbers digit by digit.
pub(super) const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's o200k.
pub(super) const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek V3, one after the other: each cuts what the one before it left.
pub(super) const DEEPSEEK: [&str; 3] = [
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
        let scan = Scan::new(text.as_bytes(), classes);
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
