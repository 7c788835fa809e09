//! Frozen weights in 4 or 8 bits in the memory of a GPU: restored, whole, into one place before each product with them.

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
pub struct Weight {
    codes: Memory,
    scales: Memory,
    kind: Kind,
    count: usize,
}

/// What codes and scales stand for.
#[derive(Debug)]
enum Kind {
    FourBit { codebook: Memory, double: Option<Double>, block: usize },
    Int8 { columns: usize },
}

/// Scales that are quantised themselves: their codes, the values of these, and what is added.
#[derive(Debug)]
struct Double {
    codes: Memory,
    map: Memory,
    offset: f32,
}

impl Weight {
    /// Copies a weight to the GPU.
    pub fn new(ops: &Ops, matrix: &Quantised) -> Result<Self> {
        fn sent<T: Copy>(ops: &Ops, values: &[T]) -> Result<Memory> {
            let memory = ops.device.allocate(values.len(), size_of::<T>())?;
            ops.device.upload(values, memory.span)?;
            Ok(memory)
        }
        let (rows, columns) = matrix.dims();
        let count = rows * columns;
        let refused = |flag: &str, what: &str| {
            Err(Error::config(flag, format!("a weight of {rows} x {columns} {what} is not built for the GPU")))
        };
        if let Some((codes, scales)) = matrix.int8_codes() {
            if !columns.is_multiple_of(4) {
                return refused("--load_in_8bit", "in 8 bits");
            }
            return Ok(Self {
                codes: sent(ops, codes)?,
                scales: sent(ops, scales)?,
                kind: Kind::Int8 { columns },
                count,
            });
        }
        let Some((codes, codebook, block, scales)) = matrix.four_bit_parts() else {
            return Err(Error::config("--int8_threshold", "is not built for the GPU; --load_in_8bit without it is"));
        };
        if !block.is_multiple_of(8) || !count.is_multiple_of(4) {
            return refused("--load_in_4bit", &format!("in blocks of {block}"));
        }
        let (scales, double) = match scales {
            Scales::Plain(scales) => (scales, None),
            Scales::Double { codes, scales, offset } => {
                let (codes, map) = (sent(ops, codes)?, sent(ops, Map::signed().values())?);
                (scales, Some(Double { codes, map, offset: *offset }))
            }
        };
        let kind = Kind::FourBit { codebook: sent(ops, codebook.values())?, double, block };
        Ok(Self { codes: sent(ops, codes)?, scales: sent(ops, scales)?, kind, count })
    }

    /// Writes its values, in the type of products.
    pub fn restore(&self, ops: &Ops, to: Span) -> Result<()> {
        let (codes, scales, count) = (self.codes.span, self.scales.span, Arg::Long(self.count as u64));
        match &self.kind {
            Kind::FourBit { codebook, double, block } => {
                let args = [
                    to.into(),
                    codes.into(),
                    codebook.span.into(),
                    scales.into(),
                    double.as_ref().map(|double| double.codes.span).into(),
                    double.as_ref().map(|double| double.map.span).into(),
                    double.as_ref().map_or(0.0, |double| double.offset).into(),
                    (*block).into(),
                    count,
                ];
                ops.restore_four_bit(self.count, &args)
            }
            Kind::Int8 { columns } => {
                ops.restore_int8(self.count, &[to.into(), codes.into(), scales.into(), (*columns).into(), count])
            }
        }
    }
}

/// The quantised weights of a model.
#[derive(Debug)]
pub struct Weights {
    ops: Ops,
    weights: BTreeMap<usize, Weight>,
    /// Where they are restored: the largest of a layer's products fits.
    values: Memory,
}

impl Weights {
    /// Copies them to the GPU.
    pub fn new(ops: &Ops, layout: &Layout, matrices: &QuantisedWeights) -> Result<Self> {
        let weights = matrices.iter().map(|(index, matrix)| Ok((*index, Weight::new(ops, matrix)?)));
        let weights: BTreeMap<_, _> = weights.collect::<Result<_>>()?;
        // No product has more than the weights of a layer.
        let of_layer = |layer: &crate::model::layout::Layer| -> usize {
            let counts = layer.projections().into_iter().filter_map(|one| Some(weights.get(&one.weight)?.count));
            counts.sum()
        };
        let most = layout.layers.iter().map(of_layer).max().unwrap_or(0);
        Ok(Self { values: ops.device.allocate(most, ops.element.size())?, weights, ops: ops.clone() })
    }

    /// The values of the weights `indices`, one after the other, in the type of products.
    pub fn restore(&self, indices: &[usize]) -> Result<Span> {
        let (mut end, size) = (0, self.ops.element.size());
        for index in indices {
            let weight = &self.weights[index];
            weight.restore(&self.ops, self.values.span.part(end, weight.count, size))?;
            end += weight.count;
        }
        Ok(self.values.span.part(0, end, size))
    }
}
