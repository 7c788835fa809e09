//! Which weights of a frozen model are kept in fewer bits, and how quantised checkpoints hold them.
//!
//! The weights of projections are; embeddings, the head, norms and biases are not, as in transformers. A weight is
//! quantised as soon as it is read, so that the model is never in memory whole. bitsandbytes 0.50 keeps beside a weight
//! of 4 bits its scales (`.absmax`, and `.nested_absmax` if those are quantised), the maps, and a JSON of the rest
//! (`.quant_state.bitsandbytes__nf4`); beside one of 8 bits the scales of its rows (`SCB`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tokenmill_shared::{Error, Result};

use super::weights::{Places, TensorPlace};
use super::{Model, tensor_error};
use crate::ops::blockwise::{self, Map};
use crate::ops::cpu::{tensor, values};
use crate::ops::quantised::{Codebook, Quantised, Scales};

/// What the weights of projections become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quantisation {
    /// 4 bits.
    FourBit {
        /// The values.
        codebook: Codebook,
        /// Whether their scales are quantised too.
        double: bool,
    },
    /// 8 bits.
    Int8 {
        /// Products as LLM.int8 makes them, with this threshold of outliers, in place of restored weights.
        threshold: Option<f32>,
    },
}

impl Quantisation {
    /// Its name in a checkpoint's settings.
    pub fn name(self) -> String {
        match self {
            Self::FourBit { codebook, double } => {
                format!("{}{}", codebook.name(), if double { ", double" } else { "" })
            }
            Self::Int8 { threshold: None } => "int8".to_owned(),
            Self::Int8 { threshold: Some(threshold) } => format!("int8, threshold {threshold}"),
        }
    }

    /// The matrix of `values`, of `shape` (out, in), or (in, out) if the input comes first: it is turned around.
    pub(super) fn of(self, values: &[f32], shape: &[usize], input_first: bool) -> Quantised {
        let turned = if input_first { transposed(values, shape[1]) } else { Vec::new() };
        let (values, columns) = if input_first { (&turned[..], shape[0]) } else { (values, shape[1]) };
        match self {
            Self::FourBit { codebook, double } => Quantised::four_bit(values, columns, codebook, double),
            Self::Int8 { threshold } => Quantised::int8(values, columns, threshold),
        }
    }
}

/// The quantised weights of a model, by parameter index.
pub(crate) type QuantisedWeights = BTreeMap<usize, Quantised>;

/// Stands for a quantised weight among the tensors: its shape, and no values.
pub(super) fn shape_only(shape: &[usize]) -> Result<Tensor> {
    let zero = Tensor::zeros((1, 1), DType::F32, &Device::Cpu);
    zero.and_then(|zero| zero.broadcast_as(shape)).map_err(tensor_error)
}

/// Row-major `values` of so many columns, column by column.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values[column..].iter().step_by(columns).copied()).collect()
}

impl Model {
    /// Quantises the weights of all projections.
    pub fn quantise(&mut self, quantisation: Quantisation) -> Result<()> {
        for projection in self.layout.projections() {
            let parameter = &mut self.parameters[projection.weight];
            if let Entry::Vacant(place) = self.quantised.entry(projection.weight) {
                let shape = parameter.tensor.dims().to_vec();
                let matrix = {
                    let values = values(&parameter.tensor).map_err(tensor_error)?;
                    quantisation.of(&values, &shape, projection.input_first)
                };
                place.insert(matrix);
                parameter.tensor = shape_only(&shape)?;
                parameter.trainable = false;
            }
        }
        self.renew_gradients()
    }

    /// Makes the weight of index `index` float32 again, if it is quantised.
    pub(super) fn restore_one(&mut self, index: usize) -> Result<()> {
        let Some(matrix) = self.quantised.remove(&index) else { return Ok(()) };
        let shape = self.parameters[index].tensor.dims().to_vec();
        let input_first = self.layout.projections().iter().any(|one| one.weight == index && one.input_first);
        let (values, (_, columns)) = (matrix.restored(), matrix.dims());
        let values = if input_first { transposed(&values, columns) } else { values };
        self.parameters[index].tensor = tensor(values, shape).map_err(tensor_error)?;
        Ok(())
    }

    /// Makes all quantised weights float32 again: the values that products were made of.
    pub fn restore(&mut self) -> Result<()> {
        let quantised: Vec<_> = self.quantised.keys().copied().collect();
        quantised.into_iter().try_for_each(|index| self.restore_one(index))?;
        if let Some(json) = self.config.json.as_object_mut() {
            json.shift_remove("quantization_config");
        }
        Ok(())
    }

    /// Whether weights are quantised.
    pub fn is_quantised(&self) -> bool {
        !self.quantised.is_empty()
    }

    /// Bytes of the quantised weights, and how many values they stand for.
    pub fn quantised_size(&self) -> (usize, usize) {
        let each = self.quantised.values().map(|matrix| (matrix.bytes(), matrix.dims().0 * matrix.dims().1));
        each.fold((0, 0), |(bytes, count), (more_bytes, more)| (bytes + more_bytes, count + more))
    }
}

/// Tensors that lie beside a quantised weight in a checkpoint.
pub(super) fn companions(weight: &str) -> impl Iterator<Item = String> {
    let of_weight = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"].map(|part| format!("{weight}.{part}"));
    let of_states = [Codebook::Nf4, Codebook::Fp4].map(|codebook| state_name(weight, codebook));
    let module = weight.trim_end_matches(".weight");
    let of_module = ["SCB", "weight_format"].map(|part| format!("{module}.{part}"));
    of_weight.into_iter().chain(of_states).chain(of_module)
}

fn state_name(weight: &str, codebook: Codebook) -> String {
    format!("{weight}.quant_state.bitsandbytes__{}", codebook.name())
}

/// The weight of this name and shape as the checkpoint holds it, if it is quantised there.
/// There it is (out, in), also where `shape` has the input first.
pub(super) fn read(places: &Places<'_>, weight: &str, shape: &[usize], input_first: bool) -> Result<Option<Quantised>> {
    let [rows, columns] = *shape else { return Ok(None) };
    let (rows, columns) = if input_first { (columns, rows) } else { (rows, columns) };
    let stored = Stored { places, weight };
    let codebook = [Codebook::Nf4, Codebook::Fp4]
        .into_iter()
        .find(|codebook| places.contains_key(&*state_name(weight, *codebook)));
    if let Some(codebook) = codebook {
        return stored.four_bit((rows, columns), codebook).map(Some);
    }
    let module = weight.trim_end_matches(".weight");
    let scales = format!("{module}.SCB");
    if !places.contains_key(&*scales) {
        return Ok(None);
    }
    let format = format!("{module}.weight_format");
    if places.contains_key(&*format) && stored.bytes(&format)? != [0] {
        return Err(stored.damaged("is laid out for a GPU, not row by row; save it with a newer bitsandbytes"));
    }
    let codes = stored.bytes(weight)?.into_iter().map(|byte| byte as i8).collect();
    let matrix = Quantised::from_int8((rows, columns), codes, stored.floats(&scales)?, None);
    matrix.map(Some).ok_or_else(|| stored.damaged("has a size that does not fit its shape or its scales"))
}

/// One quantised weight in a checkpoint.
struct Stored<'a> {
    places: &'a Places<'a>,
    weight: &'a str,
}

impl<'a> Stored<'a> {
    fn four_bit(&self, (rows, columns): (usize, usize), codebook: Codebook) -> Result<Quantised> {
        let state: Value = serde_json::from_slice(&self.bytes(&state_name(self.weight, codebook))?)
            .map_err(|error| self.damaged(&format!("has a quant_state that is not JSON ({error})")))?;
        if state["quant_type"] != codebook.name() || state["shape"] != serde_json::json!([rows, columns]) {
            let reason = format!(
                "is {} of shape {}, {} of [{rows}, {columns}] is called for",
                state["quant_type"],
                state["shape"],
                codebook.name()
            );
            return Err(self.damaged(&reason));
        }
        let name = |part: &str| format!("{}.{part}", self.weight);
        if self.floats(&name("quant_map"))? != codebook.values() {
            return Err(self.damaged("has a quant_map that is not the one of its quant_type"));
        }
        let scales = if self.places.contains_key(&*name("nested_absmax")) {
            let mut map = [0.0; 256];
            Map::signed().decode(&std::array::from_fn::<u8, 256, _>(|code| code as u8), 1.0, &mut map);
            let block = state["nested_blocksize"].as_u64();
            if self.floats(&name("nested_quant_map"))? != map || block != Some(blockwise::BLOCK as u64) {
                return Err(
                    self.damaged("has scales quantised in another way than by the dynamic map in blocks of 256")
                );
            }
            let Some(offset) = state["nested_offset"].as_f64() else {
                return Err(self.damaged("has no nested_offset"));
            };
            let (codes, scales) = (self.bytes(&name("absmax"))?, self.floats(&name("nested_absmax"))?);
            Scales::Double { codes, scales, offset: offset as f32 }
        } else {
            Scales::Plain(self.floats(&name("absmax"))?)
        };
        let block = state["blocksize"].as_u64().unwrap_or(0) as usize;
        let codes = self.bytes(self.weight)?;
        Quantised::from_four_bit((rows, columns), codebook, block, codes, scales)
            .ok_or_else(|| self.damaged("has a size that does not fit its shape or its scales"))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.place(name)?.bytes()
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        self.place(name)?.read()
    }

    fn place(&self, name: &str) -> Result<&TensorPlace<'a>> {
        self.places.get(name).ok_or_else(|| self.damaged(&format!("lacks {name}")))
    }

    fn damaged(&self, reason: &str) -> Error {
        let path = self.places.get(self.weight).map(|place| place.file.path.clone()).unwrap_or_default();
        Error::corrupt(path, format!("tensor {} {reason}", self.weight))
    }
}
