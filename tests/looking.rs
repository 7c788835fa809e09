//! Looking before and after: what a run would take, what a dataset is like, where a token came from, what a machine has.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Ended, Place, binaries, data, digest, lines, root, run};

use crate::fault::shim;

fn size_of(dir: &Path) -> u64 {
    digest(dir).into_keys().map(|path| std::fs::metadata(dir.join(path)).unwrap().len()).sum()
}

#[track_caller]
fn within_ten_percent(what: &str, said: &Value, found: u64) {
    let ratio = said.as_f64().unwrap() / found as f64;
    assert!((0.9..1.1).contains(&ratio), "{what}: said {said}, found {found}");
}

/// English, Chinese and short lines of both, more than is sampled.
#[test]
fn a_dry_run_is_right_within_ten_percent_and_writes_nothing() {
    let place = Place::new();
    let chinese = std::fs::read_to_string(root().join("quickstart/text/chinese/analects.txt")).unwrap();
    let english = std::fs::read_to_string(root().join("quickstart/text/english/alice-in-wonderland.txt")).unwrap();
    place.write("text/a.txt", lines(40_000, 3));
    place.write("text/b.txt", chinese.repeat(70));
    place.write("text/c.txt", english.repeat(40));
    let flags = ["--block_size", "128", "--sample_by", "paragraph"];
    for (output, more) in [("stream", &[][..]), ("padded", &["--packing", "false"])] {
        let flags = [&flags[..], more].concat();
        let dry = run(place.prepare(output, &flags).arg("--dry_run")).ok().json();
        assert!(!place.path(output).exists());
        assert_eq!(dry["tokens_are_counted"], output == "padded", "what is in the store is known");
        let json = run(&mut place.prepare(output, &flags)).ok().json();
        let split = &json["manifest"]["splits"]["train"];
        within_ten_percent("tokens", &dry["tokens"], split["ledger"]["read"].as_u64().unwrap());
        within_ten_percent("dataset", &dry["dataset_bytes"], size_of(&place.path(output)));
        assert_eq!((&dry["documents"], &dry["text_bytes"]), (&split["documents"], &split["text_bytes"]));
        if output == "stream" {
            within_ten_percent("store", &dry["store_bytes"], size_of(&place.path("cache/tokens")));
        } else {
            assert_eq!((&dry["partitions_reused"], &dry["store_bytes"]), (&dry["partitions"], &0.into()));
        }
    }
}

#[test]
fn a_dry_run_refuses_what_will_not_fit() {
    let place = Place::new();
    place.write("text/a.txt", lines(4_000, 1));
    let small = place.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&small));
    if mounted.code != Some(0) {
        println!("cannot mount a tmpfs here ({})", mounted.stderr.trim());
        return;
    }
    let ended = run(place.prepare("small/out", &[]).arg("--dry_run"));
    let unmounted = run(Command::new("umount").arg(&small));
    ended.fails(4, &["small/out", "it takes about", "are free", "no space left"]);
    unmounted.ok();
    run(place.prepare("out", &[]).arg("--dry_run")).ok();
}

#[test]
fn statistics_balance_and_the_report_shows_them() {
    let place = Place::new();
    place.write("text/books/a.txt", "the mill grinds\n磨坊把文字\n\n1984 (); a[i] = {x_1}\n".repeat(50));
    place.write("text/<b>&.txt", lines(50, 2));
    place.write("text/c.jsonl", "{\"text\": \"words\"}\n{\"text\": \n");
    let report = place.path("report.html");
    let bad = ["--on_bad_record", "skip"];
    let flags = ["--validation_split_percentage", "20", "--report", report.to_str().unwrap()];
    let flags = [&flags[..], &bad].concat();
    let json = run(&mut place.prepare("out", &flags)).ok().json();
    for split in json["manifest"]["splits"].as_object().unwrap().values() {
        let statistics = &split["statistics"];
        let sum = |values: Vec<&Value>| values.into_iter().map(|value| value.as_u64().unwrap()).sum::<u64>();
        let lengths = statistics["documents_by_tokens"].as_array().unwrap();
        assert_eq!(sum(lengths.iter().collect()), split["documents"].as_u64().unwrap());
        let kinds = statistics["tokens_by_kind"].as_object().unwrap();
        assert_eq!(sum(kinds.values().collect()), split["ledger"]["read"].as_u64().unwrap());
        assert!(["latin", "special", "space"].iter().all(|kind| kinds.contains_key(*kind)), "{kinds:?}");
    }
    let sources = json["sources"].as_object().unwrap();
    assert_eq!(sources.keys().collect::<Vec<_>>(), ["<b>&.txt", "books", "c.jsonl"]);
    assert_eq!(sources["books"]["documents"], 200);
    let page = std::fs::read_to_string(&report).unwrap();
    for part in [
        "<h2>train</h2>",
        "<h2>validation</h2>",
        "books",
        "&lt;b&gt;&amp;.txt",
        "latin",
        "<td>code</td>",
        "bytes of text a token",
        "records left out",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // It fetches nothing, runs nothing, and a file's name is no markup.
    assert!(!["<script", "http", "<b>", "<img", "<link"].iter().any(|part| page.contains(part)));
    // The dataset is the same with and without.
    let before = digest(&place.path("out"));
    std::fs::remove_dir_all(place.path("out")).unwrap();
    run(&mut place.prepare("out", &[&flags[..2], &bad].concat())).ok();
    assert_eq!(digest(&place.path("out")), before);
    run(&mut place.prepare("out", &flags)).ok();
    assert!(std::fs::read_to_string(&report).unwrap().contains("nothing to do"));
}

fn trace(place: &Place, output: &str, more: &[&str], split: &str, block: u64, position: usize) -> Ended {
    let mut command = Command::new(&binaries().preprocess);
    command.arg("trace").arg("--train_file_dir").arg(place.path("text")).arg("--output_dir").arg(place.path(output));
    command.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes")).arg("--cache_dir").arg(place.path("cache"));
    command.args(["--block_size", "16", "--validation_split_percentage", "0", "--json"]).args(more);
    run(command.args(["--split", split, "--block", &block.to_string(), "--position", &position.to_string()]))
}

#[test]
fn a_token_is_traced_to_the_bytes_of_its_file() {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 3));
    place.write("text/b.jsonl", "{\"text\": \"the river's mill grinds words slowly\"}\n".repeat(5));
    place.write("text/c.txt", "last words\nno end");
    let split = ["--validation_split_percentage", "30"];
    for (output, more) in [
        ("stream", &[][..]),
        ("hashed", &["--validation_split_mode", "hash"]),
        ("documents", &["--packing", "false"]),
        ("fit", &["--packing_strategy", "best_fit"]),
        ("batches", &["--compat", "medicalgpt"]),
    ] {
        let more = [&split[..], more].concat();
        run(&mut place.prepare(output, &more)).ok();
        let dataset = Dataset::open(&place.path(output)).unwrap();
        let mut ends = 0;
        for split in Split::ALL {
            let reader = dataset.split(split).unwrap().unwrap();
            for block in 0..reader.len() {
                let mut ids = Vec::new();
                reader.read_block(block, &mut ids).unwrap();
                let valid = reader.valid_tokens(block).unwrap();
                let end_of_document = ids[..valid].iter().position(|id| *id == 0);
                // Some blocks, and one in which a document ends.
                let unseen = ends == 0 && end_of_document.is_some();
                if !unseen && block % (1 + reader.len() / 4) != 0 {
                    continue;
                }
                for position in [0, valid - 1].into_iter().chain(end_of_document) {
                    let traced = trace(&place, output, &more, split.as_str(), block, position).ok().json();
                    assert_eq!(traced["id"], ids[position], "{output} {split} {block} {position}");
                    let text = traced["text"].as_str().unwrap();
                    if text.is_empty() {
                        assert_eq!(ids[position], 0, "what stands for no text is the end of a document");
                        ends += 1;
                        continue;
                    }
                    // In a text file the record is the document, byte for byte.
                    let file = Path::new(traced["file"].as_str().unwrap());
                    if file.extension().unwrap() == "txt" {
                        let bytes = std::fs::read(file).unwrap();
                        let number = |value: &Value| value.as_u64().unwrap() as usize;
                        let at = number(&traced["record_at"]) + number(&traced["bytes"]["start"]);
                        assert_eq!(&bytes[at..at + text.len()], text.as_bytes(), "{output} {traced}");
                        let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
                        assert_eq!(traced["record"], line);
                    }
                }
            }
        }
        assert!(ends > 0, "{output}");
    }
    let more = [&split[..], &["--packing", "false"]].concat();
    trace(&place, "documents", &more, "train", 1_000_000, 0).fails(2, &["--block", "blocks 0 to"]);
    trace(&place, "documents", &more, "train", 0, 15).fails(2, &["--position", "padding"]);
    trace(&place, "stream", &more, "train", 0, 0).fails(2, &["packing", "what `prepare` was given"]);
}

#[test]
fn a_record_after_a_bad_one_is_traced_to_where_it_begins() {
    let place = Place::new();
    let lines = ["{\"text\": \"one\"}\n", "bad\n", "\n", "{\"text\": \"two words\"}\n"];
    place.write("text/a.jsonl", lines.concat());
    let skip = ["--on_bad_record", "skip"];
    run(&mut place.prepare("out", &skip)).ok();
    let reader = Dataset::open(&place.path("out")).unwrap().split(Split::Train).unwrap().unwrap();
    let traced = |position| trace(&place, "out", &skip, "train", 0, position).ok().json();
    let (first, last) = (traced(0), traced(reader.valid_tokens(0).unwrap() - 1));
    assert_eq!((&first["record"], &first["record_at"]), (&1.into(), &0.into()));
    let begins = lines[..3].concat().len();
    assert_eq!((&last["record"], &last["record_at"]), (&4.into(), &begins.into()));
}

#[test]
fn the_doctor_says_what_a_machine_has_and_what_to_do() {
    let place = Place::new();
    let doctor = |dir: &str| {
        let mut command = Command::new(&binaries().preprocess);
        command.arg("doctor").arg("--cache_dir").arg(place.path(dir));
        command
    };
    let found = run(doctor("cache").arg("--json")).ok().json();
    let what: Vec<_> = found.as_array().unwrap().iter().map(|finding| finding["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["processor", "memory", "open files", "--cache_dir", "NVIDIA driver"]);
    assert!(found[0]["found"].as_str().unwrap().contains("cores"));
    let sick = run(doctor("cache").env("LD_PRELOAD", shim()).env("FAULT_MODE", "nolock"));
    sick.fails(2, &["--cache_dir", "a lock does not keep others out"]);
    assert!(
        sick.stdout.contains("bad  --cache_dir") && sick.stdout.contains("give another directory"),
        "{}",
        sick.stdout
    );
}

#[test]
fn completions_and_manual_pages_are_of_every_flag() {
    let place = Place::new();
    for program in [&binaries().preprocess, &binaries().trainer] {
        let of = |words: &[&str]| run(Command::new(program).args(words));
        for shell in ["bash", "zsh", "fish"] {
            let script = of(&["completions", shell]).ok().stdout;
            assert!(script.contains("train_file_dir") && script.contains("packing_strategy"), "{shell}");
            if shell == "bash" {
                let path = place.write("completions", script);
                run(Command::new("bash").arg("-n").arg(path)).ok();
            }
        }
        of(&["completions", "tcsh"]).fails(2, &["bash", "fish"]);
        let page = of(&["man"]).ok().stdout;
        assert!(page.starts_with(".ie") || page.starts_with(".TH"), "{page}");
    }
    let page = run(Command::new(&binaries().preprocess).args(["man", "prepare"])).ok().stdout;
    assert!(page.contains("dry_run") && page.contains("block_size"));
    run(Command::new(&binaries().preprocess).args(["man", "cook"])).fails(2, &["prepare, explain, trace", "cook"]);
}

#[test]
fn help_says_what_a_command_is_about() {
    let programs = binaries();
    for (program, words, about) in [
        (&programs.preprocess, "prepare --help", "Text to packed token blocks."),
        (&programs.preprocess, "explain --help", "Which partitions would be reused"),
        (&programs.preprocess, "trace --help", "The file and the byte"),
        (&programs.preprocess, "cache --help", "What is kept for reuse"),
        (&programs.preprocess, "cache prune --help", "Makes room in the cache."),
        (&programs.preprocess, "tokenizer --help", "Making tokenizers"),
        (&programs.preprocess, "tokenizer extend --help", "New pieces for a BPE tokenizer"),
        (&programs.trainer, "--help", "Continues the pretraining"),
        (&programs.trainer, "merge --help", "Folds an adapter into the model"),
        (&programs.trainer, "explain --help", "Shows how flags or a configuration file are read"),
    ] {
        let help = run(Command::new(program).args(words.split(' '))).ok().stdout;
        assert!(help.starts_with(about), "{words}: {help}");
    }
    let page = run(Command::new(&programs.preprocess).args(["man", "prepare"])).ok().stdout;
    assert!(page.contains("Text to packed token blocks."), "{page}");
}
