//! Python values as the pickle of `torch.save` holds them, and writing them.

use std::ops::Range;

/// Element types of storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floating point
    F32,
    /// 64-bit floating point
    F64,
    /// float16
    F16,
    /// bfloat16
    Bf16,
    /// 64-bit integers
    I64,
    /// 32-bit integers
    I32,
    /// Signed bytes
    I8,
    /// Bytes
    U8,
    /// Truth values, a byte each
    Bool,
}

impl Dtype {
    const NAMES: [(Self, &'static str, usize); 9] = [
        (Self::F32, "FloatStorage", 4),
        (Self::F64, "DoubleStorage", 8),
        (Self::F16, "HalfStorage", 2),
        (Self::Bf16, "BFloat16Storage", 2),
        (Self::I64, "LongStorage", 8),
        (Self::I32, "IntStorage", 4),
        (Self::I8, "CharStorage", 1),
        (Self::U8, "ByteStorage", 1),
        (Self::Bool, "BoolStorage", 1),
    ];

    /// The type whose storage class in `torch` is called `name`.
    pub(super) fn of_storage(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, class, _)| *class == name).map(|(dtype, ..)| *dtype)
    }

    fn entry(self) -> (&'static str, usize) {
        let entry = Self::NAMES.iter().find(|(dtype, ..)| *dtype == self);
        entry.map_or(("", 0), |(_, class, width)| (class, *width))
    }

    /// Bytes of one element.
    pub fn width(self) -> usize {
        self.entry().1
    }
}

/// A tensor as a pickle describes it: a view into a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    /// The name of the storage's record, below `data/`.
    pub key: String,
    /// Of the elements.
    pub dtype: Dtype,
    /// Elements in the storage.
    pub elements: usize,
    /// The first element of the tensor in it.
    pub offset: usize,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Elements from one to the next in each dimension.
    pub stride: Vec<usize>,
}

impl TensorRef {
    /// Elements of the tensor.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in the storage its elements lie, from the first to the last.
    pub fn span(&self) -> Range<usize> {
        if self.is_empty() {
            return 0..0;
        }
        let reaches = self.shape.iter().zip(&self.stride).map(|(length, stride)| (length - 1) * stride);
        self.offset..self.offset + reaches.sum::<usize>() + 1
    }

    /// Where in its span each element lies, row-major.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        let is_contiguous = self.stride == contiguous(&self.shape);
        (0..self.len()).map(move |index| {
            if is_contiguous {
                return index;
            }
            let dimensions = self.shape.iter().zip(&self.stride).rev();
            let (_, place) = dimensions
                .fold((index, 0), |(rest, place), (length, stride)| (rest / length, place + rest % length * stride));
            place
        })
    }
}

/// The strides of a contiguous tensor of shape `shape`.
pub(super) fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut stride = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        stride[at - 1] = stride[at] * shape[at].max(1);
    }
    stride
}

/// A Python value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `float`
    Float(f64),
    /// `str`
    Text(String),
    /// `tuple`
    Tuple(Vec<Value>),
    /// `list`
    List(Vec<Value>),
    /// `dict` or `OrderedDict`, in order
    Dict(Vec<(Value, Value)>),
    /// `torch.Tensor`
    Tensor(TensorRef),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Value {
    /// A dictionary with text keys.
    pub fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    /// What a dictionary holds under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(entries) = self else { return None };
        entries.iter().find(|(name, _)| matches!(name, Self::Text(name) if name == key)).map(|(_, value)| value)
    }

    /// The elements of a list or tuple.
    pub fn elements(&self) -> Option<&[Value]> {
        match self {
            Self::List(elements) | Self::Tuple(elements) => Some(elements),
            _ => None,
        }
    }

    /// A whole number.
    pub fn int(&self) -> Option<i64> {
        if let Self::Int(value) = self { Some(*value) } else { None }
    }

    /// A number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }
}

/// The pickle of `value`, protocol 2. Nothing is shared, so nothing needs the memo.
pub fn pickle(value: &Value) -> Vec<u8> {
    let mut bytes = vec![0x80, 2];
    write(&mut bytes, value);
    bytes.push(b'.');
    bytes
}

fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::None => out.push(b'N'),
        Value::Bool(value) => out.push(if *value { 0x88 } else { 0x89 }),
        Value::Int(value) => int(out, *value),
        Value::Float(value) => {
            out.push(b'G');
            out.extend(value.to_be_bytes());
        }
        Value::Text(value) => text(out, value),
        Value::Tuple(elements) => tuple(out, |out| elements.iter().for_each(|element| write(out, element))),
        Value::List(elements) => {
            out.extend(b"](");
            elements.iter().for_each(|element| write(out, element));
            out.push(b'e');
        }
        Value::Dict(entries) => {
            out.extend(b"}(");
            for (key, value) in entries {
                write(out, key);
                write(out, value);
            }
            out.push(b'u');
        }
        Value::Tensor(tensor) => rebuild_tensor(out, tensor),
    }
}

fn int(out: &mut Vec<u8>, value: i64) {
    if let Ok(value) = u8::try_from(value) {
        out.extend([b'K', value]);
    } else if let Ok(value) = i32::try_from(value) {
        out.push(b'J');
        out.extend(value.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend(value.to_le_bytes());
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.push(b'X');
    out.extend((value.len() as u32).to_le_bytes());
    out.extend(value.as_bytes());
}

fn tuple(out: &mut Vec<u8>, elements: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'(');
    elements(out);
    out.push(b't');
}

/// `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`
fn rebuild_tensor(out: &mut Vec<u8>, tensor: &TensorRef) {
    let sizes = |out: &mut Vec<u8>, sizes: &[usize]| {
        tuple(out, |out| sizes.iter().for_each(|size| int(out, *size as i64)));
    };
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n");
    tuple(out, |out| {
        tuple(out, |out| {
            text(out, "storage");
            out.extend(format!("ctorch\n{}\n", tensor.dtype.entry().0).as_bytes());
            text(out, &tensor.key);
            text(out, "cpu");
            int(out, tensor.elements as i64);
        });
        out.push(b'Q');
        int(out, tensor.offset as i64);
        sizes(out, &tensor.shape);
        sizes(out, &tensor.stride);
        out.push(0x89);
        out.extend(b"ccollections\nOrderedDict\n)R");
    });
    out.push(b'R');
}
