//! Files of PyTorch read, and ours read back; pickles that would run something are refused.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value as Json;
use tokenmill_shared::storage;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/torch").join(name)
}

fn tensors(value: &Value) -> Vec<(&str, &TensorRef)> {
    let Value::Dict(entries) = value else { panic!("{value:?}") };
    entries
        .iter()
        .filter_map(|(key, value)| match (key, value) {
            (Value::Text(key), Value::Tensor(tensor)) => Some((key.as_str(), tensor)),
            _ => None,
        })
        .collect()
}

/// Written by PyTorch 2.15 (`tests/data/torch/make.py`): every type of element, views, shared storages, a state dict.
#[test]
fn files_of_torch_are_read() {
    let mut file = TorchFile::open(&golden("values.pt")).unwrap();
    let value = file.value().clone();
    let numbers: Vec<f64> =
        value.get("numbers").unwrap().elements().unwrap().iter().filter_map(Value::number).collect();
    assert_eq!(numbers, [0.0, 255.0, 65535.0, -1.0, 2147483647.0, -1099511627776.0, 0.1, f64::NEG_INFINITY]);
    let plain = [Value::None, Value::Bool(true), Value::Bool(false), "磨坊".into()];
    assert_eq!(value.get("plain"), Some(&Value::Tuple(plain.to_vec())));
    assert_eq!(value.get("pair"), Some(&Value::Tuple(vec![Value::Int(1), Value::Int(2)])));
    let empty = vec![Value::Dict(vec![]), Value::Tuple(vec![]), Value::List(vec![])];
    assert_eq!(value.get("empty"), Some(&Value::List(empty)));
    let expected: Json = serde_json::from_slice(&storage::read(&golden("values.json")).unwrap()).unwrap();
    let mut found = tensors(&value);
    found.extend(tensors(value.get("state_dict").unwrap()));
    assert_eq!(found.len(), expected.as_object().unwrap().len());
    for (name, tensor) in found {
        let shape: Vec<usize> = serde_json::from_value(expected[name][0].clone()).unwrap();
        let values: Vec<f64> = serde_json::from_value(expected[name][1].clone()).unwrap();
        assert_eq!(tensor.shape, shape, "{name}");
        assert!(file.read(tensor).unwrap().into_iter().eq(values.into_iter().map(|value| value as f32)), "{name}");
    }
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.pt");
    let mut writer = TorchWriter::default();
    let matrix = Tensor::new(&[[1f32, -2.5], [f32::MIN_POSITIVE, 3e38]], &Device::Cpu).unwrap();
    let scalar = Tensor::new(7f32, &Device::Cpu).unwrap();
    let value = Value::dict([
        ("tensors", Value::List(vec![writer.tensor(&matrix), writer.tensor(&scalar)])),
        ("numbers", Value::Tuple([0, 255, 256, -1, i64::MAX, i64::MIN].map(Value::Int).to_vec())),
        ("floats", Value::Tuple([0.1, f64::MIN_POSITIVE, -0.0].map(Value::Float).to_vec())),
        ("plain", Value::List(vec![Value::None, Value::Bool(true), Value::Bool(false), "naïve".into()])),
        ("nested", Value::dict([("empty", Value::Dict(Vec::new()))])),
    ]);
    let bytes = writer.write(Vec::new(), "state", &value).unwrap();
    storage::replace(&path, &bytes).unwrap();
    let mut file = TorchFile::open(&path).unwrap();
    assert_eq!(*file.value(), value);
    let places = file.value().get("tensors").unwrap().elements().unwrap().to_vec();
    for (place, tensor) in places.iter().zip([matrix, scalar]) {
        let Value::Tensor(place) = place else { panic!("{place:?}") };
        assert_eq!(place.shape, tensor.dims());
        assert_eq!(file.read(place).unwrap(), tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
}

/// Each is refused with its reason, in time and memory bounded by its length.
#[test]
fn hostile_pickles_are_refused_and_never_run() {
    let tensor = |elements: &str, shape: &str| {
        format!("ctorch._utils\n_rebuild_tensor_v2\n((X\u{7}\0\0\0storagectorch\nFloatStorage\nX\u{1}\0\0\00X\u{3}\0\0\0cpu{elements}tQK\0{shape}\u{89}")
            .chars()
            .map(|symbol| symbol as u8)
            .chain(*b"ccollections\nOrderedDict\n)RtR.")
            .collect::<Vec<u8>>()
    };
    // Tuples in tuples, each holding the one before three times: 3^13 and more values if they were copied.
    let bomb = |levels: u8| {
        let mut bomb = b"]q\0".to_vec();
        (0..levels).for_each(|level| bomb.extend([b'h', level, b'h', level, b'h', level, 0x87, b'q', level + 1]));
        bomb.push(b'.');
        bomb
    };
    let mut texts = b"](X".to_vec();
    texts.extend(1_000_000u32.to_le_bytes());
    texts.extend(vec![b'x'; 1_000_000]);
    texts.extend(b"q\0");
    (0..300_000).for_each(|_| texts.extend(b"h\0"));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("posix.system is no part", b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.".to_vec()),
        ("os.system is no part", b"cos\nsystem\n(X\x04\0\0\0truetR.".to_vec()),
        ("builtins.eval is no part", b"cbuiltins\neval\n.".to_vec()),
        ("torch.load is no part", b"ctorch\nload\n.".to_vec()),
        ("a\\xffb.c is no part", b"ca\xffb\nc\n.".to_vec()),
        ("a name without an end", [b"c".to_vec(), vec![b'x'; 1 << 20]].concat()),
        ("4294967295 bytes are called for, 2 are left", b"X\xff\xff\xff\xffab".to_vec()),
        ("an integer of 255 bytes", [b"\x8a\xff".to_vec(), vec![1; 300]].concat()),
        ("opcode 0x69", b"(ios\nsystem\n".to_vec()),
        ("opcode 0x93", b"\x80\x02X\x02\0\0\0osX\x06\0\0\0system\x93".to_vec()),
        ("protocol 4", b"\x80\x04N.".to_vec()),
        ("nests deeper", [vec![b']'; 100_000], vec![b'a'; 99_999], b".".to_vec()].concat()),
        ("nests deeper", b"]q\0h\0a.".to_vec()),
        ("nests deeper", bomb(40)),
        ("more than 4194304 values", bomb(14)),
        ("more than 4194304 values", [texts, b"e.".to_vec()].concat()),
        ("recalls 9", b"h\x09.".to_vec()),
        ("the stack is empty", b"q\0.".to_vec()),
        ("more is called for", b".".to_vec()),
        ("more is called for", b"N(\x85.".to_vec()),
        ("an end without a beginning", b"]e.".to_vec()),
        ("a key without a value", b"}(Nu.".to_vec()),
        ("no dictionary", b"](NNu.".to_vec()),
        ("no list", b"}(Ne.".to_vec()),
        ("calls what cannot be called", b"N)R.".to_vec()),
        ("other arguments", b"ccollections\nOrderedDict\nN\x85R.".to_vec()),
        ("attributes", b"]}b.".to_vec()),
        ("class or storage", b"ctorch\nFloatStorage\n.".to_vec()),
        ("not a tuple", b"X\x01\0\0\0xQ.".to_vec()),
        ("not to a storage", b"(NNNNNtQ.".to_vec()),
        ("in a storage of 3 elements", tensor("K\u{3}", "K\u{2}K\u{2}\u{86}K\u{2}K\u{1}\u{86}")),
        ("in a storage of 3 elements", tensor("K\u{3}", "J\0\0\0\u{40}\u{85}K\0\u{85}")),
        ("in a storage of 3 elements", tensor("K\u{3}", "K\u{3}\u{85})")),
        ("not a size", tensor("K\u{3}", "J\u{ff}\u{ff}\u{ff}\u{ff}\u{85}K\u{1}\u{85}")),
        ("are called for", b"".to_vec()),
    ];
    for (reason, bytes) in cases {
        let error = unpickle(&bytes).unwrap_err();
        assert!(error.contains(reason), "{error} is not {reason}: {}", bytes[..bytes.len().min(60)].escape_ascii());
    }
}

/// A zip as torch.save makes it around `pickle`.
fn archive(path: &Path, pickle: &[u8], method: CompressionMethod) {
    let mut zip = ZipWriter::new_stream(Vec::new());
    zip.start_file("state/data.pkl", SimpleFileOptions::default().compression_method(method)).unwrap();
    zip.write_all(pickle).unwrap();
    storage::replace(path, &zip.finish().unwrap().into_inner()).unwrap();
}

#[test]
fn damaged_and_strange_files_are_refused_with_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.pt");
    let refused = |reason: &str| {
        let error = TorchFile::open(&path).err().unwrap().to_string();
        assert!(error.contains("state.pt") && error.contains(reason), "{error} is not {reason}");
    };
    archive(&path, b"cos\nsystem\n(X\x04\0\0\0truetR.", CompressionMethod::Stored);
    refused("os.system");
    storage::replace(&path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
    refused("before 1.6");
    storage::replace(&path, b"").unwrap();
    refused("truncated");
    storage::replace(&path, &[b'P', b'K', 5, 6]).unwrap();
    refused("no whole file");

    let whole = storage::read(&golden("values.pt")).unwrap();
    let read = |bytes: &[u8]| {
        storage::replace(&path, bytes).unwrap();
        let mut file = TorchFile::open(&path)?;
        let value = file.value().clone();
        let all: tokenmill_shared::Result<Vec<_>> =
            tensors(&value).into_iter().map(|(_, tensor)| file.read(tensor)).collect();
        Ok::<_, tokenmill_shared::Error>((value, all?))
    };
    let expected = format!("{:?}", read(&whole).unwrap());
    for length in (0..whole.len()).step_by(97) {
        assert!(read(&whole[..length]).is_err(), "cut at {length}");
    }
    // A flipped bit shows, or lies where nothing is kept: padding and times.
    let mut shown = 0;
    for bit in (0..whole.len() * 8).step_by(61) {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match read(&damaged) {
            Ok(found) => assert_eq!(format!("{found:?}"), expected, "bit {bit}"),
            Err(_) => shown += 1,
        }
    }
    assert!(shown > 100, "{shown}");
}
