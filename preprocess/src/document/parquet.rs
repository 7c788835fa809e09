//! Documents of a parquet file: its rows, of which only the columns that make text are read, batch by batch.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use tokenmill_shared::{Error, Location, Result, storage};

use super::row_groups::{self, Batches};
use super::{Flow, Reading, Sink, columns};
use crate::decode;
use crate::source::{Compression, Input};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 256;

/// Hands the text of every row from where reading starts on to `sink`.
pub(super) fn for_each(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let Reading { input, start, .. } = *reading;
    let (file, _spooled) = random_access(input)?;
    let file = RandomAccess(Arc::new(file));
    let damaged = |row: u64, error: &dyn std::fmt::Display| {
        Error::input(
            Location::record(&input.name, row),
            format!("is not a readable parquet file ({error}); fetch it again or remove it"),
        )
    };
    // The reader can panic on malformed files (arrow-rs issues 10437, 7124).
    let metadata = match catch_unwind(AssertUnwindSafe(|| ArrowReaderMetadata::load(&file, Default::default()))) {
        Ok(Ok(metadata)) => metadata,
        Ok(Err(error)) => return Err(damaged(1, &error)),
        Err(_) => return Err(damaged(1, &"the reader panicked")),
    };
    let wanted = columns::wanted(reading, metadata.schema())?;
    let mask = ProjectionMask::roots(metadata.parquet_schema(), wanted);
    let groups = metadata.metadata().row_groups();
    // The row group that the first row is in, and its first row.
    let (mut first, mut begins) = (0, 0);
    while let Some(group) = groups.get(first)
        && begins + group.num_rows().max(0) as u64 <= start.at
    {
        begins += group.num_rows().max(0) as u64;
        first += 1;
    }
    let open = |group: usize| {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file.clone(), metadata.clone());
        let builder = builder.with_projection(mask.clone()).with_batch_size(BATCH_ROWS).with_row_groups(vec![group]);
        let skipped = if group == first { start.at - begins } else { 0 };
        let batches = builder.with_offset(skipped as usize).build().map_err(|error| error.to_string())?;
        Ok(Box::new(batches.map(|batch| batch.map_err(|error| error.to_string()))) as Batches)
    };
    let mut row = start.at;
    row_groups::in_order(first, groups.len(), reading.decoders, &open, &mut |batch| {
        let batch = batch.map_err(|failure| damaged(row + 1, &failure))?;
        let flow = columns::rows(reading, &batch, row, row, sink)?;
        row += batch.num_rows() as u64;
        Ok(flow == Flow::Continue)
    })
}

/// The file for reads by position. A compressed one is decompressed beside the system's temporaries into a file that
/// disappears with what is returned beside.
pub(super) fn random_access(input: &Input) -> Result<(storage::File, Option<storage::TemporaryFile>)> {
    if input.compression == Compression::None {
        return Ok((storage::open(&input.path)?, None));
    }
    let mut file = storage::TemporaryFile::create(&std::env::temp_dir().join("tokenmill.spool"))?;
    let mut reader = decode::open(input, decode::READ_BYTES)?;
    let mut buffer = vec![0; decode::READ_BYTES];
    let mut offset = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(|error| decode::explain(input, offset, error))?;
        if read == 0 {
            return Ok((storage::open(file.temporary_path())?, Some(file)));
        }
        file.append(&buffer[..read])?;
        offset += read as u64;
    }
}

#[derive(Clone)]
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
