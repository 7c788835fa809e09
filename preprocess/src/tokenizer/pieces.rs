//! From pieces of text to ids: a batch of pieces is collected, then looked up, so that one piece's way through memory
//! overlaps the next one's. For the same reason pieces that the cache does not have wait for others of their kind: their
//! ids are found together, and the ids behind make room for them.

use super::bpe::{Merges, Scratch};
use super::cache::{self, Cache, Key, SHORT_IDS};
use super::together::{self, Short};
use super::windows::Vectors;

/// Pieces whose ids are found together, if one text brings so many.
const WAITING: usize = 16;

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

/// A piece that the cache does not have.
#[derive(Clone, Copy)]
struct Waiting {
    key: Key,
    bucket: u32,
    span: (usize, usize),
    /// Where its ids belong among those that are there.
    at: usize,
    /// Where its ids are among those that were found.
    found: (usize, usize),
    /// They were remembered as those of a long piece.
    is_known: bool,
}

/// What a thread needs to encode, kept from text to text: at most some 16 MiB.
#[derive(Default)]
pub struct Working {
    cache: Cache,
    batch: Batch,
    waiting: Vec<Waiting>,
    /// Pieces that are merged together, and whose they are.
    short: Vec<Short>,
    short_of: Vec<usize>,
    found: Vec<u32>,
    scratch: Scratch,
    symbols: Vec<u32>,
    /// A first piece with what a normalizer puts before it.
    pub(super) first: Vec<u8>,
}

/// How ids of pieces are found that are not in the cache.
pub(super) trait Model {
    /// Begins to bring nearer what `token` looks at.
    fn prefetch(&self, key: Key);

    /// The id of a piece that is a token as a whole and needs no merging.
    fn token(&self, key: Key, piece: &[u8]) -> Option<u32>;

    /// Begins a piece that is short enough in `short`; otherwise appends its symbols.
    fn begin(&self, piece: &[u8], symbols: &mut Vec<u32>, short: &mut Short) -> bool;

    fn merges(&self) -> &Merges;
}

impl Working {
    /// Adds the piece `text[begin..end]`, which is not empty; `key` is the one in the cache.
    #[inline(always)]
    pub(super) fn push(&mut self, text: &[u8], span: (usize, usize), key: Key, ids: &mut Vec<u32>, model: &impl Model) {
        let at = self.batch.count % BATCH;
        let bucket = Cache::bucket(key);
        self.cache.prefetch(bucket);
        self.batch.keys[at] = key;
        self.batch.buckets[at] = bucket;
        self.batch.spans[at] = span;
        self.batch.count = at + 1;
        if self.batch.count == BATCH {
            self.look_up(text, ids, model);
        }
    }

    /// Adds an id that is known, of an added token.
    pub(super) fn push_token(&mut self, text: &[u8], id: u32, ids: &mut Vec<u32>, model: &impl Model) {
        self.push(text, (0, 0), cache::key_of_id(id), ids, model);
    }

    /// Appends the ids of the pieces of `text` that were added.
    pub(super) fn flush(&mut self, text: &[u8], ids: &mut Vec<u32>, model: &impl Model) {
        self.look_up(text, ids, model);
        if !self.waiting.is_empty() {
            self.find(text, ids, model);
        }
    }

    /// Appends the ids of the pieces of the batch that the cache has; the others wait.
    fn look_up(&mut self, text: &[u8], ids: &mut Vec<u32>, model: &impl Model) {
        let count = self.batch.count;
        let mut at = ids.len();
        ids.resize(at + count * SHORT_IDS, 0);
        for number in 0..count {
            let (bucket, key) = (self.batch.buckets[number], self.batch.keys[number]);
            if let Some((found, found_count)) = self.cache.get(bucket, key) {
                // Always the whole slot, of which the next piece overwrites what does not count.
                ids[at..at + SHORT_IDS].copy_from_slice(&found);
                at += found_count;
            } else if let Some(id) = cache::id_of_key(key) {
                ids[at] = id;
                at += 1;
            } else {
                self.wait(number, at, model);
                if self.waiting.len() == WAITING {
                    ids.truncate(at);
                    self.find(text, ids, model);
                    at = ids.len();
                    ids.resize(at + (count - number) * SHORT_IDS, 0);
                }
            }
        }
        ids.truncate(at);
        self.batch.count = 0;
    }

    /// Puts off a piece of the batch, whose ids belong at `at`.
    #[cold]
    fn wait(&mut self, number: usize, at: usize, model: &impl Model) {
        let (bucket, key, span) = (self.batch.buckets[number], self.batch.keys[number], self.batch.spans[number]);
        model.prefetch(key);
        self.waiting.push(Waiting { key, bucket, span, at, found: (0, 0), is_known: false });
    }

    /// Finds the ids of the pieces that wait, and puts them where they belong.
    #[cold]
    fn find(&mut self, text: &[u8], ids: &mut Vec<u32>, model: &impl Model) {
        self.found.clear();
        self.short_of.clear();
        for (number, waiting) in self.waiting.iter_mut().enumerate() {
            let Waiting { key, bucket, span: (begin, end), .. } = *waiting;
            let piece = &text[begin..end];
            let from = self.found.len();
            if (cache::is_long(key) || self.cache.has_many(bucket, key))
                && let Some(known) = self.cache.get_long(piece, cache::kind(key))
            {
                self.found.extend_from_slice(known);
                waiting.is_known = true;
            } else if let Some(id) = model.token(key, piece) {
                self.found.push(id);
            } else {
                let short = self.short_of.len();
                if short == self.short.len() {
                    self.short.push(Short::default());
                }
                self.symbols.clear();
                if model.begin(piece, &mut self.symbols, &mut self.short[short]) {
                    self.short_of.push(number);
                    continue;
                }
                model.merges().apply(&mut self.symbols, &mut self.scratch);
                self.found.extend_from_slice(&self.symbols);
            }
            waiting.found = (from, self.found.len());
        }
        let short = &mut self.short[..self.short_of.len()];
        together::merge(Vectors::detect(), short, model.merges());
        for (short, number) in short.iter().zip(&self.short_of) {
            let from = self.found.len();
            self.found.extend(short.symbols());
            self.waiting[*number].found = (from, self.found.len());
        }
        self.insert(ids);
        for Waiting { key, bucket, span: (begin, end), found, is_known, .. } in self.waiting.drain(..) {
            if is_known {
                continue;
            }
            let (piece, kind, is_long) = (&text[begin..end], cache::kind(key), cache::is_long(key));
            let ids = &self.found[found.0..found.1];
            if is_long || ids.len() > SHORT_IDS {
                self.cache.put_long(piece, kind, ids);
            }
            if !is_long {
                self.cache.put(bucket, key, ids);
            }
        }
    }

    /// Puts what was found where it belongs: from the last piece on, what comes after it moves out of its way.
    fn insert(&self, ids: &mut Vec<u32>) {
        let mut end = ids.len();
        ids.resize(end + self.found.len(), 0);
        let mut to = ids.len();
        for Waiting { at, found: (from, until), .. } in self.waiting.iter().rev() {
            to -= end - at;
            ids.copy_within(*at..end, to);
            to -= until - from;
            ids[to..to + until - from].copy_from_slice(&self.found[*from..*until]);
            end = *at;
        }
    }
}
