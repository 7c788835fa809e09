//! A dataset that the cache holds is taken from there, linked or copied, and not made again: to the same bytes, whatever is
//! killed, and nothing that is damaged.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tokenmill_preprocess::{Output, PrepareOptions, Tuning, prepare};
use tokenmill_shared::config::{DataArguments, HubArguments};
use tokenmill_tests::{Place, binaries, data, digest, lines, overwrite, run};

use crate::fault::{Fault, KILL};
use crate::jobs::assert_whole_or_unfinished;

const SPLIT: [&str; 2] = ["--validation_split_percentage", "20"];

fn corpus(place: &Place) {
    for file in 0..3 {
        place.write(&format!("text/{file}.txt"), lines(40, file));
    }
}

/// A corpus, and in the cache the dataset that [`Place::prepare`] with [`SPLIT`] makes of it; where that is.
pub(crate) fn cached(place: &Place) -> PathBuf {
    corpus(place);
    let options = PrepareOptions {
        data: DataArguments {
            train_file_dir: Some(place.path("text")),
            cache_dir: Some(place.path("cache")),
            validation_split_percentage: 20.0,
            block_size: Some(16),
            ..DataArguments::default()
        },
        hub: HubArguments::default(),
        tokenizer: data("tokenizers/bytes"),
        model: None,
        output: Output::Cache,
        tuning: Tuning::default(),
    };
    prepare(&options).unwrap().dataset_dir
}

/// Without a cache that holds anything.
fn made_anew() -> std::collections::BTreeMap<PathBuf, String> {
    let place = Place::new();
    corpus(&place);
    run(&mut place.prepare("out", &SPLIT)).ok();
    digest(&place.path("out"))
}

fn inode(path: &Path) -> (u64, u64) {
    let metadata = std::fs::metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

/// What becomes of files that are taken in the temporary directory: hard links, unless its file system has better.
fn how(taken: &Value) -> &'static str {
    if taken["cloned"].is_null() { "linked" } else { "cloned" }
}

#[test]
fn what_the_trainer_prepared_is_taken_and_stays_when_the_cache_is_pruned() {
    let place = Place::new();
    corpus(&place);
    let config = place.write("model/config.json", tokenmill_tests::TINY_LLAMA);
    let mut command = Command::new(&binaries().trainer);
    command.arg("--init_from_config").arg(config).arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
    command.arg("--train_file_dir").arg(place.path("text")).arg("--cache_dir").arg(place.path("cache"));
    command.arg("--output_dir").arg(place.path("run")).args(["--use_peft", "false", "--max_steps", "1"]);
    run(command.args(["--block_size", "16", "--save_strategy", "no"]).args(SPLIT)).ok();
    // Nothing is left to pack from.
    std::fs::remove_dir_all(place.path("cache/tokens")).unwrap();
    let expected = made_anew();
    let ended = run(&mut place.prepare("out", &SPLIT)).ok();
    let json = ended.json();
    assert_eq!((json["status"].as_str(), &json["reuse"]["partitions_tokenized"]), (Some("taken"), &json!(0)));
    let how = how(&json["taken"]);
    assert_eq!(json["taken"], json!({how: expected.len() - 1}), "all but the manifest");
    assert!(ended.stderr.contains(&format!("files {how} (")), "{}", ended.stderr);
    assert_eq!(digest(&place.path("out")), expected);
    let again = run(&mut place.prepare("out", &SPLIT)).ok().json();
    assert_eq!(again["status"], "nothing_to_do");

    let prune = ["cache", "prune", "--older_than", "0s", "--cache_dir"];
    run(Command::new(&binaries().preprocess).args(prune).arg(place.path("cache"))).ok();
    assert_eq!(std::fs::read_dir(place.path("cache/datasets")).unwrap().count(), 0);
    assert_eq!(digest(&place.path("out")), expected);
    run(Command::new(&binaries().preprocess).arg("verify").arg(place.path("out"))).ok();
}

#[test]
fn another_device_gets_copies() {
    let place = Place::new();
    let cached = cached(&place);
    let Some(shm) = tempfile::tempdir_in("/dev/shm").ok().filter(|shm| inode(shm.path()).0 != inode(&cached).0) else {
        println!("/dev/shm is no other device here");
        return;
    };
    let expected = digest(&cached);
    let mut command = place.prepare("unused", &SPLIT);
    let json = run(command.arg("--output_dir").arg(shm.path().join("out"))).ok().json();
    assert_eq!(json["taken"], json!({"copied": expected.len() - 1}));
    assert_eq!(digest(&shm.path().join("out")), expected);
}

#[test]
fn what_may_be_written_to_is_not_linked_and_what_is_asked_for_anew_is_made() {
    let place = Place::new();
    let cached = cached(&place);
    let expected = digest(&cached);
    let shard = cached.join("train/data-00000.arrow");
    run(Command::new("chmod").arg("u+w").arg(&shard)).ok();
    let json = run(&mut place.prepare("out", &SPLIT)).ok().json();
    let linked = |name: &str| inode(&place.path("out").join(name)) == inode(&cached.join(name));
    assert!(!linked("train/data-00000.arrow"));
    assert_eq!(linked("index.arrow"), how(&json["taken"]) == "linked");
    let anew = run(place.prepare("anew", &SPLIT).arg("--overwrite_cache")).ok().json();
    assert_eq!(anew["status"], "written");
    assert_eq!([digest(&place.path("out")), digest(&place.path("anew"))], [expected.clone(), expected]);
}

#[test]
fn a_damaged_dataset_is_not_taken_but_made_anew() {
    let expected = made_anew();
    for name in expected.keys().map(|name| name.to_str().unwrap()) {
        let place = Place::new();
        let path = cached(&place).join(name);
        // One is not there, the others are damaged.
        if name == "tokenizer/tokenizer.json" {
            std::fs::remove_file(&path).unwrap();
        } else {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            overwrite(&path, bytes);
        }
        let ended = run(&mut place.prepare("out", &SPLIT)).ok();
        assert_eq!(ended.json()["status"], "written", "{name}");
        assert!(ended.stderr.contains(name) && ended.stderr.contains("made anew"), "{name}: {}", ended.stderr);
        assert_eq!(digest(&place.path("out")), expected, "{name}");
    }
}

#[test]
fn killed_anywhere_while_it_takes_and_run_again_gives_the_same_bytes() {
    let clean = Place::new();
    let expected = digest(&cached(&clean));
    let calls = KILL.calls_of(&mut clean.prepare("out", &SPLIT), &clean);
    assert_eq!(digest(&clean.path("out")), expected);
    for at in 1..=calls.len() as u64 {
        let place = Place::new();
        let cached = cached(&place);
        let (ended, noted) = KILL.at(at, &mut place.prepare("out", &SPLIT), &place);
        assert!(ended.code.is_none() && noted.starts_with("hit "), "call {at} of {calls}: {noted:?} {}", ended.stderr);
        assert_whole_or_unfinished(&place.path("out"), &expected, &noted);
        run(&mut place.prepare("out", &SPLIT)).ok();
        assert_eq!(digest(&place.path("out")), expected, "killed at call {at} of {calls}: {noted}");
        assert_eq!(digest(&cached), expected, "the cache, after call {at}");
    }
}

#[test]
fn a_full_disk_or_an_io_error_while_it_takes_is_named() {
    let clean = Place::new();
    let expected = digest(&cached(&clean));
    let calls = KILL.calls_of(&mut clean.prepare("out", &SPLIT), &clean);
    for (mode, code, says) in [("enospc", 4, "No space left"), ("eio", 1, "error")] {
        for at in (1..=calls.len()).step_by(7).filter(|at| calls.as_bytes()[at - 1] != b'u') {
            let place = Place::new();
            cached(&place);
            let fault = Fault { mode, once: false, ..KILL };
            let (ended, noted) = fault.at(at as u64, &mut place.prepare("out", &SPLIT), &place);
            assert!(noted.starts_with("hit "), "call {at} of {calls}: {noted:?}");
            ended.fails(code, &[place.path("").to_str().unwrap(), says]);
            run(&mut place.prepare("out", &SPLIT)).ok();
            assert_eq!(digest(&place.path("out")), expected, "{mode} at call {at} of {calls}");
        }
    }
}
