//! Byte-pair merging: of all adjacent pairs the one of lowest rank is merged, the leftmost among equals, until none is
//! left (Sennrich et al. 2016, in the order of the `tokenizers` crate).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::huge::Huge;
use super::together::{self, SHORT, Short};
use super::windows::Vectors;

/// No rank, no id.
pub(super) const NONE: u32 = u32::MAX;

/// Merges below this leave a rank room for the place of its pair among [`SHORT`].
const LIMIT: usize = 1 << (32 - SHORT.trailing_zeros());

/// Bits of the filter: 256 KiB stay in the second-level cache. Three pairs in four that are looked up have no merge, and
/// with 280,000 merges the filter lets one of eight of these through.
const FILTER_BITS: u32 = 21;

/// What becomes of a pair.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merge {
    pair: u64,
    rank: u32,
    id: u32,
}

/// The merges of a vocabulary: an open-addressed table, at most two thirds full, and before it a filter.
#[derive(Debug)]
pub(super) struct Merges {
    /// The last entry, which is always empty, is that of pairs the filter tells.
    table: Huge<Merge>,
    filter: Huge<u64>,
    /// Of a hash to the place in the table.
    shift: u32,
}

/// Rank and id of each pair of bytes.
#[derive(Debug)]
pub(super) struct BytePairs(Huge<[u32; 2]>);

impl BytePairs {
    /// Rank and id of a pair.
    #[inline(always)]
    pub(super) fn get(&self, left: u8, right: u8) -> (u32, u32) {
        let [rank, id] = self.0[usize::from(left) << 8 | usize::from(right)];
        (rank, id)
    }
}

impl Merges {
    /// `merges` by rank: left id, right id, id of both together. Of a pair that comes twice the later counts. `None` if
    /// there are more than any vocabulary has.
    pub(super) fn new(merges: &[(u32, u32, u32)]) -> Option<Self> {
        if merges.len() >= LIMIT {
            return None;
        }
        let size = (merges.len() + merges.len() / 2).next_power_of_two().max(2);
        let empty = Merge { pair: u64::MAX, rank: NONE, id: NONE };
        let mut all = Self {
            table: Huge::new(size + 1),
            filter: Huge::new(1 << (FILTER_BITS - 6)),
            shift: 64 - size.trailing_zeros(),
        };
        all.table.fill(empty);
        for (rank, (left, right, id)) in merges.iter().enumerate() {
            let (pair, hash) = key(*left, *right);
            let mut at = (hash >> all.shift) as usize;
            while all.table[at].pair != u64::MAX && all.table[at].pair != pair {
                at = (at + 1) % size;
            }
            all.table[at] = Merge { pair, rank: rank as u32, id: *id };
            let bit = (hash >> (64 - FILTER_BITS)) as usize;
            all.filter[bit / 64] |= 1 << (bit % 64);
        }
        Some(all)
    }

    /// Rank and id of a pair; rank [`NONE`] if it is never merged.
    #[inline(always)]
    pub(super) fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let (pair, entry) = self.find(left, right);
        self.answer(pair, entry)
    }

    /// A pair and where it may be in the table, which is brought nearer.
    #[inline(always)]
    pub(super) fn ask(&self, left: u32, right: u32) -> (u64, usize) {
        let (pair, entry) = self.find(left, right);
        self.table.prefetch(entry);
        (pair, entry)
    }

    #[inline(always)]
    fn find(&self, left: u32, right: u32) -> (u64, usize) {
        let (pair, hash) = key(left, right);
        let bit = (hash >> (64 - FILTER_BITS)) as usize;
        let is_there = self.filter[bit / 64] >> (bit % 64) & 1 == 1;
        (pair, if is_there { (hash >> self.shift) as usize } else { self.table.len() - 1 })
    }

    /// Rank and id of a pair that is in the table from here on, if it is.
    #[inline(always)]
    pub(super) fn answer(&self, pair: u64, mut entry: usize) -> (u32, u32) {
        loop {
            let merge = &self.table[entry];
            if merge.pair == pair || merge.pair == u64::MAX {
                return (merge.rank, merge.id);
            }
            entry = (entry + 1) & (self.table.len() - 2);
        }
    }

    /// The merges of bytes, whose ids are given.
    pub(super) fn byte_pairs(&self, bytes: &[u32; 256]) -> BytePairs {
        let mut pairs = Huge::new(256 * 256);
        let all = bytes.iter().flat_map(|left| bytes.iter().map(|right| self.get(*left, *right)));
        pairs.iter_mut().zip(all).for_each(|(pair, (rank, id))| *pair = [rank, id]);
        BytePairs(pairs)
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
            2..=SHORT => {
                let mut piece = Short::default();
                piece.begin_symbols(symbols, self);
                together::merge(Vectors::Portable, std::slice::from_mut(&mut piece), self);
                symbols.clear();
                symbols.extend(piece.symbols());
            }
            _ => self.apply_long(symbols, scratch),
        }
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

/// A pair as one number, and its hash, of which the highest bits count.
#[inline(always)]
fn key(left: u32, right: u32) -> (u64, u64) {
    let pair = u64::from(left) << 32 | u64::from(right);
    (pair, pair.wrapping_mul(0x9e37_79b9_7f4a_7c15))
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
        fn all_ways_are_the_definition(
            pairs in prop::collection::vec((0u32..14, 0u32..14), 0..30),
            symbols in prop::collection::vec(0u32..4, 0..400),
            part in 1..=SHORT,
        ) {
            let merges: Vec<_> = pairs.iter().enumerate().map(|(rank, pair)| (pair.0, pair.1, 4 + rank as u32 % 10)).collect();
            let table = Merges::new(&merges).unwrap();
            let mut scratch = Scratch::default();
            let parts: Vec<&[u32]> = symbols.chunks(part).collect();
            let expected: Vec<Vec<u32>> = parts.iter().map(|part| {
                let mut symbols = part.to_vec();
                by_definition(&merges, &mut symbols);
                symbols
            }).collect();
            for (part, expected) in parts.iter().zip(&expected) {
                let (mut any, mut long) = (part.to_vec(), part.to_vec());
                table.apply(&mut any, &mut scratch);
                table.apply_long(&mut long, &mut scratch);
                prop_assert_eq!(&any, expected);
                prop_assert_eq!(&long, expected);
            }
            for vectors in Vectors::all() {
                // What was there before does not matter.
                let mut together = vec![Short::default(); parts.len()];
                together.iter_mut().for_each(|piece| piece.begin_symbols(&[0, 1, 2, 3].repeat(SHORT / 4), &table));
                for (piece, part) in together.iter_mut().zip(&parts) {
                    piece.begin_symbols(part, &table);
                }
                together::merge(vectors, &mut together, &table);
                let found: Vec<Vec<u32>> = together.iter().map(|piece| piece.symbols().collect()).collect();
                prop_assert_eq!(&found, &expected, "{:?}", vectors);
            }
        }
    }
}
