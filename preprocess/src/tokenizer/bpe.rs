//! Byte-pair merging: of all adjacent pairs the one of lowest rank is merged, the leftmost among equals, until none is
//! left (Sennrich et al. 2016, in the order of the `tokenizers` crate).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokenmill_shared::random::mix;

/// Symbols up to which looking at all pairs again beats a heap: 24 pairs are three cache lines.
const SHORT: usize = 24;

const NONE: u32 = u32::MAX;

/// What becomes of a pair.
#[derive(Debug, Clone, Copy)]
struct Merge {
    pair: u64,
    rank: u32,
    id: u32,
}

/// The merges of a vocabulary: an open-addressed table, at most half full.
#[derive(Debug)]
pub(super) struct Merges {
    table: Box<[Merge]>,
}

impl Merges {
    /// `merges` by rank: left id, right id, id of both together. Of a pair that comes twice the later counts.
    pub(super) fn new(merges: &[(u32, u32, u32)]) -> Self {
        let size = (2 * merges.len()).next_power_of_two().max(2);
        let empty = Merge { pair: u64::MAX, rank: NONE, id: NONE };
        let mut table = vec![empty; size].into_boxed_slice();
        for (rank, (left, right, id)) in merges.iter().enumerate() {
            let pair = key(*left, *right);
            let mut at = mix(pair) as usize % size;
            while table[at].pair != u64::MAX && table[at].pair != pair {
                at = (at + 1) % size;
            }
            table[at] = Merge { pair, rank: rank as u32, id: *id };
        }
        Self { table }
    }

    /// Rank and id of a pair; rank [`NONE`] if it is never merged.
    #[inline]
    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let (pair, mask) = (key(left, right), self.table.len() - 1);
        let mut at = mix(pair) as usize & mask;
        loop {
            let merge = &self.table[at];
            if merge.pair == pair || merge.pair == u64::MAX {
                return (merge.rank, merge.id);
            }
            at = (at + 1) & mask;
        }
    }

    /// Merges `symbols` in place.
    pub(super) fn apply(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        if symbols.len() <= SHORT { self.apply_short(symbols, scratch) } else { self.apply_long(symbols, scratch) }
    }

    fn apply_short(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        let pairs = &mut scratch.pairs;
        pairs.clear();
        pairs.extend(symbols.windows(2).map(|pair| self.get(pair[0], pair[1])));
        loop {
            let mut best = (NONE, 0);
            for (at, (rank, _)) in pairs.iter().enumerate() {
                if *rank < best.0 {
                    best = (*rank, at);
                }
            }
            let (rank, at) = best;
            if rank == NONE {
                return;
            }
            symbols[at] = pairs[at].1;
            symbols.remove(at + 1);
            pairs.remove(at);
            if at < pairs.len() {
                pairs[at] = self.get(symbols[at], symbols[at + 1]);
            }
            if at > 0 {
                pairs[at - 1] = self.get(symbols[at - 1], symbols[at]);
            }
        }
    }

    /// With a heap of candidates, of which those that no longer fit are passed over: n log n, also on one line of 12 MB.
    fn apply_long(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        let Scratch { heap, links, .. } = scratch;
        let count = symbols.len();
        heap.clear();
        links.clear();
        links.extend((0..count).map(|at| (at.wrapping_sub(1) as u32, at as u32 + 1)));
        let candidate = |symbols: &[u32], left: usize, right: usize| {
            let (rank, _) = self.get(symbols[left], symbols[right]);
            (rank != NONE).then_some(Reverse((rank, left as u32)))
        };
        heap.extend((1..count).filter_map(|right| candidate(symbols, right - 1, right)));
        while let Some(Reverse((rank, left))) = heap.pop() {
            let left = left as usize;
            let right = links[left].1 as usize;
            if symbols[left] == NONE || right >= count {
                continue;
            }
            let (now, id) = self.get(symbols[left], symbols[right]);
            if now != rank {
                continue;
            }
            symbols[left] = id;
            symbols[right] = NONE;
            let after = links[right].1 as usize;
            links[left].1 = after as u32;
            if after < count {
                links[after].0 = left as u32;
                heap.extend(candidate(symbols, left, after));
            }
            let before = links[left].0 as usize;
            if before < count {
                heap.extend(candidate(symbols, before, left));
            }
        }
        symbols.retain(|symbol| *symbol != NONE);
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Memory that merging reuses.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pairs: Vec<(u32, u32)>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    links: Vec<(u32, u32)>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word for word.
    fn by_definition(merges: &[(u32, u32, u32)], symbols: &mut Vec<u32>) {
        loop {
            let pairs = symbols.windows(2).enumerate().filter_map(|(at, pair)| {
                let rank = merges.iter().rposition(|merge| (merge.0, merge.1) == (pair[0], pair[1]))?;
                Some((rank, at))
            });
            let Some((rank, at)) = pairs.min() else { return };
            symbols[at] = merges[rank].2;
            symbols.remove(at + 1);
        }
    }

    proptest! {
        #[test]
        fn both_ways_are_the_definition(
            pairs in prop::collection::vec((0u32..14, 0u32..14), 0..30),
            symbols in prop::collection::vec(0u32..4, 0..60),
        ) {
            let merges: Vec<_> = pairs.iter().enumerate().map(|(rank, pair)| (pair.0, pair.1, 4 + rank as u32 % 10)).collect();
            let table = Merges::new(&merges);
            let mut scratch = Scratch::default();
            let mut expected = symbols.clone();
            by_definition(&merges, &mut expected);
            let (mut short, mut long) = (symbols.clone(), symbols);
            table.apply_short(&mut short, &mut scratch);
            table.apply_long(&mut long, &mut scratch);
            prop_assert_eq!(&short, &expected);
            prop_assert_eq!(&long, &expected);
        }
    }
}
