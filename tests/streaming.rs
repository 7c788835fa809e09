//! Training on raw text while it is prepared: the blocks of `prepare`, exact resumption, errors that name their place.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, lines, run};

const FLAGS: &str = "--gradient_accumulation_steps 2 --max_steps 14 --save_steps 1 --lr_scheduler_type cosine \
    --warmup_steps 3 --weight_decay 0.1 --learning_rate 1e-2 --train_sampling_strategy sequential";

fn text() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(18, 5));
    place.write("text/sub/b.jsonl", "{\"text\": \"the river's mill\"}\n".repeat(9));
    place.write("text/z.txt", lines(7, 7));
    place
}

/// A run on raw text, as `Place::train` is one on a dataset.
fn live(place: &Place, output: &str, flags: &str, more: &[&str]) -> Command {
    let config = place.write("model/config.json", TINY_LLAMA);
    let mut command = Command::new(&binaries().trainer);
    command.args(["--streaming", "true", "--init_from_config"]).arg(config);
    command.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
    command.arg("--train_file_dir").arg(place.path("text")).arg("--cache_dir").arg(place.path("cache"));
    command.arg("--output_dir").arg(place.path(output)).args(["--use_peft", "false", "--do_train"]);
    command.args("--per_device_train_batch_size 2 --logging_steps 1 --block_size 16".split(' '));
    command.args(["--validation_split_percentage", "0"]).args(flags.split_whitespace()).args(more);
    command
}

fn json(place: &Place, output: &str, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(output).join(name)).unwrap()).unwrap()
}

fn losses(place: &Place, output: &str) -> Vec<u64> {
    let state = json(place, output, "trainer_state.json");
    let history = state["log_history"].as_array().unwrap().iter();
    history.filter_map(|entry| Some(entry["loss"].as_f64()?.to_bits())).collect()
}

fn weights(place: &Place, output: &str) -> String {
    digest(&place.path(output))[Path::new("model.safetensors")].clone()
}

#[test]
fn live_text_trains_to_the_bits_of_the_dataset_over_epochs() {
    let place = text();
    let manifest = run(&mut place.prepare("data", &[])).ok().json();
    let blocks = manifest["manifest"]["splits"]["train"]["blocks"].as_u64().unwrap();
    assert!((20..56).contains(&blocks) && !blocks.is_multiple_of(4), "{blocks} blocks");
    let flags: Vec<&str> = FLAGS.split_whitespace().collect();
    // All blocks, a bounded number of them, and epochs that end in whole micro-batches.
    for (name, more) in [
        ("all", vec![]),
        ("some", vec!["--max_train_samples", "11"]),
        ("whole", vec!["--max_train_samples", "11", "--dataloader_drop_last", "true"]),
    ] {
        run(place.train("data", &format!("prepared-{name}"), &flags).args(&more)).ok();
        let ended = run(&mut live(&place, name, FLAGS, &more)).ok();
        assert!(ended.stderr.contains("waiting for data"), "{}", ended.stderr);
        assert_eq!(losses(&place, name), losses(&place, &format!("prepared-{name}")), "{name}");
        assert_eq!(weights(&place, name), weights(&place, &format!("prepared-{name}")), "{name}");
        assert!(json(&place, name, "train_results.json")["train_data_wait"].as_f64().unwrap() < 1.0);
    }
}

/// Resumes the run `whole` after a step, with nothing kept, and shows that it ends in the same bits. Returns its output.
fn resume_without_cache(place: &Place, flags: &str, step: u32) -> String {
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    let output = format!("resumed-{step}");
    let checkpoint = place.path(&format!("whole/checkpoint-{step}"));
    run(&mut live(place, &output, flags, &["--resume_from_checkpoint", checkpoint.to_str().unwrap()])).ok();
    assert_eq!(losses(place, &output), losses(place, "whole"), "resumed at {step}");
    assert_eq!(weights(place, &output), weights(place, "whole"), "resumed at {step}");
    output
}

#[test]
fn resuming_in_mid_stream_changes_no_bit_and_needs_nothing_kept() {
    let place = text();
    let flags =
        format!("{FLAGS} --streaming_cache false --validation_split_percentage 1 --max_eval_samples 3 --do_eval");
    run(&mut live(&place, "whole", &flags, &[])).ok();
    let expected = losses(&place, "whole");
    assert_eq!(expected.len(), 14);
    assert_eq!(json(&place, "whole", "eval_results.json")["eval_samples"], 3);
    // Epochs are of 8 or more steps, so that the border of one is among these.
    for step in [1, 4, 6, 7, 8, 9, 10, 11, 12, 13] {
        let output = resume_without_cache(&place, &flags, step);
        let loss = |output: &str| json(&place, output, "eval_results.json")["eval_loss"].as_f64().unwrap().to_bits();
        assert_eq!(loss(&output), loss("whole"));
    }
    // Another text is refused, and so is another choice of its blocks.
    let checkpoint = place.path("whole/checkpoint-5");
    let resume = ["--resume_from_checkpoint", checkpoint.to_str().unwrap(), "--max_eval_samples", "4"];
    run(&mut live(&place, "other", &flags, &resume)).fails(2, &["--resume_from_checkpoint", "dataset"]);
    place.write("text/z.txt", "more\n");
    run(&mut live(&place, "other", &flags, &resume[..2])).fails(2, &["--resume_from_checkpoint", "dataset"]);
}

/// Windows are shuffled anew in every epoch, each has its own blocks, and going on in the middle of one changes no bit.
#[test]
fn shuffled_windows_have_every_block_once_an_epoch_and_go_on_in_mid_window() {
    let place = text();
    let flags = FLAGS.replace("--train_sampling_strategy sequential", "--shuffle_window 7");
    let flags = format!("{flags} --streaming_cache false");
    run(&mut live(&place, "whole", &flags, &[])).ok();
    let expected = losses(&place, "whole");
    for step in [1, 2, 5, 7, 8, 9, 13] {
        resume_without_cache(&place, &flags, step);
    }
    let checkpoint = place.path("whole/checkpoint-5");
    let resume = ["--resume_from_checkpoint", checkpoint.to_str().unwrap(), "--shuffle_window", "8"];
    run(&mut live(&place, "other", &flags, &resume)).fails(2, &["--resume_from_checkpoint", "shuffle_window"]);
    run(&mut live(&place, "seeded", &flags, &["--data_seed", "3", "--save_strategy", "no"])).ok();
    assert_ne!(losses(&place, "seeded"), expected);
    run(&mut live(&place, "whole-text", FLAGS, &["--save_strategy", "no"])).ok();
    assert_ne!(losses(&place, "whole-text"), expected);

    // Without learning, a step of a whole window has the loss of its blocks, whatever their order.
    let still = "--per_device_train_batch_size 7 --learning_rate 0 --max_steps 9 --save_strategy no";
    let of = |output: &str, more: &[&str]| -> Vec<f64> {
        run(&mut live(&place, output, still, more)).ok();
        losses(&place, output).into_iter().map(f64::from_bits).collect()
    };
    let (ordered, shuffled) = (of("ordered", &[]), of("shuffled", &["--shuffle_window", "7"]));
    for (ordered, shuffled) in ordered.iter().zip(&shuffled) {
        assert!((ordered / shuffled - 1.0).abs() < 1e-6, "{ordered} {shuffled}");
    }
    // A window of two steps has the same loss in both, but each step its own.
    let wider = of("wider", &["--shuffle_window", "14"]);
    assert!((wider[0] / ordered[0] - 1.0).abs() > 1e-5);
    assert!(((wider[0] + wider[1]) / (ordered[0] + ordered[1]) - 1.0).abs() < 1e-6);
}

/// Without learning, the loss of a step of one block tells which block it is.
#[test]
fn every_window_of_every_epoch_has_an_order_of_its_own() {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 5));
    let still = "--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --learning_rate 0 --max_steps 42 \
        --max_train_samples 21 --save_strategy no";
    let of = |output: &str, more: &[&str]| {
        run(&mut live(&place, output, still, more)).ok();
        losses(&place, output)
    };
    let ordered = of("ordered", &["--train_sampling_strategy", "sequential"]);
    let blocks = |losses: Vec<u64>| -> Vec<usize> {
        losses.iter().map(|loss| ordered[..21].iter().position(|of| of == loss).expect("a block")).collect()
    };
    assert!(blocks(ordered.clone()).into_iter().eq((0..21).chain(0..21)), "no two blocks are alike");
    let shuffled = blocks(of("shuffled", &["--shuffle_window", "7"]));
    let orders: Vec<Vec<usize>> =
        shuffled.chunks(7).map(|window| window.iter().map(|block| block % 7).collect()).collect();
    for (at, window) in shuffled.chunks(7).enumerate() {
        let mut window = window.to_vec();
        window.sort_unstable();
        assert!(window.into_iter().eq(at % 3 * 7..at % 3 * 7 + 7), "window {at}: {shuffled:?}");
        let alike = orders.iter().filter(|order| **order == orders[at]).count();
        assert_eq!(alike, 1, "{orders:?}");
    }
}

#[test]
fn once_counted_epochs_are_those_of_the_dataset() {
    let place = text();
    std::thread::sleep(Duration::from_millis(2100)); // younger scans are not remembered
    let epochs =
        "--num_train_epochs 1.5 --train_sampling_strategy sequential --logging_strategy epoch --save_strategy no";
    run(&mut live(&text(), "refused", epochs, &[])).fails(2, &["--num_train_epochs", "--max_steps"]);
    let ended = run(&mut live(&place, "once", "--max_steps 40 --save_strategy no", &[])).ok();
    assert!(ended.stderr.contains("3 of 3 files scanned"), "{}", ended.stderr);
    let ended = run(&mut live(&place, "epochs", epochs, &[])).ok();
    assert!(ended.stderr.contains("0 B tokenized, 0 of 3 files scanned"), "{}", ended.stderr);
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "prepared", &epochs.split_whitespace().collect::<Vec<_>>())).ok();
    assert_eq!(weights(&place, "epochs"), weights(&place, "prepared"));
    assert_eq!(losses(&place, "epochs"), losses(&place, "prepared"));
}

#[test]
fn what_is_wrong_with_the_text_is_said_when_it_is_reached() {
    let place = text();
    // Blocks of 64 MiB before the bad file would be needed to train before it is read: its own group comes first here.
    let word = "the mill grinds\n".repeat(4 << 20);
    place.write("text/m.txt", &word);
    place.write("text/n.jsonl", "{\"text\": \"good\"}\n{\"text\": 7}\n");
    run(&mut live(&place, "enough", "--max_steps 3 --save_strategy no", &[])).ok();
    std::fs::remove_file(place.path("text/m.txt")).unwrap();
    run(&mut live(&place, "bad", "--max_steps 300 --save_strategy no", &[])).fails(3, &["n.jsonl:2", "--text_field"]);
}

#[test]
fn what_cannot_be_known_beforehand_is_refused_with_the_remedy() {
    let place = text();
    for (more, parts) in [
        ("--max_steps 2 --validation_split_percentage 5", &["--validation_split_percentage", "--max_eval_samples"][..]),
        ("--max_steps 2 --validation_split_mode hash", &["--validation_split_mode", "--validation_file_dir"]),
        ("--max_steps 2 --save_strategy epoch", &["--save_strategy", "--max_train_samples"]),
        ("--max_steps 2 --ignore_data_skip true", &["--ignore_data_skip", "remove it"]),
        ("--max_steps 2 --validation_split_percentage 1", &["256", "--max_eval_samples"]),
        ("--max_steps 2 --packing false", &["--streaming", "--packing", "--dataset_dir"]),
        ("--num_train_epochs 1", &["--num_train_epochs", "--max_steps"]),
        ("--max_steps 2 --shuffle_window 0", &["--shuffle_window", "cannot be 0"]),
        ("--max_steps 2 --shuffle_window 4 --shuffle none", &["--shuffle_window", "--shuffle asks"]),
    ] {
        run(&mut live(&place, "out", more, &[])).fails(2, parts);
    }
    let both = ["--streaming", "true", "--max_steps", "2"];
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "out", &both)).fails(2, &["--streaming", "--dataset_dir"]);
}
