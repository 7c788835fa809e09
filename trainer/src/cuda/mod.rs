//! Training on a GPU: a decoder that lives in its memory ([`Decoder`]), beside the one of [`crate::model`].
//!
//! Data, schedules, logs, checkpoints and everything else is shared: parameters and moments come back to the CPU when a
//! checkpoint needs them. What is not built for the GPU is refused by name before weights are read ([`unsupported`]).

mod buffers;
mod decoder;
mod device;
mod embedding;
mod ops;
mod quantised;
mod weights;

#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Parts};
pub use device::Device;

use crate::arguments::{Debug, TrainerArguments};
use crate::model::{Config, Positions, Quantisation, Residual};
use crate::optimizer::Rule;

/// The flag, and what of it is not built for the GPU; `None` if everything asked for is.
pub fn unsupported(
    arguments: &TrainerArguments,
    quantisation: Option<Quantisation>,
) -> Option<(&'static str, &'static str)> {
    let integers = matches!(quantisation, Some(Quantisation::Int8 { threshold: Some(_) }));
    let asked = [
        (integers, "--int8_threshold", "is not built for the GPU; --load_in_8bit without it is"),
        (arguments.fp16 || arguments.fp16_full_eval, "--fp16", "is not built for the GPU; --bf16 is"),
        (arguments.auto_find_batch_size, "--auto_find_batch_size", "is not built for the GPU"),
        (arguments.train_new_rows_only, "--train_new_rows_only", "is not built for the GPU"),
        (arguments.debug.contains(&Debug::UnderflowOverflow), "--debug", "underflow_overflow is not built for the GPU"),
        (
            !matches!(arguments.optim, Rule::AdamwTorch | Rule::AdamwHf),
            "--optim",
            "other than adamw_torch and adamw_hf is not built for the GPU",
        ),
    ];
    asked.into_iter().find(|(asked, ..)| *asked).map(|(_, flag, reason)| (flag, reason))
}

/// The kind of model, and what of it is not built for the GPU; `None` if all of it is.
pub fn unsupported_model(config: &Config) -> Option<String> {
    let rotated = match &config.positions {
        Positions::Rotary(ropes) => ropes.iter().all(|rope| rope.features % 2 == 0),
        Positions::Alibi | Positions::Learned => true,
    };
    let sizes = [
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    ];
    let reasons = [
        (config.residual == Residual::Normed, "branches that are added to normed values"),
        (config.normalized_head, "a normalised output projection"),
        (config.head_dim > ops::LARGEST_HEAD, "heads of more than 256 features"),
        (
            !rotated || !config.head_dim.is_multiple_of(4) || sizes.iter().any(|size| !size.is_multiple_of(4)),
            "sizes that are not multiples of 4",
        ),
    ];
    let reason = reasons.into_iter().find(|(applies, _)| *applies)?.1;
    Some(format!("{} with {reason} is not built for the GPU", config.family.model_type()))
}
