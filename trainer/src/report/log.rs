//! The log of a run: Hugging Face's `log_history`, and who is told of each entry.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenmill_shared::storage::{self, AppendFile};
use tokenmill_shared::{Error, Result};

use super::tensorboard::EventFile;

/// Every entry of the log as a line of JSON, in the output directory.
const LINES: &str = "metrics.jsonl";

/// Who is told besides [`LINES`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reports {
    tensorboard: bool,
}

impl Reports {
    /// Reads `--report_to`. Services that are not built are named and left out, as the run does not depend on them.
    ///
    /// # Errors
    /// A name that Hugging Face does not know either.
    pub fn parse(names: &[String]) -> Result<Self> {
        const LATER: [&str; 12] = [
            "wandb",
            "mlflow",
            "comet_ml",
            "azure_ml",
            "codecarbon",
            "clearml",
            "dagshub",
            "neptune",
            "dvclive",
            "flyte",
            "swanlab",
            "trackio",
        ];
        let mut reports = Self::default();
        for name in names.iter().map(|name| name.trim().to_lowercase()) {
            match name.as_str() {
                "none" | "" | "jsonl" => {}
                "all" | "tensorboard" => reports.tensorboard = true,
                name if LATER.contains(&name) => {
                    eprintln!("--report_to {name} is not built yet; tensorboard and {LINES} are written here");
                }
                name => {
                    return Err(Error::config(
                        "--report_to",
                        format!("cannot be {name:?}; use none, all, tensorboard"),
                    ));
                }
            }
        }
        Ok(reports)
    }
}

/// The log of a run.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    entries: Vec<Value>,
    lines: AppendFile,
    board: Option<EventFile>,
}

impl Log {
    /// A log in `output_dir` that goes on after `entries`. Lines that a checkpoint does not know of are dropped:
    /// those steps are made again. `logging_dir` is where TensorBoard's file goes, `texts` what it shows as text.
    pub fn open(
        output_dir: &Path,
        entries: Vec<Value>,
        reports: &Reports,
        logging_dir: Option<&Path>,
        texts: &[(&str, String)],
    ) -> Result<Self> {
        let path = output_dir.join(LINES);
        let lines: String = entries.iter().map(|entry| entry.to_string() + "\n").collect();
        storage::replace(&path, lines.as_bytes())?;
        let board = reports.tensorboard.then(|| {
            let dir = logging_dir.map_or_else(|| output_dir.join("runs").join(run_directory()), PathBuf::from);
            storage::create_dir_all(&dir)?;
            let mut board = EventFile::create(&dir)?;
            texts.iter().try_for_each(|(tag, text)| board.text(tag, text))?;
            Ok::<_, Error>(board)
        });
        Ok(Self { lines: AppendFile::open(&path)?, path, entries, board: board.transpose()? })
    }

    /// Goes back to `entries`: what came later is made again.
    pub fn go_back(&mut self, entries: Vec<Value>) -> Result<()> {
        let lines: String = entries.iter().map(|entry| entry.to_string() + "\n").collect();
        storage::replace(&self.path, lines.as_bytes())?;
        self.lines = AppendFile::open(&self.path)?;
        self.entries = entries;
        Ok(())
    }

    /// Adds an entry of `step`. Its keys are sorted, as the Trainer writes them.
    pub fn push(&mut self, step: u64, mut entry: Map<String, Value>) -> Result<()> {
        if let Some(board) = &mut self.board {
            board.scalars(step, &entry)?;
        }
        entry.insert("step".to_owned(), json!(step));
        entry.sort_keys();
        let entry = Value::Object(entry);
        self.lines.append((entry.to_string() + "\n").as_bytes())?;
        self.entries.push(entry);
        Ok(())
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[Value] {
        &self.entries
    }
}

/// `Nov24_15-04-05_host`, as the Trainer names the directory of a run.
fn run_directory() -> String {
    let host = storage::read(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
    let host = String::from_utf8_lossy(&host).trim().replace(['/', '\0'], "_");
    format!("{}_{host}", chrono::Local::now().format("%b%d_%H-%M-%S"))
}
