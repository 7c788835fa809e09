//! From the files that a tokenizer was published with to its tokenizer.json: SentencePiece models, tiktoken files,
//! and vocab.json with merges.txt.
//!
//! The result is what transformers 5.23 builds from the same directory, part by part, so that ids are its own. For
//! classes whose code comes with the model (Baichuan, ChatGLM, Qwen), it is what that code does with the library it
//! calls, as far as tokenizer.json can say it.

mod bpe;
mod class;
mod sentencepiece;
mod special;
mod tiktoken;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokenmill_shared::{Error, Result, storage};

use crate::model_config::json_file;
use bpe::Bpe;
use class::{Class, class_of};
use sentencepiece::{Algorithm, Kind, Model};
use special::{AddedToken, SpecialTokens, template};
use tiktoken::Ranks;

/// A vocabulary file beyond this is not one.
const LIMIT: u64 = 64 << 20;

/// Files that hold a SentencePiece model, or, where their authors say so, tiktoken's ranks.
const MODELS: [&str; 4] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"];

/// The character that stands for a space.
const SPACE: &str = "▁";

/// `TikTokenConverter`'s regular expression: Llama 3's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen's regular expression, the same with digits alone.
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer.json made of other files.
pub(super) struct Converted {
    /// tokenizer.json.
    pub json: Vec<u8>,
    /// The tokenizer_config.json to go with it, so that transformers loads the same.
    pub config: Value,
    /// The file it was made of.
    pub from: PathBuf,
}

/// Whether `dir` holds a SentencePiece model that stands beside tokenizer.json for a class that would read it.
pub(super) fn has_sentencepiece(dir: &Path) -> Result<bool> {
    if class::is_fast_only(&json_file(dir, "tokenizer_config.json")?) {
        return Ok(false);
    }
    Ok(match first_of(dir, &MODELS)? {
        Some(path) => Model::parse(&storage::read_at_most(&path, LIMIT)?).is_ok(),
        None => false,
    })
}

/// Converts what `dir` holds besides tokenizer.json; `None` if that is nothing to convert.
///
/// # Errors
/// [`Error::Config`] naming the file and what is wrong with it, or the class that is not converted here.
pub(super) fn convert(dir: &Path) -> Result<Option<Converted>> {
    let config = json_file(dir, "tokenizer_config.json")?;
    let source = Source::find(dir)?;
    let Some((from, source)) = source else { return Ok(None) };
    let refuse = |why: String| Error::config(from.display().to_string(), why);
    let class = class_of(&config, &json_file(dir, "config.json")?).map_err(|class| {
        refuse(format!(
            "belongs to the class {class}, which is not converted here; save it once with AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes a tokenizer.json"
        ))
    })?;
    let special = SpecialTokens::read(
        &config,
        &json_file(dir, "special_tokens_map.json")?,
        &json_file(dir, "added_tokens.json")?,
    );
    let cannot = |why: String| refuse(format!("cannot be converted to a tokenizer.json ({why})"));
    let parts = Parts::of(class, source, special, &config).map_err(cannot)?;
    parts.check_ids(class).map_err(cannot)?;
    Ok(Some(Converted { config: parts.config(class, config), json: parts.json(), from }))
}

/// What a directory holds.
enum Source {
    SentencePiece(Model),
    Tiktoken(Ranks),
    Files { vocab: Vec<u8>, merges: Vec<u8> },
}

impl Source {
    /// The first of the files that are read here.
    fn find(dir: &Path) -> Result<Option<(PathBuf, Self)>> {
        if let Some(path) = first_of(dir, &MODELS)? {
            let bytes = storage::read_at_most(&path, LIMIT)?;
            // As transformers does: a .model that is no SentencePiece model may hold tiktoken's ranks.
            let why = match Model::parse(&bytes) {
                Ok(model) => return Ok(Some((path, Self::SentencePiece(model)))),
                Err(why) => why,
            };
            return match Ranks::parse(&bytes) {
                Ok(ranks) => Ok(Some((path, Self::Tiktoken(ranks)))),
                Err(_) => Err(Error::config(
                    path.display().to_string(),
                    format!("is neither a SentencePiece model ({why}) nor a tiktoken file; copy it again"),
                )),
            };
        }
        let is_tiktoken = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tiktoken");
        if let Some(path) = storage::files_in(dir)?.into_iter().find(is_tiktoken) {
            let ranks = Ranks::parse(&storage::read_at_most(&path, LIMIT)?)
                .map_err(|why| Error::config(path.display().to_string(), format!("is no tiktoken file: {why}")))?;
            return Ok(Some((path, Self::Tiktoken(ranks))));
        }
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        if storage::stat(&vocab)?.is_none() || storage::stat(&merges)?.is_none() {
            return Ok(None);
        }
        let files = Self::Files {
            vocab: storage::read_at_most(&vocab, LIMIT)?,
            merges: storage::read_at_most(&merges, LIMIT)?,
        };
        Ok(Some((vocab, files)))
    }
}

fn first_of(dir: &Path, names: &[&str]) -> Result<Option<PathBuf>> {
    for name in names {
        let path = dir.join(name);
        if storage::stat(&path)?.is_some() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The parts of a tokenizer.json.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Value,
    /// Ids of the model's vocabulary.
    vocab: HashMap<String, u32>,
    /// Tokens that are added before those of the configuration.
    already: Vec<AddedToken>,
    special: SpecialTokens,
}

impl Parts {
    fn of(class: Class, source: Source, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
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
    fn around(model: Value, special: SpecialTokens) -> Self {
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

    /// `LlamaTokenizer`: no normalizer; spaces are marked and one is put before the first text (`legacy`: before
    /// every text between added tokens).
    fn llama(model: &Model, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
        special.default("unk_token", "<unk>");
        special.default("bos_token", "<s>");
        special.default("eos_token", "</s>");
        special.default_extra(marked_tokens(model));
        let bpe = bpe_by_id(model)?;
        let mut parts = Self::around(bpe.model(json!({"fuse_unk": true, "byte_fallback": true})), special);
        let prefix = config["add_prefix_space"].as_bool().unwrap_or(true);
        let legacy = config["legacy"].as_bool().unwrap_or(false);
        let scheme = if !prefix {
            "never"
        } else if legacy {
            "always"
        } else {
            "first"
        };
        parts.pre_tokenizer = metaspace(scheme, false);
        parts.decoder = spaces_and_bytes(prefix);
        parts.special.default_around(false, false);
        Ok(parts)
    }

    /// `GemmaTokenizer`.
    fn gemma(model: &Model, mut special: SpecialTokens) -> Result<Self, String> {
        let defaults = [("unk", "<unk>"), ("bos", "<bos>"), ("eos", "<eos>"), ("pad", "<pad>"), ("mask", "<mask>")];
        for (name, content) in defaults {
            special.default(&format!("{name}_token"), content);
        }
        special.default_extra(marked_tokens(model));
        let unk = special.token("unk_token").map_or("None", |token| &token.content).to_owned();
        let settings = json!({"unk_token": unk, "fuse_unk": true, "byte_fallback": true});
        let mut parts = Self::around(bpe_by_id(model)?.model(settings), special);
        parts.normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        parts.pre_tokenizer =
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        parts.decoder = spaces_and_bytes(false);
        parts.special.default_around(false, false);
        Ok(parts)
    }

    /// `TokenizersBackend`: what `SpmConverter.build_tokenizer_from_spm_proto` makes. It puts no space before text.
    fn generic(model: &Model, mut special: SpecialTokens) -> Result<Self, String> {
        let attributes = [
            ("bos_token", model.bos_id, &model.bos_piece, "<s>"),
            ("eos_token", model.eos_id, &model.eos_piece, "</s>"),
            ("unk_token", model.unk_id, &model.unk_piece, "<unk>"),
        ];
        for (attribute, id, piece, usual) in attributes {
            if id >= 0 {
                special.default(attribute, if piece.is_empty() { usual } else { piece });
            }
        }
        special.default_extra(marked_tokens(model));
        let built = match model.algorithm {
            Algorithm::Unigram => {
                if special.listed().next().is_some() {
                    return Err("transformers does not combine added_tokens_decoder with a Unigram model of no class"
                        .to_owned());
                }
                unigram(scored_pieces(model), i64::from(model.unk_id), model.byte_fallback)
            }
            Algorithm::Bpe => {
                let mut bpe = bpe_by_id(model)?;
                rename_placeholders(&mut bpe.vocab, &special);
                let unk = &model.unk_piece;
                bpe.model(json!({"unk_token": unk, "fuse_unk": true, "byte_fallback": model.byte_fallback}))
            }
        };
        let mut parts = Self::around(built, special);
        let mut normalizers = charsmap(model);
        normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
        parts.normalizer = json!({"type": "Sequence", "normalizers": normalizers});
        parts.decoder = if model.byte_fallback {
            spaces_and_bytes(false)
        } else {
            json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]})
        };
        parts.special.default_around(false, false);
        Ok(parts)
    }

    /// `T5Tokenizer`: sentinels behind the vocabulary, the last token behind each text.
    fn t5(model: &Model, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
        unigram_only(model)?;
        let extra_ids = config["extra_ids"].as_u64().unwrap_or(100);
        if extra_ids > 10_000 {
            return Err(format!("{extra_ids} extra_ids are too many"));
        }
        for (attribute, content) in [("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")] {
            special.default(attribute, content);
        }
        let sentinels = (0..extra_ids).map(|index| format!("<extra_id_{index}>"));
        let mut extra = marked_tokens(model);
        extra.extend(sentinels.clone().map(|content| AddedToken::new(content, true)));
        special.default_extra(extra);
        let mut pieces = scored_pieces(model);
        pieces.extend(sentinels.rev().map(|sentinel| json!([sentinel, 0.0])));
        let mut parts = Self::around(unigram(pieces, 2, false), special);
        parts.normalizer = charsmap(model).pop().unwrap_or_default();
        let space = metaspace("always", true);
        parts.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, &space]});
        parts.decoder = space;
        let end = parts.special.token("eos_token").ok_or("eos_token is missing")?.content.clone();
        let id = *parts.vocab.get(&end).ok_or_else(|| format!("the vocabulary lacks {end:?}"))?;
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let last = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        parts.post_processor = json!({
            "type": "TemplateProcessing", "single": [text("A"), last], "pair": [text("A"), last, text("B"), last],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [id], "tokens": ["</s>"]}},
        });
        Ok(parts)
    }

    /// `XGLMTokenizer`, over the vocabulary as `XGLMConverter` arranges it.
    fn xglm(model: &Model, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
        unigram_only(model)?;
        let defaults =
            [("bos", "<s>"), ("eos", "</s>"), ("sep", "</s>"), ("cls", "<s>"), ("unk", "<unk>"), ("pad", "<pad>")];
        for (name, content) in defaults {
            special.default(&format!("{name}_token"), content);
        }
        let made_up = (0..7).map(|index| format!("<madeupword{index}>"));
        special.default_extra(made_up.clone().map(|word| AddedToken::new(word, true)).collect());
        let mut pieces: Vec<Value> =
            ["<s>", "<pad>", "</s>", "<unk>"].iter().map(|piece| json!([piece, 0.0])).collect();
        pieces.extend(scored_pieces(model).into_iter().skip(3));
        pieces.extend(made_up.map(|word| json!([word, 0.0])));
        let mut parts = Self::around(unigram(pieces, 3, false), special);
        let mut normalizers = charsmap(model);
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
        parts.normalizer = json!({"type": "Sequence", "normalizers": normalizers});
        let prefix = config["add_prefix_space"].as_bool().unwrap_or(true);
        parts.pre_tokenizer = metaspace(if prefix { "always" } else { "never" }, true);
        parts.decoder = parts.pre_tokenizer.clone();
        let token = |attribute: &str| {
            let content = &parts.special.token(attribute)?.content;
            Some((content.clone(), *parts.vocab.get(content)?))
        };
        let (bos, bos_id) = token("bos_token").ok_or("bos_token is not in the vocabulary")?;
        let (eos, eos_id) = token("eos_token").ok_or("eos_token is not in the vocabulary")?;
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let end = json!({"SpecialToken": {"id": eos, "type_id": 0}});
        parts.post_processor = json!({
            "type": "TemplateProcessing", "single": [end, text("A")], "pair": [end, text("A"), end, end, text("B")],
            "special_tokens": {
                (eos.as_str()): {"id": eos, "ids": [eos_id], "tokens": [eos]},
                (bos.as_str()): {"id": bos, "ids": [bos_id], "tokens": [bos]},
            },
        });
        Ok(parts)
    }

    /// SentencePiece as it is, for classes that call it: its normalization, its prefix before every text between
    /// added tokens, merges by score. `commands` are put behind the vocabulary, where text never finds them.
    fn as_trained(model: &Model, mut special: SpecialTokens, commands: &[&str]) -> Result<Self, String> {
        if !model.marks_spaces_before {
            return Err("it does not mark spaces before words, which tokenizer.json cannot say".to_owned());
        }
        special.default("unk_token", &model.unk_piece);
        special.default("eos_token", &model.eos_piece);
        special.default_extra(marked_tokens(model).into_iter().filter(|token| !token.special).collect());
        special.match_text_as_it_is();
        let mut pieces = model.pieces.clone();
        let command = |text: &&str| sentencepiece::Piece { text: (*text).to_owned(), score: 0.0, kind: Kind::Control };
        pieces.extend(commands.iter().map(command));
        let built = match model.algorithm {
            Algorithm::Unigram => {
                let scored = pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)])).collect();
                unigram(scored, i64::from(model.unk_id), model.byte_fallback)
            }
            Algorithm::Bpe => {
                let mut by: Vec<usize> = (0..pieces.len()).filter(|at| pieces[*at].kind == Kind::Normal).collect();
                by.sort_by(|a, b| pieces[*b].score.total_cmp(&pieces[*a].score).then(a.cmp(b)));
                let vocab = pieces.iter().zip(0..).map(|(piece, id)| (piece.text.clone(), id)).collect();
                let unk = &model.unk_piece;
                Bpe::from_pieces(vocab, &by)?
                    .model(json!({"unk_token": unk, "fuse_unk": true, "byte_fallback": model.byte_fallback}))
            }
        };
        let mut parts = Self::around(built, special);
        let mut normalizers = charsmap(model);
        if model.remove_extra_whitespaces {
            // At the end it takes written marks for spaces too.
            normalizers.push(json!({"type": "Replace", "pattern": {"Regex": r"\A +|[ ▁]+\z"}, "content": ""}));
            normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
        }
        if model.add_dummy_prefix {
            normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
        parts.normalizer = json!({"type": "Sequence", "normalizers": normalizers});
        parts.decoder = spaces_and_bytes(model.add_dummy_prefix);
        Ok(parts)
    }

    /// ChatGLM2's and ChatGLM3's class: `[gMASK] sop` before each text. The roles are ChatGLM3's; its configuration
    /// lists two of them by their ids.
    fn chatglm(model: &Model, special: SpecialTokens) -> Result<Self, String> {
        const COMMANDS: [&str; 9] = [
            "[MASK]",
            "[gMASK]",
            "[sMASK]",
            "sop",
            "eop",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
        ];
        let mut parts = Self::as_trained(model, special, &COMMANDS)?;
        let before = ["[gMASK]", "sop"].map(|command| (command.to_owned(), parts.vocab[command]));
        parts.post_processor = template(&before, &[]);
        Ok(parts)
    }

    /// `TikTokenConverter`, with the added tokens that `TokenizersBackend` gives it.
    fn tiktoken(ranks: &Ranks, special: SpecialTokens) -> Result<Self, String> {
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
    fn qwen(ranks: &Ranks, mut special: SpecialTokens) -> Result<Self, String> {
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
    fn gpt2(bpe: Bpe, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
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
    fn qwen2(bpe: Bpe, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
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

    /// Added tokens are found by their order, not by the ids that the configuration gives them. transformers takes no
    /// notice of a difference; the code that comes with a model takes the ids.
    fn check_ids(&self, class: Class) -> Result<(), String> {
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
    fn json(&self) -> Vec<u8> {
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
    fn config(&self, class: Class, config: Value) -> Value {
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

/// Pieces that transformers makes added tokens: control pieces, which are special, and those users defined.
fn marked_tokens(model: &Model) -> Vec<AddedToken> {
    let marked = model.pieces.iter().filter(|piece| matches!(piece.kind, Kind::Control | Kind::UserDefined));
    marked.map(|piece| AddedToken::new(&piece.text, piece.kind == Kind::Control)).collect()
}

/// Vocabulary and merges in the order of ids, whatever the scores say.
fn bpe_by_id(model: &Model) -> Result<Bpe, String> {
    let scores: Vec<f32> = model.pieces.iter().filter(|p| p.kind == Kind::Normal).map(|p| p.score).collect();
    if model.algorithm == Algorithm::Bpe && scores.windows(2).any(|pair| pair[1] > pair[0]) {
        eprintln!(
            "the SentencePiece model has scores that rise with ids (pieces were added to it): merges go by id, as in transformers 5; SentencePiece itself goes by score"
        );
    }
    let vocab = model.pieces.iter().zip(0..).map(|(piece, id)| (piece.text.clone(), id)).collect();
    Bpe::from_pieces(vocab, &(0..model.pieces.len()).collect::<Vec<_>>())
}

/// Names of the vocabulary that `added_tokens_decoder` replaces.
fn rename_placeholders(vocab: &mut [(String, u32)], special: &SpecialTokens) {
    let mut known: HashSet<String> = vocab.iter().map(|(piece, _)| piece.clone()).collect();
    for (id, token) in special.listed() {
        let entry = usize::try_from(id).ok().and_then(|at| vocab.get_mut(at));
        if let Some((piece, _)) = entry.filter(|_| known.insert(token.to_owned())) {
            known.remove(&std::mem::replace(piece, token.to_owned()));
        }
    }
}

fn scored_pieces(model: &Model) -> Vec<Value> {
    model.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)])).collect()
}

fn unigram(pieces: Vec<Value>, unk_id: i64, byte_fallback: bool) -> Value {
    json!({"type": "Unigram", "unk_id": unk_id, "vocab": pieces, "byte_fallback": byte_fallback})
}

fn unigram_only(model: &Model) -> Result<(), String> {
    match model.algorithm {
        Algorithm::Unigram => Ok(()),
        Algorithm::Bpe => Err("the class needs a Unigram model, and this one is BPE".to_owned()),
    }
}

/// The rules of normalization that came with the model, if any.
fn charsmap(model: &Model) -> Vec<Value> {
    if model.charsmap.is_empty() {
        return Vec::new();
    }
    vec![json!({"type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(&model.charsmap)})]
}

fn metaspace(prepend_scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": prepend_scheme, "split": split})
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets, "use_regex": use_regex})
}

/// Marked spaces and byte pieces back to text; `strip` takes away the space that was put before it.
fn spaces_and_bytes(strip: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}
