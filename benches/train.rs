//! What users feel of `trainer`: tokens per second and peak memory of full float32 steps (forward, backward,
//! clipping, AdamW) beside PyTorch eager, on the same weights and blocks, one after the other.
//!
//! `cargo bench --workspace --bench train`, with `TOKENMILL_PYTHON` naming a Python that has `torch`,
//! `transformers` and `datasets`. `TOKENMILL_SCALE=night` adds the model of 125 million parameters.
//! The exit code says whether every target was met.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::{Command, ExitCode};

use serde_json::{Value, json};
use tokenmill_benches::{Run, Targets, corpus, program, python, run, shared_dir};

/// Steps of each run; the first ones are slower in both.
const STEPS: usize = 12;

/// Of the tokenizer, Llama-2's.
const VOCAB_SIZE: usize = 32_000;

/// A model and how its 1,024 tokens of a step are divided.
struct Size {
    name: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    tie_word_embeddings: bool,
    batch_size: usize,
    block_size: usize,
}

const SMALL: Size = Size {
    name: "15M parameters, 4 blocks of 256",
    hidden_size: 288,
    intermediate_size: 768,
    num_hidden_layers: 6,
    num_attention_heads: 6,
    num_key_value_heads: 3,
    tie_word_embeddings: true,
    batch_size: 4,
    block_size: 256,
};

const MEDIUM: Size = Size {
    name: "125M parameters, 2 blocks of 512",
    hidden_size: 768,
    intermediate_size: 2048,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    num_key_value_heads: 4,
    tie_word_embeddings: false,
    batch_size: 2,
    block_size: 512,
};

fn main() -> ExitCode {
    let mut targets = Targets::new("train");
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
    let ours = train(size, &model, &dataset, &output);
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

/// Blocks of English for the run.
fn prepare(size: &Size, dir: &Path, dataset: &Path) {
    let text = dir.join("text");
    std::fs::create_dir(&text).expect("a new directory");
    let lines = corpus("en", 1_000_000).into_iter().map(|text| json!({ "text": text }).to_string() + "\n");
    std::fs::write(text.join("en.jsonl"), lines.collect::<String>()).expect("written");
    let mut command = Command::new(program("preprocess"));
    command.args(["prepare", "--validation_split_percentage", "0", "--block_size", &size.block_size.to_string()]);
    command.arg("--tokenizer_name_or_path").arg(shared_dir().join("data/tokenizers/llama2"));
    command.arg("--train_file_dir").arg(text).arg("--output_dir").arg(dataset);
    run(command.arg("--cache_dir").arg(dir.join("cache")));
}

fn train(size: &Size, model: &Path, dataset: &Path, output: &Path) -> Run {
    let mut command = Command::new(program("trainer"));
    command.arg("--model_name_or_path").arg(model).arg("--dataset_dir").arg(dataset).arg("--output_dir").arg(output);
    command.args(["--use_peft", "false", "--train_sampling_strategy", "sequential", "--save_strategy", "no"]);
    command.args(["--lr_scheduler_type", "constant", "--learning_rate", "1e-3", "--max_steps", &STEPS.to_string()]);
    run(command.args(["--per_device_train_batch_size", &size.batch_size.to_string()]))
}

impl Size {
    /// Weight, gradient and two moments of every parameter; of every token and layer what the backward reads:
    /// residual stream and its norm twice, queries, attention output as heads and merged, keys, values, and
    /// gate, up and their product; logits of 8 Mi values at a time.
    fn needed_bytes(&self) -> f64 {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let key_width = width / self.num_attention_heads * self.num_key_value_heads;
        let layer = 2 * width * width + 2 * key_width * width + 3 * inner * width + 2 * width;
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        let parameters = self.num_hidden_layers * layer + embeddings * VOCAB_SIZE * width + width;
        let saved = self.num_hidden_layers * (7 * width + 2 * key_width + 3 * inner);
        (16 * parameters + 4 * self.batch_size * self.block_size * saved + (32 << 20)) as f64
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.hidden_size / self.num_attention_heads,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "hidden_act": "silu",
            "initializer_range": 0.02,
        })
    }
}
