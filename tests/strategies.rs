//! When a run logs, evaluates and saves, and what it keeps: as its flags say.

use std::process::Command;

use serde_json::Value;
use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, lines, run};

/// A dataset with validation blocks.
fn prepared() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 5));
    run(&mut place.prepare("data", &["--validation_split_percentage", "20"])).ok();
    place
}

fn state(place: &Place, dir: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(dir).join("trainer_state.json")).unwrap()).unwrap()
}

/// The steps at which the log has `key`.
fn steps_of(place: &Place, output: &str, key: &str) -> Vec<u64> {
    let state = state(place, output);
    let entries = state["log_history"].as_array().unwrap().iter().filter(|entry| !entry[key].is_null());
    entries.map(|entry| entry["step"].as_u64().unwrap()).collect()
}

fn checkpoints(place: &Place, output: &str) -> Vec<u64> {
    (1..=30).filter(|step| place.path(&format!("{output}/checkpoint-{step}")).exists()).collect()
}

#[test]
fn logging_and_evaluation_come_when_they_are_due() {
    let place = prepared();
    let flags = ["--max_steps", "9", "--logging_steps", "4", "--logging_first_step", "--eval_strategy", "steps"];
    let more = ["--eval_steps", "2", "--eval_delay", "5", "--eval_on_start", "--save_strategy", "no"];
    run(place.train("data", "out", &flags).args(more)).ok();
    assert_eq!(steps_of(&place, "out", "loss"), [1, 4, 8]);
    assert_eq!(steps_of(&place, "out", "eval_loss"), [0, 6, 8]);
    assert_eq!(steps_of(&place, "out", "train_loss"), [9]);
    assert!(checkpoints(&place, "out").is_empty());
    // A share of all steps, rounded up.
    run(&mut place.train("data", "share", &["--max_steps", "9", "--logging_steps", "0.3", "--save_steps", "0.5"])).ok();
    assert_eq!((steps_of(&place, "share", "loss"), checkpoints(&place, "share")), (vec![3, 6, 9], vec![5, 9]));
}

#[test]
fn every_entry_of_the_log_is_a_line_of_metrics_also_after_resuming() {
    let place = prepared();
    let flags = ["--max_steps", "8", "--save_steps", "3", "--report_to", "tensorboard", "--logging_dir"];
    let board = place.path("board");
    run(place.train("data", "out", &flags).arg(&board)).ok();
    let metrics = || -> Vec<Value> {
        let text = std::fs::read_to_string(place.path("out/metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(Value::from(metrics()), state(&place, "out")["log_history"]);
    assert_eq!(std::fs::read_dir(&board).unwrap().count(), 1);
    // Lines of steps that are made again are not there twice.
    let from = place.path("out/checkpoint-3");
    run(place.train("data", "out", &flags).arg(&board).arg("--resume_from_checkpoint").arg(from)).ok();
    assert_eq!(Value::from(metrics()), state(&place, "out")["log_history"]);
    assert_eq!(steps_of(&place, "out", "loss"), (1..=8).collect::<Vec<_>>());
}

/// The learning rate rises until nothing is learned any more, so that an early evaluation is the best.
#[test]
fn the_best_checkpoint_is_kept_and_its_weights_are_the_end() {
    let place = prepared();
    let flags = ["--max_steps", "10", "--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2"];
    let more = ["--save_total_limit", "2", "--load_best_model_at_end", "--learning_rate", "0.5", "--do_eval"];
    let ended = run(place.train("data", "out", &flags).args(more).args(["--warmup_steps", "10"])).ok();
    let evaluations = state(&place, "out");
    let losses: Vec<f64> =
        evaluations["log_history"].as_array().unwrap().iter().filter_map(|entry| entry["eval_loss"].as_f64()).collect();
    let best = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
    let step = 2 * (best as u64 + 1);
    assert!(step < 8, "the rate is not high enough for this test: {losses:?}");
    assert_eq!(checkpoints(&place, "out"), [step, 10]);
    assert_eq!(evaluations["best_global_step"], step);
    assert_eq!(evaluations["best_metric"], losses[best]);
    assert!(evaluations["best_model_checkpoint"].as_str().unwrap().ends_with(&format!("checkpoint-{step}")));
    assert_eq!(state(&place, &format!("out/checkpoint-{step}"))["best_global_step"], step);
    let weights = |dir: &str| digest(&place.path(dir))[std::path::Path::new("model.safetensors")].clone();
    assert_eq!(weights("out"), weights(&format!("out/checkpoint-{step}")));
    assert!(ended.stderr.contains("the best"), "{}", ended.stderr);
    let results: Value = serde_json::from_slice(&std::fs::read(place.path("out/eval_results.json")).unwrap()).unwrap();
    assert_eq!(results["eval_loss"], losses[best]);

    let best_only = ["--save_strategy", "best", "--metric_for_best_model", "accuracy", "--learning_rate", "1e-9"];
    run(place.train("data", "once", &flags[..6]).args(best_only)).ok();
    assert_eq!(checkpoints(&place, "once").first(), Some(&2));
    run(&mut place.train("data", "wrong", &["--load_best_model_at_end", "--eval_strategy", "epoch"]))
        .fails(2, &["--load_best_model_at_end", "--save_strategy"]);
    run(place.train("data", "wrong", &flags).args(["--metric_for_best_model", "rouge"])).fails(2, &["rouge", "nll"]);
}

#[test]
fn a_new_run_in_an_old_directory_sets_its_checkpoints_aside() {
    let place = prepared();
    let flags = ["--max_steps", "4", "--save_steps", "2"];
    run(&mut place.train("data", "out", &flags)).ok();
    let before = digest(&place.path("out/checkpoint-4"));
    let more = ["--overwrite_output_dir", "--seed", "7", "--max_steps", "2"];
    run(place.train("data", "out", &flags).args(more)).ok();
    assert_eq!(checkpoints(&place, "out"), [2]);
    assert_eq!(digest(&place.path("out/replaced-1/checkpoint-4")), before);
}

#[test]
fn a_short_last_batch_can_be_left_out() {
    let place = prepared();
    let blocks = run(&mut place.prepare("data", &["--validation_split_percentage", "20"])).ok().json()["manifest"]
        ["splits"]["train"]["blocks"]
        .as_u64()
        .unwrap();
    let batch = (2..9).find(|batch| !blocks.is_multiple_of(*batch)).unwrap();
    for (drop, steps) in [("true", blocks / batch), ("false", blocks.div_ceil(batch))] {
        let flags = ["--max_steps", "-1", "--num_train_epochs", "1", "--dataloader_drop_last", drop];
        let size = batch.to_string();
        run(place.train("data", drop, &flags).args(["--per_device_train_batch_size", &size])).ok();
        assert_eq!(state(&place, drop)["global_step"], steps);
    }
}

/// The first update makes the weights useless: every later step has no finite loss.
#[test]
fn steps_that_are_not_finite_update_nothing_and_ten_in_a_row_stop_the_run() {
    let place = prepared();
    let flags = ["--max_grad_norm", "0", "--learning_rate", "1e30", "--save_strategy", "no", "--max_steps"];
    let ended = run(place.train("data", "out", &flags).args(["30", "--lr_scheduler_type", "constant"]));
    ended.fails(1, &["step 11", "as the 9 before it", "blocks ["]);
    assert!(ended.stderr.contains("step 2: the loss is NaN"), "{}", ended.stderr);
}

#[test]
fn a_checkpoint_of_the_model_alone_is_smaller_and_nothing_goes_on_from_it() {
    let place = prepared();
    let flags = ["--max_steps", "4", "--save_steps", "2", "--save_only_model", "--save_total_limit", "1"];
    let best = ["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "2"];
    run(place.train("data", "out", &flags).args(best)).ok();
    assert!(place.path("out/checkpoint-4/model.safetensors").exists());
    for file in ["optimizer.pt", "scheduler.pt", "trainer/optimizer.safetensors"] {
        assert!(!place.path("out/checkpoint-4").join(file).exists(), "{file}");
    }
    let mut resumed = place.train("data", "out", &flags);
    run(resumed.args(["--resume_from_checkpoint", "true"])).fails(2, &["checkpoint-4", "--save_only_model"]);
}

/// With a learning rate of 0 the loss of a step says which blocks it saw.
#[test]
fn going_on_without_skipping_data_begins_the_epoch_again() {
    let place = prepared();
    let flags = ["--learning_rate", "0", "--num_train_epochs", "3", "--save_steps", "1", "--weight_decay", "0"];
    run(&mut place.train("data", "out", &flags)).ok();
    let losses = |dir: &str| -> Vec<u64> {
        let state = state(&place, dir);
        let entries = state["log_history"].as_array().unwrap().iter();
        entries.filter_map(|entry| Some(entry["loss"].as_f64()?.to_bits())).collect()
    };
    let whole = losses("out");
    let per_epoch = whole.len() / 3;
    let from = per_epoch + 2;
    assert!(per_epoch > 5, "{per_epoch} steps");
    let checkpoint = place.path(&format!("out/checkpoint-{from}"));
    let more = ["--ignore_data_skip", "--resume_from_checkpoint", checkpoint.to_str().unwrap()];
    run(place.train("data", "again", &flags).args(more)).ok();
    let again = losses("again");
    assert_eq!(again[..from], whole[..from]);
    assert_eq!(again[from..], whole[per_epoch..whole.len() - 2]);
    // Going on from there sees the blocks that the run would have seen.
    let later = place.path(&format!("again/checkpoint-{}", from + 3));
    let more = ["--resume_from_checkpoint", later.to_str().unwrap()];
    run(place.train("data", "later", &flags).args(more)).ok();
    assert_eq!(losses("later"), again);
}

#[test]
fn input_tokens_are_counted_with_or_without_padding() {
    let place = prepared();
    run(&mut place.prepare("padded", &["--remainder", "pad"])).ok();
    let seen = |output: &str, more: &[&str]| {
        let flags = ["--num_train_epochs", "1", "--save_strategy", "no", "--train_sampling_strategy", "sequential"];
        run(place.train("padded", output, &flags).args(more)).ok();
        let state = state(&place, output);
        let history = state["log_history"].as_array().unwrap();
        let last = history.iter().rfind(|entry| !entry["loss"].is_null()).unwrap();
        assert_eq!(last["num_input_tokens_seen"], state["num_input_tokens_seen"]);
        state["num_input_tokens_seen"].as_u64().unwrap()
    };
    let json = run(&mut place.prepare("padded", &["--remainder", "pad"])).ok().json();
    let split = &json["manifest"]["splits"]["train"];
    let (blocks, last) = (split["blocks"].as_u64().unwrap(), split["last_block_valid_tokens"].as_u64().unwrap());
    assert!(last < 16, "the text must not fill its last block");
    assert_eq!(seen("all", &["--include_num_input_tokens_seen"]), 16 * blocks);
    assert_eq!(seen("valid", &["--include_num_input_tokens_seen", "non_padding"]), 16 * (blocks - 1) + last);
    let flags = ["--max_steps", "1", "--save_strategy", "no", "--include_num_input_tokens_seen", "False"];
    run(&mut place.train("padded", "none", &flags)).ok();
    assert_eq!(state(&place, "none")["num_input_tokens_seen"], 0);
}

#[test]
fn a_configuration_file_stands_for_flags_and_flags_win() {
    let place = prepared();
    place.write("run.yaml", "max_steps: 3\nsave_strategy: \"no\"\nreport_to: [none]\nlearning_rate: 1e-3\n");
    let command = place.train("data", "out", &[]);
    let words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let mut with_file = Command::new(command.get_program());
    with_file.arg(place.path("run.yaml")).args(words).args(["--learning_rate", "2e-3"]);
    run(&mut with_file).ok();
    let arguments: Value =
        serde_json::from_slice(&std::fs::read(place.path("out/training_args.json")).unwrap()).unwrap();
    assert_eq!((&arguments["max_steps"], &arguments["learning_rate"]), (&Value::from(3), &Value::from(2e-3)));
    assert!(checkpoints(&place, "out").is_empty());
}

/// Each set is evaluated as if it were the only one, and its metrics carry its name.
#[test]
fn validation_sets_with_names_are_evaluated_apart() {
    let place = Place::new();
    for (name, count, seed) in [("text", 25, 5), ("wiki", 20, 8), ("news", 15, 9)] {
        place.write(&format!("{name}/a.txt"), lines(count, seed));
    }
    let train = |output: &str, more: &[&str]| {
        let mut command = Command::new(&binaries().trainer);
        let config = place.write("model/config.json", TINY_LLAMA);
        command.arg("--init_from_config").arg(config).arg("--train_file_dir").arg(place.path("text"));
        command.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
        command.arg("--cache_dir").arg(place.path("cache")).arg("--output_dir").arg(place.path(output));
        command.args(["--use_peft", "false", "--do_train", "--do_eval", "--block_size", "16", "--max_steps", "4"]);
        command.args(["--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2", "--learning_rate", "1e-2"]);
        command.args(more);
        run(&mut command)
    };
    let set = |name: &str| place.path(name).to_string_lossy().into_owned();
    let (wiki, news) = (format!("wiki={}", set("wiki")), format!("news={}", set("news")));
    let best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "news_loss"];
    train("both", &[&["--validation_file_dir", &wiki, &news][..], &best].concat()).ok();
    let of = |output: &str, file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(place.path(output).join(file)).unwrap()).unwrap()
    };
    let (state, results) = (of("both", "trainer_state.json"), of("both", "eval_results.json"));
    for (name, other) in [("wiki", "news"), ("news", "wiki")] {
        let output = format!("alone-{name}");
        train(&output, &["--validation_file_dir", &set(name)]).ok();
        let losses = |output: &str, key: &str| -> Vec<Value> {
            let history = of(output, "trainer_state.json")["log_history"].as_array().unwrap().clone();
            history.into_iter().filter_map(|entry| entry.get(key).cloned()).collect()
        };
        let (alone, beside) = (losses(&output, "eval_loss"), losses("both", &format!("eval_{name}_loss")));
        assert!(alone == beside && alone.len() == 2, "{alone:?}, {beside:?}");
        let of_one = state["log_history"].as_array().unwrap().iter();
        let of_one = of_one.filter(|entry| entry.get(format!("eval_{name}_loss")).is_some());
        assert!(of_one.clone().all(|entry| entry.get(format!("eval_{other}_loss")).is_none()));
        let alone = of(&output, "eval_results.json");
        for metric in ["loss", "accuracy", "bits_per_byte", "samples"] {
            assert_eq!(results[format!("eval_{name}_{metric}")], alone[format!("eval_{metric}")], "{metric}");
        }
        assert_eq!(results[format!("eval_{name}_perplexity")], alone["perplexity"]);
        assert!(results.get("eval_loss").is_none() && results.get("perplexity").is_none());
    }
    assert_eq!(state["best_metric"], results["eval_news_loss"]);
    // Which set is meant must be said, and what it is called.
    train("none", &[&["--validation_file_dir", &wiki, &news][..], &best[..2]].concat())
        .fails(2, &["--metric_for_best_model", "wiki_loss", "news_accuracy"]);
    train("twice", &["--validation_file_dir", &wiki, &set("news")]).fails(2, &["--validation_file_dir", "name=DIR"]);
    run(&mut place.prepare("data", &["--validation_file_dir", &wiki]))
        .fails(2, &["--validation_file_dir", "`trainer`"]);
}
