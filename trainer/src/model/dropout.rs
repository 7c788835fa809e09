//! Where a model drops what: each place has its own stream of random numbers in each micro-batch, so that a mask is the
//! same when it is made again in the backward, after a resume, and whatever the threads.

use tokenmill_shared::random::{Purpose, Stream};

use crate::ops::dropout::Dropout;

/// What is dropped in one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed {
    /// Of the run.
    pub seed: u64,
    /// Which micro-batch of which step.
    pub pass: u64,
}

/// A place where something may be dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// The input of an adapter beside the weight of this index.
    Adapter(usize),
    /// The embedded tokens.
    Embedding,
    /// The weights of attention, in this layer.
    Attention(usize),
    /// What attention adds to the residual stream, in this layer.
    AttentionOutput(usize),
    /// What the feed-forward layer adds, in this layer.
    FeedForwardOutput(usize),
}

impl Seed {
    /// The dropout of this rate at a place, if anything is dropped.
    pub fn dropout(self, rate: f32, place: Place) -> Option<Dropout> {
        let (kind, number) = match place {
            Place::Adapter(weight) => (0, weight),
            Place::Embedding => (1, 0),
            Place::Attention(layer) => (2, layer),
            Place::AttentionOutput(layer) => (3, layer),
            Place::FeedForwardOutput(layer) => (4, layer),
        };
        let index = kind << 32 | number as u64;
        (rate > 0.0).then(|| Dropout {
            rate,
            stream: Stream::new(self.seed ^ self.pass.rotate_left(32), Purpose::Dropout, index),
        })
    }
}
