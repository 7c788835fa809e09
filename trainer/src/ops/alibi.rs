//! ALiBi (Press et al. 2022): no positions, but a penalty on each score that grows with the key's distance.

/// What a score loses for each step between query and key, for each head: 2^(−8i/n), i from 1, for n heads, n a power of
/// two; otherwise those of the power below, and then every other one of the power above.
pub fn slopes(heads: usize) -> Vec<f32> {
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let slope = |step: usize, of: usize| 2f64.powf(-8.0 * step as f64 / of as f64) as f32;
    let first = (1..=below).map(|step| slope(step, below));
    first.chain((0..heads - below).map(|at| slope(2 * at + 1, 2 * below))).collect()
}
