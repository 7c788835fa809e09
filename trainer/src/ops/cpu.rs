//! The values of candle tensors in CPU memory, for kernels that work on slices.

use std::cell::Cell;
use std::ops::Deref;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use rayon::prelude::*;

/// Values that one task of an elementwise kernel takes: 64 KiB of each operand fit the L2 cache.
pub const PIECE: usize = 1 << 14;

/// The values of a contiguous f32 tensor, borrowed.
pub struct Values<'a> {
    storage: StorageRef<'a>,
    start: usize,
    end: usize,
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            _ => unreachable!("checked by `values`"),
        }
    }
}

/// Borrows the values of `tensor`, which must be contiguous, f32 and in CPU memory.
pub fn values(tensor: &Tensor) -> Result<Values<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a kernel needs a contiguous tensor") };
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        bail!("a CPU kernel needs an f32 tensor in CPU memory");
    }
    Ok(Values { storage, start, end })
}

/// Makes a tensor of `values` without copying them.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// Lets `update` change the values of a contiguous f32 tensor in place.
pub fn write(tensor: &Tensor, update: impl FnOnce(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&Write(Cell::new(Some(update))))
}

/// `y += x`, both of the same shape. (candle's sum has threads of its own, which wait beside ours.)
pub fn add(y: &Tensor, x: &Tensor) -> Result<()> {
    if y.shape() != x.shape() {
        bail!("a sum of {:?} and {:?}", y.shape(), x.shape());
    }
    let x = values(x)?;
    write(y, |y| {
        let pieces = y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
        pieces.for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
    })
}

/// Lets `update` change the bytes of a contiguous u8 tensor in place.
pub fn write_bytes(tensor: &Tensor, update: impl FnOnce(&mut [u8])) -> Result<()> {
    tensor.inplace_op1(&WriteBytes(Cell::new(Some(update))))
}

struct Write<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("a kernel needs a contiguous tensor") };
        let CpuStorage::F32(values) = storage else { bail!("a CPU kernel needs an f32 tensor") };
        if let Some(update) = self.0.take() {
            update(&mut values[start..end]);
        }
        Ok(())
    }
}

struct WriteBytes<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [u8])> InplaceOp1 for WriteBytes<F> {
    fn name(&self) -> &'static str {
        "write bytes"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("a kernel needs a contiguous tensor") };
        let CpuStorage::U8(bytes) = storage else { bail!("this kernel needs a u8 tensor") };
        if let Some(update) = self.0.take() {
            update(&mut bytes[start..end]);
        }
        Ok(())
    }
}
