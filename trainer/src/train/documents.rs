//! Which documents a block is made of, for messages about it.

use std::fmt::Write;

use tokenmill_shared::Result;
use tokenmill_shared::dataset::BlockReader;

use crate::data::documents_by;

/// The documents of these blocks, as first and last of each run of them: counted from 1 in the order in which they were
/// read, blocks in ascending order.
pub(super) fn of_blocks(reader: &dyn BlockReader, blocks: &[u64]) -> Result<Vec<(u64, u64)>> {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable();
    let (mut begun, mut next) = (0, 0);
    let mut found = Vec::with_capacity(blocks.len());
    for block in sorted {
        if let Some(documents) = reader.documents(block)? {
            found.extend(runs(&documents));
            continue;
        }
        for earlier in next..block {
            begun += reader.document_starts(earlier)?.len() as u64;
        }
        next = block;
        found.push(documents_by(begun, &reader.document_starts(block)?));
    }
    Ok(found)
}

/// The runs of consecutive numbers in ascending ones, counted from 1.
fn runs(documents: &[u64]) -> Vec<(u64, u64)> {
    documents.chunk_by(|a, b| a + 1 >= *b).map(|run| (run[0] + 1, run[run.len() - 1] + 1)).collect()
}

/// `documents 4 to 7, 19`.
pub(super) fn text(spans: &[(u64, u64)]) -> String {
    let mut text = String::from("documents ");
    for (at, (first, last)) in spans.iter().enumerate() {
        let _ = match (at > 0, first == last) {
            (false, true) => write!(text, "{first}"),
            (false, false) => write!(text, "{first} to {last}"),
            (true, true) => write!(text, ", {first}"),
            (true, false) => write!(text, ", {first} to {last}"),
        };
    }
    text
}
