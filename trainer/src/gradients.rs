//! The gradients of all parameters: one contiguous f32 buffer, a slice for each parameter.
//!
//! Backward operations write through a [`Slot`], which remembers that they did: before the first update
//! every parameter must have been written, be finite and not all zero, or the run stops and names it. A frozen
//! parameter has no place in the buffer: what would write there is skipped, its computation included.

use std::ops::Range;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use rayon::prelude::*;
use tokenmill_shared::{Error, Result};

use crate::ops::cpu::{values, write};

/// Values summed together for a norm; pieces are added in index order.
const PIECE: usize = 1 << 14;

/// One parameter's place in the buffer.
#[derive(Debug, Clone)]
struct Place {
    name: String,
    start: usize,
    len: usize,
    /// What of it is trained; the rest is always zero.
    trained: Range<usize>,
    frozen: bool,
    written: bool,
}

/// The gradients of a model.
#[derive(Debug)]
pub struct Gradients {
    buffer: Tensor,
    places: Vec<Place>,
}

impl Gradients {
    /// A buffer for parameters of these names, nothing written. Of each it is said how many values it has and which of
    /// them are trained; of a frozen one, nothing.
    pub fn new(parameters: impl IntoIterator<Item = (String, Option<(usize, Range<usize>)>)>) -> TensorResult<Self> {
        let mut start = 0;
        let mut places = Vec::new();
        for (name, size) in parameters {
            let frozen = size.is_none();
            let (len, trained) = size.unwrap_or_default();
            places.push(Place { name, start, len, trained, frozen, written: false });
            start += len;
        }
        Ok(Self { buffer: Tensor::zeros(start, DType::F32, &Device::Cpu)?, places })
    }

    /// Forgets everything: the next write of each parameter sets instead of adding.
    pub fn clear(&mut self) {
        self.places.iter_mut().for_each(|place| place.written = false);
    }

    /// Where the backward of parameter `index` writes.
    pub fn slot(&mut self, index: usize) -> Slot<'_> {
        Slot { buffer: &self.buffer, place: &mut self.places[index] }
    }

    /// The gradient of parameter `index`, row-major; empty if it is frozen.
    pub fn of(&self, index: usize) -> TensorResult<Vec<f32>> {
        let place = &self.places[index];
        Ok(values(&self.buffer)?[place.start..place.start + place.len].to_vec())
    }

    /// Lets `read` see the gradients of all that is trained, in parameter order.
    pub fn for_each(&self, mut read: impl FnMut(usize, &[f32]) -> TensorResult<()>) -> TensorResult<()> {
        let buffer = values(&self.buffer)?;
        self.places
            .iter()
            .enumerate()
            .filter(|(_, place)| !place.frozen)
            .try_for_each(|(index, place)| read(index, &buffer[place.start..][place.trained.clone()]))
    }

    /// The L2 norm over all parameters, accumulated in f64 in pieces of fixed size in index order.
    pub fn norm(&self) -> TensorResult<f64> {
        let buffer = values(&self.buffer)?;
        let squares: Vec<f64> = buffer.par_chunks(PIECE).map(sum_of_squares).collect();
        Ok(squares.iter().sum::<f64>().sqrt())
    }

    /// Checks that every parameter was written by its backward, is finite and not all zero. (The gradient of a fresh
    /// adapter's A is zero, because its B is; that of single rows is where none of their tokens occurs.)
    ///
    /// # Errors
    /// [`Error::Numeric`] naming the first parameter at fault.
    pub fn check_all_written(&self, step: u64) -> Result<()> {
        let buffer = values(&self.buffer).map_err(|error| Error::Numeric { step, reason: error.to_string() })?;
        let gradient = |place: &Place| &buffer[place.start..][place.trained.clone()];
        // Each fault is looked for in all parameters before the next: a lost gradient makes others zero.
        type Fault<'f> = (&'f str, &'f dyn Fn(&Place) -> bool);
        let faults: [Fault<'_>; 3] = [
            (
                "got no gradient: no backward operation wrote it, so it would stay as it is while the loss falls",
                &|place| !place.written,
            ),
            ("has a gradient that is not finite", &|place| {
                gradient(place).par_iter().with_min_len(PIECE).any(|value| !value.is_finite())
            }),
            ("has a gradient of zeros only, so it would not learn", &|place| {
                let in_part = place.trained.len() < place.len;
                !place.name.contains(".lora_A.")
                    && !in_part
                    && gradient(place).par_iter().with_min_len(PIECE).all(|value| *value == 0.0)
            }),
        ];
        for (problem, is_at_fault) in faults {
            if let Some(place) = self.places.iter().find(|place| !place.frozen && is_at_fault(place)) {
                return Err(Error::Numeric {
                    step,
                    reason: format!("parameter {} {problem}; nothing was updated", place.name),
                });
            }
        }
        Ok(())
    }
}

fn sum_of_squares(piece: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let whole = piece.len() / 8 * 8;
    for chunk in piece[..whole].chunks_exact(8) {
        for lane in 0..8 {
            lanes[lane] += f64::from(chunk[lane]) * f64::from(chunk[lane]);
        }
    }
    lanes.iter().sum::<f64>() + piece[whole..].iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>()
}

/// The place of one parameter's gradient; of a frozen one, none.
pub struct Slot<'a> {
    buffer: &'a Tensor,
    place: &'a mut Place,
}

impl Slot<'_> {
    /// Lets `update` write the gradient; its second argument says whether to add to what is there (true)
    /// or to set it (false, the first time since [`Gradients::clear`]).
    pub fn write(self, update: impl FnOnce(&mut [f32], bool)) -> TensorResult<()> {
        if self.place.frozen {
            return Ok(());
        }
        #[cfg(test)]
        if crate::model::dropped_gradient::is(&self.place.name) {
            return Ok(());
        }
        let add = self.place.written;
        self.place.written = true;
        let slice = self.buffer.narrow(0, self.place.start, self.place.len)?;
        let trained = self.place.trained.clone();
        write(&slice, |gradient| {
            update(gradient, add);
            gradient[..trained.start].fill(0.0);
            gradient[trained.end..].fill(0.0);
        })
    }

    /// Like [`write`](Self::write) for a backward that computes more than this gradient: it runs in any case, and is
    /// given no place if the parameter is frozen.
    pub fn write_if_any(self, update: impl FnOnce(Option<&mut [f32]>, bool)) -> TensorResult<()> {
        if self.place.frozen {
            update(None, false);
            return Ok(());
        }
        self.write(|gradient, add| update(Some(gradient), add))
    }
}
