//! AdamW over the parameters of a model: its moments, decay groups and clipping.

use candle_core::Tensor;
use tokenmill_shared::{Error, Result};

use crate::arguments::TrainerArguments;
use crate::model::Model;
use crate::ops::adamw::{self, Update};

/// The optimizer and its state.
#[derive(Debug)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    /// Updates done.
    pub step: u64,
    /// First and second moments of each parameter, in parameter order.
    pub moments: Vec<(Tensor, Tensor)>,
}

impl AdamW {
    /// Moments of zero for every parameter.
    pub fn new(model: &Model, arguments: &TrainerArguments) -> Result<Self> {
        let zero = |tensor: &Tensor| Ok((tensor.zeros_like()?, tensor.zeros_like()?));
        let moments: candle_core::Result<Vec<_>> =
            model.parameters().iter().map(|parameter| zero(&parameter.tensor)).collect();
        Ok(Self {
            beta1: arguments.adam_beta1,
            beta2: arguments.adam_beta2,
            epsilon: arguments.adam_epsilon,
            weight_decay: arguments.weight_decay,
            max_grad_norm: arguments.max_grad_norm,
            step: 0,
            moments: moments.map_err(|error| Error::config("optimizer", error.to_string()))?,
        })
    }

    /// One update from the model's gradients, whose norm is `norm`. Clipping multiplies by
    /// `max_grad_norm / (norm + 1e-6)` where that is below 1, as PyTorch does.
    pub fn update(&mut self, model: &Model, learning_rate: f64, norm: f64) -> Result<()> {
        self.step += 1;
        let clip = if self.max_grad_norm > 0.0 { (self.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let update = |index: usize, gradient: &[f32]| {
            let parameter = &model.parameters()[index];
            let (first, second) = &self.moments[index];
            let figures = Update {
                learning_rate,
                beta1: self.beta1,
                beta2: self.beta2,
                epsilon: self.epsilon,
                weight_decay: if parameter.decay { self.weight_decay } else { 0.0 },
                step: self.step,
                gradient_scale: clip,
            };
            adamw::update(&parameter.tensor, gradient, first, second, figures)
        };
        model.gradients().for_each(update).map_err(|error| Error::config("optimizer", error.to_string()))
    }
}
