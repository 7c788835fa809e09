//! The cache: processes that want the same do it once, pruning takes nothing that a running job needs, and a file system
//! that cannot keep it is refused.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokenmill_tests::{Ended, Place, Running, binaries, data, digest, lines, run};

use crate::fault::shim;

fn cache(place: &Place, words: &[&str]) -> Ended {
    run(Command::new(&binaries().preprocess).arg("cache").args(words).arg("--cache_dir").arg(place.path("cache")))
}

fn token_files(place: &Place) -> Vec<PathBuf> {
    let files = digest(&place.path("cache/tokens")).into_keys();
    files.filter(|path| path.extension().is_some()).map(|path| place.path("cache/tokens").join(path)).collect()
}

#[test]
fn processes_that_prepare_the_same_text_tokenize_it_once_and_all_succeed() {
    let place = Place::new();
    place.write("text/a.txt", lines(60_000, 1));
    let flags = [("one", "16"), ("one", "16"), ("other", "32")];
    let started: Vec<_> = flags
        .map(|(output, block_size)| {
            let mut command = place.prepare(output, &["--block_size", block_size]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .into();
    let ended: Vec<Ended> = started.into_iter().map(|child| child.wait_with_output().unwrap().into()).collect();
    let results: Vec<Value> = ended.into_iter().map(|ended| ended.ok().json()).collect();
    let sum = |field: &str| results.iter().map(|json| json["reuse"][field].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("partitions_tokenized"), sum("partitions_reused")), (1, 1), "{results:?}");
    let nothing_to_do = results[..2].iter().filter(|json| json["status"] == "nothing_to_do").count();
    assert_eq!(nothing_to_do, 1);
    for (output, block_size) in [("one", "16"), ("other", "32")] {
        let alone = Place::new();
        alone.write("text/a.txt", lines(60_000, 1));
        run(&mut alone.prepare(output, &["--block_size", block_size])).ok();
        assert_eq!(digest(&place.path(output)), digest(&alone.path(output)));
    }
}

/// The kernel frees the lock of a process that is killed.
#[test]
fn a_killed_process_makes_nobody_wait() {
    let place = Place::new();
    place.write("text/a.txt", lines(60_000, 2));
    let first = Running::start(place.prepare("out", &[]).stdout(Stdio::null()).stderr(Stdio::null()));
    let begun =
        |place: &Place| std::fs::read_dir(place.path("cache/locks")).is_ok_and(|mut files| files.next().is_some());
    let started = Instant::now();
    while !begun(&place) {
        assert!(started.elapsed() < Duration::from_secs(60), "the first process never began");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(first);
    run(&mut place.prepare("out", &[])).ok();
}

#[test]
fn pruning_is_by_age_and_size_and_what_is_gone_is_made_again() {
    let place = Place::new();
    for text in 0..3 {
        std::fs::remove_dir_all(place.path("text")).ok();
        place.write("text/a.txt", lines(200, text));
        run(&mut place.prepare(&format!("out-{text}"), &[])).ok();
    }
    let (files, days) = (token_files(&place), |days: u64| SystemTime::now() - Duration::from_secs(days * 86_400));
    assert_eq!(files.len(), 3);
    // Read-only, and still to be told by age.
    for (file, days) in files.iter().zip([days(40), days(20), days(0)]) {
        assert!(std::fs::metadata(file).unwrap().permissions().readonly());
        std::fs::File::open(file).unwrap().set_modified(days).unwrap();
    }
    let listed = cache(&place, &["list"]).ok().stdout;
    assert!(listed.contains("3 token partitions"), "{listed}");
    cache(&place, &["prune"]).fails(2, &["--older_than", "--max_size"]);
    cache(&place, &["prune", "--older_than", "30 days"]).fails(2, &["--older_than", "30d"]);
    let pruned = cache(&place, &["prune", "--older_than", "30d", "--json"]).ok().json();
    assert_eq!(pruned["removed"].as_array().unwrap().len(), 1);
    assert_eq!(token_files(&place), files[1..]);
    // The oldest go first, until the rest fits.
    let all = cache(&place, &["list", "--json"]).ok().json();
    let bytes: u64 = all.as_array().unwrap().iter().map(|entry| entry["bytes"].as_u64().unwrap()).sum();
    cache(&place, &["prune", "--max_size", &(bytes - 1).to_string()]).ok();
    assert_eq!(token_files(&place), files[2..]);
    let before = digest(&place.path("out-2"));
    cache(&place, &["prune", "--older_than", "0s"]).ok();
    assert!(token_files(&place).is_empty());
    let again = run(&mut place.prepare("again", &[])).ok().json();
    assert_eq!(again["reuse"]["partitions_tokenized"], 1);
    assert_eq!(digest(&place.path("again")), before);
    // Use makes young.
    let only = token_files(&place).remove(0);
    std::fs::File::open(&only).unwrap().set_modified(days(40)).unwrap();
    run(&mut place.prepare("reused", &["--block_size", "8"])).ok();
    cache(&place, &["prune", "--older_than", "30d"]).ok();
    assert!(only.exists());
}

#[test]
fn what_a_running_job_needs_is_not_pruned() {
    let place = Place::new();
    place.write("text/a.txt", lines(400, 1));
    let config = place.write("model/config.json", tokenmill_tests::TINY_LLAMA);
    let mut command = Command::new(&binaries().trainer);
    command.arg("--init_from_config").arg(config).arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
    command.arg("--train_file_dir").arg(place.path("text")).arg("--cache_dir").arg(place.path("cache"));
    command.arg("--output_dir").arg(place.path("out")).args(["--use_peft", "false", "--max_steps", "1000000"]);
    command.args(["--block_size", "16", "--save_strategy", "no", "--logging_steps", "1"]);
    let mut training = Running::start(command.stderr(Stdio::null()).stdout(Stdio::null()));
    let started = Instant::now();
    while std::fs::metadata(place.path("out/metrics.jsonl")).map_or(0, |file| file.len()) == 0 {
        assert!(started.elapsed() < Duration::from_secs(120) && training.0.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let datasets = || {
        let found = std::fs::read_dir(place.path("cache/datasets")).unwrap().map(|item| item.unwrap().path());
        found.filter(|path| path.is_dir()).count()
    };
    assert_eq!(datasets(), 1);
    let pruned = cache(&place, &["prune", "--older_than", "0s", "--json"]).ok().json();
    assert!(pruned["in_use"].as_array().unwrap().iter().any(|entry| entry["kind"] == "datasets"), "{pruned}");
    assert_eq!(datasets(), 1);
    assert!(training.0.try_wait().unwrap().is_none());
    drop(training);
    cache(&place, &["prune", "--older_than", "0s"]).ok();
    assert_eq!(datasets(), 0);

    // A job that reads the store keeps it too.
    run(&mut place.prepare("data", &[])).ok();
    let store = std::fs::File::open(place.path("cache/tokens/.in-use")).unwrap();
    store.lock_shared().unwrap();
    let pruned = cache(&place, &["prune", "--older_than", "0s"]).ok();
    assert!(pruned.stderr.contains("stay") && !token_files(&place).is_empty(), "{}", pruned.stderr);
    drop(store);
    cache(&place, &["prune", "--older_than", "0s"]).ok();
    assert!(token_files(&place).is_empty());
}

#[test]
fn a_file_system_that_does_not_keep_its_word_is_refused() {
    let place = Place::new();
    place.write("text/a.txt", lines(20, 1));
    for (mode, says) in [
        ("nolock", "a lock does not keep others out"),
        ("noshare", "a lock cannot be held together"),
        ("nocreate", "can be created again"),
        ("norename", "does not do so at once"),
    ] {
        let mut command = place.prepare("out", &[]);
        command.env("LD_PRELOAD", shim()).env("FAULT_MODE", mode);
        run(&mut command).fails(2, &[place.path("cache").to_str().unwrap(), says, "local disk"]);
    }
    run(&mut place.prepare("out", &[])).ok();
}
