//! `preprocess prepare` of one text in the forms that users have it in: one file of records, the same compressed, parquet,
//! and very many small files; cold, and again with everything in the cache. Ratios are to the one file of records.
//!
//! `cargo bench --workspace --bench inputs`. 200 MB of English, Chinese and code and 20,000 small files;
//! `TOKENMILL_SCALE=night` takes 1 GB and 100,000. With `TOKENMILL_PYTHON`, a Python that has `datasets` and `transformers`,
//! that pipeline runs beside on the same file of text.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use tokenmill_benches::{Run, Targets, corpus, program, python, run, shared_dir};

const MB: f64 = 1e6;

/// Rows of a row group, as `datasets` writes them.
const GROUP_ROWS: usize = 1000;

struct Bench {
    preprocess: PathBuf,
    tokenizer: PathBuf,
    work: tempfile::TempDir,
}

fn main() -> ExitCode {
    let night = std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night");
    let (bytes, files) = if night { (1_000_000_000, 100_000) } else { (200_000_000, 20_000) };
    let mut targets = Targets::new("inputs");
    let work = tempfile::tempdir().expect("a temporary directory");
    let bench = Bench { preprocess: program("preprocess"), tokenizer: shared_dir().join("data/tokenizers/gpt2"), work };
    let documents = distinct(bytes);
    let text = documents.iter().map(String::len).sum::<usize>() as f64 / MB;
    println!("{text:.0} MB of text, {} documents, {files} small files", documents.len());
    println!("| | cold | of one file's time | again | peak memory |\n|---|---|---|---|---|");
    let mut beside = None;
    for (name, write) in FORMS {
        let input = bench.work.path().join("input");
        std::fs::create_dir(&input).expect("a new directory");
        write(&documents, &input, files);
        let cold = bench.prepare(&input, "one");
        // Nothing but packing, and finding out that nothing has changed.
        let again = bench.prepare(&input, "other");
        let peak = cold.peak_bytes.max(again.peak_bytes) as f64 / MB;
        let (cold, again) = (cold.wall.as_secs_f64(), again.wall.as_secs_f64());
        let one_file = *beside.get_or_insert(cold);
        println!(
            "| {name} | {cold:.2} s, {:.0} MB/s | {:.2} | {again:.2} s | {peak:.0} MB |",
            text / cold,
            cold / one_file
        );
        targets.at_most(&format!("{name}: beside one file of records"), cold / one_file, limit_of(name), "times");
        targets.at_most(&format!("{name}: again, of the time it took cold"), again / cold, 0.5, "");
        targets.at_most(&format!("{name}: peak memory"), peak, 512.0, "MB");
        std::fs::remove_dir_all(&input).expect("the input was just written");
        std::fs::remove_dir_all(bench.work.path().join("cache")).expect("the cache was just filled");
    }
    bench.beside_python(&documents, &mut targets);
    targets.finish()
}

/// How many times as long as one file of records a form may take.
fn limit_of(name: &str) -> f64 {
    if name == "small files" { 3.0 } else { 1.3 }
}

/// What a text is written as.
type Form = fn(&[String], &Path, usize);

const FORMS: [(&str, Form); 4] =
    [("one file", one_file), ("one .zst", one_zst), ("parquet", one_parquet), ("small files", small_files)];

/// `bytes` of text in distinct documents: the corpora in turn, over and over, each time numbered.
fn distinct(bytes: usize) -> Vec<String> {
    let corpora: Vec<String> = ["en", "zh", "code"].into_iter().flat_map(|name| corpus(name, usize::MAX)).collect();
    let mut left = bytes;
    let numbered = corpora.iter().cycle().enumerate().map(|(number, text)| format!("{number} {text}"));
    numbered
        .take_while(|text| {
            let more = left > 0;
            left = left.saturating_sub(text.len());
            more
        })
        .collect()
}

fn records(documents: &[String], mut to: impl Write) {
    documents.iter().for_each(|text| writeln!(to, "{}", json!({ "text": text })).expect("room for the input"));
}

fn create(path: &Path) -> BufWriter<File> {
    BufWriter::new(File::create(path).expect("room for the input"))
}

fn one_file(documents: &[String], dir: &Path, _: usize) {
    records(documents, create(&dir.join("text.jsonl")));
}

fn one_zst(documents: &[String], dir: &Path, _: usize) {
    let to = create(&dir.join("text.jsonl.zst"));
    records(documents, zstd::Encoder::new(to, 3).expect("an encoder").auto_finish());
}

fn one_parquet(documents: &[String], dir: &Path, _: usize) {
    let batch = |texts: &[String]| {
        let column = Arc::new(StringArray::from_iter_values(texts)) as ArrayRef;
        RecordBatch::try_from_iter([("text", column)]).expect("one column")
    };
    let level = ZstdLevel::try_new(3).expect("a level");
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
    let to = create(&dir.join("text.parquet"));
    let mut writer = ArrowWriter::try_new(to, batch(&[]).schema(), Some(properties)).expect("a writer");
    for rows in documents.chunks(GROUP_ROWS) {
        writer.write(&batch(rows)).expect("room for the input");
        writer.flush().expect("room for the input");
    }
    writer.close().expect("room for the input");
}

fn small_files(documents: &[String], dir: &Path, files: usize) {
    for (number, documents) in documents.chunks(documents.len().div_ceil(files).max(1)).enumerate() {
        let dir = dir.join(format!("{:03}", number / 1000));
        std::fs::create_dir_all(&dir).expect("a directory");
        records(documents, create(&dir.join(format!("{number:06}.jsonl"))));
    }
}

impl Bench {
    /// Prepares `input` with the cache that is there; the output is removed again.
    fn prepare(&self, input: &Path, output: &str) -> Run {
        let output = self.work.path().join(output);
        let mut command = Command::new(&self.preprocess);
        command.args(["prepare", "--validation_split_percentage", "0", "--tokenizer_name_or_path"]);
        command.arg(&self.tokenizer).arg("--train_file_dir").arg(input).arg("--output_dir").arg(&output);
        let run = run(command.arg("--cache_dir").arg(self.work.path().join("cache")));
        std::fs::remove_dir_all(&output).expect("the dataset was just written");
        run
    }

    /// Lines of text through `datasets` and run_clm's two maps.
    fn beside_python(&self, documents: &[String], targets: &mut Targets) {
        let Some(python) = python() else {
            println!("not run: the comparison with Python (set TOKENMILL_PYTHON)");
            return;
        };
        let input = self.work.path().join("lines");
        std::fs::create_dir(&input).expect("a new directory");
        let path = input.join("text.txt");
        let mut to = create(&path);
        for text in documents {
            writeln!(to, "{}", text.replace(['\r', '\n'], " ")).expect("room for the input");
        }
        drop(to);
        let ours = self.prepare(&input, "one").wall.as_secs_f64();
        let mut command = Command::new(python);
        command.arg(shared_dir().join("peers/prepare_hf_datasets.py")).arg(self.tokenizer.join("tokenizer.json"));
        let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let theirs = run(command.arg(&path).arg(cores).arg(self.work.path().join("python")));
        let result: Value =
            serde_json::from_str(theirs.stdout.lines().last().unwrap_or_default()).expect("one JSON object");
        // Its own figure, which leaves out starting Python and importing.
        let theirs = result["total"].as_f64().expect("seconds");
        println!("lines of text: ours {ours:.2} s, datasets {theirs:.2} s");
        targets.at_least("lines of text, beside datasets", theirs / ours, 20.0, "times");
    }
}
