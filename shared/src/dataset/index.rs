//! `index.arrow`: for every record batch of every shard where it lies, how many blocks it holds and its
//! CRC32C. The index itself is checked against its BLAKE3 in the manifest before it is parsed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt8Type, UInt32Type, UInt64Type};
use arrow_array::{RecordBatch, UInt8Array, UInt32Array, UInt64Array};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema};

use super::{FileEntry, ShardKind, ShardName, Split};
use crate::{Error, Result, storage};

/// The file's name in the dataset's directory.
pub(super) const INDEX: &str = "index.arrow";

/// 40 bytes a batch: enough for 100 TB of ids.
const INDEX_LIMIT: u64 = 16 << 30;

/// Where one record batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchEntry {
    pub split: Split,
    pub shard: ShardName,
    /// Byte offset of the encapsulated message in the shard.
    pub offset: u64,
    /// Its length, metadata and body.
    pub bytes: u64,
    /// Blocks in it.
    pub rows: u32,
    /// CRC32C of those bytes.
    pub crc32c: u32,
}

fn schema() -> Arc<Schema> {
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        field("split", DataType::UInt8),
        field("kind", DataType::UInt8),
        field("shard", DataType::UInt32),
        field("offset", DataType::UInt64),
        field("bytes", DataType::UInt64),
        field("rows", DataType::UInt32),
        field("crc32c", DataType::UInt32),
    ]))
}

/// The index as the bytes of an Arrow stream.
pub(super) fn to_bytes(entries: &[BatchEntry]) -> Vec<u8> {
    let u8s = |value: fn(&BatchEntry) -> u8| Arc::new(UInt8Array::from_iter_values(entries.iter().map(value)));
    let u32s = |value: fn(&BatchEntry) -> u32| Arc::new(UInt32Array::from_iter_values(entries.iter().map(value)));
    let u64s = |value: fn(&BatchEntry) -> u64| Arc::new(UInt64Array::from_iter_values(entries.iter().map(value)));
    let batch = RecordBatch::try_new(
        schema(),
        vec![
            u8s(|entry| entry.split as u8),
            u8s(|entry| entry.shard.kind as u8),
            u32s(|entry| entry.shard.number),
            u64s(|entry| entry.offset),
            u64s(|entry| entry.bytes),
            u32s(|entry| entry.rows),
            u32s(|entry| entry.crc32c),
        ],
    );
    let write = || -> std::result::Result<Vec<u8>, ArrowError> {
        let mut writer = StreamWriter::try_new(Vec::new(), &schema())?;
        writer.write(&batch?)?;
        writer.finish()?;
        writer.into_inner()
    };
    write().expect("columns of one length, written to memory")
}

/// Reads and checks the index of the dataset at `dir`.
pub(super) fn load(dir: &Path, expected: &FileEntry) -> Result<Vec<BatchEntry>> {
    let path = dir.join(INDEX);
    let bytes = storage::read_at_most(&path, INDEX_LIMIT)?;
    if bytes.len() as u64 != expected.bytes || blake3::hash(&bytes).to_hex().as_str() != expected.blake3 {
        return Err(Error::corrupt(&path, "is damaged: its checksum is not the manifest's; prepare the dataset again"));
    }
    let parsed = catch_unwind(AssertUnwindSafe(|| parse(&bytes))).ok().and_then(std::result::Result::ok).flatten();
    parsed.ok_or_else(|| Error::corrupt(&path, "cannot be parsed although its checksum is right; report this"))
}

fn parse(bytes: &[u8]) -> std::result::Result<Option<Vec<BatchEntry>>, ArrowError> {
    let mut entries = Vec::new();
    for batch in StreamReader::try_new(bytes, None)? {
        let batch = batch?;
        if batch.schema() != schema() {
            return Ok(None);
        }
        let (split, kind) = (batch.column(0).as_primitive::<UInt8Type>(), batch.column(1).as_primitive::<UInt8Type>());
        let column32 = |index: usize| batch.column(index).as_primitive::<UInt32Type>();
        let column64 = |index: usize| batch.column(index).as_primitive::<UInt64Type>();
        for row in 0..batch.num_rows() {
            let Some(split) = Split::ALL.get(usize::from(split.value(row))) else { return Ok(None) };
            let kind = if kind.value(row) == 0 { ShardKind::Data } else { ShardKind::Documents };
            entries.push(BatchEntry {
                split: *split,
                shard: ShardName { kind, number: column32(2).value(row) },
                offset: column64(3).value(row),
                bytes: column64(4).value(row),
                rows: column32(5).value(row),
                crc32c: column32(6).value(row),
            });
        }
    }
    Ok(Some(entries))
}
