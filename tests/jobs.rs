//! Jobs to be disturbed: another text and other flags for every seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokenmill_tests::mutate::Mutator;
use tokenmill_tests::{Place, digest, lines};

/// One `prepare`.
pub(crate) struct Job {
    pub(crate) seed: u64,
    flags: String,
}

/// Where the dataset goes.
pub(crate) const OUTPUT: &str = "out";

const TWO_SPLITS: &str = "--validation_split_percentage 20";

impl Job {
    /// The first has two splits and leaves the rest as it is; the others are drawn.
    pub(crate) fn of(seed: u64) -> Self {
        if seed == 1 {
            return Self::of_two_splits(seed);
        }
        let mut draw = Mutator::new(seed);
        let drawn = [
            *draw.choose(&["", TWO_SPLITS, "--validation_split_percentage 40 --validation_split_mode hash"]),
            *draw.choose(&["", "--packing false", "--packing_strategy best_fit", "--remainder pad"]),
            *draw.choose(&["--block_size 7", "--block_size 16", "--block_size 64"]),
            *draw.choose(&["", "--token_cache false"]),
            &format!("--preprocessing_num_workers {}", 1 + draw.below(16)),
        ];
        Self { seed, flags: drawn.join(" ") }
    }

    pub(crate) fn of_two_splits(seed: u64) -> Self {
        Self { seed, flags: TWO_SPLITS.to_owned() }
    }

    pub(crate) fn of_longer_blocks(seed: u64) -> Self {
        Self { seed, flags: "--block_size 32".to_owned() }
    }

    /// Its text in a place of its own.
    pub(crate) fn place(&self) -> Place {
        let place = Place::new();
        for file in 0..3 {
            place.write(&format!("text/{file}.txt"), lines(40, (self.seed - 1) * 3 + file));
        }
        place
    }

    pub(crate) fn prepare(&self, place: &Place) -> Command {
        place.prepare(OUTPUT, &self.flags.split_whitespace().collect::<Vec<_>>())
    }
}

/// What is in `dir` is all of the dataset that is expected, if there is a manifest.
pub(crate) fn assert_whole_or_unfinished(dir: &Path, expected: &BTreeMap<PathBuf, String>, after: &str) {
    if dir.join("manifest.json").exists() {
        let mut found = digest(dir);
        found.retain(|path, _| !path.to_string_lossy().starts_with('.'));
        assert_eq!(found, *expected, "a manifest without its dataset after {after}");
    }
}
