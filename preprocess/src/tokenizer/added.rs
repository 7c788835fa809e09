//! Added tokens: found in text before anything else, all of them at once by an automaton.
//!
//! As in the `tokenizers` crate they are looked for twice: tokens that are not `normalized` in the text as it is, the
//! others in what the normalizer makes of the stretches between. Its rules (`lstrip`, `rstrip`, `single_word`) are here
//! word for word.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use aho_corasick::{AhoCorasick, Input, MatchKind};
use regex::Regex;
use serde_json::Value;

/// A stretch of text and where it begins, or an added token in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    Text(usize, &'a str),
    Token(u32),
}

/// Finds tokens in text: of those that begin first, the longest.
enum Finder {
    /// With the id of each token.
    Few(AhoCorasick, Vec<u32>),
    Many(Many),
}

/// Of tokens that begin with up to so many bytes the automaton looks for these by vectors: Llama 3 has 256 that all begin
/// with `<`, and code takes a quarter longer when every byte is looked at.
const FEW: usize = 3;

/// Up to so many tokens that begin alike are tried one by one: of 20,000 Chinese words 95 begin with 工作.
const ALIKE: usize = 1000;

impl Finder {
    /// `None` if there is nothing to find; an error if there is too much.
    fn new(tokens: &[(String, u32)]) -> Result<Option<Self>, aho_corasick::BuildError> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let first: BTreeSet<Option<u8>> = tokens.iter().map(|(content, _)| content.bytes().next()).collect();
        if let Some(many) = (first.len() > FEW).then(|| Many::new(tokens)).flatten() {
            return Ok(Some(Self::Many(many)));
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(content, _)| content))?;
        Ok(Some(Self::Few(automaton, tokens.iter().map(|(_, id)| *id).collect())))
    }

    /// The next token from `at` on: where it begins and ends, and its id.
    fn find(&self, text: &str, at: usize) -> Option<(usize, usize, u32)> {
        match self {
            Self::Few(automaton, ids) => {
                let found = automaton.find(Input::new(text).range(at..))?;
                Some((found.start(), found.end(), ids[found.pattern().as_usize()]))
            }
            Self::Many(many) => many.find(text.as_bytes(), at),
        }
    }
}

/// Many tokens. Most places in text where none begins are told by one look, into a hashed bitmap of what tokens begin
/// with; an automaton of 20,000 tokens takes several for every byte, and took half as long as all else together.
struct Many {
    bits: Box<[u64]>,
    /// Of a hash to the bit.
    shift: u32,
    /// The lowest bytes of eight that count: as many as the shortest token has.
    mask: u64,
    /// Open-addressed, at most half full: groups of tokens by these bytes.
    alike: Box<[Alike]>,
    /// The tokens of one group after those of another, in each the longest first.
    tokens: Box<[Token]>,
    contents: Box<[u8]>,
}

/// Tokens that begin alike: with which bytes, and where in the list they begin and end; an end of 0 is that of none.
#[derive(Clone, Copy, Default)]
struct Alike {
    first: u64,
    begin: u32,
    end: u32,
}

/// Side by side with those that begin alike, as their contents are: what has to be read of them is then near.
struct Token {
    /// Where in the contents it begins.
    at: u32,
    bytes: u32,
    id: u32,
}

impl Many {
    /// `None` if too many begin alike.
    fn new(tokens: &[(String, u32)]) -> Option<Self> {
        let shortest = tokens.iter().map(|(content, _)| content.len()).min().filter(|shortest| *shortest > 0)?;
        let mask = if shortest < 8 { (1 << (8 * shortest)) - 1 } else { u64::MAX };
        let first = |content: &str| eight(content.as_bytes(), 0) & mask;
        let mut sorted: Vec<&(String, u32)> = tokens.iter().collect();
        // Of the same content the one that comes first counts.
        sorted.sort_by_key(|(content, _)| (first(content), Reverse(content.len())));
        let groups: Vec<_> = sorted.chunk_by(|(left, _), (right, _)| first(left) == first(right)).collect();
        let bits = (16 * tokens.len()).next_power_of_two().max(64);
        let mut all = Self {
            bits: vec![0; bits / 64].into(),
            shift: 64 - bits.trailing_zeros(),
            mask,
            alike: vec![Alike::default(); (2 * groups.len()).next_power_of_two()].into(),
            tokens: Box::default(),
            contents: Box::default(),
        };
        let (mut listed, mut contents) = (Vec::with_capacity(tokens.len()), Vec::new());
        for group in groups {
            if group.len() > ALIKE {
                return None;
            }
            let begin = listed.len() as u32;
            for (content, id) in group {
                let (at, bytes) = (u32::try_from(contents.len()).ok()?, content.len() as u32);
                listed.push(Token { at, bytes, id: *id });
                contents.extend_from_slice(content.as_bytes());
            }
            let first = first(&group[0].0);
            let bit = all.bit(first);
            all.bits[bit / 64] |= 1 << (bit % 64);
            let mut at = bit & (all.alike.len() - 1);
            while all.alike[at].end > 0 {
                at = (at + 1) & (all.alike.len() - 1);
            }
            all.alike[at] = Alike { first, begin, end: listed.len() as u32 };
        }
        (all.tokens, all.contents) = (listed.into(), contents.into());
        Some(all)
    }

    /// The tokens that begin with these bytes.
    #[inline(always)]
    fn alike(&self, first: u64, bit: usize) -> &[Token] {
        let mut at = bit & (self.alike.len() - 1);
        loop {
            let Alike { first: known, begin, end } = self.alike[at];
            if known == first || end == 0 {
                return &self.tokens[begin as usize..end as usize];
            }
            at = (at + 1) & (self.alike.len() - 1);
        }
    }

    #[inline(always)]
    fn bit(&self, first: u64) -> usize {
        (first.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// Whether this token stands at `at`, where one stands that begins like it.
    #[inline(always)]
    fn stands(&self, token: &Token, text: &[u8], at: usize) -> bool {
        let bytes = token.bytes as usize;
        let Some(text) = text.get(at..at + bytes) else { return false };
        // What is masked is all there is of the shortest: of 20,000 Chinese words 13,000 have two characters.
        let compared = (u64::BITS - self.mask.leading_zeros()) as usize / 8;
        bytes <= compared || *text == self.contents[token.at as usize..][..bytes]
    }

    fn find(&self, text: &[u8], mut at: usize) -> Option<(usize, usize, u32)> {
        while at < text.len() {
            let first = eight(text, at) & self.mask;
            let bit = self.bit(first);
            if self.bits[bit / 64] >> (bit % 64) & 1 == 1
                && let mut alike = self.alike(first, bit).iter()
                && let Some(token) = alike.find(|token| self.stands(token, text, at))
            {
                return Some((at, at + token.bytes as usize, token.id));
            }
            // A token begins with a character.
            at += match text[at] {
                0..0xc0 => 1,
                0xc0..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
        }
        None
    }
}

/// Eight bytes from `at` on; zeros for those beyond the end.
#[inline(always)]
fn eight(text: &[u8], at: usize) -> u64 {
    match text.get(at..at + 8) {
        Some(eight) => u64::from_le_bytes(eight.try_into().expect("eight bytes")),
        None => text[at..].iter().rev().fold(0, |eight, byte| eight << 8 | u64::from(*byte)),
    }
}

/// What else is asked of a place where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rules {
    /// White space before it is its own.
    lstrip: bool,
    /// White space after it is its own.
    rstrip: bool,
    /// There is no word character beside it.
    single_word: bool,
}

impl Rules {
    /// `None` for a token that has none.
    fn of(token: &Value) -> Option<Option<Self>> {
        let rule = |name: &str| token[name].as_bool();
        let rules = Self { lstrip: rule("lstrip")?, rstrip: rule("rstrip")?, single_word: rule("single_word")? };
        Some((rules.lstrip || rules.rstrip || rules.single_word).then_some(rules))
    }
}

/// Tokens that are looked for in one go.
struct Set {
    finder: Finder,
    rules: HashMap<u32, Rules>,
    /// `\w`, as the reference has it.
    word: Regex,
}

impl Set {
    /// `None` for tokens that only the reference can handle.
    fn new(tokens: &[(String, u32)], rules: &HashMap<u32, Rules>) -> Option<Option<Self>> {
        let Some(finder) = Finder::new(tokens).ok()? else { return Some(None) };
        let ours = |id: &u32| Some((*id, *rules.get(id)?));
        let rules: HashMap<u32, Rules> = tokens.iter().filter_map(|(_, id)| ours(id)).collect();
        // A token that begins in white space which another one has taken: the reference takes text twice, or fails.
        let overlaps = |(content, _): &(String, u32)| content.starts_with(char::is_whitespace);
        if rules.values().any(|rules| rules.rstrip) && tokens.iter().any(overlaps) {
            return None;
        }
        Some(Some(Self { finder, rules, word: Regex::new(r"^\w").ok()? }))
    }

    /// Calls `each` with the segments of `text`.
    fn split<'a>(&self, text: &'a str, mut each: impl FnMut(Segment<'a>)) {
        // Where the last token ended with the white space that is its own, and without.
        let (mut done, mut end) = (0, 0);
        while let Some((mut begin, mut after, id)) = self.finder.find(text, end) {
            end = after;
            if !self.rules.is_empty()
                && let Some(rules) = self.rules.get(&id)
            {
                if rules.single_word && self.is_within_word(text, begin, after) {
                    continue;
                }
                if rules.lstrip {
                    begin = text[..begin].trim_end().len().max(done);
                }
                if rules.rstrip {
                    after += text[after..].len() - text[after..].trim_start().len();
                }
            }
            if begin > done {
                each(Segment::Text(done, &text[done..begin]));
            }
            each(Segment::Token(id));
            done = after;
        }
        if done < text.len() {
            each(Segment::Text(done, &text[done..]));
        }
    }

    fn is_within_word(&self, text: &str, begin: usize, end: usize) -> bool {
        let before = text[..begin].char_indices().next_back().map_or("", |(at, _)| &text[at..begin]);
        self.word.is_match(before) || self.word.is_match(&text[end..])
    }
}

/// The added tokens of a tokenizer.
pub(super) struct AddedTokens {
    raw: Option<Set>,
    normalized: Option<Set>,
    /// What is looked for in normalized text, and the ids.
    in_normalized: Vec<(String, u32)>,
    /// All that is looked for, and whether it has rules.
    looked_for: Vec<(String, bool)>,
}

impl AddedTokens {
    /// The added tokens in tokenizer.json; `id_of` gives the id that the reference gives a token, `normalize` what its
    /// normalizer makes of a content. `None` for tokens that only the reference can handle.
    pub(super) fn new(
        json: &Value,
        id_of: impl Fn(&str) -> Option<u32>,
        normalize: impl Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let (mut raw, mut normalized, mut rules) = (Vec::new(), Vec::new(), HashMap::new());
        let (mut seen, mut ids) = (BTreeSet::new(), BTreeSet::new());
        let mut looked_for = Vec::new();
        for token in json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice) {
            let content = token["content"].as_str().filter(|content| !content.is_empty())?;
            let id = id_of(content)?;
            if !seen.insert(content) || !ids.insert(id) {
                return None;
            }
            if let Some(of_token) = Rules::of(token)? {
                rules.insert(id, of_token);
            }
            let (list, content) = match token["normalized"].as_bool()? {
                true => (&mut normalized, normalize(content)?),
                false => (&mut raw, content.to_owned()),
            };
            looked_for.push((content.clone(), rules.contains_key(&id)));
            list.push((content, id));
        }
        let (raw, set) = (Set::new(&raw, &rules)?, Set::new(&normalized, &rules)?);
        Some(Self { raw, normalized: set, in_normalized: normalized, looked_for })
    }

    /// What is looked for in normalized text, and the ids.
    pub(super) fn in_normalized(&self) -> &[(String, u32)] {
        &self.in_normalized
    }

    /// Whether some of these have rules.
    pub(super) fn rules_in_normalized(&self) -> bool {
        self.normalized.as_ref().is_some_and(|set| !set.rules.is_empty())
    }

    /// As much of two texts, one after the other, as tokens across their border could be of.
    pub(super) fn reach<'a>(&self, before: &'a str, after: &'a str) -> (&'a str, &'a str) {
        let longest = self.looked_for.iter().map(|(content, _)| content.len()).max().unwrap_or(0) + 64;
        let begin = (before.len().saturating_sub(longest)..).find(|at| before.is_char_boundary(*at));
        let end = (longest.min(after.len())..).find(|at| after.is_char_boundary(*at));
        (&before[begin.unwrap_or(0)..], &after[..end.unwrap_or(after.len())])
    }

    /// Whether a token can stand across the border between two texts, or, if it has rules or any is asked for, beside it;
    /// tokens are compared as `spelled` spells them.
    pub(super) fn cross(&self, before: &str, after: &str, beside: bool, spelled: impl Fn(&str) -> String) -> bool {
        self.looked_for.iter().any(|(content, has_rules)| {
            let content = spelled(content);
            let mut within = content.char_indices().map(|(at, _)| content.split_at(at)).skip(1);
            within.any(|(begin, end)| before.ends_with(begin) && after.starts_with(end))
                || ((*has_rules || beside) && (before.ends_with(&content) || after.starts_with(&content)))
        })
    }

    /// Calls `each` with the segments of the text as it is.
    pub(super) fn split<'a>(&self, text: &'a str, each: impl FnMut(Segment<'a>)) {
        split(self.raw.as_ref(), text, each);
    }

    /// Calls `each` with the segments of normalized text.
    pub(super) fn split_normalized<'a>(&self, text: &'a str, each: impl FnMut(Segment<'a>)) {
        split(self.normalized.as_ref(), text, each);
    }
}

fn split<'a>(set: Option<&Set>, text: &'a str, mut each: impl FnMut(Segment<'a>)) {
    match set {
        Some(set) => set.split(text, each),
        None if text.is_empty() => {}
        None => each(Segment::Text(0, text)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn many_are_found_as_few_are(
            tokens in prop::collection::vec("[ab中文é]{1,9}", 1..200),
            text in "[abc中文国é]{0,60}",
            shortest in 1usize..9,
        ) {
            let tokens: Vec<(String, u32)> =
                tokens.into_iter().filter(|token| token.len() >= shortest).zip(0..).collect();
            let Some(many) = Many::new(&tokens) else { return Ok(()) };
            let few = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(tokens.iter().map(|(t, _)| t));
            let few = Finder::Few(few.unwrap(), (0..).take(tokens.len()).collect());
            let (mut at, mut found) = (0, true);
            while found {
                let next = many.find(text.as_bytes(), at);
                prop_assert_eq!(next, few.find(&text, at), "{:?} in {:?} from {}", tokens, text, at);
                found = next.is_some();
                at = next.map_or(at, |(_, end, _)| end);
            }
        }
    }
}
