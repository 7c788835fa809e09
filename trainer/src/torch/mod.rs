//! Files of `torch.save`: a zip archive with one pickle and the bytes of its tensors.
//!
//! ```text
//! NAME/data.pkl     the value, pickle protocol 2; a tensor in it names its storage
//! NAME/data/0 …     the bytes of each storage
//! NAME/byteorder    little
//! NAME/version      3
//! ```
//! A pickle is a program. The one that reads it here runs nothing: it knows the few calls that make up tensors and
//! plain data, and refuses every other by name ([`unpickle()`]). What is written opens with `weights_only=True`.
//! Source: torch/serialization.py and torch/_weights_only_unpickler.py of PyTorch 2.

mod archive;
mod pickle;
mod unpickle;

#[cfg(test)]
mod tests;

pub use archive::{TorchFile, TorchWriter};
pub use pickle::{Dtype, TensorRef, Value, pickle};
pub use unpickle::unpickle;
