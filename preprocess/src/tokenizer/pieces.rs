//! From pieces of text to ids: a batch of pieces is collected, then looked up, so that one piece's way through memory
//! overlaps the next one's.

use super::bpe::Scratch;
use super::cache::{Cache, Key, SHORT_IDS};

/// Pieces of a batch: enough to overlap, few enough that keys and slots stay in the first-level cache.
const BATCH: usize = 64;

#[derive(Clone, Copy)]
struct Piece {
    /// 0 if it is long.
    key: Key,
    bucket: u32,
    kind: bool,
    begin: usize,
    end: usize,
}

/// What a thread needs to encode, kept from text to text: at most some 16 MiB.
#[derive(Default)]
pub struct Working {
    cache: Cache,
    batch: Vec<Piece>,
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
    pub(super) fn push(
        &mut self,
        text: &[u8],
        (begin, end): (usize, usize),
        (key, kind): (Key, bool),
        ids: &mut Vec<u32>,
        miss: &impl Miss,
    ) {
        self.batch.push(Piece { key, bucket: Cache::bucket(key), kind, begin, end });
        if self.batch.len() == BATCH {
            self.flush(text, ids, miss);
        }
    }

    /// Appends the ids of the pieces of `text` that were added.
    pub(super) fn flush(&mut self, text: &[u8], ids: &mut Vec<u32>, miss: &impl Miss) {
        // Reads that wait for nothing, so that many are under way at once: those below each come with a decision.
        std::hint::black_box(self.batch.iter().fold(0, |all, piece| all ^ self.cache.touch(piece.bucket)));
        let mut at = ids.len();
        ids.resize(at + self.batch.len() * SHORT_IDS, 0);
        for number in 0..self.batch.len() {
            let piece = self.batch[number];
            if let Some((found, count)) = self.cache.get(piece.bucket, piece.key) {
                // Always the whole slot, of which the next piece overwrites what does not count.
                ids[at..at + SHORT_IDS].copy_from_slice(&found);
                at += count;
            } else {
                ids.truncate(at);
                self.slow(text, piece, ids, miss);
                at = ids.len();
                ids.resize(at + (self.batch.len() - number) * SHORT_IDS, 0);
            }
        }
        ids.truncate(at);
        self.batch.clear();
    }

    #[cold]
    fn slow(&mut self, text: &[u8], piece: Piece, ids: &mut Vec<u32>, miss: &impl Miss) {
        let bytes = &text[piece.begin..piece.end];
        if let Some(known) = self.cache.get_long(bytes, piece.kind) {
            ids.extend_from_slice(known);
            return;
        }
        self.symbols.clear();
        miss.encode(bytes, piece.kind, &mut self.symbols, &mut self.scratch);
        ids.extend_from_slice(&self.symbols);
        if piece.key == 0 || self.symbols.len() > SHORT_IDS {
            self.cache.put_long(bytes, piece.kind, &self.symbols);
        } else {
            self.cache.put(piece.bucket, piece.key, &self.symbols);
        }
    }
}
