//! Documents whole, unless longer than a block: each goes where it leaves the least room.
//!
//! Best fit over all documents of a corpus would need all of them at once and scatter neighbours. So it is done within
//! windows of [`WINDOW_TOKENS`], longest documents first, and blocks come in the order of their first document. Each
//! window adds about half a block of padding, a thousandth at 512 blocks of 8192. A document longer than a block
//! gives whole blocks and a rest, which is treated as a document.

use std::collections::BTreeMap;

use tokenmill_shared::Result;

use super::blocks::Blocks;
use super::{Packed, Rule};

/// Tokens that are packed together at least, unless that are fewer than 16 blocks: 16 MiB of ids.
const WINDOW_TOKENS: usize = 4 << 20;

/// Pieces that are packed together at most, so that documents of a few tokens cannot take more memory than ids.
const WINDOW_PIECES: usize = 1 << 18;

/// A document, or what remains of one, or a whole block of one.
#[derive(Debug, Clone, Copy)]
struct Piece {
    document: u64,
    tokens: usize,
    /// Where its ids begin in the window.
    begin: usize,
}

pub(super) struct BestFit {
    blocks: Blocks,
    window_bytes: usize,
    ids: Vec<u8>,
    pieces: Vec<Piece>,
}

impl BestFit {
    pub(super) fn new(blocks: Blocks) -> Self {
        let window_bytes = WINDOW_TOKENS.max(16 * blocks.block_size) * blocks.width.bytes();
        Self { blocks, window_bytes, ids: Vec::new(), pieces: Vec::new() }
    }

    fn pack_window(&mut self) -> Result<()> {
        let bytes = self.blocks.width.bytes();
        let mut block = Vec::with_capacity(self.blocks.block_bytes());
        let lengths: Vec<usize> = self.pieces.iter().map(|piece| piece.tokens).collect();
        for group in best_fit(&lengths, self.blocks.block_size) {
            block.clear();
            let mut documents = Vec::with_capacity(group.len());
            for piece in group.into_iter().map(|index| self.pieces[index]) {
                documents.push(((block.len() / bytes) as u32, piece.document));
                block.extend_from_slice(&self.ids[piece.begin..][..piece.tokens * bytes]);
            }
            self.blocks.push(&block, &documents)?;
        }
        self.ids.clear();
        self.pieces.clear();
        Ok(())
    }
}

impl Rule for BestFit {
    fn push(&mut self, document: u64, ids: &[u8]) -> Result<()> {
        for part in ids.chunks(self.blocks.block_bytes()) {
            let tokens = part.len() / self.blocks.width.bytes();
            self.pieces.push(Piece { document, tokens, begin: self.ids.len() });
            self.ids.extend_from_slice(part);
            if self.ids.len() >= self.window_bytes || self.pieces.len() >= WINDOW_PIECES {
                self.pack_window()?;
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.blocks.is_full()
    }

    fn finish(mut self: Box<Self>) -> Result<Packed> {
        self.pack_window()?;
        self.blocks.finish()
    }
}

/// Groups of pieces of these lengths, each of at most `block_size` in all: ascending within, and by their first piece.
fn best_fit(lengths: &[usize], block_size: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    longest_first.sort_by_key(|piece| std::cmp::Reverse(lengths[*piece]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // The groups that have so much room left.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for piece in longest_first {
        let length = lengths[piece];
        let (group, room) = match by_room.range_mut(length..).next() {
            Some((&room, of_room)) => {
                let group = of_room.pop().expect("no empty list is kept");
                if of_room.is_empty() {
                    by_room.remove(&room);
                }
                (group, room)
            }
            None => {
                groups.push(Vec::new());
                (groups.len() - 1, block_size)
            }
        };
        groups[group].push(piece);
        if room > length {
            by_room.entry(room - length).or_default().push(group);
        }
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_goes_where_it_leaves_the_least_room() {
        // 9 | 6 + 4 | 5 + 3 + 2: the 2 fits beside the 5 and 3 exactly, and beside nothing else.
        assert_eq!(best_fit(&[2, 9, 4, 5, 6, 3], 10), [vec![0, 3, 5], vec![1], vec![2, 4]]);
        assert_eq!(best_fit(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(best_fit(&[10, 10], 10), [[0], [1]]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn every_piece_is_in_one_group_that_it_fits(lengths in prop::collection::vec(1usize..=32, 0..200)) {
            let groups = best_fit(&lengths, 32);
            let mut seen: Vec<usize> = groups.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..lengths.len()));
            let full: Vec<usize> = groups.iter().map(|group| group.iter().map(|piece| lengths[*piece]).sum()).collect();
            prop_assert!(full.iter().all(|sum| (1..=32).contains(sum)));
            // No two groups could be one: best fit leaves at most one that is half empty.
            prop_assert!(full.iter().filter(|sum| **sum <= 16).count() <= 1);
            prop_assert!(groups.windows(2).all(|pair| pair[0][0] < pair[1][0]));
        }
    }
}
