//! What users feel of `trainer --streaming`: a step while the text is prepared beside a step from prepared shards, and
//! when the first step comes.
//!
//! `cargo bench --workspace --bench live`. The exit code says whether every target was met.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokenmill_benches::model::{SMALL, prepare};
use tokenmill_benches::{Targets, program, run, shared_dir};

/// Steps of each run.
const STEPS: usize = 12;

/// Of each kind, in turn.
const ROUNDS: usize = 3;

/// Local files that are listed before the first step.
const FILES: usize = 100_000;

fn main() -> ExitCode {
    let mut targets = Targets::new("live");
    let dir = tempfile::tempdir().expect("a temporary directory");
    first_step(dir.path(), &mut targets);
    steps(dir.path(), &mut targets);
    targets.finish()
}

fn trainer(dir: &Path, config: &Path, output: &Path, block_size: usize) -> Command {
    let mut command = Command::new(program("trainer"));
    command.arg("--init_from_config").arg(config).arg("--output_dir").arg(output);
    command.args(["--use_peft", "false", "--do_train", "--save_strategy", "no", "--logging_steps", "1"]);
    command.args(["--block_size", &block_size.to_string(), "--learning_rate", "1e-3"]);
    command.arg("--cache_dir").arg(dir.join("cache"));
    command
}

fn stream<'a>(command: &'a mut Command, text: &Path) -> &'a mut Command {
    command.args(["--streaming", "true", "--max_eval_samples", "1"]).arg("--train_file_dir").arg(text);
    command.arg("--tokenizer_name_or_path").arg(shared_dir().join("data/tokenizers/llama2"))
}

/// From the start of the program to the first line of its log: loading and listing are in it.
fn first_step(dir: &Path, targets: &mut Targets) {
    let (text, config) = (dir.join("many"), dir.join("tiny.json"));
    std::fs::create_dir(&text).expect("a new directory");
    for at in 0..FILES {
        let below = text.join(format!("{:03}", at / 1000));
        if at % 1000 == 0 {
            std::fs::create_dir(&below).expect("a new directory");
        }
        std::fs::write(below.join(format!("{at}.txt")), format!("File {at} has one line of text, and it is this.\n"))
            .expect("written");
    }
    let tiny = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32_000, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "tie_word_embeddings": true,
    });
    std::fs::write(&config, tiny.to_string()).expect("written");
    let mut taken = Vec::new();
    for round in 0..ROUNDS {
        let output = dir.join(format!("first-{round}"));
        let mut command = trainer(dir, &config, &output, 128);
        stream(&mut command, &text).args(["--per_device_train_batch_size", "1", "--max_steps", "100000"]);
        let began = Instant::now();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the trainer starts");
        let log = output.join("metrics.jsonl");
        while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains("\"loss\"")) {
            assert!(child.try_wait().expect("ours").is_none(), "the trainer ended");
            assert!(began.elapsed() < Duration::from_secs(60), "no first step in a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        taken.push(began.elapsed().as_secs_f64());
        let _ = child.kill();
        let _ = child.wait();
    }
    println!("from the start of the program to its first step, {FILES} files: {taken:.2?} s");
    targets.at_most("first step, loading and listing included", median(taken), 2.0, "s");
}

fn steps(dir: &Path, targets: &mut Targets) {
    let (dataset, config) = (dir.join("dataset"), dir.join("config.json"));
    std::fs::write(&config, SMALL.config().to_string()).expect("written");
    prepare(&SMALL, dir, &dataset);
    let step = |name: String, live: bool| {
        let output = dir.join(name);
        let mut command = trainer(dir, &config, &output, SMALL.block_size);
        command.args(["--max_steps", &STEPS.to_string()]);
        command.args(["--per_device_train_batch_size", &SMALL.batch_size.to_string()]);
        if live {
            // Another cache each time: everything is tokenized while it trains.
            stream(&mut command, &dir.join("text")).arg("--cache_dir").arg(output.with_extension("cache"));
        } else {
            command.args(["--train_sampling_strategy", "sequential"]).arg("--dataset_dir").arg(&dataset);
        }
        run(&mut command);
        let results = std::fs::read(output.join("train_results.json")).expect("training writes its results");
        let results: Value = serde_json::from_slice(&results).expect("JSON");
        let number = |key: &str| results[key].as_f64().expect("a number");
        (number("train_runtime") / STEPS as f64, 100.0 * number("train_data_wait"))
    };
    let (mut ratios, mut seconds, mut waited) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let prepared = step(format!("prepared-{round}"), false);
        let live = step(format!("live-{round}"), true);
        ratios.push(live.0 / prepared.0);
        seconds.push((prepared.0, live.0));
        waited.push(live.1);
    }
    println!("seconds of a step, from prepared shards and live: {seconds:.3?}; live waits for data {waited:.2?} %");
    targets.at_most("a live step, to one from prepared shards", median(ratios), 1.03, "x");
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
