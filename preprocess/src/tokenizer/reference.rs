//! The reference engine: the `tokenizers` crate, behind a guard against its panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::Tokenizer;
use tokenmill_shared::{Error, Result};

use super::Engine;

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
        let loaded = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(json)));
        let mut tokenizer =
            loaded.map_err(|_| refuse("the loader panicked"))?.map_err(|error| refuse(&error.to_string()))?;
        // Truncation and padding are batch settings that users save by accident; they would lose tokens.
        tokenizer.with_truncation(None).map_err(|error| refuse(&error.to_string()))?;
        tokenizer.with_padding(None);
        let largest_id =
            tokenizer.get_vocab(true).into_values().max().ok_or_else(|| refuse("its vocabulary is empty"))?;
        Ok(Self { tokenizer, largest_id })
    }
}

impl Engine for Reference {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> std::result::Result<(), String> {
        let encoded = catch_unwind(AssertUnwindSafe(|| self.tokenizer.encode_fast(text, add_special_tokens)));
        let encoding = encoded.map_err(|_| "the tokenizer panicked".to_owned())?.map_err(|error| error.to_string())?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    fn decode(&self, ids: &[u32]) -> std::result::Result<String, String> {
        let decoded = catch_unwind(AssertUnwindSafe(|| self.tokenizer.decode(ids, false)));
        decoded.map_err(|_| "the tokenizer panicked".to_owned())?.map_err(|error| error.to_string())
    }

    fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    fn largest_id(&self) -> u32 {
        self.largest_id
    }
}
