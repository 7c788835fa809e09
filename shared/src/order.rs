//! The training order as a pure function of (seed, epoch, index).
//!
//! [`Permutation`] is a keyed bijection on `0..len` evaluated per index: O(1) in memory and in seek, so
//! resuming at step N of any dataset costs nothing and every rank and worker sees one order.
//! Before: `data_seed`, the epoch, the number of blocks. After: block numbers for the reader.

use crate::random::mix;

/// Rounds of the Feistel network; 4 rounds of a pseudorandom function make a strong permutation
/// (Luby and Rackoff 1988), 6 leave room because ours are a fast mixer.
const ROUNDS: u64 = 6;

/// A pseudorandom permutation of `0..len`.
///
/// A balanced Feistel network over the smallest even number of bits that covers `len`, walked along its
/// cycle until it lands inside (at most 4 steps expected, since the domain is below `4 * len`).
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS as usize],
}

impl Permutation {
    /// The permutation of `len` indices for one epoch of one seed.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        let key = mix(mix(seed) ^ epoch);
        Self {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|round| mix(key ^ mix(round as u64 + 1))),
        }
    }

    /// Where index `index` goes. `index` must be below `len`.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "index {index} of a permutation of {}", self.len);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right ^ key) & mask));
            }
            value = (left << self.half_bits) | right;
            if value < self.len {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_comes_exactly_once() {
        for len in [1, 2, 3, 7, 64, 1000, 4097] {
            let order = Permutation::new(len, 42, 3);
            let mut seen: Vec<u64> = (0..len).map(|index| order.at(index)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..len), "len {len}");
        }
    }

    #[test]
    fn seeds_and_epochs_give_different_orders() {
        let order =
            |seed, epoch| (0..100).map(|index| Permutation::new(100, seed, epoch).at(index)).collect::<Vec<_>>();
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_eq!(order(1, 1), order(1, 1));
    }

    #[test]
    fn neighbours_are_spread_evenly() {
        // The mean distance of shuffled neighbours is len / 3; a poor mixer stays close to 1.
        let order = Permutation::new(10_000, 7, 0);
        let sum: u64 = (1..10_000).map(|index| order.at(index).abs_diff(order.at(index - 1))).sum();
        let mean = sum as f64 / 9_999.0;
        assert!((3_200.0..3_470.0).contains(&mean), "{mean}");
    }
}
