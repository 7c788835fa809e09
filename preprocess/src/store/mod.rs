//! The store of token partitions: `<cache_dir>/tokens/<2 hex>/<fingerprint>.tokens`, content-addressed,
//! read-only once published, safe to delete at any time.
//!
//! A file is a run of [`Frame`]s, each the tokens of some consecutive documents with a CRC32C, and a footer
//! with the totals. Ids are stored raw in their final width: compression was not free against a packer
//! that copies them (zstd level 1 decodes at about 1 GB/s where a copy runs at 10).
//!
//! Behind it there may be another one, at an address that many machines share: what is missing here is copied from there,
//! and what is used or made here is copied to there. All reading is done here.
//!
//! A partition that several readers want at a time is made by the one who claims it, and the others read along
//! ([`PartialReader`]).

mod partial;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenmill_shared::dataset::TokenWidth;
use tokenmill_shared::storage::{self, Claim, Lock, TemporaryFile};
use tokenmill_shared::{Error, Result};

pub use self::partial::{Growth, PartialReader, Passed};
use crate::document::Extent;

const FRAME_MAGIC: [u8; 4] = *b"TMF1";
/// Of a frame with parts of documents, which programs that know of none take for damaged.
const PARTS_MAGIC: [u8; 4] = *b"TMF2";
const FOOTER_MAGIC: [u8; 8] = *b"TMTOKEN1";
/// Magic, documents, ids in bytes, CRC32C.
const HEADER_BYTES: usize = 16;
/// Magic, frames, documents, CRC32C of all three.
const FOOTER_BYTES: usize = 28;
/// Per document: tokens, UTF-8 bytes of its text, hash of its text.
const DOCUMENT_BYTES: usize = 12;

/// Bits of the tokens of a document that is in parts: this one does not begin it, does not end it. A part has fewer tokens
/// than bytes, and is of at most twice 64 MiB.
const GOES_ON_HERE: u32 = 1 << 31;
const GOES_ON_LATER: u32 = 1 << 30;

/// One document's facts in a frame, or those of a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentEntry {
    /// Which part of the document.
    pub extent: Extent,
    /// Tokens, the appended end-of-sequence token included.
    pub tokens: u32,
    /// UTF-8 bytes of its text.
    pub text_bytes: u32,
    /// The first four bytes of its text's BLAKE3; of a part, of that.
    pub hash: u32,
}

/// Tokens of consecutive documents, in the bytes that the store keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    documents: usize,
}

impl Frame {
    /// Builds a frame from its documents and their ids, little-endian in the final width.
    pub fn new(documents: &[DocumentEntry], ids: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + documents.len() * DOCUMENT_BYTES + ids.len());
        let whole = documents.iter().all(|document| document.extent == Extent::WHOLE);
        bytes.extend_from_slice(if whole { &FRAME_MAGIC } else { &PARTS_MAGIC });
        bytes.extend_from_slice(&(documents.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(ids.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for document in documents {
            let Extent { begins, ends } = document.extent;
            let goes_on = if begins { 0 } else { GOES_ON_HERE } | if ends { 0 } else { GOES_ON_LATER };
            for field in [document.tokens | goes_on, document.text_bytes, document.hash] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        }
        bytes.extend_from_slice(ids);
        let crc = crc32c::crc32c(&bytes[HEADER_BYTES..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        Self { bytes, documents: documents.len() }
    }

    /// Its documents, in order.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = DocumentEntry> {
        self.bytes[HEADER_BYTES..][..self.documents * DOCUMENT_BYTES].chunks_exact(DOCUMENT_BYTES).map(|entry| {
            let tokens = u32_at(entry, 0);
            DocumentEntry {
                extent: Extent { begins: tokens & GOES_ON_HERE == 0, ends: tokens & GOES_ON_LATER == 0 },
                tokens: tokens & !(GOES_ON_HERE | GOES_ON_LATER),
                text_bytes: u32_at(entry, 4),
                hash: u32_at(entry, 8),
            }
        })
    }

    /// Their ids, little-endian in the final width.
    pub fn ids(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES + self.documents * DOCUMENT_BYTES..]
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Where token partitions are kept.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    /// The one behind it.
    shared: Option<PathBuf>,
    /// As long as it is held, nothing is pruned.
    _in_use: Arc<Lock>,
}

/// The directory of the store in a cache.
pub const TOKENS: &str = "tokens";

/// The file in the store that jobs lock together, and pruning alone.
pub const IN_USE: &str = ".in-use";

impl Store {
    /// The store in `cache_dir`, created if absent; what killed writers left is removed.
    pub fn open(cache_dir: &Path) -> Result<Self> {
        let dir = cache_dir.join(TOKENS);
        storage::create_dir_all(&dir)?;
        storage::probe(&dir)?.inspect(|heed| eprintln!("{}: {heed}", dir.display()));
        let in_use = Arc::new(storage::lock_file_shared(&dir.join(IN_USE))?);
        storage::remove_stale_temporaries(&dir)?;
        partial::remove_stale_claims(&dir)?;
        Ok(Self { dir, shared: None, _in_use: in_use })
    }

    /// The same with the store of the cache at the address `shared` behind it.
    pub fn in_front_of(self, shared: &Path) -> Self {
        Self { shared: Some(shared.join(TOKENS)), ..self }
    }

    /// The file of a partition.
    pub fn path(&self, fingerprint: &str) -> PathBuf {
        path_in(&self.dir, fingerprint)
    }

    fn shared_path(&self, fingerprint: &str) -> Option<PathBuf> {
        self.shared.as_ref().map(|dir| path_in(dir, fingerprint))
    }

    /// Starts writing a partition. The temporary lies in the store's root, so that what a kill leaves is found.
    pub fn create(&self, fingerprint: &str) -> Result<PartitionWriter> {
        let path = self.path(fingerprint);
        storage::create_dir_all(path.parent().expect("a file in a directory"))?;
        let file = TemporaryFile::create_in(&self.dir, &path)?;
        Ok(PartitionWriter { file, shared: self.shared_path(fingerprint), frames: 0, documents: 0, claim: None })
    }

    /// Copies a partition from the store behind this one; whether it is there.
    fn fetch(&self, fingerprint: &str) -> Result<bool> {
        let Some(shared) = self.shared_path(fingerprint) else { return Ok(false) };
        if storage::stat(&shared)?.is_none() {
            return Ok(false);
        }
        let path = self.path(fingerprint);
        storage::create_dir_all(path.parent().expect("a file in a directory"))?;
        let mut file = TemporaryFile::create_in(&self.dir, &path)?;
        match file.append_file(&shared) {
            // Pruned since.
            Err(_) if storage::stat(&shared)?.is_none() => return Ok(false),
            copied => copied?,
        }
        file.publish_read_only()?;
        Ok(true)
    }

    /// Opens a partition and checks every byte of it. `None` if it is not there; a damaged one is removed,
    /// reported and counts as not there, also in the store behind this one.
    pub fn get(&self, fingerprint: &str) -> Result<Option<PartitionReader>> {
        let path = self.path(fingerprint);
        let check = || {
            let mut reader = PartitionReader::open(&path)?;
            while reader.next_frame()?.is_some() {}
            PartitionReader::open(&path)
        };
        loop {
            let fetched = storage::stat(&path)?.is_none();
            if fetched && !self.fetch(fingerprint)? {
                return Ok(None);
            }
            match check() {
                Ok(reader) => {
                    storage::touch(&path);
                    if !fetched && let Some(shared) = self.shared_path(fingerprint) {
                        share(&path, &shared)?;
                    }
                    return Ok(Some(reader));
                }
                Err(error @ Error::Corrupt { .. }) => {
                    storage::remove_file(&path)?;
                    let Some(shared) = self.shared_path(fingerprint).filter(|_| fetched) else {
                        let elsewhere = if self.shared.is_some() { ", unless others have it" } else { "" };
                        eprintln!("{error}; its documents are tokenized again{elsewhere}");
                        continue;
                    };
                    eprintln!("{} is damaged; it is removed, and its documents are tokenized again", shared.display());
                    storage::remove_file(&shared)?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Tokens of a partition, by its footer and its size alone; `None` if it is not there or not whole.
    pub fn tokens(&self, fingerprint: &str, width: TokenWidth) -> Result<Option<u64>> {
        let Some(path) = self.find(fingerprint)? else { return Ok(None) };
        let reader = match PartitionReader::open(&path) {
            Err(Error::Corrupt { .. }) => return Ok(None),
            reader => reader?,
        };
        let rest = reader.frames * HEADER_BYTES as u64 + reader.documents * DOCUMENT_BYTES as u64;
        Ok(reader.end.checked_sub(rest).map(|ids| ids / width.bytes() as u64))
    }

    /// Whether a partition is there, by its name alone.
    pub fn contains(&self, fingerprint: &str) -> Result<bool> {
        Ok(self.find(fingerprint)?.is_some())
    }

    /// Where a partition is, by its name alone: here, or behind.
    fn find(&self, fingerprint: &str) -> Result<Option<PathBuf>> {
        for path in std::iter::once(self.path(fingerprint)).chain(self.shared_path(fingerprint)) {
            if storage::stat(&path)?.is_some() {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

fn path_in(dir: &Path, fingerprint: &str) -> PathBuf {
    dir.join(&fingerprint[..2]).join(format!("{fingerprint}.tokens"))
}

/// Copies a whole partition to where others find it, unless it is there.
fn share(path: &Path, shared: &Path) -> Result<()> {
    if storage::stat(shared)?.is_some() {
        return Ok(());
    }
    let mut copy = TemporaryFile::create(shared)?;
    copy.append_file(path)?;
    copy.publish()
}

/// A partition being written; it appears in the store by [`PartitionWriter::publish`].
#[derive(Debug)]
pub struct PartitionWriter {
    file: TemporaryFile,
    /// Where it is copied to.
    shared: Option<PathBuf>,
    frames: u64,
    documents: u64,
    /// Given up after the file is there, or gone.
    claim: Option<Claim>,
}

impl PartitionWriter {
    /// Appends a frame.
    pub fn append(&mut self, frame: &Frame) -> Result<()> {
        self.frames += 1;
        self.documents += frame.documents as u64;
        self.file.append(&frame.bytes)
    }

    /// Ends the file and makes it visible.
    pub fn publish(mut self) -> Result<()> {
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend_from_slice(&FOOTER_MAGIC);
        footer.extend_from_slice(&self.frames.to_le_bytes());
        footer.extend_from_slice(&self.documents.to_le_bytes());
        footer.extend_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
        self.file.append(&footer)?;
        let Self { file, shared, claim, .. } = self;
        let path = file.final_path().to_owned();
        file.publish_read_only()?;
        drop(claim);
        shared.map_or(Ok(()), |shared| share(&path, &shared))
    }
}

/// A partition being read, frame by frame.
#[derive(Debug)]
pub struct PartitionReader {
    file: storage::File,
    offset: u64,
    end: u64,
    frames: u64,
    documents: u64,
}

impl PartitionReader {
    fn open(path: &Path) -> Result<Self> {
        let file = storage::open(path)?;
        let damaged = || Error::corrupt(path, "is not a whole token partition");
        let end = file.size()?.checked_sub(FOOTER_BYTES as u64).ok_or_else(damaged)?;
        let (frames, documents) = footer_at(&file, end)?.ok_or_else(damaged)?;
        Ok(Self { file, offset: 0, end, frames, documents })
    }

    /// The next frame, checked; `None` after the last.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        let damaged = |at: u64| Error::corrupt(self.file.path(), format!("is damaged at byte {at}"));
        if self.offset == self.end {
            return if (self.frames, self.documents) == (0, 0) { Ok(None) } else { Err(damaged(self.end)) };
        }
        let frame = frame_at(&self.file, self.offset, self.end)?.ok_or_else(|| damaged(self.offset))?;
        let left = (self.frames.checked_sub(1), self.documents.checked_sub(frame.documents as u64));
        let (Some(frames), Some(left)) = left else { return Err(damaged(self.offset)) };
        (self.frames, self.documents) = (frames, left);
        self.offset += frame.bytes.len() as u64;
        Ok(Some(frame))
    }
}

/// The frame at byte `offset`, checked; `None` if there is none before byte `end`.
fn frame_at(file: &storage::File, offset: u64, end: u64) -> Result<Option<Frame>> {
    if end - offset < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, offset)?;
    let documents = u32_at(&header, 4) as usize;
    let length = HEADER_BYTES as u64 + (documents * DOCUMENT_BYTES) as u64 + u64::from(u32_at(&header, 8));
    if ![FRAME_MAGIC, PARTS_MAGIC].iter().any(|magic| header[..4] == *magic) || length > end - offset {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset)?;
    let whole = crc32c::crc32c(&bytes[HEADER_BYTES..]) == u32_at(&header, 12);
    Ok(whole.then_some(Frame { bytes, documents }))
}

/// The frames and documents that the footer at byte `offset` tells; `None` if there is none.
fn footer_at(file: &storage::File, offset: u64) -> Result<Option<(u64, u64)>> {
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, offset)?;
    if footer[..8] != FOOTER_MAGIC || crc32c::crc32c(&footer[..24]) != u32_at(&footer, 24) {
        return Ok(None);
    }
    let count = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().expect("eight bytes"));
    Ok(Some((count(8), count(16))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    const PRINT: &str = "abcdef";

    fn write(store: &Store) -> Vec<Frame> {
        let document = |tokens| DocumentEntry { extent: Extent::WHOLE, tokens, text_bytes: 9, hash: 7 };
        let part = |begins, ends, tokens| DocumentEntry { extent: Extent { begins, ends }, ..document(tokens) };
        let frames = vec![
            Frame::new(&[document(1), document(2)], &[1, 0, 2, 0, 3, 0]),
            Frame::new(&[document(0)], &[]),
            Frame::new(&[part(true, false, 1)], &[4, 0]),
            Frame::new(&[part(false, false, 0)], &[]),
            Frame::new(&[part(false, true, 1)], &[5, 0]),
        ];
        let mut writer = store.create(PRINT).unwrap();
        frames.iter().for_each(|frame| writer.append(frame).unwrap());
        writer.publish().unwrap();
        frames
    }

    #[test]
    fn frames_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.get(PRINT).unwrap().is_none());
        let frames = write(&store);
        assert_eq!(store.tokens(PRINT, TokenWidth::U16).unwrap(), Some(5));
        assert_eq!(store.tokens("fedcba", TokenWidth::U16).unwrap(), None);
        let mut reader = store.get(PRINT).unwrap().unwrap();
        for frame in frames {
            assert_eq!(reader.next_frame().unwrap(), Some(frame));
        }
        assert!(reader.next_frame().unwrap().is_none());
        assert!(std::fs::metadata(store.path(PRINT)).unwrap().permissions().readonly());
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        write(&store);
        let path = store.path(PRINT);
        let good = std::fs::read(&path).unwrap();
        let damage = |bytes: &[u8]| {
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, bytes).unwrap();
            assert!(store.get(PRINT).unwrap().is_none(), "{bytes:?}");
            assert!(!path.exists(), "a damaged partition is removed");
        };
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            damage(&bytes);
        }
        (0..good.len()).for_each(|length| damage(&good[..length]));
    }
}
