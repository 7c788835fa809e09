//! The reference engine: the `tokenizers` crate, behind a guard against its panics.

use std::path::Path;

use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Tokenizer,
};
use tokenmill_shared::{Error, Result};

use super::guard;
use super::pieces::Working;
use super::{Engine, Token};
use crate::document::Extent;

/// A tokenizer.json loaded by `tokenizers`.
pub(super) struct Reference {
    tokenizer: Tokenizer,
    largest_id: u32,
}

impl Reference {
    /// Loads `json`, the content of `path`. Crafted files can make the crate panic (merges longer than the
    /// vocabulary, templates naming absent tokens): that is an error like any other here.
    pub(super) fn load(path: &Path, json: &[u8]) -> Result<Self> {
        let refuse =
            |why: &str| Error::config(path.display().to_string(), format!("cannot be loaded as a tokenizer ({why})"));
        let mut tokenizer = guarded(|| Tokenizer::from_bytes(json)).map_err(|why| refuse(&why))?;
        // Truncation and padding are batch settings that users save by accident; they would lose tokens.
        tokenizer.with_truncation(None).map_err(|error| refuse(&error.to_string()))?;
        tokenizer.with_padding(None);
        // A template that names an absent token loads, and panics with every text.
        guard::guarded(|| tokenizer.encode_fast("a", true).ok()).map_err(|why| refuse(&why))?;
        let largest_id =
            tokenizer.get_vocab(true).into_values().max().ok_or_else(|| refuse("its vocabulary is empty"))?;
        Ok(Self { tokenizer, largest_id })
    }

    /// The ids of `text`, without special tokens, and for each the number of the pre-token it lies in.
    pub(super) fn encode_words(&self, text: &str) -> std::result::Result<Vec<(u32, Option<u32>)>, String> {
        guarded(|| {
            let encoding = self.tokenizer.encode(text, false)?;
            Ok(encoding.get_ids().iter().copied().zip(encoding.get_word_ids().iter().copied()).collect())
        })
    }

    /// The bytes of `text` that each of its ids stands for.
    pub(super) fn offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> std::result::Result<Vec<std::ops::Range<usize>>, String> {
        guarded(|| {
            let encoding = self.tokenizer.encode(text, add_special_tokens)?;
            Ok(encoding.get_offsets().iter().map(|(begin, end)| *begin..*end).collect())
        })
    }

    /// `text` as the normalizer leaves it.
    pub(super) fn normalize(&self, text: &str) -> std::result::Result<String, String> {
        guarded(|| {
            let mut normalized = NormalizedString::from(text);
            self.tokenizer.get_normalizer().map_or(Ok(()), |normalizer| normalizer.normalize(&mut normalized))?;
            Ok(normalized.get().to_owned())
        })
    }

    /// What the pre-tokenizer cuts `normalized` into, in the characters of pieces.
    pub(super) fn pre_tokens(&self, normalized: &str) -> std::result::Result<Vec<String>, String> {
        guarded(|| {
            let mut text = PreTokenizedString::from(normalized);
            self.tokenizer.get_pre_tokenizer().map_or(Ok(()), |cutter| cutter.pre_tokenize(&mut text))?;
            let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
            Ok(splits.into_iter().map(|(piece, ..)| piece.to_owned()).filter(|piece| !piece.is_empty()).collect())
        })
    }

    /// The text of `ids`, special tokens included.
    pub(super) fn decode(&self, ids: &[u32]) -> std::result::Result<String, String> {
        guarded(|| self.tokenizer.decode(ids, false))
    }

    /// The id of a token, if it has one.
    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The largest id.
    pub(super) fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// The token of an id.
    pub(super) fn token(&self, id: u32) -> Option<Token> {
        let added = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        self.tokenizer.id_to_token(id).map(|content| Token { content, added })
    }

    /// The ids that the vocabulary gives for `piece`, which is spelled as pieces are; nothing for what it does not know.
    pub(super) fn segment(&self, piece: &str) -> std::result::Result<Vec<u32>, String> {
        let unknown = match self.tokenizer.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.as_deref().and_then(|unknown| self.id_of(unknown)),
            _ => None,
        };
        let tokens = guarded(|| self.tokenizer.get_model().tokenize(piece))?;
        Ok(tokens.into_iter().map(|token| token.id).filter(|id| Some(*id) != unknown).collect())
    }
}

impl Engine for Reference {
    fn encode_part(
        &self,
        text: &str,
        _whole: Extent,
        add_special_tokens: bool,
        _working: &mut Working,
        ids: &mut Vec<u32>,
    ) -> std::result::Result<(), String> {
        let encoding = guarded(|| self.tokenizer.encode_fast(text, add_special_tokens))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    fn reference(&self) -> &Reference {
        self
    }
}

/// A call into the crate, whose panics are errors like any other.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    guard::guarded(call)?.map_err(|error| error.to_string())
}
