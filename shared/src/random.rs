//! Randomness as a pure function: counter-based, keyed by (seed, purpose, step, index), never by a clock,
//! a thread or an earlier call. So dropout after a resume and initialisation on another machine are the same.

/// What random numbers are for; each purpose has its own stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights of a model.
    Initialise = 1,
    /// Dropout masks.
    Dropout = 2,
    /// The order of blocks.
    Order = 3,
    /// Text samples of a model.
    Sample = 4,
    /// Initial adapters.
    Adapter = 5,
    /// Noise on embeddings.
    EmbeddingNoise = 6,
    /// Rows of tokens that are new to a model.
    NewRows = 7,
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014; constants by David Stafford): a bijection on u64
/// whose output bits each depend on all input bits.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A stream of random numbers that can be read at any index.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream of `seed` for `purpose`; `index` tells apart the tensors, layers or steps of one purpose.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        Self { key: mix(mix(mix(seed) ^ purpose as u64) ^ index) }
    }

    /// What the stream is, for kernels that read it elsewhere.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// 64 uniform bits at position `at`.
    pub fn bits(&self, at: u64) -> u64 {
        mix(self.key ^ mix(at))
    }

    /// Uniform in [0, 1) with 53 bits.
    pub fn uniform(&self, at: u64) -> f64 {
        (self.bits(at) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Standard normal by Box and Muller's transform of positions `2 * at` and `2 * at + 1`.
    pub fn normal(&self, at: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * at)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(2 * at + 1)).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let stream = Stream::new(42, Purpose::Initialise, 0);
        let values: Vec<f64> = (0..100_000).map(|at| stream.normal(at)).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|value| value * value).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn purposes_and_indices_have_their_own_streams() {
        let first = |purpose, index| Stream::new(1, purpose, index).bits(0);
        assert_ne!(first(Purpose::Initialise, 0), first(Purpose::Dropout, 0));
        assert_ne!(first(Purpose::Initialise, 0), first(Purpose::Initialise, 1));
    }
}
