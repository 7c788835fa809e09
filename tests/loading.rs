//! Tokenizers as they come: SentencePiece models, tiktoken files, vocab.json with merges.txt; and as an enemy
//! would write them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_tests::{Place, data, run};

fn unconverted(name: &str) -> PathBuf {
    data("tokenizers/unconverted").join(name)
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text, true, &mut ids).unwrap_or_else(|why| panic!("{text:?}: {why}"));
    ids
}

/// A directory, and texts with the ids that the software it was made for gives.
type Expected = (String, Vec<(String, Vec<u32>)>);

/// What convert.py wrote.
fn expected() -> Vec<Expected> {
    let file: Value = serde_json::from_slice(&std::fs::read(unconverted("expected.json")).unwrap()).unwrap();
    let texts: Vec<String> = serde_json::from_value(file["texts"].clone()).unwrap();
    let of = |ids: &Value| -> Vec<(String, Vec<u32>)> {
        let ids: Vec<Vec<u32>> = serde_json::from_value(ids.clone()).unwrap();
        assert_eq!(ids.len(), texts.len());
        texts.iter().cloned().zip(ids).collect()
    };
    file["ids"].as_object().unwrap().iter().map(|(name, ids)| (name.clone(), of(ids))).collect()
}

#[test]
fn tokenizers_without_a_tokenizer_json_give_the_ids_of_their_software() {
    let expected = expected();
    assert_eq!(expected.len(), 17);
    for (name, texts) in expected {
        let tokenizer = Tokenizer::load(&unconverted(&name)).unwrap();
        assert!(tokenizer.eos_token_id.is_some(), "{name} has an end of text");
        for (text, wanted) in texts {
            assert_eq!(ids(&tokenizer, &text), wanted, "{name}: {text:?}");
        }
    }
}

/// A dataset and its checkpoints hold these files: whoever loads them later, by whatever flag, must get the same ids.
#[test]
fn what_travels_with_a_dataset_is_the_same_tokenizer() {
    let place = Place::new();
    for (name, texts) in expected() {
        let tokenizer = Tokenizer::load(&unconverted(&name)).unwrap();
        for (file, bytes) in &tokenizer.files {
            place.write(&format!("{name}/{file}"), bytes);
        }
        for use_fast in [None, Some(true), Some(false)] {
            let again = Tokenizer::open(&place.path(&name), use_fast).unwrap();
            assert_eq!(again.blake3, tokenizer.blake3, "{name} {use_fast:?}");
            assert_eq!(again.eos_token_id, tokenizer.eos_token_id, "{name}");
            for (text, wanted) in &texts {
                assert_eq!(ids(&again, text), *wanted, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn use_fast_tokenizer_chooses_between_tokenizer_json_and_the_model() {
    let place = Place::new();
    let llama = unconverted("llama");
    for file in ["tokenizer.model", "tokenizer_config.json"] {
        place.write(&format!("both/{file}"), std::fs::read(llama.join(file)).unwrap());
    }
    place.write("both/tokenizer.json", std::fs::read(data("tokenizers/pieces/tokenizer.json")).unwrap());
    let json_alone = data("tokenizers/pieces");
    let (model, json) = (Tokenizer::load(&llama).unwrap(), Tokenizer::load(&json_alone).unwrap());
    assert_ne!(model.blake3, json.blake3);
    let open = |use_fast| Tokenizer::open(&place.path("both"), use_fast).unwrap().blake3;
    assert_eq!(open(None), json.blake3);
    assert_eq!(open(Some(true)), json.blake3);
    assert_eq!(open(Some(false)), model.blake3);

    place.write("text/a.txt", "Alice was beginning\n");
    let both = place.path("both");
    for (dir, flag, wanted, note) in [
        (&both, "True", &json, ""),
        (&both, "False", &model, ""),
        (&json_alone, "False", &json, "has no SentencePiece model of its own"),
    ] {
        let name = dir.file_name().unwrap().to_str().unwrap();
        let out = format!("out-{name}-{flag}");
        let flags = ["--tokenizer_name_or_path", dir.to_str().unwrap(), "--use_fast_tokenizer", flag];
        let ended = run(&mut place.prepare(&out, &[&flags[..], &["--remainder", "pad"]].concat())).ok();
        assert!(ended.stderr.contains(note), "{}", ended.stderr);
        let made = std::fs::read(place.path(&out).join("tokenizer/tokenizer.json")).unwrap();
        assert_eq!(blake3::hash(&made).to_hex().as_str(), wanted.blake3);
    }
}

/// Names and contents of files.
type Files<'a> = Vec<(&'a str, Vec<u8>)>;

/// A directory of these files, loaded: the error's text and exit code, or the tokenizer. Never more than ten seconds.
fn load(place: &Place, files: &[(&str, Vec<u8>)]) -> Result<Tokenizer, (String, u8)> {
    let dir = place.path("hostile");
    let _ = std::fs::remove_dir_all(&dir);
    for (name, bytes) in files {
        place.write(&format!("hostile/{name}"), bytes);
    }
    let began = Instant::now();
    let loaded = Tokenizer::load(&dir).map_err(|error| (error.to_string(), error.exit_code()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {:?}", began.elapsed(), loaded.err());
    loaded
}

#[track_caller]
fn refused(place: &Place, files: &[(&str, Vec<u8>)], parts: &[&str]) {
    let (message, code) = load(place, files).map(|_| ()).unwrap_err();
    assert_eq!(code, 2, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// A field of a protobuf message: a tag, and for bytes their length.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn piece(text: &str, score: f32, kind: u64) -> Vec<u8> {
    let score = [varint(2 << 3 | 5), score.to_le_bytes().to_vec()].concat();
    field(1, &[field(1, text.as_bytes()), score, varint(3 << 3), varint(kind)].concat())
}

/// A trainer's settings: numbers only.
fn trainer(fields: &[(u64, u64)]) -> Vec<u8> {
    field(
        2,
        &fields.iter().flat_map(|(number, value)| [varint(number << 3), varint(*value)].concat()).collect::<Vec<_>>(),
    )
}

#[test]
fn hostile_sentencepiece_models_are_refused_in_bounded_time() {
    let place = Place::new();
    let small = || [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("</s>", 0.0, 3), piece("a", -1.0, 1)].concat();
    let bpe = trainer(&[(3, 2)]);
    assert!(load(&place, &[("tokenizer.model", [small(), bpe.clone()].concat())]).is_ok(), "the base of the others");
    let long = "a".repeat(60_000);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["tokenizer.model", "no pieces"]),
        ("a length beyond the file", [varint(1 << 3 | 2), varint(u64::MAX >> 1)].concat(), &["truncated"]),
        ("a number of 80 bits", vec![0xff; 12], &["neither a SentencePiece model", "64 bits"]),
        ("a group", vec![0x0b], &["wire type 3"]),
        ("no field number", vec![0x02, 0x00], &["without a number"]),
        ("a piece that is no text", field(1, &field(1, b"\xff")), &["UTF-8"]),
        ("a score that is no number", piece("a", f32::NAN, 1), &["score"]),
        ("an unknown kind", piece("a", 0.0, 9), &["kind 9"]),
        ("a word model", [small(), trainer(&[(3, 3)])].concat(), &["neither BPE nor Unigram"]),
        ("a piece twice", [small(), piece("a", -2.0, 1), bpe.clone()].concat(), &["\"a\"", "twice"]),
        ("pieces without end", [small(), piece(&long, -2.0, 1), bpe.clone()].concat(), &["too long"]),
        ("an unknown token out of range", [small(), trainer(&[(3, 1), (40, 77)])].concat(), &["cannot be loaded"]),
        ("not a model", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), &["neither", "copy it again"]),
    ];
    for (name, bytes, parts) in cases {
        println!("{name}");
        refused(&place, &[("tokenizer.model", bytes)], parts);
    }
    let config = |config: Value| ("tokenizer_config.json", config.to_string().into_bytes());
    let unigram = || ("tokenizer.model", [small(), trainer(&[(3, 1)])].concat());
    refused(
        &place,
        &[unigram(), config(json!({"tokenizer_class": "T5Tokenizer", "extra_ids": 1u64 << 40}))],
        &["extra_ids"],
    );
    refused(&place, &[unigram(), config(json!({"tokenizer_class": "GPT2Tokenizer"}))], &["Gpt2"]);
    refused(
        &place,
        &[unigram(), config(json!({"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", null]}}))],
        &["OwnTokenizer", "save_pretrained"],
    );
    // Too large to be one, and never read.
    for name in ["tokenizer.model", "tokenizer.json", "qwen.tiktoken", "vocab.json"] {
        let _ = std::fs::remove_dir_all(place.path("large"));
        let path = place.write(&format!("large/{name}"), "");
        place.write("large/merges.txt", "");
        std::fs::File::options().write(true).open(&path).unwrap().set_len((64 << 20) + 1).unwrap();
        let error = Tokenizer::load(&place.path("large")).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("67108864"), "{error}");
    }
    // Ids of added tokens count on from the vocabulary, so a far one takes no memory.
    let far =
        json!({"added_tokens_decoder": {"4294967295": {"content": "<far>"}}, "tokenizer_class": "LlamaTokenizer"});
    let loaded = load(&place, &[("tokenizer.model", [small(), bpe].concat()), config(far)]).unwrap();
    assert_eq!(loaded.largest_id(), 4);
    // Code that comes with a model takes such an id, and tokenizer.json cannot say it.
    let listed = |id: &str, token: &str| {
        let decoder = json!({id: {"content": token}});
        let config = json!({"added_tokens_decoder": decoder, "tokenizer_class": "ChatGLMTokenizer"}).to_string();
        vec![unigram(), ("tokenizer_config.json", config.into_bytes())]
    };
    refused(&place, &listed("70", "<far>"), &["\"<far>\"", "the id 70"]);
    assert_eq!(ids(&load(&place, &listed("10", "<|user|>")).unwrap(), "a<|user|>"), [5, 7, 0, 3, 10]);
    // Rules of normalization that lead nowhere: an error or an answer, by the text.
    let rules = field(3, &field(2, &[7, 0, 0, 0, 1, 2, 3]));
    if let Ok(loaded) = load(&place, &[("tokenizer.model", [small(), trainer(&[(3, 1)]), rules].concat())]) {
        let _ = loaded.encode("aaa", true, &mut Vec::new());
    }
}

/// Cut short anywhere, or with a byte changed: an error, or another tokenizer, and never a panic.
#[test]
fn damaged_models_and_tiktoken_files_never_panic() {
    let place = Place::new();
    let cases = [
        ("llama", "tokenizer.model"),
        ("t5", "spiece.model"),
        ("llama3", "tokenizer.model"),
        ("qwen", "qwen.tiktoken"),
    ];
    let (mut refusals, mut loads) = (0, 0);
    for (name, file) in cases {
        let config = std::fs::read(unconverted(name).join("tokenizer_config.json")).unwrap();
        let whole = std::fs::read(unconverted(name).join(file)).unwrap();
        let mut state = 1u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for round in 0..300 {
            let mut bytes = whole.clone();
            if round % 2 == 0 {
                bytes.truncate(next(whole.len()));
            } else {
                bytes[next(whole.len())] = next(256) as u8;
            }
            match load(&place, &[(file, bytes), ("tokenizer_config.json", config.clone())]) {
                Ok(tokenizer) => {
                    loads += 1;
                    let _ = tokenizer.encode("Alice 床前 <s> x\u{301} 12", true, &mut Vec::new());
                }
                Err((message, code)) => {
                    refusals += 1;
                    assert!(code == 2 && message.contains(file), "{message}");
                }
            }
        }
    }
    assert!(refusals > 400 && loads > 100, "{refusals} refusals, {loads} loads");
}

#[test]
fn hostile_tiktoken_and_bpe_files_are_refused() {
    let place = Place::new();
    for (name, text, parts) in [
        ("no rank", "YQ==\n", &["line 1"][..]),
        ("no base64", "YQ== 0\n*** 1\n", &["line 2"]),
        ("an empty token", "YQ== 0\n\n= 1\n", &["line 3"]),
        ("a rank beyond 32 bits", "YQ== 4294967296\n", &["line 1"]),
        ("a negative rank", "YQ== -1\n", &["line 1"]),
        ("a token twice", "YQ== 0\nYQ== 1\n", &["twice"]),
        ("a rank twice", "YQ== 0\nYg== 0\n", &["same rank"]),
        ("empty", "\n", &["no token"]),
    ] {
        println!("{name}");
        refused(&place, &[("qwen.tiktoken", text.into())], &[&["qwen.tiktoken"], parts].concat());
    }
    let base = b"YQ== 0\nYg== 1\n".to_vec();
    let far = json!({"added_tokens_decoder": {"99999999999": {"content": "<far>"}}}).to_string().into_bytes();
    refused(&place, &[("tokenizer.model", base), ("tokenizer_config.json", far)], &["99999999999"]);
    let gpt2 = ("tokenizer_config.json", br#"{"tokenizer_class": "GPT2Tokenizer"}"#.to_vec());
    let with = |vocab: &str, merges: &str, parts: &[&str]| {
        refused(&place, &[("vocab.json", vocab.into()), ("merges.txt", merges.into()), gpt2.clone()], parts);
    };
    with("[]", "", &["vocab.json"]);
    with(r#"{"a": -1}"#, "", &["vocab.json"]);
    with(r#"{"a": 0, "b": 0}"#, "", &["same id"]);
    with(r#"{"a": 0, "b": 1}"#, "#version: 0.2\na b c\n", &["line 2 of merges.txt"]);
    with(r#"{"a": 0, "b": 1}"#, "a b\n", &["cannot be loaded"]);
    with(&"[".repeat(100_000), "", &["vocab.json"]);
}

/// Each of these made the loader panic, run out of stack, or take exponential time.
#[test]
fn hostile_tokenizer_json_is_refused_in_bounded_time() {
    let place = Place::new();
    let with = |changes: &[(&str, Value)]| {
        let mut json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        });
        for (pointer, value) in changes {
            *json.pointer_mut(pointer).unwrap() = value.clone();
        }
        vec![("tokenizer.json", json.to_string().into_bytes())]
    };
    assert!(load(&place, &with(&[])).is_ok(), "the base of the others");
    let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<absent>", "type_id": 0}}],
                          "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}});
    let cases: Vec<(&str, Files<'_>)> = vec![
        ("a merge longer than any piece", with(&[("/model/continuing_subword_prefix", json!("longer"))])),
        ("a merge of absent pieces", with(&[("/model/merges", json!(["x y"]))])),
        ("a template naming an absent token", with(&[("/post_processor", template)])),
        ("an id beyond 32 bits", with(&[("/model/vocab/ab", json!(4_294_967_296u64))])),
        ("a negative id", with(&[("/model/vocab/ab", json!(-1))])),
        ("an empty vocabulary", with(&[("/model/vocab", json!({})), ("/model/merges", json!([]))])),
        ("an unknown model", with(&[("/model/type", json!("Oracle"))])),
        (
            "no regular expression",
            with(&[(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": false}),
            )]),
        ),
        ("deep nesting", vec![("tokenizer.json", ["[".repeat(200_000), "]".repeat(200_000)].concat().into_bytes())]),
        (
            "deep values",
            vec![(
                "tokenizer.json",
                [r#"{"model":"#.repeat(100_000), "1".to_owned(), "}".repeat(100_000)].concat().into_bytes(),
            )],
        ),
        ("no text", vec![("tokenizer.json", vec![0xff; 1000])]),
    ];
    for (name, files) in cases {
        println!("{name}");
        refused(&place, &files, &["tokenizer.json", "cannot be loaded"]);
    }
    // Ids that are not dense: a tokenizer like any other, in memory of its own size.
    let sparse = load(&place, &with(&[("/model/vocab/ab", json!(4_294_967_290u32))])).unwrap();
    assert_eq!((sparse.largest_id(), ids(&sparse, "abb")), (4_294_967_290, vec![4_294_967_290, 1]));
    // Backtracking without end: the document is refused, and the one after it is not.
    let split = json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false});
    let slow = load(&place, &with(&[("/pre_tokenizer", split)])).unwrap();
    let began = Instant::now();
    let why = slow.encode(&("a".repeat(40) + "!"), true, &mut Vec::new()).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(why.contains("retry-limit"), "{why}");
    assert_eq!(ids(&slow, "ab"), [2]);
}

/// The whole program on such a tokenizer: one line, the place, an exit code by class.
#[test]
fn a_document_the_tokenizer_cannot_take_is_named() {
    let place = Place::new();
    place.write("text/a.txt", format!("fine\n{}!\n", "a".repeat(40)));
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(data("tokenizers/bytes/tokenizer.json")).unwrap()).unwrap();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}, json["pre_tokenizer"]]});
    let path = place.write("tokenizer/tokenizer.json", json.to_string());
    place.write("tokenizer/tokenizer_config.json", r#"{"eos_token": "<|endoftext|>"}"#);
    let dir: &Path = path.parent().unwrap();
    run(&mut place.prepare("out", &["--tokenizer_name_or_path", dir.to_str().unwrap()]))
        .fails(3, &["a.txt:2", "cannot be tokenized", "retry-limit"]);
}
