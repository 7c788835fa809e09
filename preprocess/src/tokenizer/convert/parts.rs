//! The parts of a tokenizer.json, and what of them depends on added tokens.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Source;
use super::bpe::Bpe;
use super::class::Class;
use super::special::{AddedToken, SpecialTokens};

/// The parts of a tokenizer.json.
pub(super) struct Parts {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
    pub(super) model: Value,
    /// Ids of the model's vocabulary.
    pub(super) vocab: HashMap<String, u32>,
    /// Tokens that are added before those of the configuration.
    pub(super) already: Vec<AddedToken>,
    pub(super) special: SpecialTokens,
}

impl Parts {
    pub(super) fn of(class: Class, source: Source, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
        match (class, source) {
            (Class::Qwen, Source::Tiktoken(ranks)) => Self::qwen(&ranks, special),
            (_, Source::Tiktoken(ranks)) => Self::tiktoken(&ranks, special),
            (Class::Gpt2, Source::Files { vocab, merges }) => {
                Self::gpt2(Bpe::from_files(&vocab, &merges)?, special, config)
            }
            (Class::Qwen2, Source::Files { vocab, merges }) => {
                Self::qwen2(Bpe::from_files(&vocab, &merges)?, special, config)
            }
            (Class::Llama, Source::SentencePiece(model)) => Self::llama(&model, special, config),
            (Class::Gemma, Source::SentencePiece(model)) => Self::gemma(&model, special),
            (Class::Generic, Source::SentencePiece(model)) => Self::generic(&model, special),
            (Class::T5, Source::SentencePiece(model)) => Self::t5(&model, special, config),
            (Class::Xglm, Source::SentencePiece(model)) => Self::xglm(&model, special, config),
            (Class::Baichuan, Source::SentencePiece(model)) => {
                special.default("bos_token", &model.bos_piece);
                special.default_around(true, false);
                Self::as_trained(&model, special, &[])
            }
            (Class::ChatGlm, Source::SentencePiece(model)) => Self::chatglm(&model, special),
            (class, Source::SentencePiece(_)) => {
                Err(format!("a SentencePiece model is not what the class {class:?} has"))
            }
            (class, Source::Files { .. }) => Err(format!(
                "vocab.json and merges.txt are not what the class {class:?} has; GPT2Tokenizer and Qwen2Tokenizer have them"
            )),
        }
    }

    /// The parts around a model, with nothing before and after it.
    pub(super) fn around(model: Value, special: SpecialTokens) -> Self {
        let vocab = match &model["vocab"] {
            Value::Array(pieces) => {
                let id = |(id, piece): (usize, &Value)| (piece[0].as_str().unwrap_or_default().to_owned(), id as u32);
                pieces.iter().enumerate().map(id).collect()
            }
            vocab => {
                let id = |(piece, id): (&String, &Value)| (piece.clone(), id.as_u64().unwrap_or_default() as u32);
                vocab.as_object().into_iter().flatten().map(id).collect()
            }
        };
        Self {
            normalizer: Value::Null,
            pre_tokenizer: Value::Null,
            post_processor: Value::Null,
            decoder: Value::Null,
            model,
            vocab,
            already: Vec::new(),
            special,
        }
    }

    /// Added tokens are found by their order, not by the ids that the configuration gives them. transformers takes no
    /// notice of a difference; the code that comes with a model takes the ids.
    pub(super) fn check_ids(&self, class: Class) -> Result<(), String> {
        let added = self.special.added(self.already.clone(), &self.vocab);
        let made: HashMap<&str, u32> = added.iter().map(|(id, token)| (token.content.as_str(), *id)).collect();
        let differs = |(id, token): &(u64, &str)| made.get(token).is_some_and(|made| u64::from(*made) != *id);
        let Some((id, token)) = self.special.listed().find(differs) else { return Ok(()) };
        let what = format!("added_tokens_decoder gives {token:?} the id {id}, and tokenizer.json {}", made[token]);
        match class {
            Class::Baichuan | Class::ChatGlm | Class::Qwen => Err(what),
            _ => {
                eprintln!("{what}, as in transformers 5");
                Ok(())
            }
        }
    }

    /// tokenizer.json.
    pub(super) fn json(&self) -> Vec<u8> {
        let added = self.special.added(self.already.clone(), &self.vocab);
        let listed: Vec<Value> = added
            .iter()
            .map(|(id, token)| {
                let mut entry = json!({"id": id});
                entry.as_object_mut().expect("an object").extend(token_fields(token));
                entry
            })
            .collect();
        let post_processor = match &self.post_processor {
            fixed if is_template(fixed) => fixed.clone(),
            other => self.special.template(&added).unwrap_or_else(|| other.clone()),
        };
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": listed,
            "normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer, "post_processor": post_processor,
            "decoder": self.decoder, "model": self.model,
        });
        serde_json::to_vec(&json).expect("plain data")
    }

    /// The configuration to go with tokenizer.json. Classes that rebuild a tokenizer from its vocabulary alone are
    /// kept where they rebuild this one; otherwise it names the class that takes tokenizer.json as it is.
    pub(super) fn config(&self, class: Class, config: Value) -> Value {
        let mut config = config.as_object().cloned().unwrap_or_default();
        if matches!(class, Class::Generic | Class::Baichuan | Class::ChatGlm | Class::Qwen) {
            config.shift_remove("auto_map");
            config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        }
        for (attribute, content) in self.special.attributes() {
            let entry = config.entry(attribute).or_insert(Value::Null);
            if entry.is_null() {
                *entry = content.into();
            }
        }
        config.into()
    }
}

fn is_template(post_processor: &Value) -> bool {
    post_processor["type"] == "TemplateProcessing"
}

fn token_fields(token: &AddedToken) -> serde_json::Map<String, Value> {
    match serde_json::to_value(token) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("a struct of plain fields"),
    }
}
