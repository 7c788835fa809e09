//! Reading a pickle without running anything.
//!
//! Only the opcodes and calls that `torch.save` makes of tensors and plain data are known; anything else is refused
//! by name. Time and memory are bounded by the pickle's length: while it is read, values lie flat and refer to each
//! other by number, so that what is nested or shared costs nothing; then the result is copied out, at most
//! [`MOST_VALUES`] values, nested at most [`DEEPEST`]. Opcodes: Lib/pickletools.py of CPython.

use super::pickle::{Dtype, TensorRef, Value};

/// Values copied out of one pickle. An optimizer's state has about 20 for each tensor.
const MOST_VALUES: usize = 1 << 22;

/// Levels of nesting: an optimizer's state has five.
const DEEPEST: usize = 16;

/// A number into [`Reader::nodes`].
type Id = usize;

/// A value whose parts are referred to.
enum Node {
    Plain(Value),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Call(Callable),
    Storage { key: String, dtype: Dtype, elements: usize },
}

/// What a pickle may name.
#[derive(Clone, Copy)]
enum Callable {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Storage(Dtype),
}

impl Callable {
    fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch", class) => Dtype::of_storage(class).map(Self::Storage),
            _ => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack where a mark was set.
    marks: Vec<usize>,
    memo: std::collections::HashMap<u32, Id>,
}

/// The value that `bytes` describe.
///
/// # Errors
/// What is wrong and at which byte: an unknown opcode, a call that is not allowed, a pickle that ends early.
pub fn unpickle(bytes: &[u8]) -> Result<Value, String> {
    let mut reader =
        Reader { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: Default::default() };
    loop {
        let at = reader.at;
        match reader.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                let mut left = MOST_VALUES;
                return reader.copy_out(root, DEEPEST, &mut left);
            }
            Err(reason) => return Err(format!("at byte {at} of the pickle: {reason}")),
        }
    }
}

impl Reader<'_> {
    /// Follows one opcode; the result when it is the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        match self.byte()? {
            0x80 => match self.byte()? {
                0..=3 => {}
                version => return Err(format!("protocol {version} is not what torch.save writes")),
            },
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.plain(Value::None),
            0x88 => self.plain(Value::Bool(true)),
            0x89 => self.plain(Value::Bool(false)),
            b'K' => {
                let value = self.byte()?;
                self.plain(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.plain(Value::Int(value.into()));
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.plain(Value::Int(value.into()));
            }
            0x8a => {
                let length = self.byte()?.into();
                let digits = self.take(length)?;
                if digits.len() > 8 {
                    return Err(format!("an integer of {} bytes", digits.len()));
                }
                let sign = digits.last().is_some_and(|top| *top >= 0x80);
                let mut all = if sign { [0xff; 8] } else { [0; 8] };
                all[..digits.len()].copy_from_slice(digits);
                self.plain(Value::Int(i64::from_le_bytes(all)));
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.plain(Value::Float(value));
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?) as usize;
                let text = std::str::from_utf8(self.take(length)?).map_err(|_| "text that is not UTF-8".to_owned())?;
                let text = text.to_owned();
                self.plain(Value::Text(text));
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            b't' => {
                let elements = self.pop_to_mark()?;
                self.push(Node::Tuple(elements));
            }
            count @ 0x85..=0x87 => {
                let count = usize::from(count - 0x84);
                let from = self.floor(count)?;
                let elements = self.stack.split_off(from);
                self.push(Node::Tuple(elements));
            }
            b']' => self.push(Node::List(Vec::new())),
            b'a' => {
                let element = self.pop()?;
                self.extend_list(vec![element])?;
            }
            b'e' => {
                let elements = self.pop_to_mark()?;
                self.extend_list(elements)?;
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(vec![key, value])?;
            }
            b'u' => {
                let entries = self.pop_to_mark()?;
                self.extend_dict(entries)?;
            }
            b'q' => {
                let key = self.byte()?.into();
                self.remember(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            b'h' => {
                let key = self.byte()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let Some(callable) = Callable::named(&module, &name) else {
                    return Err(format!("{module}.{name} is no part of tensors and plain data; it was not run"));
                };
                self.push(Node::Call(callable));
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage);
            }
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)?;
            }
            b'b' => {
                // A state dict carries versions of its modules as an attribute; nothing here asks for it.
                self.pop()?;
                let target = *self.top()?;
                if !matches!(self.nodes[target], Node::Dict(_)) {
                    return Err("sets attributes of something that is no dictionary".to_owned());
                }
            }
            opcode => return Err(format!("opcode 0x{opcode:02x} is not among those torch.save uses")),
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end =
            end.ok_or_else(|| format!("{length} bytes are called for, {} are left", self.bytes.len() - self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The name up to the next newline.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(256).position(|byte| *byte == b'\n');
        let name = self.take(length.ok_or("a name without an end")?)?.escape_ascii().to_string();
        self.take(1)?;
        Ok(name)
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn plain(&mut self, value: Value) {
        self.push(Node::Plain(value));
    }

    /// The height of the stack without its `count` topmost values, none of them below the last mark.
    fn floor(&self, count: usize) -> Result<usize, String> {
        let lowest = self.marks.last().copied().unwrap_or(0);
        let height = self.stack.len().checked_sub(count).filter(|height| *height >= lowest);
        height.ok_or_else(|| "more is called for than was pushed".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.floor(1)?;
        Ok(self.stack.pop().unwrap_or_default())
    }

    fn top(&self) -> Result<&Id, String> {
        self.stack.last().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("an end without a beginning")?;
        Ok(self.stack.split_off(mark))
    }

    fn extend_list(&mut self, elements: Vec<Id>) -> Result<(), String> {
        let list = *self.top()?;
        let Node::List(list) = &mut self.nodes[list] else { return Err("appends to what is no list".to_owned()) };
        list.extend(elements);
        Ok(())
    }

    fn extend_dict(&mut self, entries: Vec<Id>) -> Result<(), String> {
        let dict = *self.top()?;
        let (pairs, []) = entries.as_chunks::<2>() else { return Err("a key without a value".to_owned()) };
        let Node::Dict(dict) = &mut self.nodes[dict] else { return Err("sets entries of no dictionary".to_owned()) };
        dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<(), String> {
        let value = *self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let value = self.memo.get(&key).ok_or_else(|| format!("recalls {key}, which was not remembered"))?;
        self.stack.push(*value);
        Ok(())
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        if let Node::Tuple(elements) = &self.nodes[id] { Ok(elements) } else { Err("not a tuple".to_owned()) }
    }

    fn size(&self, id: Id) -> Result<usize, String> {
        match &self.nodes[id] {
            Node::Plain(Value::Int(size)) if (0..1 << 48).contains(size) => Ok(*size as usize),
            _ => Err("not a size".to_owned()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        self.tuple(id)?.iter().map(|size| self.size(*size)).collect()
    }

    /// The storage that `("storage", class, key, location, elements)` stands for.
    fn storage(&self, id: Id) -> Result<Node, String> {
        let &[kind, class, key, _location, elements] = self.tuple(id)? else {
            return Err("a reference that is not to a storage".to_owned());
        };
        match (&self.nodes[kind], &self.nodes[class], &self.nodes[key]) {
            (Node::Plain(Value::Text(kind)), Node::Call(Callable::Storage(dtype)), Node::Plain(Value::Text(key)))
                if kind == "storage"
                    && (1..=20).contains(&key.len())
                    && key.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
            {
                Ok(Node::Storage { key: key.clone(), dtype: *dtype, elements: self.size(elements)? })
            }
            _ => Err("a reference that is not to a storage".to_owned()),
        }
    }

    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), String> {
        let Node::Call(callable) = self.nodes[callable] else { return Err("calls what cannot be called".to_owned()) };
        let arguments = self.tuple(arguments)?;
        match (callable, arguments) {
            (Callable::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            // (tensor, requires_grad, backward_hooks)
            (Callable::RebuildParameter, &[tensor, _, _]) => {
                if !matches!(self.nodes[tensor], Node::Plain(Value::Tensor(_))) {
                    return Err("a parameter that is no tensor".to_owned());
                }
                self.stack.push(tensor);
            }
            // (storage, offset, size, stride, requires_grad, backward_hooks)
            (Callable::RebuildTensor, &[storage, offset, shape, stride, _, _]) => {
                let Node::Storage { key, dtype, elements } = &self.nodes[storage] else {
                    return Err("a tensor without a storage".to_owned());
                };
                let (key, dtype, elements) = (key.clone(), *dtype, *elements);
                let (offset, shape, stride) = (self.size(offset)?, self.sizes(shape)?, self.sizes(stride)?);
                let tensor = TensorRef { key, dtype, elements, offset, shape, stride };
                check_view(&tensor)?;
                self.plain(Value::Tensor(tensor));
            }
            _ => return Err("a call with other arguments than torch.save gives".to_owned()),
        }
        Ok(())
    }

    /// The value of `id`, nested at most `depth`, of at most `left` values.
    fn copy_out(&self, id: Id, depth: usize, left: &mut usize) -> Result<Value, String> {
        // A text that is shared is copied too, so it counts by its length.
        let cost = if let Node::Plain(Value::Text(text)) = &self.nodes[id] { 1 + text.len() / 64 } else { 1 };
        *left = left.checked_sub(cost).ok_or_else(|| format!("the pickle holds more than {MOST_VALUES} values"))?;
        let depth = depth.checked_sub(1).ok_or_else(|| format!("the pickle nests deeper than {DEEPEST}"))?;
        let mut all = |ids: &[Id]| ids.iter().map(|id| self.copy_out(*id, depth, left)).collect::<Result<_, _>>();
        Ok(match &self.nodes[id] {
            Node::Plain(value) => value.clone(),
            Node::Tuple(elements) => Value::Tuple(all(elements)?),
            Node::List(elements) => Value::List(all(elements)?),
            Node::Dict(entries) => {
                let mut copied = Vec::new();
                for (key, value) in entries {
                    copied.push((self.copy_out(*key, depth, left)?, self.copy_out(*value, depth, left)?));
                }
                Value::Dict(copied)
            }
            Node::Call(_) | Node::Storage { .. } => {
                return Err("the pickle holds a class or storage where data belongs".to_owned());
            }
        })
    }
}

/// A view must lie in its storage, and not show an element twice: its size would not be bounded by the file's.
fn check_view(tensor: &TensorRef) -> Result<(), String> {
    let wrong = || format!("a tensor of shape {:?} in a storage of {} elements", tensor.shape, tensor.elements);
    if tensor.shape.len() != tensor.stride.len() || tensor.shape.len() > DEEPEST {
        return Err(wrong());
    }
    let mut size = 1usize;
    let mut last = tensor.offset;
    for (length, stride) in tensor.shape.iter().zip(&tensor.stride) {
        size = size.checked_mul(*length).ok_or_else(wrong)?;
        let reach = length.saturating_sub(1).checked_mul(*stride);
        last = reach.and_then(|reach| reach.checked_add(last)).ok_or_else(wrong)?;
    }
    let inside = size == 0 || last < tensor.elements && size <= tensor.elements;
    if inside { Ok(()) } else { Err(wrong()) }
}
