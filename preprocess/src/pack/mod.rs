//! From tokens to blocks: every document goes to its split, and every split makes blocks of its documents by one rule.
//!
//! The rules depend on the documents in input order and on nothing else; so the output does not depend on partitions,
//! workers or machines.

mod batches;
mod best_fit;
mod blocks;
mod choice;
mod concatenate;
mod documents;

use std::collections::BTreeMap;

use tokenmill_shared::Result;
use tokenmill_shared::config::Packing;
use tokenmill_shared::dataset::{BlockWriter, DatasetWriter, Layout, Split, SplitFacts, TokenWidth, WrittenSplit};

use self::batches::Batches;
use self::best_fit::BestFit;
use self::blocks::Blocks;
pub use self::choice::{Choice, Chosen};
use self::concatenate::Concatenate;
use self::documents::Documents;
use crate::document::{Extent, Flow};
use crate::job::Job;
use crate::plan::Source;
use crate::statistics::Counter;
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
    /// The split of the document of this number under the assignment.
    pub fn split_of(self, index: u64, hash: u32) -> Split {
        match self {
            Self::All(split) => split,
            Self::Head(count) if index < count => Split::Validation,
            Self::Hash(fraction) if f64::from(hash) < fraction * 4_294_967_296.0 => Split::Validation,
            _ => Split::Train,
        }
    }
}

/// What a dataset of this packing is.
pub fn layout(packing: Packing) -> Layout {
    match packing {
        Packing::Concatenate => Layout::Stream,
        _ => Layout::Blocks,
    }
}

/// Lengths of documents, for the median: one count per number of tokens, the last for all longer ones.
pub const LONGEST_COUNTED: usize = 1 << 16;

/// Tokens that are in no block, by reason.
type Rejected = BTreeMap<&'static str, u64>;

/// A rule that makes blocks of the documents of one split.
trait Rule {
    /// Takes the next document: its ids, little-endian in the dataset's width, and its number in the split, from 0.
    fn push(&mut self, document: u64, ids: &[u8]) -> Result<()>;

    /// Takes more ids of the document that came last. [`crate::document::Rules::in_parts`] says where documents come in
    /// parts.
    fn go_on(&mut self, _ids: &[u8]) -> Result<()> {
        unreachable!("only what documents follow one another in takes them in parts")
    }

    /// Whether nothing that can still come would be kept.
    fn is_full(&self) -> bool;

    /// Ends the split.
    fn finish(self: Box<Self>) -> Result<Packed>;
}

/// A split that is packed.
struct Packed {
    /// Its files; `None` if it was only measured.
    written: Option<WrittenSplit>,
    measure: Measure,
    rejected: Rejected,
}

/// How full the blocks of a split are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measure {
    /// Blocks.
    pub blocks: u64,
    /// Tokens in them; the rest of their ids is padding.
    pub tokens: u64,
}

/// One split being packed.
struct Stream {
    rule: Box<dyn Rule>,
    counter: Counter,
    documents: u64,
    text_bytes: u64,
    read: u64,
    /// Tokens of documents that were left out because one before had the same.
    duplicates: u64,
    /// Tokens of the document of which a part came last.
    of_document: u64,
}

/// The reason for those in a ledger and, for the documents, in a manifest.
pub const DUPLICATE: &str = "duplicate";

impl Stream {
    /// Takes a document or a part of one; the tokens of all of it, if this ends it.
    fn push(&mut self, document: DocumentEntry, ids: &[u8]) -> Result<Option<u64>> {
        let Extent { begins, ends } = document.extent;
        if begins {
            self.rule.push(self.documents, ids)?
        } else {
            self.rule.go_on(ids)?
        }
        self.counter.count(ids);
        self.text_bytes += u64::from(document.text_bytes);
        self.read += u64::from(document.tokens);
        self.of_document += u64::from(document.tokens);
        if !ends {
            return Ok(None);
        }
        let tokens = std::mem::take(&mut self.of_document);
        self.counter.document(tokens);
        self.documents += 1;
        Ok(Some(tokens))
    }
}

/// Packs the documents of all sources into the splits of one dataset.
pub struct Packer {
    streams: BTreeMap<Split, Stream>,
    width: TokenWidth,
    choice: Choice,
    /// What became of the document that came last, and the hash by which it is assigned: of one in parts that of the first.
    chosen: Chosen,
    hash: u32,
    assign: Assign,
    /// Documents seen under the present assignment, of those that are taken.
    seen: u64,
    duplicates: u64,
    lengths: Vec<u64>,
}

/// What the rule of a split needs to know.
struct RuleOptions {
    block_size: usize,
    width: TokenWidth,
    /// Blocks that are wanted at most.
    limit: Option<u64>,
    /// The reason for what is beyond that limit.
    limit_name: &'static str,
}

impl Packer {
    /// Starts packing into the splits of `dataset`.
    pub fn new(dataset: &DatasetWriter, job: &Job) -> Result<Self> {
        Self::with(job, |packing, split, options| {
            if packing == Packing::Concatenate {
                let writer = dataset.split(split)?;
                let remainder = (job.data.remainder, job.pad_token_id);
                return Ok(Box::new(Concatenate::new(writer, options, remainder)));
            }
            let writer = dataset.split_of_blocks(split, job.pad_token_id)?;
            Ok(by_blocks(packing, Some(writer), options))
        })
    }

    /// Packs without writing, to see how full blocks will be. Not for [`Packing::Concatenate`], whose blocks are.
    pub fn measuring(job: &Job) -> Result<Self> {
        Self::with(job, |packing, _, options| Ok(by_blocks(packing, None, options)))
    }

    fn with(job: &Job, mut rule: impl FnMut(Packing, Split, &RuleOptions) -> Result<Box<dyn Rule>>) -> Result<Self> {
        let (block_size, width) = (job.data.block_size(), job.encoding.width);
        let mut streams = BTreeMap::new();
        for (split, limit) in &job.splits {
            let limit_name = match split {
                Split::Train => "max_train_samples",
                Split::Validation => "max_eval_samples",
            };
            let options = RuleOptions { block_size, width, limit: *limit, limit_name };
            let rule = rule(job.packing, *split, &options)?;
            let counter = Counter::new(width, job.encoding.tokenizer.largest_id());
            streams.insert(
                *split,
                Stream { rule, counter, documents: 0, text_bytes: 0, read: 0, duplicates: 0, of_document: 0 },
            );
        }
        Ok(Self {
            streams,
            width,
            choice: Choice::new(job.data.deduplicate),
            chosen: Chosen::Outside,
            hash: 0,
            assign: Assign::All(Split::Train),
            seen: 0,
            duplicates: 0,
            lengths: vec![0; LONGEST_COUNTED + 1],
        })
    }

    /// Begins a source whose documents are divided by `assign`.
    pub fn begin_source(&mut self, source: &Source, assign: Assign) {
        self.choice.begin_source(source);
        self.assign = assign;
        self.seen = 0;
    }

    /// Packs the documents of a frame. `file_hash` stands for the documents' own in hash assignment, where
    /// documents are pieces of a file; `packed` is told which documents were. Both get the document's place in the frame.
    /// Stops when nothing that can still come would be kept.
    pub fn push(
        &mut self,
        frame: &Frame,
        file_hash: impl Fn(usize) -> Option<u32>,
        mut packed: impl FnMut(usize, DocumentEntry),
    ) -> Result<Flow> {
        let mut ids = frame.ids();
        for (place, document) in frame.documents().enumerate() {
            let (own, rest) = ids.split_at(document.tokens as usize * self.width.bytes());
            ids = rest;
            if document.extent.begins {
                self.chosen = self.choice.next(own);
                self.hash = file_hash(place).unwrap_or(document.hash);
            }
            let chosen = self.chosen;
            let (Chosen::Kept(number) | Chosen::Duplicate(number)) = chosen else { continue };
            let split = self.assign.split_of(number, self.hash);
            let stream = self.streams.get_mut(&split).expect("the splits were named at the start");
            self.seen = number + 1;
            if chosen == Chosen::Duplicate(number) {
                stream.read += u64::from(document.tokens);
                stream.duplicates += u64::from(document.tokens);
                self.duplicates += 1;
                continue;
            }
            packed(place, document);
            if let Some(tokens) = stream.push(document, own)? {
                self.lengths[tokens.min(LONGEST_COUNTED as u64) as usize] += 1;
            }
            if self.nothing_more_is_kept() {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    fn nothing_more_is_kept(&self) -> bool {
        let is_full = |split: &Split| self.streams[split].rule.is_full();
        match self.assign {
            Assign::All(split) => is_full(&split),
            Assign::Head(count) if self.seen >= count => is_full(&Split::Train),
            _ => self.streams.keys().all(is_full),
        }
    }

    /// Documents that were left out because one before had the same tokens.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
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
    pub fn finish(self, dataset: &mut DatasetWriter, job: &Job) -> Result<()> {
        for stream in self.streams.into_values() {
            let Stream { rule, counter, documents, text_bytes, read, duplicates, .. } = stream;
            let mut packed = rule.finish()?;
            if duplicates > 0 {
                packed.rejected.insert(DUPLICATE, duplicates);
            }
            let rejected = packed.rejected.into_iter().map(|(reason, tokens)| (reason.to_owned(), tokens)).collect();
            let written = packed.written.expect("a packer of a dataset writes");
            let statistics = Some(job.pool.install(|| counter.finish(&job.encoding.tokenizer)));
            dataset.add(written, SplitFacts { documents, text_bytes, read, rejected, statistics })?;
        }
        Ok(())
    }

    /// Ends all splits that were only measured.
    pub fn finish_measuring(self) -> Result<BTreeMap<Split, Measure>> {
        self.streams.into_iter().map(|(split, stream)| Ok((split, stream.rule.finish()?.measure))).collect()
    }
}

/// The rules whose blocks have documents of their own.
fn by_blocks(packing: Packing, writer: Option<BlockWriter>, options: &RuleOptions) -> Box<dyn Rule> {
    let blocks = Blocks::new(writer, options);
    match packing {
        Packing::Documents => Box::new(Documents::new(blocks, false)),
        Packing::MedicalgptDocuments => Box::new(Documents::new(blocks, true)),
        Packing::BestFit => Box::new(BestFit::new(blocks)),
        Packing::RunClm => Box::new(Batches::new(blocks, false)),
        Packing::Medicalgpt => Box::new(Batches::new(blocks, true)),
        Packing::Concatenate => unreachable!("a stream is written as one"),
    }
}
