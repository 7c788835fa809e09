//! `preprocess trace`: from a token of a block back to the file and the byte that it came from.
//!
//! A dataset holds no paths, so trace is given what `prepare` was given, and the fingerprint tells whether that made the
//! dataset. Documents are gone through in input order, by their lengths in the store; the one that is found is read and
//! tokenized again by the reference, which knows where in a text each token lies.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokenmill_shared::dataset::{BlockReader, Dataset, Layout, Split, SplitReader};
use tokenmill_shared::{Error, Result};

use crate::document::{self, Bad, Document, Extent, Flow, Reads, Sink};
use crate::job::Job;
use crate::pack::{Assign, Choice, Chosen};
use crate::pipeline::{Event, Pipeline};
use crate::plan::{Part, Source};
use crate::source::{Input, Kind};

/// Where a token came from.
#[derive(Debug, Serialize)]
pub struct Traced {
    /// The token's id.
    pub id: u32,
    /// The file that holds its document.
    pub file: std::path::PathBuf,
    /// Line, record or row number in it, from 1.
    pub record: u64,
    /// Where the record begins: a byte offset in the decompressed file, or a row of parquet.
    pub record_at: u64,
    /// The document's number in the split, from 0.
    pub document: u64,
    /// Which token of the document it is, from 0.
    pub token: u64,
    /// The bytes of the document's text that the token stands for; empty for a token that was added to it.
    pub bytes: std::ops::Range<u64>,
    /// That text.
    pub text: String,
}

/// A token by its place in the documents of a split.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// The token of this number in the split.
    Token(u64),
    /// A token of the document of this number.
    OfDocument { document: u64, token: u64 },
}

/// A document that is found, and the number of the token in it.
struct Found {
    source: Arc<Source>,
    part: Part,
    /// The document's number in that part.
    in_part: u64,
    document: u64,
    token: u64,
}

/// Traces id `position` of block `block` of the dataset in `dir`, which `job` must be that of.
///
/// # Errors
/// Another dataset; no such block; a position in padding.
pub fn trace(job: &Job, dir: &Path, split: Split, block: u64, position: u64) -> Result<Traced> {
    let dataset = Dataset::open(dir)?;
    let head = &dataset.manifest().head;
    if head.fingerprint != job.fingerprint {
        let differs = crate::summary::first_difference(&head.settings, &job.settings);
        let reason = format!(
            "was made of other text or settings ({}); give what `prepare` was given",
            differs.unwrap_or_else(|| "the input differs".to_owned())
        );
        return Err(Error::config(dir.display().to_string(), reason));
    }
    let reader = dataset.split(split)?.ok_or_else(|| Error::config("--split", format!("there is no split {split}")))?;
    if block >= reader.len() {
        let reason = format!("split {split} has blocks 0 to {}", reader.len().saturating_sub(1));
        return Err(Error::config("--block", reason));
    }
    let valid = reader.valid_tokens(block)? as u64;
    if position >= valid {
        return Err(Error::config("--position", format!("block {block} has {valid} tokens; the rest is padding")));
    }
    let mut ids = Vec::new();
    reader.read_block(block, &mut ids)?;
    let id = ids[position as usize];
    let wanted = match dataset.manifest().layout {
        Layout::Stream => Wanted::Token(block * reader.block_size() as u64 + position),
        Layout::Blocks => of_document(job, &reader, block, position as u32, &ids, split)?,
    };
    let found = find(job, split, wanted)?.ok_or_else(|| changed(dir))?;
    read(job, found, id)
}

fn too_long(input: &Input) -> Error {
    let reason = "has this token in a document that was cut into parts, and trace takes documents whole";
    Error::config(input.name.display().to_string(), reason)
}

fn changed(dir: &Path) -> Error {
    Error::config(dir.display().to_string(), "has a token that its text does not have; prepare it again")
}

/// The document of a token in a block that has documents of its own, and which of its tokens it is.
fn of_document(
    job: &Job,
    reader: &SplitReader,
    block: u64,
    position: u32,
    ids: &[u32],
    split: Split,
) -> Result<Wanted> {
    let numbers = |block| Ok::<_, Error>(reader.documents(block)?.unwrap_or_default());
    let (starts, documents) = (reader.document_starts(block)?, numbers(block)?);
    let run = starts.partition_point(|start| *start <= position) - 1;
    let (document, start) = (documents[run], starts[run]);
    let end = starts.get(run + 1).copied().unwrap_or(reader.valid_tokens(block)? as u32);
    let mut before = 0;
    match job.packing {
        // Pieces of a document longer than a block are anywhere, and are told apart by their ids.
        tokenmill_shared::config::Packing::BestFit => {
            let whole = tokens_of(job, split, document)?;
            let piece = &ids[start as usize..end as usize];
            let mut pieces = whole.chunks(reader.block_size());
            let index = pieces.position(|other| other == piece).unwrap_or_default();
            before = (index * reader.block_size()) as u64;
        }
        // What a document has before a block is at the end of the blocks before it.
        _ => {
            let mut earlier = block;
            while start == 0 && earlier > 0 {
                earlier -= 1;
                if numbers(earlier)?.last() != Some(&document) {
                    break;
                }
                let starts = reader.document_starts(earlier)?;
                let last = starts.last().copied().unwrap_or_default();
                before += reader.valid_tokens(earlier)? as u64 - u64::from(last);
                if last > 0 {
                    break;
                }
            }
        }
    }
    Ok(Wanted::OfDocument { document, token: before + u64::from(position - start) })
}

/// The ids of a document of a split.
fn tokens_of(job: &Job, split: Split, document: u64) -> Result<Vec<u32>> {
    let found = find(job, split, Wanted::OfDocument { document, token: 0 })?;
    let Some(found) = found else { return Ok(Vec::new()) };
    let mut ids = Vec::new();
    with_text(job, &found, |text, _, _| {
        let encoded = job.encoding.tokenizer.encode(text, job.encoding.add_special_tokens, &mut ids);
        encoded.map_err(|why| Error::config("trace", format!("the document cannot be tokenized ({why})")))
    })?;
    if let Some(eos) = job.encoding.append
        && ids.last() != Some(&eos)
    {
        ids.push(eos);
    }
    Ok(ids)
}

/// Goes through all documents in input order until the wanted one comes.
fn find(job: &Job, split: Split, wanted: Wanted) -> Result<Option<Found>> {
    let mut passed: BTreeMap<Split, (u64, u64)> = BTreeMap::new();
    let mut found = None;
    let mut choice = Choice::new(job.data.deduplicate);
    for (source, assign) in &job.sources {
        choice.begin_source(source);
        let pipeline = Pipeline {
            inputs: Arc::clone(&source.inputs),
            partitions: source.each_partition(),
            rules: job.rules.clone(),
            encoding: Arc::clone(&job.encoding),
            store: job.store.clone(),
            keep: job.store.clone(),
            read_bytes: job.read_bytes,
            pool: Arc::clone(&job.pool),
        };
        let (mut parts, mut in_part, mut chosen) = (VecDeque::<Part>::new(), 0, Chosen::Outside);
        pipeline.run(&mut |event| {
            let frame = match event {
                Event::Begin { partition, .. } => {
                    parts.extend(partition.parts);
                    return Ok(Flow::Continue);
                }
                Event::Tokens(frame) => frame,
                Event::File { .. } | Event::End => return Ok(Flow::Continue),
            };
            let mut ids = frame.ids();
            for document in frame.documents() {
                let (own, rest) = ids.split_at(document.tokens as usize * job.encoding.width.bytes());
                ids = rest;
                while document.extent.begins && parts.front().is_some_and(|part| in_part >= part.segment.documents) {
                    parts.pop_front();
                    in_part = 0;
                }
                let part = parts.front().expect("documents are of the parts that were announced");
                let Extent { begins, ends } = document.extent;
                if begins {
                    in_part += 1;
                    chosen = choice.next(own);
                }
                let Chosen::Kept(number) = chosen else { continue };
                let by_file = matches!(assign, Assign::Hash(_)) && source.inputs[part.file].kind == Kind::Text;
                let file_hash = by_file.then(|| crate::file_hash(&source.scans[part.file].blake3));
                let of = assign.split_of(number, file_hash.unwrap_or(document.hash));
                let (documents, tokens) = passed.entry(of).or_default();
                let token = match wanted {
                    Wanted::Token(token) => {
                        token.checked_sub(*tokens).filter(|token| *token < u64::from(document.tokens))
                    }
                    Wanted::OfDocument { document, token } => (*documents == document).then_some(token),
                };
                if let (Some(token), true) = (token, of == split) {
                    if document.extent != Extent::WHOLE {
                        return Err(too_long(&source.inputs[part.file]));
                    }
                    let (part, in_part, document) = (part.clone(), in_part - 1, *documents);
                    found = Some(Found { source: Arc::clone(source), part, in_part, document, token });
                    return Ok(Flow::Stop);
                }
                *documents += u64::from(ends);
                *tokens += u64::from(document.tokens);
            }
            Ok(Flow::Continue)
        })?;
        if found.is_some() {
            break;
        }
    }
    Ok(found)
}

/// Hands the text of a document, its record number and where that begins to `take`.
fn with_text(job: &Job, found: &Found, mut take: impl FnMut(&str, u64, u64) -> Result<()>) -> Result<()> {
    let segment = &found.part.segment;
    let input = &found.source.inputs[found.part.file];
    let mut reaching = Reaching { left: found.in_part, take: &mut take };
    document::for_each(input, &job.rules, segment.start, Reads::alone(job.read_bytes), &mut reaching)
}

/// Goes to a document.
struct Reaching<'a> {
    /// Documents before it.
    left: u64,
    take: &'a mut dyn FnMut(&str, u64, u64) -> Result<()>,
}

impl Sink for Reaching<'_> {
    fn document(&mut self, document: Document<'_>) -> Result<Flow> {
        if self.left > 0 || !document.extent.ends {
            // Of a record of which parts come and that cannot be used, none ends it.
            self.left -= u64::from(document.extent.ends);
            return Ok(Flow::Continue);
        }
        (self.take)(document.text, document.record, document.begin)?;
        Ok(Flow::Stop)
    }

    fn bad(&mut self, _: Bad<'_>) -> Result<Flow> {
        Ok(Flow::Continue)
    }
}

fn read(job: &Job, found: Found, id: u32) -> Result<Traced> {
    let input = &found.source.inputs[found.part.file];
    let mut traced = None;
    with_text(job, &found, |text, record, record_at| {
        let offsets = job.encoding.tokenizer.offsets(text, job.encoding.add_special_tokens);
        let offsets =
            offsets.map_err(|why| Error::config("trace", format!("the document cannot be tokenized ({why})")))?;
        // The end-of-sequence token that was appended stands for no text.
        let bytes = offsets.get(found.token as usize).cloned().unwrap_or(text.len()..text.len());
        traced = Some(Traced {
            id,
            file: input.path.clone(),
            record,
            record_at,
            document: found.document,
            token: found.token,
            text: text.get(bytes.clone()).unwrap_or_default().to_owned(),
            bytes: bytes.start as u64..bytes.end as u64,
        });
        Ok(())
    })?;
    traced.ok_or_else(|| changed(&input.path))
}

impl Traced {
    /// In two lines.
    pub fn lines(&self) -> Vec<String> {
        vec![
            format!(
                "{}: record {} (at {}), bytes {} to {} of its text: {:?}",
                self.file.display(),
                self.record,
                self.record_at,
                self.bytes.start,
                self.bytes.end,
                self.text
            ),
            format!("id {}: token {} of document {}", self.id, self.token, self.document),
        ]
    }
}
