//! The fast engine for byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek, GPT-4o): words found by scanners, cut further
//! where nothing can be merged across, ids of a piece from a cache.
//!
//! The reference spends most of its time on strings with alignments that ids do not need. Here only what
//! decides ids is left, and only where that is provably the same: the pre-tokenizer is of a recognised form and the
//! normalizer is NFC or none. A tokenizer for which both engines differ on the probes is the reference's.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

use super::Engine;
use super::added::{AddedTokens, Segment};
use super::bpe::{BytePairs, Merges, Scratch};
use super::cache::{self, Key};
use super::characters::Characters;
use super::crossing::Crossings;
use super::guard::guarded;
use super::line::Line;
use super::metaspace::merges;
use super::nfc;
use super::pieces::{self, Working};
use super::probe::{around, proved};
use super::reference::Reference;
use super::together::{self, SHORT, Short};
use super::unicode::{Classes, decode};
use super::vocabulary::Vocabulary;
use super::windows::{Sink, Vectors};
use super::words::Words;
use crate::document::Extent;

/// The engine; see the module's text.
pub(super) struct ByteLevel {
    reference: Box<Reference>,
    words: Words,
    classes: Classes,
    vectors: Vectors,
    added: AddedTokens,
    /// Whether the normalizer is NFC; otherwise there is none.
    nfc: bool,
    model: Model,
    /// What `add_special_tokens` puts before and after a document.
    around: (Vec<u32>, Vec<u32>),
}

/// What turns a piece into ids.
pub(super) struct Model {
    /// The id of each byte.
    bytes: [u32; 256],
    characters: Characters,
    crossings: Crossings,
    merges: Merges,
    pairs: BytePairs,
    vocabulary: Vocabulary,
    /// A word that is a token is not merged.
    ignores_merges: bool,
}

impl Model {
    /// The `model` of a tokenizer.json of the recognised form.
    pub(super) fn new(model: &Value) -> Option<Self> {
        let is_unset = |field: &str| model[field].is_null() || model[field] == "";
        if !is_unset("continuing_subword_prefix") || !is_unset("end_of_word_suffix") {
            return None;
        }
        let vocab = model["vocab"].as_object()?;
        let id = |token: &str| vocab.get(token)?.as_u64().and_then(|id| u32::try_from(id).ok());
        let byte_chars = byte_chars();
        let mut bytes = [0; 256];
        for (slot, character) in bytes.iter_mut().zip(byte_chars) {
            *slot = id(&character.to_string())?;
        }
        let pairs = merges(model)?;
        let triples = pairs.iter().map(|(left, right)| Some((id(left)?, id(right)?, id(&format!("{left}{right}"))?)));
        let merges = Merges::new(&triples.collect::<Option<Vec<_>>>()?)?;
        let of_char: HashMap<char, u8> = byte_chars.into_iter().zip(0..=u8::MAX).collect();
        let as_bytes =
            |token: &str| token.chars().map(|character| of_char.get(&character).copied()).collect::<Option<Vec<u8>>>();
        let tokens: Vec<(Vec<u8>, u32)> =
            vocab.keys().filter_map(|token| Some((as_bytes(token)?, id(token)?))).collect();
        let crossings = Crossings::of(tokens.iter().map(|(bytes, _)| bytes.as_slice()));
        let merged: Vec<_> =
            pairs.iter().map(|(left, right)| Some((as_bytes(left)?, as_bytes(right)?))).collect::<Option<_>>()?;
        let merged = merged.iter().map(|(left, right)| (left.as_slice(), right.as_slice()));
        let characters = Characters::new(&bytes, &merges, merged);
        let pairs = merges.byte_pairs(&bytes);
        let gives = merging_gives(&tokens, &bytes, &pairs, &merges);
        let tokens = tokens.iter().zip(gives).map(|((bytes, id), gives)| (bytes.as_slice(), *id, gives));
        let vocabulary = Vocabulary::new(tokens);
        let ignores_merges = model["ignore_merges"] == true;
        Some(Self { bytes, characters, crossings, merges, pairs, vocabulary, ignores_merges })
    }
}

/// Of each token whether merging its bytes gives its id.
fn merging_gives(tokens: &[(Vec<u8>, u32)], bytes: &[u32; 256], pairs: &BytePairs, merges: &Merges) -> Vec<bool> {
    /// Tokens that are merged together; what they take fits into the first-level cache.
    const TOGETHER: usize = 32;
    let (mut short, mut symbols, mut scratch) = ([Short::default(); TOGETHER], Vec::new(), Scratch::default());
    let mut gives = vec![false; tokens.len()];
    let (shorts, longs): (Vec<usize>, _) = (0..tokens.len()).partition(|at| (1..=SHORT).contains(&tokens[*at].0.len()));
    for numbers in shorts.chunks(TOGETHER) {
        let short = &mut short[..numbers.len()];
        short.iter_mut().zip(numbers).for_each(|(short, at)| short.begin_bytes(&tokens[*at].0, bytes, pairs));
        together::merge(Vectors::detect(), short, merges);
        short.iter().zip(numbers).for_each(|(short, at)| gives[*at] = short.symbols().eq([tokens[*at].1]));
    }
    for at in longs {
        symbols.clear();
        symbols.extend(tokens[at].0.iter().map(|byte| bytes[usize::from(*byte)]));
        merges.apply(&mut symbols, &mut scratch);
        gives[at] = symbols == [tokens[at].1];
    }
    gives
}

impl pieces::Model for Model {
    fn prefetch(&self, key: Key) {
        self.vocabulary.prefetch(key);
    }

    /// A piece of the kind is a whole word of a vocabulary with `ignore_merges`.
    fn token(&self, key: Key, piece: &[u8]) -> Option<u32> {
        self.vocabulary.get(key, piece).filter(|(_, merges)| *merges || cache::kind(key)).map(|(id, _)| id)
    }

    fn begin(&self, piece: &[u8], symbols: &mut Vec<u32>, short: &mut Short) -> bool {
        if self.characters.begin(piece, &self.crossings, symbols) {
            let is_short = symbols.len() <= SHORT;
            if is_short {
                short.begin_symbols(symbols, &self.merges);
            }
            return is_short;
        }
        if piece.len() <= SHORT {
            short.begin_bytes(piece, &self.bytes, &self.pairs);
            return true;
        }
        symbols.extend(piece.iter().map(|byte| self.bytes[usize::from(*byte)]));
        false
    }

    fn merges(&self) -> &Merges {
        &self.merges
    }
}

/// From words of a text to its pieces: between two characters that no token holds side by side nothing is ever merged.
struct Pieces<'a> {
    text: &'a [u8],
    /// Where the part of it begins that words are given of.
    offset: usize,
    model: &'a Model,
    working: &'a mut Working,
    ids: &'a mut Vec<u32>,
}

impl Sink for Pieces<'_> {
    #[inline(always)]
    fn word(&mut self, begin: usize, end: usize, is_ascii: bool) {
        let (begin, end) = (begin + self.offset, end + self.offset);
        let key = cache::key(self.text, begin, end, self.model.ignores_merges);
        if is_ascii || cache::is_ascii(key) || (cache::is_long(key) && self.text[begin..end].is_ascii()) {
            self.working.push(self.text, (begin, end), key, self.ids, self.model);
        } else {
            self.cut(begin, end);
        }
    }

    #[inline(always)]
    fn piece(&mut self, begin: usize, end: usize, is_word: bool) {
        self.push(begin + self.offset, end + self.offset, is_word);
    }

    #[inline(always)]
    fn cuts(&self, vectors: Vectors, line: &Line) -> u64 {
        self.model.crossings.cuts(vectors, line)
    }
}

impl Pieces<'_> {
    #[inline(always)]
    fn push(&mut self, begin: usize, end: usize, is_word: bool) {
        let key = cache::key(self.text, begin, end, is_word & self.model.ignores_merges);
        self.working.push(self.text, (begin, end), key, self.ids, self.model);
    }

    /// A word in pieces.
    fn cut(&mut self, begin: usize, end: usize) {
        let mut piece = begin;
        let (mut left, bytes) = decode(self.text, begin);
        let mut at = begin + bytes;
        while at < end {
            let (right, bytes) = decode(self.text, at);
            if self.model.crossings.can_cut(left, right) {
                self.push(piece, at, false);
                piece = at;
            }
            left = right;
            at += bytes;
        }
        self.push(piece, end, piece == begin);
    }
}

impl ByteLevel {
    /// The fast engine for the tokenizer that `reference` was loaded from; `Err` gives the reference back.
    pub(super) fn new(reference: Box<Reference>, json: &Value, model: Option<Model>) -> Result<Self, Box<Reference>> {
        let Some(model) = model else { return Err(reference) };
        let Some((words, nfc, added)) = recognise(json, &reference) else { return Err(reference) };
        let Some(around) = around(reference.as_ref()) else { return Err(reference) };
        let (classes, vectors) = (Classes::load(), Vectors::detect());
        proved(Self { reference, words, classes, vectors, added, nfc, model, around }, |engine| engine.reference)
    }

    /// Text as the normalizer leaves it.
    fn normalized<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, String> {
        if !self.nfc {
            return Ok(Cow::Borrowed(text));
        }
        nfc::compose(self.vectors, self.classes, text, |part| self.reference.normalize(part))
    }

    fn encode_document(
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
        let mut failed = None;
        self.added.split(text, |segment| match segment {
            Segment::Text(_, text) => match self.normalized(text) {
                Ok(text) => {
                    self.added.split_normalized(&text, |segment| match segment {
                        Segment::Text(begin, part) => self.encode_text((&text, begin), part, working, ids),
                        Segment::Token(id) => working.push_token(text.as_bytes(), id, ids, &self.model),
                    });
                    working.flush(text.as_bytes(), ids, &self.model);
                }
                Err(why) => failed = Some(why),
            },
            Segment::Token(id) => ids.push(id),
        });
        if add_special_tokens && extent.ends {
            ids.extend_from_slice(&self.around.1);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Adds a stretch without added tokens of a normalized text, of which it begins at `offset`.
    fn encode_text(&self, (text, offset): (&str, usize), part: &str, working: &mut Working, ids: &mut Vec<u32>) {
        let mut pieces = Pieces { text: text.as_bytes(), offset, model: &self.model, working, ids };
        self.words.for_each(part, self.classes, self.vectors, &mut pieces);
    }
}

impl Engine for ByteLevel {
    fn encode_part(
        &self,
        text: &str,
        extent: Extent,
        add_special_tokens: bool,
        working: &mut Working,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        if !self.words.can_panic() {
            return self.encode_document(text, extent, add_special_tokens, working, ids);
        }
        let begin = ids.len();
        guarded(|| self.encode_document(text, extent, add_special_tokens, working, ids)).unwrap_or_else(|_| {
            // The reference gives its own reason.
            ids.truncate(begin);
            *working = Working::default();
            self.reference.encode(text, add_special_tokens, working, ids)
        })
    }

    fn can_cut_anywhere(&self) -> bool {
        // Of other regular expressions it is not known where words begin.
        !matches!(self.words, Words::Other(_))
    }

    fn can_cut(&self, before: &str, after: &str) -> bool {
        let (before, after) = self.added.reach(before, after);
        // Tokens that are looked for in what the normalizer makes of this are not compared with what it is.
        let is_normalized = || {
            let around = format!("{before}{after}");
            self.normalized(&around).is_ok_and(|normalized| normalized == around)
        };
        self.can_cut_anywhere()
            && (self.added.in_normalized().is_empty() || is_normalized())
            && !self.added.cross(before, after, false, str::to_owned)
    }

    fn reference(&self) -> &Reference {
        &self.reference
    }
}

/// Words, whether the normalizer is NFC, and the added tokens of a tokenizer.json of the recognised form.
fn recognise(json: &Value, reference: &Reference) -> Option<(Words, bool, AddedTokens)> {
    let model = &json["model"];
    if model["type"] != "BPE" || model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0) {
        return None;
    }
    let nfc = match &json["normalizer"] {
        Value::Null => false,
        normalizer if normalizer["type"] == "NFC" => true,
        normalizer if normalizer["type"] == "Sequence" && normalizer["normalizers"] == Value::Array(vec![]) => false,
        _ => return None,
    };
    let processor = |processor: &Value| matches!(processor["type"].as_str(), Some("ByteLevel" | "TemplateProcessing"));
    let post = &json["post_processor"];
    let known = match post["type"].as_str() {
        None => post.is_null(),
        Some("Sequence") => post["processors"].as_array()?.iter().all(processor),
        Some(_) => processor(post),
    };
    if !known || reference.largest_id() >= cache::ID_LIMIT {
        return None;
    }
    let added = AddedTokens::new(json, |token| reference.id_of(token), |content| reference.normalize(content).ok())?;
    Some((Words::recognise(&json["pre_tokenizer"])?, nfc, added))
}

/// GPT-2's table: printable bytes stand for themselves, the others for the characters from U+0100 on.
pub(super) fn byte_chars() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("below the surrogates")
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::{ids_in_parts, long};
    use super::super::words::{DEEPSEEK, O200K, QWEN};
    use super::*;

    /// A byte-level tokenizer with some merges, a template and added tokens.
    fn tokenizer(normalizer: Value, pre_tokenizer: Value) -> Vec<u8> {
        let mut vocab = serde_json::Map::new();
        for character in byte_chars() {
            vocab.insert(character.to_string(), vocab.len().into());
        }
        let mut merges = Vec::new();
        let across_words =
            [(")", "Ċ"), (".", "Ċ"), ("a", "Ċ"), ("a", "Ġ"), (".", "Ġ"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("1", "Ġ")];
        let within = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("l", "l"), ("'", "ll"), ("ä", "¸")];
        for (left, right) in within.into_iter().chain(across_words) {
            vocab.insert(format!("{left}{right}"), vocab.len().into());
            merges.push(format!("{left} {right}"));
        }
        let added = |id: usize, content: &str, special: bool| {
            json!({"id": id, "content": content, "special": special, "normalized": !special,
                   "single_word": false, "lstrip": false, "rstrip": !special})
        };
        let count = vocab.len();
        vocab.insert("<s>".to_owned(), count.into());
        let template = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [count], "tokens": ["<s>"]}}
        });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(count, "<s>", true), added(count + 1, "中文", false)],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": template,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": merges}
        });
        serde_json::to_vec(&json).unwrap()
    }

    fn byte_level(use_regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
    }

    fn sequence(splits: &[(&str, &str, bool)]) -> Value {
        let mut stages: Vec<_> = splits
            .iter()
            .map(|(regex, behavior, invert)| {
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert})
            })
            .collect();
        stages.push(byte_level(false));
        json!({"type": "Sequence", "pretokenizers": stages})
    }

    fn engines(json: &[u8]) -> (Option<ByteLevel>, Reference) {
        let load = || Reference::load(std::path::Path::new("tokenizer.json"), json).unwrap();
        let (reference, json): (_, Value) = (load(), serde_json::from_slice(json).unwrap());
        (ByteLevel::new(Box::new(load()), &json, Model::new(&json["model"])).ok(), reference)
    }

    /// Engines and references of one tokenizer of every recognised form.
    static RECOGNISED: LazyLock<Vec<(ByteLevel, Reference)>> = LazyLock::new(|| {
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        [
            tokenizer(Value::Null, byte_level(true)),
            tokenizer(json!({"type": "NFC"}), byte_level(true)),
            tokenizer(json!({"type": "Sequence", "normalizers": []}), sequence(&[(llama3, "Isolated", false)])),
            tokenizer(Value::Null, sequence(&[(llama3, "Removed", true)])),
            tokenizer(
                Value::Null,
                sequence(&[
                    (r"\p{N}{1,3}", "Isolated", false),
                    ("[一-龥]+", "Isolated", false),
                    (r"\s+|\S+", "Isolated", false),
                ]),
            ),
            tokenizer(json!({"type": "NFC"}), sequence(&[(QWEN, "Isolated", false)])),
            tokenizer(Value::Null, sequence(&[(O200K, "Isolated", false)])),
            tokenizer(Value::Null, sequence(&DEEPSEEK.map(|regex| (regex, "Isolated", false)))),
        ]
        .iter()
        .map(|json| engines(json))
        .map(|(fast, reference)| (fast.expect("a recognised form"), reference))
        .collect()
    });

    #[test]
    fn unrecognised_forms_are_left_to_the_reference() {
        let lowercase = json!({"type": "Lowercase"});
        assert!(engines(&tokenizer(lowercase, byte_level(true))).0.is_none());
        assert!(engines(&tokenizer(Value::Null, json!({"type": "Whitespace"}))).0.is_none());
        assert!(engines(&tokenizer(Value::Null, sequence(&[("a", "MergedWithNext", false)]))).0.is_none());
    }

    #[test]
    fn tokens_that_would_take_white_space_twice_are_left_to_the_reference() {
        let mut json: Value = serde_json::from_slice(&tokenizer(Value::Null, byte_level(true))).unwrap();
        let token = |id: u32, content: &str, rstrip: bool| {
            json!({"id": id, "content": content, "special": false, "lstrip": false, "rstrip": rstrip,
                   "single_word": false, "normalized": false})
        };
        let with = |json: &mut Value, tokens: [Value; 2]| {
            json["added_tokens"] = Value::Array(tokens.into());
            engines(json.to_string().as_bytes()).0.is_some()
        };
        assert!(with(&mut json, [token(300, "<a>", true), token(301, "b", false)]));
        assert!(!with(&mut json, [token(300, "<a>", true), token(301, " b", false)]));
    }

    #[test]
    fn words_that_are_new_and_words_that_are_known_keep_their_order() {
        let mut number = 0u64;
        let mut word = || {
            number += 1;
            let random = tokenmill_shared::random::mix(number);
            // Every other one comes again; some are long, some have many ids.
            let letters = if random.is_multiple_of(2) { random >> 8 & 7 } else { random >> 8 };
            let (length, letters) = (random >> 3 & 0x17, format!("{letters:x}in"));
            format!(" {}", &letters.repeat(24)[..length as usize + 1])
        };
        for words in [1, 15, 16, 17, 63, 64, 65, 700] {
            let text: String = (0..words).map(|_| word()).collect();
            for (fast, reference) in RECOGNISED.iter() {
                let (mut working, mut ids, mut expected) = (Working::default(), vec![7], vec![7]);
                for _ in 0..2 {
                    fast.encode(&text, true, &mut working, &mut ids).unwrap();
                    reference.encode(&text, true, &mut Working::default(), &mut expected).unwrap();
                }
                assert_eq!(ids, expected, "{text:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn added_tokens_follow_their_rules(
            rules in prop::collection::vec(0u8..16, 8),
            texts in prop::collection::vec(r"(<a>|<b>|ab|b |c|中文|中|_|[abc中_\u{a0}\n]| {1,3}){0,20}", 1..4),
        ) {
            let mut json: Value = serde_json::from_slice(&tokenizer(json!({"type": "NFC"}), byte_level(true))).unwrap();
            let added = json["added_tokens"].as_array_mut().unwrap();
            for (content, rules) in ["<a>", "<b>", "ab", "b ", "c", "中文中", "中", "_"].iter().zip(rules) {
                let has = |bit: u8| rules >> bit & 1 == 1;
                added.push(json!({"id": 300 + added.len(), "content": content, "special": false, "lstrip": has(0),
                                  "rstrip": has(1), "single_word": has(2), "normalized": has(3)}));
            }
            let (fast, reference) = engines(json.to_string().as_bytes());
            let fast = fast.expect("a recognised form");
            for text in texts {
                let (mut working, mut ids, mut expected) = (Working::default(), vec![], vec![]);
                fast.encode(&text, false, &mut working, &mut ids).unwrap();
                reference.encode(&text, false, &mut working, &mut expected).unwrap();
                prop_assert_eq!(&ids, &expected, "{:?}", text);
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
                    "[ -~\\n]{0,40}",
                    "\\PC{0,20}",
                    any::<String>(),
                    "[aeou가각\u{1100}\u{1161}\u{11a8}\u{300}-\u{345}\u{5ae}\u{89d}\u{1df8}\u{2126}]{1,6}",
                    Just("the thing the 'll in 中 中文 <s> 一丁 the".to_owned()),
                    Just("  \r\n \u{a0}1234567 ".to_owned()),
                ],
                0..6,
            ),
            special in any::<bool>(),
        ) {
            let text = texts.concat();
            for (fast, reference) in RECOGNISED.iter() {
                let mut working = Working::default();
                let (mut ids, mut expected) = (vec![7], vec![7]);
                fast.encode(&text, special, &mut working, &mut ids).unwrap();
                reference.encode(&text, special, &mut working, &mut expected).unwrap();
                prop_assert_eq!(&ids, &expected, "{:?}", text);
            }
        }
    }
}
