//! Text as users have it: old encodings, nested and joined fields, and records that cannot be used.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};
use tokenmill_preprocess::{Output, PrepareOptions, Tuning, prepare};
use tokenmill_shared::config::{DataArguments, HubArguments};
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, binaries, data, digest, lines, run, with_peak_memory, within_address_space};

/// What a Chinese reader has in GBK.
const NOVEL: &str = "\u{3000}\u{3000}第一回　甄士隐梦幻识通灵　贾雨村风尘怀闺秀\n此开卷第一回也。\n";

fn gb18030(text: &str) -> Vec<u8> {
    encoding_rs::GB18030.encode(text).0.into_owned()
}

fn utf16(text: &str) -> Vec<u8> {
    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

#[test]
fn old_encodings_give_the_blocks_of_utf_8_and_are_reported() {
    let place = Place::new();
    let text = NOVEL.repeat(20) + &lines(20, 3);
    place.write("text/a.txt", &text);
    place.write("text/b.txt", &text);
    place.write("text/c/d.txt.gz", {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    });
    run(&mut place.prepare("expected", &[])).ok();
    place.write("text/a.txt", gb18030(&text));
    place.write("text/b.txt", utf16(&text));
    run(&mut place.prepare("strict", &[])).fails(3, &["a.txt:1 (byte 0)", "--encoding", "gb18030"]);
    let found = run(&mut place.prepare("auto", &["--encoding", "auto"])).ok();
    assert!(found.stderr.contains("1 of 3 files are gb18030: a.txt"), "{}", found.stderr);
    assert_eq!(found.json()["encodings"], json!({"gb18030": ["a.txt"], "utf-16-le": ["b.txt"]}));
    assert_eq!(digest(&place.path("auto/train")), digest(&place.path("expected/train")));
    place.write("text/b.txt", gb18030(&text));
    std::fs::remove_file(place.path("text/c/d.txt.gz")).unwrap();
    place.write("text/c/d.txt", gb18030(&text));
    run(&mut place.prepare("said", &["--encoding", "gbk"])).ok();
    assert_eq!(digest(&place.path("said/train")), digest(&place.path("expected/train")));
}

#[test]
fn fields_are_found_by_pointers_and_joined_by_templates() {
    let place = Place::new();
    let record =
        |number: u32| json!({"meta": {"title": format!("Title {number}")}, "parts": ["one", "two"], "text": "body"});
    let records: String = (0..60).map(|number| record(number).to_string() + "\n").collect();
    let joined: String =
        (0..60).map(|number| json!({"text": format!("# Title {number}\nbody (two)")}).to_string() + "\n").collect();
    place.write("text/a.jsonl", joined);
    run(&mut place.prepare("expected", &[])).ok();
    place.write("text/a.jsonl", records);
    let template = r"# {/meta/title}\n{text} ({/parts/1})";
    run(&mut place.prepare("found", &["--text_template", template])).ok();
    assert_eq!(digest(&place.path("found/train")), digest(&place.path("expected/train")));
    run(&mut place.prepare("x", &["--text_field", "/meta/name"]))
        .fails(3, &["a.jsonl:1", "/meta/name", "--text_field"]);
    run(&mut place.prepare("x", &["--text_template", "{title"])).fails(2, &["--text_template", "not closed"]);
    let mut inspect = Command::new(&binaries().preprocess);
    let inspected = run(inspect.arg("inspect").arg(place.path("found")).args(["--json", "true"])).ok();
    assert_eq!(inspected.json()["settings"]["documents"]["text_template"], template);
}

#[test]
fn bad_records_fail_are_left_out_or_kept_aside() {
    let place = Place::new();
    let good: Vec<String> = lines(60, 8).lines().map(|line| json!({"text": line}).to_string() + "\n").collect();
    place.write("text/a.jsonl", good.concat());
    run(&mut place.prepare("expected", &[])).ok();
    let bad: [&[u8]; 4] =
        [b"{\"text\": \"cut\n", b"{\"text\": \"\xff\"}\n", b"{\"body\": \"no\"}\n", b"{\"text\": null}\n"];
    let mut mixed = Vec::new();
    for (number, line) in good.iter().enumerate() {
        if let Some(bad) = bad.get(number / 10).filter(|_| number % 10 == 0) {
            mixed.extend_from_slice(bad);
        }
        mixed.extend_from_slice(line.as_bytes());
    }
    place.write("text/a.jsonl", &mixed);
    run(&mut place.prepare("failed", &[])).fails(3, &["a.jsonl:1 ", "not a JSON object", "--on_bad_record skip"]);
    assert!(!place.path("failed").exists());

    let skipped = run(&mut place.prepare("skipped", &["--on_bad_record", "skip"])).ok();
    assert_eq!(digest(&place.path("skipped/train")), digest(&place.path("expected/train")));
    let counts = json!({"invalid_encoding": 1, "invalid_json": 1, "missing_field": 1, "not_text": 1});
    assert_eq!(skipped.json()["manifest"]["rejected_records"], counts);
    assert!(skipped.stderr.contains("left out: 1 records (missing_field), the first"), "{}", skipped.stderr);
    assert!(skipped.stderr.contains("a.jsonl:23 "), "{}", skipped.stderr);

    // What is remembered of the file does not let it pass where it must fail.
    run(&mut place.prepare("failed", &[])).fails(3, &["a.jsonl:1 "]);
    for (limit, passes) in [("4", true), ("3", false), ("-1", true), ("0", false)] {
        for rehash in ["false", "true"] {
            let flags = ["--on_bad_record", "skip", "--max_bad_records", limit, "--rehash", rehash];
            let ended = run(&mut place.prepare(&format!("limit{limit}{rehash}"), &flags));
            if passes {
                ended.ok();
            } else {
                ended.fails(3, &["a.jsonl", "--max_bad_records", limit]);
            }
        }
    }

    let kept = run(&mut place.prepare("kept", &["--on_bad_record", "quarantine"])).ok();
    assert_eq!(digest(&place.path("kept")), digest(&place.path("skipped")));
    let path = place.path("kept.quarantine.jsonl");
    assert_eq!(kept.json()["quarantine"], json!(path));
    let kept = std::fs::read_to_string(&path).unwrap();
    let entries: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let records: Vec<&Value> = entries.iter().map(|entry| &entry["record"]).collect();
    assert_eq!(records, [&json!(1), &json!(12), &json!(23), &json!(34)]);
    assert_eq!(entries[0]["text"], "{\"text\": \"cut");
    assert_eq!(entries[1]["base64"], "eyJ0ZXh0IjogIv8ifQ==");
    assert_eq!(entries[2]["reason"], "missing_field");
    std::fs::remove_file(&path).unwrap();
    run(&mut place.prepare("kept", &["--on_bad_record", "quarantine"])).ok();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), kept, "written again where nothing else is to do");
}

/// A document that cannot be is passed over in the memory of one that can.
#[test]
fn a_line_without_end_costs_time_and_no_memory() {
    let ledger = Run::of("bytes of a line without end", 5 << 28, 10 << 30);
    let place = Place::new();
    let path = place.write("text/a.txt", "before\n");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(ledger.size).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(format!("\n{}", "after\n".repeat(30)).as_bytes()).unwrap();
    let prepare = place.prepare("out", &["--on_bad_record", "skip", "--preprocessing_num_workers", "1"]);
    // 1.5 GiB of address space, which is more than of memory; a buffer that doubles would go beyond it.
    let ended = run(&mut within_address_space(&prepare, 3 << 29)).ok();
    let out = ended.json();
    assert_eq!(out["manifest"]["rejected_records"], json!({"too_long": 1}));
    assert_eq!(out["manifest"]["splits"]["train"]["documents"], 31);
    let fails = run(&mut place.prepare("no", &[]));
    fails.fails(3, &["a.txt:2 (byte 7)", "the limit is 67108864", "--on_bad_record skip"]);
    ledger.passed();
}

/// Each is a document of one character.
#[test]
fn empty_lines_cost_no_memory() {
    let ledger = Run::of("empty lines", 1_000_000, 100_000_000);
    let place = Place::new();
    place.write("text/a.txt", ["before\n", &"\n".repeat(ledger.size as usize), "after\n"].concat());
    let flags = ["--preprocessing_num_workers", "2", "--token_cache", "false"];
    let (ended, peak) = with_peak_memory(&mut place.prepare("out", &flags));
    ended.ok();
    assert!(peak < 96 << 20, "{} MiB", peak >> 20);
    ledger.passed();
}

/// A file, a pattern, a list and standard input name what lies in a directory.
#[test]
fn files_are_named_one_by_one_by_patterns_lists_and_standard_input() {
    let place = Place::new();
    let parts = [lines(30, 1), lines(30, 2), lines(30, 3)];
    for (name, part) in ["a.txt", "b.txt", "c.txt"].iter().zip(&parts) {
        place.write(&format!("text/{name}"), part);
    }
    place.write("text/notes.md", "not read");
    run(&mut place.prepare("expected", &[])).ok();
    let expected = digest(&place.path("expected/train"));
    let list = place.write("list", "text/a.txt\n\ntext/b.txt\n  text/c.txt\n");
    let list = format!("@{}", list.display());
    let prepare = |output: &str, files: &[&str]| {
        let mut command = Command::new(&binaries().preprocess);
        command.arg("prepare").arg("--output_dir").arg(place.path(output)).arg("--train_file").args(files);
        command.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
        command.arg("--cache_dir").arg(place.path("cache")).current_dir(place.path(""));
        command.args(["--block_size", "16", "--validation_split_percentage", "0"]);
        command
    };
    let absolute = place.path("text/b.txt");
    for (number, files) in [
        &["text/a.txt", "text/b.txt", "text/c.txt"][..],
        &["text/*"],
        &["text/[ab].txt", "**/c.txt"],
        &[&list],
        &["text/a.txt", absolute.to_str().unwrap(), "text/c*"],
    ]
    .iter()
    .enumerate()
    {
        run(&mut prepare(&format!("out{number}"), files)).ok();
        assert_eq!(digest(&place.path(&format!("out{number}/train"))), expected, "{files:?}");
    }
    run(&mut prepare("other", &["text/c.txt", "text/b.txt", "text/a.txt"])).ok();
    assert_ne!(digest(&place.path("other/train")), expected, "the order is that of the command line");
    for (files, parts) in [
        (&["text/d.txt"][..], &["--train_file", "text/d.txt does not exist"][..]),
        (&["text"], &["--train_file", "--train_file_dir"]),
        (&["text/*.jsonl"], &["text/*.jsonl matches no"]),
        (&["text/notes.md"], &["text/notes.md is of no kind"]),
        (&["text/a.txt", "text/a*"], &["names text/a.txt twice"]),
        (&["text/a.txt", "--train_file_dir", "text"], &["--train_file_dir", "--train_file are both given"]),
        (&["-", "--validation_file", "-"], &["standard input"]),
    ] {
        run(&mut prepare("no", files)).fails(2, parts);
    }

    let piped = |output: &str, word: &str, content: &[u8]| {
        let mut command = prepare(output, &[word]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        tokenmill_tests::Ended::from(child.wait_with_output().unwrap())
    };
    piped("piped", "-", parts.concat().as_bytes()).ok();
    assert_eq!(digest(&place.path("piped/train")), expected);
    let records: String =
        parts.concat().split_inclusive('\n').map(|line| json!({"text": line}).to_string() + "\n").collect();
    piped("records", "stdin:jsonl.zst", &zstd::encode_all(records.as_bytes(), 1).unwrap()).ok();
    assert_eq!(digest(&place.path("records/train")), expected);
    piped("bad", "stdin:jsonl", b"{\"text\": 1}\n").fails(3, &["standard input:1", "a number"]);
    piped("bad", "stdin:pdf", b"").fails(2, &["--train_file", "stdin:pdf"]);
    let left: Vec<_> =
        std::fs::read_dir(place.path("cache")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".tmp-")), "{left:?}");

    run(&mut prepare("split", &["text/a.txt", "text/b.txt", "--validation_file", "text/c.txt"])).ok();
    let dirs = ["train", "valid"].map(|name| place.path(name));
    for (dir, names) in dirs.iter().zip([&["a.txt", "b.txt"][..], &["c.txt"]]) {
        std::fs::create_dir(dir).unwrap();
        for name in names {
            std::fs::copy(place.path("text").join(name), dir.join(name)).unwrap();
        }
    }
    let [train, valid] = dirs.map(|dir| dir.to_str().unwrap().to_owned());
    run(&mut place.prepare("divided", &["--train_file_dir", &train, "--validation_file_dir", &valid])).ok();
    assert_eq!(digest(&place.path("split/validation")), digest(&place.path("divided/validation")));
}

/// Row groups of seven rows each.
fn parquet_of(texts: &[&str]) -> Vec<u8> {
    let column = |texts: &[String]| Arc::new(StringArray::from_iter_values(texts)) as ArrayRef;
    let batch = |texts: &[&str]| {
        let text: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let other: Vec<String> = texts.iter().map(|text| format!("other {text}")).collect();
        RecordBatch::try_from_iter([("other", column(&other)), ("text", column(&text))]).unwrap()
    };
    let mut writer = ArrowWriter::try_new(Vec::new(), batch(&[]).schema(), None).unwrap();
    for rows in texts.chunks(7) {
        writer.write(&batch(rows)).unwrap();
        writer.flush().unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn row_groups_of_parquet_give_the_same_whatever_the_threads_and_partitions_and_other_columns_are_not_read() {
    let place = Place::new();
    let all = lines(100, 8);
    let texts: Vec<&str> = all.lines().collect();
    let json = |text: &&str| format!("{}\n", json!({"text": text}));
    place.write("json/a.jsonl", texts.iter().map(json).collect::<String>());
    let mut file = parquet_of(&texts);
    let metadata = SerializedFileReader::new(bytes::Bytes::from(file.clone())).unwrap();
    let groups = metadata.metadata().row_groups();
    assert_eq!(groups.len(), texts.len().div_ceil(7));
    for group in groups {
        let (start, length) = group.column(0).byte_range();
        file[start as usize..(start + length) as usize].fill(0xff);
    }
    place.write("parquet/a.parquet", file);
    let prepared = |text: &str, output: &str, workers: usize, partition_bytes: u64| {
        let options = PrepareOptions {
            data: DataArguments {
                train_file_dir: Some(place.path(text)),
                cache_dir: Some(place.path(&format!("cache-{output}"))),
                block_size: Some(16),
                preprocessing_num_workers: Some(workers),
                ..DataArguments::default()
            },
            hub: HubArguments::default(),
            tokenizer: data("tokenizers/bytes"),
            model: None,
            output: Output::Directory(place.path(output)),
            tuning: Tuning { partition_bytes, ..Tuning::default() },
        };
        let prepared = prepare(&options).unwrap();
        (digest(&place.path(output).join("train")), prepared.reuse.partitions_tokenized)
    };
    let (expected, _) = prepared("json", "json-out", 1, 64 << 20);
    for workers in [1, 5] {
        for partition_bytes in [150, 64 << 20] {
            let output = format!("out-{workers}-{partition_bytes}");
            let (found, partitions) = prepared("parquet", &output, workers, partition_bytes);
            assert_eq!(found, expected, "{output}");
            assert_eq!(partitions > 10, partition_bytes == 150, "{partitions} partitions");
        }
    }
}
