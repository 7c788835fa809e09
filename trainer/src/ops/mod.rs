//! The operations training needs: each has an explicit forward and backward over candle tensors.
//!
//! candle's own fused operations drop gradients silently and its backward computes those of frozen weights,
//! allocates per edge and cannot recompute; so the model calls these and schedules the backward itself
//! ([`crate::model`]). Activations are `(rows, features)` in row-major order, rows being batch × time.
//! Every reduction that crosses rows is done in pieces of fixed size summed in index order: no bit of a
//! result depends on the number of threads.

pub mod activation;
pub mod adafactor;
pub mod adamw;
pub mod alibi;
pub mod attention;
pub mod blockwise;
pub mod cpu;
pub mod cross_entropy;
pub mod documents;
pub mod dropout;
pub mod embedding;
pub mod heads;
pub mod layer_norm;
pub mod linear;
pub mod lion;
mod llm_int8;
pub mod lora;
pub mod matmul;
pub mod normalize;
pub mod precision;
pub mod quantised;
pub mod quantised_linear;
pub mod rms_norm;
pub mod rope;
pub mod sgd;
mod simd;

#[cfg(test)]
mod tests;
