//! The zip archive around a pickle. Records are stored, not compressed, each with its CRC-32.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use half::{bf16, f16};
use tokenmill_shared::storage;
use tokenmill_shared::{Error, Result};
use zip::result::ZipError;
use zip::write::{SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Dtype, TensorRef, Value, contiguous, pickle};
use super::unpickle::unpickle;
use crate::ops::cpu::values;

/// A data.pkl beyond this is not one: tensors lie beside it.
const PICKLE_LIMIT: u64 = 64 << 20;

/// torch.save places every record at a multiple of it.
const ALIGNMENT: u16 = 64;

/// Values turned into bytes at a time.
const PIECE: usize = 1 << 18;

/// An open file of `torch.save`.
pub struct TorchFile {
    path: PathBuf,
    archive: ZipArchive<io::BufReader<storage::File>>,
    /// The directory in the archive that everything lies in.
    name: String,
    value: Value,
    /// Storages whose checksum was found right.
    checked: BTreeSet<String>,
}

impl TorchFile {
    /// Opens `path` and reads its pickle, not yet the tensors.
    ///
    /// # Errors
    /// A damaged archive; a pickle with anything but tensors and plain data.
    pub fn open(path: &Path) -> Result<Self> {
        let damaged = |error: ZipError| {
            let reason = format!("is no whole file of torch.save ({error}); use another checkpoint, or make it again");
            Error::corrupt(path, reason)
        };
        let file = storage::open(path)?;
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 0)?;
        if magic[0] == 0x80 {
            let reason = "is in the format PyTorch wrote before 1.6; load it in Python and torch.save it again";
            return Err(Error::corrupt(path, reason));
        }
        let archive = guarded(|| ZipArchive::new(io::BufReader::new(file))).map_err(damaged)?;
        let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
        let name = names.iter().find_map(|name| name.strip_suffix("/data.pkl")).map(str::to_owned);
        let Some(name) = name else {
            return Err(Error::corrupt(path, "holds no data.pkl, so torch.save did not write it"));
        };
        let mut file = Self { path: path.to_owned(), archive, name, value: Value::None, checked: BTreeSet::new() };
        if names.contains(&format!("{}/byteorder", file.name)) && file.record("byteorder", 16)? != b"little" {
            return Err(Error::corrupt(path, "was written on a big-endian machine; save it again on another"));
        }
        let bytes = file.record("data.pkl", PICKLE_LIMIT)?;
        file.value = unpickle(&bytes).map_err(|reason| Error::corrupt(path, format!("is refused: {reason}")))?;
        Ok(file)
    }

    /// What was saved.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The bytes of a record, of at most `limit`.
    fn record(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = format!("{}/{name}", self.name);
        let archive = &mut self.archive;
        let read = guarded(|| {
            let mut record = archive.by_name(&path)?;
            let size = record.size();
            if record.compression() != CompressionMethod::Stored || record.compressed_size() != size || size > limit {
                return Ok(Err(format!("has {size} bytes, {limit} are expected, not compressed")));
            }
            let mut bytes = Vec::new();
            record.read_to_end(&mut bytes)?;
            Ok(Ok(bytes))
        });
        self.believed(name, read)
    }

    /// The bytes of a storage from the first element of `tensor` to its last. The first time, all of the storage is read,
    /// for its checksum; but never more of it is kept.
    fn span(&mut self, tensor: &TensorRef) -> Result<Vec<u8>> {
        let (width, span) = (tensor.dtype.width() as u64, tensor.span());
        let (from, length) = (span.start as u64 * width, span.len() as u64 * width);
        let expected = tensor.elements as u64 * width;
        let (archive, name) = (&mut self.archive, format!("data/{}", tensor.key));
        let (path, is_checked) = (format!("{}/{name}", self.name), self.checked.contains(&tensor.key));
        let read = guarded(|| {
            let mut bytes = Vec::new();
            if is_checked {
                let mut record = archive.by_name_seek(&path)?;
                record.seek(SeekFrom::Start(from))?;
                record.take(length).read_to_end(&mut bytes)?;
                return Ok(Ok(bytes));
            }
            let mut record = archive.by_name(&path)?;
            let size = record.size();
            if record.compression() != CompressionMethod::Stored || record.compressed_size() != size || size != expected
            {
                return Ok(Err(format!("has {size} bytes, its tensor asks for {expected}, not compressed")));
            }
            io::copy(&mut record.by_ref().take(from), &mut io::sink())?;
            record.by_ref().take(length).read_to_end(&mut bytes)?;
            io::copy(&mut record, &mut io::sink())?;
            Ok(Ok(bytes))
        });
        let bytes = self.believed(&name, read)?;
        if bytes.len() as u64 != length {
            return self.believed(&name, Ok(Err("ends early".to_owned())));
        }
        self.checked.insert(tensor.key.clone());
        Ok(bytes)
    }

    /// What was read of the record `name`, or the error that names it.
    fn believed<T>(&self, name: &str, read: Result<Result<T, String>, ZipError>) -> Result<T> {
        let wrong = |reason: String| {
            let reason = format!("{}/{name} {reason}; use another checkpoint, or make it again", self.name);
            Error::corrupt(&self.path, reason)
        };
        read.map_err(|error| wrong(format!("is damaged ({error})")))?.map_err(wrong)
    }

    /// The values of a tensor of numbers, as f32.
    pub fn read(&mut self, tensor: &TensorRef) -> Result<Vec<f32>> {
        let (width, bytes) = (tensor.dtype.width(), self.span(tensor)?);
        let element = |at: usize| number(tensor.dtype, &bytes[at * width..][..width]);
        Ok(tensor.places().map(element).collect())
    }

    /// The bytes of a tensor, row-major.
    pub fn read_bytes(&mut self, tensor: &TensorRef) -> Result<Vec<u8>> {
        let (width, bytes) = (tensor.dtype.width(), self.span(tensor)?);
        Ok(tensor.places().flat_map(|at| &bytes[at * width..][..width]).copied().collect())
    }
}

fn number(dtype: Dtype, bytes: &[u8]) -> f32 {
    let pair = || [bytes[0], bytes[1]];
    let four = || [bytes[0], bytes[1], bytes[2], bytes[3]];
    let eight = || {
        let mut all = [0; 8];
        all.copy_from_slice(bytes);
        all
    };
    match dtype {
        Dtype::F32 => f32::from_le_bytes(four()),
        Dtype::F64 => f64::from_le_bytes(eight()) as f32,
        Dtype::F16 => f16::from_le_bytes(pair()).to_f32(),
        Dtype::Bf16 => bf16::from_le_bytes(pair()).to_f32(),
        Dtype::I64 => i64::from_le_bytes(eight()) as f32,
        Dtype::I32 => i32::from_le_bytes(four()) as f32,
        Dtype::I8 => (bytes[0] as i8).into(),
        Dtype::U8 | Dtype::Bool => bytes[0].into(),
    }
}

/// A panic of the zip reader, on a file made to cause one, is an error like any other.
fn guarded<T>(read: impl FnOnce() -> Result<T, ZipError>) -> Result<T, ZipError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(ZipError::InvalidArchive("it cannot be parsed".into())))
}

/// A file of `torch.save` in the making: its tensors, until it is written.
#[derive(Default)]
pub struct TorchWriter {
    storages: Vec<Tensor>,
}

impl TorchWriter {
    /// The value that stands for `tensor` (f32), whose bytes will be written.
    pub fn tensor(&mut self, tensor: &Tensor) -> Value {
        let (key, shape) = (self.storages.len().to_string(), tensor.dims().to_vec());
        self.storages.push(tensor.clone());
        let (elements, stride) = (tensor.elem_count(), contiguous(&shape));
        Value::Tensor(TensorRef { key, dtype: Dtype::F32, elements, offset: 0, shape, stride })
    }

    /// Writes `value`, whose tensors this made, to `out`; `name` is the file's name without its extension.
    pub fn write<W: Write>(self, out: W, name: &str, value: &Value) -> io::Result<W> {
        let mut zip = ZipWriter::new_stream(out);
        let options =
            SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(ALIGNMENT);
        for (record, bytes) in
            [("data.pkl", pickle(value)), ("byteorder", b"little".to_vec()), ("version", b"3\n".to_vec())]
        {
            zip.start_file(format!("{name}/{record}"), options)?;
            zip.write_all(&bytes)?;
        }
        let mut buffer = Vec::with_capacity(4 * PIECE);
        for (key, tensor) in self.storages.iter().enumerate() {
            let large = 4 * tensor.elem_count() as u64 >= u64::from(u32::MAX);
            zip.start_file(format!("{name}/data/{key}"), options.large_file(large))?;
            for piece in values(tensor).map_err(io::Error::other)?.chunks(PIECE) {
                buffer.clear();
                buffer.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
                zip.write_all(&buffer)?;
            }
        }
        Ok(zip.finish()?.into_inner())
    }
}
