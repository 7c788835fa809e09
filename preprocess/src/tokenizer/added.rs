//! Added tokens: found in text before anything else, all of them at once by an automaton.
//!
//! As in the `tokenizers` crate they are looked for twice: tokens that are not `normalized` in the text as it is, the
//! others in what the normalizer makes of the stretches between. A text that holds a token with further rules
//! (`lstrip`, `rstrip`, `single_word`) is the reference's.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

/// A stretch of text, or an added token in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Finds tokens in text: of those that begin first, the longest.
struct Finder {
    automaton: AhoCorasick,
    tokens: Vec<(String, u32)>,
}

impl Finder {
    /// `None` if there is nothing to find; an error if there is too much.
    fn new(tokens: Vec<(String, u32)>) -> Result<Option<Self>, aho_corasick::BuildError> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let builder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).clone();
        let automaton = builder.build(tokens.iter().map(|(content, _)| content))?;
        Ok(Some(Self { automaton, tokens }))
    }
}

/// The added tokens of a tokenizer.
pub(super) struct AddedTokens {
    raw: Option<Finder>,
    normalized: Option<Finder>,
    ruled: Option<AhoCorasick>,
}

impl AddedTokens {
    /// The added tokens in tokenizer.json; `id_of` gives the id that the reference gives a token, `normalize` what its
    /// normalizer makes of a content. `None` for tokens that only the reference can handle.
    pub(super) fn new(
        json: &Value,
        id_of: impl Fn(&str) -> Option<u32>,
        normalize: impl Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let (mut raw, mut normalized, mut ruled) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for token in json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice) {
            let content = token["content"].as_str().filter(|content| !content.is_empty())?;
            if !seen.insert(content) {
                return None;
            }
            let id = id_of(content)?;
            let pattern = if token["normalized"].as_bool()? { Some(normalize(content)?) } else { None };
            if ["lstrip", "rstrip", "single_word"].iter().any(|rule| token[rule] != Value::Bool(false)) {
                // What is looked for in normalized text must show in the text as it is.
                if pattern.is_some_and(|_| content.contains([' ', '▁'])) {
                    return None;
                }
                ruled.push(content);
            } else if let Some(pattern) = pattern {
                normalized.push((pattern, id));
            } else {
                raw.push((content.to_owned(), id));
            }
        }
        let ruled = if ruled.is_empty() { None } else { Some(AhoCorasick::new(&ruled).ok()?) };
        Some(Self { raw: Finder::new(raw).ok()?, normalized: Finder::new(normalized).ok()?, ruled })
    }

    /// Whether only the reference can find the added tokens in this text.
    pub(super) fn needs_reference(&self, text: &str) -> bool {
        self.ruled.as_ref().is_some_and(|ruled| ruled.is_match(text))
    }

    /// What is looked for in normalized text, and the ids.
    pub(super) fn in_normalized(&self) -> &[(String, u32)] {
        self.normalized.as_ref().map_or(&[], |finder| &finder.tokens)
    }

    /// Calls `each` with the segments of the text as it is.
    pub(super) fn split(&self, text: &str, each: impl FnMut(Segment<'_>)) {
        split(self.raw.as_ref(), text, each);
    }

    /// Calls `each` with the segments of normalized text.
    pub(super) fn split_normalized(&self, text: &str, each: impl FnMut(Segment<'_>)) {
        split(self.normalized.as_ref(), text, each);
    }
}

fn split(finder: Option<&Finder>, text: &str, mut each: impl FnMut(Segment<'_>)) {
    let mut end = 0;
    for (found, finder) in
        finder.into_iter().flat_map(|finder| finder.automaton.find_iter(text).map(move |found| (found, finder)))
    {
        if found.start() > end {
            each(Segment::Text(&text[end..found.start()]));
        }
        each(Segment::Token(finder.tokens[found.pattern().as_usize()].1));
        end = found.end();
    }
    if end < text.len() {
        each(Segment::Text(&text[end..]));
    }
}
