//! What a reader remembers of what it has checked: whole batches for those who read on, checksums for those who do not.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ShardName;

/// The checksums of a record batch's pieces, made of bytes that matched the batch's own.
#[derive(Debug)]
pub(super) struct Pieces {
    blocks: usize,
    crc32c: Box<[u32]>,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it lies in the batch's ids.
    pub bytes: Range<usize>,
    /// CRC32C of them.
    pub crc32c: u32,
}

/// A page: less costs as much to read.
const LEAST_BYTES: usize = 4 << 10;

/// Checksums of a split, at most: 64 MiB, which are pieces of a page up to 64 GiB of ids, of two up to 128 GiB.
const MOST: u64 = 1 << 24;

impl Pieces {
    /// How many blocks of `block_bytes` a piece has, in a split of `blocks`.
    pub(super) fn blocks(blocks: u64, block_bytes: u64) -> usize {
        let page = LEAST_BYTES.div_ceil(usize::try_from(block_bytes).unwrap_or(usize::MAX).max(1));
        page.max(usize::try_from(blocks.div_ceil(MOST)).unwrap_or(usize::MAX))
    }

    /// Those of `ids`, which were checked: `blocks` blocks of `block_bytes` in each but perhaps the last.
    pub(super) fn new(ids: &[u8], blocks: usize, block_bytes: usize) -> Self {
        let pieces = ids.chunks(blocks.saturating_mul(block_bytes).max(1));
        Self { blocks, crc32c: pieces.map(crc32c::crc32c).collect() }
    }

    /// The piece in which the block of `row` lies, of `rows`.
    pub(super) fn of(&self, row: usize, rows: usize, block_bytes: usize) -> Piece {
        let number = row / self.blocks;
        let first = number * self.blocks;
        let bytes = first * block_bytes..rows.min(first + self.blocks) * block_bytes;
        Piece { bytes, crc32c: self.crc32c[number] }
    }
}

/// The record batches read last, checked: neighbouring blocks cost one read. A thread takes a batch out
/// while it uses it, so that no thread waits for another's read.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    batches: Vec<(ShardName, usize, Vec<u8>)>,
    /// What whoever reads in order asks for next, the latest last.
    next: Vec<u64>,
}

impl Recent {
    /// 2 MiB a split, whatever its size.
    const BATCHES: usize = 8;

    /// Readers that are known to read in order.
    const READERS: usize = 16;

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether block `index` follows one that was read lately: then the ones after it will be asked for as well.
    pub(super) fn follows(&self, index: u64) -> bool {
        let next = &mut self.held().next;
        let place = next.iter().position(|next| *next == index);
        match place {
            Some(place) => drop(next.remove(place)),
            None if next.len() >= Self::READERS => drop(next.remove(0)),
            None => {}
        }
        next.push(index + 1);
        place.is_some()
    }

    /// The bytes of a record batch, if they are here.
    pub(super) fn take(&self, shard: ShardName, batch: usize) -> Option<Vec<u8>> {
        let held = &mut self.held().batches;
        let place = held.iter().position(|(name, number, _)| (*name, *number) == (shard, batch))?;
        Some(held.remove(place).2)
    }

    /// A buffer to read one into: that of the one that was used longest ago, if there are as many as there may be.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let held = &mut self.held().batches;
        if held.len() >= Self::BATCHES { held.remove(0).2 } else { Vec::new() }
    }

    /// Keeps them for the next one.
    pub(super) fn put(&self, shard: ShardName, batch: usize, message: Vec<u8>) {
        let held = &mut self.held().batches;
        if held.len() < Self::BATCHES {
            held.push((shard, batch, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_pages_and_no_more_than_the_memory_they_may_have() {
        assert_eq!(Pieces::blocks(1 << 30, 2048), 64);
        assert_eq!(Pieces::blocks(1000, 2048), 2);
        assert_eq!(Pieces::blocks(1000, 32), 128);
        assert_eq!(Pieces::blocks(1, 1 << 20), 1);
        let ids: Vec<u8> = (0..70).collect();
        let pieces = Pieces::new(&ids, 3, 10);
        for (row, bytes) in [(0, 0..30), (2, 0..30), (3, 30..60), (6, 60..70)] {
            assert_eq!(pieces.of(row, 7, 10), Piece { crc32c: crc32c::crc32c(&ids[bytes.clone()]), bytes });
        }
    }

    #[test]
    fn readers_in_order_are_told_from_others() {
        let recent = Recent::default();
        assert!(!recent.follows(5));
        assert!(recent.follows(6) && recent.follows(7) && !recent.follows(6));
        for reader in 0..Recent::READERS as u64 {
            recent.follows(1000 * (reader + 1));
        }
        assert!(!recent.follows(8), "it was pushed out");
        assert!(recent.follows(16_001));
    }
}
