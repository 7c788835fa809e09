//! Several datasets as one, by weight: which block of which dataset comes at a position, as a pure function.
//!
//! Draw k of a dataset of weight w stands at (k + ½) / w, and draws come in the order in which they stand (the divisor
//! method of Sainte-Laguë). So of any number of blocks from the first on, each dataset has its share but for a few. Nothing
//! is remembered: finding a position takes time by the number of datasets only.
//! Before: weights, the blocks of each dataset, a seed. After: block numbers for a reader that has the datasets one after
//! the other.

use serde::{Deserialize, Serialize};

use crate::order::Permutation;

/// What a dataset is in a mixture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// What it is called. Its own order depends on it, and not on what it is mixed with.
    pub name: String,
    /// Its blocks, 1 or more.
    pub blocks: u64,
    /// Its part of what is drawn, beside the weights of the others; 1 or more.
    pub weight: u64,
}

/// Datasets that are mixed; empty if nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mixture(Vec<Share>);

impl Mixture {
    /// The mixture of these, of which none is empty or weightless. Where draws stand in the same place the first comes
    /// first.
    pub fn new(shares: Vec<Share>) -> Self {
        assert!(shares.iter().all(|share| share.blocks > 0 && share.weight > 0), "{shares:?}");
        Self(shares)
    }

    /// The datasets.
    pub fn shares(&self) -> &[Share] {
        &self.0
    }

    /// Whether nothing is mixed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Blocks of all of them.
    pub fn blocks(&self) -> u64 {
        self.0.iter().map(|share| share.blocks).sum()
    }

    /// The share of what is drawn that `share` is.
    pub fn proportion(&self, share: &Share) -> f64 {
        share.weight as f64 / self.weights() as f64
    }

    /// The block at `position`, counted from the beginning of the run, with the blocks of all datasets numbered one after
    /// the other. A dataset begins again when all of its blocks were drawn: each time in an order of its own, by `seed`,
    /// or without one in that of its source.
    pub fn block(&self, position: u64, seed: Option<u64>) -> u64 {
        let (index, draw) = self.draw(position);
        let Share { name, blocks, .. } = &self.0[index];
        let (pass, at) = (draw / blocks, draw % blocks);
        let block = seed.map_or(at, |seed| Permutation::new(*blocks, seed ^ of_name(name), pass).at(at));
        self.0[..index].iter().map(|share| share.blocks).sum::<u64>() + block
    }

    /// The dataset, by its index, and its own number of a block.
    pub fn locate(&self, block: u64) -> (usize, u64) {
        let mut before = 0;
        for (index, share) in self.0.iter().enumerate() {
            if block < before + share.blocks {
                return (index, block - before);
            }
            before += share.blocks;
        }
        panic!("block {block} of {before}");
    }

    fn weights(&self) -> u128 {
        self.0.iter().map(|share| u128::from(share.weight)).sum()
    }

    /// Which dataset is drawn from at `position`, and which of its draws that is.
    fn draw(&self, position: u64) -> (usize, u64) {
        let (weights, datasets) = (self.weights(), self.0.len() as u64);
        let found = self.0.iter().enumerate().find_map(|(index, share)| {
            // Each other dataset has had its part of what was drawn before, but for one: so many draws to look among.
            let near = (u128::from(position) * u128::from(share.weight) / weights) as u64;
            let (mut low, mut high) = (near.saturating_sub(datasets), near + datasets);
            while low < high {
                let middle = low + (high - low) / 2;
                if self.position(index, middle) < position { low = middle + 1 } else { high = middle }
            }
            (self.position(index, low) == position).then_some((index, low))
        });
        found.expect("the draws of all datasets fill the positions")
    }

    /// The position of a draw: how many come before it.
    fn position(&self, index: usize, draw: u64) -> u64 {
        let own = &self.0[index];
        // Draw k of weight w comes before this one if (2k + 1) / w is less, or equal and of an earlier dataset.
        let stands = |share: &Share| (2 * u128::from(draw) + 1) * u128::from(share.weight);
        let before = |(other, share): (usize, &Share)| {
            let limit = if other < index { stands(share) } else { stands(share) - 1 };
            ((limit / u128::from(own.weight)).div_ceil(2)) as u64
        };
        let others = self.0.iter().enumerate().filter(|(other, _)| *other != index);
        draw + others.map(before).sum::<u64>()
    }
}

/// A number for a name.
fn of_name(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    u64::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    fn mixture(shares: &[(u64, u64)]) -> Mixture {
        let share = |(index, (blocks, weight)): (usize, &(u64, u64))| Share {
            name: format!("set {index}"),
            blocks: *blocks,
            weight: *weight,
        };
        Mixture::new(shares.iter().enumerate().map(share).collect())
    }

    /// Mixtures of one to seven datasets with sizes and weights of many magnitudes, some of them equal.
    fn mixtures() -> impl Iterator<Item = Mixture> {
        (0..60).map(|seed| {
            let numbers = Stream::new(seed, Purpose::Order, 0);
            let share = |at: u64| {
                let (size, weight) = (numbers.uniform(2 * at), numbers.uniform(2 * at + 1));
                (1 + (size * 90.0) as u64, 1 + 10f64.powf(weight * (seed % 5) as f64) as u64)
            };
            mixture(&(0..1 + seed % 7).map(share).collect::<Vec<_>>())
        })
    }

    #[test]
    fn draws_come_in_the_order_in_which_they_stand() {
        for mixture in mixtures() {
            let mut expected: Vec<(f64, usize, u64)> = Vec::new();
            for (index, share) in mixture.shares().iter().enumerate() {
                expected.extend((0..600).map(|draw| ((draw as f64 + 0.5) / share.weight as f64, index, draw)));
            }
            // Below 2^53 and rounded once, quotients of equal value are equal.
            expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
            for (position, (_, index, draw)) in expected[..600].iter().enumerate() {
                assert_eq!(mixture.draw(position as u64), (*index, *draw), "{mixture:?} at {position}");
            }
        }
    }

    #[test]
    fn every_beginning_has_each_dataset_by_its_weight() {
        for mixture in mixtures() {
            let datasets = mixture.shares().len() as f64;
            let mut drawn = vec![0u64; mixture.shares().len()];
            for position in 0..3000 {
                let (index, draw) = mixture.draw(position);
                assert_eq!(draw, drawn[index]);
                drawn[index] += 1;
                for (share, drawn) in mixture.shares().iter().zip(&drawn) {
                    let due = (position + 1) as f64 * mixture.proportion(share);
                    assert!((*drawn as f64 - due).abs() < datasets.max(2.0) / 2.0, "{mixture:?} at {position}");
                }
            }
        }
    }

    /// Far into a run, at once.
    #[test]
    fn a_position_far_away_is_found_as_those_before_it() {
        for mixture in mixtures() {
            let far = 1 << 40;
            let mut draws: Vec<(usize, u64)> = (far..far + 100).map(|position| mixture.draw(position)).collect();
            for (position, (index, draw)) in (far..).zip(&draws) {
                assert_eq!(mixture.position(*index, *draw), position);
            }
            draws.sort_unstable();
            assert!(draws.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].1 + 1 == pair[1].1));
        }
    }

    #[test]
    fn a_dataset_is_gone_through_before_it_begins_again() {
        for mixture in mixtures() {
            for seed in [None, Some(7)] {
                let mut passes: Vec<Vec<u64>> = vec![Vec::new(); mixture.shares().len()];
                for position in 0..2000 {
                    let (index, block) = mixture.locate(mixture.block(position, seed));
                    passes[index].push(block);
                }
                for (share, drawn) in mixture.shares().iter().zip(&passes) {
                    let blocks = share.blocks as usize;
                    for pass in drawn.chunks_exact(blocks) {
                        let mut sorted = pass.to_vec();
                        sorted.sort_unstable();
                        assert!(sorted.into_iter().eq(0..share.blocks));
                        assert!(seed.is_some() || pass.is_sorted());
                    }
                    let two = drawn.chunks_exact(blocks).take(2).collect::<Vec<_>>();
                    assert!(blocks < 9 || two.len() < 2 || seed.is_none() || two[0] != two[1], "another order");
                }
            }
        }
    }

    /// Weights by size: an epoch of all blocks has each of them once.
    #[test]
    fn by_size_an_epoch_has_every_block_once() {
        let mixture = mixture(&[(31, 31), (7, 7), (200, 200)]);
        for epoch in 0..3 {
            let mut blocks: Vec<u64> =
                (0..238).map(|position| mixture.block(epoch * 238 + position, Some(1))).collect();
            blocks.sort_unstable();
            assert!(blocks.into_iter().eq(0..238));
        }
    }

    /// What else is mixed in moves the blocks of a dataset, but does not change their order.
    #[test]
    fn the_order_within_a_dataset_is_its_own() {
        let of_first = |mixture: &Mixture| -> Vec<u64> {
            let blocks = (0..500).map(|position| mixture.locate(mixture.block(position, Some(3))));
            blocks.filter(|(index, _)| *index == 0).map(|(_, block)| block).take(60).collect()
        };
        assert_eq!(of_first(&mixture(&[(50, 1), (9, 2)])), of_first(&mixture(&[(50, 5), (70, 1), (3, 1)])));
        // Two of one size take turns here, and each has its own order, which depends on the seed.
        let twins = mixture(&[(50, 1), (50, 1)]);
        let of = |index: u64, seed| -> Vec<u64> {
            (0..50).map(|draw| twins.locate(twins.block(2 * draw + index, Some(seed))).1).collect()
        };
        assert!(of(0, 3) != of(1, 3) && of(0, 3) != of(0, 4));
    }
}
