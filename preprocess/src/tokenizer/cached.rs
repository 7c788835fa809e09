//! The fast engine for byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek, GPT-4o): pieces found with the
//! reference's own regular expressions, ids of a piece from a cache, the reference's model on a miss.
//!
//! The reference spends most of its time on strings with alignments that ids do not need. Here only what
//! decides ids is left, and only where that is provably the same: the pre-tokenizer is of a recognised form,
//! the normalizer leaves the text alone, and the text holds no added token. Any other text goes to the
//! reference, and a tokenizer for which both engines differ on [`PROBES`] does so with all of it.

use std::sync::{Mutex, PoisonError};

use aho_corasick::AhoCorasick;
use serde_json::Value;
use tokenizers::Model;
use tokenizers::utils::SysRegex;
use tokenmill_shared::random::mix;

use super::guard::guarded;
use super::reference::Reference;
use super::{Engine, Token};

/// The regular expression of `ByteLevel` with `use_regex`, as the reference has it.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Texts that have told tokenizers apart: contractions, case folding, runs of white space and controls,
/// digits, scripts, combining marks, joiners, unassigned and private code points.
const PROBES: &[&str] = &[
    "",
    " ",
    "a",
    "Hello, world! It's 1234567 o'clock, isn't it? I'LL we'Ve I'\u{17f} \u{212a}elvin",
    "  leading, trailing  \n\n\n and\ttabs \t\t\r\n\r\r lone\u{b}\u{c}\u{85}\u{a0}\u{2003}\u{2028}\u{3000}spaces   ",
    "\u{feff}BOM \0NUL \u{1}\u{7f}\u{9f} \u{200b}\u{200d}\u{2060} \u{e000}\u{10ffff}\u{fdd0}\u{378}",
    "def f(x):\n    return {'a': [x**2, 0xFF, 1e-9], \"b\": f\"{x!r}\"}  # ok\n\n\tif x != y && z <= w { i++; }",
    "中文文本，没有空格。第１２３章：「你好」——世界！ 日本語のテキストです。カタカナ ｶﾅ 한국어 텍스트",
    "Ελληνικά Русский עברית العربية हिन्दी ไทย ქართული Ǆǅǆ ŉ ß ẞ İı ﬁ",
    "e\u{301} \u{e9} a\u{30a}\u{323} \u{1e69} \u{1100}\u{1161}\u{11a8} \u{89d}\u{5ae} \u{1df8}\u{1df9} \u{1aea} \u{344}",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 🇨🇳🇺🇸 \u{1faef} ☃︎ ☃️ ½ ² Ⅷ ①  ٣٤٥ १२३ 12,345.678",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                \n\n\n\n\n\n!!!!!!!!!!!!!!!!!!",
    "\n't \t-Z \n \n \t'l <|endoftext|> <s> </s> [INST] <|im_start|>user",
];

/// One `Split` of the pre-tokenizer.
struct Split {
    regex: SysRegex,
    /// Whether text between matches is a piece too (`Isolated`) or dropped (`Removed`, inverted).
    keep_gaps: bool,
}

/// The engine; see the module's text.
pub(super) struct Cached {
    reference: Box<Reference>,
    splits: Vec<Split>,
    added_tokens: Option<AhoCorasick>,
    /// Whether the normalizer is NFC; otherwise there is none.
    nfc: bool,
    /// The character that stands for each byte in the vocabulary.
    byte_chars: [char; 256],
    /// What `add_special_tokens` puts before and after a document.
    around: (Vec<u32>, Vec<u32>),
    /// One a thread that is encoding at the moment.
    caches: Mutex<Vec<Cache>>,
}

impl Cached {
    /// The fast engine for the tokenizer that `reference` was loaded from; `Err` gives the reference back.
    pub(super) fn new(reference: Box<Reference>, json: &[u8]) -> Result<Self, Box<Reference>> {
        let Some((splits, nfc, added)) = serde_json::from_slice(json).ok().and_then(|json| recognise(&json)) else {
            return Err(reference);
        };
        let Some(around) = special_tokens(&reference) else { return Err(reference) };
        let added_tokens = if added.is_empty() { None } else { AhoCorasick::new(&added).ok() };
        if added_tokens.is_none() && !added.is_empty() {
            return Err(reference);
        }
        let byte_chars = byte_chars();
        let caches = Mutex::default();
        let engine = Self { reference, splits, added_tokens, nfc, byte_chars, around, caches };
        match engine.first_difference() {
            None => Ok(engine),
            Some(text) => {
                eprintln!(
                    "the fast tokenizer and the reference differ on {text:?}; using the reference, please report this"
                );
                Err(engine.reference)
            }
        }
    }

    fn first_difference(&self) -> Option<String> {
        let all = PROBES.concat();
        let differs = |text: &&str| {
            [true, false].into_iter().any(|special| {
                let (mut fast, mut slow) = (Vec::new(), Vec::new());
                let results = (self.encode(text, special, &mut fast), self.reference.encode(text, special, &mut slow));
                results.0 != results.1 || fast != slow
            })
        };
        PROBES.iter().copied().chain([all.as_str()]).find(differs).map(str::to_owned)
    }

    fn encode_pieces(&self, text: &str, cache: &mut Cache, ids: &mut Vec<u32>) -> Result<(), String> {
        self.split(text, 0, &mut |piece| {
            let key = Key::of(piece.as_bytes());
            if let Some(known) = key.as_ref().and_then(|key| cache.get(key)) {
                ids.extend_from_slice(known);
                return Ok(());
            }
            let mapped: String = piece.bytes().map(|byte| self.byte_chars[usize::from(byte)]).collect();
            let tokens = self.reference.model().tokenize(&mapped).map_err(|error| error.to_string())?;
            let before = ids.len();
            ids.extend(tokens.iter().map(|token| token.id));
            if let Some(key) = key {
                cache.put(key, &ids[before..]);
            }
            Ok(())
        })
    }

    /// Calls `each` with every piece of `text` that the splits from `level` on leave.
    fn split(&self, text: &str, level: usize, each: &mut dyn FnMut(&str) -> Result<(), String>) -> Result<(), String> {
        let Some(split) = self.splits.get(level) else {
            return if text.is_empty() { Ok(()) } else { each(text) };
        };
        let mut end = 0;
        for (from, to) in split.regex.find_iter(text) {
            if split.keep_gaps && from > end {
                self.split(&text[end..from], level + 1, each)?;
            }
            self.split(&text[from..to], level + 1, each)?;
            end = to;
        }
        if split.keep_gaps && end < text.len() {
            self.split(&text[end..], level + 1, each)?;
        }
        Ok(())
    }
}

impl Engine for Cached {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        let has_added = self.added_tokens.as_ref().is_some_and(|added| added.is_match(text));
        if has_added || (self.nfc && !text.chars().all(is_nfc_inert)) {
            return self.reference.encode(text, add_special_tokens, ids);
        }
        let lock = || self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let mut cache = spare.unwrap_or_default();
        if add_special_tokens {
            ids.extend_from_slice(&self.around.0);
        }
        let before = ids.len();
        // The regular expression engine and the model are the reference's, and so are their panics.
        match guarded(|| self.encode_pieces(text, &mut cache, ids)) {
            Ok(Ok(())) => {}
            _ => {
                ids.truncate(before - if add_special_tokens { self.around.0.len() } else { 0 });
                return self.reference.encode(text, add_special_tokens, ids);
            }
        }
        if add_special_tokens {
            ids.extend_from_slice(&self.around.1);
        }
        lock().push(cache);
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

    fn token(&self, id: u32) -> Option<Token> {
        self.reference.token(id)
    }

    fn segment(&self, piece: &str) -> Result<Vec<u32>, String> {
        self.reference.segment(piece)
    }
}

/// Splits, whether the normalizer is NFC, and the added tokens of a tokenizer.json of the recognised form.
fn recognise(json: &Value) -> Option<(Vec<Split>, bool, Vec<String>)> {
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
    let mut added = Vec::new();
    if let Some(tokens) = json["added_tokens"].as_array() {
        for token in tokens {
            let content = token["content"].as_str()?;
            // NFC could make such a token match text in which its own characters do not occur.
            if content.is_empty() || (nfc && !content.chars().all(is_nfc_inert)) {
                return None;
            }
            added.push(content.to_owned());
        }
    }
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

/// What the post-processor puts around a document, if that is the same for every document.
fn special_tokens(reference: &Reference) -> Option<(Vec<u32>, Vec<u32>)> {
    let (mut bare, mut whole) = (Vec::new(), Vec::new());
    reference.encode("a", false, &mut bare).ok()?;
    reference.encode("a", true, &mut whole).ok()?;
    let mut places = (0..=whole.len().checked_sub(bare.len())?).filter(|at| whole[*at..].starts_with(&bare));
    match (places.next(), places.next()) {
        (Some(at), None) if !bare.is_empty() => Some((whole[..at].to_vec(), whole[at + bare.len()..].to_vec())),
        _ => None,
    }
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

/// Bytes of the longest piece that is cached: English words, numbers, operators, eight Chinese characters.
const KEY_BYTES: usize = 24;
const SLOT_IDS: usize = 7;
const SLOTS: usize = 1 << 16;

/// A short piece, padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    words: [u64; KEY_BYTES / 8],
    bytes: u8,
}

impl Key {
    fn of(piece: &[u8]) -> Option<Self> {
        let mut padded = [0; KEY_BYTES];
        padded.get_mut(..piece.len())?.copy_from_slice(piece);
        let words =
            std::array::from_fn(|word| u64::from_le_bytes(padded[word * 8..][..8].try_into().expect("eight bytes")));
        Some(Self { words, bytes: piece.len() as u8 })
    }

    fn slot(&self) -> usize {
        let hash = self.words.iter().fold(u64::from(self.bytes), |hash, word| mix(hash ^ word));
        hash as usize % SLOTS
    }
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    count: u8,
    ids: [u32; SLOT_IDS],
}

/// Pieces and their ids, one a slot, the newer in place of the older: 4 MiB, whatever is encoded.
struct Cache {
    slots: Box<[Slot]>,
}

impl Default for Cache {
    fn default() -> Self {
        // No piece has this length, so the slot is empty.
        let empty = Slot { key: Key { words: [0; 3], bytes: u8::MAX }, count: 0, ids: [0; SLOT_IDS] };
        Self { slots: vec![empty; SLOTS].into_boxed_slice() }
    }
}

impl Cache {
    fn get(&self, key: &Key) -> Option<&[u32]> {
        let slot = &self.slots[key.slot()];
        (slot.key == *key).then(|| &slot.ids[..usize::from(slot.count)])
    }

    fn put(&mut self, key: Key, ids: &[u32]) {
        if ids.len() <= SLOT_IDS {
            let mut slot = Slot { key, count: ids.len() as u8, ids: [0; SLOT_IDS] };
            slot.ids[..ids.len()].copy_from_slice(ids);
            self.slots[key.slot()] = slot;
        }
    }
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

    fn engines(json: &[u8]) -> (Option<Cached>, Reference) {
        let load = || Reference::load(std::path::Path::new("tokenizer.json"), json).unwrap();
        (Cached::new(Box::new(load()), json).ok(), load())
    }

    /// Engines and references of one tokenizer of every recognised form.
    static RECOGNISED: LazyLock<Vec<(Cached, Reference)>> = LazyLock::new(|| {
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
        .map(|(cached, reference)| (cached.expect("a recognised form"), reference))
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
            for (cached, reference) in RECOGNISED.iter() {
                let (mut fast, mut slow) = (vec![7], vec![7]);
                cached.encode(&text, special, &mut fast).unwrap();
                reference.encode(&text, special, &mut slow).unwrap();
                prop_assert_eq!(&fast, &slow, "{:?}", text);
            }
        }
    }
}
