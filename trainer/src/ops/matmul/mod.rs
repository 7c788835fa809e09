//! Matrix products on slices: in float32 by the `gemm` crate (within a few percent of OpenBLAS on this machine's shapes), in
//! bfloat16 by our own kernel where the processor has instructions for it.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod bf16;

use super::precision::Precision;

/// A matrix in a slice: `rows` × `columns`, element (i, j) at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix whose rows follow each other.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(values.len() >= rows * columns, "{} values for a {rows} × {columns} matrix", values.len());
        // No more than its own, for what rounds all of them.
        Self { values: &values[..rows * columns], rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Its transpose, in place.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

impl Matrix<'_> {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// `count` of the rows of a row-major matrix, from `first`.
    pub fn rows(self, first: usize, count: usize) -> Self {
        assert!(self.column_stride == 1 && first + count <= self.rows, "rows {first} to {}", first + count);
        let values = &self.values[first * self.row_stride..][..count * self.row_stride];
        Self { values, rows: count, ..self }
    }

    /// `count` of its columns, from `first`.
    pub fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.columns, "columns {first} to {} of {}", first + count, self.columns);
        Self { values: &self.values[first * self.column_stride..], columns: count, ..self }
    }
}

/// Whether a product uses all threads or the calling one (inside a loop that is parallel already).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All.
    All,
    /// The calling one.
    One,
}

/// `c = a · b`, or `c += a · b` if `add`. `c` is row-major.
pub fn matmul(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], add: bool, threads: Threads) {
    matmul_columns(a, b, c, (0, b.columns), add, threads);
}

/// `c = a · b`, or `c += a · b` if `add`, on all threads, of operands rounded to `precision`; sums are float32. `c` is
/// row-major.
pub fn product(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], add: bool, precision: Precision) {
    product_on(Threads::All, a, b, c, (0, b.columns), add, precision);
}

/// The same on the calling thread.
pub fn product_alone(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], add: bool, precision: Precision) {
    product_on(Threads::One, a, b, c, (0, b.columns), add, precision);
}

/// [`product`] for some columns of a wider `c`: from the first of the pair, of as many as the second.
pub fn product_columns(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    columns: (usize, usize),
    add: bool,
    precision: Precision,
) {
    product_on(Threads::All, a, b, c, columns, add, precision);
}

fn product_on(
    threads: Threads,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    columns: (usize, usize),
    add: bool,
    precision: Precision,
) {
    #[cfg(target_arch = "x86_64")]
    if precision == Precision::Bf16 && bf16::is_available() {
        assert_eq!(a.columns, b.rows, "inner dimensions of a matrix product");
        return bf16::matmul(a, b, c, columns, add, threads);
    }
    let (left, right) = (precision.operand(a.values), precision.operand(b.values));
    let (a, b) = (Matrix { values: &left, ..a }, Matrix { values: &right, ..b });
    matmul_columns(a, b, c, columns, add, threads);
}

/// [`matmul`] for some columns of a wider `c`: from the first of the pair, of as many as the second.
pub fn matmul_columns(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    (first, width): (usize, usize),
    add: bool,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions of a matrix product");
    assert!(first + n <= width && c.len() >= m * width, "{} values for columns {first} of {m} × {width}", c.len());
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::All => gemm::Parallelism::Rayon(0),
        Threads::One => gemm::Parallelism::None,
    };
    // SAFETY: `Matrix` is built only over slices that hold its rows and columns, `t` swaps both dimensions and strides,
    // `columns` leaves out some, the columns of `c` were checked above and are borrowed exclusively, and the three do
    // not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr().add(first),
            1,
            width as isize,
            add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
