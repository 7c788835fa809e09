//! A resumed run is the uninterrupted run: the same loss bits, weights and optimizer state.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tokenmill_tests::{Place, digest, lines, run};

const FLAGS: [&str; 14] = [
    "--gradient_accumulation_steps",
    "2",
    "--max_steps",
    "14",
    "--save_steps",
    "1",
    "--lr_scheduler_type",
    "cosine",
    "--warmup_steps",
    "3",
    "--weight_decay",
    "0.1",
    "--learning_rate",
    "1e-2",
];

fn prepared() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    let json = run(&mut place.prepare("data", &[])).ok().json();
    let blocks = json["manifest"]["splits"]["train"]["blocks"].as_u64().unwrap();
    // 14 steps of 4 blocks cross an epoch border, and the last step of an epoch is a short one.
    assert!((20..56).contains(&blocks) && !blocks.is_multiple_of(4), "{blocks} blocks");
    place
}

fn losses(place: &Place, output: &str) -> Vec<u64> {
    let state: Value =
        serde_json::from_slice(&std::fs::read(place.path(output).join("trainer_state.json")).unwrap()).unwrap();
    state["log_history"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|entry| Some(entry["loss"].as_f64()?.to_bits()))
        .collect()
}

/// The files of the last checkpoint that must be equal bit for bit.
fn last_state(place: &Place, output: &str) -> [String; 3] {
    let files = digest(&place.path(output));
    let of = |name: &str| files[Path::new(name)].clone();
    [of("checkpoint-14/model.safetensors"), of("checkpoint-14/optimizer.pt"), of("model.safetensors")]
}

#[test]
fn resuming_at_any_step_changes_no_bit() {
    let place = prepared();
    run(place.train("data", "whole", &FLAGS).args(["--gradient_checkpointing", "false"])).ok();
    let (expected, expected_losses) = (last_state(&place, "whole"), losses(&place, "whole"));
    assert_eq!(expected_losses.len(), 14);
    for (step, checkpointing) in
        [1, 2, 3, 5, 6, 7, 9, 10, 12, 13].into_iter().zip(["true", "false"].into_iter().cycle())
    {
        let output = format!("resumed-{step}");
        copy(&place.path(&format!("whole/checkpoint-{step}")), &place.path(&format!("{output}/checkpoint-{step}")));
        let from = place.path(&format!("{output}/checkpoint-{step}"));
        let flags = ["--gradient_checkpointing", checkpointing, "--resume_from_checkpoint", from.to_str().unwrap()];
        run(place.train("data", &output, &FLAGS).args(flags)).ok();
        assert_eq!(losses(&place, &output), expected_losses, "resumed at {step}");
        assert_eq!(last_state(&place, &output), expected, "resumed at {step}");
        let results = |output: &str| std::fs::read_to_string(place.path(output).join("train_results.json")).unwrap();
        let loss = |output: &str| {
            serde_json::from_str::<Value>(&results(output)).unwrap()["train_loss"].as_f64().unwrap().to_bits()
        };
        assert_eq!(loss(&output), loss("whole"), "train_loss after resuming at {step}");
    }
}

fn copy(from: &Path, to: &Path) {
    for name in digest(from).into_keys() {
        let target = to.join(&name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(name), target).unwrap();
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_reported_and_the_previous_one_used() {
    let place = prepared();
    let flags = ["--max_steps", "6", "--save_steps", "2"];
    run(&mut place.train("data", "out", &flags)).ok();
    let expected = digest(&place.path("out/checkpoint-6"));
    for file in ["model.safetensors", "optimizer.pt", "trainer/state.json", "config.json", "tokenizer.json"] {
        let path = place.path("out/checkpoint-6").join(file);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let resumed = run(place.train("data", "out", &flags).args(["--resume_from_checkpoint", "True"])).ok();
        assert!(
            resumed.stderr.contains("checkpoint-6") && resumed.stderr.contains("at step 4"),
            "{file}: {}",
            resumed.stderr
        );
        let again = digest(&place.path("out/checkpoint-6"));
        assert_eq!(again[Path::new("model.safetensors")], expected[Path::new("model.safetensors")]);
    }
}

#[test]
fn other_data_or_seeds_are_refused_by_name_and_old_checkpoints_are_never_mixed_in() {
    let place = prepared();
    let flags = ["--max_steps", "2", "--save_steps", "2"];
    run(&mut place.train("data", "out", &flags)).ok();
    let resume = |more: &[&str]| {
        run(place.train("data", "out", &["--max_steps", "4", "--resume_from_checkpoint", "true"]).args(more))
    };
    resume(&["--data_seed", "9"]).fails(2, &["data_seed"]);
    resume(&["--train_sampling_strategy", "sequential"]).fails(2, &["random_order"]);
    resume(&["--gradient_accumulation_steps", "3"]).fails(2, &["blocks_per_step"]);
    resume(&["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "1"]).ok();
    run(&mut place.train("data", "out", &flags))
        .fails(2, &["--resume_from_checkpoint true", "already holds checkpoints"]);
}

/// Step 6 is damaged: counted among the newest, it would push out step 5, the only good one.
#[test]
fn a_damaged_newer_checkpoint_never_pushes_out_a_good_one() {
    let place = prepared();
    run(&mut place.train("data", "out", &["--max_steps", "6", "--save_steps", "2"])).ok();
    std::fs::write(place.path("out/checkpoint-6/model.safetensors"), b"damaged").unwrap();
    // The run ends at 5, before it would replace the damaged one.
    let flags =
        ["--max_steps", "5", "--save_steps", "1", "--save_total_limit", "1", "--resume_from_checkpoint", "true"];
    run(&mut place.train("data", "out", &flags)).ok();
    let resumed = run(&mut place.train("data", "out", &flags)).ok();
    assert!(resumed.stderr.contains("at step 5"), "{}", resumed.stderr);
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let place = prepared();
    run(&mut place.train("data", "out", &["--max_steps", "8", "--save_steps", "2", "--save_total_limit", "2"])).ok();
    let kept: Vec<_> = (1..=8).filter(|step| place.path(&format!("out/checkpoint-{step}")).exists()).collect();
    assert_eq!(kept, [6, 8]);
}

#[test]
fn a_run_stopped_by_a_signal_saves_and_goes_on_to_the_same_bits() {
    let place = prepared();
    let flags = ["--max_steps", "300", "--save_steps", "1000", "--learning_rate", "1e-2"];
    run(&mut place.train("data", "whole", &flags)).ok();
    let mut child = place.train("data", "out", &flags).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(stderr.any(|line| line.starts_with("step 3:")), "no third step");
    assert_eq!(run(Command::new("kill").args(["-TERM", &child.id().to_string()])).code, Some(0));
    let rest: Vec<String> = stderr.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("--resume_from_checkpoint true")), "{rest:?}");
    let saved: Vec<_> = (1..=300).filter(|step| place.path(&format!("out/checkpoint-{step}")).exists()).collect();
    assert!(saved.len() == 1 && saved[0] < 300, "{saved:?}");
    run(place.train("data", "out", &flags).args(["--resume_from_checkpoint", "true"])).ok();
    let weights = |output: &str| digest(&place.path(output)).remove(Path::new("model.safetensors"));
    assert_eq!(weights("out"), weights("whole"));
    assert_eq!(losses(&place, "out"), losses(&place, "whole"));
}

#[test]
fn diverged_weights_stop_the_run_and_are_never_saved() {
    let place = prepared();
    let flags = [
        "--max_steps",
        "6",
        "--save_steps",
        "1",
        "--max_grad_norm",
        "0",
        "--nonfinite_action",
        "stop",
        "--learning_rate",
    ];
    run(place.train("data", "update", &flags).args(["1e39", "--warmup_steps", "2"])).fails(1, &["step 2", "finite"]);
    assert!(place.path("update/checkpoint-1").exists() && !place.path("update/checkpoint-2").exists());
    run(place.train("data", "loss", &flags).args(["1e30", "--warmup_steps", "2"])).fails(1, &["step 3", "blocks ["]);
    assert!(!place.path("loss/checkpoint-3").exists());
}

#[test]
fn two_trainers_never_share_an_output_directory() {
    let place = prepared();
    std::fs::create_dir_all(place.path("out")).unwrap();
    let lock = std::fs::File::create(place.path("out/.tokenmill-lock")).unwrap();
    lock.lock().unwrap();
    run(&mut place.train("data", "out", &["--max_steps", "1"])).fails(2, &["--output_dir", "another trainer"]);
    drop(lock);
    run(&mut place.train("data", "out", &["--max_steps", "1"])).ok();
}
