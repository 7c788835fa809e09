//! Documents of an Arrow file, stream or file format: its rows, message by message.
//!
//! The file format is a stream between two marks, so one reader does for both. Messages are found by their headers and
//! read by position: rows before the start cost no reading of theirs. A stream without its end mark is a truncated one,
//! though `pyarrow` and `datasets` take it for whole.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::read_record_batch;
use arrow_ipc::{Message, MessageHeader, root_as_message};
use arrow_schema::{ArrowError, Schema};
use tokenmill_shared::{Error, Location, Result, storage};

use super::parquet::random_access;
use super::{Flow, Reading, Sink, columns};

/// What the file format begins with.
const FILE_MARK: &[u8; 8] = b"ARROW1\0\0";

/// A message's header, at most: a schema of many thousand columns needs less.
const HEADER_LIMIT: usize = 64 << 20;

/// A record batch, at most; it is in memory at once. `datasets` writes 1,000 rows into one.
const BATCH_LIMIT: u64 = 2 << 30;

/// Rows of a batch: an Arrow array of strings has no more.
const ROWS_LIMIT: u64 = 1 << 31;

/// Hands the text of every row from where reading starts on to `sink`.
pub(super) fn for_each(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let (file, _spooled) = random_access(reading.input)?;
    let mut messages = Messages::open(reading, &file)?;
    let schema = messages.schema()?;
    let wanted = columns::wanted(reading, &schema)?;
    while let Some((header, body)) = messages.next_message()? {
        let message = messages.parse(&header)?;
        let Some(batch) = message.header_as_record_batch() else {
            // Dictionaries are of columns that hold no text.
            messages.pass(body);
            continue;
        };
        let rows = u64::try_from(batch.length()).ok();
        let rows = rows.filter(|rows| *rows <= ROWS_LIMIT);
        let rows = rows.ok_or_else(|| messages.damaged(&"a batch of an impossible number of rows"))?;
        if messages.row + rows > reading.start.at {
            let bytes = messages.body(body)?;
            let decode = || {
                read_record_batch(
                    &bytes,
                    batch,
                    Arc::clone(&schema),
                    &HashMap::new(),
                    Some(&wanted),
                    &message.version(),
                )
            };
            // The reader can panic on malformed files, as that of parquet.
            let decoded = match catch_unwind(AssertUnwindSafe(decode)) {
                Ok(Ok(decoded)) if decoded.num_rows() as u64 == rows => decoded,
                Ok(Ok(_)) => return Err(messages.damaged(&"columns of other lengths than the batch")),
                Ok(Err(error)) => return Err(messages.damaged(&explained(error))),
                Err(_) => return Err(messages.damaged(&"the reader panicked")),
            };
            if columns::rows(reading, &decoded, messages.row, reading.start.at, sink)? == Flow::Stop {
                return Ok(());
            }
        }
        messages.pass(body);
        messages.row += rows;
    }
    Ok(())
}

fn explained(error: ArrowError) -> String {
    let said = error.to_string();
    if said.contains("compress") {
        return format!("{said}; save it again without compression");
    }
    said
}

/// Where a message's body lies.
#[derive(Debug, Clone, Copy)]
struct Body {
    at: u64,
    length: u64,
}

struct Messages<'a> {
    reading: &'a Reading<'a>,
    file: &'a storage::File,
    size: u64,
    at: u64,
    /// Rows before the present message.
    row: u64,
}

impl<'a> Messages<'a> {
    fn open(reading: &'a Reading<'a>, file: &'a storage::File) -> Result<Self> {
        let size = file.size()?;
        let mut messages = Self { reading, file, size, at: 0, row: 0 };
        if size >= 8 && messages.bytes::<8>(0)? == *FILE_MARK {
            messages.at = 8;
            // The stream begins at the next border of 8 bytes; arrow-rs leaves zeros up to one of 64.
            while messages.at < 64 && messages.bytes::<8>(messages.at)? == [0; 8] {
                messages.at += 8;
            }
        }
        Ok(messages)
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> Error {
        let at = Location::record(&self.reading.input.name, self.row + 1).at_byte(self.at);
        Error::input(at, format!("is not a readable Arrow file ({error}); fetch it again or remove it"))
    }

    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        if at + N as u64 > self.size {
            return Err(self.damaged(&"it is truncated: its end mark is missing"));
        }
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// The header of the next message, with the place and size of its body; `None` at the end mark.
    fn next_message(&mut self) -> Result<Option<(Vec<u8>, Body)>> {
        let mut length = u32::from_le_bytes(self.bytes(self.at)?);
        let mut begin = self.at + 4;
        // Before Arrow 0.15 there was no mark before the length.
        if length == u32::MAX {
            length = u32::from_le_bytes(self.bytes(begin)?);
            begin += 4;
        }
        let length = length as usize;
        if length == 0 {
            return Ok(None);
        }
        if length > HEADER_LIMIT || begin + length as u64 > self.size {
            return Err(self.damaged(&"a message beyond its end"));
        }
        let mut header = vec![0; length];
        self.file.read_exact_at(&mut header, begin)?;
        let body = u64::try_from(self.parse(&header)?.bodyLength()).unwrap_or(u64::MAX);
        let end = begin + length as u64;
        if body > self.size - end {
            return Err(self.damaged(&"it is truncated, or a batch goes beyond its end"));
        }
        if body > BATCH_LIMIT {
            let at = Location::record(&self.reading.input.name, self.row + 1);
            let remedy = "save it in smaller batches";
            return Err(Error::Limit {
                at,
                what: "a record batch's size in bytes",
                found: body,
                limit: BATCH_LIMIT,
                remedy,
            });
        }
        Ok(Some((header, Body { at: end, length: body })))
    }

    fn parse<'h>(&self, header: &'h [u8]) -> Result<Message<'h>> {
        root_as_message(header).map_err(|error| self.damaged(&error))
    }

    fn body(&self, Body { at, length }: Body) -> Result<Buffer> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(Buffer::from_vec(bytes))
    }

    fn pass(&mut self, Body { at, length }: Body) {
        self.at = at + length;
    }

    /// The first message.
    fn schema(&mut self) -> Result<Arc<Schema>> {
        let (header, body) = self.next_message()?.ok_or_else(|| self.damaged(&"it holds no schema"))?;
        let message = self.parse(&header)?;
        if message.header_type() != MessageHeader::Schema {
            return Err(self.damaged(&"it does not begin with a schema"));
        }
        let schema = message.header_as_schema().ok_or_else(|| self.damaged(&"it does not begin with a schema"))?;
        let schema = catch_unwind(AssertUnwindSafe(|| try_fb_to_schema(schema)));
        let schema = schema.map_err(|_| self.damaged(&"its schema cannot be read"))?;
        let schema = schema.map_err(|error| self.damaged(&error))?;
        self.pass(body);
        Ok(Arc::new(schema))
    }
}
