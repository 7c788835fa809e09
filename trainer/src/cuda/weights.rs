//! Parameters, gradients and moments in the memory of a GPU. What is trained: four buffers of one layout, float32, and
//! the parameters once more in bf16 if that is what products are made of. What is frozen: only in the form that is used,
//! the weights of products in their type, or in 4 or 8 bits ([`super::quantised`]), the others in float32.
//!
//! What is multiplied together lies together (queries, keys and values; gate and up), and what decays lies before what
//! does not, so that an update is two kernels.

use std::sync::Arc;

use candle_core::Tensor;
use tokenmill_shared::{Error, Result};

use super::device::{Device, Element, Memory, Span};
use super::ops::Ops;
use super::quantised;
use crate::model::layout::{FeedForward, Layout, Qkv};
use crate::model::{Parameter, QuantisedWeights};
use crate::ops::adamw::Constants;
use crate::ops::cpu::{values, write};

/// Groups begin at multiples of so many values: 16 bytes of bf16.
const ALIGNMENT: usize = 8;

/// The output projection has rows of zeros up to a multiple of so many: of GPT-2's 50,257, products take twice the time
/// of those of 50,304.
pub const VOCABULARY_MULTIPLE: usize = 64;

/// Where a parameter is: where it begins in each buffer that has it, and its values.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    count: usize,
    /// Among what is trained.
    trained: Option<usize>,
    /// Among what is frozen and used in float32.
    plain: Option<usize>,
    /// Among what is frozen and multiplied.
    operand: Option<usize>,
}

/// The parameters of a model on a GPU.
#[derive(Debug)]
pub struct Weights {
    ops: Ops,
    places: Vec<Place>,
    /// Values of all that is trained, and of what decays of it, with what lies between them.
    len: usize,
    decayed: usize,
    master: Memory,
    rounded: Option<Memory>,
    gradients: Memory,
    /// Whether the gradient of each parameter was written since they were cleared.
    written: Vec<bool>,
    moments: Option<[Memory; 2]>,
    /// Frozen: in float32, and in the type of products.
    plain: Memory,
    operands: Memory,
    quantised: quantised::Weights,
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

/// Where parameters go, and how many values the buffers have.
#[derive(Debug, Default)]
struct Layouts {
    places: Vec<Place>,
    trained: usize,
    decayed: usize,
    plain: usize,
    operands: usize,
}

impl Layouts {
    fn new(layout: &Layout, parameters: &[Parameter], quantised: &QuantisedWeights) -> Result<Self> {
        let multiplied: std::collections::BTreeSet<usize> =
            layout.projections().iter().map(|projection| projection.weight).chain([layout.head]).collect();
        let mut all = Self { places: vec![Place::default(); parameters.len()], ..Self::default() };
        for group in groups(layout, parameters) {
            let first = &parameters[group[0]];
            if let Some(other) = group.iter().find(|index| parameters[**index].trainable != first.trainable) {
                let reason = format!("{} is trained and {} is not", first.name, parameters[*other].name);
                return Err(Error::config(
                    "GPU",
                    format!("{reason}; these are one product here: name both or neither"),
                ));
            }
            if group.iter().any(|index| quantised.contains_key(index)) {
                continue;
            }
            let counts: Vec<_> = group.iter().map(|index| parameters[*index].tensor.elem_count()).collect();
            // The rows of zeros below the output projection.
            let more = if group[0] == layout.head {
                let (rows, width) = first.tensor.dims2().map_err(|error| Error::config("GPU", error.to_string()))?;
                (rows.next_multiple_of(VOCABULARY_MULTIPLE) - rows) * width
            } else {
                0
            };
            let mut put = |end: &mut usize, set: fn(&mut Place, usize)| {
                for (index, count) in group.iter().zip(&counts) {
                    set(&mut all.places[*index], *end);
                    all.places[*index].count = *count;
                    *end += count;
                }
                *end = (*end + more).next_multiple_of(ALIGNMENT);
            };
            if first.trainable {
                put(&mut all.trained, |place, at| place.trained = Some(at));
                if first.decay {
                    all.decayed = all.trained;
                }
                continue;
            }
            let is_multiplied = multiplied.contains(&group[0]);
            if is_multiplied {
                put(&mut all.operands, |place, at| place.operand = Some(at));
            }
            if !is_multiplied || group[0] == layout.embedding {
                put(&mut all.plain, |place, at| place.plain = Some(at));
            }
        }
        Ok(all)
    }
}

impl Weights {
    /// Copies the parameters to the GPU.
    pub fn new(ops: Ops, layout: &Layout, parameters: &[Parameter], quantised: &QuantisedWeights) -> Result<Self> {
        let Layouts { places, trained: len, decayed, plain, operands } = Layouts::new(layout, parameters, quantised)?;
        let device: &Arc<Device> = &ops.device;
        let is_bf16 = ops.element == Element::Bf16;
        let weights = Self {
            places,
            len,
            decayed,
            master: device.zeros(len, 4)?,
            rounded: is_bf16.then(|| device.zeros(len, 2)).transpose()?,
            gradients: device.zeros(len, 4)?,
            written: vec![false; parameters.len()],
            moments: None,
            plain: device.zeros(plain, 4)?,
            operands: device.zeros(operands, ops.element.size())?,
            quantised: quantised::Weights::new(&ops, layout, quantised)?,
            squares: device.allocate(Ops::squares(len), 8)?,
            sum: device.allocate(1, 8)?,
            ops,
        };
        let tensors = parameters.iter().map(|parameter| &parameter.tensor);
        weights.copy_in(&weights.master, tensors.clone().enumerate(), |place| place.trained)?;
        if let Some(rounded) = &weights.rounded {
            weights.ops.round_to_bf16(rounded.span, weights.master.span, len)?;
        }
        weights.copy_in(&weights.plain, tensors.clone().enumerate(), |place| place.plain)?;
        if is_bf16 {
            weights.round_in(tensors)?;
        } else {
            weights.copy_in(&weights.operands, tensors.enumerate(), |place| place.operand)?;
        }
        Ok(weights)
    }

    /// Copies what is frozen and multiplied, by way of a buffer for the largest.
    fn round_in<'t>(&self, tensors: impl Iterator<Item = &'t Tensor>) -> Result<()> {
        let multiplied = || self.places.iter().filter(|place| place.operand.is_some());
        let largest = multiplied().map(|place| place.count).max().unwrap_or(0).next_multiple_of(ALIGNMENT);
        let by = self.ops.device.zeros(largest, 4)?;
        for (place, tensor) in self.places.iter().zip(tensors) {
            let Some(start) = place.operand else { continue };
            let values = values(tensor).map_err(|error| Error::config("GPU", error.to_string()))?;
            self.ops.device.upload(&values, by.span)?;
            self.ops.round_to_bf16(self.operands.span.part(start, place.count, 2), by.span, place.count)?;
        }
        Ok(())
    }

    fn copy_in<'t>(
        &self,
        memory: &Memory,
        tensors: impl Iterator<Item = (usize, &'t Tensor)>,
        place: fn(&Place) -> Option<usize>,
    ) -> Result<()> {
        for (index, tensor) in tensors {
            let Some(start) = place(&self.places[index]) else { continue };
            let values = values(tensor).map_err(|error| Error::config("GPU", error.to_string()))?;
            self.ops.device.upload(&values, memory.span.part(start, self.places[index].count, 4))?;
        }
        Ok(())
    }

    /// Copies what is trained back, or something of its layout.
    fn copy_out<'t>(&self, memory: &Memory, tensors: impl Iterator<Item = (usize, &'t Tensor)>) -> Result<()> {
        for (index, tensor) in tensors {
            let Place { trained: Some(start), count, .. } = self.places[index] else { continue };
            let mut copied = Ok(());
            write(tensor, |values| copied = self.ops.device.download(memory.span.part(start, count, 4), values))
                .map_err(|error| Error::config("GPU", error.to_string()))?;
            copied?;
        }
        Ok(())
    }

    /// Copies the parameters back: what is trained has changed.
    pub fn fetch(&self, parameters: &[Parameter]) -> Result<()> {
        self.copy_out(&self.master, parameters.iter().map(|parameter| &parameter.tensor).enumerate())
    }

    /// Copies moments to the GPU: the first and the second of each parameter that is trained, by its index.
    pub fn set_moments(&mut self, moments: [Vec<(usize, &Tensor)>; 2]) -> Result<()> {
        self.zero_moments()?;
        for (memory, tensors) in self.moments.iter().flatten().zip(moments) {
            self.copy_in(memory, tensors.into_iter(), |place| place.trained)?;
        }
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
    pub fn fetch_moments(&self, moments: [Vec<(usize, &Tensor)>; 2]) -> Result<()> {
        let Some(memory) = &self.moments else { return Ok(()) };
        memory.iter().zip(moments).try_for_each(|(memory, tensors)| self.copy_out(memory, tensors.into_iter()))
    }

    /// Whether parameter `index` is trained.
    pub fn is_trained(&self, index: usize) -> bool {
        self.places[index].trained.is_some()
    }

    /// Parameter `index` in float32, and what lies after it up to `count` values.
    pub fn master(&self, index: usize, count: usize) -> Span {
        let place = self.places[index];
        let (memory, start) = match (place.trained, place.plain) {
            (Some(start), _) => (&self.master, start),
            (None, start) => (&self.plain, start.expect("what is not multiplied is there in float32")),
        };
        memory.span.part(start, count, 4)
    }

    /// The parameters `indices`, which lie together, in the type of products, and what lies after them up to `count`
    /// values. What is in 4 or 8 bits is restored into one place: it is there until the next call.
    pub fn operand(&self, indices: &[usize], count: usize) -> Result<Span> {
        let (place, size) = (self.places[indices[0]], self.ops.element.size());
        if let Some(start) = place.trained {
            return Ok(self.rounded.as_ref().unwrap_or(&self.master).span.part(start, count, size));
        }
        match place.operand {
            Some(start) => Ok(self.operands.span.part(start, count, size)),
            None => self.quantised.restore(indices),
        }
    }

    /// Where the gradient of the parameters `indices`, which lie together, goes, and whether it is to be added to; from
    /// now on it is. `None` if they are frozen.
    pub fn gradient(&mut self, indices: &[usize]) -> Option<(Span, bool)> {
        let start = self.places[indices[0]].trained?;
        let add = self.written[indices[0]];
        indices.iter().for_each(|index| self.written[*index] = true);
        let count = indices.iter().map(|index| self.places[*index].count).sum();
        Some((self.gradients.span.part(start, count, 4), add))
    }

    /// The same for one parameter and what lies after it up to `count` values.
    pub fn gradient_beyond(&mut self, index: usize, count: usize) -> Option<(Span, bool)> {
        let (_, add) = self.gradient(&[index])?;
        Some((self.gradients.span.part(self.places[index].trained?, count, 4), add))
    }

    /// The same for a gradient of which not every value is written: it is zero first, then added to.
    pub fn gradient_in_parts(&mut self, index: usize) -> Result<Option<Span>> {
        let Some((span, add)) = self.gradient(&[index]) else { return Ok(None) };
        if !add {
            self.ops.device.fill_zero(span)?;
        }
        Ok(Some(span))
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
        for (index, place) in self.places.iter().enumerate() {
            let Some(start) = place.trained.filter(|_| self.written[index]) else {
                read(index, None)?;
                continue;
            };
            let mut gradient = vec![0f32; place.count];
            self.ops.device.download(self.gradients.span.part(start, place.count, 4), &mut gradient)?;
            read(index, Some(&gradient))?;
        }
        Ok(())
    }

    /// One AdamW update of all that is trained: `constants` with and without weight decay.
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
            let copy = self.rounded.as_ref().map(|rounded| rounded.span.part(start, count, 2));
            let spans = [part(&self.master), part(&self.gradients), part(first), part(second)];
            self.ops.adamw(spans, copy, constants, count)?;
        }
        Ok(())
    }
}
