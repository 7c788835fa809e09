//! `preprocess prepare`, from files on disk to a committed dataset, on all cores: beside what the tokenizer alone could
//! do on them, and beside the fastest tokenizers of others reading, encoding and writing the same file with `pyarrow`.
//!
//! `cargo bench --workspace --bench end_to_end [-- TOKENIZER…]`. With `TOKENMILL_PYTHON` (see `peers.sh`) the peers run
//! too; with `TOKENMILL_DATASETS_PYTHON`, a Python that has `datasets` and `transformers`, that pipeline as well. Peers
//! are timed by themselves, without starting Python or loading the tokenizer; ours from start to end of the process.
//! `TOKENMILL_SCALE=night` takes 240 MB of each text instead of 24, `release` 960; `datasets`, whose rate the size does not
//! change, has 24 MB of them.
#![allow(clippy::disallowed_methods)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenmill_benches::{Targets, corpus, program, python, run, shared_dir};
use tokenmill_preprocess::tokenizer::Tokenizer;

/// Runs of ours, of which the fastest counts: other work on the machine only ever slows a run down.
const ROUNDS: usize = 3;

const MB: f64 = 1e6;

/// Text for `datasets`, and for all at the smallest size.
const SMALL_BYTES: usize = 24 << 20;

/// One text, as it is and as records.
struct Input {
    name: &'static str,
    documents: Vec<String>,
    txt: PathBuf,
    jsonl: PathBuf,
    /// The beginning of `txt`.
    small: PathBuf,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let mut targets = Targets::new("end_to_end");
    let bytes = match std::env::var("TOKENMILL_SCALE").as_deref() {
        Ok("release") => 960 << 20,
        Ok("night") => 240 << 20,
        _ => SMALL_BYTES,
    };
    let work = tempfile::tempdir().expect("a temporary directory");
    let preprocess = program("preprocess");
    let inputs: Vec<Input> = ["en", "zh", "mixed"].map(|name| Input::write(name, bytes, work.path())).into();
    let names = if words.is_empty() { vec!["qwen2_5", "llama2"] } else { words.iter().map(String::as_str).collect() };
    for name in names {
        let tokenizer = shared_dir().join("data/tokenizers").join(name);
        for input in &inputs {
            let engine = engine_rate(&tokenizer, &input.documents);
            for (format, path) in [("txt", &input.txt), ("jsonl", &input.jsonl)] {
                let what = format!("{name}, {}, {format}", input.name);
                let mut fastest = f64::INFINITY;
                let mut peak = 0;
                for _ in 0..ROUNDS {
                    let run = prepare(&preprocess, &tokenizer, path, work.path());
                    (fastest, peak) = (fastest.min(run.wall.as_secs_f64()), peak.max(run.peak_bytes));
                }
                let size = std::fs::metadata(path).expect("just written").len() as f64 / MB;
                let text = input.documents.iter().map(String::len).sum::<usize>() as f64 / MB;
                println!(
                    "{what}: {:.1} MB of file/s, {:.1} MB of text/s, the tokenizer alone {engine:.1}, peak memory {:.0} MB",
                    size / fastest,
                    text / fastest,
                    peak as f64 / MB
                );
                targets.at_least(&format!("{what}, of what the tokenizer can do"), text / fastest / engine, 0.7, "x");
                targets.at_most(&format!("{what}, peak memory"), peak as f64 / (1 << 20) as f64, 300.0, "MiB");
                let peers: Vec<(&str, f64)> = ["gigatoken", "fastokens"]
                    .into_iter()
                    .filter_map(|peer| Some((peer, peer_rate(peer, &tokenizer, path, work.path())?)))
                    .collect();
                peers.iter().for_each(|(peer, rate)| println!("       {peer} {rate:.1} MB of file/s"));
                if let Some(best) = peers.iter().map(|(_, rate)| *rate).max_by(f64::total_cmp) {
                    targets.at_least(&format!("{what}, beside the best peer"), size / fastest / best, 2.0, "times");
                }
                if let (Some(python), "txt") = (std::env::var_os("TOKENMILL_DATASETS_PYTHON"), format) {
                    let rate = datasets_rate(&PathBuf::from(python), &tokenizer, &input.small, work.path());
                    println!("       datasets {rate:.1} MB of file/s");
                    targets.at_least(&format!("{what}, beside datasets"), size / fastest / rate, 50.0, "times");
                }
            }
        }
    }
    targets.finish()
}

impl Input {
    /// Writes `bytes` of a corpus, or of English and Chinese in turn: the documents over and over, each time numbered.
    fn write(name: &'static str, bytes: usize, work: &Path) -> Self {
        let parts = if name == "mixed" { vec!["en", "zh"] } else { vec![name] };
        let corpora: Vec<Vec<String>> = parts.into_iter().map(|name| corpus(name, usize::MAX)).collect();
        let shortest = corpora.iter().map(Vec::len).min().expect("a corpus");
        let in_turn: Vec<&String> =
            (0..shortest).flat_map(|at| corpora.iter().map(move |corpus| &corpus[at % corpus.len()])).collect();
        let (mut documents, mut left) = (Vec::new(), bytes);
        for (number, text) in in_turn.iter().cycle().enumerate() {
            if left == 0 {
                break;
            }
            // A document is a line of text, as in the files that run_clm is given.
            let line = format!("{number} {}", text.replace(['\r', '\n'], " "));
            left = left.saturating_sub(line.len());
            documents.push(line);
        }
        let of = |what: &str, format: &str, bytes: usize, line: &dyn Fn(&String) -> String| {
            let dir = work.join(format!("{name}-{what}"));
            std::fs::create_dir(&dir).expect("a new directory");
            let path = dir.join(format!("{name}.{format}"));
            let mut content = String::new();
            for text in &documents {
                let _ = writeln!(content, "{}", line(text));
                if content.len() >= bytes {
                    break;
                }
            }
            std::fs::write(&path, content).expect("room for the input");
            path
        };
        let txt = of("txt", "txt", usize::MAX, &String::clone);
        let small = of("small", "txt", SMALL_BYTES, &String::clone);
        let jsonl = of("jsonl", "jsonl", usize::MAX, &|text| json!({ "text": text }).to_string());
        Self { name, documents, txt, jsonl, small }
    }
}

/// Megabytes of text a second that the tokenizer alone encodes on all cores, never having seen it.
fn engine_rate(tokenizer: &Path, documents: &[String]) -> f64 {
    let rate = || {
        let tokenizer = Tokenizer::load(tokenizer).expect("the tokenizer of the bench");
        let began = Instant::now();
        let share = documents.len().div_ceil(rayon::current_num_threads());
        documents.par_chunks(share).for_each(|documents| {
            let (mut encoder, mut ids) = (tokenizer.encoder(), Vec::new());
            for document in documents {
                ids.clear();
                encoder.encode(document, true, &mut ids).expect("text");
            }
        });
        documents.iter().map(String::len).sum::<usize>() as f64 / MB / began.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| rate()).fold(0.0, f64::max)
}

/// Everything from nothing; what it writes is removed again.
fn prepare(preprocess: &Path, tokenizer: &Path, input: &Path, work: &Path) -> tokenmill_benches::Run {
    let (output, cache) = (work.join("dataset"), work.join("cache"));
    let mut command = Command::new(preprocess);
    command.args(["prepare", "--validation_split_percentage", "0", "--block_size", "1024", "--sample_by", "line"]);
    command.args(["--append_eos", "false", "--tokenizer_name_or_path"]).arg(tokenizer);
    command.arg("--train_file_dir").arg(input.parent().expect("a file in a directory"));
    let run = run(command.arg("--output_dir").arg(&output).arg("--cache_dir").arg(&cache));
    std::fs::remove_dir_all(&output).expect("the dataset was just written");
    std::fs::remove_dir_all(&cache).expect("the cache was just filled");
    run
}

/// Megabytes of file a second of a peer; `None` without Python, or if it cannot load the tokenizer.
fn peer_rate(peer: &str, tokenizer: &Path, input: &Path, work: &Path) -> Option<f64> {
    let mut command = Command::new(python()?);
    command.arg(shared_dir().join(format!("peers/prepare_{peer}.py"))).arg(tokenizer.join("tokenizer.json")).arg(input);
    let output = work.join("peer.arrow");
    if peer == "gigatoken" {
        command.arg("\\n");
    }
    let ended = command.arg(&output).output().expect("Python starts");
    let result: Value = serde_json::from_slice(&ended.stdout).ok()?;
    std::fs::remove_file(&output).expect("just written");
    result["mbps_wall"].as_f64()
}

/// The same of `load_dataset`, `map(tokenize)`, `map(group_texts)` on all cores.
fn datasets_rate(python: &Path, tokenizer: &Path, input: &Path, work: &Path) -> f64 {
    let mut command = Command::new(python);
    command.arg(shared_dir().join("peers/prepare_hf_datasets.py")).arg(tokenizer.join("tokenizer.json")).arg(input);
    let ended = run(command.arg(rayon::current_num_threads().to_string()).arg(work.join("python")));
    std::fs::remove_dir_all(work.join("python")).expect("just written");
    let result: Value = serde_json::from_str(ended.stdout.lines().last().unwrap_or_default()).expect("one JSON object");
    std::fs::metadata(input).expect("there").len() as f64 / MB / result["total"].as_f64().expect("seconds")
}
