//! `preprocess tokenizer extend`: new pieces join what old merges leave, and nothing else changes.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tokenizers::{Model, Tokenizer};
use tokenmill_tests::{Ended, Place, binaries, data, digest, lines, run};

const STYLES: [&str; 2] = ["bytes", "pieces"];

fn extend(place: &Place, tokenizer: &Path, output: &str, more: &[&str]) -> Command {
    let mut command = Command::new(&binaries().preprocess);
    command.args(["tokenizer", "extend", "--json", "--tokenizer_name_or_path"]).arg(tokenizer);
    command.arg("--output_dir").arg(place.path(output)).args(more);
    command
}

fn tokenizer(dir: &Path) -> Tokenizer {
    Tokenizer::from_file(dir.join("tokenizer.json")).unwrap()
}

/// Text of words that are not in the test tokenizers' own text.
fn chinese() -> String {
    let text = "深度学习模型需要大量数据。我们训练语言模型，模型学习语言。数据越多，模型越好！\n糖尿病患者应当控制血糖，定期检查血糖。";
    format!("{}the mill grinds data, data and modelling data slowly\n", format!("{text}\n").repeat(4))
}

fn corpus(place: &Place) -> PathBuf {
    place.write("corpus/a.txt", chinese() + &lines(60, 3));
    place.path("corpus")
}

fn ends(encoding: &tokenizers::Encoding) -> BTreeSet<usize> {
    encoding.get_offsets().iter().map(|(_, end)| *end).collect()
}

#[test]
fn old_ids_stay_and_new_pieces_only_join_old_ones() {
    for style in STYLES {
        let place = Place::new();
        let text = corpus(&place);
        let more = ["--train_file_dir", text.to_str().unwrap(), "--num_new_tokens", "120"];
        let report = run(&mut extend(&place, &data(&format!("tokenizers/{style}")), "out", &more)).ok().json();
        let (old, new) = (tokenizer(&data(&format!("tokenizers/{style}"))), tokenizer(&place.path("out")));
        let (old_vocab, new_vocab) = (old.get_vocab(true), new.get_vocab(true));
        let first_new = old_vocab.values().max().unwrap() + 1;
        assert_eq!(report["old_ids"], first_new);
        assert!(old_vocab.iter().all(|(piece, id)| new_vocab[piece] == *id), "{style}: an old id changed");
        let mut ids: Vec<u32> = new_vocab.values().copied().collect();
        ids.sort_unstable();
        assert_eq!(ids.len() as u64, report["new_ids"].as_u64().unwrap());
        assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{style}: ids with holes");
        let mut joined = 0;
        for line in (chinese() + &lines(200, 9)).lines() {
            let (before, after) = (old.encode(line, false).unwrap(), new.encode(line, false).unwrap());
            assert!(ends(&after).is_subset(&ends(&before)), "{style}: {line:?} is cut where it was not");
            let is_old = |id: &&u32| **id < first_new;
            let kept: Vec<_> = after.get_ids().iter().filter(is_old).collect();
            joined += before.len() - kept.len();
            assert_eq!(new.decode(after.get_ids(), false).unwrap(), old.decode(before.get_ids(), false).unwrap());
        }
        assert!(joined > 100, "{style}: nothing was joined");
    }
}

#[test]
fn the_report_counts_what_the_tokenizers_give() {
    let place = Place::new();
    let text = corpus(&place);
    place.write("old/a.jsonl", "{\"text\": \"the watery part of the world\"}\n");
    let old_text = place.path("old");
    let dirs = ["--train_file_dir", text.to_str().unwrap(), "--old_text_dir", old_text.to_str().unwrap()];
    for style in STYLES {
        let source = data(&format!("tokenizers/{style}"));
        let report = run(extend(&place, &source, style, &dirs).args(["--num_new_tokens", "100"])).ok().json();
        let (old, new) = (tokenizer(&source), tokenizer(&place.path(style)));
        let content = std::fs::read_to_string(text.join("a.txt")).unwrap();
        let count = |tokenizer: &Tokenizer| -> usize {
            content.lines().map(|line| tokenizer.encode(line, false).unwrap().len()).sum()
        };
        let (before, after) = (count(&old), count(&new));
        let characters: usize = content.lines().map(|line| line.chars().count()).sum();
        assert_eq!(
            (&report["corpus"]["tokens_before"], &report["corpus"]["tokens_after"]),
            (&json!(before), &json!(after))
        );
        assert!(after * 10 < before * 9, "{style}: {before} tokens, then {after}");
        let fertility = &report["corpus"]["tokens_per_character"];
        assert_eq!(fertility, &json!([before as f64 / characters as f64, after as f64 / characters as f64]));
        let old_text = &report["old_text"];
        assert_eq!((&old_text["tokens_kept"], &old_text["documents_changed"]), (&old_text["tokens_before"], &json!(0)));
    }
}

#[test]
fn every_listed_word_becomes_one_piece() {
    let words = ["模型", "深度学习模型", "深度学习", "哈哈哈哈哈", "人工智能", "▁datum", "zzzz", "血糖血糖", "a"];
    let list = format!("{}\n模型\t-3\n<s>\n<0x0A>\n\t5\n\n<reserved_7>\nnot one word\n", words.join("\n"));
    for style in STYLES {
        let place = Place::new();
        let list = place.write("words.txt", &list);
        let source = data(&format!("tokenizers/{style}"));
        let report = run(&mut extend(&place, &source, "out", &["--word_list", list.to_str().unwrap()])).ok().json();
        let left_out = &report["left_out"];
        assert_eq!((&left_out["listed before"], &left_out["blank"]), (&json!(1), &json!(2)), "{style}: {left_out}");
        assert_eq!(left_out["a control or byte piece, in angle brackets"], 3);
        assert_eq!(left_out["the tokenizer cuts text inside it"], 1);
        assert_eq!(left_out["a piece already"], 1);
        let new = tokenizer(&place.path("out"));
        let table: HashMap<u8, char> = byte_table();
        for word in words {
            let spelled = if style == "bytes" {
                word.replace('▁', " ").bytes().map(|byte| table[&byte]).collect()
            } else {
                word.to_owned()
            };
            let tokens = new.get_model().tokenize(&spelled).unwrap();
            assert_eq!(tokens.len(), 1, "{style}: {word}");
        }
        // 深度学习模型 is made of the two words in it; only what no list names is a helper.
        let helpers = report["helper_pieces"].as_u64().unwrap();
        assert!((1..if style == "bytes" { 40 } else { 12 }).contains(&helpers), "{style}: {helpers} helper pieces");
        if style == "bytes" {
            let bytes: HashMap<char, u8> = table.into_iter().map(|(byte, character)| (character, byte)).collect();
            let ids = report["old_ids"].as_u64().unwrap() as u32..report["new_ids"].as_u64().unwrap() as u32;
            for piece in ids.map(|id| new.id_to_token(id).unwrap()) {
                let text: Vec<u8> = piece.chars().map(|character| bytes[&character]).collect();
                let cut_after_a_character = std::str::from_utf8(&text).is_err_and(|error| error.valid_up_to() > 0);
                assert!(!cut_after_a_character, "{piece} ends inside of a second character");
            }
        }
        let only_han = ["--word_list", list.to_str().unwrap(), "--word_pattern", r"^\p{Han}+$"];
        let report = run(&mut extend(&place, &source, "han", &only_han)).ok().json();
        assert_eq!(report["left_out"]["--word_pattern does not match"], 4, "{style}");
        assert!(tokenizer(&place.path("han")).token_to_id("zzzz").is_none());
        let first = run(extend(&place, &source, "first", &only_han[..2]).args(["--num_new_tokens", "1"])).ok().json();
        assert_eq!(first["new_pieces"], 1, "{style}");
    }
}

/// GPT-2's table, from its definition.
fn byte_table() -> HashMap<u8, char> {
    let printable = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    let mut table: HashMap<u8, char> = printable.map(|byte| (byte, char::from(byte))).collect();
    let mut next = 0x100;
    for byte in 0..=255u8 {
        table.entry(byte).or_insert_with(|| {
            next += 1;
            char::from_u32(next - 1).unwrap()
        });
    }
    table
}

#[test]
fn threads_do_not_change_the_files() {
    for style in STYLES {
        let place = Place::new();
        let text = corpus(&place);
        let more = ["--train_file_dir", text.to_str().unwrap(), "--num_new_tokens", "150"];
        for threads in ["1", "2", "7"] {
            let mut command = extend(&place, &data(&format!("tokenizers/{style}")), threads, &more);
            run(command.env("RAYON_NUM_THREADS", threads)).ok();
        }
        assert_eq!(digest(&place.path("1")), digest(&place.path("2")), "{style}");
        assert_eq!(digest(&place.path("1")), digest(&place.path("7")), "{style}");
    }
}

/// Qwen's and Llama 3's files: added tokens whose ids follow the vocabulary, which is where new pieces would go; and the
/// files of slow tokenizers beside it.
#[test]
fn added_tokens_keep_their_ids_and_the_other_files_follow() {
    let place = Place::new();
    let source = data("tokenizers/bytes");
    let mut json: Value = serde_json::from_slice(&std::fs::read(source.join("tokenizer.json")).unwrap()).unwrap();
    let token = |id: u64, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json["added_tokens"].as_array_mut().unwrap().extend([token(600, "<|im_start|>"), token(601, "<|im_end|>")]);
    place.write("tokenizer/tokenizer.json", serde_json::to_vec(&json).unwrap());
    place.write("tokenizer/vocab.json", serde_json::to_vec(&json["model"]["vocab"]).unwrap());
    place.write("tokenizer/merges.txt", "#version: 0.2\nt h");
    place.write("tokenizer/tokenizer.model", "of SentencePiece");
    let text = corpus(&place);
    let more = ["--train_file_dir", text.to_str().unwrap(), "--num_new_tokens", "50"];
    let ended = run(&mut extend(&place, &place.path("tokenizer"), "out", &more)).ok();
    assert!(ended.stderr.contains("tokenizer.model is left out"), "{}", ended.stderr);
    assert!(!place.path("out/tokenizer.model").exists());
    let new = tokenizer(&place.path("out"));
    assert_eq!([new.token_to_id("<|im_start|>"), new.token_to_id("<|im_end|>")], [Some(600), Some(601)]);
    let encoded = new.encode("<|im_start|>深度学习模型<|im_end|>", false).unwrap();
    assert_eq!((encoded.get_ids()[0], encoded.get_ids().last()), (600, Some(&601)));
    assert!(encoded.get_ids().iter().any(|id| *id > 601));
    let vocab: HashMap<String, u32> =
        serde_json::from_slice(&std::fs::read(place.path("out/vocab.json")).unwrap()).unwrap();
    assert_eq!((vocab.len(), vocab.values().max()), (650, Some(&651)));
    let merges = std::fs::read_to_string(place.path("out/merges.txt")).unwrap();
    assert!(merges.starts_with("#version: 0.2\nt h\n") && merges.lines().count() == 52, "{merges}");
    // And what is prepared with it is what `tokenizers` gives: the fast engine knows the new pieces.
    place.write("text/a.txt", chinese());
    let more = ["--tokenizer_name_or_path", &place.path("out").display().to_string(), "--append_eos", "false"]
        .map(str::to_owned);
    run(place.prepare("data", &[]).args(more)).ok();
    let expected: Vec<u32> =
        chinese().split_inclusive('\n').flat_map(|line| new.encode(line, true).unwrap().get_ids().to_vec()).collect();
    let shown = |row: usize| -> Ended {
        let mut command = Command::new(&binaries().preprocess);
        command.arg("inspect").arg(place.path("data")).args(["--split", "train", "--json", "--row", &row.to_string()]);
        run(&mut command).ok()
    };
    for row in 0..3 {
        assert_eq!(shown(row).json()["input_ids"], json!(expected[row * 16..][..16]), "row {row}");
    }
}

#[test]
fn mistakes_are_named() {
    let place = Place::new();
    let (text, source) = (corpus(&place), data("tokenizers/bytes"));
    let text = text.to_str().unwrap();
    let path = |name: &str, content: &[u8]| place.write(name, content).display().to_string();
    let missing = place.path("nowhere").display().to_string();
    let (binary, words) = (path("list.bin", b"word\n\xff\xfe\x00\n"), path("words.txt", "模型\n".as_bytes()));
    let (known, empty) = (path("known.txt", b"the\n<s>\n"), path("empty.txt", b""));
    std::fs::create_dir_all(place.path("nothing")).unwrap();
    let nothing = place.path("nothing").display().to_string();
    let blank = path("blank/a.txt", b"\n\n");
    let blank = Path::new(&blank).parent().unwrap().display().to_string();
    let garbage = path("garbage/a.jsonl", b"{\"text\": 3}\n");
    let garbage = Path::new(&garbage).parent().unwrap().display().to_string();
    for (more, code, parts) in [
        (vec![], 2, vec!["--train_file_dir", "--word_list"]),
        (vec!["--train_file_dir", &missing], 2, vec!["--train_file_dir", "does not exist"]),
        (vec!["--train_file_dir", &nothing], 2, vec!["--train_file_dir", "holds no .txt"]),
        (vec!["--train_file_dir", &blank], 2, vec!["--train_file_dir", "gives no new piece"]),
        (vec!["--train_file_dir", &garbage], 3, vec!["a.jsonl:1"]),
        (vec!["--word_list", &missing], 2, vec!["--word_list", "does not exist"]),
        (vec!["--word_list", &nothing], 2, vec!["--word_list", "is a directory"]),
        (vec!["--word_list", &binary], 2, vec!["--word_list", "line 2 is not UTF-8"]),
        (vec!["--word_list", &known], 2, vec!["--word_list", "gives no new piece", "1 words: a piece already"]),
        (vec!["--word_list", &empty], 2, vec!["--word_list", "gives no new piece"]),
        (vec!["--word_list", &words, "--word_pattern", "("], 2, vec!["--word_pattern", "regular expression"]),
        (vec!["--train_file_dir", text, "--word_pattern", "x"], 2, vec!["--word_pattern", "--word_list"]),
        (vec!["--train_file_dir", text, "--num_new_tokens", "0"], 2, vec!["--num_new_tokens"]),
        (vec!["--train_file_dir", text, "--character_coverage", "99"], 2, vec!["--character_coverage", "0.9995"]),
        (vec!["--train_file_dir", text, "--max_token_length", "1"], 2, vec!["--max_token_length"]),
        (vec!["--train_file_dir", text, "--output_dir", &nothing], 2, vec!["--output_dir", "exists"]),
        (vec!["--train_file_dir", text, "--old_text_dir", &missing], 2, vec!["--old_text_dir", "does not exist"]),
        (vec!["--train_file_dir", text, "--tokenizer_name_or_path", &missing], 2, vec!["--tokenizer_name_or_path"]),
    ] {
        run(&mut extend(&place, &source, "out", &more)).fails(code, &parts);
        assert!(!place.path("out").exists(), "{more:?} left something behind");
    }
    let json: Value = serde_json::from_slice(&std::fs::read(source.join("tokenizer.json")).unwrap()).unwrap();
    let other = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut changed = json.clone();
        change(&mut changed);
        place.write(&format!("{name}/tokenizer.json"), serde_json::to_vec(&changed).unwrap());
        run(&mut extend(&place, &place.path(name), "out", &["--train_file_dir", text]))
    };
    let unigram =
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": false});
    other("unigram", &|json| json["model"] = unigram.clone()).fails(2, &["tokenizer.json", "Unigram", "BPE"]);
    other("dropout", &|json| json["model"]["dropout"] = json!(0.1)).fails(2, &["dropout", "not built"]);
    other("words", &|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})).fails(2, &["neither byte-level"]);
    let mut command = Command::new(&binaries().preprocess);
    run(command.args(["tokenizer", "shrink"])).fails(2, &["extend", "shrink"]);
}
