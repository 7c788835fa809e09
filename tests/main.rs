//! The promises, a module each.
// Tests play the user and the enemy: they touch files without the storage door.
#![allow(clippy::disallowed_methods)]

mod adapters;
mod added_tokens;
mod bad_input;
mod cache;
mod choice;
mod damage;
mod dependencies;
mod document_mask;
mod exactness;
mod fault;
mod flags;
mod formats;
mod full_disk;
mod fuzz;
mod golden;
mod hub;
mod inputs;
mod io_errors;
mod jobs;
mod kills;
mod loading;
mod long_documents;
mod looking;
mod means;
mod memory;
mod mixing;
mod numerics;
mod old_checkpoints;
mod packing;
mod pages;
mod power_cut;
mod promises;
mod quantised;
mod resume;
mod reuse;
mod service;
mod settings;
mod strategies;
mod streaming;
mod taking;
mod tokenizer_extend;
mod two_way;
mod views;
mod vocabulary;
