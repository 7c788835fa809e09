//! Magnitudes of what a forward makes, output by output: for `--debug underflow_overflow`.

use std::fmt;

use candle_core::{Result, Tensor};

use crate::ops::cpu::values;

/// The magnitudes of one output.
#[derive(Debug, Clone, PartialEq)]
pub struct Magnitudes {
    /// Whose.
    pub name: String,
    /// The smallest and the largest magnitude of the finite values.
    pub smallest: f32,
    /// See `smallest`.
    pub largest: f32,
    /// Whether all values are finite.
    pub finite: bool,
}

impl Magnitudes {
    /// Those of `values`.
    pub fn of(name: impl Into<String>, values: &[f32]) -> Self {
        let (mut smallest, mut largest, mut finite) = (f32::INFINITY, 0f32, true);
        for value in values {
            if value.is_finite() {
                smallest = smallest.min(value.abs());
                largest = largest.max(value.abs());
            } else {
                finite = false;
            }
        }
        Self { name: name.into(), smallest: if smallest.is_finite() { smallest } else { 0.0 }, largest, finite }
    }

    pub(super) fn of_tensor(name: impl Into<String>, tensor: &Tensor) -> Result<Self> {
        Ok(Self::of(name, &values(tensor)?))
    }
}

impl fmt::Display for Magnitudes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, smallest, largest, finite } = self;
        write!(f, "{smallest:9.2e} {largest:9.2e}  {name}{}", if *finite { "" } else { ": NOT FINITE" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_are_those_of_the_finite_values() {
        let found = Magnitudes::of("x", &[-2.0, 0.5, f32::NAN, 1.0]);
        assert_eq!((found.smallest, found.largest, found.finite), (0.5, 2.0, false));
        assert!(found.to_string().ends_with("x: NOT FINITE"), "{found}");
        assert!(Magnitudes::of("y", &[0.0]).finite && Magnitudes::of("z", &[f32::INFINITY]).largest == 0.0);
    }
}
