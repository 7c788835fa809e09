//! Continues the pretraining of a Hugging Face causal language model.

pub mod gradients;
pub mod model;
pub mod ops;
