//! From tokens to blocks: every document goes to its split, every split is one stream of ids cut into blocks.
//!
//! The rules here depend on the documents in input order and on nothing else; so the output does not
//! depend on partitions, workers or machines.

use std::collections::BTreeMap;

use tokenmill_shared::Result;
use tokenmill_shared::config::Remainder;
use tokenmill_shared::dataset::{DatasetWriter, Split, SplitWriter, TokenWidth};

use crate::document::Flow;
use crate::store::{DocumentEntry, Frame};

/// How documents are divided between training and validation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Assign {
    /// All to one split.
    All(Split),
    /// The first so many to validation.
    Head(u64),
    /// Those whose hash, as a fraction of all hashes, is below this, to validation.
    Hash(f64),
}

impl Assign {
    fn split_of(self, index: u64, hash: u32) -> Split {
        match self {
            Self::All(split) => split,
            Self::Head(count) if index < count => Split::Validation,
            Self::Hash(fraction) if f64::from(hash) < fraction * 4_294_967_296.0 => Split::Validation,
            _ => Split::Train,
        }
    }
}

/// Lengths of documents, for the median: one count per number of tokens, the last for all longer ones.
pub const LONGEST_COUNTED: usize = 1 << 16;

/// One split being packed.
struct Stream {
    writer: SplitWriter,
    /// Tokens that fit under `max_train_samples` or `max_eval_samples`.
    limit: Option<u64>,
    documents: u64,
    text_bytes: u64,
    read: u64,
    beyond_limit: u64,
}

impl Stream {
    fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.writer.tokens() >= limit)
    }

    fn push(&mut self, document: DocumentEntry, ids: &[u8], width: TokenWidth) -> Result<()> {
        self.documents += 1;
        self.text_bytes += u64::from(document.text_bytes);
        self.read += u64::from(document.tokens);
        let room = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.writer.tokens()));
        let taken = u64::from(document.tokens).min(room);
        self.beyond_limit += u64::from(document.tokens) - taken;
        if taken > 0 {
            self.writer.begin_document();
        }
        self.writer.push(&ids[..taken as usize * width.bytes()])
    }
}

/// Packs the documents of all sources into the splits of one dataset.
pub struct Packer {
    streams: BTreeMap<Split, Stream>,
    width: TokenWidth,
    assign: Assign,
    /// Documents seen under the present assignment.
    seen: u64,
    lengths: Vec<u64>,
}

impl Packer {
    /// Starts packing into `splits`, each with the blocks it may have at most.
    pub fn new(
        dataset: &DatasetWriter,
        splits: &[(Split, Option<u64>)],
        block_size: usize,
        width: TokenWidth,
    ) -> Result<Self> {
        let mut streams = BTreeMap::new();
        for (split, blocks) in splits {
            let limit = blocks.map(|blocks| blocks.saturating_mul(block_size as u64));
            let writer = dataset.split(*split)?;
            streams.insert(*split, Stream { writer, limit, documents: 0, text_bytes: 0, read: 0, beyond_limit: 0 });
        }
        Ok(Self { streams, width, assign: Assign::All(Split::Train), seen: 0, lengths: vec![0; LONGEST_COUNTED + 1] })
    }

    /// Begins a source whose documents are divided by `assign`.
    pub fn begin_source(&mut self, assign: Assign) {
        self.assign = assign;
        self.seen = 0;
    }

    /// Packs the documents of a frame. `file_hash` stands for the documents' own in hash assignment, where
    /// documents are pieces of a file. Stops when nothing that can still come would be kept.
    pub fn push(&mut self, frame: &Frame, mut file_hash: impl FnMut(u64) -> Option<u32>) -> Result<Flow> {
        let mut ids = frame.ids();
        for document in frame.documents() {
            let (own, rest) = ids.split_at(document.tokens as usize * self.width.bytes());
            ids = rest;
            let split = self.assign.split_of(self.seen, file_hash(self.seen).unwrap_or(document.hash));
            self.seen += 1;
            self.lengths[(document.tokens as usize).min(LONGEST_COUNTED)] += 1;
            self.streams
                .get_mut(&split)
                .expect("the splits were named at the start")
                .push(document, own, self.width)?;
            if self.nothing_more_is_kept() {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    fn nothing_more_is_kept(&self) -> bool {
        match self.assign {
            Assign::All(split) => self.streams[&split].is_full(),
            Assign::Head(count) if self.seen >= count => self.streams[&Split::Train].is_full(),
            _ => self.streams.values().all(Stream::is_full),
        }
    }

    /// The median number of tokens of a document.
    pub fn median_document_tokens(&self) -> u64 {
        let total: u64 = self.lengths.iter().sum();
        let mut below = 0;
        let found = self.lengths.iter().position(|count| {
            below += count;
            below * 2 >= total
        });
        found.unwrap_or(0) as u64
    }

    /// Ends all splits and hands them to the dataset.
    pub fn finish(self, dataset: &mut DatasetWriter, remainder: Remainder, pad_token_id: u32) -> Result<()> {
        for (split, stream) in self.streams {
            let written = stream.writer.finish(remainder, pad_token_id)?;
            let reason = match split {
                Split::Train => "max_train_samples",
                Split::Validation => "max_eval_samples",
            };
            let rejected = if stream.beyond_limit > 0 {
                BTreeMap::from([(reason.to_owned(), stream.beyond_limit)])
            } else {
                BTreeMap::new()
            };
            dataset.add(written, stream.documents, stream.text_bytes, stream.read, rejected)?;
        }
        Ok(())
    }
}
