//! The tokenizer alone: text to ids by one thread, beside the reference (`tokenizers`, as `prepare` would call it), on
//! the same documents. Every id of both is compared: a difference fails the bench.
//!
//! `cargo bench --workspace --bench tokenize [-- TOKENIZER…]`; `TOKENMILL_SCALE=night` takes whole corpora.
#![allow(clippy::disallowed_methods)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokenmill_benches::{Targets, corpus, shared_dir};
use tokenmill_preprocess::tokenizer::Tokenizer;

/// Alternating runs of both, of which the medians count.
const ROUNDS: usize = 3;

fn main() -> ExitCode {
    let mut targets = Targets::new("tokenize");
    let night = std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night");
    let bytes = if night { usize::MAX } else { 3 << 20 };
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut names: Vec<String> = std::fs::read_dir(shared_dir().join("data/tokenizers"))
        .expect("tokenizers")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| shared_dir().join("data/tokenizers").join(name).join("tokenizer.json").is_file())
        .filter(|name| asked.is_empty() || asked.contains(name))
        .collect();
    names.sort();
    println!("{:12} {:9} {:>10} {:>10} {:>7}", "tokenizer", "corpus", "MB/s", "reference", "ratio");
    for name in &names {
        let dir = shared_dir().join("data/tokenizers").join(name);
        let ours = Tokenizer::load(&dir).expect("the tokenizer");
        let reference = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).expect("the tokenizer");
        for corpus_name in ["en", "zh", "code", "nasty", "longline"] {
            compare(&ours, &reference, (name, corpus_name), bytes, &mut targets);
        }
    }
    targets.finish()
}

fn compare(
    ours: &Tokenizer,
    reference: &tokenizers::Tokenizer,
    (name, corpus_name): (&str, &str),
    bytes: usize,
    targets: &mut Targets,
) {
    let documents = corpus(corpus_name, bytes);
    let total: usize = documents.iter().map(String::len).sum();
    let mut different = 0;
    let (mut fast, mut slow) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut ids = Vec::new();
        let began = Instant::now();
        for document in &documents {
            ids.clear();
            ours.encode(document, true, &mut ids).expect("text");
        }
        fast.push(began.elapsed());
        let began = Instant::now();
        for document in &documents {
            std::hint::black_box(reference.encode_fast(document.as_str(), true).expect("text"));
        }
        slow.push(began.elapsed());
        if round == 0 {
            different = documents
                .iter()
                .filter(|document| {
                    ids.clear();
                    ours.encode(document, true, &mut ids).expect("text");
                    reference.encode_fast(document.as_str(), true).expect("text").get_ids() != ids
                })
                .count();
        }
    }
    let rate = |runs: &mut Vec<Duration>| {
        runs.sort_unstable();
        total as f64 / 1e6 / runs[ROUNDS / 2].as_secs_f64()
    };
    let (fast, slow) = (rate(&mut fast), rate(&mut slow));
    println!("{name:12} {corpus_name:9} {fast:10.1} {slow:10.1} {:7.1}", fast / slow);
    if different > 0 {
        targets.at_most(&format!("{name}, {corpus_name}: documents that differ"), different as f64, 0.0, "");
    }
}
