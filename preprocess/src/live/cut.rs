//! Tokens cut into blocks, each with the position of the next.

use std::path::{Path, PathBuf};

use tokenmill_shared::config::Remainder;
use tokenmill_shared::dataset::TokenWidth;
use tokenmill_shared::{Error, Result};

use super::{Block, Position};
use crate::document::Flow;
use crate::job::Setup;
use crate::pipeline::Event;
use crate::plan::Partition;
use crate::store::{DocumentEntry, Frame};

/// Takes a block.
type Send<'a> = dyn FnMut(Block) -> Result<Flow> + 'a;

/// Cuts tokens as they come.
pub(super) struct Cutter {
    block_size: usize,
    width: TokenWidth,
    remainder: Remainder,
    pad_token_id: u32,
    dir: PathBuf,
    /// The partition that tokens come from, with the block that is being filled.
    at: Position,
    /// What the first partition must be.
    expected: Option<String>,
    /// Tokens of this partition so far.
    in_partition: u64,
    /// Documents with tokens that began in it so far.
    begun: u64,
    /// Tokens that belong to blocks before.
    skip: u64,
    ids: Vec<u32>,
    starts: Vec<u32>,
    documents_before: u64,
    text_bytes: f64,
    stopped: bool,
}

impl Cutter {
    pub(super) fn new(setup: &Setup, dir: &Path, from: Position) -> Self {
        let block_size = setup.data.block_size();
        Self {
            block_size,
            width: setup.encoding.width,
            remainder: setup.data.remainder,
            pad_token_id: setup.pad_token_id,
            dir: dir.to_owned(),
            skip: (from.block * block_size as u64).saturating_sub(from.tokens),
            expected: Some(from.partition.clone()).filter(|fingerprint| !fingerprint.is_empty()),
            at: from,
            in_partition: 0,
            begun: 0,
            ids: Vec::with_capacity(block_size),
            starts: Vec::new(),
            documents_before: 0,
            text_bytes: 0.0,
            stopped: false,
        }
    }

    /// Takes what the pipeline says.
    pub(super) fn take(&mut self, event: Event, send: &mut Send<'_>) -> Result<Flow> {
        match event {
            Event::Begin { partition, .. } => self.begin(partition)?,
            Event::Tokens(frame) => return self.tokens(&frame, send),
            Event::File { .. } | Event::End => {}
        }
        Ok(Flow::Continue)
    }

    fn begin(&mut self, partition: Partition) -> Result<()> {
        if self.expected.take().is_some_and(|expected| expected != partition.fingerprint) {
            return Err(moved(&self.dir));
        }
        let first = &partition.parts[0];
        self.at.tokens += std::mem::take(&mut self.in_partition);
        self.at.documents += std::mem::take(&mut self.begun);
        (self.at.file, self.at.start) = (first.file, first.segment.start);
        self.at.partition = partition.fingerprint;
        Ok(())
    }

    fn tokens(&mut self, frame: &Frame, send: &mut Send<'_>) -> Result<Flow> {
        let mut bytes = frame.ids();
        for document in frame.documents() {
            let (own, rest) = bytes.split_at(document.tokens as usize * self.width.bytes());
            bytes = rest;
            if self.document(document, own, send)? == Flow::Stop {
                self.stopped = true;
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    /// Takes a document, or a part of one.
    fn document(&mut self, document: DocumentEntry, own: &[u8], send: &mut Send<'_>) -> Result<Flow> {
        let (text_bytes, begins) = (document.text_bytes, document.extent.begins);
        let tokens = (own.len() / self.width.bytes()) as u64;
        if tokens == 0 {
            return Ok(Flow::Continue);
        }
        self.begun += u64::from(begins);
        self.in_partition += tokens;
        let skipped = self.skip.min(tokens);
        self.skip -= skipped;
        let mut own = &own[skipped as usize * self.width.bytes()..];
        if skipped == 0 && begins {
            if self.ids.is_empty() {
                self.documents_before = self.at.documents + self.begun - 1;
            }
            self.starts.push(self.ids.len() as u32);
        }
        while !own.is_empty() {
            if self.ids.is_empty() && self.starts.is_empty() {
                self.documents_before = self.at.documents + self.begun;
            }
            let room = (self.block_size - self.ids.len()) * self.width.bytes();
            let (now, later) = own.split_at(own.len().min(room));
            self.width.decode(now, &mut self.ids);
            self.text_bytes += f64::from(text_bytes) * now.len() as f64 / (tokens * self.width.bytes() as u64) as f64;
            own = later;
            if self.ids.len() == self.block_size && self.send(self.block_size, send)? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    fn send(&mut self, valid_tokens: usize, send: &mut Send<'_>) -> Result<Flow> {
        self.at.block += 1;
        send(Block {
            ids: std::mem::replace(&mut self.ids, Vec::with_capacity(self.block_size)),
            valid_tokens,
            document_starts: std::mem::take(&mut self.starts),
            documents_before: self.documents_before,
            text_bytes: std::mem::take(&mut self.text_bytes),
            next: self.at.clone(),
        })
    }

    /// Ends the text, as a split of a dataset ends.
    pub(super) fn finish(mut self, send: &mut Send<'_>) -> Result<()> {
        let tokens = self.at.tokens + self.in_partition;
        // A padded last block ends beyond the last token, but does not begin there.
        let begins_beyond = self.skip > 0 && tokens <= self.at.block.saturating_sub(1) * self.block_size as u64;
        if self.expected.is_some() || begins_beyond {
            return Err(moved(&self.dir));
        }
        if !self.stopped && self.remainder.pads(tokens, self.block_size as u64) && !self.ids.is_empty() {
            let valid = self.ids.len();
            self.ids.resize(self.block_size, self.pad_token_id);
            self.send(valid, send)?;
        }
        Ok(())
    }
}

/// The error for a position in a text that is no longer there.
pub(super) fn moved(dir: &Path) -> Error {
    let reason = format!(
        "the files in {} are not those that the checkpoint was made with; put them back, or start anew in another --output_dir",
        dir.display()
    );
    Error::config("--resume_from_checkpoint", reason)
}
