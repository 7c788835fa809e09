//! Parameters, gradients and moments in the memory of a GPU: four buffers of one layout, float32, and the parameters
//! once more in bf16 if that is what products are made of.
//!
//! What is multiplied together lies together (queries, keys and values; gate and up), and what decays lies before what
//! does not, so that an update is two kernels.

use std::sync::Arc;

use candle_core::Tensor;
use tokenmill_shared::{Error, Result};

use super::device::{Arg, Device, Element, Memory, Span};
use super::ops::Ops;
use crate::model::Parameter;
use crate::model::layout::{FeedForward, Layout, Qkv};
use crate::ops::adamw::Constants;
use crate::ops::cpu::{values, write};

/// Groups begin at multiples of so many values: 16 bytes of bf16.
const ALIGNMENT: usize = 8;

/// The output projection has rows of zeros up to a multiple of so many: of GPT-2's 50,257, products take twice the time
/// of those of 50,304.
pub const VOCABULARY_MULTIPLE: usize = 64;

/// The parameters of a model on a GPU.
#[derive(Debug)]
pub struct Weights {
    ops: Ops,
    /// Where each parameter begins, and its values.
    places: Vec<(usize, usize)>,
    /// Values of all, and of those that decay, with what lies between them.
    len: usize,
    decayed: usize,
    master: Memory,
    rounded: Option<Memory>,
    gradients: Memory,
    /// Whether the gradient of each parameter was written since they were cleared.
    written: Vec<bool>,
    moments: Option<[Memory; 2]>,
    squares: Memory,
    sum: Memory,
}

/// Parameters that lie one after the other, in order.
fn groups(layout: &Layout, parameters: &[Parameter]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for layer in &layout.layers {
        let together: Vec<_> = match layer.qkv {
            Qkv::Separate(three) => vec![three.to_vec()],
            Qkv::Blocks(_) | Qkv::PerHead(_) => Vec::new(),
        };
        let both = match layer.feed_forward {
            FeedForward::Gated { gate, up, .. } => Some(vec![gate, up]),
            FeedForward::GatedAsOne { .. } | FeedForward::Plain { .. } => None,
        };
        for projections in together.into_iter().chain(both) {
            groups.push(projections.iter().map(|projection| projection.weight).collect());
            let biases: Vec<usize> = projections.iter().filter_map(|projection| projection.bias).collect();
            groups.extend((!biases.is_empty()).then_some(biases));
        }
    }
    let grouped: std::collections::BTreeSet<usize> = groups.iter().flatten().copied().collect();
    groups.extend((0..parameters.len()).filter(|index| !grouped.contains(index)).map(|index| vec![index]));
    groups.sort_by_key(|group| (!parameters[group[0]].decay, group[0]));
    groups
}

impl Weights {
    /// Copies the parameters to the GPU.
    pub fn new(ops: Ops, layout: &Layout, parameters: &[Parameter]) -> Result<Self> {
        let mut places = vec![(0, 0); parameters.len()];
        let (mut len, mut decayed) = (0, 0);
        for group in groups(layout, parameters) {
            for index in &group {
                let count = parameters[*index].tensor.elem_count();
                places[*index] = (len, count);
                len += count;
            }
            if group[0] == layout.head {
                let (rows, width) =
                    parameters[layout.head].tensor.dims2().map_err(|error| Error::config("GPU", error.to_string()))?;
                len += (rows.next_multiple_of(VOCABULARY_MULTIPLE) - rows) * width;
            }
            len = len.next_multiple_of(ALIGNMENT);
            if parameters[group[0]].decay {
                decayed = len;
            }
        }
        let device: &Arc<Device> = &ops.device;
        let rounded = (ops.element == Element::Bf16).then(|| device.zeros(len, 2)).transpose()?;
        let weights = Self {
            places,
            len,
            decayed,
            master: device.zeros(len, 4)?,
            rounded,
            gradients: device.zeros(len, 4)?,
            written: vec![false; parameters.len()],
            moments: None,
            squares: device.allocate(Ops::squares(len), 8)?,
            sum: device.allocate(1, 8)?,
            ops,
        };
        weights.copy_in(&weights.master, parameters.iter().map(|parameter| &parameter.tensor))?;
        if let Some(rounded) = &weights.rounded {
            weights.ops.round_to_bf16(rounded.span, weights.master.span, len)?;
        }
        Ok(weights)
    }

    fn copy_in<'t>(&self, memory: &Memory, tensors: impl Iterator<Item = &'t Tensor>) -> Result<()> {
        for ((start, count), tensor) in self.places.iter().zip(tensors) {
            let values = values(tensor).map_err(|error| Error::config("GPU", error.to_string()))?;
            self.ops.device.upload(&values, memory.span.part(*start, *count, 4))?;
        }
        Ok(())
    }

    fn copy_out<'t>(&self, memory: &Memory, tensors: impl Iterator<Item = &'t Tensor>) -> Result<()> {
        for ((start, count), tensor) in self.places.iter().zip(tensors) {
            let mut copied = Ok(());
            write(tensor, |values| copied = self.ops.device.download(memory.span.part(*start, *count, 4), values))
                .map_err(|error| Error::config("GPU", error.to_string()))?;
            copied?;
        }
        Ok(())
    }

    /// Copies the parameters back.
    pub fn fetch(&self, parameters: &[Parameter]) -> Result<()> {
        self.copy_out(&self.master, parameters.iter().map(|parameter| &parameter.tensor))
    }

    /// Copies moments to the GPU: the first and the second of each parameter.
    pub fn set_moments(&mut self, moments: [Vec<&Tensor>; 2]) -> Result<()> {
        let memory = [self.ops.device.zeros(self.len, 4)?, self.ops.device.zeros(self.len, 4)?];
        for (memory, tensors) in memory.iter().zip(moments) {
            self.copy_in(memory, tensors.into_iter())?;
        }
        self.moments = Some(memory);
        Ok(())
    }

    /// Moments before the first update.
    pub fn zero_moments(&mut self) -> Result<()> {
        self.moments = Some([self.ops.device.zeros(self.len, 4)?, self.ops.device.zeros(self.len, 4)?]);
        Ok(())
    }

    /// Whether moments are on the GPU.
    pub fn has_moments(&self) -> bool {
        self.moments.is_some()
    }

    /// Copies the moments back, if there are any.
    pub fn fetch_moments(&self, moments: [Vec<&Tensor>; 2]) -> Result<()> {
        let Some(memory) = &self.moments else { return Ok(()) };
        memory.iter().zip(moments).try_for_each(|(memory, tensors)| self.copy_out(memory, tensors.into_iter()))
    }

    /// Parameter `index` in float32, and what lies after it up to `count` values.
    pub fn master(&self, index: usize, count: usize) -> Span {
        self.master.span.part(self.places[index].0, count, 4)
    }

    /// The same in the type of products.
    pub fn operand(&self, index: usize, count: usize) -> Span {
        let size = self.ops.element.size();
        self.rounded.as_ref().unwrap_or(&self.master).span.part(self.places[index].0, count, size)
    }

    /// Where the gradient of the parameters `indices`, which lie together, goes, and whether it is to be added to; from
    /// now on it is.
    pub fn gradient(&mut self, indices: &[usize]) -> (Span, bool) {
        let add = self.written[indices[0]];
        indices.iter().for_each(|index| self.written[*index] = true);
        let count = indices.iter().map(|index| self.places[*index].1).sum();
        (self.gradients.span.part(self.places[indices[0]].0, count, 4), add)
    }

    /// The same for one parameter and what lies after it up to `count` values.
    pub fn gradient_beyond(&mut self, index: usize, count: usize) -> (Span, bool) {
        let (_, add) = self.gradient(&[index]);
        (self.gradients.span.part(self.places[index].0, count, 4), add)
    }

    /// The same for a gradient of which not every value is written: it is zero first, then added to.
    pub fn gradient_in_parts(&mut self, index: usize) -> Result<Span> {
        let (span, add) = self.gradient(&[index]);
        if !add {
            self.ops.device.fill_zero(span)?;
        }
        Ok(span)
    }

    /// Forgets the gradients.
    pub fn clear_gradients(&mut self) {
        self.written.fill(false);
    }

    /// The L2 norm of all gradients.
    pub fn gradient_norm(&self) -> Result<f64> {
        self.ops.sum_of_squares(self.sum.span, self.gradients.span, self.squares.span, self.len)?;
        let mut sum = [0f64];
        self.ops.device.download(self.sum.span, &mut sum)?;
        Ok(sum[0].sqrt())
    }

    /// Lets `read` see each parameter's gradient, if it was written.
    pub fn for_each_gradient(&self, mut read: impl FnMut(usize, Option<&[f32]>) -> Result<()>) -> Result<()> {
        for (index, (start, count)) in self.places.iter().enumerate() {
            if !self.written[index] {
                read(index, None)?;
                continue;
            }
            let mut gradient = vec![0f32; *count];
            self.ops.device.download(self.gradients.span.part(*start, *count, 4), &mut gradient)?;
            read(index, Some(&gradient))?;
        }
        Ok(())
    }

    /// One AdamW update of all parameters: `constants` with and without weight decay.
    pub fn update(&self, decayed: Constants, others: Constants) -> Result<()> {
        let Some([first, second]) = &self.moments else {
            return Err(Error::config("GPU", "an update without moments; report this"));
        };
        for (start, end, constants) in [(0, self.decayed, decayed), (self.decayed, self.len, others)] {
            let count = end - start;
            if count == 0 {
                continue;
            }
            let part = |memory: &Memory| memory.span.part(start, count, 4);
            let args = [
                part(&self.master).into(),
                part(&self.gradients).into(),
                part(first).into(),
                part(second).into(),
                self.rounded.as_ref().map(|rounded| rounded.span.part(start, count, 2)).into(),
                Arg::AdamW(constants),
                Arg::Long(count as u64),
            ];
            self.ops.device.launch("adamw", ((count / 4).div_ceil(256), 1, 1), (256, 1), 0, &args)?;
        }
        Ok(())
    }
}
