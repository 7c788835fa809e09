//! The fast engine for BPE vocabularies in SentencePiece's style (Llama 1 and 2, Mistral, Baichuan, ChatGLM): no
//! pre-tokenizer, `▁` for a space and before each stretch of text, bytes for characters without a token.
//!
//! To the reference a whole document is one word. But two characters that stand side by side in no token can never be
//! merged across: there the text is cut, and the pieces (`▁word`, a few Chinese characters) are short, come again, and
//! are cached. Cutting less than possible changes nothing, so which pairs stand side by side is kept in a hashed bitmap.

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

/// The engine; see the module's text.
pub(super) struct Metaspace {
    reference: Box<Reference>,
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
    /// `None` if there are none; an error if there are too many.
    fn new(tokens: &[(String, u32)]) -> Result<Option<Self>, aho_corasick::BuildError> {
        if tokens.is_empty() {
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
        let Some((added, model, adjacent)) = recognise(json, &reference) else { return Err(reference) };
        let Some(around) = around(reference.as_ref()) else { return Err(reference) };
        let Ok(marked) = Marked::new(added.in_normalized()) else { return Err(reference) };
        proved(Self { reference, added, marked, adjacent, model, around }, |engine| engine.reference)
    }

    /// A stretch of the text as it is: the normalizer puts `▁` before it.
    fn encode_text(&self, text: &str, working: &mut Working, ids: &mut Vec<u32>) {
        let Some(marked) = &self.marked else {
            self.encode_marked(text.as_bytes(), working, ids);
            return;
        };
        if self.added.rules_in_normalized() || marked.mark.find(text.as_bytes()).is_some() {
            let normalized = format!("{META}{}", text.replace(' ', META.encode_utf8(&mut [0; 4])));
            self.added.split_normalized(&normalized, |segment| match segment {
                Segment::Text(_, text) => self.encode_pieces(text.as_bytes(), 0, working, ids),
                Segment::Token(id) => ids.push(id),
            });
            return;
        }
        // Tokens begin with `▁`, so at the beginning and at spaces; the rest of the text is not looked at, nor copied.
        let text = text.as_bytes();
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
            if !self.adjacent.contains(left, right) {
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
    fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        working: &mut Working,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        if add_special_tokens {
            ids.extend_from_slice(&self.around.0);
        }
        self.added.split(text, |segment| match segment {
            Segment::Text(_, text) => self.encode_text(text, working, ids),
            Segment::Token(id) => ids.push(id),
        });
        if add_special_tokens {
            ids.extend_from_slice(&self.around.1);
        }
        Ok(())
    }

    fn reference(&self) -> &Reference {
        &self.reference
    }
}

/// The parts of a tokenizer.json of the recognised form.
fn recognise(json: &Value, reference: &Reference) -> Option<(AddedTokens, Model, Adjacent)> {
    let model = &json["model"];
    let is_unset = |field: &str| matches!(&model[field], Value::Null) || model[field] == "";
    if model["type"] != "BPE"
        || model["byte_fallback"] != true
        || model["ignore_merges"] == true
        || model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0)
        || !is_unset("continuing_subword_prefix")
        || !is_unset("end_of_word_suffix")
        || !json["pre_tokenizer"].is_null()
        || reference.largest_id() >= cache::ID_LIMIT
    {
        return None;
    }
    let normalizers = json["normalizer"]["normalizers"].as_array()?;
    let [prepend, replace] = normalizers.as_slice() else { return None };
    let meta = META.to_string();
    if prepend["type"] != "Prepend" || prepend["prepend"] != meta.as_str() {
        return None;
    }
    if replace["type"] != "Replace" || replace["pattern"]["String"] != " " || replace["content"] != meta.as_str() {
        return None;
    }
    if !matches!(json["post_processor"]["type"].as_str(), None | Some("TemplateProcessing")) {
        return None;
    }
    let vocab = model["vocab"].as_object()?;
    let id = |token: &str| vocab.get(token)?.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut bytes = [0; 256];
    for (byte, slot) in bytes.iter_mut().enumerate() {
        *slot = id(&format!("<0x{byte:02X}>"))?;
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
    let by_bytes = |token: &str| bytes.contains(&id(token).unwrap_or(u32::MAX));
    let mut triples = Vec::with_capacity(merges.len());
    for (left, right) in &merges {
        // Cuts do not look at bytes; no vocabulary merges them.
        if by_bytes(left) || by_bytes(right) {
            return None;
        }
        triples.push((id(left)?, id(right)?, id(&format!("{left}{right}"))?));
    }
    let normalize = |content: &str| Some(format!("{META}{}", content.replace(' ', &meta)));
    let added = AddedTokens::new(json, |token| reference.id_of(token), normalize)?;
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

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A tokenizer in SentencePiece's style with some merges and added tokens, one of them looked for in normalized text.
    fn tokenizer() -> Vec<u8> {
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
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<unk>", false), added(1, "<s>", false), added(2, "</s>", false),
                             added(next, "文文", true), added(next + 1, "<|x|>", false),
                             added(next + 2, "文 文", true), added(next + 3, " 国", true), added(next + 4, "文文文", true)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "post_processor": template,
            "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                      "vocab": vocab, "merges": merges}
        });
        serde_json::to_vec(&json).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn added_tokens_follow_their_rules(
            rules in prop::collection::vec(0u8..16, 8),
            texts in prop::collection::vec(r"(<a>|▁?<b>|ab|b |c|中文|中|_|[abc中_▁\u{a0}\n]| {1,3}){0,20}", 1..4),
        ) {
            let mut json: Value = serde_json::from_slice(&tokenizer()).unwrap();
            let added = json["added_tokens"].as_array_mut().unwrap();
            for (content, rules) in ["<a>", "<b>", "ab", "b ", "c", "中文中", "中", "_"].iter().zip(rules) {
                let has = |bit: u8| rules >> bit & 1 == 1;
                added.push(json!({"id": 400 + added.len(), "content": content, "special": false, "lstrip": has(0),
                                  "rstrip": has(1), "single_word": has(2), "normalized": has(3)}));
            }
            let json = json.to_string();
            let load = || Reference::load(Path::new("tokenizer.json"), json.as_bytes()).unwrap();
            let fast = Metaspace::new(Box::new(load()), &serde_json::from_str(&json).unwrap()).ok().unwrap();
            for text in texts {
                let (mut working, mut ids, mut expected) = (Working::default(), vec![], vec![]);
                fast.encode(&text, false, &mut working, &mut ids).unwrap();
                load().encode(&text, false, &mut working, &mut expected).unwrap();
                prop_assert_eq!(ids, expected, "{:?}", text);
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
            let json = tokenizer();
            let load = || Reference::load(Path::new("tokenizer.json"), &json).unwrap();
            let fast = Metaspace::new(Box::new(load()), &serde_json::from_slice(&json).unwrap()).ok().unwrap();
            let (mut working, mut ids, mut expected) = (Working::default(), vec![7], vec![7]);
            let text = texts.concat();
            fast.encode(&text, special, &mut working, &mut ids).unwrap();
            load().encode(&text, special, &mut working, &mut expected).unwrap();
            prop_assert_eq!(ids, expected, "{:?}", text);
        }
    }
}
