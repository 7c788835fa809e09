//! How documents become blocks, from the flags that say so.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::DataArguments;
use crate::{Error, Result};

/// How documents share blocks, where they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum PackingStrategy {
    /// One after the other, cut wherever a block is full.
    Concatenate,
    /// Whole, unless longer than a block: each where it leaves the least room; the rest is padding.
    BestFit,
}

/// A program whose behaviour is reproduced where ours differs on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Compat {
    /// transformers' run_clm.py: blocks of 1000 documents at a time, without end-of-sequence tokens
    RunClm,
    /// MedicalGPT's pretraining.py: blocks of 1000 documents at a time; --group_by_length switches packing, as from 2024 to
    /// 2026; FP4 for --load_in_4bit without --qlora, and nothing for --qlora alone
    Medicalgpt,
    /// The Trainer of transformers 4.46 to 4.57: the loss is the sum over the predicted labels divided by the number of
    /// all, the first of each block included, in training and evaluation; with label smoothing the means of a step's
    /// micro-batches are added up
    #[value(name = "hf-4.57")]
    #[serde(rename = "hf-4.57")]
    Hf457,
}

/// How blocks are made, all flags considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// One stream of all documents, cut every `block_size`.
    Concatenate,
    /// One document a block, truncated or padded; one without a token makes none.
    Documents,
    /// Documents whole, unless longer than a block.
    BestFit,
    /// As run_clm.py: 1000 documents at a time are a stream, and what fills no block is left out.
    RunClm,
    /// As MedicalGPT's pretraining.py: the same, but of documents that fill no block at all one block is made.
    Medicalgpt,
    /// As MedicalGPT's pretraining.py without packing: one document a block, also one without a token.
    MedicalgptDocuments,
}

impl DataArguments {
    /// Whether a program's ways are asked for.
    pub fn is_compat(&self, program: Compat) -> bool {
        self.compat.contains(&program)
    }

    /// How blocks are made.
    ///
    /// # Errors
    /// Two flags that contradict each other, both named.
    pub fn packing(&self) -> Result<Packing> {
        let refused = |flag: &str, reason: &str| Err(Error::config(flag, reason));
        let best_fit = self.packing_strategy == PackingStrategy::BestFit;
        let (run_clm, medicalgpt) = (self.is_compat(Compat::RunClm), self.is_compat(Compat::Medicalgpt));
        if run_clm && medicalgpt {
            return refused("--compat", "is run_clm and medicalgpt, which make different blocks; give one of them");
        }
        if (run_clm || medicalgpt) && best_fit {
            return refused("--packing_strategy", "is best_fit, which no program of --compat knows; give one of them");
        }
        if run_clm && !self.packing {
            return refused("--packing", "is false, and --compat run_clm always packs; leave out one of them");
        }
        if !self.packing && best_fit {
            return refused("--packing_strategy", "is for packing, and --packing is false; leave out one of them");
        }
        Ok(match (medicalgpt, self.group_by_length) {
            (true, Some(true)) => Packing::Medicalgpt,
            (true, Some(false)) => Packing::MedicalgptDocuments,
            (true, None) if self.packing => Packing::Medicalgpt,
            (true, None) => Packing::MedicalgptDocuments,
            (false, _) if run_clm => Packing::RunClm,
            (false, _) if best_fit => Packing::BestFit,
            (false, _) if self.packing => Packing::Concatenate,
            (false, _) => Packing::Documents,
        })
    }

    /// Whether an end-of-sequence token ends each document. run_clm.py appends none, and MedicalGPT does since it has
    /// `--packing` (2026) where it packs.
    pub fn appends_eos(&self) -> bool {
        let packs_as_today = self.packing && self.group_by_length.is_none();
        let theirs = !self.is_compat(Compat::RunClm) && (!self.is_compat(Compat::Medicalgpt) || packs_as_today);
        self.append_eos && theirs
    }

    /// Says once what was given and does nothing.
    pub fn say_without_effect(&self) {
        if self.group_by_length == Some(true) && !self.is_compat(Compat::Medicalgpt) {
            eprintln!("--group_by_length has no effect here: all blocks have the same length");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut DataArguments)) -> Result<(Packing, bool)> {
        let mut data = DataArguments::default();
        change(&mut data);
        Ok((data.packing()?, data.appends_eos()))
    }

    #[test]
    fn flags_and_programs_say_how_blocks_are_made() {
        assert_eq!(of(|_| {}).unwrap(), (Packing::Concatenate, true));
        assert_eq!(of(|data| data.packing = false).unwrap(), (Packing::Documents, true));
        assert_eq!(of(|data| data.packing_strategy = PackingStrategy::BestFit).unwrap(), (Packing::BestFit, true));
        assert_eq!(of(|data| data.compat = vec![Compat::RunClm]).unwrap(), (Packing::RunClm, false));
        assert_eq!(of(|data| data.compat = vec![Compat::Hf457]).unwrap(), (Packing::Concatenate, true));
        // Length grouping was the switch of packing, without end-of-sequence tokens, before there was one.
        for (packing, group_by_length, expected) in [
            (true, None, (Packing::Medicalgpt, true)),
            (false, None, (Packing::MedicalgptDocuments, false)),
            (true, Some(true), (Packing::Medicalgpt, false)),
            (true, Some(false), (Packing::MedicalgptDocuments, false)),
        ] {
            let found = of(|data| {
                data.compat = vec![Compat::Hf457, Compat::Medicalgpt];
                (data.packing, data.group_by_length) = (packing, group_by_length);
            });
            assert_eq!(found.unwrap(), expected, "{packing} {group_by_length:?}");
        }
    }

    #[test]
    fn contradictions_are_refused_with_both_names() {
        let both = vec![Compat::RunClm, Compat::Medicalgpt];
        let best_fit = |data: &mut DataArguments| data.packing_strategy = PackingStrategy::BestFit;
        for (error, parts) in [
            (of(|data| data.compat = both), ["run_clm", "medicalgpt"]),
            (
                of(|data| {
                    best_fit(data);
                    data.compat = vec![Compat::Medicalgpt];
                }),
                ["best_fit", "--compat"],
            ),
            (
                of(|data| {
                    best_fit(data);
                    data.packing = false;
                }),
                ["--packing_strategy", "--packing is false"],
            ),
            (
                of(|data| {
                    data.packing = false;
                    data.compat = vec![Compat::RunClm];
                }),
                ["--packing", "run_clm"],
            ),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
