//! Bad input: a clear message with place and remedy, an exit code by class, nothing lost.

use std::path::Path;
use std::process::Command;

use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, lines, run};

/// What is in the text directory, the flags, the exit code, and parts of the message.
type Case<'a> = (&'a str, &'a [(&'a str, &'a [u8])], &'a [&'a str], i32, &'a [&'a str]);

#[test]
fn unusable_text_is_refused_with_its_place() {
    let truncated_gz = &gzip(&lines(200, 1))[..60];
    let zst = zstd::encode_all(lines(200, 1).as_bytes(), 3).unwrap();
    let truncated_zst = &zst[..zst.len() / 2];
    let cases: &[Case<'_>] = &[
        ("no matching file", &[("a.pdf", b"x")], &[], 2, &["--train_file_dir", ".jsonl"]),
        (
            "invalid UTF-8",
            &[("a.txt", b"fine\nb\xffd\n")],
            &[],
            3,
            &["a.txt:2 (byte 6)", "UTF-8", "--encoding", "iconv"],
        ),
        (
            "malformed JSON line",
            &[("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n")],
            &[],
            3,
            &["a.jsonl:2", "not a JSON object"],
        ),
        ("missing text field", &[("a.jsonl", b"{\"body\": \"a\"}\n")], &[], 3, &["a.jsonl:1", "--text_field", "body"]),
        ("a field that is no text", &[("a.jsonl", b"{\"text\": [1]}\n")], &[], 3, &["a.jsonl:1", "an array"]),
        ("truncated gzip", &[("a.txt.gz", truncated_gz)], &[], 3, &["a.txt.gz", "truncated"]),
        ("damaged gzip", &[("a.txt.gz", b"not gzip at all")], &[], 3, &["a.txt.gz", "gzip"]),
        ("truncated zstd", &[("a.jsonl.zst", truncated_zst)], &[], 3, &["a.jsonl.zst", "truncated"]),
        ("damaged parquet", &[("a.parquet", b"PAR1 nonsense PAR1")], &[], 3, &["a.parquet", "parquet"]),
        ("only empty files", &[("a.txt", b"")], &[], 2, &["no document"]),
        ("block_size 0", &[("a.txt", b"a\n")], &["--block_size", "0"], 2, &["--block_size", "cannot be 0"]),
        ("an unknown flag", &[("a.txt", b"a\n")], &["--blok_size", "3"], 2, &["--blok_size", "--block_size"]),
        ("a flag not built", &[("a.txt", b"a\n")], &["--device_map", "cuda:0"], 2, &["--device_map", "not built yet"]),
        (
            "an empty split",
            &[("a.txt", b"a\n")],
            &["--validation_split_percentage", "5"],
            2,
            &["--validation_split_percentage", "validation"],
        ),
        ("percentage beyond", &[("a.txt", b"a\n")], &["--validation_split_percentage", "100"], 2, &["100"]),
    ];
    for (name, files, flags, code, parts) in cases {
        let place = Place::new();
        for (file, content) in *files {
            place.write(&format!("text/{file}"), content);
        }
        println!("{name}");
        run(&mut place.prepare("out", flags)).fails(*code, parts);
        assert!(!place.path("out/manifest.json").exists());
    }
    let place = Place::new();
    run(&mut place.prepare("out", &[])).fails(2, &["--train_file_dir", "does not exist"]);
    std::fs::create_dir(place.path("text")).unwrap();
    run(&mut place.prepare("out", &[])).fails(2, &["--train_file_dir", "holds no"]);
}

fn gzip(text: &str) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn unusable_tokenizers_are_refused() {
    let place = Place::new();
    place.write("text/a.txt", "a\n");
    let good = std::fs::read_to_string(data("tokenizers/bytes/tokenizer.json")).unwrap();
    let with = |json: &str, config: &str| {
        place.write("tokenizer/tokenizer.json", json);
        place.write("tokenizer/tokenizer_config.json", config);
        let tokenizer = place.path("tokenizer");
        run(&mut place.prepare("out", &["--tokenizer_name_or_path", tokenizer.to_str().unwrap()]))
    };
    with(&good, "{}").fails(2, &["--append_eos", "--append_eos false"]);
    with("{}", "{}").fails(2, &["tokenizer.json", "cannot be loaded"]);
    with(&good[..good.len() / 2], "{}").fails(2, &["tokenizer.json"]);
    with(&good, "{").fails(2, &["tokenizer_config.json", "not JSON"]);
    // A merge longer than any piece of the vocabulary makes the crate panic.
    let crafted = r#"{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":"longer","end_of_word_suffix":null,
        "fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}"#;
    assert_ne!(with(crafted, "{}").code, Some(0));
    let nowhere = place.path("nowhere");
    run(&mut place.prepare("out", &["--tokenizer_name_or_path", nowhere.to_str().unwrap()]))
        .fails(2, &["does not exist"]);
    place.write("old/tokenizer.model", "x");
    let old = place.path("old");
    run(&mut place.prepare("out", &["--tokenizer_name_or_path", old.to_str().unwrap()]))
        .fails(2, &["tokenizer.model", "neither a SentencePiece model"]);
}

/// Before anything is tokenized: a table of positions has no row beyond its last.
#[test]
fn blocks_longer_than_a_table_of_positions_are_refused() {
    let place = Place::new();
    place.write("text/a.txt", lines(50, 1));
    place.write("model/config.json", r#"{"model_type": "gpt2", "n_positions": 48}"#);
    let model = place.path("model");
    let prepare = |size: &str, output: &str| {
        run(&mut place.prepare(output, &["--block_size", size, "--model_name_or_path", model.to_str().unwrap()]))
    };
    prepare("49", "out").fails(2, &["--block_size", "48 positions", "gpt2"]);
    assert!(!place.path("out").exists());
    prepare("48", "out").ok();
    // Rotary positions go on beyond what the model was made for.
    place.write("model/config.json", r#"{"model_type": "llama", "max_position_embeddings": 48}"#);
    prepare("49", "other").ok();
}

/// The same of the trainer, with the model's own configuration, and of blocks made before.
#[test]
fn training_on_blocks_longer_than_a_table_of_positions_is_refused() {
    let place = Place::new();
    place.write("text/a.txt", lines(50, 1));
    let config =
        r#"{"model_type": "gpt2", "n_positions": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 1024}"#;
    let config = place.write("gpt2/config.json", config);
    let train = |size: &str, tokenizer: &Path, output: &str| {
        let mut command = Command::new(&binaries().trainer);
        command.arg("--init_from_config").arg(&config).arg("--output_dir").arg(place.path(output));
        command.arg("--train_file_dir").arg(place.path("text")).arg("--tokenizer_name_or_path").arg(tokenizer);
        command.arg("--cache_dir").arg(place.path("cache")).args(["--block_size", size, "--use_peft", "false"]);
        run(command.args(["--max_steps", "1", "--save_strategy", "no", "--validation_split_percentage", "0"]))
    };
    let bytes = data("tokenizers/bytes");
    train("49", &bytes, "out").fails(2, &["--block_size", "48 positions", "gpt2"]);
    assert!(!place.path("cache").exists(), "something was tokenized");
    // Scripts ask for 1024 and let the tokenizer's bound decide.
    let bounded = place.path("bounded");
    place.write("bounded/tokenizer_config.json", r#"{"eos_token": "<|endoftext|>", "model_max_length": 48}"#);
    std::fs::copy(bytes.join("tokenizer.json"), bounded.join("tokenizer.json")).unwrap();
    train("1024", &bounded, "short").ok();
    run(&mut place.prepare("data", &["--block_size", "49"])).ok();
    let mut command = Command::new(&binaries().trainer);
    command.arg("--init_from_config").arg(&config).arg("--output_dir").arg(place.path("out"));
    run(command.arg("--dataset_dir").arg(place.path("data"))).fails(2, &["--block_size", "49", "48 positions"]);
    assert!(!place.path("out").exists());
    train("48", &bytes, "out").ok();
}

#[test]
fn an_output_directory_with_other_content_is_left_alone() {
    let place = Place::new();
    place.write("text/a.txt", lines(50, 1));
    place.write("out/thesis.txt", "mine");
    run(&mut place.prepare("out", &[])).fails(2, &["thesis.txt"]);
    assert_eq!(std::fs::read_to_string(place.path("out/thesis.txt")).unwrap(), "mine");
    run(&mut place.prepare("made", &[])).ok();
    let before = digest(&place.path("made"));
    run(&mut place.prepare("made", &["--block_size", "32"])).fails(2, &["another dataset", "block_size"]);
    assert_eq!(digest(&place.path("made")), before);
}

#[test]
fn unusable_checkpoints_are_refused_with_what_is_wrong() {
    let place = Place::new();
    place.write("text/a.txt", lines(50, 1));
    run(&mut place.prepare("data", &[])).ok();
    let train = |model: &str| {
        let mut command = Command::new(&binaries().trainer);
        command.arg("--model_name_or_path").arg(place.path(model)).arg("--dataset_dir").arg(place.path("data"));
        command.arg("--output_dir").arg(place.path("run")).args(["--use_peft", "false", "--max_steps", "1"]);
        run(&mut command)
    };
    run(&mut place.train("data", "good", &["--max_steps", "1", "--save_strategy", "no"])).ok();
    let weights = std::fs::read(place.path("good/model.safetensors")).unwrap();
    let config = TINY_LLAMA.to_owned();
    type Checkpoint<'a> = (&'a str, String, &'a [u8], i32, &'a [&'a str]);
    let cases: [Checkpoint<'_>; 6] = [
        ("truncated", config.clone(), &weights[..weights.len() - 100], 3, &["model.safetensors", "truncated"]),
        ("header only", config.clone(), &weights[..6], 3, &["model.safetensors", "truncated"]),
        ("nonsense", config.clone(), b"................................", 3, &["model.safetensors"]),
        (
            "another shape",
            config.replace("\"intermediate_size\": 48", "\"intermediate_size\": 50"),
            &weights,
            3,
            &["mlp.gate_proj", "[48, 32]"],
        ),
        ("unknown family", config.replace("\"llama\"", "\"mamba\""), &weights, 2, &["model_type", "mamba", "qwen3"]),
        ("no weights", config.clone(), b"", 3, &["model.safetensors"]),
    ];
    for (name, config, weights, code, parts) in cases {
        println!("{name}");
        place.write("model/config.json", config);
        place.write("model/model.safetensors", weights);
        train("model").fails(code, parts);
        assert!(!place.path("run/checkpoint-1").exists());
    }
    train("nowhere").fails(2, &["does not exist"]);
    // Fewer embedding rows than the tokenizer has ids.
    place.write("small/config.json", TINY_LLAMA.replace("1024", "300"));
    let mut command = place.train("data", "run", &["--max_steps", "1"]);
    let small = place.path("small");
    command.args(["--init_from_config", small.to_str().unwrap()]);
    run(&mut command).fails(2, &["300 rows", "set vocab_size", "600 or more"]);
}
