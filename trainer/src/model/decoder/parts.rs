//! What layers are made of: norms, projections with their adapters, and how a branch ends in the residual stream.

use candle_core::{Result, Tensor};

use super::Decoder;
use crate::gradients::Gradients;
use crate::model::config::NormKind;
use crate::model::layout::{Norm, Projection};
use crate::ops::dropout::Dropout;
use crate::ops::linear::Weight;
use crate::ops::lora::Pair;
use crate::ops::{layer_norm, linear, quantised_linear, rms_norm};

/// What a norm's backward needs of each row.
pub(super) enum Statistics {
    Rms(Vec<f32>),
    Layer(layer_norm::Statistics),
}

/// How a branch ends: a projection, dropout, perhaps a norm, and the sum with the residual stream.
pub(super) struct End {
    pub projection: Projection,
    pub dropout: Option<Dropout>,
    pub norm: Option<Norm>,
}

/// What the backward of an [`End`] with a norm needs: what was normed, (N, D), and its statistics.
pub(super) type SavedEnd = Option<(Tensor, Statistics)>;

impl<'a> Decoder<'a> {
    pub(super) fn parameter(&self, index: usize) -> &'a Tensor {
        &self.parameters[index].tensor
    }

    /// The norm of `x` over its last dimension.
    pub(super) fn norm(&self, x: &Tensor, norm: Norm) -> Result<(Tensor, Statistics)> {
        let (weight, epsilon) = (self.parameter(norm.weight), self.config.norm_epsilon);
        match (self.config.norm, norm.bias) {
            (NormKind::Layer, Some(bias)) => {
                let (y, statistics) = layer_norm::forward(x, weight, self.parameter(bias), epsilon)?;
                Ok((y, Statistics::Layer(statistics)))
            }
            (kind, _) => {
                let (y, scales) = rms_norm::forward(x, weight, offset(kind), epsilon)?;
                Ok((y, Statistics::Rms(scales)))
            }
        }
    }

    /// Adds the gradient of a norm's input `x` to `dx` in place, or sets it, unless `add`.
    pub(super) fn norm_backward(
        &self,
        dy: &Tensor,
        (x, statistics): (&Tensor, &Statistics),
        norm: Norm,
        (dx, add): (&Tensor, bool),
        gradients: &mut Gradients,
    ) -> Result<()> {
        let weight = self.parameter(norm.weight);
        match (statistics, norm.bias) {
            (Statistics::Layer(statistics), Some(bias)) => {
                layer_norm::backward(dy, x, (weight, norm.weight), bias, statistics, (dx, add), gradients)
            }
            (Statistics::Rms(scales), _) => {
                let weight = (weight, offset(self.config.norm));
                rms_norm::backward(dy, x, weight, scales, dx, add, gradients.slot(norm.weight))
            }
            (Statistics::Layer(_), None) => candle_core::bail!("a LayerNorm has a bias"),
        }
    }

    fn weight(&self, projection: Projection) -> Weight<'a> {
        Weight { tensor: self.parameter(projection.weight), input_first: projection.input_first }
    }

    fn adapter(&self, projection: Projection) -> Option<Pair<'a>> {
        self.adapters?.pair(self.parameters, projection.weight, self.dropout_seed, self.precision)
    }

    pub(super) fn project(&self, x: &Tensor, projection: Projection) -> Result<Tensor> {
        let bias = projection.bias.map(|bias| self.parameter(bias));
        let y = match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::forward(x, weight, bias, self.precision)?,
            None => linear::forward(x, self.weight(projection), bias, self.precision)?,
        };
        self.adapter(projection).map_or(Ok(()), |pair| pair.forward_add(x, &y))?;
        Ok(y)
    }

    fn project_onto(&self, x: &Tensor, projection: Projection, residual: &Tensor) -> Result<Tensor> {
        let bias = projection.bias.map(|bias| self.parameter(bias));
        let y = match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::forward_add(x, weight, bias, residual, self.precision)?,
            None => linear::forward_add(x, self.weight(projection), bias, residual, self.precision)?,
        };
        self.adapter(projection).map_or(Ok(()), |pair| pair.forward_add(x, &y))?;
        Ok(y)
    }

    /// `residual + norm(dropout(projection(x)))`, (N, D).
    pub(super) fn end(&self, x: &Tensor, end: &End, residual: &Tensor) -> Result<(Tensor, SavedEnd)> {
        if end.dropout.is_none() && end.norm.is_none() {
            return Ok((self.project_onto(x, end.projection, residual)?, None));
        }
        let y = self.project(x, end.projection)?;
        end.dropout.map_or(Ok(()), |dropout| dropout.apply(&y))?;
        let Some(norm) = end.norm else { return Ok(((y + residual)?, None)) };
        let (normed, statistics) = self.norm(&y, norm)?;
        Ok(((normed + residual)?, Some((y, statistics))))
    }

    /// The gradient of what an [`End`] projected, `x`, given that of its sum.
    pub(super) fn end_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        end: &End,
        saved: &SavedEnd,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        if end.dropout.is_none() && end.norm.is_none() {
            return self.projection_backward(dy, x, end.projection, gradients);
        }
        let branch = match (end.norm, saved) {
            (Some(norm), Some((raw, statistics))) => {
                let draw = raw.zeros_like()?;
                self.norm_backward(dy, (raw, statistics), norm, (&draw, false), gradients)?;
                draw
            }
            // The gradient of the residual stream goes on as it is; that of the branch loses what was dropped.
            _ => dy.copy()?,
        };
        end.dropout.map_or(Ok(()), |dropout| dropout.apply(&branch))?;
        self.projection_backward(&branch, x, end.projection, gradients)
    }

    fn parameter_gradients(
        &self,
        dy: &Tensor,
        x: &Tensor,
        projection: Projection,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let slot = gradients.slot(projection.weight);
        linear::backward_weight(dy, x, projection.input_first, slot, self.precision)?;
        projection.bias.map_or(Ok(()), |bias| linear::backward_bias(dy, gradients.slot(bias)))
    }

    pub(super) fn projection_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        projection: Projection,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        self.parameter_gradients(dy, x, projection, gradients)?;
        let dx = match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::backward_input(dy, weight, self.precision)?,
            None => linear::backward_input(dy, self.weight(projection), self.precision)?,
        };
        self.adapter(projection).map_or(Ok(()), |pair| pair.backward(dy, x, &dx, gradients))?;
        Ok(dx)
    }

    pub(super) fn projection_backward_add(
        &self,
        dy: &Tensor,
        x: &Tensor,
        projection: Projection,
        dx: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.parameter_gradients(dy, x, projection, gradients)?;
        match self.quantised.get(&projection.weight) {
            Some(weight) => quantised_linear::backward_input_add(dy, weight, dx, self.precision)?,
            None => linear::backward_input_add(dy, self.weight(projection), dx, self.precision)?,
        }
        self.adapter(projection).map_or(Ok(()), |pair| pair.backward(dy, x, dx, gradients))
    }
}

fn offset(kind: NormKind) -> f32 {
    match kind {
        NormKind::Rms { offset } => offset,
        NormKind::Layer => 0.0,
    }
}
