//! Reading blocks: by position, checked before a token is handed out.
//!
//! A record batch's CRC32C is compared with the index whenever it is read, over bytes already in memory
//! (never a memory map, whose bytes could change after the check or end in a SIGBUS). So damage, truncation
//! and swapped or foreign shards are found before a token reaches a batch.
//!
//! A batch has 256 KiB, and who reads blocks in random order wants 2 KiB of it. Reading and checking all of it for each
//! block would be 128 times the work, so when a batch was checked the checksums of its pieces are kept: from then on a
//! block costs its piece, and is as certain as before ([`super::pieces`]).

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch};
use arrow_ipc::reader::StreamReader;

use super::index::{BatchEntry, Index};
use super::pieces::{Pieces, Recent};
use super::shard::{self, ALIGNMENT};
use super::{BlockReader, Layout, Manifest, ShardEntry, ShardKind, ShardName, Split, TokenWidth};
use crate::{Error, Result, storage};

/// The blocks of one split, readable from many threads.
#[derive(Debug)]
pub struct SplitReader {
    split: Split,
    block_size: usize,
    width: TokenWidth,
    blocks: u64,
    layout: Layout,
    is_remote: bool,
    last_block_valid_tokens: usize,
    data: Vec<Shard>,
    documents: Vec<Shard>,
    /// The schema message of sidecars, as we write it: no checksum of the index covers the one in the file.
    documents_schema: Vec<u8>,
    /// How many blocks of [`data`](Self::data) have a checksum together.
    blocks_in_piece: usize,
    recent: Recent,
}

/// One file and its record batches; opened when first read.
#[derive(Debug)]
struct Shard {
    name: ShardName,
    path: PathBuf,
    file: OnceLock<storage::File>,
    first_block: u64,
    blocks: u64,
    batches: Vec<Batch>,
}

#[derive(Debug)]
struct Batch {
    entry: BatchEntry,
    first_block: u64,
    /// Known when it was checked, unless it was read in one go with its neighbours.
    pieces: OnceLock<Pieces>,
}

impl SplitReader {
    pub(super) fn open(dir: &Path, manifest: &Manifest, index: &Index, split: Split) -> Result<Self> {
        let entry = &manifest.splits[&split];
        let block_bytes = (manifest.block_size * manifest.token_width.bytes()) as u64;
        let shards = |kind, block_bytes| {
            let mut first_block = 0;
            let of_kind = entry.shards.iter().filter(|shard| shard.name.kind == kind);
            let opened = of_kind.map(|shard| {
                let batches = index.get(&(split, shard.name)).map_or(&[][..], Vec::as_slice);
                let opened = Shard::open(shard.name.path(dir, split), shard, first_block, block_bytes, batches)?;
                first_block += opened.blocks;
                Ok(opened)
            });
            opened.collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            split,
            block_size: manifest.block_size,
            width: manifest.token_width,
            blocks: entry.blocks,
            layout: manifest.layout,
            is_remote: storage::is_remote(dir),
            last_block_valid_tokens: entry.last_block_valid_tokens as usize,
            data: shards(ShardKind::Data, block_bytes)?,
            documents: shards(ShardKind::Documents, 0)?,
            documents_schema: shard::schema_message(&shard::documents_schema(manifest.layout)),
            blocks_in_piece: Pieces::blocks(entry.blocks, block_bytes),
            recent: Recent::default(),
        })
    }

    /// Which split this is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The shard and the number of the batch that hold block `index`.
    fn find<'a>(&self, shards: &'a [Shard], index: u64) -> (&'a Shard, usize) {
        assert!(index < self.blocks, "block {index} of {} in split {}", self.blocks, self.split);
        let shard = &shards[shards.partition_point(|shard| shard.first_block + shard.blocks <= index)];
        let holds = |batch: &Batch| batch.first_block + u64::from(batch.entry.rows) <= index;
        (shard, shard.batches.partition_point(holds))
    }

    /// Bytes of `shard` in which block `index` lies are not what they should be.
    fn damaged(&self, shard: &Shard, index: u64, offset: u64, bytes: u64, why: &str) -> Error {
        let (split, end) = (self.split, offset + bytes);
        let reason =
            format!("block {index} of split {split}: bytes {offset} to {end} {why}; prepare the dataset again");
        Error::corrupt(&shard.path, reason)
    }

    /// Reads and checks a batch.
    fn read_batch(&self, shard: &Shard, number: usize, index: u64) -> Result<Vec<u8>> {
        let entry = &shard.batches[number].entry;
        let mut message = self.recent.buffer();
        message.resize(entry.bytes as usize, 0);
        shard.file()?.read_exact_at(&mut message, entry.offset)?;
        if crc32c::crc32c(&message) != entry.crc32c {
            return Err(self.damaged(shard, index, entry.offset, entry.bytes, "do not match their checksum"));
        }
        Ok(message)
    }

    /// The piece of a checked batch's ids in which the block of `row` lies, and where in it. The ids begin at `ids`.
    fn read_piece(&self, shard: &Shard, number: usize, index: u64, ids: usize) -> Option<Result<(Vec<u8>, usize)>> {
        let Batch { entry, first_block, pieces } = &shard.batches[number];
        let (row, block_bytes) = ((index - first_block) as usize, self.block_size * self.width.bytes());
        let piece = pieces.get()?.of(row, entry.rows as usize, block_bytes);
        let read = || {
            let offset = entry.offset + (ids + piece.bytes.start) as u64;
            let mut bytes = vec![0; piece.bytes.len()];
            shard.file()?.read_exact_at(&mut bytes, offset)?;
            if crc32c::crc32c(&bytes) != piece.crc32c {
                let why = "changed after they were checked";
                return Err(self.damaged(shard, index, offset, bytes.len() as u64, why));
            }
            Ok((bytes, row * block_bytes - piece.bytes.start))
        };
        Some(read())
    }

    /// The bytes of a block's ids.
    fn with_ids(&self, index: u64, take: impl FnOnce(&[u8])) -> Result<()> {
        let (shard, number) = self.find(&self.data, index);
        let batch = &shard.batches[number];
        let entry = &batch.entry;
        let row = (index - batch.first_block) as usize;
        let block_bytes = self.block_size * self.width.bytes();
        // The ids are the only buffer of the batch and its last bytes, padded to the alignment.
        let all_ids = entry.rows as usize * block_bytes;
        let no_batch =
            || self.damaged(shard, index, entry.offset, entry.bytes, "are not a record batch of this dataset");
        let ids = (entry.bytes as usize).checked_sub(all_ids.next_multiple_of(ALIGNMENT)).ok_or_else(no_batch)?;
        let in_order = self.recent.follows(index);
        let held = self.recent.take(shard.name, number);
        if held.is_none()
            && !in_order
            && let Some(piece) = self.read_piece(shard, number, index, ids)
        {
            let (bytes, start) = piece?;
            take(&bytes[start..start + block_bytes]);
            return Ok(());
        }
        let message = held.map_or_else(|| self.read_batch(shard, number, index), Ok)?;
        if !in_order {
            let all = &message[ids..ids + all_ids];
            batch.pieces.get_or_init(|| Pieces::new(all, self.blocks_in_piece, block_bytes));
        }
        let start = ids + row * block_bytes;
        take(&message[start..start + block_bytes]);
        self.recent.put(shard.name, number, message);
        Ok(())
    }
}

impl SplitReader {
    /// What the sidecar says of block `index`.
    fn of_sidecar<T>(&self, index: u64, read: impl Fn(&RecordBatch, usize) -> Option<T>) -> Result<T> {
        let (shard, number) = self.find(&self.documents, index);
        let Batch { entry, first_block, .. } = &shard.batches[number];
        let held = self.recent.take(shard.name, number);
        let message = held.map_or_else(|| self.read_batch(shard, number, index), Ok)?;
        // Our own bytes by their checksum; still, arrow's reader may panic, and a reader shall not.
        let found = catch_unwind(AssertUnwindSafe(|| {
            let stream = self.documents_schema.as_slice().chain(message.as_slice());
            read(&StreamReader::try_new(stream, None).ok()?.next()?.ok()?, (index - first_block) as usize)
        }));
        let no_batch =
            || self.damaged(shard, index, entry.offset, entry.bytes, "are not a record batch of this dataset");
        let found = found.ok().flatten().ok_or_else(no_batch)?;
        self.recent.put(shard.name, number, message);
        Ok(found)
    }
}

impl BlockReader for SplitReader {
    fn len(&self) -> u64 {
        self.blocks
    }

    fn block_size(&self) -> usize {
        self.block_size
    }

    fn valid_tokens(&self, index: u64) -> Result<usize> {
        match self.layout {
            Layout::Stream if index + 1 == self.blocks => Ok(self.last_block_valid_tokens),
            Layout::Stream => Ok(self.block_size),
            Layout::Blocks => self.of_sidecar(index, |batch, row| {
                let valid = batch.column(2).as_primitive_opt::<UInt32Type>()?;
                let valid = (row < valid.len()).then(|| valid.value(row) as usize)?;
                (valid <= self.block_size).then_some(valid)
            }),
        }
    }

    fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()> {
        self.with_ids(index, |ids| self.width.decode(ids, out))
    }

    fn read_bytes(&self, index: u64, width: TokenWidth, out: &mut Vec<u8>) -> Result<()> {
        self.with_ids(index, |ids| {
            if width == self.width {
                return out.extend_from_slice(ids);
            }
            let mut decoded = Vec::with_capacity(self.block_size);
            self.width.decode(ids, &mut decoded);
            width.encode(&decoded, out);
        })
    }

    fn fetched_with(&self, index: u64) -> Option<u64> {
        self.is_remote.then(|| {
            let (shard, number) = self.find(&self.data, index);
            shard.batches[number].first_block
        })
    }

    fn document_starts(&self, index: u64) -> Result<Vec<u32>> {
        self.of_sidecar(index, |batch, row| {
            let starts = list::<UInt32Type>(batch, 0, row)?;
            let inside = starts.last().is_none_or(|last| (*last as usize) < self.block_size);
            (starts.is_sorted_by(|a, b| a < b) && inside).then_some(starts)
        })
    }

    fn documents(&self, index: u64) -> Result<Option<Vec<u64>>> {
        match self.layout {
            Layout::Stream => Ok(None),
            Layout::Blocks => self.of_sidecar(index, |batch, row| list::<UInt64Type>(batch, 1, row)).map(Some),
        }
    }
}

/// The values of a list.
fn list<T: ArrowPrimitiveType>(batch: &RecordBatch, column: usize, row: usize) -> Option<Vec<T::Native>> {
    let lists = batch.column(column).as_list_opt::<i32>()?;
    let values = (row < lists.len()).then(|| lists.value(row))?;
    Some(values.as_primitive_opt::<T>()?.values().to_vec())
}

impl Shard {
    /// Compares the file's size with the manifest and the index with both. `block_bytes` is what a block
    /// takes at least.
    fn open(
        path: PathBuf,
        shard: &ShardEntry,
        first_block: u64,
        block_bytes: u64,
        entries: &[BatchEntry],
    ) -> Result<Self> {
        let damaged = |why: String| Error::corrupt(&path, format!("{why}; prepare the dataset again"));
        let expected = shard.file.bytes;
        match storage::stat(&path)?.map(|stat| stat.size) {
            None => return Err(damaged("is missing".to_owned())),
            Some(size) if size != expected => {
                return Err(damaged(format!("is {size} bytes long, the manifest says {expected}")));
            }
            Some(_) => {}
        }
        let mut batches = Vec::with_capacity(entries.len());
        let (mut blocks, mut end) = (0, 0);
        for entry in entries {
            let inside = entry.offset.checked_add(entry.bytes).is_some_and(|end| end <= expected);
            let enough = u64::from(entry.rows).checked_mul(block_bytes).is_some_and(|ids| ids <= entry.bytes);
            if entry.offset < end || !inside || !enough || entry.rows == 0 {
                return Err(damaged(format!("the index says something impossible of byte {}", entry.offset)));
            }
            batches.push(Batch { entry: *entry, first_block: first_block + blocks, pieces: OnceLock::new() });
            blocks += u64::from(entry.rows);
            end = entry.offset + entry.bytes;
        }
        if blocks != shard.blocks {
            return Err(damaged(format!("the index knows {blocks} of its {} blocks", shard.blocks)));
        }
        Ok(Self { name: shard.name, path, file: OnceLock::new(), first_block, blocks, batches })
    }

    fn file(&self) -> Result<&storage::File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = storage::open(&self.path)?;
        Ok(self.file.get_or_init(|| file))
    }
}
