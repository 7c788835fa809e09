//! Which documents a block is made of, for messages about it.

use std::fmt::Write;

use tokenmill_shared::Result;
use tokenmill_shared::dataset::SplitReader;

/// `documents 4 to 7, 19` for these blocks: counted from 1 in the order in which they were read.
pub(super) fn of_blocks(reader: &SplitReader, blocks: &[u64]) -> Result<String> {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable();
    let mut text = String::from("documents ");
    let (mut begun, mut next) = (0, 0);
    for (at, block) in sorted.into_iter().enumerate() {
        for earlier in next..block {
            begun += reader.document_starts(earlier)?.len() as u64;
        }
        next = block;
        let starts = reader.document_starts(block)?;
        // A block that does not begin with a document goes on with the one before.
        let first = begun + u64::from(starts.first() == Some(&0));
        let last = begun + starts.len() as u64;
        let _ = match (at > 0, first == last) {
            (false, true) => write!(text, "{first}"),
            (false, false) => write!(text, "{first} to {last}"),
            (true, true) => write!(text, ", {first}"),
            (true, false) => write!(text, ", {first} to {last}"),
        };
    }
    Ok(text)
}
