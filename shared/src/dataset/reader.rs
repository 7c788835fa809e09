//! Reading blocks: by position, checked before a token is handed out.
//!
//! A record batch's CRC32C is compared with the index when it is first touched, over bytes already in
//! memory (never a memory map, whose bytes could change after the check or end in a SIGBUS). So damage,
//! truncation and swapped or foreign shards are found before a token reaches a batch.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_ipc::reader::StreamReader;

use super::index::BatchEntry;
use super::shard::ALIGNMENT;
use super::{Manifest, ShardKind, Split};
use crate::{Error, Result, storage};

/// The blocks of one split, readable from many threads.
#[derive(Debug)]
pub struct SplitReader {
    split: Split,
    block_size: usize,
    width: super::TokenWidth,
    blocks: u64,
    last_block_valid_tokens: usize,
    data: Vec<OpenShard>,
    documents: Vec<OpenShard>,
}

/// One open file and its record batches.
#[derive(Debug)]
struct OpenShard {
    file: storage::File,
    first_block: u64,
    blocks: u64,
    batches: Vec<Batch>,
    /// The batch read last and its bytes: neighbouring blocks cost one read.
    recent: Mutex<Option<(usize, Vec<u8>)>>,
}

#[derive(Debug)]
struct Batch {
    entry: BatchEntry,
    first_block: u64,
    checked: AtomicBool,
}

impl SplitReader {
    pub(super) fn open(dir: &Path, manifest: &Manifest, index: &[BatchEntry], split: Split) -> Result<Self> {
        let entry = &manifest.splits[&split];
        let (mut data, mut documents) = (Vec::new(), Vec::new());
        for kind in [ShardKind::Data, ShardKind::Documents] {
            let mut first_block = 0;
            for shard in entry.shards.iter().filter(|shard| shard.name.kind == kind) {
                let path = shard.name.path(dir, split);
                let batches = index.iter().filter(|batch| batch.split == split && batch.shard == shard.name);
                let open = OpenShard::open(&path, shard.file.bytes, first_block, batches)?;
                if open.blocks != shard.blocks {
                    return Err(Error::corrupt(
                        &path,
                        "index and manifest disagree on its blocks; prepare the dataset again",
                    ));
                }
                first_block += shard.blocks;
                if kind == ShardKind::Data { &mut data } else { &mut documents }.push(open);
            }
            if first_block != entry.blocks {
                return Err(Error::corrupt(
                    dir,
                    format!(
                        "the shards of split {split} hold {first_block} blocks, its manifest says {}",
                        entry.blocks
                    ),
                ));
            }
        }
        Ok(Self {
            split,
            block_size: manifest.block_size,
            width: manifest.token_width,
            blocks: entry.blocks,
            last_block_valid_tokens: entry.last_block_valid_tokens as usize,
            data,
            documents,
        })
    }

    /// Which split this is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.blocks
    }

    /// Whether there is no block at all.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Ids in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// How many ids of block `index` are tokens; the rest is padding and never a label.
    pub fn valid_tokens(&self, index: u64) -> usize {
        if index + 1 == self.blocks { self.last_block_valid_tokens } else { self.block_size }
    }

    /// Appends the `block_size` ids of block `index` to `out`.
    ///
    /// # Errors
    /// The bytes are not those that were written, naming file and place; `out` is then unchanged.
    pub fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()> {
        let block_bytes = self.block_size * self.width.bytes();
        self.with_batch(&self.data, index, |message, entry, row| {
            // The ids are the only buffer of the batch and its last bytes, padded to the alignment.
            let ids = entry.rows as usize * block_bytes;
            let start = message.len().checked_sub(ids.next_multiple_of(ALIGNMENT))? + row * block_bytes;
            self.width.decode(message.get(start..start + block_bytes)?, out);
            Some(())
        })
    }

    /// The offsets in block `index` at which documents begin, ascending.
    pub fn document_starts(&self, index: u64) -> Result<Vec<u32>> {
        let shard = self.shard_of(&self.documents, index);
        let schema_bytes = shard.batches.first().map_or(0, |batch| batch.entry.offset);
        let mut stream = vec![0; schema_bytes as usize];
        shard.file.read_exact_at(&mut stream, 0)?;
        self.with_batch(&self.documents, index, |message, _, row| {
            stream.extend_from_slice(message);
            let batch = StreamReader::try_new(stream.as_slice(), None).ok()?.next()?.ok()?;
            let starts = batch.column(0).as_list_opt::<i32>()?;
            let starts = (row < starts.len()).then(|| starts.value(row))?;
            Some(starts.as_primitive_opt::<UInt32Type>()?.values().to_vec())
        })
    }

    fn shard_of<'a>(&self, shards: &'a [OpenShard], index: u64) -> &'a OpenShard {
        assert!(index < self.blocks, "block {index} of {} in split {}", self.blocks, self.split);
        &shards[shards.partition_point(|shard| shard.first_block + shard.blocks <= index)]
    }

    fn with_batch<T>(
        &self,
        shards: &[OpenShard],
        index: u64,
        read: impl FnOnce(&[u8], &BatchEntry, usize) -> Option<T>,
    ) -> Result<T> {
        let shard = self.shard_of(shards, index);
        let number = shard.batches.partition_point(|batch| batch.first_block + u64::from(batch.entry.rows) <= index);
        let batch = &shard.batches[number];
        let row = (index - batch.first_block) as usize;
        let damaged = |why: &str| {
            let end = batch.entry.offset + batch.entry.bytes;
            Error::corrupt(
                shard.file.path(),
                format!(
                    "block {index} of split {}: bytes {} to {end} {why}; prepare the dataset again",
                    self.split, batch.entry.offset
                ),
            )
        };
        let mut recent = shard.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut message = match recent.take() {
            Some((held, message)) if held == number => message,
            other => {
                let mut message = other.map(|(_, bytes)| bytes).unwrap_or_default();
                message.resize(batch.entry.bytes as usize, 0);
                shard.file.read_exact_at(&mut message, batch.entry.offset)?;
                if !batch.checked.load(Ordering::Acquire) {
                    if crc32c::crc32c(&message) != batch.entry.crc32c {
                        return Err(damaged("do not match their checksum"));
                    }
                    batch.checked.store(true, Ordering::Release);
                }
                message
            }
        };
        let result = read(&message, &batch.entry, row).ok_or_else(|| damaged("are not a record batch of this dataset"));
        message.truncate(batch.entry.bytes as usize);
        *recent = Some((number, message));
        result
    }
}

impl OpenShard {
    fn open<'a>(
        path: &Path,
        bytes: u64,
        first_block: u64,
        entries: impl Iterator<Item = &'a BatchEntry>,
    ) -> Result<Self> {
        let file = storage::open(path)?;
        let found = file.size()?;
        if found != bytes {
            return Err(Error::corrupt(
                path,
                format!("is {found} bytes long, the manifest says {bytes}; prepare the dataset again"),
            ));
        }
        let mut batches = Vec::new();
        let (mut blocks, mut end) = (0, 0);
        for entry in entries {
            let inside = entry.offset >= end && entry.offset.checked_add(entry.bytes).is_some_and(|end| end <= bytes);
            if !inside || entry.rows == 0 {
                return Err(Error::corrupt(
                    path,
                    format!("the index points outside it (byte {}); prepare the dataset again", entry.offset),
                ));
            }
            batches.push(Batch { entry: *entry, first_block: first_block + blocks, checked: AtomicBool::new(false) });
            blocks += u64::from(entry.rows);
            end = entry.offset + entry.bytes;
        }
        Ok(Self { file, first_block, blocks, batches, recent: Mutex::new(None) })
    }
}
