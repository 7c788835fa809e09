//! Byte-pair merging: of all adjacent pairs the one of lowest rank is merged, the leftmost among equals, until none is
//! left (Sennrich et al. 2016, in the order of the `tokenizers` crate).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokenmill_shared::random::mix;

/// Symbols up to which looking at all pairs again beats a heap: 32 ranks are two cache lines.
const SHORT: usize = 32;

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

    /// What a few symbols become if it is one, and the highest rank on the way.
    pub(super) fn compose(&self, symbols: &[u32]) -> Option<(u32, u32)> {
        let (mut symbols, mut highest) = (symbols.to_vec(), 0);
        while symbols.len() > 1 {
            let pairs = symbols.windows(2).enumerate().map(|(at, pair)| (self.get(pair[0], pair[1]), at));
            let ((rank, id), at) = pairs.min_by_key(|((rank, _), at)| (*rank, *at))?;
            if rank == NONE {
                return None;
            }
            symbols[at] = id;
            symbols.remove(at + 1);
            highest = highest.max(rank);
        }
        Some((symbols[0], highest))
    }

    /// Merges `symbols` in place.
    pub(super) fn apply(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        match symbols.len() {
            0..=1 => {}
            2..=8 => self.apply_short::<8>(symbols),
            9..=16 => self.apply_short::<16>(symbols),
            17..=SHORT => self.apply_short::<SHORT>(symbols),
            _ => self.apply_long(symbols, scratch),
        }
    }

    /// Of at most `N` symbols: all ranks are looked at for every merge, which vectors do at once.
    fn apply_short<const N: usize>(&self, symbols: &mut Vec<u32>) {
        let mut count = symbols.len();
        let (mut all, mut ranks, mut ids) = ([NONE; N], [NONE; N], [NONE; N]);
        all[..count].copy_from_slice(symbols);
        for at in 1..count {
            (ranks[at - 1], ids[at - 1]) = self.get(all[at - 1], all[at]);
        }
        loop {
            let best = ranks.iter().copied().fold(NONE, u32::min);
            if best == NONE {
                break;
            }
            let at = ranks.iter().position(|rank| *rank == best).expect("it is one of them");
            all[at] = ids[at];
            count -= 1;
            for next in at + 1..N - 1 {
                (all[next], ranks[next], ids[next]) = (all[next + 1], ranks[next + 1], ids[next + 1]);
            }
            (ranks[at], ids[at]) = if at + 1 < count { self.get(all[at], all[at + 1]) } else { (NONE, NONE) };
            if at > 0 {
                (ranks[at - 1], ids[at - 1]) = self.get(all[at - 1], all[at]);
            }
        }
        symbols.clear();
        symbols.extend_from_slice(&all[..count]);
    }

    /// With a heap of candidates, of which those that no longer fit are passed over: n log n, also on one line of 12 MB.
    fn apply_long(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        let Scratch { heap, links } = scratch;
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
            table.apply(&mut short, &mut scratch);
            table.apply_long(&mut long, &mut scratch);
            prop_assert_eq!(&short, &expected);
            prop_assert_eq!(&long, &expected);
        }
    }
}
