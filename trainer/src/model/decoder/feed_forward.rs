//! The feed-forward layer: from a normed input up to what its last projection takes.

use candle_core::{Result, Tensor};

use super::Decoder;
use crate::gradients::Gradients;
use crate::model::layout::FeedForward;
use crate::ops::activation;
use crate::ops::heads::{self, Columns};

/// What the backward needs: what is activated and, if it is a gate, what it gates, (N, F) each.
pub(super) struct Saved {
    activated: Tensor,
    gated: Option<Tensor>,
}

impl Decoder<'_> {
    /// `z`: (N, D). Returns (N, F).
    pub(super) fn feed_forward(&self, z: &Tensor, parts: FeedForward) -> Result<(Tensor, Saved)> {
        let (gate, up) = match parts {
            FeedForward::Gated { gate, up, .. } => (self.project(z, gate)?, self.project(z, up)?),
            FeedForward::GatedAsOne { gate_up, .. } => {
                let both = self.project(z, gate_up)?;
                let [gate, up] = self.halves().map(|half| heads::split(&both, 1, half)?.squeeze(0)?.squeeze(0));
                (gate?, up?)
            }
            FeedForward::Plain { up, .. } => {
                let saved = Saved { activated: self.project(z, up)?, gated: None };
                return Ok((self.activated(&saved)?, saved));
            }
        };
        let saved = Saved { activated: gate, gated: Some(up) };
        Ok((self.activated(&saved)?, saved))
    }

    /// What [`feed_forward`](Self::feed_forward) returned, (N, F).
    pub(super) fn activated(&self, saved: &Saved) -> Result<Tensor> {
        match &saved.gated {
            Some(gated) => activation::gated_forward(self.config.activation, &saved.activated, gated),
            None => activation::forward(self.config.activation, &saved.activated),
        }
    }

    /// The gradient of `z`, (N, D), given that of what [`feed_forward`](Self::feed_forward) returned.
    pub(super) fn feed_forward_backward(
        &self,
        dy: &Tensor,
        z: &Tensor,
        parts: FeedForward,
        saved: &Saved,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let activation = self.config.activation;
        let gradients_of_both = |up: &Tensor| activation::gated_backward(activation, dy, &saved.activated, up);
        match (parts, &saved.gated) {
            (FeedForward::Gated { gate, up, .. }, Some(gated)) => {
                let (dgate, dup) = gradients_of_both(gated)?;
                let dz = self.projection_backward(&dgate, z, gate, gradients)?;
                self.projection_backward_add(&dup, z, up, &dz, gradients)?;
                Ok(dz)
            }
            (FeedForward::GatedAsOne { gate_up, .. }, Some(gated)) => {
                let (dgate, dup) = gradients_of_both(gated)?;
                let (rows, inner) = dgate.dims2()?;
                let both = Tensor::zeros((rows, 2 * inner), dgate.dtype(), dgate.device())?;
                for (half, gradient) in self.halves().into_iter().zip([dgate, dup]) {
                    heads::merge_into(&gradient.unsqueeze(0)?.unsqueeze(0)?, &both, half)?;
                }
                self.projection_backward(&both, z, gate_up, gradients)
            }
            (FeedForward::Plain { up, .. }, _) => {
                let dup = activation::backward(activation, dy, &saved.activated)?;
                self.projection_backward(&dup, z, up, gradients)
            }
            (_, None) => candle_core::bail!("a gate has nothing to gate"),
        }
    }

    /// Where gate and up are in the features of one projection.
    fn halves(&self) -> [Columns; 2] {
        let inner = self.config.intermediate_size;
        [0, inner].map(|offset| Columns { heads: 1, head_dim: inner, offset, stride: inner })
    }
}
