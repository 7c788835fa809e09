//! What the benches share: the real programs, built in the bench's own profile; runs of them measured from
//! outside; corpora and peers; targets, of which a missed one makes the bench fail.
#![allow(clippy::disallowed_methods)]

pub mod model;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One program run, seen from outside.
#[derive(Debug)]
pub struct Run {
    /// From start to end.
    pub wall: Duration,
    /// The most memory it ever held (`VmHWM`), asked every few milliseconds.
    pub peak_bytes: u64,
    /// What it printed on standard output.
    pub stdout: String,
}

/// The binary `name`, built now in the profile that the bench itself runs in.
pub fn program(name: &str) -> PathBuf {
    let bench = std::env::current_exe().expect("a running program has a path");
    let dir = bench.parent().and_then(Path::parent).expect("<target>/<profile>/deps/<bench>");
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        other => other.expect("a profile directory"),
    };
    // The whole workspace, so that dependencies keep the features they were built with.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace", "--bins", "--profile", profile]);
    // What cargo tells this bench of its own package is a reason for ring, and so for all above it, to be built anew.
    let told = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    for name in told.filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
        cargo.env_remove(name);
    }
    let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(built.is_ok_and(|status| status.success()), "cargo build failed");
    dir.join(name)
}

/// Runs a command to its end.
///
/// # Panics
/// It cannot be started or fails.
pub fn run(command: &mut Command) -> Run {
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let stdout = read_aside(child.stdout.take().expect("piped"));
    let stderr = read_aside(child.stderr.take().expect("piped"));
    let mut peak_bytes = 0;
    let status = loop {
        peak_bytes = peak_bytes.max(peak_memory(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let wall = began.elapsed();
    assert!(status.success(), "{command:?} failed:\n{}", stderr.join().unwrap_or_default());
    Run { wall, peak_bytes, stdout: stdout.join().unwrap_or_default() }
}

fn read_aside(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    })
}

fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The directory of corpora, tokenizers and peers: `TOKENMILL_SHARED`, or `shared` beside the repository.
///
/// # Panics
/// It is not there.
pub fn shared_dir() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let dir = std::env::var_os("TOKENMILL_SHARED").map_or_else(beside, PathBuf::from);
    assert!(dir.join("data/corpora").is_dir(), "no corpora in {}; set TOKENMILL_SHARED", dir.display());
    dir
}

/// Documents of a corpus, in order, until they have `bytes` of text or the corpus ends.
pub fn corpus(name: &str, bytes: usize) -> Vec<String> {
    let path = shared_dir().join(format!("data/corpora/{name}.jsonl.zst"));
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = BufReader::new(zstd::Decoder::new(file).expect("a zstd file")).lines();
    let mut left = bytes;
    let documents = lines.map_while(|line| {
        let record: serde_json::Value = serde_json::from_str(&line.ok()?).expect("a JSON line");
        let text = record["text"].as_str()?.to_owned();
        let more = left > 0;
        left = left.saturating_sub(text.len());
        more.then_some(text)
    });
    documents.collect()
}

/// A Python that has the peers' packages: `TOKENMILL_PYTHON`, if it is set.
pub fn python() -> Option<PathBuf> {
    std::env::var_os("TOKENMILL_PYTHON").map(PathBuf::from)
}

/// The machine this runs on, for people.
pub fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores of {}", model.trim_start_matches(['\t', ' ', ':']))
}

/// Collects figures against targets.
#[derive(Debug, Default)]
pub struct Targets {
    missed: Vec<String>,
}

impl Targets {
    /// Starts, saying where this runs.
    pub fn new(bench: &str) -> Self {
        println!("{bench}: {}", machine());
        Self::default()
    }

    /// A figure that should be `target` or more.
    pub fn at_least(&mut self, what: &str, found: f64, target: f64, unit: &str) {
        self.note(found >= target, format!("{what}: {found:.2} {unit} (target: at least {target} {unit})"));
    }

    /// A figure that should be `target` or less.
    pub fn at_most(&mut self, what: &str, found: f64, target: f64, unit: &str) {
        self.note(found <= target, format!("{what}: {found:.2} {unit} (target: at most {target} {unit})"));
    }

    fn note(&mut self, met: bool, line: String) {
        println!("{} {line}", if met { "met   " } else { "MISSED" });
        if !met {
            self.missed.push(line);
        }
    }

    /// Success if every target was met.
    pub fn finish(self) -> ExitCode {
        if self.missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
