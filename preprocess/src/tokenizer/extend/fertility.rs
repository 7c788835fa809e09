//! Fertility before and after, and how much of the old segmentation is left.

use serde::Serialize;
use tokenmill_shared::Result;

use super::corpus::Corpus;
use crate::tokenizer::Tokenizer;

/// A corpus in the old and the new tokenizer, without special tokens.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Documents that are not empty.
    pub documents: u64,
    /// Unicode scalar values.
    pub characters: u64,
    /// UTF-8 bytes.
    pub bytes: u64,
    /// Tokens of the old tokenizer.
    pub tokens_before: u64,
    /// Tokens of the new one.
    pub tokens_after: u64,
    /// Old tokens that the new tokenizer gives too, at the same place; the others are parts of new pieces.
    pub tokens_kept: u64,
    /// Documents whose ids changed.
    pub documents_changed: u64,
    /// Tokens per character, before and after.
    pub tokens_per_character: [f64; 2],
    /// Bytes per token, before and after.
    pub bytes_per_token: [f64; 2],
}

impl Comparison {
    /// The comparison for people.
    pub(super) fn lines(&self, name: &str) -> Vec<String> {
        let [before, after] = self.tokens_per_character;
        let [bytes_before, bytes_after] = self.bytes_per_token;
        let share = |part: u64, whole: u64| 100.0 * part as f64 / (whole as f64).max(1.0);
        vec![
            format!(
                "{name}: {before:.4} tokens per character before, {after:.4} after; {bytes_before:.3} bytes per token before, {bytes_after:.3} after"
            ),
            format!(
                "{name}: {:.3} % of the old tokens are now parts of new pieces; the ids of {} of {} documents ({:.3} %) changed",
                share(self.tokens_before - self.tokens_kept, self.tokens_before),
                self.documents_changed,
                self.documents,
                share(self.documents_changed, self.documents)
            ),
        ]
    }
}

/// Encodes every document with both. An old id in the new segmentation is an old token that was kept, since new merges
/// only join what the old ones left.
pub(super) fn compare(corpus: &Corpus, old: &Tokenizer, new: &Tokenizer, old_ids: u32) -> Result<Comparison> {
    let mut total = Comparison::default();
    let of_document = |text: &str| {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        old.encode(text, false, &mut before)?;
        new.encode(text, false, &mut after)?;
        let figures = [
            u64::from(!text.is_empty()),
            text.chars().count() as u64,
            text.len() as u64,
            before.len() as u64,
            after.len() as u64,
            after.iter().filter(|id| **id < old_ids).count() as u64,
            u64::from(before != after),
        ];
        Ok(figures)
    };
    corpus.for_each(of_document, |figures| {
        let totals = [
            &mut total.documents,
            &mut total.characters,
            &mut total.bytes,
            &mut total.tokens_before,
            &mut total.tokens_after,
            &mut total.tokens_kept,
            &mut total.documents_changed,
        ];
        totals.into_iter().zip(figures).for_each(|(total, figure)| *total += figure);
    })?;
    let ratio = |part: u64, whole: u64| part as f64 / (whole as f64).max(1.0);
    total.tokens_per_character =
        [total.tokens_before, total.tokens_after].map(|tokens| ratio(tokens, total.characters));
    total.bytes_per_token = [total.tokens_before, total.tokens_after].map(|tokens| ratio(total.bytes, tokens));
    Ok(total)
}
