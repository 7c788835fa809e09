//! The fast engine for BPE vocabularies in SentencePiece's style (Llama 1 and 2, Mistral, Baichuan, ChatGLM): no
//! pre-tokenizer, `▁` for a space and before each stretch of text, bytes for characters without a token.
//!
//! To the reference a whole document is one word. But two characters that stand side by side in no token can never be
//! merged across: there the text is cut, and the pieces (`▁word`, a few Chinese characters) are short, come again, and
//! are cached. Cutting less than possible changes nothing, so which pairs stand side by side is kept in a hashed bitmap.

use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenmill_shared::random::mix;

use super::Engine;
use super::added::{AddedTokens, Segment};
use super::bpe::{Merges, Scratch};
use super::cache::{Cache, Key};
use super::probe::{around, first_difference};
use super::reference::Reference;

/// Stands for a space in the vocabulary.
const META: char = '▁';

/// No id.
const NONE: u32 = u32::MAX;

/// Bits of the bitmap of adjacent characters: 256 KiB; Baichuan2's 290,000 pairs fill a seventh of it.
const BITS: usize = 1 << 21;

/// Characters that stand side by side in a token; a superset of them.
struct Adjacent {
    ascii: [u128; 128],
    others: Box<[u64]>,
}

impl Adjacent {
    fn of<'a>(tokens: impl Iterator<Item = &'a str>) -> Self {
        let mut adjacent = Self { ascii: [0; 128], others: vec![0; BITS / 64].into_boxed_slice() };
        for token in tokens {
            let mut before = None;
            for character in token.chars().map(as_space) {
                if let Some(before) = before {
                    adjacent.insert(before, character);
                }
                before = Some(character);
            }
        }
        adjacent
    }

    fn insert(&mut self, left: char, right: char) {
        if left.is_ascii() && right.is_ascii() {
            self.ascii[left as usize] |= 1 << right as u32;
        } else {
            let bit = Self::bit(left, right);
            self.others[bit / 64] |= 1 << (bit % 64);
        }
    }

    #[inline]
    fn contains(&self, left: char, right: char) -> bool {
        if left.is_ascii() && right.is_ascii() {
            return self.ascii[left as usize] >> (right as u32) & 1 == 1;
        }
        let bit = Self::bit(left, right);
        self.others[bit / 64] >> (bit % 64) & 1 == 1
    }

    #[inline]
    fn bit(left: char, right: char) -> usize {
        mix(u64::from(left) << 32 | u64::from(right)) as usize % BITS
    }
}

/// A space and the character that stands for it are one.
#[inline]
fn as_space(character: char) -> char {
    if character == META { ' ' } else { character }
}

/// The engine; see the module's text.
pub(super) struct Metaspace {
    reference: Box<Reference>,
    added: AddedTokens,
    /// The id of a character, by its code point; [`NONE`] where it has none.
    characters: Box<[u32]>,
    /// The ids of the bytes of characters without a token.
    bytes: [u32; 256],
    merges: Merges,
    adjacent: Adjacent,
    around: (Vec<u32>, Vec<u32>),
    /// One a thread that is encoding at the moment.
    working: Mutex<Vec<Working>>,
}

/// What a thread needs to encode.
#[derive(Default)]
struct Working {
    cache: Cache,
    scratch: Scratch,
    symbols: Vec<u32>,
    first: String,
}

impl Metaspace {
    /// The fast engine for the tokenizer that `reference` was loaded from; `Err` gives the reference back.
    pub(super) fn new(reference: Box<Reference>, json: &Value) -> Result<Self, Box<Reference>> {
        let Some((added, characters, bytes, merges, adjacent)) = recognise(json, &reference) else {
            return Err(reference);
        };
        let Some(around) = around(reference.as_ref()) else { return Err(reference) };
        let working = Mutex::default();
        let engine = Self { reference, added, characters, bytes, merges, adjacent, around, working };
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

    /// A stretch of the text as it is: the normalizer puts `▁` before it.
    fn encode_text(&self, text: &str, working: &mut Working, ids: &mut Vec<u32>) {
        if self.added.in_normalized() {
            let mut normalized = String::with_capacity(text.len() * 2);
            normalized.push(META);
            text.split(' ').enumerate().for_each(|(number, word)| {
                if number > 0 {
                    normalized.push(META);
                }
                normalized.push_str(word);
            });
            self.added.split_normalized(&normalized, |segment| match segment {
                Segment::Text(text) => self.encode_pieces(text, working, ids),
                Segment::Token(id) => ids.push(id),
            });
            return;
        }
        // The first piece has its `▁`; the rest stands in the text.
        let mut first = std::mem::take(&mut working.first);
        first.clear();
        first.push(' ');
        let end = self.piece_end(' ', text);
        first.push_str(&text[..end]);
        self.encode_piece(&first, working, ids);
        working.first = first;
        self.encode_pieces(&text[end..], working, ids);
    }

    /// Where the piece that began with `before` ends in what follows it.
    #[inline]
    fn piece_end(&self, mut before: char, text: &str) -> usize {
        for (at, character) in text.char_indices() {
            let character = as_space(character);
            if !self.adjacent.contains(before, character) {
                return at;
            }
            before = character;
        }
        text.len()
    }

    fn encode_pieces(&self, mut text: &str, working: &mut Working, ids: &mut Vec<u32>) {
        while let Some(first) = text.chars().next() {
            let begin = first.len_utf8();
            let end = begin + self.piece_end(as_space(first), &text[begin..]);
            if end == begin {
                self.push_character(first, ids);
            } else {
                self.encode_piece(&text[..end], working, ids);
            }
            text = &text[end..];
        }
    }

    fn encode_piece(&self, piece: &str, working: &mut Working, ids: &mut Vec<u32>) {
        let key = Key::of(piece.as_bytes(), false);
        if let Some(known) = key.as_ref().and_then(|key| working.cache.get(key)) {
            ids.extend_from_slice(known);
            return;
        }
        let symbols = &mut working.symbols;
        symbols.clear();
        piece.chars().for_each(|character| self.push_character(character, symbols));
        self.merges.apply(symbols, &mut working.scratch);
        ids.extend_from_slice(symbols);
        if let Some(key) = key {
            working.cache.put(key, symbols);
        }
    }

    /// The id of a character, or those of its bytes.
    #[inline]
    fn push_character(&self, character: char, ids: &mut Vec<u32>) {
        let character = if character == ' ' { META } else { character };
        match self.characters.get(character as usize) {
            Some(id) if *id != NONE => ids.push(*id),
            _ => {
                let mut buffer = [0; 4];
                let bytes = character.encode_utf8(&mut buffer).bytes();
                ids.extend(bytes.map(|byte| self.bytes[usize::from(byte)]));
            }
        }
    }
}

impl Engine for Metaspace {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        if self.added.needs_reference(text) {
            return self.reference.encode(text, add_special_tokens, ids);
        }
        let lock = || self.working.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let mut working = spare.unwrap_or_default();
        let special = |ids: &mut Vec<u32>, around: &[u32]| {
            if add_special_tokens {
                ids.extend_from_slice(around);
            }
        };
        special(ids, &self.around.0);
        self.added.split(text, |segment| match segment {
            Segment::Text(text) => self.encode_text(text, &mut working, ids),
            Segment::Token(id) => ids.push(id),
        });
        special(ids, &self.around.1);
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

type Recognised = (AddedTokens, Box<[u32]>, [u32; 256], Merges, Adjacent);

/// The parts of a tokenizer.json of the recognised form.
fn recognise(json: &Value, reference: &Reference) -> Option<Recognised> {
    let model = &json["model"];
    let is_unset = |field: &str| matches!(&model[field], Value::Null) || model[field] == "";
    if model["type"] != "BPE"
        || model["byte_fallback"] != true
        || model["ignore_merges"] == true
        || model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0)
        || !is_unset("continuing_subword_prefix")
        || !is_unset("end_of_word_suffix")
        || !json["pre_tokenizer"].is_null()
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
    Some((added, characters.into_boxed_slice(), bytes, Merges::new(&triples), adjacent))
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
