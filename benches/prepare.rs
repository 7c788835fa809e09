//! What users feel of `preprocess prepare`: its speed beside the tokenizer alone and beside the Python
//! pipeline it replaces, packing again from the cache, and memory that does not grow with the input.
//!
//! `cargo bench --bench prepare`, with `TOKENMILL_PYTHON` naming a Python that has `datasets` and
//! `transformers` for the comparison. `TOKENMILL_SCALE=night` measures memory at 1 GB instead of 400 MB.
//! The exit code says whether every target was met.
#![allow(clippy::disallowed_methods)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::json;
use tokenmill_benches::{Run, Targets, corpus, program, python, run, shared_dir};
use tokenmill_preprocess::tokenizer::Tokenizer;

/// Runs of which the fastest counts: other work on the machine only ever slows a run down.
const ROUNDS: usize = 5;

const MB: f64 = 1e6;

struct Bench {
    preprocess: PathBuf,
    /// A byte-level tokenizer, for which there is a fast engine.
    byte_level: PathBuf,
    /// One that only the reference engine reads.
    reference: PathBuf,
    dir: tempfile::TempDir,
}

fn main() -> ExitCode {
    let mut targets = Targets::new("prepare");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bench = Bench {
        preprocess: program("preprocess"),
        byte_level: shared_dir().join("data/tokenizers/gpt2"),
        reference: for_the_reference(&shared_dir().join("data/tokenizers/llama2"), dir.path()),
        dir,
    };
    bench.beside_the_tokenizer(&mut targets);
    bench.beside_python(&mut targets);
    bench.memory_and_packing_again(&mut targets);
    targets.finish()
}

impl Bench {
    /// Prepares `input`, tokenizing everything unless `cache` holds it; the output is removed again.
    fn prepare(&self, tokenizer: &Path, input: &Path, cache: &Path, flags: &[&str]) -> (Run, serde_json::Value) {
        let output = self.dir.path().join("dataset");
        let mut command = Command::new(&self.preprocess);
        command.args(["prepare", "--json", "true", "--validation_split_percentage", "0", "--tokenizer_name_or_path"]);
        command.arg(tokenizer).arg("--train_file_dir").arg(input).arg("--output_dir").arg(&output);
        command.arg("--cache_dir").arg(cache).args(flags);
        let run = run(&mut command);
        std::fs::remove_dir_all(&output).expect("the dataset was just written");
        let result = serde_json::from_str(&run.stdout).expect("one JSON object");
        (run, result)
    }

    fn prepare_anew(&self, tokenizer: &Path, input: &Path, flags: &[&str]) -> Run {
        let cache = self.dir.path().join("cache");
        let (run, _) = self.prepare(tokenizer, input, &cache, flags);
        std::fs::remove_dir_all(&cache).expect("the cache was just filled");
        run
    }

    /// A directory that holds one file.
    fn input(&self, name: &str, content: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).expect("a new directory");
        std::fs::write(dir.join(name), content).expect("room for the input");
        dir
    }

    /// All that is not tokenizing: reading, decoding, order, store, packing, writing, syncing.
    fn beside_the_tokenizer(&self, targets: &mut Targets) {
        let documents: Vec<_> = ["en", "zh"].into_iter().flat_map(|name| corpus(name, 12 << 20)).collect();
        let bytes: usize = documents.iter().map(String::len).sum();
        let input = self.input("documents.jsonl", &json_lines(&documents));
        let tokenizer = Tokenizer::load(&self.reference).expect("the tokenizer of the bench");
        let alone = || {
            let began = Instant::now();
            let count: usize = documents
                .par_iter()
                .with_max_len(1)
                .map_init(Vec::new, |ids, text| {
                    ids.clear();
                    tokenizer.encode(text, true, ids).expect("real text");
                    ids.len()
                })
                .sum();
            assert!(count > 0);
            began.elapsed()
        };
        let rounds: Vec<_> =
            (0..ROUNDS).map(|_| (self.prepare_anew(&self.reference, &input, &[]).wall, alone())).collect();
        let all = fastest(rounds.iter().map(|round| round.0));
        let tokenizing = fastest(rounds.iter().map(|round| round.1));
        println!(
            "       prepare {:.2} MB/s of text, the tokenizer alone {:.2}",
            rate(bytes, all),
            rate(bytes, tokenizing)
        );
        let share = 100.0 * (1.0 - tokenizing.as_secs_f64() / all.as_secs_f64());
        targets.at_most("share of wall time that is not tokenizing", share, 10.0, "%");
    }

    /// The same text file through `datasets` and run_clm's two maps.
    fn beside_python(&self, targets: &mut Targets) {
        let Some(python) = python() else {
            println!("not run: the comparison with Python (set TOKENMILL_PYTHON)");
            return;
        };
        let lines: String = corpus("en", 16 << 20).iter().fold(String::new(), |all, text| all + text + "\n");
        let input = self.input("lines.txt", &lines);
        let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let ours =
            fastest((0..ROUNDS).map(|_| self.prepare_anew(&self.byte_level, &input, &["--append_eos", "false"]).wall));
        let theirs = run(Command::new(python)
            .arg(shared_dir().join("peers/prepare_hf_datasets.py"))
            .arg(self.byte_level.join("tokenizer.json"))
            .arg(input.join("lines.txt"))
            .arg(cores)
            .arg(self.dir.path().join("python")));
        let result: serde_json::Value =
            serde_json::from_str(theirs.stdout.lines().last().unwrap_or_default()).expect("one JSON object");
        // Its own figure, which leaves out starting Python and importing.
        let theirs = result["total"].as_f64().expect("seconds");
        println!("       {:.1} MB: ours {:.2} s, Python {theirs:.2} s", lines.len() as f64 / MB, ours.as_secs_f64());
        targets.at_least("speed against Python", theirs / ours.as_secs_f64(), 2.5, "times");
    }

    /// Memory at two sizes; the larger is then packed again from the store with another block size.
    fn memory_and_packing_again(&self, targets: &mut Targets) {
        let large_bytes =
            if std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night") { 1 << 30 } else { 400 << 20 };
        let cache = self.dir.path().join("cache");
        let peak = |bytes: usize| {
            let input = self.distinct("small.jsonl", bytes);
            let peak = self.prepare_anew(&self.byte_level, &input, &[]).peak_bytes as f64;
            println!("       peak memory {:.0} MB at {} MiB of text", peak / MB, bytes >> 20);
            peak
        };
        let (_, half) = (peak(10 << 20), peak(large_bytes / 2));
        let large = self.distinct("large.jsonl", large_bytes);
        let whole = self.prepare(&self.byte_level, &large, &cache, &[]).0.peak_bytes as f64;
        println!("       peak memory {:.0} MB at {} MiB of text", whole / MB, large_bytes >> 20);
        // Between two sizes that both fill what may be in flight.
        let slope = 100.0 * (whole - half) / (large_bytes / 2) as f64;
        targets.at_most("memory gained per byte of text", slope, if large_bytes >= 1 << 30 { 1.0 } else { 10.0 }, "%");
        targets.at_most("peak memory", whole / MB, 512.0, "MB");

        let mut speeds = Vec::new();
        for block_size in ["256", "512", "768"] {
            let (again, result) = self.prepare(&self.byte_level, &large, &cache, &["--block_size", block_size]);
            assert_eq!(result["reuse"]["partitions_tokenized"], 0, "nothing is tokenized again");
            let tokens = result["manifest"]["splits"]["train"]["ledger"]["read"].as_u64().expect("a count");
            speeds.push(rate(tokens as usize * 2, again.wall));
        }
        targets.at_least("packing again", speeds.iter().copied().fold(0.0, f64::max), 300.0, "MB/s of ids");
    }

    /// A file of `bytes` of text in distinct documents: the corpora over and over, each time numbered.
    fn distinct(&self, name: &str, bytes: usize) -> PathBuf {
        let corpora: Vec<_> = ["en", "zh", "code"].into_iter().flat_map(|name| corpus(name, usize::MAX)).collect();
        let mut left = bytes;
        let mut content = String::new();
        for (number, text) in corpora.iter().cycle().enumerate() {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(text.len());
            let _ = writeln!(content, "{}", json!({"text": format!("{number} {text}")}));
        }
        self.input(name, &content)
    }
}

/// A copy of a tokenizer in `dir` that no fast engine recognises: its pre-tokenizer is a sequence of nothing.
fn for_the_reference(tokenizer: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join("reference");
    std::fs::create_dir_all(&copy).expect("a new directory");
    for entry in std::fs::read_dir(tokenizer).expect("a tokenizer").map(|entry| entry.expect("an entry")) {
        // Not `fs::copy`: it would copy a read-only mode too.
        let content = std::fs::read(entry.path()).expect("a file");
        std::fs::write(copy.join(entry.file_name()), content).expect("room for a tokenizer");
    }
    let path = copy.join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    assert!(json["pre_tokenizer"].is_null());
    json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": []});
    std::fs::write(&path, json.to_string()).expect("room for a tokenizer");
    copy
}

fn json_lines(documents: &[String]) -> String {
    documents.iter().fold(String::new(), |mut lines, text| {
        let _ = writeln!(lines, "{}", json!({ "text": text }));
        lines
    })
}

fn fastest(runs: impl Iterator<Item = Duration>) -> Duration {
    runs.min().expect("at least one run")
}

fn rate(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / MB / took.as_secs_f64()
}
