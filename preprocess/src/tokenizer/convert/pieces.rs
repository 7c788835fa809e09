//! The parts for classes with a SentencePiece model.

use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::bpe::Bpe;
use super::parts::Parts;
use super::sentencepiece::{Algorithm, Kind, Model, Piece};
use super::special::{AddedToken, SpecialTokens, template};

/// The character that stands for a space.
const SPACE: &str = "▁";

impl Parts {
    /// `LlamaTokenizer`: no normalizer; spaces are marked and one is put before the first text (`legacy`: before
    /// every text between added tokens).
    pub(super) fn llama(model: &Model, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
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
    pub(super) fn gemma(model: &Model, mut special: SpecialTokens) -> Result<Self, String> {
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
    pub(super) fn generic(model: &Model, mut special: SpecialTokens) -> Result<Self, String> {
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
    pub(super) fn t5(model: &Model, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
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
    pub(super) fn xglm(model: &Model, mut special: SpecialTokens, config: &Value) -> Result<Self, String> {
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
    pub(super) fn as_trained(model: &Model, mut special: SpecialTokens, commands: &[&str]) -> Result<Self, String> {
        if !model.marks_spaces_before {
            return Err("it does not mark spaces before words, which tokenizer.json cannot say".to_owned());
        }
        special.default("unk_token", &model.unk_piece);
        special.default("eos_token", &model.eos_piece);
        special.default_extra(marked_tokens(model).into_iter().filter(|token| !token.special).collect());
        special.match_text_as_it_is();
        let mut pieces = model.pieces.clone();
        let command = |text: &&str| Piece { text: (*text).to_owned(), score: 0.0, kind: Kind::Control };
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
    pub(super) fn chatglm(model: &Model, special: SpecialTokens) -> Result<Self, String> {
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
