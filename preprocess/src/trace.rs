//! `preprocess trace`: from a token of a block back to the file and the byte that it came from.
//!
//! A dataset holds no paths, so trace is given what `prepare` was given, and the fingerprint tells whether that made the
//! dataset. Documents are gone through in input order, by their lengths in the store; the one that is found is read and
//! tokenized again by the reference, which knows where in a text each token lies. Of a document that was cut into parts that
//! is done with the part.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokenmill_shared::dataset::{BlockReader, Dataset, Layout, Split, SplitReader};
use tokenmill_shared::{Error, Result};

use crate::document::{self, Document, Extent, Flow, Reads, Usable};
use crate::job::Job;
use crate::pack::{Assign, Choice, Chosen};
use crate::pipeline::{Event, Pipeline};
use crate::plan::{Part, Source};
use crate::source::Kind;
use crate::store::DocumentEntry;

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

/// A document that is found, or the part of one, and the number of the token in it.
struct Found {
    source: Arc<Source>,
    part: Part,
    /// The document's number in that part of the file.
    in_part: u64,
    document: u64,
    /// What there is of the document before.
    before: Before,
    entry: DocumentEntry,
    token: u64,
}

/// Parts of a document that lie before another.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    text_bytes: u64,
    tokens: u64,
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
    let Some(Text { text, .. }) = text_of(job, &found)? else { return Ok(Vec::new()) };
    let mut ids = Vec::new();
    job.encoding.tokenizer.encode(&text, job.encoding.add_special_tokens, &mut ids).map_err(not_tokenized)?;
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
        let (mut before, mut hash) = (Before::default(), 0);
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
                    before = Before::default();
                    let by_file = matches!(assign, Assign::Hash(_)) && source.inputs[part.file].kind == Kind::Text;
                    let file_hash = by_file.then(|| crate::file_hash(&source.scans[part.file].blake3));
                    hash = file_hash.unwrap_or(document.hash);
                }
                let Chosen::Kept(number) = chosen else { continue };
                let of = assign.split_of(number, hash);
                let (documents, tokens) = passed.entry(of).or_default();
                let token = match wanted {
                    Wanted::Token(token) => {
                        token.checked_sub(*tokens).filter(|token| *token < u64::from(document.tokens))
                    }
                    Wanted::OfDocument { document, token } => (*documents == document).then_some(token),
                };
                if let (Some(token), true) = (token, of == split) {
                    found = Some(Found {
                        source: Arc::clone(source),
                        part: part.clone(),
                        in_part: in_part - 1,
                        document: *documents,
                        before,
                        entry: document,
                        token,
                    });
                    return Ok(Flow::Stop);
                }
                before.text_bytes += u64::from(document.text_bytes);
                before.tokens += u64::from(document.tokens);
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

/// The text of a document, or of a part of one.
struct Text {
    text: String,
    /// Bytes of it that lie before the part: the last character there.
    before: usize,
    record: u64,
    record_at: u64,
}

/// Reads what was found; `None` if the file does not hold it any more.
fn text_of(job: &Job, found: &Found) -> Result<Option<Text>> {
    let segment = &found.part.segment;
    let input = &found.source.inputs[found.part.file];
    let begin = found.before.text_bytes;
    let end = begin + u64::from(found.entry.text_bytes);
    let (mut left, mut passed) = (found.in_part, 0);
    let mut text = None;
    let each = |document: Document<'_>| {
        if left > 0 {
            left -= u64::from(document.extent.ends);
            return Ok(Flow::Continue);
        }
        let Document { record, begin: record_at, .. } = document;
        let known: &mut Text = text.get_or_insert(Text { text: String::new(), before: 0, record, record_at });
        if passed >= begin {
            known.text.push_str(document.text);
        }
        passed += document.text.len() as u64;
        if passed == begin {
            known.text.extend(document.text.chars().next_back());
            known.before = known.text.len();
        }
        Ok(if passed < end { Flow::Continue } else { Flow::Stop })
    };
    let mut usable = Usable { each, broken: &segment.broken };
    document::for_each(input, &job.rules, segment.start, Reads::alone(job.read_bytes), &mut usable)?;
    Ok(text.filter(|_| passed == end))
}

fn not_tokenized(why: String) -> Error {
    Error::config("trace", format!("the document cannot be tokenized ({why})"))
}

fn read(job: &Job, found: Found, id: u32) -> Result<Traced> {
    let input = &found.source.inputs[found.part.file];
    let Text { text, before, record, record_at } = text_of(job, &found)?.ok_or_else(|| changed(&input.path))?;
    // A tokenizer may begin a text in its own way, so a part is begun by the character before it: none of its tokens crosses
    // the cut.
    let special = job.encoding.add_special_tokens && found.entry.extent.begins;
    let offsets = job.encoding.tokenizer.offsets(&text, special).map_err(not_tokenized)?;
    let skipped = if before == 0 { 0 } else { offsets.partition_point(|token| token.end <= before) };
    // The end-of-sequence token that was appended stands for no text.
    let bytes = offsets.get(skipped + found.token as usize).cloned().unwrap_or(text.len()..text.len());
    let in_document = |at: usize| found.before.text_bytes + at.saturating_sub(before) as u64;
    Ok(Traced {
        id,
        file: input.path.clone(),
        record,
        record_at,
        document: found.document,
        token: found.before.tokens + found.token,
        bytes: in_document(bytes.start)..in_document(bytes.end),
        text: text.get(bytes).unwrap_or_default().to_owned(),
    })
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

#[cfg(test)]
mod tests {
    use tokenmill_shared::config::{DataArguments, HubArguments, OnBadRecord};
    use tokenmill_shared::storage;

    use super::*;
    use crate::{Output, PrepareOptions, Tuning, prepare};

    #[test]
    fn a_token_of_a_document_in_parts_is_traced_as_one_of_a_whole_document() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizers = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tokenizers"));
        let long = |name: &str| format!("{name} grinds, and the water runs. 磨坊在河边，水车转。\r").repeat(8);
        let documents: [&[u8]; 5] = [
            b"short",
            long("One").as_bytes(),
            &[long("Bad").as_bytes(), b"\xff and on", long("Bad").as_bytes()].concat(),
            long("Other").as_bytes(),
            b"last",
        ]
        .map(|document| &*document.to_vec().leak());
        storage::create_dir_all(&dir.path().join("text")).unwrap();
        storage::replace(&dir.path().join("text/a.txt"), &documents.join(&b"\n\n"[..])).unwrap();
        for tokenizer in ["bytes", "pieces"] {
            let traced = |part_bytes: usize| {
                let out = dir.path().join(format!("{tokenizer}-{part_bytes}"));
                let options = PrepareOptions {
                    data: DataArguments {
                        train_file_dir: Some(dir.path().join("text")),
                        cache_dir: Some(dir.path().join("cache")),
                        sample_by: tokenmill_shared::config::SampleBy::Paragraph,
                        validation_split_percentage: 0.0,
                        block_size: Some(64),
                        on_bad_record: OnBadRecord::Skip,
                        ..DataArguments::default()
                    },
                    hub: HubArguments::default(),
                    tokenizer: tokenizers.join(tokenizer),
                    model: None,
                    output: Output::Directory(out.clone()),
                    tuning: Tuning { part_bytes, ..Tuning::default() },
                };
                assert_eq!(prepare(&options).unwrap().manifest.head.rejected_records["invalid_encoding"], 1);
                let job = Job::new(&options).unwrap();
                let in_parts = |(source, _): &(Arc<Source>, Assign)| source.scans[0].is_in_parts();
                assert_eq!(job.sources.iter().any(in_parts), part_bytes < 100);
                let blocks = Dataset::open(&out).unwrap().split(Split::Train).unwrap().unwrap().len();
                let places = (0..blocks).flat_map(|block| (0..64).map(move |position| (block, position)));
                let token = |(block, position)| trace(&job, &out, Split::Train, block, position).unwrap();
                places.map(|place| serde_json::json!(token(place)).to_string()).collect::<Vec<_>>()
            };
            let (whole, parts) = (traced(1 << 20), traced(40));
            assert!(whole.len() > 500);
            for (whole, parts) in whole.iter().zip(&parts) {
                assert_eq!(parts, whole, "{tokenizer}");
            }
            assert_eq!(parts.len(), whole.len());
        }
    }
}
