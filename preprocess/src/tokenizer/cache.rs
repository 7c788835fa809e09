//! Pieces of text and their ids: of natural text nineteen bytes in twenty were seen before.
//!
//! Two tables of fixed size, so that memory does not grow with the text. Pieces of up to [`SHORT_BYTES`] with up to
//! [`SHORT_IDS`] ids lie in slots of half a cache line, key and ids together; the others in an arena.
//! Keys are compared whole: a hash alone decides nothing.

use tokenmill_shared::random::mix;

use super::huge::Huge;

/// Bytes of the longest piece whose key is one number: English words, five Chinese characters.
pub(super) const SHORT_BYTES: usize = 15;

/// Ids that fit into a slot.
pub(super) const SHORT_IDS: usize = 4;

/// In place of the number of ids: they are with the long pieces.
const MANY: u32 = u8::MAX as u32;

/// Ids are below this, so that the byte above them can hold how many there are.
pub(super) const ID_LIMIT: u32 = 1 << 24;

/// Buckets of two slots: 8 MiB. With a quarter of it Chinese text is a fifth slower, with four times it not faster.
const BUCKETS: usize = 1 << 17;

/// The key of a short piece: its bytes, and above them their number and kind; that of a long piece has only the kind, and
/// is never remembered.
pub(super) type Key = u128;

/// The lowest so many bytes.
const LOWEST: [Key; SHORT_BYTES + 1] = {
    let mut lowest = [0; SHORT_BYTES + 1];
    let mut bytes = 1;
    while bytes <= SHORT_BYTES {
        lowest[bytes] = (1 << (8 * bytes)) - 1;
        bytes += 1;
    }
    lowest
};

/// The key of `text[begin..end]`. `kind` tells apart pieces that the same bytes do not decide.
#[inline(always)]
pub(super) fn key(text: &[u8], begin: usize, end: usize, kind: bool) -> Key {
    let bytes = end - begin;
    if bytes > SHORT_BYTES {
        return u128::from(kind) << 127;
    }
    let low = match text.get(begin..begin + 16) {
        Some(whole) => {
            let whole = u128::from_le_bytes(whole.try_into().expect("sixteen bytes"));
            whole & LOWEST[bytes]
        }
        None => text[begin..end].iter().rev().fold(0, |low, byte| low << 8 | u128::from(*byte)),
    };
    low | (bytes as u128) << 120 | u128::from(kind) << 127
}

/// In place of the number of bytes: the key is that of an id, and is never remembered either.
const ID: Key = 0x40 << 120;

/// A key for an id that is known, so that it can stand among pieces.
pub(super) fn key_of_id(id: u32) -> Key {
    ID | Key::from(id)
}

/// The id of which this is the key.
#[inline(always)]
pub(super) fn id_of_key(key: Key) -> Option<u32> {
    (key & ID != 0).then_some(key as u32)
}

/// Whether this is the key of a long piece.
#[inline(always)]
pub(super) fn is_long(key: Key) -> bool {
    key << 1 == 0
}

/// The kind of the piece with this key.
#[inline(always)]
pub(super) fn kind(key: Key) -> bool {
    key >> 127 == 1
}

/// Whether this is the key of a short piece of ASCII only.
#[inline(always)]
pub(super) fn is_ascii(key: Key) -> bool {
    const HIGH: Key = 0x0080_8080_8080_8080_8080_8080_8080_8080;
    !is_long(key) && key & HIGH == 0
}

/// The key of the piece of the other kind `false`.
#[inline(always)]
pub(super) fn without_kind(key: Key) -> Key {
    key << 1 >> 1
}

/// A hash of a short piece's key.
#[inline(always)]
pub(super) fn hash_key(key: Key) -> u64 {
    // Folded multiplication (as wyhash): every bit of the key reaches every bit.
    let low = key as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let high = (key >> 64) as u64 ^ 0xbf58_476d_1ce4_e5b9;
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}

#[derive(Clone, Copy)]
#[repr(align(32))]
struct Slot {
    key: Key,
    /// The number of ids is in the highest byte of the first.
    ids: [u32; SHORT_IDS],
}

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Bucket([Slot; 2]);

/// Pieces and their ids.
pub(super) struct Cache {
    /// Empty slots are 0, which is the key of no short piece.
    buckets: Huge<Bucket>,
    long: Long,
}

impl Default for Cache {
    fn default() -> Self {
        Self { buckets: Huge::new(BUCKETS), long: Long::default() }
    }
}

impl Cache {
    /// Where a short piece lies.
    #[inline(always)]
    pub(super) fn bucket(key: Key) -> u32 {
        hash_key(key) as u32 % BUCKETS as u32
    }

    /// Begins to bring a bucket nearer.
    #[inline(always)]
    pub(super) fn prefetch(&self, bucket: u32) {
        self.buckets.prefetch(bucket as usize);
    }

    /// The ids of the short piece `key` in its bucket, of which only the first count, and their number.
    #[inline(always)]
    pub(super) fn get(&self, bucket: u32, key: Key) -> Option<([u32; SHORT_IDS], usize)> {
        let Bucket(slots) = &self.buckets[bucket as usize % BUCKETS];
        // Which of both it is cannot be predicted, so the slot is computed; that it is one of them can.
        let second = usize::from(slots[0].key != key);
        let slot = &slots[second];
        if slot.key != key {
            return None;
        }
        let mut ids = slot.ids;
        let count = ids[0] >> 24;
        // Nothing there, which the key of a long piece finds, or many.
        if !(1..=SHORT_IDS as u32).contains(&count) {
            return None;
        }
        ids[0] &= ID_LIMIT - 1;
        Some((ids, count as usize))
    }

    /// Whether the short piece `key` is known to have more ids than a slot holds.
    pub(super) fn has_many(&self, bucket: u32, key: Key) -> bool {
        self.buckets[bucket as usize % BUCKETS].0.iter().any(|slot| slot.key == key && slot.ids[0] >> 24 == MANY)
    }

    /// Remembers a short piece, or that it has many ids. The first piece of a bucket stays: what is common in a text
    /// comes early in it.
    pub(super) fn put(&mut self, bucket: u32, key: Key, ids: &[u32]) {
        let mut slot = Slot { key, ids: [0; SHORT_IDS] };
        match slot.ids.get_mut(..ids.len()) {
            Some(place) => {
                place.copy_from_slice(ids);
                slot.ids[0] |= (ids.len() as u32) << 24;
            }
            None => slot.ids[0] = MANY << 24,
        }
        let Bucket(slots) = &mut self.buckets[bucket as usize % BUCKETS];
        slots[usize::from(slots[0].key != 0 && slots[0].key != key)] = slot;
    }

    /// The ids of a piece of any length.
    pub(super) fn get_long(&self, piece: &[u8], kind: bool) -> Option<&[u32]> {
        self.long.get(piece, kind)
    }

    /// Remembers a piece of any length; the longest are not worth it.
    pub(super) fn put_long(&mut self, piece: &[u8], kind: bool, ids: &[u32]) {
        self.long.put(piece, kind, ids);
    }
}

/// Pieces beyond this do not come again.
const LONG_BYTES: usize = 512;

/// Entries of the table of long pieces, and bytes and ids in its arenas, at which it begins anew.
const LONG_ENTRIES: usize = 1 << 15;
const ARENA_BYTES: usize = 2 << 20;

#[derive(Clone, Copy, Default)]
struct Entry {
    hash: u64,
    key: (u32, u32),
    ids: (u32, u32),
}

struct Long {
    entries: Box<[Entry]>,
    keys: Vec<u8>,
    ids: Vec<u32>,
}

impl Default for Long {
    fn default() -> Self {
        Self { entries: vec![Entry::default(); LONG_ENTRIES].into_boxed_slice(), keys: Vec::new(), ids: Vec::new() }
    }
}

impl Long {
    fn get(&self, piece: &[u8], kind: bool) -> Option<&[u32]> {
        let hash = hash(piece, kind);
        let entry = &self.entries[slot(hash)];
        let known = entry.hash == hash && self.keys[range(entry.key)] == *piece;
        known.then(|| &self.ids[range(entry.ids)])
    }

    fn put(&mut self, piece: &[u8], kind: bool, ids: &[u32]) {
        if piece.len() > LONG_BYTES {
            return;
        }
        if self.keys.len() + piece.len() > ARENA_BYTES || self.ids.len() + ids.len() > ARENA_BYTES / 4 {
            self.entries.fill(Entry::default());
            self.keys.clear();
            self.ids.clear();
        }
        let hash = hash(piece, kind);
        let key = (self.keys.len() as u32, piece.len() as u32);
        let place = (self.ids.len() as u32, ids.len() as u32);
        self.keys.extend_from_slice(piece);
        self.ids.extend_from_slice(ids);
        self.entries[slot(hash)] = Entry { hash, key, ids: place };
    }
}

/// The lowest bits of a hash are not random.
fn slot(hash: u64) -> usize {
    (hash >> 8) as usize % LONG_ENTRIES
}

fn range((begin, length): (u32, u32)) -> std::ops::Range<usize> {
    begin as usize..begin as usize + length as usize
}

/// Never 0, the hash of an empty entry; says the kind, which is not compared otherwise.
fn hash(piece: &[u8], kind: bool) -> u64 {
    hash_bytes(piece) << 2 | u64::from(kind) << 1 | 1
}

/// A hash of bytes, of which all bits are good.
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let mut hash = bytes.len() as u64;
    for word in &mut words {
        hash = mix(hash ^ u64::from_le_bytes(word.try_into().expect("eight bytes")));
    }
    let rest = words.remainder().iter().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
    mix(hash ^ rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_pieces_apart_wherever_they_stand() {
        let text = b"abc abc\0abcabc and more of it to read past the end";
        let at = |begin, end| key(text, begin, end, false);
        assert_eq!(at(0, 3), at(4, 7));
        assert_eq!(at(0, 3), key(b"abc", 0, 3, false));
        assert_ne!(at(4, 7), at(4, 8));
        assert_ne!(at(0, 3), key(text, 0, 3, true));
        assert!(is_long(at(0, 16)) && is_long(key(text, 0, 16, true)) && !is_long(at(0, 15)));
        assert!(kind(key(text, 0, 16, true)) && !kind(at(0, 16)) && kind(key(text, 0, 2, true)) && !kind(at(0, 2)));
    }

    #[test]
    fn what_was_put_is_found_and_nothing_else() {
        let mut cache = Cache::default();
        let pieces: Vec<String> = (0..5000).map(|n| format!("{n}")).collect();
        let key_of = |piece: &str| key(piece.as_bytes(), 0, piece.len(), false);
        for (n, piece) in pieces.iter().enumerate() {
            cache.put(Cache::bucket(key_of(piece)), key_of(piece), &vec![n as u32 + 1; n % 4 + 1]);
        }
        let found = pieces.iter().enumerate().filter(|(n, piece)| {
            let Some((ids, count)) = cache.get(Cache::bucket(key_of(piece)), key_of(piece)) else { return false };
            assert_eq!(ids[..count], vec![*n as u32 + 1; n % 4 + 1]);
            true
        });
        assert!(found.count() > 4900);
        assert!(cache.get(Cache::bucket(key_of("none")), key_of("none")).is_none());
        assert!(cache.get(Cache::bucket(key(b"7", 0, 1, true)), key(b"7", 0, 1, true)).is_none());
    }

    #[test]
    fn long_pieces_begin_anew_when_the_arena_is_full() {
        let mut cache = Cache::default();
        let piece = |n: u32| format!("{n}").repeat(80);
        for n in 0..30_000 {
            cache.put_long(piece(n).as_bytes(), n % 2 == 0, &[n, n + 1]);
            assert_eq!(cache.get_long(piece(n).as_bytes(), n % 2 == 0), Some(&[n, n + 1][..]));
            assert_eq!(cache.get_long(piece(n).as_bytes(), n % 2 == 1), None);
        }
        assert!(cache.long.keys.capacity() <= 2 * ARENA_BYTES);
    }
}
