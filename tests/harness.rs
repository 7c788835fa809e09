//! What the tests share: the real binaries, small corpora and tokenizers, digests of directories.
#![allow(clippy::disallowed_methods)]

pub mod mutate;
pub mod night;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

/// The programs under test.
#[derive(Debug)]
pub struct Binaries {
    /// `preprocess`.
    pub preprocess: PathBuf,
    /// `trainer`.
    pub trainer: PathBuf,
}

/// The programs, built once a run and found from cargo's own messages.
pub fn binaries() -> &'static Binaries {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--workspace", "--bins", "--message-format=json", "--quiet"]).current_dir(root());
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        // What cargo tells this test of its own package is a reason for ring, and so for all above it, to be built anew:
        // five minutes here, and as many when the next test run is built.
        let told = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        for name in told.filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
        let output = command.output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
        for line in output.stdout.split(|byte| *byte == b'\n') {
            let Ok(message) = serde_json::from_slice::<Value>(line) else { continue };
            if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
                found.insert(name.to_owned(), path.into());
            }
        }
        let mut take = |name: &str| found.remove(name).unwrap_or_else(|| panic!("cargo built no {name}"));
        Binaries { preprocess: take("preprocess"), trainer: take("trainer") }
    })
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// A file or directory of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Fails the test unless the program succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// Fails the test unless the program failed with `code` and said all of `parts`.
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "stderr: {}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A directory for one test, with a cache of its own.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A new, empty one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in it, directories included.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a writable directory");
        std::fs::write(&path, content).expect("a writable file");
        path
    }

    /// `preprocess prepare` of `text/` into `output` with the byte-level tokenizer and blocks of 16, no
    /// validation; `more` overrides.
    pub fn prepare(&self, output: &str, more: &[&str]) -> Command {
        let mut command = Command::new(&binaries().preprocess);
        command.arg("prepare").arg("--json").arg("true");
        self.arguments(&mut command, "--output_dir", output, more);
        command
    }

    /// `preprocess explain` of the same.
    pub fn explain(&self, more: &[&str]) -> Command {
        let mut command = Command::new(&binaries().preprocess);
        command.arg("explain").arg("--json").arg("true");
        self.arguments(&mut command, "--output_dir", "unused", more);
        command
    }

    fn arguments(&self, command: &mut Command, flag: &str, output: &str, more: &[&str]) {
        command.arg(flag).arg(self.path(output));
        command.arg("--train_file_dir").arg(self.path("text"));
        command.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
        command.arg("--cache_dir").arg(self.path("cache"));
        command.args(["--block_size", "16", "--validation_split_percentage", "0"]).args(more);
    }

    /// A training run on the dataset `dataset`, from random weights of a tiny llama, into `output`.
    pub fn train(&self, dataset: &str, output: &str, more: &[&str]) -> Command {
        let config = self.write("model/config.json", TINY_LLAMA);
        let mut command = Command::new(&binaries().trainer);
        command.arg("--init_from_config").arg(config).arg("--dataset_dir").arg(self.path(dataset));
        command.arg("--output_dir").arg(self.path(output)).args(["--use_peft", "false", "--do_train"]);
        command.args(["--per_device_train_batch_size", "2", "--logging_steps", "1"]).args(more);
        command
    }
}

/// Two layers, grouped heads, the vocabulary of the test tokenizers.
pub const TINY_LLAMA: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024, "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": false,
  "initializer_range": 0.05, "torch_dtype": "float32"
}"#;

/// Writes other bytes into a file, as whoever owns it can: those of datasets are read-only.
pub fn overwrite(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("a file of ours");
    std::fs::write(path, bytes).expect("a writable file");
}

/// A program that is killed when it is dropped, if it has not ended: a test that fails leaves nothing running behind.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts it.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a program ended, and the most memory that it had meanwhile, in bytes.
pub fn with_peak_memory(command: &mut Command) -> (Ended, u64) {
    let mut told = tempfile::tempfile().expect("a temporary file");
    let stderr = told.try_clone().expect("a second handle");
    let mut running = Running::start(command.stdout(Stdio::null()).stderr(stderr));
    let mut peak = 0;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        peak = peak.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10);
        if let Some(status) = running.0.try_wait().expect("a child") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut stderr = String::new();
    told.rewind().and_then(|()| told.read_to_string(&mut stderr)).expect("what it said");
    (Ended { code: status.code(), stdout: String::new(), stderr }, peak)
}

/// The same command with no more than so many bytes of address space.
pub fn within_address_space(command: &Command, bytes: u64) -> Command {
    let mut limited = Command::new("bash");
    let limit = format!("ulimit -v {}; exec \"$0\" \"$@\"", bytes >> 10);
    limited.arg("-c").arg(limit).arg(command.get_program()).args(command.get_args());
    limited
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}")).into()
}

/// Every file below `dir` with the BLAKE3 of its content, by relative path. Temporaries are files too.
pub fn digest(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for item in std::fs::read_dir(&next).expect("a readable directory") {
            let path = item.expect("a readable entry").path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let hash = blake3::hash(&std::fs::read(&path).expect("a readable file")).to_hex().to_string();
                files.insert(path.strip_prefix(dir).expect("below it").to_owned(), hash);
            }
        }
    }
    files
}

/// Lines of varied text, English and Chinese, the same for the same seed.
pub fn lines(count: usize, seed: u64) -> String {
    const WORDS: [&str; 16] = [
        "the",
        "mill",
        "grinds",
        "words",
        "slowly",
        "磨坊",
        "把",
        "文字",
        "変える",
        "into",
        "tokens,",
        "river's",
        "1984",
        "…",
        "naïve",
        "\t",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut text = String::new();
    for _ in 0..count {
        let words: Vec<_> = (0..next(20)).map(|_| WORDS[next(WORDS.len())]).collect();
        text.push_str(&words.join(" "));
        text.push('\n');
    }
    text
}
