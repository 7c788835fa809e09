//! Optimizers, precision, noise and schedules in whole runs: resumed to the bit, and as their flags say.

use serde_json::Value;
use tokenmill_tests::{Place, TINY_LLAMA, digest, lines, run};

/// A dataset with validation blocks.
fn prepared() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 5));
    run(&mut place.prepare("data", &["--validation_split_percentage", "20"])).ok();
    place
}

/// The log's values of `key`, in order.
fn logged(place: &Place, output: &str, key: &str) -> Vec<f64> {
    let state = std::fs::read(place.path(output).join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    state["log_history"].as_array().unwrap().iter().filter_map(|entry| entry[key].as_f64()).collect()
}

fn result(place: &Place, output: &str, key: &str) -> f64 {
    let results = std::fs::read(place.path(output).join("all_results.json")).unwrap();
    serde_json::from_slice::<Value>(&results).unwrap()[key].as_f64().unwrap()
}

#[test]
fn every_optimizer_precision_and_schedule_resumes_to_the_bit() {
    let place = prepared();
    let sets: [&[&str]; 4] = [
        &["--optim", "adamw_bnb_8bit"],
        &["--fp16", "--optim", "adafactor"],
        &["--neftune_noise_alpha", "5", "--optim", "lion"],
        &[
            "--lr_scheduler_type",
            "reduce_lr_on_plateau",
            "--lr_scheduler_kwargs",
            "{\"patience\": 0, \"factor\": 0.5, \"threshold\": 0.1}",
            "--eval_strategy",
            "steps",
            "--eval_steps",
            "1",
        ],
    ];
    for (number, set) in sets.into_iter().enumerate() {
        let flags = ["--max_steps", "6", "--save_steps", "3", "--learning_rate", "1e-2"];
        let (whole, resumed) = (format!("whole-{number}"), format!("resumed-{number}"));
        run(place.train("data", &whole, &flags).args(set)).ok();
        let from = place.path(&format!("{whole}/checkpoint-3"));
        let resume = ["--resume_from_checkpoint", from.to_str().unwrap()];
        run(place.train("data", &resumed, &flags).args(set).args(resume)).ok();
        for key in ["loss", "learning_rate", "grad_norm"] {
            let (found, expected) = (logged(&place, &resumed, key), logged(&place, &whole, key));
            assert!(found == expected && found.len() == 6, "{set:?}, {key}: {found:?}, not {expected:?}");
        }
        let last = |output: &str| {
            let mut files = digest(&place.path(output).join("checkpoint-6"));
            files.retain(|name, _| name.extension().is_some_and(|kind| kind == "safetensors" || kind == "pt"));
            files
        };
        assert!(last(&whole).len() >= 2 && last(&whole) == last(&resumed), "{set:?}");
    }
    // Each rate but the first follows an evaluation that did not get a tenth better.
    let rates = logged(&place, "whole-3", "learning_rate");
    assert!(
        rates[0] == 1e-2
            && rates[5] < 1e-2
            && rates.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] / 2.0)
    );
    run(&mut place.train("data", "wrong", &["--lr_scheduler_type", "greedy"]))
        .fails(2, &["--lr_scheduler_type", "--eval_strategy"]);
}

/// One label that is not expected has a gradient of −1, which overflows float16 under the first scale of the loss.
#[test]
fn float16_lowers_the_scale_of_the_loss_until_gradients_fit_and_the_schedule_waits() {
    let place = prepared();
    run(&mut place.prepare("pairs", &["--block_size", "2"])).ok();
    let surprised = TINY_LLAMA.replace("\"initializer_range\": 0.05", "\"initializer_range\": 1.0");
    place.write("surprised/config.json", surprised);
    let flags =
        ["--max_steps", "30", "--save_strategy", "no", "--fp16", "--learning_rate", "1e-3", "--init_from_config"];
    let mut command = place.train("pairs", "out", &flags);
    let ended = run(command.arg(place.path("surprised")).args(["--per_device_train_batch_size", "1"])).ok();
    let step_of = |line: &str| line.strip_prefix("step ")?.split(':').next()?.parse::<usize>().ok();
    let overflowed: Vec<usize> =
        ended.stderr.lines().filter(|line| line.contains("overflowed float16")).filter_map(step_of).collect();
    assert!((1..25).contains(&overflowed.len()), "{overflowed:?}: {}", ended.stderr);
    assert!(ended.stderr.contains("is now scaled by 32768"), "{}", ended.stderr);
    // linear over 30 steps, of which the schedule saw those that updated something.
    for (done, rate) in logged(&place, "out", "learning_rate").into_iter().enumerate() {
        let seen = done - overflowed.iter().filter(|step| **step <= done).count();
        assert!((rate - 1e-3 * (1.0 - seen as f64 / 30.0)).abs() < 1e-12, "{done}: {rate}, {overflowed:?}");
    }

    run(&mut place.train("data", "fits", &["--max_steps", "8", "--save_strategy", "no", "--fp16"])).ok();
    run(&mut place.train("data", "exact", &["--max_steps", "8", "--save_strategy", "no"])).ok();
    for (rounded, exact) in logged(&place, "fits", "loss").iter().zip(logged(&place, "exact", "loss")) {
        assert!(*rounded != exact && (rounded / exact - 1.0).abs() < 2e-3, "{rounded}, {exact}");
    }
    run(&mut place.train("data", "both", &["--fp16", "--bf16"])).fails(2, &["--fp16", "--bf16"]);
}

#[test]
fn a_full_evaluation_in_fewer_bits_is_that_of_a_model_in_fewer_bits() {
    let place = prepared();
    let flags = ["--max_steps", "4", "--save_strategy", "no", "--do_eval", "--learning_rate", "1e-2"];
    for (full, precision) in [("--bf16_full_eval", "--bf16"), ("--fp16_full_eval", "--fp16")] {
        run(place.train("data", full, &flags).arg(full)).ok();
        let model = place.path(full);
        let mut only_evaluated = std::process::Command::new(&tokenmill_tests::binaries().trainer);
        only_evaluated.arg("--model_name_or_path").arg(&model).arg("--dataset_dir").arg(place.path("data"));
        only_evaluated.arg("--output_dir").arg(place.path(precision)).args([
            "--use_peft",
            "false",
            "--do_eval",
            precision,
        ]);
        run(&mut only_evaluated).ok();
        assert_eq!(result(&place, full, "eval_loss"), result(&place, precision, "eval_loss"));
    }
    run(&mut place.train("data", "exact", &flags)).ok();
    let (exact, rounded) = (result(&place, "exact", "eval_loss"), result(&place, "--bf16_full_eval", "eval_loss"));
    assert_eq!(logged(&place, "exact", "loss"), logged(&place, "--bf16_full_eval", "loss"));
    assert!(exact != rounded && (exact / rounded - 1.0).abs() < 1e-2, "{exact}, {rounded}");
}

/// With a learning rate of 0 the weights stay: only the noise can change a loss.
#[test]
fn noise_on_embeddings_changes_training_and_not_evaluation() {
    let place = prepared();
    let flags = ["--max_steps", "3", "--save_strategy", "no", "--do_eval", "--learning_rate", "0"];
    run(&mut place.train("data", "without", &flags)).ok();
    for (name, more) in [("noise", &["--seed", "42"][..]), ("recomputed", &["--gradient_checkpointing"])] {
        run(place.train("data", name, &flags).args(["--neftune_noise_alpha", "5"]).args(more)).ok();
    }
    let (noise, without) = (logged(&place, "noise", "loss"), logged(&place, "without", "loss"));
    assert!(noise.iter().zip(&without).all(|(noise, without)| noise != without), "{noise:?}");
    assert_eq!(
        (noise, logged(&place, "noise", "grad_norm")),
        (logged(&place, "recomputed", "loss"), logged(&place, "recomputed", "grad_norm"))
    );
    assert_eq!(result(&place, "noise", "eval_loss"), result(&place, "without", "eval_loss"));
}
