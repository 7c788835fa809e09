//! Checkpoints: Hugging Face's layout, with our own state beside it, whole or absent.
//!
//! ```text
//! checkpoint-N/
//!   config.json  generation_config.json  model.safetensors  tokenizer files  trainer_state.json
//!   (adapters: adapter_config.json and adapter_model.safetensors in place of the first three)
//!   optimizer.pt  scheduler.pt      the optimizer's state as torch keeps it, so that the Trainer can go on
//!   trainer/optimizer.safetensors   in place of both, where torch has no such state; named by parameter
//!   trainer/state.json              step, counters, settings, size and BLAKE3 of every file; written last
//! ```
//! All of it is written into a temporary directory, synced, and renamed. Loading verifies every hash. A checkpoint
//! without `trainer/` is the Trainer's ([`TrainerCheckpoint`]).

mod hashed;
mod hugging_face;
mod spelling;
mod state;
mod tensors;
mod torch_state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokenmill_preprocess::tokenizer;
use tokenmill_shared::dataset::FileEntry;
use tokenmill_shared::storage::{self, TemporaryDirectory};
use tokenmill_shared::{Error, Result};

pub use hugging_face::TrainerCheckpoint;
pub use state::{Counters, State, TrainerState};
pub use torch_state::LearningRate;

use crate::model::Model;
use crate::optimizer::Optimizer;

/// Our state in a checkpoint.
const STATE: &str = "trainer/state.json";
const OPTIMIZER_DIR: &str = "trainer";
const STATE_LIMIT: u64 = 64 << 20;

/// What a checkpoint says of its run.
#[derive(Debug, Clone, PartialEq)]
pub enum Saved {
    /// Ours: everything, to the bit.
    Ours(Box<State>),
    /// The Hugging Face Trainer's.
    Trainer(TrainerCheckpoint),
}

/// JSON as Hugging Face writes it: indented by two, a newline at the end.
fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data");
    bytes.push(b'\n');
    bytes
}

fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<FileEntry> {
    storage::replace(&dir.join(name), bytes)?;
    Ok(FileEntry { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() })
}

/// Files that go into every checkpoint and the output directory unchanged, by name.
pub type Companions = Vec<(String, Vec<u8>)>;

/// What a directory with a model holds.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// The model: its adapters alone, if it has any.
    pub model: &'a Model,
    /// The text of the configuration as it was read, whose spelling is kept.
    pub config_text: &'a str,
    /// What adapters call the model they are beside.
    pub base: &'a str,
    /// Files that go with it.
    pub companions: &'a Companions,
}

/// The tokenizer files in `tokenizer_dir`, and generation_config.json of `model_dir`.
pub fn companions(tokenizer_dir: Option<&Path>, model_dir: Option<&Path>) -> Result<Companions> {
    let mut files = Vec::new();
    for name in tokenizer_dir.map_or(&[][..], |_| tokenizer::FILES) {
        let path = tokenizer_dir.map(|dir| dir.join(name)).unwrap_or_default();
        if storage::stat(&path)?.is_some() {
            files.push(((*name).to_owned(), storage::read(&path)?));
        }
    }
    let generation = model_dir.map(|dir| dir.join("generation_config.json"));
    if let Some(path) = generation
        && storage::stat(&path)?.is_some()
    {
        files.push(("generation_config.json".to_owned(), storage::read(&path)?));
    }
    Ok(files)
}

/// The text of config.json in the model directory `path`, or of the configuration file itself.
pub fn config_text(path: &Path) -> Result<String> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    Ok(String::from_utf8_lossy(&storage::read(&file)?).into_owned())
}

/// Writes weights, configuration and companions into `dir`.
pub fn write_model(dir: &Path, contents: &Contents<'_>) -> Result<BTreeMap<String, FileEntry>> {
    let Contents { model, config_text, base, companions } = *contents;
    let mut files = if model.lora_settings().is_some() {
        let adapter = model.adapter_tensors();
        let adapter: Vec<(String, &Tensor)> = adapter.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        let mut files = tensors::write(dir, "adapter_model", &adapter)?;
        let name = "adapter_config.json";
        files.insert(name.to_owned(), write_file(dir, name, &pretty(&model.adapter_config(base)))?);
        files
    } else {
        let weights: Vec<(String, &Tensor)> =
            model.parameters().iter().map(|parameter| (parameter.name.clone(), &parameter.tensor)).collect();
        let mut files = tensors::write(dir, "model", &weights)?;
        let config = spelling::respell(&config_json(model), config_text);
        files.insert("config.json".to_owned(), write_file(dir, "config.json", config.as_bytes())?);
        files
    };
    for (name, bytes) in companions {
        files.insert(name.clone(), write_file(dir, name, bytes)?);
    }
    Ok(files)
}

/// The configuration as it was read; changed only where the weights differ from it: they are float32.
fn config_json(model: &Model) -> Map<String, Value> {
    let mut json = model.config().json.as_object().cloned().unwrap_or_default();
    let dtype = if json.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    json.insert(dtype.to_owned(), json!("float32"));
    if json.get("architectures").is_none_or(Value::is_null) {
        json.insert("architectures".to_owned(), json!([model.config().family.architecture()]));
    }
    json
}

/// Saves checkpoint `state.step` in `output_dir`, then removes older ones so that `limit` are left. Without an
/// optimizer nothing can go on from it.
pub fn save(
    output_dir: &Path,
    contents: &Contents<'_>,
    optimizer: Option<&Optimizer>,
    learning_rate: LearningRate,
    mut state: State,
    trainer_state: &Value,
    limit: Option<usize>,
) -> Result<PathBuf> {
    let final_path = output_dir.join(format!("checkpoint-{}", state.step));
    let directory = TemporaryDirectory::create(&final_path)?;
    let dir = directory.path();
    let mut files = write_model(dir, contents)?;
    files.insert("trainer_state.json".to_owned(), write_file(dir, "trainer_state.json", &pretty(trainer_state))?);
    let own = dir.join(OPTIMIZER_DIR);
    storage::create_dir_all(&own)?;
    match optimizer {
        Some(optimizer) if torch_state::holds(optimizer) => {
            files.extend(torch_state::write(dir, contents.model, optimizer, learning_rate, state.step)?);
        }
        Some(optimizer) => {
            let written = tensors::write(&own, "optimizer", &optimizer.state(contents.model).collect::<Vec<_>>())?;
            files.extend(written.into_iter().map(|(name, entry)| (format!("{OPTIMIZER_DIR}/{name}"), entry)));
        }
        None => state.only_model = true,
    }
    state.files = files;
    storage::replace(&dir.join(STATE), &state.seal())?;
    // A checkpoint of this step from an earlier, abandoned run is replaced.
    storage::remove_dir_all(&final_path)?;
    directory.publish()?;
    if let Some(limit) = limit {
        verify(&final_path)?;
        rotate(output_dir, state.step, state.best.map(|best| best.step), limit)?;
    }
    Ok(final_path)
}

/// The checkpoints in `output_dir`, oldest step first.
pub fn list(output_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<(u64, PathBuf)> = storage::list_directories(output_dir)?
        .into_iter()
        .filter_map(|path| {
            let step = path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
            Some((step, path))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Keeps the checkpoint of `step`, just verified, the `best` one, and the newest ones before it. Those of later steps
/// do not count: they are damaged or of an abandoned run, and must not push out the good ones.
fn rotate(output_dir: &Path, step: u64, best: Option<u64>, limit: usize) -> Result<()> {
    let mut earlier = list(output_dir)?;
    earlier.retain(|(other, _)| *other < step);
    let mut kept = limit.saturating_sub(1);
    let all = earlier.len();
    earlier.retain(|(other, _)| Some(*other) != best);
    kept = kept.saturating_sub(all - earlier.len());
    for (_, path) in &earlier[..earlier.len().saturating_sub(kept)] {
        storage::remove_dir_all(path)?;
    }
    Ok(())
}

/// Reads every byte of a checkpoint against its hashes; one of the Trainer has none.
pub fn verify(dir: &Path) -> Result<Saved> {
    let path = dir.join(STATE);
    if storage::stat(&path)?.is_none() {
        return TrainerCheckpoint::read(dir)?.map(Saved::Trainer).ok_or_else(|| {
            Error::config(
                dir.display().to_string(),
                "has neither trainer/state.json nor trainer_state.json, so it cannot be resumed; start from its weights with --model_name_or_path",
            )
        });
    }
    let state = State::parse(&path, &storage::read_at_most(&path, STATE_LIMIT)?)?;
    for (name, expected) in &state.files {
        let path = dir.join(name);
        let (blake3, bytes) = storage::hash_file(&path)?;
        if (FileEntry { bytes, blake3 }) != *expected {
            return Err(Error::corrupt(&path, "is not as it was saved; use an older checkpoint"));
        }
    }
    Ok(Saved::Ours(Box::new(state)))
}

/// Finds the checkpoint that `--resume_from_checkpoint` means: a path, or the newest whole one.
pub fn find(output_dir: &Path, asked: &str) -> Result<(PathBuf, Saved)> {
    if !matches!(asked.to_ascii_lowercase().as_str(), "true" | "latest") {
        let path = PathBuf::from(asked);
        let state = going_on(&path, verify(&path)?)?;
        return Ok((path, state));
    }
    for (_, path) in list(output_dir)?.into_iter().rev() {
        match verify(&path).and_then(|saved| going_on(&path, saved)) {
            Ok(state) => return Ok((path, state)),
            Err(error) => eprintln!("{error}; trying the one before"),
        }
    }
    Err(Error::config(
        "--resume_from_checkpoint",
        format!("{} holds no whole checkpoint; remove the flag to start anew", output_dir.display()),
    ))
}

fn going_on(dir: &Path, saved: Saved) -> Result<Saved> {
    if !matches!(&saved, Saved::Ours(state) if state.only_model) {
        return Ok(saved);
    }
    let reason = "was saved with --save_only_model, without the optimizer's state; start from its weights with --model_name_or_path";
    Err(Error::config(dir.display().to_string(), reason))
}

/// Moves the checkpoints in `output_dir` into a directory of their own, so that a new run starts without them.
pub fn set_aside(output_dir: &Path) -> Result<Option<PathBuf>> {
    let checkpoints = list(output_dir)?;
    if checkpoints.is_empty() {
        return Ok(None);
    }
    let mut free = 1;
    let aside = loop {
        let dir = output_dir.join(format!("replaced-{free}"));
        if storage::stat(&dir)?.is_none() {
            break dir;
        }
        free += 1;
    };
    storage::create_dir_all(&aside)?;
    for (step, path) in checkpoints {
        storage::rename(&path, &aside.join(format!("checkpoint-{step}")))?;
    }
    Ok(Some(aside))
}

/// Puts the optimizer state of the checkpoint in `dir` into `optimizer`. Returns what differs in the settings it was
/// made with.
pub fn load_optimizer(dir: &Path, model: &Model, optimizer: &mut Optimizer) -> Result<Vec<String>> {
    let path = dir.join(torch_state::OPTIMIZER);
    if storage::stat(&path)?.is_some() {
        return torch_state::read(&path, model, optimizer);
    }
    let wanted: Vec<_> =
        optimizer.state(model).map(|(name, tensor)| (name, tensor.dims().to_vec(), tensor.dtype())).collect();
    optimizer.set_state(crate::model::load_tensors(&dir.join(OPTIMIZER_DIR), "optimizer", &wanted)?);
    Ok(Vec::new())
}

/// Whether the checkpoint in `dir`, of the Trainer, has the state of its optimizer.
pub fn has_optimizer(dir: &Path) -> Result<bool> {
    Ok(storage::stat(&dir.join(torch_state::OPTIMIZER))?.is_some())
}

/// The learning rate that the checkpoint in `dir`, of the Trainer, goes on with, if it says so.
pub fn next_learning_rate(dir: &Path) -> Result<Option<f64>> {
    let path = dir.join(torch_state::SCHEDULER);
    storage::stat(&path)?.map(|_| torch_state::read_learning_rate(&path)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps_left(there: &[u64], saved: u64, best: Option<u64>, limit: usize) -> Vec<u64> {
        let dir = tempfile::tempdir().unwrap();
        for step in there {
            storage::create_dir_all(&dir.path().join(format!("checkpoint-{step}"))).unwrap();
        }
        storage::create_dir_all(&dir.path().join("checkpoint-best")).unwrap();
        rotate(dir.path(), saved, best, limit).unwrap();
        assert!(storage::stat(&dir.path().join("checkpoint-best")).unwrap().is_some());
        list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    /// 6 is damaged or abandoned: counted among the newest, it would push out 5, the only good one.
    #[test]
    fn rotation_goes_by_step_and_never_removes_the_checkpoint_just_saved() {
        assert_eq!(steps_left(&[2, 4, 10, 8], 10, None, 2), [8, 10]);
        assert_eq!(steps_left(&[2, 4, 10, 8], 10, None, 1), [10]);
        assert_eq!(steps_left(&[4, 5, 6], 5, None, 1), [5, 6]);
        assert_eq!(steps_left(&[3, 4, 5, 6], 5, None, 2), [4, 5, 6]);
        assert_eq!(steps_left(&[5], 5, None, 3), [5]);
        // The best stays: with a limit of 1 beside the newest, otherwise in place of another.
        assert_eq!(steps_left(&[2, 4, 6, 8], 8, Some(2), 1), [2, 8]);
        assert_eq!(steps_left(&[2, 4, 6, 8], 8, Some(2), 3), [2, 6, 8]);
        assert_eq!(steps_left(&[2, 4, 6, 8], 8, Some(8), 2), [6, 8]);
    }
}
