//! What a resumed run must share with the one that saved the checkpoint.

use serde::{Deserialize, Serialize};
use tokenmill_shared::mixture::Mixture;

use super::Plan;
use crate::arguments::{Sampling, Shuffle};
use crate::model::Quantisation;
use crate::training_set::{Source, TrainingSet};

/// The settings a checkpoint cannot be resumed without: change one and the remaining steps would see other
/// data. Schedule, limits, logging and the split of a step into micro-batches may change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultSettings {
    /// Fingerprint of the dataset.
    pub dataset: String,
    /// Training blocks that are drawn from.
    pub train_blocks: u64,
    /// Those of one epoch: fewer if a short last micro-batch is left out.
    pub blocks_per_epoch: u64,
    /// Blocks in an optimizer step.
    pub blocks_per_step: u64,
    /// Seed of the order.
    pub data_seed: u64,
    /// Whether blocks are drawn in random order.
    pub random_order: bool,
    /// What the frozen weights are kept in, if not in float32.
    #[serde(default)]
    pub quantisation: Option<String>,
    /// Whether documents do not see each other.
    #[serde(default)]
    pub document_mask: bool,
    /// The datasets that are mixed, if any are.
    #[serde(default)]
    pub mixture: Mixture,
    /// Of live text, the windows that it is shuffled in, if it is.
    #[serde(default)]
    pub shuffle_window: Option<usize>,
}

impl Plan {
    /// What a resumed run must share with the one that saved the checkpoint.
    pub fn result_settings(&self, data: &TrainingSet, blocks: Option<u64>) -> ResultSettings {
        let arguments = &self.arguments;
        let live = matches!(data.source, Source::Live(_));
        let random = arguments.train_sampling_strategy == Sampling::Random && arguments.shuffle == Shuffle::Global;
        let random = random && !live;
        // Of live text the count may become known between one run and the next; what counts is what was asked for.
        let asked = || arguments.data.train_blocks_limit().unwrap_or(0);
        let blocks = blocks.filter(|_| !live).unwrap_or_else(asked);
        ResultSettings {
            dataset: data.fingerprint.clone(),
            train_blocks: blocks,
            blocks_per_epoch: self.blocks_per_epoch(blocks),
            blocks_per_step: (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps) as u64,
            data_seed: arguments.data_seed.unwrap_or(arguments.seed),
            random_order: random,
            quantisation: self.quantisation.map(Quantisation::name),
            document_mask: arguments.document_mask,
            shuffle_window: arguments.shuffle_window.filter(|_| live),
            mixture: match &data.source {
                Source::Mixed(mixed) => mixed.mixture.clone(),
                _ => Mixture::default(),
            },
        }
    }
}
