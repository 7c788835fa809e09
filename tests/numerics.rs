//! Optimizers, precision, noise and schedules in whole runs: resumed to the bit, and as their flags say.

use std::process::Command;

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, lines, run};

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
    let sets: [&[&str]; 5] = [
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
        &["--optim", "sgd", "--optim_args", "momentum=0.9,nesterov=true"],
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
        let mut only_evaluated = Command::new(&binaries().trainer);
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

/// With a learning rate of 0 the weights stay: only what the losses are divided by can differ.
#[test]
fn losses_of_the_trainer_of_4_57_are_means_over_more_labels_or_sums_of_means() {
    let place = prepared();
    let flags = ["--max_steps", "3", "--save_strategy", "no", "--do_eval", "--learning_rate", "0"];
    let flags = [&flags[..], &["--gradient_accumulation_steps", "2"]].concat();
    for (smoothing, factor, eval_factor) in [("0", 15.0 / 16.0, 15.0 / 16.0), ("0.1", 2.0, 1.0)] {
        let flags = [&flags[..], &["--label_smoothing_factor", smoothing]].concat();
        let (right, old) = (format!("right-{smoothing}"), format!("old-{smoothing}"));
        run(&mut place.train("data", &right, &flags)).ok();
        run(place.train("data", &old, &flags).args(["--compat", "hf-4.57"])).ok();
        let is = |found: f64, right: f64, factor: f64| (found / right / factor - 1.0).abs() < 1e-6;
        for key in ["loss", "grad_norm"] {
            let pairs = logged(&place, &old, key).into_iter().zip(logged(&place, &right, key));
            assert_eq!(pairs.clone().filter(|(old, right)| is(*old, *right, factor)).count(), 3, "{key}: {pairs:?}");
        }
        assert!(is(result(&place, &old, "eval_loss"), result(&place, &right, "eval_loss"), eval_factor));
        assert_eq!(result(&place, &old, "eval_accuracy"), result(&place, &right, "eval_accuracy"));
    }
    assert_eq!(result(&place, "old-0", "perplexity"), result(&place, "old-0", "eval_loss").exp());
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

/// Without an epsilon, the norm of a token whose embedding is zero divides by zero: blocks with it have no finite loss.
#[test]
fn a_useless_step_is_left_out_after_going_back_to_a_checkpoint_and_its_documents_are_named() {
    let place = Place::new();
    let before = lines(14, 5);
    let document = before.lines().count() + 1;
    place.write("text/a.txt", format!("{before}\u{3a9}\n{}", lines(20, 6)));
    run(&mut place.prepare("data", &[])).ok();
    let tokenizer = Tokenizer::from_file(data("tokenizers/bytes/tokenizer.json")).unwrap();
    let token = tokenizer.encode("\u{3a9}", false).unwrap().get_ids()[0];
    let train = Dataset::open(&place.path("data")).unwrap().split(Split::Train).unwrap().unwrap();
    let with_token: Vec<u64> = (0..train.len())
        .filter(|block| {
            let mut ids = Vec::new();
            train.read_block(*block, &mut ids).unwrap();
            ids.contains(&token)
        })
        .collect();
    assert!(with_token.len() == 1 && train.len() > with_token[0] + 6, "{with_token:?} of {}", train.len());
    let bad = with_token[0] / 2 + 1;
    let last = bad + 2;
    assert!(bad > 3, "{bad}");

    place.write("exact/config.json", TINY_LLAMA.replace("1e-05", "0.0"));
    let start = ["--max_steps", "1", "--learning_rate", "0", "--save_strategy", "no", "--init_from_config"];
    run(place.train("data", "base", &start).arg(place.path("exact"))).ok();
    forget_embedding(&place.path("base/model.safetensors"), token);
    let train = |output: &str, more: &[&str]| {
        let mut command = Command::new(&binaries().trainer);
        command.arg("--model_name_or_path").arg(place.path("base")).arg("--dataset_dir").arg(place.path("data"));
        command.arg("--output_dir").arg(place.path(output)).args(["--use_peft", "false", "--logging_steps", "1"]);
        command.args(["--per_device_train_batch_size", "2", "--train_sampling_strategy", "sequential"]);
        run(command.args(["--max_steps", &last.to_string(), "--learning_rate", "1e-3"]).args(more))
    };
    let ended = train("back", &["--nonfinite_action", "rollback", "--save_steps", "3"]).ok();
    let said = ended.stderr.lines().find(|line| line.contains("going back to a checkpoint")).unwrap();
    assert!(said.starts_with(&format!("step {bad}: the loss is NaN")), "{said}");
    let documents = said.split_once("(documents ").unwrap().1.split_once(')').unwrap().0;
    let holds = |range: &str| {
        let (first, last) = range.split_once(" to ").unwrap_or((range, range));
        (first.parse().unwrap()..=last.parse().unwrap()).contains(&document)
    };
    assert!(documents.split(", ").any(holds), "{document} is not among {documents}");
    assert!(ended.stderr.contains(&format!("step {bad} is left out")), "{}", ended.stderr);
    assert_eq!(logged(&place, "back", "loss").len() as u64, last);

    train("passed", &["--nonfinite_action", "skip", "--save_strategy", "no"]).ok();
    let weights = |output: &str| digest(&place.path(output))[std::path::Path::new("model.safetensors")].clone();
    assert_eq!(weights("back"), weights("passed"));
    let ended = train("debug", &["--debug", "underflow_overflow", "--save_strategy", "no"]);
    ended
        .fails(1, &["micro-batch 0: layer 0 is the first that is not finite", "  embeddings\n", "layer 0: NOT FINITE"]);
    train("nowhere", &["--nonfinite_action", "rollback", "--save_strategy", "no"])
        .fails(1, &["no checkpoint to go back to", "--save_steps"]);
}

/// Sets the embedding of `token` to zero in a checkpoint of [`TINY_LLAMA`]'s shape.
fn forget_embedding(path: &std::path::Path, token: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = json["model.embed_tokens.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let row = 8 + header + start + token as usize * 32 * 4;
    bytes[row..row + 32 * 4].fill(0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_batch_size_that_fits_is_found_without_changing_the_run() {
    let place = prepared();
    let flags = ["--max_steps", "5", "--save_strategy", "no", "--per_device_train_batch_size", "4"];
    let more = ["--gradient_accumulation_steps", "2"];
    run(place.train("data", "asked", &flags).args(more)).ok();
    let ended = run(place.train("data", "found", &flags).args(more).arg("--auto_find_batch_size")).ok();
    assert!(ended.stderr.contains("micro-batches of 4 blocks, 2 to a step"), "{}", ended.stderr);
    assert!(ended.stderr.contains("8 blocks to a step as well"), "{}", ended.stderr);
    let weights = |output: &str| digest(&place.path(output))[std::path::Path::new("model.safetensors")].clone();
    assert_eq!(weights("found"), weights("asked"));
}
