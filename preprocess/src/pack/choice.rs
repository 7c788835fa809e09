//! Which documents are packed, of those that are read: not those outside what is taken of a source, and with
//! `--deduplicate` not those whose tokens came before.
//!
//! Documents come in input order, so of several that are the same the first stays, whatever the workers. Same text is the same
//! tokens; other text is too where the tokenizer makes no difference. Half of a BLAKE3 of the ids is kept of each document
//! that stays: with what a hash table adds, some 40 bytes; two that are taken for the same by mistake are expected once in
//! 10^19 documents.

use std::collections::HashSet;

use crate::plan::Source;

/// Chooses documents, one after the other.
#[derive(Debug, Default)]
pub struct Choice {
    passed_over: u64,
    documents: u64,
    seen: u64,
    /// Of each document that stays; `None` to keep all.
    known: Option<HashSet<u128>>,
}

/// What becomes of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// It is not among those that are taken of its source.
    Outside,
    /// Its number among those that are taken, from 0.
    Kept(u64),
    /// The same, and one before it has the same tokens.
    Duplicate(u64),
}

impl Choice {
    /// Chooses among the documents of a job's sources.
    pub fn new(deduplicate: bool) -> Self {
        Self { known: deduplicate.then(HashSet::new), ..Self::default() }
    }

    /// Begins a source.
    pub fn begin_source(&mut self, source: &Source) {
        (self.passed_over, self.documents, self.seen) = (source.passed_over, source.documents, 0);
    }

    /// Chooses for the next document, with these ids.
    pub fn next(&mut self, ids: &[u8]) -> Chosen {
        self.seen += 1;
        let number = match (self.seen - 1).checked_sub(self.passed_over) {
            Some(number) if number < self.documents => number,
            _ => return Chosen::Outside,
        };
        let half = |hash: blake3::Hash| u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"));
        let is_new = self.known.as_mut().is_none_or(|known| known.insert(half(blake3::hash(ids))));
        if is_new { Chosen::Kept(number) } else { Chosen::Duplicate(number) }
    }
}
