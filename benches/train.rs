//! What users feel of `trainer`: tokens per second and peak memory of full float32 steps (forward, backward,
//! clipping, AdamW) beside PyTorch eager, on the same weights and blocks, one after the other; what frozen and what
//! quantised weights cost.
//!
//! `cargo bench --workspace --bench train`, with `TOKENMILL_PYTHON` naming a Python that has `torch`,
//! `transformers` and `datasets`. `TOKENMILL_SCALE=night` adds the model of 125 million parameters.
//! The exit code says whether every target was met.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::{Command, ExitCode};

use serde_json::Value;
use tokenmill_benches::model::{MEDIUM, SMALL, Size, prepare};
use tokenmill_benches::{Run, Targets, program, python, run};
use tokenmill_trainer::model::{Config, Model, Quantisation};
use tokenmill_trainer::ops::quantised::Codebook;

/// Steps of each run; the first ones are slower in both.
const STEPS: usize = 12;

/// Of full, LoRA and QLoRA steps in turn.
const ROUNDS: usize = 5;

/// One layer of a model of seven billion parameters.
const LAYER_OF_7B: &str = r#"{
  "model_type": "llama", "vocab_size": 256, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1,
  "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "tie_word_embeddings": true
}"#;

fn main() -> ExitCode {
    let mut targets = Targets::new("train");
    quantised_memory(&mut targets);
    frozen_weights(&SMALL, &mut targets);
    let Some(python) = python() else {
        println!("not run: the comparison with PyTorch (set TOKENMILL_PYTHON)");
        return targets.finish();
    };
    let night = std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night");
    for size in [Some(SMALL), night.then_some(MEDIUM)].into_iter().flatten() {
        beside_pytorch(&size, &python, &mut targets);
    }
    targets.finish()
}

fn beside_pytorch(size: &Size, python: &Path, targets: &mut Targets) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (model, dataset) = (dir.path().join("model"), dir.path().join("dataset"));
    std::fs::create_dir(&model).expect("a new directory");
    std::fs::write(model.join("config.json"), size.config().to_string()).expect("written");
    prepare(size, dir.path(), &dataset);

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("train_pytorch.py");
    let mut command = Command::new(python);
    command.arg(script).args([&model, &dataset]).args([size.batch_size.to_string(), STEPS.to_string()]);
    let peer = run(&mut command);
    let pytorch: Value = serde_json::from_str(&peer.stdout).expect("one JSON object");

    let output = dir.path().join("output");
    let ours = train(size, ("--model_name_or_path", &model), &dataset, &output, &["--use_peft", "false"]);
    let results = std::fs::read(output.join("train_results.json")).expect("training writes its results");
    let results: Value = serde_json::from_slice(&results).expect("JSON");
    let seconds = results["train_runtime"].as_f64().expect("a number");
    let loss = results["train_loss"].as_f64().expect("a number");

    let tokens = (STEPS * size.batch_size * size.block_size) as f64;
    let number = |key: &str| pytorch[key].as_f64().expect("a number");
    let (speed, peers_speed) = (tokens / seconds, tokens / number("seconds"));
    println!("{}: {speed:.0} tokens/s, PyTorch {peers_speed:.0}", size.name);
    println!("mean loss {loss:.6}, PyTorch {:.6}", number("loss"));
    let megabytes = |run: &Run| run.peak_bytes as f64 / 1e6;
    println!("peak memory {:.0} MB, PyTorch {:.0} MB", megabytes(&ours), megabytes(&peer));
    targets.at_least(&format!("{}, speed beside PyTorch", size.name), speed / peers_speed, 1.0, "x");
    targets.at_most(&format!("{}, memory beside PyTorch", size.name), megabytes(&ours) / megabytes(&peer), 1.0, "x");
    let needed = size.needed_bytes() / 1e6;
    println!("16 bytes a parameter and the activations: {needed:.0} MB");
    targets.at_most(&format!("{}, memory beside what it needs", size.name), megabytes(&ours) / needed, 1.2, "x");
    let apart = (loss - number("loss")).abs() / loss;
    targets.at_most(&format!("{}, losses apart", size.name), apart * 1e4, 1.0, "in 10,000");
}

/// What the process holds more once a layer is loaded in 4 bits.
fn quantised_memory(targets: &mut Targets) {
    let config = serde_json::from_str(LAYER_OF_7B).expect("JSON");
    let config = Config::resolve(config).expect("a configuration that is built");
    let before = resident_bytes();
    let mut model = Model::init(config, 1).expect("random weights");
    let float = model.parameters().iter().filter(|one| !one.name.contains("_proj"));
    let float: usize = float.map(|one| 4 * one.tensor.elem_count()).sum();
    model.quantise(Quantisation::FourBit { codebook: Codebook::Nf4, double: true }).expect("quantised");
    let held = resident_bytes().saturating_sub(before + float as u64);
    let (bytes, count) = model.quantised_size();
    println!(
        "a layer of 7B in NF4: {count} weights in {:.1} MB, the process holds {:.1} MB",
        bytes as f64 / 1e6,
        held as f64 / 1e6
    );
    let bits = 8.0 * held as f64 / count as f64;
    targets.at_most("NF4, memory of a layer of 7B", bits, 4.127 * 1.05, "bits a weight");
}

/// A step of adapters beside a step of all parameters: frozen weights have no gradient and no optimizer state, and
/// nothing is computed for one.
fn frozen_weights(size: &Size, targets: &mut Targets) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (config, dataset) = (dir.path().join("config.json"), dir.path().join("dataset"));
    std::fs::write(&config, size.config().to_string()).expect("written");
    prepare(size, dir.path(), &dataset);
    let step = |name: &str, more: &[&str]| {
        let output = dir.path().join(name);
        let run = train(size, ("--init_from_config", &config), &dataset, &output, more);
        let results = std::fs::read(output.join("train_results.json")).expect("training writes its results");
        let results: Value = serde_json::from_slice(&results).expect("JSON");
        (results["train_runtime"].as_f64().expect("a number"), run.peak_bytes as f64)
    };
    let lora = ["--use_peft", "true", "--lora_dropout", "0"];
    let qlora = ["--use_peft", "true", "--lora_dropout", "0", "--load_in_4bit", "--qlora"];
    // The speed of a machine drifts: what is compared runs in turn, and the median of the rounds' ratios counts.
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|round| {
            let named = |name: &str| format!("{name}-{round}");
            (step(&named("full"), &["--use_peft", "false"]), step(&named("lora"), &lora), step(&named("qlora"), &qlora))
        })
        .collect();
    let full = median(rounds.iter().map(|(full, ..)| *full));
    let lora = median(rounds.iter().map(|(_, lora, _)| *lora));
    let qlora = median(rounds.iter().map(|(.., qlora)| *qlora));
    let ratio = median(rounds.iter().map(|(full, lora, _)| (lora.0 / full.0, 0.0))).0;
    println!("{}: full {:.2} s, LoRA {:.2} s, QLoRA {:.2} s", size.name, full.0, lora.0, qlora.0);
    println!("peak memory {:.0}, {:.0}, {:.0} MB", full.1 / 1e6, lora.1 / 1e6, qlora.1 / 1e6);
    targets.at_most(&format!("{}, a LoRA step beside a full one", size.name), ratio, 0.72, "x");
    let saved = (full.1 - lora.1) / (12 * size.parameters()) as f64;
    targets.at_least(&format!("{}, memory LoRA saves beside 12 bytes a parameter", size.name), saved, 0.9, "x");
}

/// Of each of two numbers by itself.
fn median(pairs: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    let (mut left, mut right): (Vec<f64>, Vec<f64>) = pairs.unzip();
    left.sort_by(f64::total_cmp);
    right.sort_by(f64::total_cmp);
    (left[left.len() / 2], right[right.len() / 2])
}

/// Bytes of memory this process holds.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("always there");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn train(size: &Size, (flag, model): (&str, &Path), dataset: &Path, output: &Path, more: &[&str]) -> Run {
    let mut command = Command::new(program("trainer"));
    command.arg(flag).arg(model).arg("--dataset_dir").arg(dataset).arg("--output_dir").arg(output).args(more);
    command.args(["--train_sampling_strategy", "sequential", "--save_strategy", "no"]);
    command.args(["--lr_scheduler_type", "constant", "--learning_rate", "1e-3", "--max_steps", &STEPS.to_string()]);
    run(command.args(["--per_device_train_batch_size", &size.batch_size.to_string()]))
}
