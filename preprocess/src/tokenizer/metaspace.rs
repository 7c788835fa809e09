//! The fast engine for BPE vocabularies in SentencePiece's style (Llama 1 and 2, Mistral, Baichuan, ChatGLM, Gemma): `▁`
//! for a space, and in most of them before a text; bytes for characters without a token. Whether a normalizer puts `▁`
//! there or a pre-tokenizer does (`Metaspace`), by which rules, [`Style`] says.
//!
//! To the reference a whole document is one word. But two characters that stand side by side in no token can never be
//! merged across: there the text is cut, and the pieces (`▁word`, a few Chinese characters) are short, come again, and
//! are cached. Cutting less than possible changes nothing, so which pairs stand side by side is kept in a hashed bitmap.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use memchr::memmem::Finder;
use serde_json::Value;

use super::Engine;
use super::added::{AddedTokens, Segment};
use super::bpe::Merges;
use super::cache::{self, Key};
use super::pieces::{self, Working};
use super::probe::{around, proved};
use super::reference::Reference;
use super::together::{SHORT, Short};
use super::unicode::decode;
use crate::document::Extent;

/// Stands for a space in the vocabulary.
const META: char = '▁';

/// No id.
const NONE: u32 = u32::MAX;

/// Bits of the bitmap of adjacent characters: 256 KiB; Baichuan2's 290,000 pairs fill a seventh of it.
const BITS: usize = 1 << 21;

/// Characters that stand side by side in a token; a superset of them.
struct Adjacent {
    /// 1 for pairs of ASCII: a load and no shift.
    ascii: Box<[u8; 128 * 128]>,
    others: Box<[u64]>,
}

impl Adjacent {
    fn of<'a>(tokens: impl Iterator<Item = &'a str>) -> Self {
        let mut adjacent = Self { ascii: Box::new([0; 128 * 128]), others: vec![0; BITS / 64].into_boxed_slice() };
        for token in tokens {
            let characters = token.chars().map(|character| as_space(character.into()));
            for (left, right) in characters.clone().zip(characters.skip(1)) {
                if left | right < 128 {
                    adjacent.ascii[(left << 7 | right) as usize] = 1;
                } else {
                    let bit = Self::bit(left, right);
                    adjacent.others[bit / 64] |= 1 << (bit % 64);
                }
            }
        }
        adjacent
    }

    #[inline(always)]
    fn contains(&self, left: u32, right: u32) -> bool {
        if left | right < 128 {
            return self.ascii[(left << 7 | right) as usize] != 0;
        }
        let bit = Self::bit(left, right);
        self.others[bit / 64] >> (bit % 64) & 1 == 1
    }

    #[inline(always)]
    fn bit(left: u32, right: u32) -> usize {
        let pair = u64::from(left) << 32 | u64::from(right);
        (pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS.trailing_zeros())) as usize
    }
}

const SPACE: u32 = ' ' as u32;

/// A space and the character that stands for it are one.
#[inline(always)]
fn as_space(character: u32) -> u32 {
    if character == META as u32 { SPACE } else { character }
}

/// Where `▁` comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Style {
    /// The normalizer makes it of spaces: added tokens are looked for after that.
    normalizes: bool,
    /// Where one is put before text.
    prefix: Prefix,
    /// Nothing is merged with what stands before a `▁`.
    splits: bool,
}

/// Before which text a `▁` is put that does not stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefix {
    /// By the normalizer: before each stretch between added tokens that it does not look for itself.
    Stretch,
    /// By the pre-tokenizer: before each stretch between added tokens that does not begin with one.
    Each,
    /// The same, at the beginning of a document only.
    First,
    None,
}

impl Style {
    /// The style of a tokenizer.json of the recognised form.
    fn recognise(json: &Value) -> Option<Self> {
        let meta = META.to_string();
        let steps = match &json["normalizer"] {
            Value::Null => &[],
            normalizer if normalizer["type"] == "Sequence" => normalizer["normalizers"].as_array()?.as_slice(),
            normalizer => std::slice::from_ref(normalizer),
        };
        let is_prepend = |step: &Value| step["type"] == "Prepend" && step["prepend"] == meta.as_str();
        let is_replace = |step: &Value| {
            step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == meta.as_str()
        };
        let pre_tokenizer = &json["pre_tokenizer"];
        let by_normalizer = match steps {
            [] => None,
            [replace] if is_replace(replace) => Some(Prefix::None),
            [prepend, replace] if is_prepend(prepend) && is_replace(replace) => Some(Prefix::Stretch),
            _ => return None,
        };
        if let Some(prefix) = by_normalizer {
            // Gemma's splits at spaces, of which there are none any more.
            let does_nothing = pre_tokenizer.is_null()
                || (pre_tokenizer["type"] == "Split"
                    && pre_tokenizer["pattern"]["String"] == " "
                    && pre_tokenizer["invert"] == false);
            return does_nothing.then_some(Self { normalizes: true, prefix, splits: false });
        }
        if pre_tokenizer["type"] != "Metaspace" || pre_tokenizer["replacement"] != meta.as_str() {
            return None;
        }
        let prefix = match pre_tokenizer["prepend_scheme"].as_str()? {
            "always" => Prefix::Each,
            "first" => Prefix::First,
            "never" => Prefix::None,
            _ => return None,
        };
        Some(Self { normalizes: false, prefix, splits: pre_tokenizer["split"].as_bool()? })
    }

    /// What the normalizer makes of `text`.
    fn normalize(self, text: &str) -> String {
        let prefix = if self.prefix == Prefix::Stretch { "▁" } else { "" };
        let text = if self.normalizes { text.replace(' ', "▁") } else { text.to_owned() };
        format!("{prefix}{text}")
    }
}

/// The engine; see the module's text.
pub(super) struct Metaspace {
    reference: Box<Reference>,
    style: Style,
    added: AddedTokens,
    marked: Option<Marked>,
    adjacent: Adjacent,
    model: Model,
    around: (Vec<u32>, Vec<u32>),
}

/// The added tokens that are looked for in normalized text, all of which begin with `▁`: by what comes after it, with
/// spaces.
struct Marked {
    automaton: AhoCorasick,
    /// The bytes that come first.
    first: [bool; 256],
    ids: Vec<u32>,
    /// Finds `▁`.
    mark: Finder<'static>,
}

impl Marked {
    /// `None` if there are none, or others too; an error if there are too many.
    fn new(style: Style, added: &AddedTokens) -> Result<Option<Self>, aho_corasick::BuildError> {
        let tokens = added.in_normalized();
        if style.prefix != Prefix::Stretch || tokens.is_empty() || added.rules_in_normalized() {
            return Ok(None);
        }
        let contents: Vec<String> =
            tokens.iter().map(|(token, _)| token.replacen(META, "", 1).replace(META, " ")).collect();
        let mut first = [false; 256];
        contents.iter().filter_map(|content| content.bytes().next()).for_each(|byte| first[usize::from(byte)] = true);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Anchored)
            .build(&contents)?;
        let (ids, mark) = (tokens.iter().map(|(_, id)| *id).collect(), Finder::new("▁"));
        Ok(Some(Self { automaton, first, ids, mark }))
    }

    /// The longest of them whose text begins at `at`: where it ends, and its id.
    fn find(&self, text: &[u8], at: usize) -> Option<(usize, u32)> {
        let _ = text.get(at).filter(|byte| self.first[usize::from(**byte)])?;
        let input = Input::new(text).range(at..).anchored(Anchored::Yes);
        let found = self.automaton.find(input)?;
        Some((found.end(), self.ids[found.pattern().as_usize()]))
    }
}

/// What turns a piece into ids.
struct Model {
    /// The id of a character, by its code point; [`NONE`] where it has none.
    characters: Box<[u32]>,
    /// The ids of the bytes of characters without a token.
    bytes: [u32; 256],
    merges: Merges,
}

impl pieces::Model for Model {
    fn prefetch(&self, _key: Key) {}

    fn token(&self, _key: Key, _piece: &[u8]) -> Option<u32> {
        None
    }

    fn begin(&self, piece: &[u8], symbols: &mut Vec<u32>, short: &mut Short) -> bool {
        let mut at = 0;
        while at < piece.len() {
            let (character, length) = decode(piece, at);
            let id = self.characters.get(if character == SPACE { META as usize } else { character as usize });
            match id {
                Some(id) if *id != NONE => symbols.push(*id),
                _ => symbols.extend(piece[at..at + length].iter().map(|byte| self.bytes[usize::from(*byte)])),
            }
            at += length;
        }
        let is_short = symbols.len() <= SHORT;
        if is_short {
            short.begin_symbols(symbols, &self.merges);
        }
        is_short
    }

    fn merges(&self) -> &Merges {
        &self.merges
    }
}

impl Metaspace {
    /// The fast engine for the tokenizer that `reference` was loaded from; `Err` gives the reference back.
    pub(super) fn new(reference: Box<Reference>, json: &Value) -> Result<Self, Box<Reference>> {
        let Some(style) = Style::recognise(json) else { return Err(reference) };
        let Some((added, model, adjacent)) = recognise(json, style, &reference) else { return Err(reference) };
        let Some(around) = around(reference.as_ref()) else { return Err(reference) };
        let Ok(marked) = Marked::new(style, &added) else { return Err(reference) };
        proved(Self { reference, style, added, marked, adjacent, model, around }, |engine| engine.reference)
    }

    /// A stretch of the text as it is, which begins at `offset` of the document.
    fn encode_text(&self, offset: usize, text: &str, working: &mut Working, ids: &mut Vec<u32>) {
        match (&self.marked, self.style.prefix) {
            (Some(marked), _) if marked.mark.find(text.as_bytes()).is_none() => {
                self.encode_words(marked, text.as_bytes(), working, ids);
            }
            (None, Prefix::Stretch) if self.added.in_normalized().is_empty() => {
                self.encode_marked(text.as_bytes(), working, ids);
            }
            (_, Prefix::Stretch) => self.encode_normalized(&self.style.normalize(text), Some(offset), working, ids),
            _ if self.added.in_normalized().is_empty() || !self.style.normalizes => {
                self.encode_normalized(text, Some(offset), working, ids);
            }
            _ => self.encode_normalized(&self.style.normalize(text), Some(offset), working, ids),
        }
    }

    /// The rest of a stretch of which the beginning was in the part of the document before this.
    fn go_on(&self, text: &str, working: &mut Working, ids: &mut Vec<u32>) {
        let text = if self.style.normalizes { Cow::Owned(text.replace(' ', "▁")) } else { Cow::Borrowed(text) };
        self.encode_normalized(&text, None, working, ids);
    }

    /// A stretch of normalized text, which begins at `offset` of the document; the rest of one, if it does not begin here.
    fn encode_normalized(&self, text: &str, offset: Option<usize>, working: &mut Working, ids: &mut Vec<u32>) {
        self.added.split_normalized(text, |segment| match segment {
            Segment::Text(begin, part) => {
                let is_asked = match self.style.prefix {
                    _ if begin == 0 && offset.is_none() => false,
                    Prefix::Each => true,
                    Prefix::First => begin == 0 && offset == Some(0),
                    Prefix::Stretch | Prefix::None => false,
                };
                if is_asked && !part.starts_with([' ', META]) {
                    self.encode_marked(part.as_bytes(), working, ids);
                } else {
                    self.encode_pieces(part.as_bytes(), 0, working, ids);
                }
            }
            Segment::Token(id) => ids.push(id),
        });
    }

    /// Text before which the normalizer puts `▁`, and in which there is none yet.
    fn encode_words(&self, marked: &Marked, text: &[u8], working: &mut Working, ids: &mut Vec<u32>) {
        // Tokens begin with `▁`, so at the beginning and at spaces; the rest of the text is not looked at, nor copied.
        let (mut begin, mut is_marked) = (0, true);
        let mut encode = |begin: usize, end: usize, is_marked: bool, ids: &mut Vec<u32>| match is_marked {
            true => self.encode_marked(&text[begin..end], working, ids),
            false => self.encode_pieces(&text[begin..end], 0, working, ids),
        };
        if let Some((end, id)) = marked.find(text, 0) {
            ids.push(id);
            (begin, is_marked) = (end, false);
        }
        let mut at = begin;
        while let Some(found) = memchr::memchr(b' ', &text[at..]) {
            let space = at + found;
            at = space + 1;
            if let Some((end, id)) = marked.find(text, at) {
                encode(begin, space, is_marked, ids);
                ids.push(id);
                (begin, is_marked, at) = (end, false, end);
            }
        }
        encode(begin, text.len(), is_marked, ids);
    }

    /// Text before which there is a `▁` that does not stand there.
    fn encode_marked(&self, text: &[u8], working: &mut Working, ids: &mut Vec<u32>) {
        let end = self.piece_end(SPACE, text, 0);
        let mut first = std::mem::take(&mut working.first);
        first.clear();
        first.push(b' ');
        first.extend_from_slice(&text[..end]);
        let key = cache::key(&first, 0, first.len(), false);
        working.push(&first, (0, first.len()), key, ids, &self.model);
        working.flush(&first, ids, &self.model);
        working.first = first;
        self.encode_pieces(text, end, working, ids);
    }

    /// Where the piece ends that goes on at `at` after the character `left`.
    #[inline(always)]
    fn piece_end(&self, mut left: u32, text: &[u8], mut at: usize) -> usize {
        while let Some(byte) = text.get(at) {
            let (right, length) = if *byte < 0x80 { (u32::from(*byte), 1) } else { decode(text, at) };
            let right = as_space(right);
            if !self.adjacent.contains(left, right) || (right == SPACE && self.style.splits) {
                break;
            }
            left = right;
            at += length;
        }
        at
    }

    /// The pieces of `text` from `begin` on.
    fn encode_pieces(&self, text: &[u8], mut begin: usize, working: &mut Working, ids: &mut Vec<u32>) {
        while begin < text.len() {
            let (first, length) = decode(text, begin);
            let end = self.piece_end(as_space(first), text, begin + length);
            let key = cache::key(text, begin, end, false);
            working.push(text, (begin, end), key, ids, &self.model);
            begin = end;
        }
        working.flush(text, ids, &self.model);
    }
}

impl Engine for Metaspace {
    fn encode_part(
        &self,
        text: &str,
        extent: Extent,
        add_special_tokens: bool,
        working: &mut Working,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        if add_special_tokens && extent.begins {
            ids.extend_from_slice(&self.around.0);
        }
        self.added.split(text, |segment| match segment {
            Segment::Text(0, text) if !extent.begins => self.go_on(text, working, ids),
            Segment::Text(offset, text) => self.encode_text(offset, text, working, ids),
            Segment::Token(id) => ids.push(id),
        });
        if add_special_tokens && extent.ends {
            ids.extend_from_slice(&self.around.1);
        }
        Ok(())
    }

    fn can_cut_anywhere(&self) -> bool {
        true
    }

    fn can_cut(&self, before: &str, after: &str) -> bool {
        let (Some(left), Some(right)) = (before.chars().next_back(), after.chars().next()) else { return false };
        let (left, right) = (as_space(left.into()), as_space(right.into()));
        let is_border = !self.adjacent.contains(left, right) || (right == SPACE && self.style.splits);
        let (before, after) = self.added.reach(before, after);
        let with_spaces = |text: &str| text.replace(META, " ");
        let (before, after) = (with_spaces(before), with_spaces(after));
        // What comes after a token has a `▁` before it, and a token may begin with one that does not stand there.
        let cross = |spelled: &dyn Fn(&str) -> String| self.added.cross(&before, &after, true, spelled);
        let without_mark = |token: &str| with_spaces(token.strip_prefix(META).unwrap_or(token));
        is_border && !cross(&with_spaces) && !cross(&without_mark)
    }

    fn reference(&self) -> &Reference {
        &self.reference
    }
}

/// The parts of a tokenizer.json of the recognised form.
fn recognise(json: &Value, style: Style, reference: &Reference) -> Option<(AddedTokens, Model, Adjacent)> {
    let model = &json["model"];
    let is_unset = |field: &str| matches!(&model[field], Value::Null) || model[field] == "";
    if model["type"] != "BPE"
        || model["byte_fallback"] != true
        || model["ignore_merges"] == true
        || model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0)
        || !is_unset("continuing_subword_prefix")
        || !is_unset("end_of_word_suffix")
        || reference.largest_id() >= cache::ID_LIMIT
    {
        return None;
    }
    if !matches!(json["post_processor"]["type"].as_str(), None | Some("TemplateProcessing")) {
        return None;
    }
    let vocab = model["vocab"].as_object()?;
    let id = |token: &str| vocab.get(token)?.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut bytes = [0; 256];
    for (byte, slot) in bytes.iter_mut().enumerate() {
        let is_character = |byte: u8| byte < 0x80 && id(&char::from(byte).to_string()).is_some();
        *slot = match id(&format!("<0x{byte:02X}>")) {
            None if is_character(byte as u8) => NONE, // never asked for; Gemma's tabulator
            id => id?,
        };
    }
    let mut characters = Vec::new();
    for token in vocab.keys() {
        let mut all = token.chars();
        if let (Some(only), None) = (all.next(), all.next()) {
            let only = only as usize;
            characters.resize(characters.len().max(only + 1), NONE);
            characters[only] = id(token)?;
        }
    }
    let merges = merges(model)?;
    let by_bytes = |token: &str| id(token).is_some_and(|id| bytes.contains(&id));
    let mut triples = Vec::with_capacity(merges.len());
    for (left, right) in &merges {
        // Cuts do not look at bytes; no vocabulary merges them.
        if by_bytes(left) || by_bytes(right) {
            return None;
        }
        triples.push((id(left)?, id(right)?, id(&format!("{left}{right}"))?));
    }
    let added = AddedTokens::new(json, |token| reference.id_of(token), |content| Some(style.normalize(content)))?;
    let adjacent = Adjacent::of(vocab.keys().map(String::as_str));
    let characters = characters.into_boxed_slice();
    Some((added, Model { characters, bytes, merges: Merges::new(&triples)? }, adjacent))
}

/// The merges in either spelling: `"a b"` or `["a", "b"]`.
pub(super) fn merges(model: &Value) -> Option<Vec<(&str, &str)>> {
    fn pair(merge: &Value) -> Option<(&str, &str)> {
        match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [left, right] => Some((left.as_str()?, right.as_str()?)),
                _ => None,
            },
            _ => None,
        }
    }
    model["merges"].as_array()?.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::{ids_in_parts, long};
    use super::*;

    /// A tokenizer in SentencePiece's style with some merges and added tokens, one of them looked for in normalized text.
    fn tokenizer(normalizer: &Value, pre_tokenizer: &Value) -> Value {
        let mut vocab = serde_json::Map::new();
        let mut add = |token: String| {
            let id = vocab.len();
            vocab.entry(token).or_insert_with(|| id.into());
        };
        ["<unk>", "<s>", "</s>"].iter().for_each(|token| add((*token).to_owned()));
        (0..256).for_each(|byte| add(format!("<0x{byte:02X}>")));
        "▁abcdehlot中文国人.,".chars().for_each(|character| add(character.to_string()));
        let mut merges = Vec::new();
        for (left, right) in
            [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "b"), ("▁", "a"), ("中", "国"), ("中国", "人"), ("▁", "▁")]
        {
            add(format!("{left}{right}"));
            merges.push(json!([left, right]));
        }
        let added = |id: usize, content: &str, normalized: bool| {
            json!({"id": id, "content": content, "special": !normalized, "normalized": normalized,
                   "single_word": false, "lstrip": false, "rstrip": false})
        };
        let next = vocab.len();
        let template = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        });
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<unk>", false), added(1, "<s>", false), added(2, "</s>", false),
                             added(next, "文文", true), added(next + 1, "<|x|>", false),
                             added(next + 2, "文 文", true), added(next + 3, " 国", true), added(next + 4, "文文文", true)],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": template,
            "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                      "vocab": vocab, "merges": merges}
        })
    }

    /// A tokenizer of each style.
    fn styles() -> Vec<Value> {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        let split =
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        let mut all = vec![tokenizer(&both, &Value::Null), tokenizer(&replace, &split)];
        for scheme in ["always", "first", "never"] {
            all.extend([true, false].map(|split| tokenizer(&Value::Null, &metaspace(scheme, split))));
        }
        all
    }

    fn engines(json: &Value) -> (Metaspace, Reference) {
        let text = json.to_string();
        let load = || Reference::load(Path::new("tokenizer.json"), text.as_bytes()).unwrap();
        (Metaspace::new(Box::new(load()), json).ok().expect("a recognised form"), load())
    }

    /// Engines and references of a tokenizer of each style.
    static RECOGNISED: LazyLock<Vec<(Metaspace, Reference)>> = LazyLock::new(|| styles().iter().map(engines).collect());

    #[test]
    fn unrecognised_forms_are_left_to_the_reference() {
        let other = |normalizer: Value, pre_tokenizer: Value| {
            let json = tokenizer(&normalizer, &pre_tokenizer);
            let reference = Reference::load(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap();
            Metaspace::new(Box::new(reference), &json).is_err()
        };
        let metaspace = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        assert!(other(json!({"type": "NFKC"}), Value::Null));
        assert!(other(Value::Null, Value::Null));
        assert!(other(Value::Null, metaspace));
        assert!(other(replace, json!({"type": "WhitespaceSplit"})));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn added_tokens_follow_their_rules(
            style in 0usize..8,
            rules in prop::collection::vec(0u8..16, 8),
            texts in prop::collection::vec(r"(<a>|▁?<b>|ab|b |c|中文|中|_|[abc中_▁\u{a0}\n]| {1,3}){0,20}", 1..4),
        ) {
            let mut json = styles().swap_remove(style);
            let added = json["added_tokens"].as_array_mut().unwrap();
            for (content, rules) in ["<a>", "<b>", "ab", "b ", "c", "中文中", "中", "_"].iter().zip(rules) {
                let has = |bit: u8| rules >> bit & 1 == 1;
                added.push(json!({"id": 400 + added.len(), "content": content, "special": false, "lstrip": has(0),
                                  "rstrip": has(1), "single_word": has(2), "normalized": has(3)}));
            }
            // Begins with white space.
            added.retain(|token| token["content"] != " 国");
            let (fast, reference) = engines(&json);
            for text in texts {
                let (mut working, mut ids, mut expected) = (Working::default(), vec![], vec![]);
                fast.encode(&text, false, &mut working, &mut ids).unwrap();
                reference.encode(&text, false, &mut working, &mut expected).unwrap();
                prop_assert_eq!(&ids, &expected, "{:?} {:?}", fast.style, text);
                prop_assert_eq!(&ids_in_parts(&fast, &text, false).0, &expected, "in parts {:?}", text);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn parts_have_the_ids_of_the_whole(text in long(), special in any::<bool>()) {
            for (fast, reference) in RECOGNISED.iter() {
                let mut expected = Vec::new();
                reference.encode(&text, special, &mut Working::default(), &mut expected).unwrap();
                let (ids, _) = ids_in_parts(fast, &text, special);
                prop_assert_eq!(&ids, &expected, "{:?}", text);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn ids_are_the_references(
            texts in prop::collection::vec(
                prop_oneof![
                    "[abcdehlot ,.]{0,30}", "[▁ the]{0,8}", "[中国人文字▁ ]{0,9}", any::<String>(),
                    Just("<s>文文 文文<|x|>▁文文".to_owned()), Just("文文文 文 文文 a文文  文文 中 国中".to_owned()),
                    "[中国文a ]{0,12}",
                ],
                0..6,
            ),
            special in any::<bool>(),
        ) {
            let text = texts.concat();
            for (fast, reference) in RECOGNISED.iter() {
                let (mut working, mut ids, mut expected) = (Working::default(), vec![7], vec![7]);
                fast.encode(&text, special, &mut working, &mut ids).unwrap();
                reference.encode(&text, special, &mut working, &mut expected).unwrap();
                prop_assert_eq!(ids, expected, "{:?} {:?}", fast.style, text);
            }
        }
    }
}
