//! Live text in steps, epoch after epoch, as [`blocks_of_step`](crate::data::blocks_of_step) has a dataset: in the order of
//! the text, or in random order within windows of it, one window after the other.
//!
//! A window is a function of (seed, epoch, its number), so a [`Place`] is all that it takes to go on: the beginning of a
//! window, and how much of it was taken. While one is taken the next is read.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};
use tokenmill_preprocess::live::{Block, Position};
use tokenmill_shared::dataset::BlockReader;
use tokenmill_shared::order::Permutation;
use tokenmill_shared::random::mix;
use tokenmill_shared::{Error, Result};

use crate::training_set::{LiveText, TextBlocks};

/// Where in live text the next step begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where its window begins; in the order of the text every block is a window.
    #[serde(flatten)]
    pub position: Position,
    /// Blocks of that window that were taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub taken: usize,
    /// Epochs that ended before.
    #[serde(default, skip_serializing_if = "is_zero_epoch")]
    pub epoch: u64,
}

fn is_zero(taken: &usize) -> bool {
    *taken == 0
}

fn is_zero_epoch(epoch: &u64) -> bool {
    *epoch == 0
}

/// Random order within windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffled {
    /// Blocks in a window.
    pub window: usize,
    /// Of the order.
    pub seed: u64,
}

/// Windows in the order of the text.
type Windows = Box<dyn Iterator<Item = Result<Vec<Block>>> + Send>;

/// See the module.
pub struct TextOrder {
    text: Arc<LiveText>,
    /// Random order, if it is not that of the text.
    pub shuffled: Option<Shuffled>,
    /// Blocks of an epoch at most.
    pub limit: Option<u64>,
    /// Blocks at the end of an epoch that fill no micro-batch of this size are left out.
    pub drop_last: Option<usize>,
    /// Whether documents do not see each other.
    pub document_mask: bool,
    blocks_per_step: usize,
    place: Place,
    /// What is left of the window, in the order in which it is taken, and where the next one begins.
    window: (VecDeque<Block>, Position),
    /// The windows after that, once they were asked for.
    windows: Option<Windows>,
}

impl TextOrder {
    /// The steps of `text`, of `blocks_per_step` each, from `place` on, or from its beginning; in its own order, all of it,
    /// with the last step of an epoch as long as it is.
    pub fn new(text: Arc<LiveText>, place: Option<Place>, blocks_per_step: usize) -> Self {
        let place = place.unwrap_or_else(|| Place { position: text.begin.clone(), ..Place::default() });
        Self {
            text,
            shuffled: None,
            limit: None,
            drop_last: None,
            document_mask: false,
            blocks_per_step,
            place,
            window: Default::default(),
            windows: None,
        }
    }

    /// Ids in a block.
    pub fn block_size(&self) -> usize {
        self.text.text.block_size()
    }

    /// The number of a training block.
    pub fn number(&self, block: &Block) -> u64 {
        block.next.block - 1 - self.text.begin.block
    }

    /// The blocks of the next step, and where the one after it begins.
    pub fn next_step(&mut self) -> Result<(Vec<Block>, Place)> {
        let mut step = Vec::with_capacity(self.blocks_per_step);
        while step.len() < self.blocks_per_step {
            let from_begin = self.place.position == self.text.begin && self.place.taken == 0;
            if let Some(block) = self.next_block()? {
                step.push(block);
                continue;
            }
            if from_begin {
                return Err(self.no_block());
            }
            self.windows = None;
            self.place = Place { position: self.text.begin.clone(), taken: 0, epoch: self.place.epoch + 1 };
            step.truncate(self.drop_last.map_or(step.len(), |size| step.len() / size * size));
            if !step.is_empty() {
                break;
            }
        }
        Ok((step, self.place.clone()))
    }

    /// The next block of the epoch.
    fn next_block(&mut self) -> Result<Option<Block>> {
        if self.window.0.is_empty() {
            let Some(window) = self.next_window()? else { return Ok(None) };
            self.window = window;
        }
        let block = self.window.0.pop_front();
        self.place.taken += 1;
        if self.window.0.is_empty() {
            (self.place.position, self.place.taken) = (self.window.1.clone(), 0);
        }
        Ok(block)
    }

    /// The window at `place`, without what was taken of it, and where the one after it begins.
    fn next_window(&mut self) -> Result<Option<(VecDeque<Block>, Position)>> {
        let before = self.place.position.block - self.text.begin.block;
        let size = self.shuffled.map_or(1, |shuffled| shuffled.window);
        if self.windows.is_none() {
            let blocks = self.text.blocks(&self.place.position)?;
            self.windows = Some(match self.limit {
                Some(limit) => {
                    let left = usize::try_from(limit.saturating_sub(before)).unwrap_or(usize::MAX);
                    windows(Box::new(blocks.take(left)), size)
                }
                None => windows(blocks, size),
            });
        }
        let Some(window) = self.windows.as_mut().and_then(Iterator::next).transpose()? else { return Ok(None) };
        let next = window[window.len() - 1].next.clone();
        let Some(Shuffled { seed, .. }) = self.shuffled else { return Ok(Some((window.into(), next))) };
        let number = before / size as u64;
        let order = Permutation::new(window.len() as u64, seed, mix(self.place.epoch) ^ number);
        let mut window: Vec<Option<Block>> = window.into_iter().map(Some).collect();
        let taken = self.place.taken as u64..window.len() as u64;
        Ok(Some((taken.filter_map(|at| window[order.at(at) as usize].take()).collect(), next)))
    }

    fn no_block(&self) -> Error {
        let set_aside = self.text.text.set_aside();
        let reason = if set_aside > 0 {
            format!(
                "makes {} blocks, and the first {set_aside} are set aside for validation; give more text, a smaller --max_eval_samples, or --validation_split_percentage 0",
                self.text.validation.len()
            )
        } else {
            "makes no training block; give more text or a smaller --block_size".to_owned()
        };
        Error::config("--train_file_dir", reason)
    }
}

/// `blocks` in windows of `size`, the last one as long as it is. One of several blocks is read while the one before it is
/// taken.
fn windows(mut blocks: TextBlocks, size: usize) -> Windows {
    let windows = std::iter::from_fn(move || {
        let window: Result<Vec<Block>> = blocks.by_ref().take(size).collect();
        window.map(|window| (!window.is_empty()).then_some(window)).transpose()
    });
    if size == 1 {
        return Box::new(windows);
    }
    let (sender, receiver) = sync_channel(0);
    let mut reading = Some(thread::spawn(move || {
        for window in windows {
            let failed = window.is_err();
            if sender.send(window).is_err() || failed {
                return;
            }
        }
    }));
    Box::new(std::iter::from_fn(move || {
        let window = receiver.recv().ok();
        // After a panic the epoch would seem to end here.
        if window.is_none()
            && let Some(Err(panicked)) = reading.take().map(JoinHandle::join)
        {
            resume_unwind(panicked);
        }
        window
    }))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_reader_that_panics_does_not_end_the_epoch() {
        for size in [1, 3] {
            let blocks: TextBlocks = Box::new(std::iter::from_fn(|| panic!("as a reader might")));
            let mut windows = windows(blocks, size);
            assert!(catch_unwind(AssertUnwindSafe(|| windows.next())).is_err(), "windows of {size}");
        }
    }
}
