//! Several datasets mixed by weight: a function of seed, weights and position, whatever runs it and wherever it goes on.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tokenmill_tests::{Place, data, digest, lines, run};

const FLAGS: &str = "--max_steps 30 --save_steps 7 --learning_rate 1e-2 --gradient_accumulation_steps 2 \
    --lr_scheduler_type cosine --do_eval";

/// `DATASETS` are names, directories in `place`, and weights.
fn train(place: &Place, output: &str, datasets: &[(&str, &str)], more: &[&str]) -> Command {
    let mut command = place.train("unused", output, &[]);
    command.arg("--dataset_dir");
    for (name, dir) in datasets {
        command.arg(format!("{name}={}", place.path(dir).display()));
    }
    command.args(FLAGS.split_whitespace()).args(more);
    command
}

fn json(place: &Place, output: &str, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(output).join(name)).unwrap()).unwrap()
}

/// The bits of every loss and the hash of the weights.
fn result(place: &Place, output: &str) -> (Vec<u64>, String) {
    let state = json(place, output, "trainer_state.json");
    let history = state["log_history"].as_array().unwrap().iter();
    let losses = history.filter_map(|entry| Some(entry["loss"].as_f64()?.to_bits())).collect();
    (losses, digest(&place.path(output))[Path::new("model.safetensors")].clone())
}

/// Two datasets, in blocks of 16, each with validation.
fn two() -> Place {
    let place = Place::new();
    for (name, count, seed) in [("large", 90, 3), ("small", 25, 4)] {
        place.write(&format!("{name}-text/a.txt"), lines(count, seed));
        let text = place.path(&format!("{name}-text"));
        let flags = ["--validation_split_percentage", "10", "--train_file_dir", text.to_str().unwrap()];
        run(&mut place.prepare(name, &flags)).ok();
    }
    place
}

#[test]
fn a_mixture_is_the_same_whatever_runs_it_and_wherever_it_goes_on() {
    let place = two();
    let datasets = [("web", "large:1"), ("books", "small:0.5")];
    let ended = run(&mut train(&place, "whole", &datasets, &[])).ok();
    let whole = result(&place, "whole");
    assert_eq!(whole.0.len(), 30);
    for part in ["web: ", "66.67 % of what is drawn", "books: ", "33.33 %"] {
        assert!(ended.stderr.contains(part), "{part} is not in: {}", ended.stderr);
    }
    let results = json(&place, "whole", "eval_results.json");
    assert!(results["eval_web_loss"].is_number() && results["eval_books_loss"].is_number(), "{results}");
    let settings = json(&place, "whole/checkpoint-14/trainer", "state.json")["settings"]["mixture"].clone();
    assert_eq!((&settings[0]["name"], &settings[0]["weight"]), (&"books".into(), &500_000.into()));

    // The order of the flags and the number of threads make no difference.
    let turned = [datasets[1], datasets[0]];
    run(train(&place, "turned", &turned, &["--save_strategy", "no"]).env("RAYON_NUM_THREADS", "1")).ok();
    assert_eq!(result(&place, "turned"), whole);
    // 30 steps of 4 are more than an epoch.
    for step in [7, 14, 21, 28] {
        let checkpoint = place.path(&format!("whole/checkpoint-{step}"));
        let output = format!("resumed-{step}");
        let resume = ["--resume_from_checkpoint", checkpoint.to_str().unwrap(), "--save_strategy", "no"];
        run(&mut train(&place, &output, &datasets, &resume)).ok();
        assert_eq!(result(&place, &output), whole, "resumed at {step}");
    }
    let checkpoint = place.path("whole/checkpoint-7");
    let resume = ["--resume_from_checkpoint", checkpoint.to_str().unwrap()];
    let other = [("web", "large:1"), ("books", "small:0.6")];
    run(&mut train(&place, "other", &other, &resume)).fails(2, &["--resume_from_checkpoint", "mixture"]);
    let other = [("web", "large:1"), ("books", "large:0.5")];
    run(&mut train(&place, "other", &other, &resume)).fails(2, &["--resume_from_checkpoint", "dataset"]);
    run(&mut train(&place, "other", &datasets, &["--data_seed", "5", "--save_strategy", "no"])).ok();
    assert_ne!(result(&place, "other").0, whole.0);
}

/// In the order of their sources, one and one are the lines of two files in turn.
#[test]
fn two_mixed_in_turn_are_the_dataset_whose_text_has_them_in_turn() {
    let place = Place::new();
    let [one, other]: [Vec<String>; 2] =
        ["a", "b"].map(|name| (0..9).map(|line| format!("the mill {name} grinds {line}\n")).collect());
    let both: String = one.iter().zip(&other).flat_map(|(one, other)| [one.as_str(), other]).collect();
    for (name, text) in [("one", one.concat()), ("other", other.concat()), ("both", both)] {
        place.write(&format!("{name}-text/a.txt"), text);
        let dir = place.path(&format!("{name}-text"));
        let flags = ["--packing", "false", "--block_size", "24", "--train_file_dir", dir.to_str().unwrap()];
        run(&mut place.prepare(name, &flags)).ok();
    }
    let flags = [
        "--train_sampling_strategy",
        "sequential",
        "--save_strategy",
        "no",
        "--max_steps",
        "9",
        "--gradient_accumulation_steps",
        "1",
    ];
    let without_evaluation = ["--do_eval", "false"];
    let more = [&flags[..], &without_evaluation].concat();
    run(&mut train(&place, "mixed", &[("a", "one:2"), ("b", "other:2")], &more)).ok();
    let of_both = [&FLAGS.split_whitespace().collect::<Vec<_>>()[..], &more].concat();
    run(&mut place.train("both", "single", &of_both)).ok();
    assert_eq!(result(&place, "mixed"), result(&place, "single"));
    // Without weights they go by size, which is the same here; and with --max_train_samples an epoch is shorter.
    run(&mut train(&place, "by-size", &[("a", "one"), ("b", "other")], &more)).ok();
    assert_eq!(result(&place, "by-size"), result(&place, "single"));
    let fewer = [&more[..], &["--max_train_samples", "8"]].concat();
    run(&mut train(&place, "fewer", &[("a", "one"), ("b", "other")], &fewer)).ok();
    assert_eq!(json(&place, "fewer", "train_results.json")["train_samples"], 8);
    assert_eq!(result(&place, "fewer"), result(&place, "single"), "an epoch goes on where the one before ended");
}

#[test]
fn what_cannot_be_mixed_is_refused_by_name() {
    let place = two();
    let text = place.path("small-text");
    let text = ["--train_file_dir", text.to_str().unwrap()];
    run(&mut place.prepare("wide", &[&text[..], &["--block_size", "32"]].concat())).ok();
    let pieces = data("tokenizers/pieces");
    let tokenizer = ["--tokenizer_name_or_path", pieces.to_str().unwrap()];
    run(&mut place.prepare("pieces", &[&text[..], &tokenizer].concat())).ok();
    place.write("empty-text/a.jsonl", "{\"text\": \"\"}\n");
    let empty = place.path("empty-text");
    let without_tokens = ["--append_eos", "false", "--train_file_dir", empty.to_str().unwrap()];
    run(&mut place.prepare("empty", &without_tokens)).ok();
    let small = ("a", "small:1");
    for (other, more, parts) in [
        (("b", "wide:1"), vec![], &["--dataset_dir", "a has blocks of 16", "b of 32", "--block_size"][..]),
        (("b", "pieces:1"), vec![], &["--dataset_dir", "a and b", "tokenizers"]),
        (("b", "large"), vec![], &["--dataset_dir", "weight for a", "none for b"]),
        (("b", "large:1"), vec!["--block_size", "0"], &["--block_size", "cannot be 0"]),
        (("b", "empty:1"), vec![], &["--dataset_dir", "b has no training block of 16 tokens"]),
        (("b", "missing:1"), vec![], &["missing"]),
    ] {
        run(&mut train(&place, "out", &[small, other], &more)).fails(2, parts);
    }
    // Cut to one size they are mixed.
    let cut = ["--block_size", "8", "--max_steps", "2", "--save_strategy", "no"];
    let ended = run(&mut train(&place, "cut", &[small, ("b", "wide:1")], &cut)).ok();
    assert!(ended.stderr.contains("b: blocks of 32 tokens are cut anew"), "{}", ended.stderr);
}
