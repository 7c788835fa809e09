//! `optimizer.pt` and `scheduler.pt`, as the Hugging Face Trainer saves and loads them.
//!
//! ```text
//! optimizer.pt  {state: {i: {step, exp_avg, exp_avg_sq}}, param_groups: [with decay, without]}
//! scheduler.pt  the state of LambdaLR: base_lrs, last_epoch, _last_lr, …
//! ```
//! `i` counts the trained parameters of the first group, then of the second, each in the order of torch's
//! `named_parameters()`. Source: torch/optim/optimizer.py, transformers/trainer.py (`create_optimizer`).

use std::collections::HashMap;
use std::io::{BufWriter, IntoInnerError};
use std::path::Path;

use tokenmill_shared::dataset::FileEntry;
use tokenmill_shared::{Error, Result};

use super::hashed::HashedFile;
use crate::model::Model;
use crate::ops::cpu::tensor;
use crate::optimizer::{Optimizer, Rule};
use crate::torch::{TorchFile, TorchWriter, Value};

/// The optimizer's state.
pub const OPTIMIZER: &str = "optimizer.pt";

/// The scheduler's.
pub const SCHEDULER: &str = "scheduler.pt";

/// The learning rate as the next step begins.
#[derive(Debug, Clone, Copy)]
pub struct LearningRate {
    /// That of `--learning_rate`.
    pub peak: f64,
    /// That of the next step.
    pub next: f64,
}

/// Indices of the trained parameters: those with decay, then those without.
fn groups(model: &Model) -> [Vec<usize>; 2] {
    let (decay, none) = model.trained_in_order().into_iter().partition(|index| model.parameters()[*index].decay);
    [decay, none]
}

/// The settings of a group, as the class of `rule` in Python keeps them; `None` if what is kept here is not its state.
fn settings(optimizer: &Optimizer, weight_decay: f64) -> Option<Vec<(&'static str, Value)>> {
    use Value::{Bool, Float, None as Nothing, Tuple};
    let no = || Bool(false);
    Some(match optimizer.rule {
        Rule::AdamwTorch => vec![
            ("betas", Tuple(vec![Float(optimizer.beta1), Float(optimizer.beta2)])),
            ("eps", Float(optimizer.epsilon)),
            ("weight_decay", Float(weight_decay)),
            ("amsgrad", no()),
            ("maximize", no()),
            ("foreach", Nothing),
            ("capturable", no()),
            ("differentiable", no()),
            ("fused", Nothing),
            ("decoupled_weight_decay", Bool(true)),
        ],
        Rule::Adafactor => vec![
            ("eps", Tuple(vec![Float(1e-30), Float(1e-3)])),
            ("clip_threshold", Float(1.0)),
            ("decay_rate", Float(-0.8)),
            ("beta1", Nothing),
            ("weight_decay", Float(weight_decay)),
            ("scale_parameter", no()),
            ("relative_step", no()),
            ("warmup_init", no()),
        ],
        Rule::Sgd => vec![
            ("momentum", Float(optimizer.momentum.momentum)),
            ("dampening", Float(optimizer.momentum.dampening)),
            ("weight_decay", Float(weight_decay)),
            ("nesterov", Bool(optimizer.momentum.nesterov)),
            ("maximize", no()),
            ("foreach", Nothing),
            ("differentiable", no()),
            ("fused", Nothing),
        ],
        _ => return None,
    })
}

/// Whether [`write()`] can hold the state of `optimizer`.
pub(super) fn holds(optimizer: &Optimizer) -> bool {
    settings(optimizer, 0.0).is_some()
}

/// Writes both files into `dir`, after `step` steps; nothing if Python's optimizer keeps another state.
pub(super) fn write(
    dir: &Path,
    model: &Model,
    optimizer: &Optimizer,
    rate: LearningRate,
    step: u64,
) -> Result<Vec<(String, FileEntry)>> {
    let mut file = TorchWriter::default();
    let (mut state, mut param_groups, mut count) = (Vec::new(), Vec::new(), 0);
    for (indices, weight_decay) in groups(model).into_iter().zip([optimizer.weight_decay, 0.0]) {
        let Some(settings) = settings(optimizer, weight_decay) else { return Ok(Vec::new()) };
        let first = count;
        for index in indices {
            let kept: Vec<_> = optimizer.state_of(model, index).collect();
            if !kept.is_empty() {
                let mut entries: Vec<(&str, Value)> = Vec::new();
                if optimizer.rule == Rule::Adafactor {
                    // The root mean square of the weights is computed anew in every step.
                    entries.extend([("step", Value::Int(optimizer.updates as i64)), ("RMS", Value::Float(0.0))]);
                } else if optimizer.rule != Rule::Sgd {
                    let updates = tensor(vec![optimizer.updates as f32], ());
                    entries.push((
                        "step",
                        file.tensor(&updates.map_err(|error| Error::config(OPTIMIZER, error.to_string()))?),
                    ));
                }
                entries.extend(kept.into_iter().map(|(name, tensor)| (name, file.tensor(tensor))));
                state.push((Value::Int(count), Value::dict(entries)));
            }
            count += 1;
        }
        let rates = [("lr", Value::Float(rate.next)), ("initial_lr", Value::Float(rate.peak))];
        let params = Value::List((first..count).map(Value::Int).collect());
        param_groups.push(Value::dict(rates.into_iter().chain(settings).chain([("params", params)])));
    }
    let optimizer = Value::dict([("state", Value::Dict(state)), ("param_groups", Value::List(param_groups))]);
    let of_groups = |value: Value| Value::List(vec![value.clone(), value]);
    let scheduler = Value::dict([
        ("base_lrs", of_groups(Value::Float(rate.peak))),
        ("last_epoch", Value::Int(step as i64)),
        ("_step_count", Value::Int(step as i64 + 1)),
        ("_is_initial", Value::Bool(false)),
        ("_get_lr_called_within_step", Value::Bool(false)),
        ("_last_lr", of_groups(Value::Float(rate.next))),
        ("lr_lambdas", of_groups(Value::Dict(Vec::new()))),
    ]);
    let publish = |name: &str, file: TorchWriter, value: &Value| {
        let path = dir.join(name);
        // The archive's headers and small records come in a few bytes at a time.
        let out = BufWriter::new(HashedFile::create(&path)?);
        let written = file.write(out, name.trim_end_matches(".pt"), value);
        let written = written.and_then(|out| out.into_inner().map_err(IntoInnerError::into_error));
        Ok((name.to_owned(), written.map_err(Error::storage("write", &path))?.publish()?))
    };
    Ok(vec![publish(OPTIMIZER, file, &optimizer)?, publish(SCHEDULER, TorchWriter::default(), &scheduler)?])
}

/// Puts the state in `optimizer.pt` at `path` into `optimizer`, and the number of its updates if it says so. Returns
/// what differs in the settings it was made with, for a message.
///
/// # Errors
/// A file that is damaged, or that is of other parameters or another optimizer.
pub(super) fn read(path: &Path, model: &Model, optimizer: &mut Optimizer) -> Result<Vec<String>> {
    let mut file = TorchFile::open(path)?;
    let strange = || Error::corrupt(path, "is not the state of a torch optimizer");
    let value = file.value().clone();
    let (Some(Value::Dict(state)), Some(param_groups)) = (value.get("state"), value.get("param_groups")) else {
        return Err(strange());
    };
    let state: HashMap<i64, &Value> = state.iter().filter_map(|(key, value)| Some((key.int()?, value))).collect();
    let param_groups = param_groups.elements().ok_or_else(strange)?;
    let theirs: Vec<&[Value]> =
        param_groups.iter().map(|group| group.get("params")?.elements()).collect::<Option<_>>().ok_or_else(strange)?;
    let ours = groups(model);
    if !theirs.iter().map(|group| group.len()).eq(ours.iter().map(Vec::len)) {
        let reason = format!(
            "has groups of {:?} parameters, this run trains {} with weight decay and {} without; use the same model, --use_peft, --target_modules and --modules_to_save",
            theirs.iter().map(|group| group.len()).collect::<Vec<_>>(),
            ours[0].len(),
            ours[1].len()
        );
        return Err(Error::config(path.display().to_string(), reason));
    }
    let mut updates = None;
    for (id, index) in theirs.iter().copied().flatten().zip(ours.into_iter().flatten()) {
        let name = &model.parameters()[index].name;
        let wanted: Vec<(&str, Vec<usize>)> =
            optimizer.state_of(model, index).map(|(name, tensor)| (name, tensor.dims().to_vec())).collect();
        let found = id.int().and_then(|id| state.get(&id).copied());
        let buffer = found.and_then(|found| found.get("momentum_buffer")).filter(|buffer| **buffer != Value::None);
        if buffer.is_some() && wanted.is_empty() {
            let reason = "was made with a momentum; give it to --optim_args momentum=…, or start anew from the weights";
            return Err(Error::config(path.display().to_string(), reason));
        }
        if wanted.is_empty() {
            continue;
        }
        let found = found.ok_or_else(|| Error::corrupt(path, format!("lacks the state of {name}")))?;
        let mut tensors = Vec::new();
        for (what, dims) in wanted {
            let Some(Value::Tensor(place)) = found.get(what) else {
                let reason = format!(
                    "has no {what} for {name}: it is of another optimizer; give its name to --optim, its settings to --optim_args"
                );
                return Err(Error::config(path.display().to_string(), reason));
            };
            if place.shape != dims {
                let reason = format!(
                    "has {what} of shape {:?} where {name} asks for {dims:?}; use the same model and settings",
                    place.shape
                );
                return Err(Error::config(path.display().to_string(), reason));
            }
            let values = tensor(file.read(place)?, dims);
            tensors.push(values.map_err(|error| Error::corrupt(path, error.to_string()))?);
        }
        optimizer.set_state_of(index, tensors);
        if optimizer.rule == Rule::Sgd {
            continue; // which counts nothing
        }
        let step = match found.get("step") {
            Some(Value::Int(step)) => Some(*step as f32),
            Some(Value::Tensor(place)) if place.len() == 1 => file.read(place)?.first().copied(),
            _ => None,
        };
        let step = step.filter(|step| *step >= 0.0 && updates.is_none_or(|updates| updates == *step));
        updates = Some(step.ok_or_else(|| Error::corrupt(path, format!("counts the updates of {name} differently")))?);
    }
    if let Some(updates) = updates {
        optimizer.updates = updates as u64;
    }
    Ok(differences(optimizer, &param_groups[0]))
}

/// The settings of `group` that this run's flags replace by others.
fn differences(optimizer: &Optimizer, group: &Value) -> Vec<String> {
    let now = settings(optimizer, optimizer.weight_decay).unwrap_or_default();
    let flat = |value: &Value| match value {
        Value::Tuple(elements) => elements.iter().filter_map(Value::number).collect(),
        other => other.number().into_iter().collect::<Vec<_>>(),
    };
    let changed = now.iter().filter_map(|(name, value)| {
        let (theirs, ours) = (flat(group.get(name)?), flat(value));
        (["betas", "eps", "weight_decay", "momentum", "dampening"].contains(name) && theirs != ours)
            .then(|| format!("{name} was {theirs:?}, now it is {ours:?}"))
    });
    changed.collect()
}

/// The learning rate that the scheduler at `path` goes on with.
pub(super) fn read_learning_rate(path: &Path) -> Result<f64> {
    let file = TorchFile::open(path)?;
    let rates = file.value().get("_last_lr").and_then(Value::elements);
    rates
        .and_then(|rates| rates.first()?.number())
        .ok_or_else(|| Error::corrupt(path, "is not the state of a learning-rate scheduler"))
}
