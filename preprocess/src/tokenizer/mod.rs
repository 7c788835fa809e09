//! Loading a tokenizer and turning text into ids.
//!
//! The reference is tokenizer.json as written, by Hugging Face's `tokenizers` crate; directories without one are
//! converted to it first. The rest of the program sees only [`Tokenizer`]; other engines stand behind a trait and
//! are used where they are provably the same.

mod added;
mod bpe;
mod byte_level;
mod cache;
mod characters;
mod convert;
mod crossing;
pub mod extend;
mod guard;
mod huge;
mod keep;
mod line;
mod metaspace;
mod nfc;
mod pieces;
mod probe;
mod reference;
mod together;
mod unicode;
mod vocabulary;
mod windows;
mod words;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokenmill_shared::{Error, Result, storage};

pub use self::keep::keep;
use self::pieces::Working;
use self::reference::Reference;
use crate::document::Extent;
use crate::model_config::{json_file, model_eos};

/// A tokenizer.json beyond this is not one: the largest known (262,144 pieces) has 33 MB.
const TOKENIZER_LIMIT: u64 = 64 << 20;

/// The files of a tokenizer directory that travel with a dataset and its checkpoints.
pub const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "qwen.tiktoken",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Turns text into ids; implementations must give the ids that the reference gives.
trait Engine: Send + Sync {
    /// Appends the ids of one document; `working` is the calling thread's, and only ever this tokenizer's.
    ///
    /// # Errors
    /// The tokenizer cannot encode this text; says why.
    fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        working: &mut Working,
        ids: &mut Vec<u32>,
    ) -> std::result::Result<(), String> {
        self.encode_part(text, Extent::WHOLE, add_special_tokens, working, ids)
    }

    /// Appends the ids of a part of a document that was cut where it [may be](Self::can_cut).
    ///
    /// # Errors
    /// The tokenizer cannot encode this text; says why.
    fn encode_part(
        &self,
        text: &str,
        extent: Extent,
        add_special_tokens: bool,
        working: &mut Working,
        ids: &mut Vec<u32>,
    ) -> std::result::Result<(), String>;

    /// Whether it knows of places where a document may be cut.
    fn can_cut_anywhere(&self) -> bool {
        false
    }

    /// Whether the ids of `before` and those of `after` are the ids of both, for parts that end and begin as
    /// [`crate::document`] cuts them.
    fn can_cut(&self, _before: &str, _after: &str) -> bool {
        false
    }

    /// The reference, which answers everything else.
    fn reference(&self) -> &Reference;
}

/// What an id stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// As it stands in the vocabulary: a piece is spelled as pieces are, an added token is text.
    pub content: String,
    /// Whether it is an added token.
    pub added: bool,
}

/// A loaded tokenizer directory.
pub struct Tokenizer {
    engine: Box<dyn Engine>,
    /// Of threads that are not encoding at the moment.
    #[allow(clippy::vec_box)] // moved in and out for every batch
    working: Mutex<Vec<Box<Working>>>,
    /// BLAKE3 of tokenizer.json, in hexadecimal.
    pub blake3: String,
    /// The end-of-sequence id that the directory's files name.
    pub eos_token_id: Option<u32>,
    /// The padding id that the directory's files name.
    pub pad_token_id: Option<u32>,
    /// The longest input the tokenizer's configuration allows; `None` if it sets no bound.
    pub model_max_length: Option<usize>,
    /// Its files, by name, to copy beside what is made with it.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

/// transformers writes 1e30 where there is no bound.
fn model_max_length(config: &Value) -> Option<usize> {
    config["model_max_length"].as_f64().filter(|length| *length < 1e9).map(|length| length as usize)
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("blake3", &self.blake3).field("eos_token_id", &self.eos_token_id).finish()
    }
}

impl Tokenizer {
    /// Loads the tokenizer in `dir`.
    ///
    /// # Errors
    /// No tokenizer there, or one that cannot be loaded.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::open(dir, None)
    }

    /// Loads the tokenizer in `dir`: its tokenizer.json, or else what can be converted to one. With
    /// `use_fast_tokenizer` false, a SentencePiece model counts before tokenizer.json.
    ///
    /// # Errors
    /// No tokenizer there, or one that cannot be loaded or converted.
    pub fn open(dir: &Path, use_fast_tokenizer: Option<bool>) -> Result<Self> {
        let flag = "--tokenizer_name_or_path";
        // A store has no directories; what is not there has no tokenizer.
        if !storage::is_remote(dir) && storage::stat(dir)?.is_none() {
            let reason =
                format!("{} does not exist; give a directory with a tokenizer, or its name on a hub", dir.display());
            return Err(Error::config(flag, reason));
        }
        let path = dir.join("tokenizer.json");
        let has_json = storage::stat(&path)?.is_some();
        let wants_slow = has_json && use_fast_tokenizer == Some(false);
        let converts = !has_json || (wants_slow && convert::has_sentencepiece(dir)?);
        if wants_slow && !converts {
            eprintln!(
                "--use_fast_tokenizer false: {} has no SentencePiece model of its own, so its tokenizer.json is read",
                dir.display()
            );
        }
        let mut files = Vec::new();
        for name in FILES {
            let path = dir.join(name);
            if storage::stat(&path)?.is_some() {
                files.push((*name, storage::read_at_most(&path, TOKENIZER_LIMIT)?));
            }
        }
        let mut config = json_file(dir, "tokenizer_config.json")?;
        let mut path = path;
        if converts {
            let converted = convert::convert(dir)?.ok_or_else(|| {
                let reason = format!(
                    "{} holds no tokenizer: neither tokenizer.json nor a SentencePiece model (tokenizer.model), a .tiktoken file, or vocab.json with merges.txt",
                    dir.display()
                );
                Error::config(flag, reason)
            })?;
            files.retain(|(name, _)| !["tokenizer.json", "tokenizer_config.json"].contains(name));
            config = converted.config;
            let text = serde_json::to_vec_pretty(&config).expect("plain data");
            files.splice(..0, [("tokenizer.json", converted.json), ("tokenizer_config.json", text)]);
            path = converted.from;
        }
        let json = &files[0].1;
        let blake3 = blake3::hash(json).to_hex().to_string();
        let engine = fastest(&path, json)?;
        let special = json_file(dir, "special_tokens_map.json")?;
        let named = |key: &str| {
            let token = [&config, &special].into_iter().find_map(|file| token_named(file, key))?;
            engine.reference().id_of(&token)
        };
        let mut tokenizer = Self {
            eos_token_id: named("eos_token"),
            pad_token_id: named("pad_token"),
            model_max_length: model_max_length(&config),
            blake3,
            files,
            engine,
            working: Mutex::default(),
        };
        if tokenizer.eos_token_id.is_none() {
            tokenizer.eos_token_id = model_eos(dir)?;
        }
        Ok(tokenizer)
    }

    /// The longest input that the configuration of the tokenizer in `dir` allows, which is not loaded; `None` if it sets no
    /// bound.
    pub fn longest_input(dir: &Path) -> Result<Option<usize>> {
        Ok(model_max_length(&json_file(dir, "tokenizer_config.json")?))
    }

    /// Whether `dir` holds a tokenizer that [`load`](Self::load) could read.
    pub fn is_in(dir: &Path) -> Result<bool> {
        const ONE_OF: [&str; 6] = [
            "tokenizer.json",
            "tokenizer.model",
            "spiece.model",
            "sentencepiece.bpe.model",
            "qwen.tiktoken",
            "merges.txt",
        ];
        ONE_OF.iter().try_fold(false, |found, name| Ok(found || storage::stat(&dir.join(name))?.is_some()))
    }

    /// Its tokenizer.json, converted where the directory has none.
    pub fn json(&self) -> &[u8] {
        &self.files[0].1
    }

    /// Appends the ids of one document.
    pub fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> std::result::Result<(), String> {
        self.encoder().encode(text, add_special_tokens, ids)
    }

    /// Whether long documents need not be encoded whole.
    pub fn can_cut_anywhere(&self) -> bool {
        self.engine.can_cut_anywhere()
    }

    /// Whether the ids of both parts of a document are those of their texts in one.
    pub fn can_cut(&self, before: &str, after: &str) -> bool {
        self.engine.can_cut(before, after)
    }

    /// For many documents in a row.
    pub fn encoder(&self) -> Encoder<'_> {
        let spare = self.working.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Encoder { tokenizer: self, working: Some(spare.unwrap_or_default()) }
    }

    /// The text of `ids`, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> std::result::Result<String, String> {
        self.engine.reference().decode(ids)
    }

    /// The bytes of `text` that each of its ids stands for, by the reference; none for an id that stands for no text.
    pub fn offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> std::result::Result<Vec<std::ops::Range<usize>>, String> {
        self.engine.reference().offsets(text, add_special_tokens)
    }

    /// What an id stands for.
    pub fn token(&self, id: u32) -> Option<Token> {
        self.engine.reference().token(id)
    }

    /// The ids that this tokenizer has for a token of another one of the same kind.
    pub fn segment(&self, token: &Token) -> std::result::Result<Vec<u32>, String> {
        if token.added {
            let mut ids = Vec::new();
            self.encode(&token.content, false, &mut ids)?;
            return Ok(ids);
        }
        self.engine.reference().segment(&token.content)
    }

    /// The largest id it can produce.
    pub fn largest_id(&self) -> u32 {
        self.engine.reference().largest_id()
    }
}

/// A tokenizer in use by one thread, with what it remembers of earlier text.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    working: Option<Box<Working>>,
}

impl Encoder<'_> {
    /// Appends the ids of one document.
    pub fn encode(
        &mut self,
        text: &str,
        add_special_tokens: bool,
        ids: &mut Vec<u32>,
    ) -> std::result::Result<(), String> {
        self.encode_part(text, Extent::WHOLE, add_special_tokens, ids)
    }

    /// Appends the ids of a part of a document.
    pub fn encode_part(
        &mut self,
        text: &str,
        extent: Extent,
        add_special_tokens: bool,
        ids: &mut Vec<u32>,
    ) -> std::result::Result<(), String> {
        let working = self.working.as_mut().expect("there until it is dropped");
        self.tokenizer.engine.encode_part(text, extent, add_special_tokens, working, ids)
    }
}

impl Drop for Encoder<'_> {
    fn drop(&mut self) {
        let working = self.working.take();
        self.tokenizer.working.lock().unwrap_or_else(PoisonError::into_inner).extend(working);
    }
}

impl std::fmt::Debug for Encoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Encoder").field(self.tokenizer).finish()
    }
}

/// The fast engine that recognises `json`, the content of `path`, or else the reference. Both load at once: of Qwen's
/// vocabulary each needs a third of a second.
fn fastest(path: &Path, json: &[u8]) -> Result<Box<dyn Engine>> {
    let (reference, parsed) = std::thread::scope(|scope| {
        let parse = || {
            let json: Value = serde_json::from_slice(json).ok()?;
            let model = byte_level::Model::new(&json["model"]);
            Some((json, model))
        };
        let parsed = std::thread::Builder::new().spawn_scoped(scope, parse);
        (Reference::load(path, json), parsed.ok().and_then(|thread| thread.join().ok()).flatten())
    });
    let reference = Box::new(reference?);
    let Some((json, model)) = parsed else { return Ok(reference) };
    let reference = match byte_level::ByteLevel::new(reference, &json, model) {
        Ok(engine) => return Ok(Box::new(engine)),
        Err(reference) => reference,
    };
    Ok(match metaspace::Metaspace::new(reference, &json) {
        Ok(engine) => Box::new(engine),
        Err(reference) => reference,
    })
}

/// `"eos_token": "</s>"` or `"eos_token": {"content": "</s>", …}`.
fn token_named(file: &Value, key: &str) -> Option<String> {
    let token = &file[key];
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::cuts;

    /// Documents that can be cut, with what tokens hold on both sides of the cuts.
    pub(super) fn long() -> impl Strategy<Value = String> {
        let words = prop_oneof![
            "[a-z]{1,4}[ ,.]?",
            "[中国人文字，。]{1,5}",
            "[ \n\t]{1,3}",
            "[A-Zaé\u{301}()'\"0-9/]{1,3}",
            Just(" the".to_owned()),
            Just("'ll ".to_owned()),
            Just("文 文".to_owned()),
            Just("<s>".to_owned()),
            Just("a\nb".to_owned()),
            Just("b).\nab".to_owned()),
            Just("a. 1 a".to_owned()),
            any::<String>(),
        ];
        prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
    }

    /// The ids of `text` cut wherever it may be, and the number of parts.
    pub(super) fn ids_in_parts(engine: &dyn Engine, text: &str, special: bool) -> (Vec<u32>, usize) {
        let (mut begin, mut from, mut parts) = (0, 1, 0);
        let (mut ids, mut working) = (Vec::new(), Working::default());
        let mut part = |begin: usize, end: usize| {
            let extent = Extent { begins: begin == 0, ends: end == text.len() };
            engine.encode_part(&text[begin..end], extent, special, &mut working, &mut ids).unwrap();
            parts += 1;
        };
        while let Some(cut) = cuts::find(text, from) {
            if engine.can_cut(&text[begin..cut], &text[cut..]) {
                part(begin, cut);
                begin = cut;
            }
            from = cut + 1;
        }
        part(begin, text.len());
        (ids, parts)
    }

    /// The shipped tokenizers of all families, as they are loaded.
    #[test]
    fn what_every_family_makes_of_parts_is_what_it_makes_of_the_whole() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tokenizers"));
        let mut dirs = vec![root.join("bytes"), root.join("pieces")];
        dirs.extend(storage::list_directories(&root.join("unconverted")).unwrap());
        let text = |name: &str, characters: usize| -> String {
            let text = storage::read(&root.join("../../../quickstart/text").join(name)).unwrap();
            String::from_utf8(text).unwrap().chars().take(characters).collect()
        };
        let text = text("chinese/analects.txt", 3000) + &text("english/alice-in-wonderland.txt", 6000);
        let mut cut = 0;
        for dir in dirs {
            let Ok(tokenizer) = Tokenizer::load(&dir) else { continue };
            let mut expected = Vec::new();
            tokenizer.encode(&text, true, &mut expected).unwrap();
            let (ids, parts) = ids_in_parts(tokenizer.engine.as_ref(), &text, true);
            assert_eq!(ids, expected, "{}", dir.display());
            assert_eq!(parts > 1, tokenizer.can_cut_anywhere(), "{}", dir.display());
            cut += usize::from(parts > 100);
        }
        assert!(cut >= 5, "{cut} of them can be cut");
    }
}
