//! The token ledger: every token read is in a block, in the remainder, or rejected for a named reason.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The account of one split, in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Tokens that reached packing.
    pub read: u64,
    /// Tokens in blocks (padding is not a token).
    pub in_blocks: u64,
    /// Tokens at the end of the split that filled no block.
    pub remainder: u64,
    /// Tokens left out, by reason, such as `max_train_samples`.
    pub rejected: BTreeMap<String, u64>,
}

impl Ledger {
    /// Whether `read = in_blocks + remainder + rejected`, without overflow.
    pub fn balances(&self) -> bool {
        let spent = self.rejected.values().try_fold(self.in_blocks.checked_add(self.remainder), |sum, count| {
            Some(sum.and_then(|sum| sum.checked_add(*count)))
        });
        spent.flatten() == Some(self.read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_token_shows() {
        let rejected = BTreeMap::from([("max_train_samples".to_owned(), 5)]);
        let ledger = Ledger { read: 18, in_blocks: 10, remainder: 3, rejected };
        assert!(ledger.balances());
        assert!(!Ledger { read: 19, ..ledger.clone() }.balances());
        assert!(!Ledger { remainder: u64::MAX, ..ledger }.balances());
    }
}
