//! What was tokenized once is not tokenized again, and what changed always is.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokenmill_preprocess::{Output, PrepareOptions, Prepared, Tuning, prepare};
use tokenmill_shared::config::{DataArguments, HubArguments};
use tokenmill_tests::{Place, data, digest, lines, run};

fn reuse(json: &Value) -> (u64, u64) {
    (json["reuse"]["partitions_tokenized"].as_u64().unwrap(), json["reuse"]["partitions_reused"].as_u64().unwrap())
}

/// Partitions small enough that 1,000 files make many groups.
fn prepare_in_groups(place: &Place, output: &str) -> Prepared {
    prepare(&PrepareOptions {
        data: DataArguments {
            train_file_dir: Some(place.path("text")),
            cache_dir: Some(place.path("cache")),
            validation_split_percentage: 0.0,
            block_size: Some(16),
            ..DataArguments::default()
        },
        hub: HubArguments::default(),
        tokenizer: data("tokenizers/bytes"),
        model: None,
        output: Output::Directory(place.path(output)),
        tuning: Tuning { partition_bytes: 20_000, ..Tuning::default() },
    })
    .unwrap()
}

#[test]
fn one_file_inserted_among_a_thousand_retokenizes_only_its_group() {
    let place = Place::new();
    for file in 0..1000 {
        place.write(&format!("text/{file:04}.txt"), lines(8, file));
    }
    let first = prepare_in_groups(&place, "a");
    place.write("text/0500-inserted.txt", "a new file\n");
    let second = prepare_in_groups(&place, "b");
    assert!(first.reuse.partitions_tokenized > 20, "{:?}", first.reuse);
    assert!((1..=3).contains(&second.reuse.partitions_tokenized), "{:?}", second.reuse);
    assert!(second.reuse.bytes_tokenized < first.reuse.bytes_tokenized / 10);
}

#[test]
fn touching_moving_and_other_block_sizes_tokenize_nothing() {
    let place = Place::new();
    for file in 0..5 {
        place.write(&format!("text/{file}.txt"), lines(50, file));
    }
    assert_eq!(reuse(&run(&mut place.prepare("a", &[])).ok().json()), (1, 0));

    let again = run(&mut place.prepare("a", &[])).ok().json();
    assert_eq!(again["status"], "nothing_to_do");

    let file = std::fs::File::options().append(true).open(place.path("text/0.txt")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
    assert_eq!(reuse(&run(&mut place.prepare("touched", &[])).ok().json()), (0, 1));
    assert_eq!(digest(&place.path("touched")), digest(&place.path("a")));

    assert_eq!(reuse(&run(&mut place.prepare("larger", &["--block_size", "32"])).ok().json()), (0, 1));

    std::fs::rename(place.path("text"), place.path("moved")).unwrap();
    let moved = place.path("moved");
    let moved = run(&mut place.prepare("b", &["--train_file_dir", moved.to_str().unwrap()])).ok().json();
    assert_eq!(reuse(&moved), (0, 1));
    assert_eq!(digest(&place.path("b")), digest(&place.path("a")));
}

#[test]
fn changed_content_with_its_mtime_restored_is_noticed() {
    let place = Place::new();
    let path = place.write("text/a.txt", "the mill grinds words\n".repeat(40));
    // The scan is remembered only when the file has been at rest for two seconds.
    std::thread::sleep(Duration::from_millis(2_100));
    run(&mut place.prepare("a", &[])).ok();
    let unchanged = run(&mut place.prepare("b", &["--block_size", "8"])).ok().json();
    assert_eq!(unchanged["files_scanned"], 0);

    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, "the mill grinds wards\n".repeat(40)).unwrap();
    std::fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
    let changed = run(&mut place.prepare("c", &[])).ok().json();
    assert_eq!((changed["files_scanned"].as_u64(), reuse(&changed)), (Some(1), (1, 0)));
    assert_ne!(digest(&place.path("a")), digest(&place.path("c")));

    let explained = run(&mut place.explain(&["--rehash"])).ok().json();
    assert_eq!(explained[0]["reused"], true);
}

#[test]
fn explain_names_what_changed() {
    let place = Place::new();
    place.write("text/a.txt", lines(50, 1));
    let reason = |more: &[&str]| run(&mut place.explain(more)).ok().json()[0]["reason"].as_str().unwrap().to_owned();
    assert!(reason(&[]).contains("not prepared before"));
    run(&mut place.prepare("a", &[])).ok();
    assert!(reason(&[]).contains("same documents"));
    assert!(reason(&["--append_eos", "false"]).contains("tokens.eos_token_id"));
    assert!(reason(&["--overwrite_cache"]).contains("overwrite_cache"));
    place.write("text/a.txt", lines(50, 2));
    assert!(reason(&[]).contains("a.txt changed"));
    place.write("text/b.txt", lines(50, 3));
    place.write("text/a.txt", lines(50, 1));
    assert!(reason(&[]).contains("b.txt is new"));
}

#[test]
fn a_damaged_store_file_is_reported_and_tokenized_again() {
    let place = Place::new();
    place.write("text/a.txt", lines(200, 1));
    run(&mut place.prepare("a", &[])).ok();
    let mut files = digest(&place.path("cache/tokens")).into_keys();
    let stored = files.find(|file| file.extension().is_some_and(|is| is == "tokens")).unwrap();
    let path = place.path("cache/tokens").join(stored);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let again = run(&mut place.prepare("b", &[])).ok();
    assert!(again.stderr.contains("damaged") && again.stderr.contains("tokenized again"), "{}", again.stderr);
    assert_eq!(reuse(&again.json()), (1, 0));
    assert_eq!(digest(&place.path("a")), digest(&place.path("b")));
}
