//! The parts for classes with byte-level pieces.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::bpe::Bpe;
use super::parts::Parts;
use super::special::{AddedToken, SpecialTokens};
use super::tiktoken::Ranks;

/// `TikTokenConverter`'s regular expression: Llama 3's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen's regular expression, the same with digits alone.
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Parts {
    /// `TikTokenConverter`, with the added tokens that `TokenizersBackend` gives it.
    pub(super) fn tiktoken(ranks: &Ranks, special: SpecialTokens) -> Result<Self, String> {
        let mut extra: Vec<String> = special.extra().iter().map(|token| token.content.clone()).collect();
        let listed: HashMap<u64, &str> = special.listed().collect();
        let base = ranks.len() as u64;
        if let Some(last) = listed.keys().max().filter(|last| **last >= base) {
            if last - base > 1 << 20 {
                return Err(format!(
                    "added_tokens_decoder has the id {last}, far behind the {base} tokens of the file"
                ));
            }
            let reserved = |id: u64| format!("<|reserved_token_{id}|>");
            let mut baked: Vec<String> = (base..=*last)
                .map(|id| listed.get(&id).map_or_else(|| reserved(id), |token| (*token).to_owned()))
                .collect();
            extra.retain(|token| !baked.contains(token));
            baked.append(&mut extra);
            extra = baked;
        }
        let mut parts = Self::around(ranks.bpe()?.model(json!({"ignore_merges": true})), special);
        parts.already = extra.into_iter().map(|token| AddedToken::new(token, true)).collect();
        parts.split_bytes(LLAMA3, false);
        parts.post_processor = byte_level(true, false, true);
        Ok(parts)
    }

    /// The first Qwen's own class: NFC, digits alone, its special tokens behind the ranks.
    pub(super) fn qwen(ranks: &Ranks, mut special: SpecialTokens) -> Result<Self, String> {
        special.default("eos_token", "<|endoftext|>");
        let mut parts = Self::around(ranks.bpe()?.model(json!({"ignore_merges": true})), special);
        let names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
        let names = names.into_iter().chain((0..205).map(|index| format!("<|extra_{index}|>")));
        parts.already = names.map(|name| AddedToken::new(name, true)).collect();
        parts.normalizer = json!({"type": "NFC"});
        parts.split_bytes(QWEN, false);
        parts.special.default_around(false, false);
        Ok(parts)
    }

    /// `GPT2Tokenizer`.
    pub(super) fn gpt2(bpe: Bpe, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
        for attribute in ["unk_token", "bos_token", "eos_token"] {
            special.default(attribute, "<|endoftext|>");
        }
        let affixes = json!({"continuing_subword_prefix": "", "end_of_word_suffix": ""});
        let mut parts = Self::around(bpe.model(affixes), special);
        parts.pre_tokenizer = byte_level(config["add_prefix_space"].as_bool().unwrap_or(false), true, true);
        parts.decoder = byte_level(true, true, true);
        parts.special.default_around(false, false);
        Ok(parts)
    }

    /// `Qwen2Tokenizer`.
    pub(super) fn qwen2(bpe: Bpe, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
        for attribute in ["unk_token", "eos_token", "pad_token"] {
            special.default(attribute, "<|endoftext|>");
        }
        let affixes = json!({"continuing_subword_prefix": "", "end_of_word_suffix": ""});
        let mut parts = Self::around(bpe.model(affixes), special);
        parts.normalizer = json!({"type": "NFC"});
        parts.split_bytes(QWEN, config["add_prefix_space"].as_bool().unwrap_or(false));
        parts.special.default_around(false, false);
        Ok(parts)
    }

    /// Pieces by a regular expression, then bytes.
    fn split_bytes(&mut self, regex: &str, add_prefix_space: bool) {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let bytes = byte_level(add_prefix_space, true, false);
        self.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
        self.decoder = byte_level(true, true, true);
    }
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets, "use_regex": use_regex})
}
