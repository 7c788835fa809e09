//! Writing one file of a split: an Arrow IPC stream, hashed and indexed as it is written.
//!
//! A shard holds one column, `input_ids: FixedSizeList<UInt16|UInt32, block_size>`; its sidecar
//! `document_starts: List<UInt32>`, for each block the offsets at which documents begin, and where blocks have documents
//! of their own `documents: List<UInt64>`, which these are, and `valid_tokens: UInt32`. Neither has nulls,
//! schema metadata or compression, so `datasets.load_from_disk` maps the ids without copying.
//! Source: Arrow columnar format, "IPC streaming format".

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt32Builder, UInt64Builder};
use arrow_array::{ArrayRef, FixedSizeListArray, RecordBatch, UInt16Array, UInt32Array};
use arrow_buffer::{Buffer, ScalarBuffer};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};

use super::index::BatchEntry;
use super::{FileEntry, Layout, ShardEntry, ShardKind, ShardName, Split, TokenWidth};
use crate::Result;
use crate::storage::TemporaryFile;

/// The bytes before a batch's ids end are padded to this many; arrow-ipc's default alignment.
pub(super) const ALIGNMENT: usize = 64;

fn id_type(width: TokenWidth) -> DataType {
    match width {
        TokenWidth::U16 => DataType::UInt16,
        TokenWidth::U32 => DataType::UInt32,
    }
}

/// The schema of shards of blocks.
pub fn data_schema(block_size: usize, width: TokenWidth) -> Arc<Schema> {
    let item = Arc::new(Field::new("item", id_type(width), false));
    let size = i32::try_from(block_size).expect("block_size is checked when the dataset is created");
    Arc::new(Schema::new(vec![Field::new("input_ids", DataType::FixedSizeList(item, size), false)]))
}

/// What a sidecar says of one block.
#[derive(Debug, Clone, Default)]
pub(super) struct SidecarRow {
    /// Offsets at which documents begin.
    pub starts: Vec<u32>,
    /// Which documents these are; of [`Layout::Blocks`] only, as the next.
    pub documents: Vec<u64>,
    /// Ids that are tokens.
    pub valid_tokens: u32,
}

fn item(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", data_type, false))
}

/// The schema of documents sidecars.
pub(super) fn documents_schema(layout: Layout) -> Arc<Schema> {
    let list = |name: &str, of| Field::new(name, DataType::List(item(of)), false);
    let mut fields = vec![list("document_starts", DataType::UInt32)];
    if layout == Layout::Blocks {
        fields.push(list("documents", DataType::UInt64));
        fields.push(Field::new("valid_tokens", DataType::UInt32, false));
    }
    Arc::new(Schema::new(fields))
}

/// The bytes with which a stream of this schema begins.
pub(super) fn schema_message(schema: &Schema) -> Vec<u8> {
    let stream = StreamWriter::try_new(Vec::new(), schema).expect("a stream into memory");
    stream.get_ref().clone()
}

/// Blocks as a record batch; `ids` holds a whole number of blocks, little-endian, without a copy.
pub fn data_batch(block_size: usize, width: TokenWidth, ids: Vec<u8>) -> RecordBatch {
    let count = ids.len() / width.bytes();
    let buffer = Buffer::from_vec(ids);
    let values: ArrayRef = match width {
        TokenWidth::U16 => Arc::new(UInt16Array::new(ScalarBuffer::new(buffer, 0, count), None)),
        TokenWidth::U32 => Arc::new(UInt32Array::new(ScalarBuffer::new(buffer, 0, count), None)),
    };
    let item = Arc::new(Field::new("item", id_type(width), false));
    let blocks = FixedSizeListArray::new(item, block_size as i32, values, None);
    RecordBatch::try_new(data_schema(block_size, width), vec![Arc::new(blocks)]).expect("the column is of the schema")
}

/// What is said of each block as a record batch.
pub(super) fn documents_batch(rows: &[SidecarRow], layout: Layout) -> RecordBatch {
    let mut starts = ListBuilder::new(UInt32Builder::new()).with_field(item(DataType::UInt32));
    for row in rows {
        starts.values().append_slice(&row.starts);
        starts.append(true);
    }
    let mut columns: Vec<ArrayRef> = vec![Arc::new(starts.finish())];
    if layout == Layout::Blocks {
        let mut documents = ListBuilder::new(UInt64Builder::new()).with_field(item(DataType::UInt64));
        for row in rows {
            documents.values().append_slice(&row.documents);
            documents.append(true);
        }
        columns.push(Arc::new(documents.finish()));
        columns.push(Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.valid_tokens))));
    }
    RecordBatch::try_new(documents_schema(layout), columns).expect("the columns are of the schema")
}

/// One file being written.
pub(super) struct ShardFile {
    split: Split,
    name: ShardName,
    file: TemporaryFile,
    stream: StreamWriter<Vec<u8>>,
    hasher: blake3::Hasher,
    offset: u64,
    blocks: u64,
}

impl ShardFile {
    pub(super) fn create(dir: &Path, split: Split, name: ShardName, schema: &Schema) -> Result<Self> {
        let file = TemporaryFile::create(&name.path(dir, split))?;
        let stream = StreamWriter::try_new(Vec::new(), schema).expect("a stream into memory");
        let mut shard = Self { split, name, file, stream, hasher: blake3::Hasher::new(), offset: 0, blocks: 0 };
        shard.flush()?;
        Ok(shard)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Writes one record batch and says where it lies.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<BatchEntry> {
        self.stream.write(batch).expect("a stream into memory");
        let offset = self.offset;
        let crc32c = crc32c::crc32c(self.stream.get_ref());
        self.flush()?;
        self.blocks += batch.num_rows() as u64;
        Ok(BatchEntry {
            split: self.split,
            shard: self.name,
            offset,
            bytes: self.offset - offset,
            rows: batch.num_rows() as u32,
            crc32c,
        })
    }

    /// Ends the stream and publishes the file.
    pub(super) fn finish(mut self) -> Result<ShardEntry> {
        self.stream.finish().expect("a stream into memory");
        self.flush()?;
        let file = FileEntry { bytes: self.offset, blake3: self.hasher.finalize().to_hex().to_string() };
        self.file.publish_read_only()?;
        Ok(ShardEntry { name: self.name, blocks: self.blocks, file })
    }

    fn flush(&mut self) -> Result<()> {
        let bytes = self.stream.get_mut();
        self.hasher.update(bytes);
        self.file.append(bytes)?;
        self.offset += bytes.len() as u64;
        bytes.clear();
        Ok(())
    }
}

/// A pair of files, blocks and where documents begin in them.
pub(super) struct ShardPair {
    pub data: ShardFile,
    pub documents: ShardFile,
}

impl ShardPair {
    pub(super) fn create(
        dir: &Path,
        split: Split,
        number: u32,
        block_size: usize,
        width: TokenWidth,
        layout: Layout,
    ) -> Result<Self> {
        let name = |kind| ShardName { kind, number };
        Ok(Self {
            data: ShardFile::create(dir, split, name(ShardKind::Data), &data_schema(block_size, width))?,
            documents: ShardFile::create(dir, split, name(ShardKind::Documents), &documents_schema(layout))?,
        })
    }
}
