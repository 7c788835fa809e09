//! Special and added tokens as a tokenizer's configuration names them.
//!
//! The order in which transformers 5 adds them decides the ids of those that the vocabulary lacks, and the last of
//! several entries for one token decides its rules. Source: `PreTrainedTokenizerBase._from_pretrained` and
//! `TokenizersBackend.__init__` of transformers 5.23.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Map, Value, json};

/// The attributes every tokenizer may have, in the order they are added.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token that is found in text before the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct AddedToken {
    pub content: String,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    pub special: bool,
}

impl AddedToken {
    /// A token as a plain name stands for it.
    pub(super) fn new(content: impl Into<String>, special: bool) -> Self {
        let content = content.into();
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }
    }

    /// `"</s>"` or `{"content": "</s>", "lstrip": …}`; `None` for anything else.
    fn read(value: &Value) -> Option<Self> {
        if let Some(content) = value.as_str() {
            return Some(Self::new(content, true));
        }
        let flag = |name: &str, default: bool| value[name].as_bool().unwrap_or(default);
        let special = flag("special", false);
        Some(Self {
            content: value["content"].as_str()?.to_owned(),
            single_word: flag("single_word", false),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
            normalized: flag("normalized", !special),
            special,
        })
    }
}

/// What the configuration says of special and added tokens.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// Attributes with their tokens; `None` where the configuration says there is none.
    named: Vec<(String, Option<AddedToken>)>,
    /// Special tokens without an attribute; `None` if the configuration has no such list.
    extra: Option<Vec<AddedToken>>,
    /// Those of special_tokens_map.json, which count where there are no others.
    additional: Option<Vec<AddedToken>>,
    /// Added tokens by the id the configuration gives them.
    decoder: BTreeMap<u64, AddedToken>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
}

impl SpecialTokens {
    /// Reads tokenizer_config.json, special_tokens_map.json and added_tokens.json; null where one is absent.
    pub(super) fn read(config: &Value, special_map: &Value, added_tokens: &Value) -> Self {
        let mut settings = config.as_object().cloned().unwrap_or_default();
        let is_empty = |value: Option<&Value>| {
            value.is_none_or(|value| value.is_null() || value.as_array().is_some_and(Vec::is_empty))
        };
        if is_empty(settings.get("extra_special_tokens"))
            && let Some(additional) = settings.shift_remove("additional_special_tokens")
        {
            settings.insert("extra_special_tokens".to_owned(), additional);
        }
        let mut decoder = BTreeMap::new();
        if let Some(entries) = settings.get("added_tokens_decoder").and_then(Value::as_object) {
            let read = |(id, token): (&String, &Value)| Some((id.parse().ok()?, AddedToken::read(token)?));
            decoder = entries.iter().filter_map(read).collect();
        } else {
            for (key, value) in special_map.as_object().into_iter().flatten() {
                let mut value = value.clone();
                if value.is_object() && key != "extra_special_tokens" {
                    value["special"] = true.into();
                }
                settings.insert(key.clone(), value);
            }
        }
        let mut special = Self {
            named: named(&settings),
            extra: tokens(settings.get("extra_special_tokens")),
            additional: tokens(settings.get("additional_special_tokens")),
            decoder,
            add_bos: settings.get("add_bos_token").and_then(Value::as_bool),
            add_eos: settings.get("add_eos_token").and_then(Value::as_bool),
        };
        if !settings.contains_key("added_tokens_decoder") {
            for (content, id) in added_tokens.as_object().into_iter().flatten() {
                let is_special = special.is_named(content);
                let token = AddedToken { normalized: !is_special, ..AddedToken::new(content, is_special) };
                special.decoder.extend(id.as_u64().map(|id| (id, token)));
            }
        }
        // Where both give a token its rules, those of the decoder count.
        for token in special.named.iter_mut().filter_map(|(_, token)| token.as_mut()) {
            if let Some(listed) = special.decoder.values().find(|listed| listed.content == token.content) {
                *token = listed.clone();
            }
        }
        special
    }

    fn is_named(&self, content: &str) -> bool {
        let named = self.named.iter().filter_map(|(_, token)| token.as_ref());
        named.chain(self.extra.iter().flatten()).any(|token| token.content == content)
    }

    /// Gives an attribute the token that its class has where the configuration says nothing.
    pub(super) fn default(&mut self, attribute: &str, content: &str) {
        if self.named.iter().any(|(name, _)| name == attribute) {
            return;
        }
        let place = NAMED.iter().position(|name| *name == attribute).unwrap_or(NAMED.len());
        let before = |(name, _): &(String, _)| NAMED[..place].contains(&name.as_str());
        let at = self.named.iter().filter(|entry| before(entry)).count();
        self.named.insert(at, (attribute.to_owned(), Some(AddedToken::new(content, true))));
    }

    /// Special tokens without an attribute, where tokenizer_config.json has no list of them.
    pub(super) fn default_extra(&mut self, tokens: Vec<AddedToken>) {
        self.extra.get_or_insert(tokens);
    }

    /// Makes all tokens match text before it is normalized, as tokenizers written in Python have it.
    pub(super) fn match_text_as_it_is(&mut self) {
        let named = self.named.iter_mut().filter_map(|(_, token)| token.as_mut());
        for token in named.chain(self.extra.iter_mut().flatten()).chain(self.decoder.values_mut()) {
            token.normalized = false;
        }
    }

    /// Whether the first token is put before text and the last behind it, where the configuration says nothing.
    pub(super) fn default_around(&mut self, add_bos: bool, add_eos: bool) {
        self.add_bos.get_or_insert(add_bos);
        self.add_eos.get_or_insert(add_eos);
    }

    /// The token of an attribute.
    pub(super) fn token(&self, attribute: &str) -> Option<&AddedToken> {
        self.named.iter().find(|(name, _)| name == attribute)?.1.as_ref()
    }

    /// The attributes that have a token, and the token's text.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().filter_map(|(name, token)| Some((name.as_str(), token.as_ref()?.content.as_str())))
    }

    /// Added tokens by the id the configuration gives them.
    pub(super) fn listed(&self) -> impl Iterator<Item = (u64, &str)> {
        self.decoder.iter().map(|(id, token)| (*id, token.content.as_str()))
    }

    /// The special tokens without an attribute.
    pub(super) fn extra(&self) -> &[AddedToken] {
        self.extra.as_deref().unwrap_or_default()
    }

    /// All added tokens with their ids: `already` there, then listed ones, attributes and extra ones. `vocab` holds
    /// the ids of the model.
    pub(super) fn added(&self, already: Vec<AddedToken>, vocab: &HashMap<String, u32>) -> BTreeMap<u32, AddedToken> {
        let mut added = BTreeMap::new();
        add(&mut added, already, vocab);
        let is_there = |token: &AddedToken| added.values().any(|there| there == token);
        let mut new: Vec<_> = self.decoder.values().filter(|token| !is_there(token)).cloned().collect();
        let known: Vec<String> = added.values().chain(&new).map(|token| token.content.clone()).collect();
        let extra = self.extra.as_ref().or(self.additional.as_ref());
        let rest = self.named.iter().filter_map(|(_, token)| token.as_ref()).chain(extra.into_iter().flatten());
        new.extend(rest.filter(|token| !known.contains(&token.content)).cloned());
        for token in &mut new {
            token.special |= self.attributes().any(|(_, content)| content == token.content);
        }
        add(&mut added, new, vocab);
        added
    }

    /// What calling the tokenizer puts around a text, if the configuration says so.
    pub(super) fn template(&self, added: &BTreeMap<u32, AddedToken>) -> Option<Value> {
        if self.add_bos.is_none() && self.add_eos.is_none() {
            return None;
        }
        let token = |wanted: Option<bool>, attribute: &str| {
            let content = &self.token(attribute).filter(|_| wanted == Some(true))?.content;
            let (id, _) = added.iter().find(|(_, token)| token.content == *content)?;
            Some((content.clone(), *id))
        };
        let (bos, eos) = (token(self.add_bos, "bos_token"), token(self.add_eos, "eos_token"));
        Some(template(bos.as_slice(), eos.as_slice()))
    }
}

/// The post-processor that puts these tokens before and after each text.
pub(super) fn template(before: &[(String, u32)], after: &[(String, u32)]) -> Value {
    let special = |tokens: &[(String, u32)], type_id: u32| -> Vec<Value> {
        tokens.iter().map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": type_id}})).collect()
    };
    let one = |name: &str, type_id: u32| {
        let text = json!({"Sequence": {"id": name, "type_id": type_id}});
        [special(before, type_id), vec![text], special(after, type_id)].concat()
    };
    let ids: Map<String, Value> = before
        .iter()
        .chain(after)
        .map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [one("A", 0), one("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": one("A", 0), "pair": pair, "special_tokens": ids})
}

/// The attributes in the order they are added: the seven, then those that end in `_token` and hold one.
fn named(settings: &Map<String, Value>) -> Vec<(String, Option<AddedToken>)> {
    let mut named = Vec::new();
    for name in NAMED {
        if let Some(value) = settings.get(name) {
            named.push((name.to_owned(), AddedToken::read(value)));
        }
    }
    let own = settings.iter().filter(|(key, _)| key.ends_with("_token") && !NAMED.contains(&key.as_str()));
    let listed = settings.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
    for (key, value) in own.chain(listed) {
        named.extend(AddedToken::read(value).map(|token| (key.clone(), Some(token))));
    }
    named
}

fn tokens(list: Option<&Value>) -> Option<Vec<AddedToken>> {
    Some(list?.as_array()?.iter().filter_map(AddedToken::read).collect())
}

/// Adds tokens as `tokenizers` does: one that the vocabulary has keeps its id, others count on from the end.
fn add(added: &mut BTreeMap<u32, AddedToken>, tokens: Vec<AddedToken>, vocab: &HashMap<String, u32>) {
    let end = vocab.len() as u32;
    let mut next = added.keys().next_back().map_or(end, |last| end.max(last.saturating_add(1)));
    let mut ids: HashMap<String, u32> = added.iter().map(|(id, token)| (token.content.clone(), *id)).collect();
    for token in tokens.into_iter().filter(|token| !token.content.is_empty()) {
        let known = ids.get(&token.content).or_else(|| vocab.get(&token.content)).copied();
        let id = known.unwrap_or_else(|| {
            next = next.saturating_add(1);
            next - 1
        });
        ids.insert(token.content.clone(), id);
        added.insert(id, token);
    }
}
