//! Configuration: one struct per group of parameters, each field declared once with its Hugging Face
//! name, its default (in `Default`) and its help text; the command line overlays only what it gives.

mod data;
mod grammar;
mod refused;

pub use data::{DataArguments, Remainder, SampleBy, ValidationSplitMode};
pub use grammar::{parse, with_grammar};
pub use refused::{REFUSED, refusal};
