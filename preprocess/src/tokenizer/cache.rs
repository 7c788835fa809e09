//! Pieces of text and their ids: of natural text nine pieces in ten were seen before.

use tokenmill_shared::random::mix;

/// Bytes of the longest piece that is cached: English words, numbers, operators, eight Chinese characters.
const KEY_BYTES: usize = 24;
const SLOT_IDS: usize = 7;
const SLOTS: usize = 1 << 16;

/// A short piece, padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    words: [u64; KEY_BYTES / 8],
    bytes: u8,
    /// Tells apart pieces that the same bytes do not decide.
    kind: bool,
}

impl Key {
    /// The key of a piece; `None` if it is too long to be cached.
    #[inline]
    pub(super) fn of(piece: &[u8], kind: bool) -> Option<Self> {
        let mut padded = [0; KEY_BYTES];
        padded.get_mut(..piece.len())?.copy_from_slice(piece);
        let words =
            std::array::from_fn(|word| u64::from_le_bytes(padded[word * 8..][..8].try_into().expect("eight bytes")));
        Some(Self { words, bytes: piece.len() as u8, kind })
    }

    #[inline]
    fn slot(&self) -> usize {
        let start = u64::from(self.bytes) << 1 | u64::from(self.kind);
        let hash = self
            .words
            .iter()
            .fold(start, |hash, word| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        mix(hash) as usize % SLOTS
    }
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    count: u8,
    ids: [u32; SLOT_IDS],
}

/// Pieces and their ids, one a slot, the newer in place of the older: 4 MiB, whatever is encoded.
pub(super) struct Cache {
    slots: Box<[Slot]>,
}

impl Default for Cache {
    fn default() -> Self {
        // No piece has this length, so the slot is empty.
        let key = Key { words: [0; KEY_BYTES / 8], bytes: u8::MAX, kind: false };
        let empty = Slot { key, count: 0, ids: [0; SLOT_IDS] };
        Self { slots: vec![empty; SLOTS].into_boxed_slice() }
    }
}

impl Cache {
    /// The ids of a piece, if it is there.
    #[inline]
    pub(super) fn get(&self, key: &Key) -> Option<&[u32]> {
        let slot = &self.slots[key.slot()];
        (slot.key == *key).then(|| &slot.ids[..usize::from(slot.count)])
    }

    /// Remembers the ids of a piece, if they are few.
    pub(super) fn put(&mut self, key: Key, ids: &[u32]) {
        if ids.len() <= SLOT_IDS {
            let mut slot = Slot { key, count: ids.len() as u8, ids: [0; SLOT_IDS] };
            slot.ids[..ids.len()].copy_from_slice(ids);
            self.slots[key.slot()] = slot;
        }
    }
}
