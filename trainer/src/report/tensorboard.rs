//! TensorBoard's event files: protocol buffers in TFRecord frames.
//!
//! Sources: tensorflow/core/util/event.proto, framework/summary.proto, lib/io/record_writer.cc; tags as the
//! Trainer's TensorBoardCallback names them.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tokenmill_shared::Result;
use tokenmill_shared::storage::AppendFile;

/// A file of events.
#[derive(Debug)]
pub struct EventFile {
    file: AppendFile,
}

impl EventFile {
    /// A new file in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        let name = format!("events.out.tfevents.{}.tokenmill.{}.0", since_epoch() as u64, std::process::id());
        let mut file = Self { file: AppendFile::open(&dir.join(name))? };
        let mut event = Message::default();
        event.double(1, since_epoch());
        event.bytes(3, b"brain.Event:2");
        file.write(&event.0)?;
        Ok(file)
    }

    /// The numbers of a log entry, as scalars.
    pub fn scalars(&mut self, step: u64, entry: &Map<String, Value>) -> Result<()> {
        let mut summary = Message::default();
        for (key, value) in entry {
            let Some(value) = value.as_f64() else { continue };
            let tag = key.strip_prefix("eval_").map_or_else(|| format!("train/{key}"), |key| format!("eval/{key}"));
            let mut scalar = Message::default();
            scalar.bytes(1, tag.as_bytes());
            scalar.float(2, value as f32);
            summary.bytes(1, &scalar.0);
        }
        self.summary(step, &summary)
    }

    /// A text, under `<tag>/text_summary`.
    pub fn text(&mut self, tag: &str, text: &str) -> Result<()> {
        let (mut plugin, mut metadata, mut shape, mut size, mut tensor, mut value, mut summary) = Default::default();
        let all: [&mut Message; 7] =
            [&mut plugin, &mut metadata, &mut shape, &mut size, &mut tensor, &mut value, &mut summary];
        let [plugin, metadata, shape, size, tensor, value, summary] = all;
        plugin.bytes(1, b"text");
        metadata.bytes(1, &plugin.0);
        size.integer(1, 1);
        shape.bytes(2, &size.0);
        tensor.integer(1, 7); // DT_STRING
        tensor.bytes(2, &shape.0);
        tensor.bytes(8, text.as_bytes());
        value.bytes(1, format!("{tag}/text_summary").as_bytes());
        value.bytes(8, &tensor.0);
        value.bytes(9, &metadata.0);
        summary.bytes(1, &value.0);
        self.summary(0, summary)
    }

    fn summary(&mut self, step: u64, summary: &Message) -> Result<()> {
        let mut event = Message::default();
        event.double(1, since_epoch());
        event.integer(2, step);
        event.bytes(5, &summary.0);
        self.write(&event.0)
    }

    /// A TFRecord: length, its checksum, the data, its checksum.
    fn write(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked(&length).to_le_bytes());
        record.extend_from_slice(data);
        record.extend_from_slice(&masked(data).to_le_bytes());
        self.file.append(&record)
    }
}

fn since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// CRC-32C, rotated and shifted so that a checksum of data with checksums in it stays sound.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol-buffer message being written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}
