//! What `preprocess` and `trainer` must agree on: errors, the storage door, configuration, the dataset
//! format, the order of blocks, randomness, and what is said to the service.
//!
#![doc = include_str!("docs/design.md")]

pub mod config;
pub mod dataset;
pub mod error;
pub mod hub;
pub mod mixture;
pub mod order;
pub mod progress;
pub mod random;
pub mod service;
pub mod storage;

#[cfg(test)]
#[path = "../../tests/mutate.rs"]
mod mutate;
#[cfg(test)]
#[path = "../../tests/night.rs"]
mod night;

pub use error::{Error, Location, Result};
