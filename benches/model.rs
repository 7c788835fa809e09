//! The models that benches train, and blocks of English for them.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::{corpus, program, run, shared_dir};

/// Of the tokenizer, Llama-2's.
pub const VOCAB_SIZE: usize = 32_000;

/// A model and how its 1,024 tokens of a step are divided.
#[derive(Debug)]
pub struct Size {
    /// For people.
    pub parameters_named: &'static str,
    /// As in `config.json`.
    pub hidden_size: usize,
    /// As in `config.json`.
    pub intermediate_size: usize,
    /// As in `config.json`.
    pub num_hidden_layers: usize,
    /// As in `config.json`.
    pub num_attention_heads: usize,
    /// As in `config.json`.
    pub num_key_value_heads: usize,
    /// As in `config.json`.
    pub tie_word_embeddings: bool,
    /// Blocks of a step.
    pub batch_size: usize,
    /// Ids of a block.
    pub block_size: usize,
}

/// The model whose steps take a second.
pub const SMALL: Size = Size {
    parameters_named: "15M",
    hidden_size: 288,
    intermediate_size: 768,
    num_hidden_layers: 6,
    num_attention_heads: 6,
    num_key_value_heads: 3,
    tie_word_embeddings: true,
    batch_size: 4,
    block_size: 256,
};

/// The model for the night.
pub const MEDIUM: Size = Size {
    parameters_named: "125M",
    hidden_size: 768,
    intermediate_size: 2048,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    num_key_value_heads: 4,
    tie_word_embeddings: false,
    batch_size: 4,
    block_size: 256,
};

impl Size {
    /// For people.
    pub fn name(&self) -> String {
        format!("{} parameters, {} blocks of {}", self.parameters_named, self.batch_size, self.block_size)
    }

    /// Steps of a run, about ten seconds in float32 on two cores, and twenty; the first ones are slower in all.
    pub fn steps(&self) -> usize {
        if self.parameters() < 50_000_000 { 12 } else { 4 }
    }

    /// Weights in all.
    pub fn parameters(&self) -> usize {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let key_width = width / self.num_attention_heads * self.num_key_value_heads;
        let layer = 2 * width * width + 2 * key_width * width + 3 * inner * width + 2 * width;
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * layer + embeddings * VOCAB_SIZE * width + width
    }

    /// Weight, gradient and two moments of every parameter; of every token and layer what the backward reads:
    /// residual stream and its norm twice, queries, attention output as heads and merged, keys, values, and
    /// gate, up and their product; logits of 8 Mi values at a time.
    pub fn needed_bytes(&self) -> f64 {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let key_width = width / self.num_attention_heads * self.num_key_value_heads;
        let saved = self.num_hidden_layers * (7 * width + 2 * key_width + 3 * inner);
        (16 * self.parameters() + 4 * self.batch_size * self.block_size * saved + (32 << 20)) as f64
    }

    /// As `config.json`.
    pub fn config(&self) -> Value {
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

/// Blocks of English for the run.
pub fn prepare(size: &Size, dir: &Path, dataset: &Path) {
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
