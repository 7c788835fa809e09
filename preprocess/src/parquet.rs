//! Documents of a parquet file: the rows of one string column, read batch by batch.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use tokenmill_shared::{Error, Location, Result, storage};

use crate::decode;
use crate::document::{Document, Each, Flow, Start};
use crate::lines::{LINE_LIMIT, too_long};
use crate::source::{Compression, Input};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 256;

/// Hands the text of every row from `start` on to `each`.
pub fn for_each(input: &Input, column: &str, start: Start, each: &mut Each<'_>) -> Result<()> {
    let spooled = match input.compression {
        Compression::None => None,
        _ => Some(spool(input)?),
    };
    let path = spooled.as_ref().map_or(input.path.as_path(), |file| file.temporary_path());
    let file = RandomAccess(Arc::new(storage::open(path)?));
    let damaged = |row: u64, error: &dyn std::fmt::Display| {
        Error::input(
            Location::record(&input.path, row),
            format!("is not a readable parquet file ({error}); fetch it again or remove it"),
        )
    };
    // The reader can panic on malformed files (arrow-rs issues 10437, 7124).
    let guarded = |row: u64, result: std::thread::Result<std::result::Result<_, ParquetError>>| match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(damaged(row, &error)),
        Err(_) => Err(damaged(row, &"the reader panicked")),
    };
    let builder = guarded(1, catch_unwind(|| ParquetRecordBatchReaderBuilder::try_new(file)))?;
    let schema = Arc::clone(builder.schema());
    let Ok(index) = schema.index_of(column) else {
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let reason =
            format!("has no column {column:?} (it has {}); name the right one with --text_field", names.join(", "));
        return Err(Error::input(Location::file(&input.path), reason));
    };
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS).with_offset(start.at as usize);
    let mut batches = match catch_unwind(AssertUnwindSafe(|| builder.build())) {
        Ok(Ok(batches)) => batches,
        Ok(Err(error)) => return Err(damaged(1, &error)),
        Err(_) => return Err(damaged(1, &"the reader panicked")),
    };
    let mut row = start.at;
    loop {
        let batch = match catch_unwind(AssertUnwindSafe(|| batches.next())) {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(batch))) => batch,
            Ok(Some(Err(error))) => return Err(damaged(row + 1, &error)),
            Err(_) => return Err(damaged(row + 1, &"the reader panicked")),
        };
        for index in 0..batch.num_rows() {
            row += 1;
            let at = || Location::record(&input.path, row);
            let Some(text) = text_at(&batch, index) else {
                let held = batch.column(0).data_type().to_string();
                let reason = format!(
                    "the column {column:?} holds null or no text here (its type is {held}); correct it or use another --text_field"
                );
                return Err(Error::input(at(), reason));
            };
            if text.len() > LINE_LIMIT {
                return Err(too_long(at(), text.len() as u64));
            }
            if each(Document { text, record: row, end: row })? == Flow::Stop {
                return Ok(());
            }
        }
    }
}

fn text_at(batch: &RecordBatch, row: usize) -> Option<&str> {
    let column = batch.column(0);
    if column.is_null(row) {
        return None;
    }
    let text = column.as_string_opt::<i32>().map(|texts| texts.value(row));
    let text = text.or_else(|| column.as_string_opt::<i64>().map(|texts| texts.value(row)));
    text.or_else(|| column.as_string_view_opt().map(|texts| texts.value(row)))
}

/// A compressed parquet file needs its end first, so it is decompressed beside the system's temporaries
/// into a file that disappears with the process.
fn spool(input: &Input) -> Result<storage::TemporaryFile> {
    let mut file = storage::TemporaryFile::create(&std::env::temp_dir().join("tokenmill.parquet"))?;
    let mut reader = decode::open(input, decode::READ_BYTES)?;
    let mut buffer = vec![0; decode::READ_BYTES];
    let mut offset = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(|error| decode::explain(input, offset, error))?;
        if read == 0 {
            return Ok(file);
        }
        file.append(&buffer[..read])?;
        offset += read as u64;
    }
}

struct RandomAccess(Arc<storage::File>);

impl Length for RandomAccess {
    fn len(&self) -> u64 {
        self.0.size().unwrap_or(0)
    }
}

impl ChunkReader for RandomAccess {
    type T = io::BufReader<From>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(io::BufReader::new(From { file: Arc::clone(&self.0), offset: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<bytes::Bytes> {
        let end = start.checked_add(length as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(ParquetError::EOF(format!("bytes {start} + {length} lie beyond the end")));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, start).map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(bytes.into())
    }
}

struct From {
    file: Arc<storage::File>,
    offset: u64,
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset).map_err(io::Error::other)?;
        self.offset += read as u64;
        Ok(read)
    }
}
