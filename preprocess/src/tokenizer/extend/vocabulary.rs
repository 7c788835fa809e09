//! A tokenizer.json while it grows: pieces, merges, and how a short text is segmented with all of them.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokenmill_shared::{Error, Result};

use crate::tokenizer::byte_level::byte_chars;

/// What stands for a space in SentencePiece's pieces.
pub(super) const SPACE: char = '▁';

/// How text is written in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A character of GPT-2's table for every byte.
    ByteLevel,
    /// The text itself, [`SPACE`] for a space; what has no piece falls apart into byte pieces or is unknown.
    SentencePiece,
}

/// Pieces and merges, old and new.
pub(super) struct Vocabulary {
    json: Value,
    pub(super) style: Style,
    ids: HashMap<String, u32>,
    pieces: HashMap<u32, String>,
    /// Rank and result of joining two pieces.
    merges: HashMap<(u32, u32), (usize, u32)>,
    new_pieces: Vec<(String, u32)>,
    new_merges: Vec<(String, String)>,
    first_new_id: u32,
    next_id: u32,
}

impl Vocabulary {
    /// Reads `bytes`, the content of `path`; new ids begin at `first_new_id`.
    ///
    /// # Errors
    /// [`Error::Config`] for a tokenizer that is not BPE, byte-level or in SentencePiece style.
    pub(super) fn parse(path: &Path, bytes: &[u8], first_new_id: u32) -> Result<Self> {
        let refuse = |reason: String| Error::config(path.display().to_string(), reason);
        let mut json: Value =
            serde_json::from_slice(bytes).map_err(|error| refuse(format!("is not JSON ({error})")))?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            let reason = format!("has a model of type {}; only BPE can be extended by merges", model["type"]);
            return Err(refuse(reason));
        }
        for field in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
            if !matches!(&model[field], Value::Null) && model[field] != "" && model[field] != 0.0 {
                return Err(refuse(format!("has {field} {}, which is not built", model[field])));
            }
        }
        let style = style(&json).ok_or_else(|| {
            refuse(
                "is neither byte-level (pre_tokenizer ByteLevel) nor in SentencePiece style (▁ for a space)".to_owned(),
            )
        })?;
        // Added tokens get their ids from the vocabulary when they are in it, and otherwise by counting from its end,
        // which is about to move.
        let added = json["added_tokens"].as_array().cloned().unwrap_or_default();
        let vocab = json["model"]["vocab"].as_object_mut().ok_or_else(|| refuse("has no vocabulary".to_owned()))?;
        for token in &added {
            if let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) {
                vocab.entry(content).or_insert(id.into());
            }
        }
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<HashMap<String, u32>> =
            vocab.iter().map(|(piece, value)| Some((piece.clone(), id(value)?))).collect();
        let ids = ids.ok_or_else(|| refuse("has a vocabulary with ids that are no numbers".to_owned()))?;
        let pieces: HashMap<u32, String> = ids.iter().map(|(piece, id)| (*id, piece.clone())).collect();
        let mut merges = HashMap::new();
        for (rank, merge) in json["model"]["merges"].as_array().into_iter().flatten().enumerate() {
            let pair = match merge {
                Value::String(text) => text.split_once(' '),
                merge => merge[0].as_str().zip(merge[1].as_str()),
            };
            let merged = pair.and_then(|(left, right)| {
                let result = *ids.get(&format!("{left}{right}"))?;
                Some(((*ids.get(left)?, *ids.get(right)?), (rank, result)))
            });
            let (pair, merged) = merged.ok_or_else(|| refuse(format!("has a merge of unknown pieces: {merge}")))?;
            merges.insert(pair, merged);
        }
        let (new_pieces, new_merges) = (Vec::new(), Vec::new());
        Ok(Self { json, style, ids, pieces, merges, new_pieces, new_merges, first_new_id, next_id: first_new_id })
    }

    /// The id of a piece.
    pub(super) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// Whether it was a piece before anything was added.
    pub(super) fn is_old(&self, piece: &str) -> bool {
        self.id(piece).is_some_and(|id| id < self.first_new_id)
    }

    /// The piece of an id.
    pub(super) fn piece(&self, id: u32) -> &str {
        self.pieces.get(&id).map_or("", String::as_str)
    }

    /// All pieces and their ids.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u32, &str)> {
        self.pieces.iter().map(|(id, piece)| (*id, piece.as_str()))
    }

    /// Ids that are no ordinary pieces: added tokens, the unknown token, byte pieces. No merge may touch them.
    pub(super) fn special(&self) -> impl Iterator<Item = u32> {
        let added =
            self.json["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["content"].as_str());
        let unknown = self.json["model"]["unk_token"].as_str();
        let is_byte = |piece: &&str| piece.len() == 6 && piece.starts_with("<0x") && piece.ends_with('>');
        let bytes = self.ids.keys().map(String::as_str).filter(is_byte);
        added.chain(unknown).chain(bytes).filter_map(|piece| self.id(piece))
    }

    /// Pieces that were added, by id.
    pub(super) fn new_pieces(&self) -> &[(String, u32)] {
        &self.new_pieces
    }

    /// Of these, the ones no merge leads to: characters.
    pub(super) fn new_characters(&self) -> usize {
        self.new_pieces.iter().filter(|(piece, _)| piece.chars().nth(1).is_none()).count()
    }

    /// Merges that were added, by rank.
    pub(super) fn new_merges(&self) -> &[(String, String)] {
        &self.new_merges
    }

    /// Adds a piece, unless it is there.
    pub(super) fn add_piece(&mut self, piece: &str) -> u32 {
        if let Some(id) = self.id(piece) {
            return id;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.ids.insert(piece.to_owned(), id);
        self.pieces.insert(id, piece.to_owned());
        self.new_pieces.push((piece.to_owned(), id));
        id
    }

    /// Adds a merge of lowest rank, unless these two are joined already, and the piece it leads to.
    pub(super) fn add_merge(&mut self, left: u32, right: u32) -> u32 {
        if let Some((_, id)) = self.merges.get(&(left, right)) {
            return *id;
        }
        let (left_piece, right_piece) = (self.piece(left).to_owned(), self.piece(right).to_owned());
        let id = self.add_piece(&format!("{left_piece}{right_piece}"));
        self.merges.insert((left, right), (self.merges.len(), id));
        self.new_merges.push((left_piece, right_piece));
        id
    }

    /// Joins neighbours as the model does: the merge of highest rank first, the leftmost of equals. `ids` is short: what
    /// this does grows with its square.
    pub(super) fn merge(&self, ids: &mut Vec<u32>) {
        loop {
            let joined = ids.windows(2).enumerate().filter_map(|(at, pair)| {
                let (rank, id) = self.merges.get(&(pair[0], pair[1]))?;
                Some((*rank, at, *id))
            });
            let Some((_, at, id)) = joined.min() else { return };
            ids[at] = id;
            ids.remove(at + 1);
        }
    }

    /// `text` in the characters of pieces.
    pub(super) fn spelled(&self, text: &str) -> String {
        match self.style {
            Style::ByteLevel => {
                let table = byte_chars();
                text.bytes().map(|byte| table[usize::from(byte)]).collect()
            }
            Style::SentencePiece => text.replace(' ', &SPACE.to_string()),
        }
    }

    /// UTF-8 sequences that begin in a piece: its characters, where bytes of one may lie in several pieces.
    pub(super) fn characters(&self, piece: &str) -> usize {
        match self.style {
            Style::ByteLevel => {
                let table = byte_chars();
                let continues = |character: &char| table[0x80..0xc0].contains(character);
                piece.chars().filter(|character| !continues(character)).count()
            }
            Style::SentencePiece => piece.chars().count(),
        }
    }

    /// tokenizer.json with everything that was added.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut json = self.json.clone();
        if let Some(vocab) = json["model"]["vocab"].as_object_mut() {
            vocab.extend(self.new_pieces.iter().map(|(piece, id)| (piece.clone(), json!(id))));
        }
        if let Some(merges) = json["model"]["merges"].as_array_mut() {
            // As the file writes them: before tokenizers 0.20 two pieces were one string.
            let strings = merges.first().is_some_and(Value::is_string);
            merges.extend(
                self.new_merges
                    .iter()
                    .map(|(left, right)| if strings { json!(format!("{left} {right}")) } else { json!([left, right]) }),
            );
        }
        serde_json::to_vec_pretty(&json).expect("plain data")
    }
}

fn style(json: &Value) -> Option<Style> {
    let has = |stage: &Value, list: &str, test: &dyn Fn(&Value) -> bool| {
        test(stage) || stage[list].as_array().is_some_and(|stages| stages.iter().any(test))
    };
    let (normalizer, pre_tokenizer) = (&json["normalizer"], &json["pre_tokenizer"]);
    if has(pre_tokenizer, "pretokenizers", &|stage| stage["type"] == "ByteLevel") {
        return Some(Style::ByteLevel);
    }
    let replaces = |stage: &Value| stage["type"] == "Replace" && stage["content"] == SPACE.to_string();
    let is_sentence_piece = has(normalizer, "normalizers", &replaces)
        || has(pre_tokenizer, "pretokenizers", &|stage| stage["type"] == "Metaspace");
    is_sentence_piece.then_some(Style::SentencePiece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::{Model, Tokenizer};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// With merges whose parts and results were there before, and some that are new.
        #[test]
        fn short_texts_are_segmented_as_the_model_does(
            joined in prop::collection::vec((0usize..400, 0usize..400), 0..40),
            texts in prop::collection::vec("[a-h ]{0,12}|[ae]{0,20}|the (sister|book|thought) ?", 1..8),
        ) {
            let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tokenizers/bytes/tokenizer.json"));
            let bytes = tokenmill_shared::storage::read(path).unwrap();
            let mut vocabulary = Vocabulary::parse(path, &bytes, 600).unwrap();
            let special: Vec<u32> = vocabulary.special().collect();
            for (left, right) in joined {
                let pair = [left as u32 + 20, right as u32 + 20];
                if pair.iter().all(|id| !special.contains(id)) {
                    vocabulary.add_merge(pair[0], pair[1]);
                }
            }
            let tokenizer = Tokenizer::from_bytes(vocabulary.to_json()).unwrap();
            for text in texts {
                let spelled = vocabulary.spelled(&text);
                let mut ids: Vec<u32> =
                    spelled.chars().map(|character| vocabulary.id(&character.to_string()).unwrap()).collect();
                vocabulary.merge(&mut ids);
                let tokens = tokenizer.get_model().tokenize(&spelled).unwrap();
                prop_assert_eq!(ids, tokens.iter().map(|token| token.id).collect::<Vec<_>>(), "{:?}", text);
            }
        }
    }
}
