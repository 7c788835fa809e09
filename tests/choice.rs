//! Documents that are left out by choice: by length, because they came before, or because they are not among those that are
//! taken. What is left is what a corpus without them gives, whatever the workers and partitions.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};
use tokenmill_preprocess::{Output, PrepareOptions, Prepared, Tuning, prepare};
use tokenmill_shared::config::{DataArguments, HubArguments};
use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, lines, run};

fn prepared(place: &Place, text: &str, output: &str, tuning: Tuning, data_arguments: DataArguments) -> Prepared {
    prepare(&PrepareOptions {
        data: DataArguments {
            train_file_dir: Some(place.path(text)),
            cache_dir: Some(place.path("cache")),
            block_size: Some(16),
            ..data_arguments
        },
        hub: HubArguments::default(),
        tokenizer: data("tokenizers/bytes"),
        model: None,
        output: Output::Directory(place.path(output)),
        tuning,
    })
    .unwrap()
}

/// Small partitions and one byte at a time, or as it is.
fn tunings() -> [Tuning; 2] {
    [Tuning { partition_bytes: 300, read_bytes: 7, ..Tuning::default() }, Tuning::default()]
}

fn blocks(place: &Place, dataset: &str) -> Value {
    let splits = ["train", "validation"].map(|split| {
        let dir = place.path(dataset).join(split);
        if dir.exists() { json!(digest(&dir)) } else { Value::Null }
    });
    json!(splits)
}

#[test]
fn the_first_of_equal_documents_stays_whatever_the_workers() {
    let place = Place::new();
    let (once, twice) = (lines(60, 1), lines(30, 2));
    let mut seen = BTreeSet::new();
    let all = format!("{twice}{once}{twice}");
    let distinct: String = all.split_inclusive('\n').filter(|line| seen.insert(*line)).collect();
    let repeated = all.lines().count() - distinct.lines().count();
    assert!(repeated >= 30);
    place.write("all/a.txt", format!("{twice}{once}"));
    place.write("all/b.txt", &twice);
    place.write("distinct/a.txt", &distinct);
    let without_validation = DataArguments { validation_split_percentage: 0.0, ..DataArguments::default() };
    prepared(&place, "distinct", "expected", Tuning::default(), without_validation.clone());
    for (number, tuning) in tunings().into_iter().enumerate() {
        for workers in [1, 3] {
            let output = format!("out-{number}-{workers}");
            let arguments = DataArguments {
                deduplicate: true,
                preprocessing_num_workers: Some(workers),
                ..without_validation.clone()
            };
            let result = prepared(&place, "all", &output, tuning, arguments);
            assert_eq!(blocks(&place, &output), blocks(&place, "expected"), "{tuning:?} {workers}");
            assert_eq!(result.manifest.head.rejected_records["duplicate"], repeated as u64);
            let split = result.manifest.splits.values().next().unwrap();
            assert!(split.ledger.rejected["duplicate"] > 0 && split.documents == distinct.lines().count() as u64);
            assert!(result.lines().iter().any(|line| line.contains("the tokens of an earlier one")));
        }
    }
    // Text to validate on is kept, and what is the same is no training text.
    place.write("validation/a.txt", &twice);
    let apart = DataArguments {
        deduplicate: true,
        validation_file_dir: vec![place.path("validation")],
        ..DataArguments::default()
    };
    let result = prepared(&place, "all", "apart", Tuning::default(), apart);
    let documents: Vec<u64> = result.manifest.splits.values().map(|split| split.documents).collect();
    let of_validation = twice.lines().collect::<BTreeSet<_>>().len() as u64;
    assert_eq!(documents, [distinct.lines().count() as u64 - of_validation, of_validation]);
}

#[test]
fn documents_of_other_lengths_are_left_out_and_counted() {
    let place = Place::new();
    let all = lines(200, 3);
    let fits = |line: &&str| (10..=40).contains(&line.trim_end_matches('\n').chars().count());
    place.write("all/a.txt", &all);
    place.write("fitting/a.txt", all.split_inclusive('\n').filter(fits).collect::<String>());
    let shorter = all.lines().filter(|line| line.chars().count() < 10).count() as u64;
    let longer = all.lines().filter(|line| line.chars().count() > 40).count() as u64;
    assert!(shorter > 10 && longer > 10);
    prepared(&place, "fitting", "expected", Tuning::default(), DataArguments::default());
    for (number, tuning) in tunings().into_iter().enumerate() {
        let arguments = DataArguments { min_chars: Some(10), max_chars: Some(40), ..DataArguments::default() };
        let output = format!("out-{number}");
        let result = prepared(&place, "all", &output, tuning, arguments.clone());
        assert_eq!(blocks(&place, &output), blocks(&place, "expected"), "{tuning:?}");
        let rejected = &result.manifest.head.rejected_records;
        assert_eq!((rejected["too_few_characters"], rejected["too_many_characters"]), (shorter, longer));
        // They are no bad records, though these end a run; and what is remembered of the file counts the same.
        let again = prepared(&place, "all", &format!("again-{number}"), tuning, arguments);
        assert_eq!(again.manifest.head.fingerprint, result.manifest.head.fingerprint);
    }
    place.write("text/a.txt", &all);
    let page = place.path("report.html");
    let flags = ["--min_chars", "10", "--report", page.to_str().unwrap()];
    run(&mut place.prepare("reported", &flags)).ok();
    let said = std::fs::read_to_string(page).unwrap();
    assert!(said.contains("records left out: too few characters"), "{said}");
    run(&mut place.prepare("none", &["--min_chars", "5", "--max_chars", "4"]))
        .fails(2, &["--min_chars", "--max_chars"]);
    run(&mut place.prepare("none", &["--min_chars", "1000"])).fails(2, &["no document", "left out", "--min_chars"]);
}

#[test]
fn what_is_passed_over_and_taken_is_counted_in_documents_of_the_training_text() {
    let place = Place::new();
    let all = lines(200, 4);
    place.write("all/a.txt", &all);
    let taken: String = all.split_inclusive('\n').skip(50).take(100).collect();
    place.write("taken/a.txt", taken);
    let divided = DataArguments { validation_split_percentage: 10.0, ..DataArguments::default() };
    prepared(&place, "taken", "expected", Tuning::default(), divided.clone());
    let arguments = DataArguments { skip_documents: Some(50), take_documents: Some(100), ..divided };
    for (number, tuning) in tunings().into_iter().enumerate() {
        let output = format!("out-{number}");
        let result = prepared(&place, "all", &output, tuning, arguments.clone());
        assert_eq!(blocks(&place, &output), blocks(&place, "expected"), "{tuning:?}");
        assert_eq!(result.manifest.head.settings["skip_documents"], 50);
        if number == 0 {
            // Partitions that hold none of them are not tokenized.
            let bytes = result.reuse.bytes_tokenized as usize;
            assert!(bytes > 0 && bytes < all.len() * 2 / 3, "{bytes} of {}", all.len());
        }
    }
    place.write("text/a.txt", &all);
    for (flags, parts) in [
        (["--skip_documents", "200"], ["--skip_documents", "has 200 documents"]),
        (["--take_documents", "0"], ["--take_documents", "leaves nothing"]),
    ] {
        run(&mut place.prepare("none", &flags)).fails(2, &parts);
    }
    let mut streaming = Command::new(&binaries().trainer);
    streaming.arg("--init_from_config").arg(place.write("model/config.json", TINY_LLAMA));
    streaming.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
    streaming.arg("--train_file_dir").arg(place.path("text")).arg("--cache_dir").arg(place.path("cache"));
    streaming.arg("--output_dir").arg(place.path("streamed")).args(["--use_peft", "false", "--do_train"]);
    streaming.args(["--streaming", "true", "--take_documents", "5"]);
    run(&mut streaming).fails(2, &["--take_documents", "--streaming begins anywhere"]);
}

#[test]
fn what_was_left_out_does_not_lead_a_trace_astray() {
    let place = Place::new();
    place.write("text/a.txt", format!("{0}{1}{0}{2}", lines(20, 5), lines(20, 6), lines(20, 7)));
    let flags = ["--deduplicate", "--skip_documents", "3", "--take_documents", "70", "--min_chars", "4"];
    run(&mut place.prepare("out", &flags)).ok();
    let text = std::fs::read_to_string(place.path("text/a.txt")).unwrap();
    let records: Vec<&str> = text.split_inclusive('\n').collect();
    let long_enough = records.iter().filter(|line| line.trim_end_matches('\n').chars().count() >= 4);
    let mut seen = BTreeSet::new();
    let kept: Vec<&str> = long_enough.skip(3).take(70).copied().filter(|line| seen.insert(*line)).collect();
    assert!(kept.len() < 60, "{} documents", kept.len());
    for (block, position) in [(0, 0), (0, 9), (7, 3), (20, 15), (40, 0), (40, 8)] {
        let mut trace = Command::new(&binaries().preprocess);
        trace.arg("trace").arg("--json").arg("true").args(["--split", "train", "--block", &block.to_string()]);
        trace.args(["--position", &position.to_string()]).arg("--output_dir").arg(place.path("out"));
        trace.arg("--train_file_dir").arg(place.path("text")).arg("--cache_dir").arg(place.path("cache"));
        trace.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
        trace.args(["--block_size", "16", "--validation_split_percentage", "0"]).args(flags);
        let traced = run(&mut trace).ok().json();
        let record = records[traced["record"].as_u64().unwrap() as usize - 1];
        let bytes =
            traced["bytes"]["start"].as_u64().unwrap() as usize..traced["bytes"]["end"].as_u64().unwrap() as usize;
        assert_eq!(record, kept[traced["document"].as_u64().unwrap() as usize], "{traced}");
        assert_eq!(record.get(bytes), traced["text"].as_str());
        assert!(text[traced["record_at"].as_u64().unwrap() as usize..].starts_with(record), "{traced}");
    }
}
