//! Short pieces are merged several at a time: a merge waits for its table in memory two thirds of the time, and while
//! one piece waits the others go on.
#![allow(unsafe_code)] // vector instructions, where the processor has them

use super::bpe::{BytePairs, Merges, NONE};
use super::windows::Vectors;

/// Symbols up to which looking at all ranks again beats a heap: 32 ranks are two cache lines.
pub(super) const SHORT: usize = 32;

/// A piece of at most [`SHORT`] symbols, which stay in their places while they are merged.
#[derive(Clone, Copy)]
pub(super) struct Short {
    /// One more place, of [`NONE`], stands for what is not there.
    symbols: [u32; SHORT + 1],
    /// Of the pair that begins in a place: its rank, and in the lowest bits the place.
    ranks: [u32; SHORT + 1],
    /// What becomes of that pair.
    ids: [u32; SHORT + 1],
    /// A bit for each place that still has a symbol.
    places: u32,
    /// Pairs that the last merge made.
    asked: [Asked; 2],
}

/// A pair whose rank is on its way from memory.
#[derive(Clone, Copy, Default)]
struct Asked {
    pair: u64,
    entry: u32,
    place: u32,
}

impl Default for Short {
    fn default() -> Self {
        let none = [NONE; SHORT + 1];
        Self { symbols: none, ranks: none, ids: none, places: 0, asked: [Asked::default(); 2] }
    }
}

impl Short {
    /// Of the bytes of a piece, at most [`SHORT`] and at least one.
    pub(super) fn begin_bytes(&mut self, piece: &[u8], bytes: &[u32; 256], pairs: &BytePairs) {
        for (symbol, byte) in self.symbols.iter_mut().zip(piece) {
            *symbol = bytes[usize::from(*byte)];
        }
        self.begin(piece.len(), |at| pairs.get(piece[at], piece[at + 1]));
    }

    /// Of symbols, at most [`SHORT`] and at least one.
    pub(super) fn begin_symbols(&mut self, symbols: &[u32], merges: &Merges) {
        self.symbols[..symbols.len()].copy_from_slice(symbols);
        let mut asked = [(0, 0); SHORT - 1];
        for (asked, pair) in asked.iter_mut().zip(symbols.windows(2)) {
            *asked = merges.ask(pair[0], pair[1]);
        }
        self.begin(symbols.len(), |at| merges.answer(asked[at].0, asked[at].1));
    }

    /// `first` gives rank and id of each two neighbours.
    #[inline(always)]
    fn begin(&mut self, count: usize, first: impl Fn(usize) -> (u32, u32)) {
        self.places = ((1u64 << count) - 1) as u32;
        self.ranks[..SHORT].fill(NONE);
        for at in 0..count - 1 {
            let (rank, id) = first(at);
            (self.ranks[at], self.ids[at]) = (ranked(rank, at), id);
        }
        // Nothing is on its way: the last place takes what comes.
        self.asked = [Asked { pair: u64::MAX, entry: 0, place: SHORT as u32 }; 2];
    }

    /// Does one merge, and asks for the ranks that the next one needs; `false` if there was none to do.
    #[inline(always)]
    fn step(&mut self, merges: &Merges) -> bool {
        for Asked { pair, entry, place } in self.asked {
            let (rank, id) = merges.answer(pair, entry as usize);
            let place = place as usize % (SHORT + 1);
            (self.ranks[place], self.ids[place]) = (ranked(rank, place), id);
        }
        let best = self.ranks[..SHORT].iter().copied().fold(NONE, u32::min);
        if best == NONE {
            return false;
        }
        let at = best as usize % SHORT;
        let gone = self.after(at) % SHORT;
        self.symbols[at] = self.ids[at];
        self.places &= !(1 << gone);
        self.ranks[gone] = NONE;
        let (before, after) = (self.before(at), self.after(at));
        self.asked = [self.ask(merges, before, at), self.ask(merges, at, after)];
        true
    }

    #[inline(always)]
    fn ask(&self, merges: &Merges, left: usize, right: usize) -> Asked {
        let (pair, entry) = merges.ask(self.symbols[left], self.symbols[right]);
        Asked { pair, entry: entry as u32, place: left as u32 }
    }

    /// The next place with a symbol; [`SHORT`] if there is none.
    #[inline(always)]
    fn after(&self, at: usize) -> usize {
        (u64::from(self.places) & u64::MAX << (at + 1)).trailing_zeros().min(SHORT as u32) as usize
    }

    /// The place with a symbol before this one; [`SHORT`] if there is none.
    #[inline(always)]
    fn before(&self, at: usize) -> usize {
        let below = self.places & ((1 << at) - 1);
        below.checked_ilog2().map_or(SHORT, |at| at as usize)
    }

    /// The symbols that are left, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = u32> + '_ {
        let mut places = self.places;
        std::iter::from_fn(move || {
            let at = (places != 0).then(|| places.trailing_zeros() as usize)?;
            places &= places - 1;
            Some(self.symbols[at])
        })
    }
}

/// Does all merges of all `pieces`.
pub(super) fn merge(vectors: Vectors, pieces: &mut [Short], merges: &Merges) {
    match vectors {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vectors` says what was detected.
        Vectors::Avx512 => unsafe { x86::avx512(pieces, merges) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vectors` says what was detected.
        Vectors::Avx2 => unsafe { x86::avx2(pieces, merges) },
        Vectors::Portable => merge_all(pieces, merges),
    }
}

#[inline(always)]
fn merge_all(pieces: &mut [Short], merges: &Merges) {
    const EACH: usize = 16;
    for pieces in pieces.chunks_mut(EACH) {
        // The numbers of those that are not done come first.
        let mut numbers: [usize; EACH] = std::array::from_fn(|number| number);
        let mut count = pieces.len();
        while count > 0 {
            let mut at = 0;
            while at < count {
                if pieces[numbers[at]].step(merges) {
                    at += 1;
                } else {
                    count -= 1;
                    numbers.swap(at, count);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Merges, Short, merge_all};

    #[target_feature(enable = "avx512f,avx512bw,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn avx512(pieces: &mut [Short], merges: &Merges) {
        merge_all(pieces, merges);
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn avx2(pieces: &mut [Short], merges: &Merges) {
        merge_all(pieces, merges);
    }
}

#[inline(always)]
fn ranked(rank: u32, at: usize) -> u32 {
    if rank == NONE { NONE } else { (rank * SHORT as u32) | at as u32 }
}
