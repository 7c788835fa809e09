//! The fast engine for byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek, GPT-4o): words found with the reference's own
//! regular expressions, cut further where nothing can be merged across, ids of a piece from a cache.
//!
//! The reference spends most of its time on strings with alignments that ids do not need. Here only what
//! decides ids is left, and only where that is provably the same: the pre-tokenizer is of a recognised form, and the
//! normalizer leaves the text alone. Any other text goes to the reference, and a tokenizer for which both engines
//! differ on the probes does so with all of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenizers::utils::SysRegex;

use super::Engine;
use super::added::{AddedTokens, Segment};
use super::bpe::{Merges, Scratch};
use super::cache::{Cache, Key};
use super::crossing::{Crossings, Memo};
use super::metaspace::merges;
use super::probe::{around, first_difference};
use super::guard::guarded;
use super::reference::Reference;

/// The regular expression of `ByteLevel` with `use_regex`, as the reference has it.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One `Split` of the pre-tokenizer.
struct Split {
    regex: SysRegex,
    /// Whether text between matches is a piece too (`Isolated`) or dropped (`Removed`, inverted).
    keep_gaps: bool,
}

/// The engine; see the module's text.
pub(super) struct ByteLevel {
    reference: Box<Reference>,
    splits: Vec<Split>,
    added: AddedTokens,
    /// Whether the normalizer is NFC; otherwise there is none.
    nfc: bool,
    /// The id of each byte.
    bytes: [u32; 256],
    merges: Merges,
    crossings: Crossings,
    /// Under `ignore_merges` the tokens by their bytes: a word that is one is not merged.
    words: Option<HashMap<Vec<u8>, u32>>,
    /// What `add_special_tokens` puts before and after a document.
    around: (Vec<u32>, Vec<u32>),
    /// One a thread that is encoding at the moment.
    working: Mutex<Vec<Working>>,
}

/// What a thread needs to encode.
#[derive(Default)]
struct Working {
    cache: Cache,
    memo: Memo,
    scratch: Scratch,
    symbols: Vec<u32>,
}

impl ByteLevel {
    /// The fast engine for the tokenizer that `reference` was loaded from; `Err` gives the reference back.
    pub(super) fn new(reference: Box<Reference>, json: &Value) -> Result<Self, Box<Reference>> {
        let Some((splits, nfc, added)) = recognise(json, &reference) else { return Err(reference) };
        let Some((bytes, merges, crossings, words)) = vocabulary(&json["model"]) else { return Err(reference) };
        let Some(around) = around(reference.as_ref()) else { return Err(reference) };
        let working = Mutex::default();
        let engine = Self { reference, splits, added, nfc, bytes, merges, crossings, words, around, working };
        match first_difference(&engine, engine.reference.as_ref()) {
            None => Ok(engine),
            Some(text) => {
                eprintln!(
                    "the fast tokenizer and the reference differ on {text:?}; using the reference, please report this"
                );
                Err(engine.reference)
            }
        }
    }

    /// A stretch of text without added tokens.
    fn encode_text(&self, text: &str, working: &mut Working, ids: &mut Vec<u32>) {
        self.split(text, 0, &mut |word| self.encode_word(word, working, ids));
    }

    /// What the pre-tokenizer leaves whole, in pieces. Runs of Chinese or Japanese are words of any length.
    fn encode_word(&self, word: &str, working: &mut Working, ids: &mut Vec<u32>) {
        /// From here on scripts are written without spaces.
        const IDEOGRAPHS: char = '\u{2e80}';
        let mut begin = 0;
        let mut before = '\0';
        for (at, character) in word.char_indices() {
            if before >= IDEOGRAPHS
                && character >= IDEOGRAPHS
                && !working.memo.get(before, character, || self.crossings.contains(before, character))
            {
                self.encode_piece(&word[begin..at], false, working, ids);
                begin = at;
            }
            before = character;
        }
        self.encode_piece(&word[begin..], begin == 0, working, ids);
    }

    fn encode_piece(&self, piece: &str, is_word: bool, working: &mut Working, ids: &mut Vec<u32>) {
        let is_word = is_word && self.words.is_some();
        let key = Key::of(piece.as_bytes(), is_word);
        if let Some(known) = key.as_ref().and_then(|key| working.cache.get(key)) {
            ids.extend_from_slice(known);
            return;
        }
        let symbols = &mut working.symbols;
        symbols.clear();
        match self.words.as_ref().filter(|_| is_word).and_then(|words| words.get(piece.as_bytes())) {
            Some(id) => symbols.push(*id),
            None => {
                symbols.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)]));
                self.merges.apply(symbols, &mut working.scratch);
            }
        }
        ids.extend_from_slice(symbols);
        if let Some(key) = key {
            working.cache.put(key, symbols);
        }
    }

    /// Calls `each` with every piece of `text` that the splits from `level` on leave.
    fn split(&self, text: &str, level: usize, each: &mut dyn FnMut(&str)) {
        let Some(split) = self.splits.get(level) else {
            if !text.is_empty() {
                each(text);
            }
            return;
        };
        let mut end = 0;
        for (from, to) in split.regex.find_iter(text) {
            if split.keep_gaps && from > end {
                self.split(&text[end..from], level + 1, each);
            }
            self.split(&text[from..to], level + 1, each);
            end = to;
        }
        if split.keep_gaps && end < text.len() {
            self.split(&text[end..], level + 1, each);
        }
    }
}

impl Engine for ByteLevel {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        if self.added.needs_reference(text) || (self.nfc && !text.chars().all(is_nfc_inert)) {
            return self.reference.encode(text, add_special_tokens, ids);
        }
        let lock = || self.working.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let mut working = spare.unwrap_or_default();
        let begin = ids.len();
        if add_special_tokens {
            ids.extend_from_slice(&self.around.0);
        }
        // The regular expression engine is the reference's, and so are its panics.
        let encode = std::panic::AssertUnwindSafe(|| {
            self.added.split(text, |segment| match segment {
                Segment::Text(text) => self.added.split_normalized(text, |segment| match segment {
                    Segment::Text(text) => self.encode_text(text, &mut working, ids),
                    Segment::Token(id) => ids.push(id),
                }),
                Segment::Token(id) => ids.push(id),
            });
        });
        if std::panic::catch_unwind(encode).is_err() {
            ids.truncate(begin);
            return self.reference.encode(text, add_special_tokens, ids);
        }
        if add_special_tokens {
            ids.extend_from_slice(&self.around.1);
        }
        lock().push(working);
        Ok(())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.reference.decode(ids)
    }

    fn id_of(&self, token: &str) -> Option<u32> {
        self.reference.id_of(token)
    }

    fn largest_id(&self) -> u32 {
        self.reference.largest_id()
    }
}

/// Splits, whether the normalizer is NFC, and the added tokens of a tokenizer.json of the recognised form.
fn recognise(json: &Value, reference: &Reference) -> Option<(Vec<Split>, bool, AddedTokens)> {
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
    if !known {
        return None;
    }
    // NFC could make a token match text in which its own characters do not occur.
    let normalize = |content: &str| (!nfc || content.chars().all(is_nfc_inert)).then(|| content.to_owned());
    let added = AddedTokens::new(json, |token| reference.id_of(token), normalize)?;
    let pre = &json["pre_tokenizer"];
    let stages = match pre["type"].as_str()? {
        "Sequence" => pre["pretokenizers"].as_array()?.as_slice(),
        _ => std::slice::from_ref(pre),
    };
    let (last, before) = stages.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != Value::Bool(false) {
        return None;
    }
    let mut splits = before.iter().map(split_of).collect::<Option<Vec<_>>>()?;
    if last["use_regex"].as_bool().unwrap_or(true) {
        splits.push(Split { regex: SysRegex::new(BYTE_LEVEL).ok()?, keep_gaps: true });
    }
    Some((splits, nfc, added))
}

fn split_of(stage: &Value) -> Option<Split> {
    let keep_gaps = match (stage["behavior"].as_str()?, stage["invert"].as_bool()?) {
        ("Isolated", _) => true,
        ("Removed", true) => false,
        _ => return None,
    };
    let pattern = (stage["type"] == "Split").then(|| stage["pattern"]["Regex"].as_str())??;
    Some(Split { regex: SysRegex::new(pattern).ok()?, keep_gaps })
}

type Vocabulary = ([u32; 256], Merges, Crossings, Option<HashMap<Vec<u8>, u32>>);

/// The parts of the model: the ids of bytes, merges, where they cross characters, and words that are not merged.
fn vocabulary(model: &Value) -> Option<Vocabulary> {
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
    let triples =
        merges(model)?.into_iter().map(|(left, right)| Some((id(left)?, id(right)?, id(&format!("{left}{right}"))?)));
    let triples: Vec<_> = triples.collect::<Option<_>>()?;
    let of_char: HashMap<char, u8> = byte_chars.into_iter().zip(0..=u8::MAX).collect();
    let as_bytes =
        |token: &str| token.chars().map(|character| of_char.get(&character).copied()).collect::<Option<Vec<u8>>>();
    let tokens: Vec<(Vec<u8>, u32)> = vocab.keys().filter_map(|token| Some((as_bytes(token)?, id(token)?))).collect();
    let crossings = Crossings::of(tokens.iter().map(|(bytes, _)| bytes.as_slice()));
    let words = (model["ignore_merges"] == true).then(|| tokens.into_iter().collect());
    Some((bytes, Merges::new(&triples), crossings, words))
}

/// Whether NFC leaves this character alone whatever stands around it: it has combining class 0, is its own
/// normal form and composes with nothing before it. True for few ranges only, those of everyday text.
fn is_nfc_inert(character: char) -> bool {
    matches!(u32::from(character),
        0..=0x2ff | 0x370..=0x373 | 0x37b..=0x37d | 0x388..=0x482 | 0x2002..=0x2027 | 0x2030..=0x205e
        | 0x3001..=0x3029 | 0x3041..=0x3098 | 0x309b..=0x30ff | 0x4e00..=0x9fa5 | 0xac00..=0xd7a3
        | 0xff01..=0xff60 | 0x1f300..=0x1faff)
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

    use super::*;

    /// A byte-level tokenizer with some merges, a template and added tokens.
    fn tokenizer(normalizer: Value, pre_tokenizer: Value) -> Vec<u8> {
        let mut vocab = serde_json::Map::new();
        for character in byte_chars() {
            vocab.insert(character.to_string(), vocab.len().into());
        }
        let mut merges = Vec::new();
        for (left, right) in [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("l", "l"), ("'", "ll"), ("ä", "¸")]
        {
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
        (ByteLevel::new(Box::new(load()), &serde_json::from_slice(json).unwrap()).ok(), load())
    }

    /// Engines and references of one tokenizer of every recognised form.
    static RECOGNISED: LazyLock<Vec<(ByteLevel, Reference)>> = LazyLock::new(|| {
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        [
            tokenizer(Value::Null, byte_level(true)),
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
    fn nfc_inert_characters_are_left_alone_by_nfc_in_any_company() {
        use tokenizers::{NormalizedString, Normalizer, normalizers::unicode::NFC};
        let inert =
            |range: std::ops::RangeInclusive<u32>| range.filter_map(char::from_u32).filter(|c| is_nfc_inert(*c));
        for last in inert(0..=0x10ffff) {
            for first in
                ['a', 'e', 'o', '\u{3ba}', '\u{438}', '\u{3046}', '\u{30ab}', '\u{1100}', '\u{ac00}', '中', '<', '=']
            {
                let text = format!("{first}{last}");
                let mut normalized = NormalizedString::from(text.as_str());
                NFC.normalize(&mut normalized).unwrap();
                assert!(!is_nfc_inert(first) || normalized.get() == text, "{text:?} U+{:04X}", u32::from(last));
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
                    Just("the thing the 'll in 中 中文 <s> 一丁 the".to_owned()),
                    Just("  \r\n \u{a0}1234567 ".to_owned()),
                ],
                0..6,
            ),
            special in any::<bool>(),
        ) {
            let text = texts.concat();
            for (fast, reference) in RECOGNISED.iter() {
                let (mut ids, mut expected) = (vec![7], vec![7]);
                fast.encode(&text, special, &mut ids).unwrap();
                reference.encode(&text, special, &mut expected).unwrap();
                prop_assert_eq!(&ids, &expected, "{:?}", text);
            }
        }
    }
}
