//! `index.arrow`: for every record batch of every shard where it lies, how many blocks it holds and its
//! CRC32C. The index itself is checked against its BLAKE3 in the manifest before it is parsed.

use std::collections::BTreeMap;
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

/// The record batches of each file, in the order of their offsets.
pub(super) type Index = BTreeMap<(Split, ShardName), Vec<BatchEntry>>;

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
pub(super) fn load(dir: &Path, expected: &FileEntry) -> Result<Index> {
    let path = dir.join(INDEX);
    let damaged =
        || Error::corrupt(&path, "is missing or damaged: it is not what the manifest says; prepare the dataset again");
    if storage::stat(&path)?.is_none_or(|stat| stat.size != expected.bytes) {
        return Err(damaged());
    }
    let bytes = storage::read_at_most(&path, expected.bytes)?;
    if blake3::hash(&bytes).to_hex().as_str() != expected.blake3 {
        return Err(damaged());
    }
    let parsed = catch_unwind(AssertUnwindSafe(|| parse(&bytes))).ok().and_then(std::result::Result::ok).flatten();
    parsed.ok_or_else(|| Error::corrupt(&path, "cannot be parsed although its checksum is right; report this"))
}

fn parse(bytes: &[u8]) -> std::result::Result<Option<Index>, ArrowError> {
    let mut index = Index::new();
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
            let Some(kind) = ShardKind::ALL.get(usize::from(kind.value(row))) else { return Ok(None) };
            let entry = BatchEntry {
                split: *split,
                shard: ShardName { kind: *kind, number: column32(2).value(row) },
                offset: column64(3).value(row),
                bytes: column64(4).value(row),
                rows: column32(5).value(row),
                crc32c: column32(6).value(row),
            };
            index.entry((entry.split, entry.shard)).or_default().push(entry);
        }
    }
    Ok(Some(index))
}
