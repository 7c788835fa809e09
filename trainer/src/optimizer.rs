//! The optimizer over the parameters of a model: which rule, its state, decay groups and clipping.

use candle_core::{DType, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokenmill_shared::{Error, Result};

use crate::arguments::TrainerArguments;
use crate::model::{Model, Parameter};
use crate::ops::adamw::Formula;
use crate::ops::blockwise::BLOCK;
use crate::ops::sgd::Momentum;
use crate::ops::{adafactor, adamw, lion, sgd};
use crate::optim_args;

/// Optimizers, by Hugging Face's names. Some of its names are one here: every rule is fused, and nothing is paged
/// where there is no GPU to page from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Rule {
    /// AdamW as PyTorch computes it
    #[value(aliases = ["adamw_torch_fused", "adamw_apex_fused", "paged_adamw", "paged_adamw_32bit"])]
    AdamwTorch,
    /// AdamW with its moments in 8 bits, block by block; those of small tensors and embeddings stay in 32
    #[value(name = "adamw_8bit", aliases = ["adamw_bnb_8bit", "paged_adamw_8bit"])]
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// AdamW as transformers computed it until 4.46
    AdamwHf,
    /// Adafactor: row and column means instead of a second moment
    Adafactor,
    /// Gradient descent; --optim_args gives it a momentum
    Sgd,
    /// Lion: one momentum, steps by its sign
    #[value(name = "lion_32bit", aliases = ["lion", "paged_lion_32bit", "paged_lion"])]
    #[serde(rename = "lion_32bit")]
    Lion32bit,
}

/// Below as many values the moments are kept in 32 bits, as bitsandbytes does.
const SMALLEST_8BIT: usize = 4096;

/// A tensor that is kept of a parameter: its name, shape and type.
type Kept = (&'static str, Vec<usize>, DType);

impl Rule {
    /// What is kept of a parameter.
    fn state(self, parameter: &Parameter, momentum: Momentum) -> Vec<Kept> {
        let dims = parameter.tensor.dims();
        let same = |name| (name, dims.to_vec(), DType::F32);
        match self {
            Self::Adamw8bit if is_8bit(parameter) => {
                let blocks = vec![parameter.tensor.elem_count().div_ceil(BLOCK)];
                vec![
                    ("exp_avg", dims.to_vec(), DType::U8),
                    ("exp_avg_scale", blocks.clone(), DType::F32),
                    ("exp_avg_sq", dims.to_vec(), DType::U8),
                    ("exp_avg_sq_scale", blocks, DType::F32),
                ]
            }
            Self::AdamwTorch | Self::AdamwHf | Self::Adamw8bit => vec![same("exp_avg"), same("exp_avg_sq")],
            Self::Adafactor => {
                let dims = adafactor::state_dims(dims);
                let names: &[_] = if dims.len() == 2 { &["exp_avg_sq_row", "exp_avg_sq_col"] } else { &["exp_avg_sq"] };
                names.iter().copied().zip(dims).map(|(name, dims)| (name, dims, DType::F32)).collect()
            }
            Self::Sgd if momentum.momentum == 0.0 => Vec::new(),
            Self::Sgd => vec![same("momentum_buffer")],
            Self::Lion32bit => vec![same("exp_avg")],
        }
    }
}

/// Whether 8 bits do for the moments of a parameter. Those of embeddings would not be stable; the Trainer keeps them
/// in 32.
fn is_8bit(parameter: &Parameter) -> bool {
    const EMBEDDINGS: [&str; 5] = ["embed_tokens", "wte", "wpe", "word_embeddings", "embed_in"];
    let module = parameter.name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
    parameter.tensor.elem_count() >= SMALLEST_8BIT && !EMBEDDINGS.contains(&module)
}

/// The optimizer and its state.
#[derive(Debug)]
pub struct Optimizer {
    pub(crate) rule: Rule,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
    /// Of SGD.
    pub(crate) momentum: Momentum,
    max_grad_norm: f64,
    /// Updates done: fewer than steps, if some were skipped.
    pub updates: u64,
    /// What is kept of each parameter, in parameter order; nothing of a frozen one.
    state: Vec<Vec<Tensor>>,
}

impl Optimizer {
    /// A state of zeros for every parameter that is trained.
    pub fn new(model: &Model, arguments: &TrainerArguments) -> Result<Self> {
        let rule = arguments.optim;
        let momentum = optim_args::parse(arguments.optim_args.as_deref(), rule, |_| {})?;
        let zeros = |parameter: &Parameter| {
            let trained = model.trained(parameter);
            let state = rule.state(&trained, momentum).into_iter().filter(|_| parameter.trainable);
            state.map(|(_, dims, dtype)| Tensor::zeros(dims, dtype, parameter.tensor.device())).collect()
        };
        let state: candle_core::Result<_> = model.parameters().iter().map(zeros).collect();
        Ok(Self {
            rule,
            beta1: arguments.adam_beta1,
            beta2: arguments.adam_beta2,
            epsilon: arguments.adam_epsilon,
            weight_decay: arguments.weight_decay,
            momentum,
            max_grad_norm: arguments.max_grad_norm,
            updates: 0,
            state: state.map_err(|error| Error::config("optimizer", error.to_string()))?,
        })
    }

    /// `<name of the state>.<name of the parameter>` and its tensor, in parameter order.
    pub fn state<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = (String, &'a Tensor)> {
        model.parameters().iter().enumerate().flat_map(|(index, parameter)| {
            self.state_of(model, index).map(|(name, tensor)| (format!("{name}.{}", parameter.name), tensor))
        })
    }

    /// Names and tensors of what is kept of the parameter of index `index`.
    pub fn state_of<'a>(&'a self, model: &Model, index: usize) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
        let names = self.rule.state(&model.trained(&model.parameters()[index]), self.momentum).into_iter();
        names.zip(&self.state[index]).map(|((name, ..), tensor)| (name, tensor))
    }

    /// Bytes of the state.
    pub fn bytes(&self) -> u64 {
        self.state.iter().flatten().map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
    }

    /// Replaces what is kept of the parameter of index `index`.
    pub fn set_state_of(&mut self, index: usize, tensors: Vec<Tensor>) {
        self.state[index] = tensors;
    }

    /// Replaces the state by one in the order of [`state`](Self::state).
    pub fn set_state(&mut self, tensors: Vec<Tensor>) {
        self.state.iter_mut().flatten().zip(tensors).for_each(|(slot, tensor)| *slot = tensor);
    }

    /// One update from the model's gradients, which are multiplied by `unscale` and then have the norm `norm`. Clipping
    /// multiplies by `max_grad_norm / (norm + 1e-6)` where that is below 1, as PyTorch does.
    pub fn update(&mut self, model: &mut Model, learning_rate: f64, norm: f64, unscale: f64) -> Result<()> {
        self.updates += 1;
        let clip = if self.max_grad_norm > 0.0 { (self.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let clip = clip * unscale;
        #[cfg(feature = "cuda")]
        if let Some(decoder) = model.on_gpu_mut() {
            return self.update_on_gpu(decoder, learning_rate, clip);
        }
        let model = &*model;
        let update = |index: usize, gradient: &[f32]| {
            let trained = model.trained(&model.parameters()[index]);
            self.update_one(&trained, gradient, &self.state[index], learning_rate, clip)
        };
        model.gradients().for_each(update).map_err(|error| Error::config("optimizer", error.to_string()))
    }

    /// The figures of an AdamW update.
    fn adamw(&self, learning_rate: f64, weight_decay: f64, gradient_scale: f64) -> adamw::Update {
        let formula = if self.rule == Rule::AdamwHf { Formula::HuggingFace } else { Formula::Torch };
        let (beta1, beta2, epsilon, step) = (self.beta1, self.beta2, self.epsilon, self.updates);
        adamw::Update { formula, learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale }
    }

    /// The first and the second moments of what is trained, by parameter index, of a rule that keeps both in float32.
    #[cfg(feature = "cuda")]
    fn moments(&self) -> [Vec<(usize, &Tensor)>; 2] {
        [0, 1].map(|which| {
            self.state.iter().enumerate().filter_map(|(index, state)| Some((index, state.get(which)?))).collect()
        })
    }

    /// The update where the parameters are on a GPU; so are the moments from the first one on.
    #[cfg(feature = "cuda")]
    fn update_on_gpu(&self, decoder: &mut crate::cuda::Decoder, learning_rate: f64, clip: f64) -> Result<()> {
        if !decoder.weights().has_moments() {
            if self.updates == 1 {
                decoder.weights_mut().zero_moments()?;
            } else {
                decoder.weights_mut().set_moments(self.moments())?;
            }
        }
        let [decayed, others] = [self.weight_decay, 0.0]
            .map(|weight_decay| adamw::Constants::new(self.adamw(learning_rate, weight_decay, clip)));
        decoder.weights().update(decayed, others)
    }

    /// Brings the state to where checkpoints see it, if it is elsewhere.
    pub fn fetch(&self, model: &Model) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(decoder) = model.on_gpu() {
            decoder.weights().fetch_moments(self.moments())?;
        }
        let _ = model;
        Ok(())
    }

    fn update_one(
        &self,
        parameter: &Parameter,
        gradient: &[f32],
        state: &[Tensor],
        learning_rate: f64,
        gradient_scale: f64,
    ) -> candle_core::Result<()> {
        let weight_decay = if parameter.decay { self.weight_decay } else { 0.0 };
        let (beta1, beta2, step, parameter) = (self.beta1, self.beta2, self.updates, &parameter.tensor);
        let adamw = self.adamw(learning_rate, weight_decay, gradient_scale);
        match (self.rule, state) {
            (Rule::AdamwTorch | Rule::AdamwHf | Rule::Adamw8bit, [first, second]) => {
                adamw::update(parameter, gradient, first, second, adamw)
            }
            (Rule::Adamw8bit, [first, first_scale, second, second_scale]) => {
                adamw::update_8bit(parameter, gradient, [first, first_scale, second, second_scale], adamw)
            }
            (Rule::Adafactor, state) => {
                let figures = adafactor::Update { learning_rate, weight_decay, step, gradient_scale };
                adafactor::update(parameter, gradient, state, figures)
            }
            (Rule::Lion32bit, [momentum]) => {
                let figures = lion::Update { learning_rate, beta1, beta2, weight_decay, gradient_scale };
                lion::update(parameter, gradient, momentum, figures)
            }
            (Rule::Sgd, [] | [_]) => {
                let (momentum, is_first) = (self.momentum, step == 1);
                let figures = sgd::Update { learning_rate, weight_decay, momentum, is_first, gradient_scale };
                sgd::update(parameter, gradient, state.first(), figures)
            }
            (rule, state) => candle_core::bail!("{rule:?} does not keep {} tensors", state.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::values;
    use candle_core::Device;
    use std::collections::BTreeSet;

    /// Golden values of torch, transformers and bitsandbytes (`tests/data/optimizers.py`, `optimizers_8bit.py`,
    /// `optim_args.py`): six updates.
    #[test]
    fn parameters_after_six_updates_equal_the_reference() {
        let load = |name: &str| {
            let path = format!("{}/../tests/data/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
            candle_core::safetensors::load(path, &Device::Cpu).unwrap()
        };
        let mut golden = load("optimizers");
        golden.extend(load("optimizers_8bit"));
        let settings = load("optim_args");
        let settings: BTreeSet<&str> = settings.keys().filter_map(|name| name.strip_suffix(".matrix")).collect();
        assert_eq!(settings.len(), 5);
        golden.extend(load("optim_args"));
        let rules = Rule::value_variants().iter();
        let rules = rules.map(|rule| (*rule, rule.to_possible_value().unwrap().get_name().to_owned()));
        let with_settings = settings.iter().map(|settings| (Rule::Sgd, (*settings).to_owned()));
        let rates: Vec<f64> = golden["rates"].to_vec1().unwrap();
        for (rule, rule_name) in rules.chain(with_settings) {
            let momentum = Some(rule_name.as_str()).filter(|name| name.contains('='));
            let momentum = optim_args::parse(momentum, rule, |_| {}).unwrap();
            for (name, decay) in [("matrix", true), ("vector", false)] {
                let tensor = golden[&format!("start.{name}")].copy().unwrap();
                let parameter = Parameter { name: name.to_owned(), tensor, decay, trainable: true };
                let state = rule.state(&parameter, momentum).into_iter();
                let state: Vec<_> =
                    state.map(|(_, dims, dtype)| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap()).collect();
                let mut optimizer = Optimizer {
                    rule,
                    beta1: 0.9,
                    beta2: 0.98,
                    epsilon: 1e-6,
                    weight_decay: 0.1,
                    momentum,
                    max_grad_norm: 0.0,
                    updates: 0,
                    state: Vec::new(),
                };
                for (step, rate) in rates.iter().enumerate() {
                    let gradient = golden[&format!("gradient.{name}")].get(step).unwrap().flatten_all().unwrap();
                    let gradient: Vec<f32> = gradient.to_vec1().unwrap();
                    optimizer.updates += 1;
                    // Scaled up and down again by a power of two: the scale is applied, and the values stay.
                    let doubled: Vec<f32> = gradient.iter().map(|value| value * 2.0).collect();
                    optimizer.update_one(&parameter, &doubled, &state, *rate, 0.5).unwrap();
                }
                let expected = &golden[&format!("{rule_name}.{name}")];
                let (found, expected) = (values(&parameter.tensor).unwrap(), values(expected).unwrap());
                let worst = found.iter().zip(expected.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 2e-6, "{rule_name}, {name}: {worst}");
                // The 8-bit moments, indices and scales, also of the last, shorter block; and what SGD gathers.
                let kept = rule.state(&parameter, momentum).into_iter().zip(&state);
                for ((kept, ..), tensor) in
                    kept.filter(|((kept, ..), _)| state.len() == 4 || *kept == "momentum_buffer")
                {
                    let expected = &golden[&format!("{rule_name}.{name}.{kept}")];
                    let numbers = |tensor: &Tensor| -> Vec<f32> {
                        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
                    };
                    for (at, (found, expected)) in numbers(tensor).iter().zip(numbers(expected)).enumerate() {
                        // What is gathered is a sum that may cancel.
                        let near = if kept == "momentum_buffer" {
                            (found - expected).abs() < 2e-6
                        } else {
                            (found / expected - 1.0).abs() < 3e-6 || *found == expected
                        };
                        assert!(near, "{rule_name}, {kept} {at}: {found}, {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_tensors_and_embeddings_keep_their_moments_in_32_bits() {
        let types = |name: &str, dims: (usize, usize)| -> Vec<DType> {
            let tensor = Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
            let parameter = Parameter { name: name.to_owned(), tensor, decay: true, trainable: true };
            Rule::Adamw8bit.state(&parameter, Momentum::default()).into_iter().map(|(_, _, dtype)| dtype).collect()
        };
        let eight = [DType::U8, DType::F32, DType::U8, DType::F32];
        assert_eq!(types("model.layers.0.mlp.up_proj.weight", (64, 64)), eight);
        assert_eq!(types("lm_head.weight", (64, 64)), eight);
        assert_eq!(types("model.layers.0.mlp.up_proj.weight", (63, 65)), [DType::F32; 2]);
        assert_eq!(types("model.embed_tokens.weight", (1024, 64)), [DType::F32; 2]);
    }
}
