//! The tokenizer alone, cold, by one thread: megabytes of text a CPU-second beside the fastest peers, each run a process
//! of its own that has never seen the corpus, ours and theirs in turn.
//!
//! `cargo bench --workspace --bench tokenize [-- TOKENIZER…]`. With `TOKENMILL_PYTHON` (see `peers.sh`) the peers run
//! too and the targets count; without it ours is timed alone. `TOKENMILL_SCALE=night` takes whole corpora and five runs
//! of each, otherwise it is one run on 8 MB.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};
use tokenmill_benches::{Targets, corpus, python, run, shared_dir};
use tokenmill_preprocess::tokenizer::Tokenizer;

const PEERS: [&str; 3] = ["gigatoken", "fastokens", "tokenizers"];

/// Times the best peer, by tokenizer and corpus.
fn target(tokenizer: &str, corpus: &str) -> f64 {
    match (tokenizer, corpus) {
        (_, "longline") => 1.5,
        ("llama2" | "mistral_v1" | "baichuan2" | "chatglm3", "en" | "zh") => 2.0,
        (_, "zh") => 2.5,
        _ => 1.3,
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [mode, dir, corpus_name, bytes] = words.as_slice()
        && mode == "--cold"
    {
        println!("{}", cold(Path::new(dir), corpus_name, bytes.parse().expect("a number of bytes")));
        return ExitCode::SUCCESS;
    }
    let mut targets = Targets::new("tokenize");
    let night = std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night");
    let (bytes, rounds) = if night { (usize::MAX, 5) } else { (8 << 20, 1) };
    let tokenizers = shared_dir().join("data/tokenizers");
    let names = if words.is_empty() {
        vec!["qwen2_5", "llama3", "llama2", "baichuan2"]
    } else {
        words.iter().map(String::as_str).collect()
    };
    let work = tempfile::tempdir().expect("a temporary directory");
    println!(
        "{:11} {:9} {:>8} {:>10} {:>10} {:>11} {:>6}",
        "tokenizer", "corpus", "ours", PEERS[0], PEERS[1], PEERS[2], "ratio"
    );
    for name in names {
        for corpus_name in ["en", "zh", "code", "longline"] {
            let dir = tokenizers.join(name);
            let slice = work.path().join(format!("{corpus_name}.jsonl.zst"));
            if python().is_some() && !slice.exists() {
                write_corpus(&slice, &corpus(corpus_name, bytes));
            }
            let mut rates = vec![Vec::new(); 1 + PEERS.len()];
            for _ in 0..rounds {
                rates[0].push(ours(&dir, corpus_name, bytes));
                for (peer, rates) in PEERS.iter().zip(&mut rates[1..]) {
                    rates.extend(theirs(peer, &dir.join("tokenizer.json"), &slice));
                }
            }
            let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
            let best = medians[1..].iter().copied().fold(0.0, f64::max);
            let [ours, rest @ ..] = medians.as_slice() else { unreachable!("ours is the first") };
            println!(
                "{name:11} {corpus_name:9} {ours:8.1} {:10.1} {:10.1} {:11.1} {:6.2}",
                rest[0],
                rest[1],
                rest[2],
                ours / best
            );
            if best > 0.0 {
                let what = format!("{name}, {corpus_name}, beside the best peer");
                targets.at_least(&what, ours / best, target(name, corpus_name), "times");
            }
        }
    }
    for name in ["llama2", "qwen2_5"] {
        let plain = tokenizers.join(name);
        let extended = work.path().join(name);
        extend(&plain, &extended, &tokenizers.join("baichuan2"));
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..rounds.max(3) {
            times[0].push(ours(&plain, "zh", bytes));
            times[1].push(ours(&extended, "zh", bytes));
        }
        let [plain, extended] = times.map(|mut rates| median(&mut rates));
        let what = format!("{name}, zh: time with 20,000 added tokens beside the time without");
        targets.at_most(&what, plain / extended, 1.3, "times");
    }
    targets.finish()
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}

/// Megabytes a CPU-second of a process of its own.
fn ours(dir: &Path, corpus_name: &str, bytes: usize) -> f64 {
    let mut command = Command::new(std::env::current_exe().expect("a running program has a path"));
    command.arg("--cold").arg(dir).args([corpus_name, &bytes.to_string()]);
    run(&mut command).stdout.trim().parse().expect("a rate")
}

/// The same of a peer; `None` without Python or if it cannot load the tokenizer.
fn theirs(peer: &str, tokenizer: &Path, corpus: &Path) -> Option<f64> {
    let mut command = Command::new(python()?);
    if peer == "tokenizers" {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("encode_tokenizers.py");
        command.arg(script).arg(tokenizer).arg(corpus);
    } else {
        command.arg(shared_dir().join("peers/encode_speed.py")).arg(peer).arg(tokenizer).arg(corpus).arg("1");
    }
    let output = command.output().ok()?;
    serde_json::from_slice::<Value>(&output.stdout).ok()?["mb_per_cpu_s"].as_f64()
}

/// Megabytes a CPU-second of encoding a corpus for the first time.
fn cold(dir: &Path, corpus_name: &str, bytes: usize) -> f64 {
    let tokenizer = Tokenizer::load(dir).expect("the tokenizer");
    let documents = corpus(corpus_name, bytes);
    let total: usize = documents.iter().map(String::len).sum();
    let mut ids = Vec::new();
    let began = cpu_seconds();
    let mut encoder = tokenizer.encoder();
    for document in &documents {
        ids.clear();
        encoder.encode(document, false, &mut ids).expect("text");
    }
    total as f64 / 1e6 / (cpu_seconds() - began)
}

/// CPU time of this thread so far, from the scheduler: in nanoseconds, where other clocks tick in hundredths.
fn cpu_seconds() -> f64 {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux kernel with scheduler statistics");
    let nanoseconds: f64 = text.split(' ').next().and_then(|number| number.parse().ok()).expect("nanoseconds");
    nanoseconds / 1e9
}

fn write_corpus(path: &PathBuf, documents: &[String]) {
    let lines: String = documents.iter().map(|text| json!({"text": text}).to_string() + "\n").collect();
    std::fs::write(path, zstd::encode_all(lines.as_bytes(), 1).expect("memory")).expect("a writable directory");
}

/// A copy of a tokenizer with 20,000 Chinese words of another vocabulary added, as `add_tokens` adds words.
fn extend(plain: &Path, extended: &Path, words: &Path) {
    let read = |dir: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).expect("tokenizer.json")).expect("JSON")
    };
    let (mut json, words) = (read(plain), read(words));
    let is_word =
        |word: &&String| word.chars().count() > 1 && word.chars().all(|c| ('\u{4e00}'..='\u{9fa5}').contains(&c));
    let known = json["model"]["vocab"].as_object().expect("a vocabulary");
    let added = json["added_tokens"].as_array().expect("added tokens");
    let largest = |ids: &mut dyn Iterator<Item = &Value>| ids.filter_map(Value::as_u64).max().unwrap_or(0);
    let next = 1 + largest(&mut known.values()).max(largest(&mut added.iter().map(|token| &token["id"])));
    let new: Vec<Value> = words["model"]["vocab"]
        .as_object()
        .expect("a vocabulary")
        .keys()
        .filter(is_word)
        .filter(|word| !known.contains_key(*word))
        .take(20_000)
        .enumerate()
        .map(|(number, word)| {
            json!({"id": next + number as u64, "content": word, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": true, "special": false})
        })
        .collect();
    assert_eq!(new.len(), 20_000, "words to add");
    json["added_tokens"].as_array_mut().expect("added tokens").extend(new);
    std::fs::create_dir_all(extended).expect("a writable directory");
    std::fs::write(extended.join("tokenizer.json"), json.to_string()).expect("a writable directory");
}
