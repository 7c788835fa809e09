//! Frozen weights in 4 bits in the memory of a GPU: restored, whole, into one place before each product with them.

use std::collections::BTreeMap;

use tokenmill_shared::{Error, Result};

use super::device::{Arg, Memory, Span};
use super::ops::Ops;
use crate::model::QuantisedWeights;
use crate::model::layout::Layout;
use crate::ops::blockwise::Map;
use crate::ops::quantised::{Quantised, Scales};

/// One weight; see [`Quantised`].
#[derive(Debug)]
struct FourBit {
    codes: Memory,
    codebook: Memory,
    scales: Memory,
    scale_codes: Option<Memory>,
    offset: f32,
    block: usize,
    count: usize,
}

impl FourBit {
    fn new(ops: &Ops, matrix: &Quantised) -> Result<Self> {
        let (rows, columns) = matrix.dims();
        let Some((codes, codebook, block, scales)) = matrix.four_bit_parts() else {
            return Err(Error::config("--load_in_8bit", "is not built for the GPU; --load_in_4bit is"));
        };
        if !block.is_multiple_of(8) || !(rows * columns).is_multiple_of(4) {
            let reason = format!("a weight of {rows} x {columns} in blocks of {block} is not built for the GPU");
            return Err(Error::config("--load_in_4bit", reason));
        }
        fn sent<T: Copy>(ops: &Ops, values: &[T]) -> Result<Memory> {
            let memory = ops.device.allocate(values.len(), size_of::<T>())?;
            ops.device.upload(values, memory.span)?;
            Ok(memory)
        }
        let (scales, scale_codes, offset) = match scales {
            Scales::Plain(scales) => (scales, None, 0.0),
            Scales::Double { codes, scales, offset } => (scales, Some(sent(ops, codes)?), *offset),
        };
        let (codes, codebook) = (sent(ops, codes)?, sent(ops, codebook.values())?);
        Ok(Self { codes, codebook, scales: sent(ops, scales)?, scale_codes, offset, block, count: rows * columns })
    }
}

/// The quantised weights of a model.
#[derive(Debug)]
pub struct FourBitWeights {
    ops: Ops,
    weights: BTreeMap<usize, FourBit>,
    /// Values of 8-bit scales.
    map: Memory,
    /// Where they are restored: the largest of a layer's products fits.
    values: Memory,
}

impl FourBitWeights {
    /// Copies them to the GPU.
    pub fn new(ops: &Ops, layout: &Layout, matrices: &QuantisedWeights) -> Result<Self> {
        let weights = matrices.iter().map(|(index, matrix)| Ok((*index, FourBit::new(ops, matrix)?)));
        let weights: BTreeMap<_, _> = weights.collect::<Result<_>>()?;
        // No product has more than the weights of a layer.
        let of_layer = |layer: &crate::model::layout::Layer| -> usize {
            let counts = layer.projections().into_iter().filter_map(|one| Some(weights.get(&one.weight)?.count));
            counts.sum()
        };
        let most = layout.layers.iter().map(of_layer).max().unwrap_or(0);
        let map = ops.device.allocate(256, 4)?;
        ops.device.upload(Map::signed().values(), map.span)?;
        Ok(Self { values: ops.device.allocate(most, ops.element.size())?, map, weights, ops: ops.clone() })
    }

    /// The values of the weights `indices`, one after the other, in the type of products.
    pub fn restore(&self, indices: &[usize]) -> Result<Span> {
        let mut end = 0;
        for index in indices {
            let weight = &self.weights[index];
            let to = self.values.span.part(end, weight.count, self.ops.element.size());
            end += weight.count;
            let args = [
                to.into(),
                weight.codes.span.into(),
                weight.codebook.span.into(),
                weight.scales.span.into(),
                weight.scale_codes.as_ref().map(|codes| codes.span).into(),
                self.map.span.into(),
                weight.offset.into(),
                weight.block.into(),
                Arg::Long(weight.count as u64),
            ];
            self.ops.restore_four_bit(weight.count, &args)?;
        }
        Ok(self.values.span.part(0, end, self.ops.element.size()))
    }
}
