//! Checkpoints of the Hugging Face Trainer: ours are such, and a run goes on from one. (With the real Trainer:
//! tests/real/resuming.py.)

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tokenmill_tests::{Place, binaries, digest, lines, run};

/// A dataset, and a base model saved in `base`.
fn prepared() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "base", &["--max_steps", "1", "--save_strategy", "no"])).ok();
    place
}

/// Twelve steps from the base model, saved at the sixth.
fn train(place: &Place, output: &str, more: &[&str]) -> Command {
    let mut command = Command::new(&binaries().trainer);
    command.arg("--model_name_or_path").arg(place.path("base")).arg("--dataset_dir").arg(place.path("data"));
    command.arg("--output_dir").arg(place.path(output)).args(["--do_train", "--logging_steps", "1"]);
    command.args(["--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--weight_decay", "0.1"]);
    command.args(["--max_steps", "12", "--save_steps", "6", "--lr_scheduler_type", "cosine"]).args(more);
    command
}

/// The sixth checkpoint of `from`, without what only we write, as the sixth of `to`.
fn as_of_the_trainer(place: &Place, from: &str, to: &str) {
    let from = place.path(from).join("checkpoint-6");
    for name in digest(&from).into_keys().filter(|name| !name.starts_with("trainer")) {
        place.write(&format!("{to}/checkpoint-6/{}", name.display()), std::fs::read(from.join(&name)).unwrap());
    }
}

fn losses(place: &Place, output: &str) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(place.path(output).join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_str(&text).unwrap();
    let entries = state["log_history"].as_array().unwrap().iter().filter(|entry| entry["loss"].is_f64());
    entries.map(|entry| (entry["step"].as_u64().unwrap(), entry["loss"].as_f64().unwrap().to_bits())).collect()
}

const FULL: [&str; 2] = ["--use_peft", "false"];
const LORA: [&str; 6] = ["--lora_rank", "4", "--lora_dropout", "0", "--modules_to_save", "lm_head"];

/// Everything that the Trainer's files say is used: losses, weights and moments are those of the uninterrupted run.
#[test]
fn a_run_goes_on_from_the_files_of_the_trainer_alone() {
    let place = prepared();
    let kinds: [(&str, &[&str]); 4] = [
        ("full", &FULL),
        ("lora", &LORA),
        ("adafactor", &["--use_peft", "false", "--optim", "adafactor"]),
        ("sgd", &["--use_peft", "false", "--optim", "sgd"]),
    ];
    for (name, flags) in kinds {
        run(&mut train(&place, name, flags)).ok();
        let resumed = format!("{name}-resumed");
        as_of_the_trainer(&place, name, &resumed);
        let ended = run(train(&place, &resumed, flags).args(["--resume_from_checkpoint", "true"])).ok();
        assert!(ended.stderr.contains("the order of its blocks"), "{}", ended.stderr);
        for other in ["next learning rate", "its optimizer's", "is at epoch", "optimizer.pt"] {
            assert!(!ended.stderr.contains(other), "{name}: {}", ended.stderr);
        }
        assert_eq!(losses(&place, &resumed), losses(&place, name), "{name}");
        let last = |output: &str| {
            let mut files = digest(&place.path(output).join("checkpoint-12"));
            // Seconds differ.
            files.retain(|file, _| !file.starts_with("trainer") && file != Path::new("trainer_state.json"));
            files
        };
        assert!(last(name).contains_key(Path::new("optimizer.pt")), "{name}");
        assert_eq!(last(&resumed), last(name), "{name}");
        let loss = |output: &str| {
            let text = std::fs::read_to_string(place.path(output).join("train_results.json")).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()["train_loss"].as_f64().unwrap()
        };
        assert!((loss(&resumed) / loss(name) - 1.0).abs() < 1e-9, "{name}");
    }
}

#[test]
fn what_does_not_carry_over_is_said() {
    let place = prepared();
    run(&mut train(&place, "out", &FULL)).ok();
    let resume = |output: &str, more: &[&str]| {
        as_of_the_trainer(&place, "out", output);
        let mut command = train(&place, output, &FULL);
        command.args(["--resume_from_checkpoint", "true"]).args(more);
        command
    };
    let says = |more: &[&str], parts: &[&str]| {
        let ended = run(&mut resume(more[0].trim_start_matches('-'), more)).ok();
        for part in parts {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
        ended.stderr
    };
    says(&["--weight_decay", "0.2", "--adam_beta2", "0.9"], &["weight_decay was [0.1], now it is [0.2]", "betas was"]);
    says(&["--learning_rate", "2e-3"], &["next learning rate was 5.0000e-4, by this run's flags it is 1.0000e-3"]);
    says(&["--gradient_accumulation_steps", "2"], &["is at epoch", "some text is seen again"]);
    let exact = says(&["--train_sampling_strategy", "sequential"], &["going on from"]);
    assert!(!exact.contains("the order of its blocks"), "{exact}");
    let mut command = resume("bare", &[]);
    std::fs::remove_file(place.path("bare/checkpoint-6/optimizer.pt")).unwrap();
    assert!(run(&mut command).ok().stderr.contains("no optimizer.pt, so the optimizer starts anew"));
    run(&mut resume("short", &["--max_steps", "5"])).fails(2, &["beyond the 5 steps"]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let place = prepared();
    run(&mut train(&place, "out", &FULL)).ok();
    run(&mut train(&place, "lora", &LORA)).ok();
    let refused = |from: &str, output: &str, flags: &[&str], code: i32, parts: &[&str]| {
        as_of_the_trainer(&place, from, output);
        run(train(&place, output, flags).args(["--resume_from_checkpoint", "true"])).fails(code, parts);
    };
    let adafactor = ["--use_peft", "false", "--optim", "adafactor"];
    refused("out", "a", &adafactor, 2, &["optimizer.pt", "exp_avg_sq_row", "--optim"]);
    as_of_the_trainer(&place, "out", "b");
    let optimizer = std::fs::read(place.path("lora/checkpoint-6/optimizer.pt")).unwrap();
    place.write("b/checkpoint-6/optimizer.pt", &optimizer);
    run(train(&place, "b", &FULL).args(["--resume_from_checkpoint", "true"]))
        .fails(2, &["groups of [29, 0]", "--use_peft"]);
    let good = place.path("out/checkpoint-6");
    for (file, reason) in
        [("optimizer.pt", "no whole file"), ("scheduler.pt", "no whole file"), ("trainer_state.json", "no state")]
    {
        as_of_the_trainer(&place, "out", "c");
        let bytes = std::fs::read(good.join(file)).unwrap();
        place.write(&format!("c/checkpoint-6/{file}"), &bytes[..bytes.len() / 2]);
        let from = place.path("c/checkpoint-6");
        run(train(&place, "c", &FULL).args(["--resume_from_checkpoint", from.to_str().unwrap()]))
            .fails(3, &[file, reason]);
    }
}

/// Where torch has no optimizer with our state, ours is kept in our own form, and nothing that Python would misread.
#[test]
fn an_optimizer_that_python_does_not_have_keeps_its_state_here() {
    let place = prepared();
    let lion = ["--use_peft", "false", "--optim", "lion"];
    run(&mut train(&place, "out", &lion)).ok();
    let files = digest(&place.path("out/checkpoint-6"));
    assert!(files.contains_key(Path::new("trainer/optimizer.safetensors")));
    assert!(!files.contains_key(Path::new("optimizer.pt")) && !files.contains_key(Path::new("scheduler.pt")));
}

/// As transformers writes it, with fields that nobody here knows and numbers spelled in their own ways.
const CONFIG: &str = r#"{
  "architectures": [
    "LlamaForCausalLM"
  ],
  "zoo": {"tigers": 1E2, "ants": [1e-05, 1.50, "\u78e8\u574a"], "empty": { }},
  "hidden_act": "silu",
  "hidden_size": 32,
  "intermediate_size": 48,
  "max_position_embeddings": 64,
  "model_type": "llama",
  "num_attention_heads": 4,
  "num_hidden_layers": 1,
  "rms_norm_eps": 1e-05,
  "torch_dtype": "bfloat16",
  "large": 123456789012345678901234567890,
  "vocab_size": 1024
}
"#;

#[test]
fn a_configuration_comes_back_byte_for_byte_but_for_what_changed() {
    let place = prepared();
    place.write("mine/config.json", CONFIG);
    let config = place.path("mine/config.json");
    let flags = ["--max_steps", "2", "--save_steps", "1", "--init_from_config", config.to_str().unwrap()];
    run(&mut place.train("data", "out", &flags)).ok();
    let from = place.path("out/checkpoint-1");
    run(place.train("data", "resumed", &flags).arg("--resume_from_checkpoint").arg(from)).ok();
    // The weights of a run from random ones are float32.
    let expected = CONFIG.replace("bfloat16", "float32");
    for name in ["out", "out/checkpoint-1", "out/checkpoint-2", "resumed", "resumed/checkpoint-2"] {
        let found = std::fs::read_to_string(place.path(name).join("config.json")).unwrap();
        assert_eq!(found, expected, "{name}");
    }
}
