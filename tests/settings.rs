//! Settings do what they say: what is a document's token, which documents are validation, what a seed decides.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Place, data, digest, lines, run};

/// The documents of a split as ids, each with its end-of-sequence token. The dataset has blocks of one token.
fn documents(dataset: &Path, split: Split) -> Vec<Vec<u32>> {
    let dataset = Dataset::open(dataset).unwrap();
    let eos = dataset.manifest().head.eos_token_id.unwrap();
    let reader = dataset.split(split).unwrap().unwrap();
    let mut ids = Vec::new();
    for block in 0..reader.len() {
        reader.read_block(block, &mut ids).unwrap();
    }
    ids.split_inclusive(|id| *id == eos).map(<[u32]>::to_vec).collect()
}

const BLOCKS_OF_ONE: [&str; 2] = ["--block_size", "1"];

#[test]
fn special_tokens_and_ends_are_added_as_asked() {
    let place = Place::new();
    // The second document ends with the end-of-sequence token by itself.
    place.write("text/a.jsonl", "{\"text\": \"the mill\"}\n{\"text\": \"grinds</s>\"}\n");
    let pieces = data("tokenizers/pieces");
    let ids = |output: &str, more: &[&str]| {
        let mut command = place.prepare(output, &BLOCKS_OF_ONE);
        run(command.arg("--tokenizer_name_or_path").arg(&pieces).args(more)).ok();
        let dataset = Dataset::open(&place.path(output)).unwrap();
        let reader = dataset.split(Split::Train).unwrap().unwrap();
        let mut ids = Vec::new();
        (0..reader.len()).for_each(|block| reader.read_block(block, &mut ids).unwrap());
        ids
    };
    let reference = tokenizers::Tokenizer::from_file(pieces.join("tokenizer.json")).unwrap();
    let encode = |text: &str, special: bool| reference.encode(text, special).unwrap().get_ids().to_vec();
    let (bos, eos) = (1, 2);
    for special in [true, false] {
        let (first, second) = (encode("the mill", special), encode("grinds</s>", special));
        assert_eq!((first[0] == bos, *second.last().unwrap()), (special, eos));
        let flag = ["--add_special_tokens", if special { "true" } else { "false" }];
        assert_eq!(ids(&format!("{special}"), &flag), [&first[..], &[eos], &second].concat());
        let without = ids(&format!("{special}-without"), &[flag[0], flag[1], "--append_eos", "false"]);
        assert_eq!(without, [first, second].concat());
    }
}

#[test]
fn validation_by_hash_is_stable_as_the_corpus_grows_and_keeps_copies_and_files_together() {
    let place = Place::new();
    let record = |number: usize| serde_json::json!({"text": format!("record {number} of the mill")}).to_string() + "\n";
    let flags = ["--validation_split_mode", "hash", "--validation_split_percentage", "30", "--block_size", "1"];
    place.write("text/b.jsonl", (0..60).map(record).collect::<String>());
    run(&mut place.prepare("small", &flags)).ok();
    // Half of the new records are copies of old ones; what is before the old ones moves all of them.
    place.write("text/a.jsonl", (30..90).map(record).collect::<String>());
    for file in 0..12 {
        place.write(&format!("text/c{file}.txt"), format!("line one of {file}\nline two of {file}\n"));
    }
    run(&mut place.prepare("grown", &flags)).ok();
    let of = |output: &str, split: Split| BTreeSet::from_iter(documents(&place.path(output), split));
    let (small, grown) = (of("small", Split::Validation), of("grown", Split::Validation));
    let (small_train, grown_train) = (of("small", Split::Train), of("grown", Split::Train));
    assert!(small.len() > 5 && small.is_subset(&grown) && small_train.is_subset(&grown_train));
    assert!(grown.is_disjoint(&grown_train));
    // The lines of a text file are on one side.
    let tokenizer = tokenizers::Tokenizer::from_file(data("tokenizers/bytes/tokenizer.json")).unwrap();
    let holds = |side: &BTreeSet<Vec<u32>>, text: &str| {
        side.iter().any(|ids| tokenizer.decode(ids, true).unwrap().trim_end() == text)
    };
    let mut validation_files = 0;
    for file in 0..12 {
        let sides = ["one", "two"].map(|line| holds(&grown, &format!("line {line} of {file}")));
        assert!(sides[0] == sides[1], "file {file} is on both sides");
        validation_files += usize::from(sides[0]);
    }
    assert!((1..12).contains(&validation_files), "{validation_files} files");
}

#[test]
fn without_the_token_cache_nothing_is_kept() {
    let place = Place::new();
    place.write("text/a.txt", lines(30, 1));
    let made = run(&mut place.prepare("a", &["--token_cache", "false"])).ok().json();
    assert_eq!(made["reuse"]["partitions_tokenized"], 1);
    assert!(!["cache/tokens", "cache/scans"].iter().any(|name| place.path(name).exists()));
    let again = run(&mut place.prepare("b", &["--token_cache", "false"])).ok().json();
    assert_eq!(again["reuse"]["partitions_tokenized"], 1);
    assert_eq!(digest(&place.path("a")), digest(&place.path("b")));
}

fn state(place: &Place, output: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(output).join("trainer_state.json")).unwrap()).unwrap()
}

fn losses(place: &Place, output: &str) -> Vec<u64> {
    let state = state(place, output);
    let entries = state["log_history"].as_array().unwrap();
    entries.iter().filter_map(|entry| Some(entry["loss"].as_f64()?.to_bits())).collect()
}

/// Weights come from `seed`, the order of blocks from `data_seed`, which is `seed` unless given.
#[test]
fn seeds_decide_weights_and_order_and_nothing_else_does() {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    let train = |output: &str, more: &[&str]| {
        let flags = ["--max_steps", "3", "--save_strategy", "no", "--learning_rate", "1e-2"];
        run(place.train("data", output, &flags).args(more)).ok();
        losses(&place, output)
    };
    let first = train("first", &[]);
    assert_eq!(first.len(), 3);
    assert_eq!(train("again", &["--seed", "42", "--data_seed", "42"]), first);
    let (weights, order) =
        (train("weights", &["--seed", "7", "--data_seed", "42"]), train("order", &["--data_seed", "7"]));
    assert!(first != weights && first != order && weights != order);
    assert_eq!(train("both", &["--seed", "7"]), train("both-again", &["--seed", "7", "--data_seed", "7"]));
    let in_order = train("sequential", &["--train_sampling_strategy", "sequential"]);
    assert_eq!(in_order, train("none", &["--shuffle", "none"]));
    assert_eq!(in_order, train("any-seed", &["--shuffle", "none", "--data_seed", "7"]));
    assert!(in_order != first);
}

#[test]
fn epochs_and_limits_are_counted_in_blocks() {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 5));
    run(&mut place.prepare("data", &["--validation_split_percentage", "20"])).ok();
    let flags = ["--max_train_samples", "5", "--max_eval_samples", "2", "--num_train_epochs", "2.5", "--do_eval"];
    let strategies = ["--logging_strategy", "epoch", "--eval_strategy", "epoch", "--save_strategy", "epoch"];
    run(place.train("data", "out", &flags).args(strategies)).ok();
    // Five blocks in batches of two are three steps an epoch; half an epoch more ends at the eighth.
    let state = state(&place, "out");
    assert_eq!(state["global_step"], 8);
    let steps = |key: &str| -> Vec<u64> {
        let entries = state["log_history"].as_array().unwrap().iter().filter(|entry| !entry[key].is_null());
        entries.map(|entry| entry["step"].as_u64().unwrap()).collect()
    };
    assert_eq!((steps("loss"), steps("eval_loss")), (vec![3, 6, 8], vec![3, 6, 8]));
    let saved: Vec<u64> = (1..=8).filter(|step| place.path(&format!("out/checkpoint-{step}")).exists()).collect();
    assert_eq!(saved, [3, 6, 8]);
    let results: Value = serde_json::from_slice(&std::fs::read(place.path("out/all_results.json")).unwrap()).unwrap();
    assert_eq!((&results["train_samples"], &results["eval_samples"]), (&5.into(), &2.into()));
}

#[test]
fn the_end_of_a_run_says_its_speed_its_waiting_and_its_memory() {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    let ended = run(&mut place.train("data", "out", &["--max_steps", "3", "--save_strategy", "no"])).ok();
    for part in ["step 3: loss ", "tokens/s", "% of the time waiting for data", "peak memory "] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}
