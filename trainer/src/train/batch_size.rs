//! `--auto_find_batch_size`: the largest micro-batch that fits into memory, measured before the first step. The blocks
//! of a step stay as many as asked for, so that neither the data nor the schedule change.

use indicatif::HumanBytes;
use tokenmill_shared::{Error, Result};

use super::Run;
use crate::model::Batch;
use crate::optimizer::Optimizer;
use crate::report::memory;

/// Share of the memory that is there which a step may take; the rest is for reading ahead and evaluating.
const SHARE: f64 = 0.9;

impl Run {
    /// Measures micro-batches of growing size and takes the largest that fits, up to the one asked for.
    pub(super) fn find_batch_size(&mut self, optimizer: &Optimizer) -> Result<()> {
        let arguments = &self.plan.arguments;
        let (asked, accumulation) = (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps);
        let (Some(before), Some(available)) = (memory::resident(), memory::available()) else {
            eprintln!("--auto_find_batch_size: this system does not say how much memory there is; {asked} is kept");
            return Ok(());
        };
        // The optimizer's state is not written to yet, so the system has not given its memory.
        let available = (available as f64 * SHARE) as u64;
        let available = available.saturating_sub(optimizer.bytes());
        let block_size = self.data.block_size;
        let recompute = arguments.gradient_checkpointing;
        let size = fitting(asked, asked * accumulation, available, |size| {
            let batch = Batch::new(vec![0; size * block_size], size);
            memory::forget_peak();
            self.model.clear_gradients();
            self.model.forward_backward(&batch, 1.0, recompute)?;
            Ok(memory::peak().unwrap_or(before).saturating_sub(before))
        })?;
        self.model.clear_gradients();
        let steps = asked * accumulation / size;
        eprintln!(
            "--auto_find_batch_size: micro-batches of {size} blocks, {steps} to a step; asked for were {asked} and {accumulation}, {} blocks to a step as well; there are {} for them",
            asked * accumulation,
            HumanBytes(available)
        );
        self.plan.arguments.per_device_train_batch_size = size;
        self.plan.arguments.gradient_accumulation_steps = steps;
        Ok(())
    }
}

/// The largest size up to `asked` that divides the blocks of a step and takes no more than `available` bytes, by
/// `measure`. A size that would not fit, by what the smaller ones took, is not tried.
fn fitting(
    asked: usize,
    blocks_per_step: usize,
    available: u64,
    mut measure: impl FnMut(usize) -> Result<u64>,
) -> Result<usize> {
    let mut measured: Vec<(usize, u64)> = Vec::new();
    for size in (1..=asked).filter(|size| blocks_per_step.is_multiple_of(*size)) {
        let expected = match measured[..] {
            [] => 0,
            [(one, bytes)] => bytes * size.div_ceil(one) as u64,
            [.., (smaller, less), (larger, more)] => {
                more + more.saturating_sub(less) * (size - larger) as u64 / (larger - smaller) as u64
            }
        };
        if expected > available {
            break;
        }
        let bytes = measure(size)?;
        if bytes > available {
            if measured.is_empty() {
                let reason = format!(
                    "one block takes {}, there are {}; try --gradient_checkpointing true, a smaller --block_size, or --use_peft true",
                    HumanBytes(bytes),
                    HumanBytes(available)
                );
                return Err(Error::config("--auto_find_batch_size", reason));
            }
            break;
        }
        measured.push((size, bytes));
    }
    Ok(measured.last().map_or(1, |(size, _)| *size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What sizes are tried, and which is taken, where a block takes 10 and everything else 5.
    fn tried(asked: usize, blocks_per_step: usize, available: u64) -> (Vec<usize>, Result<usize>) {
        let mut sizes = Vec::new();
        let found = fitting(asked, blocks_per_step, available, |size| {
            sizes.push(size);
            Ok(5 + 10 * size as u64)
        });
        (sizes, found)
    }

    #[test]
    fn the_largest_size_that_fits_and_divides_the_step_is_taken() {
        let taken = |asked, blocks_per_step, available| tried(asked, blocks_per_step, available).1.unwrap();
        assert_eq!(taken(8, 16, 1000), 8);
        assert_eq!(taken(8, 16, 84), 4);
        assert_eq!(taken(6, 12, 1000), 6);
        assert_eq!(taken(6, 12, 44), 3);
        assert_eq!(taken(7, 7, 74), 1);
        assert_eq!(taken(1, 3, 15), 1);
    }

    #[test]
    fn a_size_that_would_not_fit_is_not_tried() {
        assert_eq!(tried(64, 64, 100).0, [1, 2, 4, 8]);
        assert_eq!(tried(64, 64, 84).0, [1, 2, 4]);
        let error = tried(8, 8, 14).1.unwrap_err().to_string();
        assert!(error.contains("--gradient_checkpointing"), "{error}");
    }
}
