//! Block-wise 8-bit numbers (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization"): each block of
//! [`BLOCK`] values is divided by its largest magnitude, and each quotient replaced by the index of the nearest value
//! of a map. Maps and rounding are those of bitsandbytes (`functional.create_dynamic_map`, nearest value, the lower
//! of two that are equally near).

use std::sync::OnceLock;

/// Values that share a scale.
pub const BLOCK: usize = 256;

/// The 256 values of 8-bit numbers, ascending.
#[derive(Debug)]
pub struct Map {
    values: [f32; 256],
}

impl Map {
    /// For values of both signs.
    pub fn signed() -> &'static Self {
        static MAP: OnceLock<Map> = OnceLock::new();
        MAP.get_or_init(|| Self::dynamic(true))
    }

    /// For values that are not negative.
    pub fn unsigned() -> &'static Self {
        static MAP: OnceLock<Map> = OnceLock::new();
        MAP.get_or_init(|| Self::dynamic(false))
    }

    /// A dynamic exponent of up to 7 bits: seven decades, each with twice the values of the one below, at the middles
    /// of equal parts of 0.1 to 1 of the decade; and 0 and 1.
    fn dynamic(signed: bool) -> Self {
        let mut found = vec![0.0, 1.0];
        for decade in 0..7i32 {
            let parts = 1usize << (decade + i32::from(!signed));
            let border = |at: usize| linspace(at, parts);
            // A double times a float, as Python multiplies a number and a tensor: the scale is rounded first.
            let scale = 10f64.powi(decade - 6) as f32;
            for at in 0..parts {
                let middle = (border(at) + border(at + 1)) / 2.0;
                found.push(scale * middle);
                if signed {
                    found.push(-scale * middle);
                }
            }
        }
        found.sort_by(f32::total_cmp);
        let values: [f32; 256] = found.try_into().expect("254 middles, 0 and 1");
        Self { values }
    }

    /// The values, by index.
    #[cfg(feature = "cuda")]
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The index of the value nearest to `quotient`, of −1 to 1.
    #[inline]
    fn nearest(&self, quotient: f32) -> u8 {
        let above = self.values.partition_point(|value| *value < quotient).min(255);
        let below = above.saturating_sub(1);
        if quotient - self.values[below] <= self.values[above] - quotient { below as u8 } else { above as u8 }
    }

    /// The values of a block: `index → value · scale`.
    pub fn decode(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        values.iter_mut().zip(codes).for_each(|(value, code)| *value = self.values[usize::from(*code)] * scale);
    }

    /// Turns a block into indices; returns its scale, 1 if all of it is zero.
    pub fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let scale = if largest == 0.0 { 1.0 } else { largest };
        codes.iter_mut().zip(values).for_each(|(code, value)| *code = self.nearest(value / scale));
        scale
    }
}

/// Point `at` of `torch.linspace(0.1, 1, parts + 1)`: the second half is counted from the end, and each
/// product and sum is rounded once.
fn linspace(at: usize, parts: usize) -> f32 {
    let (start, end) = (0.1f32, 1f32);
    let step = (end - start) / parts as f32;
    if at < parts.div_ceil(2) { step.mul_add(at as f32, start) } else { (-step).mul_add((parts - at) as f32, end) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The maps of bitsandbytes (`tests/data/optimizers_8bit.py`), to the bit.
    #[test]
    fn maps_are_those_of_bitsandbytes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/optimizers_8bit.safetensors");
        let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        for (name, map) in [("map.signed", Map::signed()), ("map.unsigned", Map::unsigned())] {
            let expected: Vec<f32> = golden[name].to_vec1().unwrap();
            assert_eq!(map.values.map(f32::to_bits).to_vec(), expected.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_nearest_value_is_found_wherever_the_search_begins() {
        for map in [Map::signed(), Map::unsigned()] {
            let points = (0..20_001).map(|at| at as f32 / 10_000.0 - 1.0).chain((1..2000).map(|at| at as f32 * 1e-8));
            for quotient in points {
                let distance = |at: usize| (map.values[at] - quotient).abs();
                let expected = (0..256).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap();
                assert_eq!(usize::from(map.nearest(quotient)), expected, "{quotient}");
            }
            for value in 0..=255u8 {
                assert_eq!(map.nearest(map.values[usize::from(value)]), value);
            }
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        let (mut codes, mut values) = ([0; 3], [9.0; 3]);
        let scale = Map::unsigned().encode(&[0.0; 3], &mut codes);
        Map::unsigned().decode(&codes, scale, &mut values);
        assert_eq!(values, [0.0; 3]);
    }
}
