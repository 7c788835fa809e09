//! Configuration: one struct per group of parameters, each field declared once with its Hugging Face
//! name, its default (in `Default`) and its help text; the command line overlays only what it gives.

mod data;
mod file;
mod generated;
mod grammar;
mod hub;
mod known;
mod packing;

pub use data::{
    DataArguments, Encoding, EncodingErrors, OnBadRecord, Remainder, SampleBy, ValidationSplitMode, ValidationText,
};
pub use generated::{completions, manual};
pub use grammar::{boolean, parse, with_arguments, with_grammar};
pub use hub::{HubArguments, Secret};
pub use known::{KNOWN, Known, Takes, Text, Verdict, known};
pub use packing::{Compat, Packing, PackingStrategy};
