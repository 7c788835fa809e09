//! One file of named tensors: safetensors, or a state dict of `torch.save`. Opening it reads what it says of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tokenmill_shared::{Error, Result, storage};

use crate::torch::{self, TensorRef, TorchFile, Value};

/// As in the safetensors crate.
const HEADER_LIMIT: u64 = 100_000_000;

/// An open file.
pub(super) struct TensorFile {
    pub path: PathBuf,
    contents: Contents,
}

enum Contents {
    Safetensors {
        file: storage::File,
        tensors: BTreeMap<String, TensorInfo>,
        data_start: u64,
    },
    /// Reading moves about in the archive.
    Torch {
        file: Box<RefCell<TorchFile>>,
        tensors: BTreeMap<String, TensorRef>,
    },
}

impl TensorFile {
    /// Opens `path`, as its extension says.
    ///
    /// # Errors
    /// A truncated or damaged file; a pickle with anything but tensors.
    pub fn open(path: PathBuf) -> Result<Self> {
        let is_torch = path.extension().is_some_and(|extension| extension == "bin");
        let contents = if is_torch { open_torch(&path)? } else { open_safetensors(&path)? };
        Ok(Self { path, contents })
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        match &self.contents {
            Contents::Safetensors { tensors, .. } => tensors.keys().map(String::as_str).collect(),
            Contents::Torch { tensors, .. } => tensors.keys().map(String::as_str).collect(),
        }
    }

    /// Whether a tensor of this name is in it.
    pub fn holds(&self, name: &str) -> bool {
        match &self.contents {
            Contents::Safetensors { tensors, .. } => tensors.contains_key(name),
            Contents::Torch { tensors, .. } => tensors.contains_key(name),
        }
    }

    /// The shape of a tensor that it holds.
    pub fn shape(&self, name: &str) -> &[usize] {
        match &self.contents {
            Contents::Safetensors { tensors, .. } => &tensors[name].shape,
            Contents::Torch { tensors, .. } => &tensors[name].shape,
        }
    }

    /// The values of a tensor that it holds, of any float type.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let wrong_type = |dtype: &dyn std::fmt::Debug| {
            Error::corrupt(&self.path, format!("tensor {name} is {dtype:?}; f32, bf16 and f16 are read"))
        };
        match &self.contents {
            Contents::Safetensors { tensors, .. } => {
                let info = &tensors[name];
                let width = match info.dtype {
                    Dtype::F32 => 4,
                    Dtype::BF16 | Dtype::F16 => 2,
                    other => return Err(wrong_type(&other)),
                };
                let bytes = self.bytes_of_width(name, width)?;
                let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
                let words = || bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
                Ok(match info.dtype {
                    Dtype::F32 => words().map(f32::from_le_bytes).collect(),
                    Dtype::BF16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
                    _ => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
                })
            }
            Contents::Torch { file, tensors } => {
                let tensor = &tensors[name];
                match tensor.dtype {
                    torch::Dtype::F32 | torch::Dtype::F16 | torch::Dtype::Bf16 => file.borrow_mut().read(tensor),
                    other => Err(wrong_type(&other)),
                }
            }
        }
    }

    /// The bytes of a tensor that it holds, which must be unsigned.
    pub fn unsigned_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let is_unsigned = match &self.contents {
            Contents::Safetensors { tensors, .. } => tensors[name].dtype == Dtype::U8,
            Contents::Torch { tensors, .. } => tensors[name].dtype == torch::Dtype::U8,
        };
        if !is_unsigned {
            return Err(Error::corrupt(&self.path, format!("tensor {name} is not of bytes, which are called for")));
        }
        self.bytes_of_width(name, 1)
    }

    /// The bytes of a tensor that it holds, whatever its type.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        match &self.contents {
            Contents::Safetensors { file, tensors, data_start } => {
                let (start, end) = tensors[name].data_offsets;
                let mut bytes = vec![0; end.saturating_sub(start)];
                file.read_exact_at(&mut bytes, data_start + start as u64)?;
                Ok(bytes)
            }
            Contents::Torch { file, tensors } => file.borrow_mut().read_bytes(&tensors[name]),
        }
    }

    /// The bytes of a tensor whose values take `width` of them.
    fn bytes_of_width(&self, name: &str, width: usize) -> Result<Vec<u8>> {
        if let Contents::Safetensors { tensors, .. } = &self.contents {
            let (shape, (start, end)) = (&tensors[name].shape, tensors[name].data_offsets);
            let count = shape.iter().try_fold(width, |bytes, length| bytes.checked_mul(*length));
            if count.is_none() || end.checked_sub(start) != count {
                let reason = format!("tensor {name} has {} bytes for shape {shape:?}", end.saturating_sub(start));
                return Err(Error::corrupt(&self.path, reason));
            }
        }
        self.bytes(name)
    }
}

fn open_safetensors(path: &Path) -> Result<Contents> {
    let file = storage::open(path)?;
    let size = file.size()?;
    let damaged = |why: String| Error::corrupt(path, format!("{why}; fetch the checkpoint again"));
    let mut length = [0; 8];
    if size < 8 {
        return Err(damaged(format!("is truncated: {size} bytes are no safetensors file")));
    }
    file.read_exact_at(&mut length, 0)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_LIMIT || header_bytes > size - 8 {
        return Err(damaged(format!(
            "is truncated or damaged: its header says {header_bytes} bytes, the file has {size}"
        )));
    }
    let mut header = vec![0; 8 + header_bytes as usize];
    file.read_exact_at(&mut header, 0)?;
    let metadata: Metadata =
        serde_json::from_slice(&header[8..]).map_err(|error| damaged(format!("has an invalid header ({error})")))?;
    let tensors: BTreeMap<String, TensorInfo> =
        metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    let data_start = 8 + header_bytes;
    let end = tensors.values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
    if data_start + end != size {
        return Err(damaged(format!(
            "is truncated or damaged: its tensors end at byte {}, the file at {size}",
            data_start + end
        )));
    }
    Ok(Contents::Safetensors { file, tensors, data_start })
}

fn open_torch(path: &Path) -> Result<Contents> {
    let file = TorchFile::open(path)?;
    let Value::Dict(entries) = file.value() else {
        return Err(Error::corrupt(path, "holds no state dict: names and their tensors"));
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in entries {
        let (Value::Text(name), Value::Tensor(tensor)) = (name, value) else {
            let name = if let Value::Text(name) = name { name } else { "an entry without a name" };
            let reason = format!("holds {name:?}, which is no tensor; in Python, save model.state_dict() alone");
            return Err(Error::corrupt(path, reason));
        };
        tensors.insert(name.clone(), tensor.clone()); // as in Python, the last of a name counts
    }
    Ok(Contents::Torch { file: Box::new(RefCell::new(file)), tensors })
}
