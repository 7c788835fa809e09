//! The GPU: its driver, found or not, its memory, kernels and cuBLAS.
//!
//! The driver and cuBLAS are loaded when they are first asked for, so that a program with all this in it starts on a
//! machine without them. Everything is queued on one stream and runs in the order in which it was asked for.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::Arc;

use cudarc::cublas::{self, CudaBlas};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use tokenmill_shared::{Error, Result};

use super::ops::{Heads, KERNELS};
use crate::ops::adamw::Constants;

/// Machine code for sm_80, 86, 89 and 90 and PTX, compiled by `build.rs`.
static MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Below this compute capability there is no bf16 on tensor cores.
const OLDEST: (i32, i32) = (8, 0);

/// The shared memory that a block has without asking.
const SHARED_BYTES: u32 = 48 << 10;

/// A GPU that is ready.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    kernels: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: the handles of a context may be used from any thread to which it is bound, which every call here begins with.
unsafe impl Send for Device {}
// SAFETY: as above; the driver serialises calls, and nothing in a `Device` changes after `open`.
unsafe impl Sync for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Device")
    }
}

/// Values in the memory of a GPU, or a part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Where they begin.
    pub at: u64,
    /// Bytes.
    pub bytes: usize,
}

impl Span {
    /// `count` values of `size` bytes from value `start` on.
    pub fn part(self, start: usize, count: usize, size: usize) -> Self {
        assert!((start + count) * size <= self.bytes, "{} values of {size} bytes are not in {self:?}", start + count);
        Self { at: self.at + (start * size) as u64, bytes: count * size }
    }
}

/// Memory of a GPU that is given back when dropped.
#[derive(Debug)]
pub struct Memory {
    device: Arc<Device>,
    /// All of it.
    pub span: Span,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // What is queued may still use it. A failure here was reported by the call that caused it.
        let _ = self.device.synchronize();
        // SAFETY: the pointer is one of `malloc_sync`, and is freed once.
        let _ = unsafe { result::free_sync(self.span.at) };
    }
}

/// Memory of the host that the GPU reads while the host goes on.
#[derive(Debug)]
pub struct Pinned {
    device: Arc<Device>,
    at: *mut u32,
    capacity: usize,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pinned {}
// SAFETY: it is only written to through a mutable reference.
unsafe impl Sync for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.device.synchronize();
        // SAFETY: the pointer is one of `malloc_host`, and is freed once.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A pointer into the memory of the GPU.
    Span(Span),
    /// No pointer.
    Null,
    /// `int`.
    Int(i32),
    /// `uint64_t`.
    Long(u64),
    /// `float`.
    Float(f32),
    /// `double`.
    Double(f64),
    /// `Heads`.
    Heads(Heads),
    /// `AdamW`.
    AdamW(Constants),
}

impl From<Span> for Arg {
    fn from(span: Span) -> Self {
        Self::Span(span)
    }
}

impl From<Option<Span>> for Arg {
    fn from(span: Option<Span>) -> Self {
        span.map_or(Self::Null, Self::Span)
    }
}

impl From<usize> for Arg {
    /// An `int`.
    fn from(value: usize) -> Self {
        Self::Int(i32::try_from(value).expect("sizes of a kernel fit an int"))
    }
}

impl From<bool> for Arg {
    fn from(value: bool) -> Self {
        Self::Int(value.into())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

/// What values are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
}

impl Element {
    /// Bytes.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn blas(self) -> cublas::sys::cudaDataType {
        match self {
            Self::F32 => cublas::sys::cudaDataType::CUDA_R_32F,
            Self::Bf16 => cublas::sys::cudaDataType::CUDA_R_16BF,
        }
    }
}

/// A row-major matrix, perhaps seen transposed.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Where its values are.
    pub span: Span,
    /// Values from the beginning of one stored row to that of the next.
    pub stride: usize,
    /// Whether rows are columns.
    pub transposed: bool,
    /// What it is made of.
    pub element: Element,
}

impl Matrix {
    /// A matrix whose rows have `stride` values.
    pub fn new(span: Span, stride: usize, element: Element) -> Self {
        Self { span, stride, transposed: false, element }
    }

    /// The same, transposed.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// A call of the driver failed.
fn driver_error(error: DriverError) -> Error {
    let reason = match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "out of memory; try --gradient_checkpointing true, a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, or a smaller --block_size".to_owned()
        }
        _ => format!("{error}"),
    };
    Error::config("GPU", reason)
}

impl Device {
    /// The first GPU that this process may see (`CUDA_VISIBLE_DEVICES`). The error is why there is none to be used.
    pub fn open() -> std::result::Result<Arc<Self>, String> {
        // SAFETY: looks for a library by its name and lets go of it again.
        let (driver, blas) = unsafe { (sys::is_culib_present(), cublas::sys::is_culib_present()) };
        if !driver {
            return Err("there is no NVIDIA driver (libcuda)".to_owned());
        }
        let failed = |what: &str, error: DriverError| format!("{what} failed: {error}");
        result::init().map_err(|error| failed("the NVIDIA driver", error))?;
        let count = result::device::get_count().map_err(|error| failed("counting GPUs", error))?;
        if count == 0 {
            return Err("the NVIDIA driver shows no GPU".to_owned());
        }
        if !blas {
            return Err("cuBLAS (libcublas) is not found; install the CUDA toolkit's libraries, or put their directory into LD_LIBRARY_PATH".to_owned());
        }
        let context = CudaContext::new(0).map_err(|error| failed("opening the GPU", error))?;
        let capability = context.compute_capability().map_err(|error| failed("asking the GPU", error))?;
        if capability < OLDEST {
            let name = context.name().unwrap_or_default();
            let (major, minor) = capability;
            return Err(format!(
                "{name} has compute capability {major}.{minor}; the kernels need 8.0 or more (Ampere and later)"
            ));
        }
        let stream = context.new_stream().map_err(|error| failed("opening a stream", error))?;
        let blas = CudaBlas::new(stream.clone()).map_err(|error| format!("cuBLAS failed: {error}"))?;
        // SAFETY: the bytes are a fat binary, which says its own length.
        let module = unsafe { result::module::load_data(MODULE.as_ptr().cast()) };
        let module = module.map_err(|error| failed("loading the kernels", error))?;
        let mut kernels = HashMap::new();
        for name in KERNELS {
            let c_name = CString::new(*name).expect("names have no zero byte");
            // SAFETY: the module was just loaded, and is never unloaded.
            let function = unsafe { result::module::get_function(module, c_name) };
            kernels.insert(*name, function.map_err(|error| failed(name, error))?);
        }
        Ok(Arc::new(Self { context, stream, blas, kernels }))
    }

    /// Its name, and the bytes of its memory.
    pub fn describe(&self) -> Result<(String, usize)> {
        let name = self.context.name().map_err(driver_error)?;
        Ok((name, self.context.total_mem().map_err(driver_error)?))
    }

    /// Bytes of its memory that are in use, by anybody.
    pub fn used(&self) -> Result<usize> {
        let (free, total) = self.context.mem_get_info().map_err(driver_error)?;
        Ok(total - free)
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(driver_error)
    }

    /// Waits until everything queued is done.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.stream.synchronize().map_err(driver_error)
    }

    /// Memory for `count` values of `size` bytes, unset.
    pub fn allocate(self: &Arc<Self>, count: usize, size: usize) -> Result<Memory> {
        self.bind()?;
        let bytes = (count * size).max(16);
        // SAFETY: the memory is written to before it is read, or zeroed.
        let at = unsafe { result::malloc_sync(bytes) }.map_err(driver_error)?;
        Ok(Memory { device: self.clone(), span: Span { at, bytes } })
    }

    /// The same, zero.
    pub fn zeros(self: &Arc<Self>, count: usize, size: usize) -> Result<Memory> {
        let memory = self.allocate(count, size)?;
        self.fill_zero(memory.span)?;
        Ok(memory)
    }

    /// Sets all bytes to 0.
    pub fn fill_zero(&self, span: Span) -> Result<()> {
        self.bind()?;
        // SAFETY: a span lies in memory that is alive while it is used.
        unsafe { result::memset_d8_async(span.at, 0, span.bytes, self.stream.cu_stream()) }.map_err(driver_error)
    }

    /// Memory of the host for `capacity` words.
    pub fn pin(self: &Arc<Self>, capacity: usize) -> Result<Pinned> {
        self.bind()?;
        // SAFETY: any bytes are words.
        let at = unsafe { result::malloc_host((capacity * 4).max(16), 0) }.map_err(driver_error)?;
        Ok(Pinned { device: self.clone(), at: at.cast(), capacity })
    }

    /// Copies words to the GPU by way of pinned memory, without waiting. The same pinned memory must not be used again
    /// before a [`synchronize`](Self::synchronize) or [`download`](Self::download).
    pub fn send(&self, words: &[u32], by: &mut Pinned, to: Span) -> Result<()> {
        assert!(words.len() <= by.capacity && words.len() * 4 <= to.bytes, "room for all words");
        self.bind()?;
        // SAFETY: there is room for the words, and nothing else refers to them.
        let pinned = unsafe {
            std::ptr::copy_nonoverlapping(words.as_ptr(), by.at, words.len());
            std::slice::from_raw_parts(by.at, words.len())
        };
        // SAFETY: the span is alive, and the pinned memory waits for the stream before it is freed.
        unsafe { result::memcpy_htod_async(to.at, pinned, self.stream.cu_stream()) }.map_err(driver_error)
    }

    /// Copies values to the GPU; they are there when this returns.
    pub fn upload<T: Copy>(&self, values: &[T], to: Span) -> Result<()> {
        assert!(size_of_val(values) <= to.bytes, "room for all values");
        self.bind()?;
        // SAFETY: the span is alive, and so are the values until the stream has caught up.
        unsafe { result::memcpy_htod_async(to.at, values, self.stream.cu_stream()) }.map_err(driver_error)?;
        self.synchronize()
    }

    /// Copies values from the GPU, when everything queued before is done.
    pub fn download<T: Copy>(&self, from: Span, values: &mut [T]) -> Result<()> {
        assert!(size_of_val(values) <= from.bytes, "as many values as there are");
        self.bind()?;
        // SAFETY: the span is alive, and so are the values until the stream has caught up.
        unsafe { result::memcpy_dtoh_async(values, from.at, self.stream.cu_stream()) }.map_err(driver_error)?;
        self.synchronize()
    }

    /// Queues a kernel. `shared` is in bytes.
    pub fn launch(
        &self,
        name: &str,
        grid: (usize, usize, usize),
        block: (usize, usize),
        shared: usize,
        args: &[Arg],
    ) -> Result<()> {
        let kernel = *self.kernels.get(name).unwrap_or_else(|| panic!("{name} is a kernel"));
        self.bind()?;
        let size = |value: usize| u32::try_from(value).expect("sizes of a grid fit an unsigned int");
        let null = 0u64;
        let mut pointers: Vec<*mut c_void> = Vec::with_capacity(args.len());
        for arg in args {
            let pointer: *const c_void = match arg {
                Arg::Span(span) => (&raw const span.at).cast(),
                Arg::Null => (&raw const null).cast(),
                Arg::Int(value) => (&raw const *value).cast(),
                Arg::Long(value) => (&raw const *value).cast(),
                Arg::Float(value) => (&raw const *value).cast(),
                Arg::Double(value) => (&raw const *value).cast(),
                Arg::Heads(heads) => (&raw const *heads).cast(),
                Arg::AdamW(constants) => (&raw const *constants).cast(),
            };
            pointers.push(pointer.cast_mut());
        }
        let shared = size(shared);
        if shared > SHARED_BYTES {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is one of the module.
            unsafe { result::function::set_function_attribute(kernel, attribute, shared as i32) }
                .map_err(driver_error)?;
        }
        // SAFETY: `ops` gives each kernel the arguments it is declared with, and spans that are large enough; the driver
        // copies the arguments before it returns.
        let launched = unsafe {
            result::launch_kernel(
                kernel,
                (size(grid.0), size(grid.1), size(grid.2)),
                (size(block.0), size(block.1), 1),
                shared,
                self.stream.cu_stream(),
                &mut pointers,
            )
        };
        launched.map_err(|error| Error::config("GPU", format!("{name}: {error}")))
    }

    /// Queues `c = a · b`, or adds it to c. a: (rows, inner), b: (inner, columns), c: (rows, columns). Sums are float32;
    /// no product is rounded to fewer bits than its operands have (no TF32).
    pub fn multiply(
        &self,
        (a, b, c): (Matrix, Matrix, Matrix),
        (rows, columns, inner): (usize, usize, usize),
        add: bool,
    ) -> Result<()> {
        self.multiply_scaled((a, b, c), (rows, columns, inner), 1.0, add)
    }

    /// The same of `scale · a · b`.
    pub fn multiply_scaled(
        &self,
        (a, b, c): (Matrix, Matrix, Matrix),
        (rows, columns, inner): (usize, usize, usize),
        scale: f32,
        add: bool,
    ) -> Result<()> {
        self.bind()?;
        let size = |value: usize| i32::try_from(value).expect("sizes of a matrix fit an int");
        let operation = |matrix: Matrix| match matrix.transposed {
            false => cublas::sys::cublasOperation_t::CUBLAS_OP_N,
            true => cublas::sys::cublasOperation_t::CUBLAS_OP_T,
        };
        let (alpha, beta) = (scale, if add { 1f32 } else { 0.0 });
        // cuBLAS stores columns: cᵀ = bᵀ aᵀ, each of which it sees as the transpose of what is stored.
        // SAFETY: the spans are alive and large enough, alpha and beta are read before this returns.
        let queued = unsafe {
            cublas::result::gemm_ex(
                *self.blas.handle(),
                operation(b),
                operation(a),
                size(columns),
                size(rows),
                size(inner),
                (&raw const alpha).cast(),
                b.span.at as *const c_void,
                b.element.blas(),
                size(b.stride),
                a.span.at as *const c_void,
                a.element.blas(),
                size(a.stride),
                (&raw const beta).cast(),
                c.span.at as *mut c_void,
                c.element.blas(),
                size(c.stride),
                cublas::sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublas::sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        queued.map_err(|error| Error::config("GPU", format!("a product of {rows} x {columns} x {inner}: {error}")))
    }
}
