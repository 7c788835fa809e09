//! Frozen weights in 4 or 8 bits, as bitsandbytes stores them.
//!
//! 4 bits (Dettmers et al. 2023, "QLoRA"): 64 values in row-major order share the scale of their largest magnitude, and
//! each quotient is replaced by the index of the nearest of 16 values; two indices a byte, the first in the upper half.
//! With double quantisation the scales, less their mean, are 8-bit numbers of [`Map`] in blocks of 256. 8 bits (Dettmers
//! et al. 2022, "LLM.int8"): each row is divided by its largest magnitude and rounded to −127 … 127.
//!
//! Source of formats and rounding: bitsandbytes 0.50 (`backends/default/ops.py`, `functional.py`).

use half::f16;
use rayon::prelude::*;

use super::blockwise::{self, Map};

/// Values that share a scale, unless a file says otherwise.
pub const BLOCK: usize = 64;

/// The sixteen values of 4-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codebook {
    /// Quantiles of a normal distribution, and zero.
    Nf4,
    /// Floats of one sign bit, two exponent bits and one mantissa bit, over 12.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

impl Codebook {
    /// The values, by index.
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// Its name in bitsandbytes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The indices in ascending order of their values.
    fn order(self) -> [u8; 16] {
        match self {
            Self::Nf4 => std::array::from_fn(|at| at as u8),
            Self::Fp4 => [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
        }
    }

    /// The middles between neighbours, ascending.
    fn middles(self) -> [f32; 15] {
        let (values, order) = (self.values(), self.order());
        std::array::from_fn(|at| (values[usize::from(order[at])] + values[usize::from(order[at + 1])]) / 2.0)
    }
}

/// The scales of blocks of 4-bit numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// In float32.
    Plain(Vec<f32>),
    /// Quantised themselves.
    Double {
        /// Indices into [`Map::signed`], one for each scale.
        codes: Vec<u8>,
        /// The scale of each 256 of them.
        scales: Vec<f32>,
        /// What was subtracted from every scale: their mean.
        offset: f32,
    },
}

impl Scales {
    /// Double quantisation of `scales`. bitsandbytes looks the nearest value up in a table of 65,536 quotients on a CPU;
    /// they are rounded to the same here.
    fn double(mut scales: Vec<f32>) -> Self {
        let sum: f64 = scales.iter().map(|scale| f64::from(*scale)).sum();
        let offset = (sum / scales.len().max(1) as f64) as f32;
        let mut codes = vec![0; scales.len()];
        let blocks = codes.chunks_mut(blockwise::BLOCK).zip(scales.chunks_mut(blockwise::BLOCK));
        let scales = blocks.map(|(codes, scales)| {
            scales.iter_mut().for_each(|scale| *scale -= offset);
            let largest = scales.iter().fold(0f32, |largest, scale| largest.max(scale.abs()));
            if largest > 0.0 {
                let place = |scale: f32| ((scale * (1.0 / largest) + 1.0) * 32_767.5 + 0.5).floor();
                scales.iter_mut().for_each(|scale| *scale = place(*scale) * 2.0 / 65_535.0 - 1.0);
                Map::signed().encode(scales, codes);
            }
            largest
        });
        let scales = scales.collect();
        Self::Double { codes, scales, offset }
    }

    /// That of block `index`.
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[index],
            Self::Double { codes, scales, offset } => {
                let mut value = [0.0];
                Map::signed().decode(&codes[index..=index], scales[index / blockwise::BLOCK], &mut value);
                value[0] + offset
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Double { codes, .. } => codes.len(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => 4 * scales.len(),
            Self::Double { codes, scales, .. } => codes.len() + 4 * scales.len() + 4,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Codes {
    FourBit { codes: Vec<u8>, codebook: Codebook, block: usize, scales: Scales },
    Int8 { codes: Vec<i8>, scales: Vec<f32>, threshold: Option<f32> },
}

/// A quantised matrix: (out, in).
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    rows: usize,
    columns: usize,
    codes: Codes,
}

impl Quantised {
    /// Quantises `values`, a row-major matrix of `columns`, to 4 bits in blocks of [`BLOCK`].
    pub fn four_bit(values: &[f32], columns: usize, codebook: Codebook, double: bool) -> Self {
        let (middles, order) = (codebook.middles(), codebook.order());
        let index = |quotient: f32| {
            let rank = middles.iter().filter(|middle| **middle < quotient).count();
            order[rank]
        };
        let mut codes = vec![0u8; values.len().div_ceil(2)];
        let blocks = codes.par_chunks_mut(BLOCK / 2).zip(values.par_chunks(BLOCK));
        let scales = blocks.map(|(codes, values)| {
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let divisor = largest.max(1e-38);
            // A short last block is divided, the others are multiplied by the reciprocal, as bitsandbytes does.
            let reciprocal = 1.0 / divisor;
            let whole = values.len() == BLOCK;
            let quotient = |value: f32| if whole { value * reciprocal } else { value / divisor };
            let index = |value: &f32| index(quotient(*value).clamp(-1.0, 1.0));
            for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
                *byte = index(&pair[0]) << 4 | index(pair.get(1).unwrap_or(&0.0));
            }
            if whole { largest } else { divisor }
        });
        let scales: Vec<f32> = scales.collect();
        let scales = if double { Scales::double(scales) } else { Scales::Plain(scales) };
        let codes = Codes::FourBit { codes, codebook, block: BLOCK, scales };
        Self { rows: values.len() / columns.max(1), columns, codes }
    }

    /// What a file holds of a matrix in 4 bits. `None` if sizes do not fit each other.
    pub fn from_four_bit(
        (rows, columns): (usize, usize),
        codebook: Codebook,
        block: usize,
        codes: Vec<u8>,
        scales: Scales,
    ) -> Option<Self> {
        let count = rows.checked_mul(columns)?;
        let nested = match &scales {
            Scales::Plain(_) => true,
            Scales::Double { codes, scales, .. } => scales.len() == codes.len().div_ceil(blockwise::BLOCK),
        };
        let fits = block.is_multiple_of(2) && block > 0 && codes.len() == count.div_ceil(2);
        let fits = fits && nested && scales.len() == count.div_ceil(block);
        fits.then_some(Self { rows, columns, codes: Codes::FourBit { codes, codebook, block, scales } })
    }

    /// Quantises `values`, a row-major matrix of `columns`, to 8 bits row by row, rounded to float16 first. With a
    /// `threshold` products are those of LLM.int8 (`llm_int8.rs`), otherwise with the values restored.
    pub fn int8(values: &[f32], columns: usize, threshold: Option<f32>) -> Self {
        let mut codes = vec![0i8; values.len()];
        let rows = codes.par_chunks_mut(columns).zip(values.par_chunks(columns));
        let scales = rows.map(|(codes, values)| {
            let half = |value: &f32| f16::from_f32(*value).to_f32();
            let largest = values.iter().fold(0f32, |largest, value| largest.max(half(value).abs()));
            let factor = 1.0 / largest * 127.0;
            // A row of zeros makes NaN of them, which are zero as integers.
            codes
                .iter_mut()
                .zip(values)
                .for_each(|(code, value)| *code = (half(value) * factor).round_ties_even() as i8);
            largest
        });
        let scales = scales.collect();
        Self { rows: values.len() / columns.max(1), columns, codes: Codes::Int8 { codes, scales, threshold } }
    }

    /// What a file holds of a matrix in 8 bits. `None` if sizes do not fit each other.
    pub fn from_int8(
        (rows, columns): (usize, usize),
        codes: Vec<i8>,
        scales: Vec<f32>,
        threshold: Option<f32>,
    ) -> Option<Self> {
        let fits = Some(codes.len()) == rows.checked_mul(columns) && scales.len() == rows;
        fits.then_some(Self { rows, columns, codes: Codes::Int8 { codes, scales, threshold } })
    }

    /// (out, in).
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match &self.codes {
            Codes::FourBit { codes, scales, .. } => codes.len() + scales.bytes(),
            Codes::Int8 { codes, scales, .. } => codes.len() + 4 * scales.len(),
        }
    }

    /// The 8-bit codes (row-major) and the scales of rows, if products are to be those of LLM.int8 with this threshold.
    pub(super) fn int8_parts(&self) -> Option<(&[i8], &[f32], f32)> {
        match &self.codes {
            Codes::Int8 { codes, scales, threshold: Some(threshold) } => Some((codes, scales, *threshold)),
            _ => None,
        }
    }

    /// Codes, values, values that share a scale, and scales, if it is in 4 bits.
    #[cfg(feature = "cuda")]
    pub fn four_bit_parts(&self) -> Option<(&[u8], Codebook, usize, &Scales)> {
        match &self.codes {
            Codes::FourBit { codes, codebook, block, scales } => Some((codes, *codebook, *block, scales)),
            Codes::Int8 { .. } => None,
        }
    }

    /// Codes (row-major) and the scales of rows, if it is in 8 bits and products are made with its values.
    #[cfg(feature = "cuda")]
    pub fn int8_codes(&self) -> Option<(&[i8], &[f32])> {
        match &self.codes {
            Codes::Int8 { codes, scales, threshold: None } => Some((codes, scales)),
            _ => None,
        }
    }

    /// Writes the values of whole rows, from `first`, as many as `values` holds.
    pub fn restore(&self, first: usize, values: &mut [f32]) {
        let columns = self.columns;
        // A task takes about 16 Ki values.
        let rows = (super::cpu::PIECE / columns.max(1)).max(1);
        values.par_chunks_mut(rows * columns).enumerate().for_each(|(piece, values)| {
            let first = first + piece * rows;
            match &self.codes {
                Codes::FourBit { codes, codebook, block, scales } => {
                    restore_four_bit(codes, codebook.values(), *block, scales, first * columns, values);
                }
                Codes::Int8 { codes, scales, .. } => {
                    for (row, values) in values.chunks_mut(columns).enumerate() {
                        let (row, scale) = (first + row, scales[first + row] * (1.0 / 127.0));
                        let codes = &codes[row * columns..][..columns];
                        values.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(*code) * scale);
                    }
                }
            }
        });
    }

    /// All values, row-major.
    pub fn restored(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        self.restore(0, &mut values);
        values
    }
}

/// Writes the values from the one of index `start`.
fn restore_four_bit(
    codes: &[u8],
    codebook: &[f32; 16],
    block: usize,
    scales: &Scales,
    start: usize,
    values: &mut [f32],
) {
    let (mut at, mut rest) = (start, values);
    while !rest.is_empty() {
        let count = (block - at % block).min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        let scale = scales.get(at / block);
        let table = codebook.map(|value| value * scale);
        let upper = |at: usize| table[usize::from(codes[at / 2] >> 4)];
        let lower = |at: usize| table[usize::from(codes[at / 2] & 15)];
        // Rows of odd length may begin in the middle of a byte.
        let (odd, even) = now.split_at_mut(at % 2);
        odd.iter_mut().for_each(|value| *value = lower(at));
        let bytes = &codes[(at + odd.len()) / 2..];
        let mut pairs = even.chunks_exact_mut(2);
        for (pair, byte) in pairs.by_ref().zip(bytes) {
            pair[0] = table[usize::from(byte >> 4)];
            pair[1] = table[usize::from(byte & 15)];
        }
        pairs.into_remainder().iter_mut().for_each(|value| *value = upper(at + count - 1));
        (at, rest) = (at + count, later);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use candle_core::{Device, Tensor};

    fn golden(name: &str) -> HashMap<String, Tensor> {
        let path = format!("{}/../tests/data/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Golden values of bitsandbytes: `tests/data/nf4_golden.safetensors`, made as `tests/data/quantised.py` says.
    #[test]
    fn four_bit_codes_scales_and_values_are_those_of_bitsandbytes_to_the_bit() {
        let golden = golden("nf4_golden");
        let bytes = |name: &str| golden[name].flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let weight = floats(&golden["W"]);
        let cases = [
            (Codebook::Nf4, true, "q_dq", "absmax_q", "deq_dq"),
            (Codebook::Nf4, false, "q", "absmax", "deq"),
            (Codebook::Fp4, false, "q_fp4", "absmax_fp4", "deq_fp4"),
        ];
        for (codebook, double, q, absmax, restored) in cases {
            let found = Quantised::four_bit(&weight, 320, codebook, double);
            let Codes::FourBit { codes, scales, .. } = &found.codes else { panic!("4 bits were asked for") };
            assert!(*codes == bytes(q), "{q}");
            match scales {
                Scales::Plain(scales) => assert_eq!(bits(scales), bits(&floats(&golden[absmax]))),
                Scales::Double { codes, scales, offset } => {
                    assert_eq!(*codes, bytes(absmax));
                    assert_eq!(bits(scales), bits(&floats(&golden["state2_absmax"])));
                    assert_eq!(bits(&[*offset]), bits(&floats(&golden["offset"])));
                }
            }
            assert!(bits(&found.restored()) == bits(&floats(&golden[restored])), "{restored}");
        }
    }

    #[test]
    fn blocks_that_cross_rows_and_a_short_last_one_are_those_of_bitsandbytes() {
        let golden = golden("quantised");
        for codebook in [Codebook::Nf4, Codebook::Fp4] {
            let name = format!("odd.{}", codebook.name());
            let found = Quantised::four_bit(&floats(&golden["odd"]), 50, codebook, false);
            let Codes::FourBit { codes, scales: Scales::Plain(scales), .. } = &found.codes else { panic!("plain") };
            assert_eq!(*codes, golden[&name].flatten_all().unwrap().to_vec1::<u8>().unwrap());
            assert_eq!(bits(scales), bits(&floats(&golden[&format!("{name}.absmax")])));
            let expected = floats(&golden[&format!("{name}.restored")]);
            // Of the two zeros of FP4 one is negative in newer versions of bitsandbytes, in older ones none is.
            assert!(found.restored() == expected, "{name}");
            // From any row, as many as there is room for.
            let mut some = vec![0.0; 7 * 50];
            found.restore(11, &mut some);
            assert!(some == expected[550..900], "{name}");
        }
        // Rows of odd length begin in the middle of bytes.
        let values: Vec<f32> = (0..15 * 9).map(|at| (at as f32 * 0.7).sin()).collect();
        let found = Quantised::four_bit(&values, 9, Codebook::Nf4, true);
        let (whole, mut row) = (found.restored(), [0.0; 9]);
        for first in 0..15 {
            found.restore(first, &mut row);
            assert_eq!(row, whole[first * 9..][..9], "row {first}");
        }
    }

    #[test]
    fn eight_bit_codes_scales_and_values_are_those_of_bitsandbytes() {
        let golden = golden("quantised");
        let found = Quantised::int8(&floats(&golden["weight"]), 1100, None);
        let Codes::Int8 { codes, scales, .. } = &found.codes else { panic!("8 bits were asked for") };
        let expected = floats(&golden["codes"]);
        assert_eq!(codes.iter().map(|code| f32::from(*code)).collect::<Vec<_>>(), expected);
        assert_eq!(bits(scales), bits(&floats(&golden["scales"])));
        assert_eq!(bits(&found.restored()), bits(&floats(&golden["restored"])));
        let zeros = Quantised::int8(&[0.0; 8], 4, None);
        assert_eq!(zeros.restored(), [0.0; 8]);
    }

    #[test]
    fn bits_a_parameter_are_those_of_the_formats() {
        let values = vec![0.25; 256 * 4096];
        let bits = |found: Quantised| 8.0 * found.bytes() as f64 / values.len() as f64;
        assert!((bits(Quantised::four_bit(&values, 4096, Codebook::Nf4, true)) - 4.127).abs() < 1e-3);
        assert!((bits(Quantised::four_bit(&values, 4096, Codebook::Fp4, false)) - 4.5).abs() < 1e-3);
        assert!((bits(Quantised::int8(&values, 4096, None)) - 8.008).abs() < 1e-3);
    }

    #[test]
    fn sizes_that_do_not_fit_are_no_matrix() {
        let scales = || Scales::Plain(vec![1.0; 2]);
        assert!(Quantised::from_four_bit((2, 64), Codebook::Nf4, 64, vec![0; 64], scales()).is_some());
        assert!(Quantised::from_four_bit((2, 64), Codebook::Nf4, 64, vec![0; 63], scales()).is_none());
        assert!(Quantised::from_four_bit((2, 64), Codebook::Nf4, 32, vec![0; 64], scales()).is_none());
        assert!(Quantised::from_four_bit((2, 64), Codebook::Nf4, 0, vec![0; 64], scales()).is_none());
        let double = |inner: usize| Scales::Double { codes: vec![0; 2], scales: vec![1.0; inner], offset: 0.0 };
        assert!(Quantised::from_four_bit((2, 64), Codebook::Nf4, 64, vec![0; 64], double(1)).is_some());
        assert!(Quantised::from_four_bit((2, 64), Codebook::Nf4, 64, vec![0; 64], double(2)).is_none());
        assert!(Quantised::from_int8((2, 3), vec![0; 6], vec![0.0; 2], None).is_some());
        assert!(Quantised::from_int8((2, 3), vec![0; 6], vec![0.0; 3], None).is_none());
    }
}
