//! Matrix products in bfloat16, by `vdpbf16ps` (AVX-512 BF16: Zen 4, Cooper Lake, Sapphire Rapids and later): operands are
//! rounded as they are packed, sums are made in float32. Twice the float32 rate of the `gemm` crate, which has none of it.
//!
//! Blocks and panels are those of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008). Every
//! value of the result is summed by one thread, in an order that only the shapes decide.

use std::arch::x86_64::*;
use std::cell::RefCell;

use half::bf16;
use rayon::prelude::*;

use super::{Matrix, Threads};

/// Rows and columns of the tile that one call of the kernel sums up: 24 of the 32 vector registers.
const TILE: (usize, usize) = (12, 32);

/// Pairs along the inner dimension in one pass: a panel of the right operand is then 64 KiB of the second-level cache.
const PASS_PAIRS: usize = 512;

/// Lines of each operand that are packed at once, 8 MiB of the right one.
const PACKED_LINES: (usize, usize) = (96 * 32, 4096);

/// Rows and columns of the result that one task takes: small enough that no thread waits long for the last one.
const TASK: (usize, usize) = (48, 256);

/// Pairs from one line of the left operand to the next where it is packed line by line: a cache line more than a pass, so
/// that the lines of a tile do not all fall into two sets of the first-level cache.
const LINE_STRIDE: usize = PASS_PAIRS + 16;

/// Two bfloat16 that follow each other along the inner dimension, the first in the lower half.
type Pair = u32;

thread_local! {
    /// Packed operands; kept, because new pages cost more than packing into old ones.
    static PACKED: RefCell<[Vec<Pair>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Whether this processor has the instructions.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
}

/// A result being written by many threads, each its own tiles.
#[derive(Clone, Copy)]
struct Tiles {
    values: *mut f32,
    row_stride: usize,
}

// SAFETY: tasks write disjoint tiles.
unsafe impl Send for Tiles {}
// SAFETY: as above.
unsafe impl Sync for Tiles {}

/// `c = a · b`, or `c += a · b` if `add`, in the columns of `c`, `width` wide, from `first` on. The shapes are checked.
///
/// # Panics
/// Without the instructions.
pub(super) fn matmul(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    (first, width): (usize, usize),
    add: bool,
    threads: Threads,
) {
    assert!(is_available(), "AVX-512 BF16");
    let (rows, columns, inner) = (a.rows, b.columns, a.columns);
    assert!(first + columns <= width && c.len() >= rows * width);
    if inner == 0 && !add {
        c.chunks_exact_mut(width).take(rows).for_each(|row| row[first..][..columns].fill(0.0));
    }
    let tiles = Tiles { values: c.as_mut_ptr(), row_stride: width };
    let b = b.t();
    // Rows that lie in one piece stay in one: a tile takes single pairs of the left operand, from wherever they are.
    let by_line = a.column_stride == 1;
    let [mut packed_a, mut packed_b] = PACKED.take();
    for left in (0..columns).step_by(PACKED_LINES.1) {
        let columns = PACKED_LINES.1.min(columns - left);
        for begin in (0..inner).step_by(2 * PASS_PAIRS) {
            let pass = (begin, (2 * PASS_PAIRS).min(inner - begin));
            let add = add || begin > 0;
            let pairs = pass.1.div_ceil(2);
            pack_all(&mut packed_b, columns, (TILE.1, pairs * TILE.1), threads, |panel, first, count| {
                // SAFETY: the instructions are there.
                unsafe { pack::<{ TILE.1 }>(panel, b, (left + first, count), pass) };
            });
            let panel = TILE.0 * if by_line { LINE_STRIDE } else { pairs };
            for top in (0..rows).step_by(PACKED_LINES.0) {
                let rows = PACKED_LINES.0.min(rows - top);
                pack_all(&mut packed_a, rows, (TILE.0, panel), threads, |panel, first, count| {
                    let lines = (top + first, count);
                    // SAFETY: the instructions are there.
                    unsafe {
                        if by_line {
                            pack_lines(panel, a, lines, pass)
                        } else {
                            pack::<{ TILE.0 }>(panel, a, lines, pass)
                        }
                    }
                });
                let across = columns.div_ceil(TASK.1);
                let tasks = rows.div_ceil(TASK.0) * across;
                let work = |task| {
                    let (down, right) = (task / across * TASK.0, task % across * TASK.1);
                    for column in (right..columns.min(right + TASK.1)).step_by(TILE.1) {
                        let b = &packed_b[column * pairs..][..TILE.1 * pairs];
                        for row in (down..rows.min(down + TASK.0)).step_by(TILE.0) {
                            let a = &packed_a[row / TILE.0 * panel..][..panel];
                            let size = (TILE.0.min(rows - row), TILE.1.min(columns - column));
                            let at = (top + row) * tiles.row_stride + first + left + column;
                            // SAFETY: the instructions are there; the tile lies in `c`, whose size is checked, and no
                            // other task writes it; `a` is a panel whose pairs lie so.
                            unsafe {
                                let (c, width) = (tiles.at(at), tiles.row_stride);
                                match (by_line, size.1 <= 16) {
                                    (true, false) => tile::<LINE_STRIDE, 1, 2>(a, b, c, width, size, add),
                                    (true, true) => tile::<LINE_STRIDE, 1, 1>(a, b, c, width, size, add),
                                    (false, false) => tile::<1, { TILE.0 }, 2>(a, b, c, width, size, add),
                                    (false, true) => tile::<1, { TILE.0 }, 1>(a, b, c, width, size, add),
                                }
                            };
                        }
                    }
                };
                match threads {
                    Threads::All => (0..tasks).into_par_iter().for_each(work),
                    Threads::One => (0..tasks).for_each(work),
                }
            }
        }
    }
    PACKED.set([packed_a, packed_b]);
}

impl Tiles {
    /// The tile from value `at` on.
    ///
    /// # Safety
    /// It is one of the result.
    unsafe fn at(self, at: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.values.add(at) }
    }
}

/// Packs `count` lines in panels of so many lines and pairs, each by `pack`, which is told its first line and how many it
/// has.
fn pack_all(
    packed: &mut Vec<Pair>,
    count: usize,
    (lines, panel): (usize, usize),
    threads: Threads,
    pack: impl Fn(&mut [Pair], usize, usize) + Sync,
) {
    let length = count.div_ceil(lines) * panel;
    if packed.len() < length {
        packed.resize(length, 0);
    }
    let work = |(index, panel): (usize, &mut [Pair])| pack(panel, index * lines, lines.min(count - index * lines));
    match threads {
        Threads::All => packed[..length].par_chunks_exact_mut(panel).with_min_len(2).enumerate().for_each(work),
        Threads::One => packed[..length].chunks_exact_mut(panel).enumerate().for_each(work),
    }
}

/// Packs a panel of the left operand whose rows lie in one piece: line by line, [`LINE_STRIDE`] apart. The arguments are
/// those of [`pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_lines(panel: &mut [Pair], matrix: Matrix<'_>, (first, count): (usize, usize), (begin, length): (usize, usize)) {
    for (line, panel) in panel.chunks_exact_mut(LINE_STRIDE).enumerate().take(count) {
        let values = &matrix.values[(first + line) * matrix.row_stride + begin..][..length];
        for (values, panel) in values.chunks(32).zip(panel.chunks_mut(16)) {
            let masks = [mask(values.len()), mask(values.len().saturating_sub(16))];
            // SAFETY: what is masked is not touched; a panel has room for a pass.
            unsafe {
                let low = _mm512_maskz_loadu_ps(masks[0], values.as_ptr());
                let high = _mm512_maskz_loadu_ps(masks[1], values.as_ptr().wrapping_add(16));
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_mask_storeu_epi32(panel.as_mut_ptr().cast(), mask(values.len().div_ceil(2)), both);
            }
        }
    }
}

/// Packs a panel of `count` rows of `matrix` from `first` on, `length` values of each from `begin` on: pair by pair, those of
/// all its lines together; what is missing at the ends is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack<const LINES: usize>(
    panel: &mut [Pair],
    matrix: Matrix<'_>,
    (first, count): (usize, usize),
    (begin, length): (usize, usize),
) {
    if count < LINES {
        panel.fill(0);
    }
    let pair = |low: f32, high: f32| {
        u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
    };
    if matrix.column_stride == 1 {
        // Line by line, each pair to its place: to turn 16 × 16 pairs in registers, with fewer instructions, took longer.
        for line in 0..count {
            let values = &matrix.values[(first + line) * matrix.row_stride + begin..][..length];
            let (whole, rest) = values.as_chunks::<32>();
            for (at, values) in whole.iter().enumerate() {
                let mut pairs = [0; 16];
                // SAFETY: of 32 values and 16 pairs.
                unsafe {
                    let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values[16..].as_ptr()));
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_storeu_si512(pairs.as_mut_ptr().cast(), both);
                }
                let panel = &mut panel[at * 16 * LINES..][..16 * LINES];
                panel.chunks_exact_mut(LINES).zip(pairs).for_each(|(panel, pair)| panel[line] = pair);
            }
            let panel = panel[whole.len() * 16 * LINES..].chunks_exact_mut(LINES);
            panel.zip(rest.chunks(2)).for_each(|(panel, two)| {
                panel[line] = pair(two[0], two.get(1).copied().unwrap_or_default());
            });
        }
        return;
    }
    assert_eq!(matrix.row_stride, 1, "rows or columns follow each other");
    let lines = |at: usize| &matrix.values[(begin + at) * matrix.column_stride + first..][..count];
    for (at, panel) in panel.chunks_exact_mut(LINES).enumerate() {
        let low = lines(2 * at);
        let high = if 2 * at + 1 < length { lines(2 * at + 1) } else { &[] };
        for at in (0..count).step_by(16) {
            let mask = mask(count - at);
            // SAFETY: what is masked is not touched; of the rest both have a value, and the panel room for the pair.
            unsafe {
                let wide = |values: &[f32]| {
                    let values = _mm512_maskz_loadu_ps(mask, values.as_ptr().add(at));
                    let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
                    _mm512_cvtepu16_epi32(narrow)
                };
                let mut both = wide(low);
                if !high.is_empty() {
                    both = _mm512_or_si512(both, _mm512_slli_epi32::<16>(wide(high)));
                }
                _mm512_mask_storeu_epi32(panel.as_mut_ptr().add(at).cast(), mask, both);
            }
        }
    }
}

/// The lanes of a vector that `count` values take.
fn mask(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// One tile of the result, `HALVES` times 16 columns wide. `b` is a panel of so many pairs; those of `a` are `LINE` apart from
/// line to line and `PAIR` along one. `size` of the tile are rows and columns of the result.
///
/// # Safety
/// The instructions are there, `a` has as many pairs, and `c` that many rows and columns, its rows `row_stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const LINE: usize, const PAIR: usize, const HALVES: usize>(
    a: &[Pair],
    b: &[Pair],
    c: *mut f32,
    row_stride: usize,
    (rows, columns): (usize, usize),
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); HALVES]; TILE.0];
    for (at, b) in b.as_chunks::<{ TILE.1 }>().0.iter().enumerate() {
        // SAFETY: 32 pairs; both types are 64 bytes of any bits.
        let load = |half: usize| unsafe {
            std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b[16 * half..][..16].as_ptr().cast()))
        };
        let right: [__m512bh; HALVES] = std::array::from_fn(load);
        for (line, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's; both types are 64 bytes of any bits.
            let pair = unsafe {
                let pair = *a.get_unchecked(line * LINE + at * PAIR);
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair as i32))
            };
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = _mm512_dpbf16_ps(*sum, pair, right);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate().take(rows) {
        for (half, sum) in sums.iter().enumerate() {
            let mask = mask(columns.saturating_sub(16 * half));
            // SAFETY: the caller's; what is masked is not touched.
            unsafe {
                let at = c.add(row * row_stride).wrapping_add(16 * half);
                let sum = if add { _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask, at)) } else { *sum };
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::precision::Precision;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let step = |at: u32| (at.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..count as u32).map(step).collect()
    }

    /// `c + a · b` in f64, of operands rounded by `half`.
    fn expected(a: Matrix<'_>, b: Matrix<'_>, c: &[f32], (first, width): (usize, usize), add: bool) -> Vec<f64> {
        let at = |matrix: &Matrix<'_>, row: usize, column: usize| {
            let value = matrix.values[row * matrix.row_stride + column * matrix.column_stride];
            f64::from(bf16::from_f32(value).to_f32())
        };
        let mut result: Vec<f64> = c.iter().map(|value| f64::from(*value)).collect();
        for row in 0..a.rows {
            for column in 0..b.columns {
                let sum: f64 = (0..a.columns).map(|inner| at(&a, row, inner) * at(&b, inner, column)).sum();
                let to = &mut result[row * width + first + column];
                *to = if add { *to + sum } else { sum };
            }
        }
        result
    }

    /// On a processor without the instructions there is nothing to test.
    #[test]
    fn products_are_those_of_rounded_operands_in_any_shape_and_layout() {
        if !is_available() {
            return;
        }
        let shapes = [
            (1, 1, 1),
            (12, 32, 2),
            (13, 33, 5),
            (11, 31, 64),
            (97, 515, 33),
            (5, 4099, 3),
            (3, 17, 2051),
            (3075, 9, 4),
            (4, 6, 0),
        ];
        for (rows, columns, inner) in shapes {
            let (a, b) = (values(rows * inner, 1), values(inner * columns, 2));
            for turned in 0..4 {
                let a = if turned & 1 == 0 { Matrix::new(&a, rows, inner) } else { Matrix::new(&a, inner, rows).t() };
                let b =
                    if turned & 2 == 0 { Matrix::new(&b, inner, columns) } else { Matrix::new(&b, columns, inner).t() };
                for (add, (first, width)) in
                    [(false, (0, columns)), (true, (0, columns)), (false, (3, columns + 5)), (true, (3, columns + 5))]
                {
                    let c = values(rows * width, 3);
                    let expected = expected(a, b, &c, (first, width), add);
                    let mut found = c.clone();
                    matmul(a, b, &mut found, (first, width), add, Threads::All);
                    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                        // Every product is at most 1, and float32 adds them.
                        let bound = 1e-6 + 1e-6 * inner as f64;
                        let apart = (f64::from(*found) - expected).abs();
                        assert!(
                            apart <= bound,
                            "{rows} × {columns} × {inner}, {turned}, {add}, {at}: {found}, {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn products_have_the_same_bits_whatever_the_threads() {
        if !is_available() {
            return;
        }
        let (rows, columns, inner) = (200, 1100, 2500);
        let (a, b) = (values(rows * inner, 1), values(inner * columns, 2));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = vec![0.0; rows * columns];
            let (a, b) = (Matrix::new(&a, rows, inner), Matrix::new(&b, inner, columns));
            pool.install(|| crate::ops::matmul::product(a, b, &mut c, false, Precision::Bf16));
            c
        };
        let one = with(1);
        for threads in [2, 3, 7] {
            assert!(
                one.iter().zip(&with(threads)).all(|(one, many)| one.to_bits() == many.to_bits()),
                "{threads} threads"
            );
        }
    }
}
