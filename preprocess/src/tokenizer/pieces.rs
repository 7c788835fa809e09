//! From pieces of text to ids: a batch of pieces is collected, then looked up, so that one piece's way through memory
//! overlaps the next one's.

use super::bpe::Scratch;
use super::cache::{self, Cache, Key, SHORT_IDS};

/// Pieces of a batch: enough to overlap, few enough that keys and slots stay in the first-level cache.
const BATCH: usize = 64;

/// Pieces of a text.
struct Batch {
    keys: [Key; BATCH],
    buckets: [u32; BATCH],
    spans: [(usize, usize); BATCH],
    count: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { keys: [0; BATCH], buckets: [0; BATCH], spans: [(0, 0); BATCH], count: 0 }
    }
}

/// What a thread needs to encode, kept from text to text: at most some 16 MiB.
#[derive(Default)]
pub struct Working {
    cache: Cache,
    batch: Batch,
    scratch: Scratch,
    symbols: Vec<u32>,
    /// A first piece with what a normalizer puts before it.
    pub(super) first: Vec<u8>,
}

/// How ids of a piece are found that is not in the cache: the piece, its kind, where they go.
pub(super) trait Miss {
    fn encode(&self, piece: &[u8], kind: bool, symbols: &mut Vec<u32>, scratch: &mut Scratch);
}

impl Working {
    /// Adds the piece `text[begin..end]`, which is not empty; `key` is the one in the cache.
    #[inline(always)]
    pub(super) fn push(&mut self, text: &[u8], span: (usize, usize), key: Key, ids: &mut Vec<u32>, miss: &impl Miss) {
        let at = self.batch.count % BATCH;
        let bucket = Cache::bucket(key);
        self.cache.prefetch(bucket);
        self.batch.keys[at] = key;
        self.batch.buckets[at] = bucket;
        self.batch.spans[at] = span;
        self.batch.count = at + 1;
        if self.batch.count == BATCH {
            self.flush(text, ids, miss);
        }
    }

    /// Appends the ids of the pieces of `text` that were added.
    pub(super) fn flush(&mut self, text: &[u8], ids: &mut Vec<u32>, miss: &impl Miss) {
        let count = self.batch.count;
        let mut at = ids.len();
        ids.resize(at + count * SHORT_IDS, 0);
        for number in 0..count {
            let (bucket, key) = (self.batch.buckets[number], self.batch.keys[number]);
            if let Some((found, found_count)) = self.cache.get(bucket, key) {
                // Always the whole slot, of which the next piece overwrites what does not count.
                ids[at..at + SHORT_IDS].copy_from_slice(&found);
                at += found_count;
            } else {
                ids.truncate(at);
                self.slow(text, number, ids, miss);
                at = ids.len();
                ids.resize(at + (count - number) * SHORT_IDS, 0);
            }
        }
        ids.truncate(at);
        self.batch.count = 0;
    }

    #[cold]
    fn slow(&mut self, text: &[u8], number: usize, ids: &mut Vec<u32>, miss: &impl Miss) {
        let (bucket, key, (begin, end)) =
            (self.batch.buckets[number], self.batch.keys[number], self.batch.spans[number]);
        let (bytes, kind) = (&text[begin..end], cache::kind(key));
        let is_long = cache::is_long(key);
        if (is_long || self.cache.has_many(bucket, key))
            && let Some(known) = self.cache.get_long(bytes, kind)
        {
            ids.extend_from_slice(known);
            return;
        }
        self.symbols.clear();
        miss.encode(bytes, kind, &mut self.symbols, &mut self.scratch);
        ids.extend_from_slice(&self.symbols);
        if is_long || self.symbols.len() > SHORT_IDS {
            self.cache.put_long(bytes, kind, &self.symbols);
        }
        if !is_long {
            self.cache.put(bucket, key, &self.symbols);
        }
    }
}
