//! What users feel of `trainer`: tokens per second and peak memory of full steps in float32 and bf16 and of LoRA (forward,
//! backward, clipping, AdamW) beside the Hugging Face Trainer and beside PyTorch eager, on the same weights and blocks, in
//! turn; what frozen and what quantised weights cost; how long it takes to begin.
//!
//! `cargo bench --workspace --bench train`, with `TOKENMILL_PYTHON` naming a Python that has `torch`, `transformers`, `peft`
//! and `datasets`. `TOKENMILL_SCALE=night` adds blocks of 1,024 and the model of 125 million parameters.
//! The exit code says whether every target was met.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokenmill_benches::model::{MEDIUM, SMALL, Size, prepare};
use tokenmill_benches::{Run, Targets, program, python, run};
use tokenmill_trainer::model::{Config, Model, Quantisation};
use tokenmill_trainer::ops::matmul::{Matrix, product};
use tokenmill_trainer::ops::precision::Precision;
use tokenmill_trainer::ops::quantised::Codebook;

/// Of full, LoRA and QLoRA steps in turn.
const ROUNDS: usize = 5;

/// One layer of a model of seven billion parameters.
const LAYER_OF_7B: &str = r#"{
  "model_type": "llama", "vocab_size": 256, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1,
  "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "tie_word_embeddings": true
}"#;

fn main() -> ExitCode {
    let mut targets = Targets::new("train");
    products();
    start(&MEDIUM, &mut targets);
    quantised_memory(&mut targets);
    frozen_weights(&SMALL, &mut targets);
    let Some(python) = python() else {
        println!("not run: the comparison with PyTorch (set TOKENMILL_PYTHON)");
        return targets.finish();
    };
    let night = std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night");
    let long = |size: Size| Size { batch_size: 1, block_size: 1024, ..size };
    let sizes = if night { vec![SMALL, long(SMALL), MEDIUM, long(MEDIUM)] } else { vec![SMALL] };
    for size in sizes {
        beside_peers(&size, &python, &mut targets);
    }
    targets.finish()
}

/// What is trained, and beside whom.
struct Contest {
    /// In `--bf16`.
    bf16: bool,
    /// Adapters of rank 8 alone.
    lora: bool,
    /// Least speed beside the Hugging Face Trainer, and beside PyTorch eager told to keep its pages.
    at_least: (f64, Option<f64>),
}

const CONTESTS: [Contest; 3] = [
    Contest { bf16: false, lora: false, at_least: (1.3, Some(1.1)) },
    Contest { bf16: true, lora: false, at_least: (1.5, Some(1.15)) },
    Contest { bf16: false, lora: true, at_least: (1.5, None) },
];

/// So that glibc gives no page back: the harder peer, for new pages are a large part of PyTorch's time otherwise.
const KEEPS_PAGES: &str = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184";

fn beside_peers(size: &Size, python: &Path, targets: &mut Targets) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (model, dataset) = (dir.path().join("model"), dir.path().join("dataset"));
    std::fs::create_dir(&model).expect("a new directory");
    std::fs::write(model.join("config.json"), size.config().to_string()).expect("written");
    prepare(size, dir.path(), &dataset);
    let steps = size.steps();
    let tokens = (steps * size.batch_size * size.block_size) as f64;
    let peer = |words: &[&str], tunables: &str| {
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("train_peers.py")).args([&model, &dataset]);
        command.args([size.batch_size.to_string(), steps.to_string()]).args(words).env("GLIBC_TUNABLES", tunables);
        let run = run(&mut command);
        let found: Value =
            serde_json::from_str(run.stdout.lines().last().unwrap_or_default()).expect("one JSON object");
        let number = |key: &str| found[key].as_f64().expect("a number");
        Found { speed: tokens / number("seconds"), loss: number("loss"), megabytes: run.peak_bytes as f64 / 1e6 }
    };
    for Contest { bf16, lora, at_least } in &CONTESTS {
        let what =
            format!("{}, {}{}", size.name(), if *bf16 { "bf16" } else { "f32" }, if *lora { ", LoRA" } else { "" });
        let words = [("bf16", bf16), ("lora", lora)].map(|(word, asked)| asked.then_some(word));
        let words: Vec<&str> = words.into_iter().flatten().collect();
        let rounds: Vec<Round> = (0..3)
            .map(|round| {
                let trainer = peer(&[&words[..], &["trainer"]].concat(), "");
                let eager = at_least.1.map(|_| peer(&words, KEEPS_PAGES));
                let output = dir.path().join(format!("{}-{round}", words.join("-")));
                Round {
                    ours: ours(size, &model, &dataset, &output, &[("--bf16", bf16), ("--use_peft", lora)]),
                    trainer,
                    eager,
                }
            })
            .collect();
        let of = |pick: &dyn Fn(&Round) -> f64| middle(rounds.iter().map(pick).collect());
        let (ours, trainer) = (of(&|round| round.ours.speed), of(&|round| round.trainer.speed));
        println!("{what}: {ours:.0} tokens/s, the Trainer {trainer:.0}");
        targets.at_least(
            &format!("{what}, beside the Trainer"),
            of(&|round| round.ours.speed / round.trainer.speed),
            at_least.0,
            "x",
        );
        if let Some(least) = at_least.1 {
            let eager = |round: &Round| round.eager.as_ref().expect("it ran").speed;
            println!("  PyTorch eager, keeping its pages {:.0}", of(&eager));
            let ratio = of(&|round| round.ours.speed / eager(round));
            targets.at_least(&format!("{what}, beside PyTorch that keeps its pages"), ratio, least, "x");
        }
        let (loss, its) = (of(&|round| round.ours.loss), of(&|round| round.trainer.loss));
        println!("  mean loss {loss:.6}, the Trainer {its:.6}");
        // Autocast has attention in fewer bits too.
        let most = if *bf16 { 30.0 } else { 1.0 };
        if !lora {
            targets.at_most(&format!("{what}, losses apart"), (loss - its).abs() / loss * 1e4, most, "in 10,000");
            let needed = size.needed_bytes() / 1e6;
            let held = of(&|round| round.ours.megabytes);
            println!("  peak memory {held:.0} MB, the Trainer {:.0} MB", of(&|round| round.trainer.megabytes));
            println!("  16 bytes a parameter and the activations: {needed:.0} MB");
            targets.at_most(&format!("{what}, memory beside what it needs"), held / needed, 1.15, "x");
        }
    }
}

/// One after the other.
struct Round {
    ours: Found,
    trainer: Found,
    eager: Option<Found>,
}

/// What a run showed.
struct Found {
    /// Tokens a second.
    speed: f64,
    /// Mean of the steps.
    loss: f64,
    megabytes: f64,
}

fn ours(size: &Size, model: &Path, dataset: &Path, output: &Path, switches: &[(&str, &bool)]) -> Found {
    let switches: Vec<String> = switches.iter().flat_map(|(flag, on)| [(*flag).to_owned(), on.to_string()]).collect();
    let mut more: Vec<&str> = switches.iter().map(String::as_str).collect();
    more.extend(["--lora_dropout", "0", "--lora_rank", "8", "--lora_alpha", "16", "--target_modules", "all"]);
    let run = train(size, ("--model_name_or_path", model), dataset, output, &more);
    let results = std::fs::read(output.join("train_results.json")).expect("training writes its results");
    let results: Value = serde_json::from_slice(&results).expect("JSON");
    let number = |key: &str| results[key].as_f64().expect("a number");
    let tokens = (size.steps() * size.batch_size * size.block_size) as f64;
    Found {
        speed: tokens / number("train_runtime"),
        loss: number("train_loss"),
        megabytes: run.peak_bytes as f64 / 1e6,
    }
}

fn middle(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// From the start of the program until its first step begins.
fn start(size: &Size, targets: &mut Targets) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (config, dataset, model) =
        (dir.path().join("config.json"), dir.path().join("dataset"), dir.path().join("model"));
    std::fs::write(&config, size.config().to_string()).expect("written");
    prepare(size, dir.path(), &dataset);
    let model_of = |flag: &str, from: &Path, output: &Path, steps: &str| {
        let mut command = Command::new(program("trainer"));
        command.arg(flag).arg(from).arg("--dataset_dir").arg(&dataset).arg("--output_dir").arg(output);
        command.args(["--use_peft", "false", "--do_train", "--save_strategy", "no", "--max_steps", steps]);
        command.args(["--per_device_train_batch_size", "1", "--logging_steps", "1"]);
        command
    };
    run(&mut model_of("--init_from_config", &config, &model, "1"));
    let taken: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            let output = dir.path().join(format!("start-{round}"));
            let mut command = model_of("--model_name_or_path", &model, &output, "1");
            let began = Instant::now();
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the trainer starts");
            let log = output.join("metrics.jsonl");
            while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains("\"loss\"")) {
                std::thread::sleep(Duration::from_millis(2));
            }
            let until_logged = began.elapsed().as_secs_f64();
            assert!(child.wait().expect("ours").success(), "the trainer failed");
            let results = std::fs::read(output.join("train_results.json")).expect("training writes its results");
            let results: Value = serde_json::from_slice(&results).expect("JSON");
            until_logged - results["train_runtime"].as_f64().expect("a number")
        })
        .collect();
    targets.at_most(&format!("{}, from start to the first step", size.name()), middle(taken), 1.0, "s");
}

/// What the machine could do at most: products of the shapes of a layer of 125 million parameters, and of its head.
fn products() {
    for (rows, columns, inner) in [(1024, 768, 768), (1024, 2048, 768), (2048, 768, 1024), (256, 32_000, 768)] {
        let (a, b, mut c) = (vec![1.0; rows * inner], vec![1.0; inner * columns], vec![0.0; rows * columns]);
        let mut rate = |precision| {
            let seconds = (0..ROUNDS).map(|_| {
                let began = Instant::now();
                product(Matrix::new(&a, rows, inner), Matrix::new(&b, columns, inner).t(), &mut c, false, precision);
                began.elapsed().as_secs_f64()
            });
            2e-9 * (rows * columns * inner) as f64 / seconds.fold(f64::INFINITY, f64::min)
        };
        let (f32, bf16) = (rate(Precision::F32), rate(Precision::Bf16));
        println!("{rows} × {columns} × {inner}: {f32:.0} GFLOP/s in f32, {bf16:.0} in bf16");
    }
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
    println!("{}: full {:.2} s, LoRA {:.2} s, QLoRA {:.2} s", size.name(), full.0, lora.0, qlora.0);
    println!("peak memory {:.0}, {:.0}, {:.0} MB", full.1 / 1e6, lora.1 / 1e6, qlora.1 / 1e6);
    targets.at_most(&format!("{}, a LoRA step beside a full one", size.name()), ratio, 0.72, "x");
    let saved = (full.1 - lora.1) / (12 * size.parameters()) as f64;
    targets.at_least(&format!("{}, memory LoRA saves beside 12 bytes a parameter", size.name()), saved, 0.9, "x");
}

/// Of each of two numbers by itself.
fn median(pairs: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    let (left, right) = pairs.unzip();
    (middle(left), middle(right))
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
    command.args([
        "--lr_scheduler_type",
        "constant",
        "--learning_rate",
        "1e-3",
        "--max_steps",
        &size.steps().to_string(),
    ]);
    run(command.args(["--per_device_train_batch_size", &size.batch_size.to_string()]))
}
