//! Rotary settings: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of 4.

use super::fields::{Fields, Resolved, wrong};
use crate::ops::rope::{Rope, Scaling};

/// What a family says where the configuration is silent.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Defaults {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of a head's features that is rotated, where the family can rotate a part at all.
    pub partial: Option<f64>,
}

/// As most families have it.
pub(in crate::model) const WHOLE: Defaults = Defaults { theta: 10_000.0, partial: None };

impl Fields<'_> {
    /// The object that says how frequencies are scaled: `rope_parameters`, or else `rope_scaling`.
    pub fn rope_settings(&self) -> Fields<'_> {
        let nested = if self.0["rope_parameters"].is_object() { "rope_parameters" } else { "rope_scaling" };
        Fields(&self.0[nested])
    }

    /// The rotation of heads of `head_dim` features, in a model made for so many positions.
    pub fn rope(&self, head_dim: usize, max_position_embeddings: usize, defaults: Defaults) -> Resolved<Rope> {
        self.rope_of(self.rope_settings(), head_dim, max_position_embeddings, defaults)
    }

    /// The same with the settings in `nested`.
    pub fn rope_of(
        &self,
        nested: Fields<'_>,
        head_dim: usize,
        max_position_embeddings: usize,
        defaults: Defaults,
    ) -> Resolved<Rope> {
        let either = |field: &str| nested.0[field].as_f64().or_else(|| self.0[field].as_f64());
        let theta = either("rope_theta").unwrap_or(defaults.theta);
        let partial = either("partial_rotary_factor");
        let share = match defaults.partial {
            None if partial.is_some_and(|share| share != 1.0) => {
                return wrong("partial_rotary_factor", "is not 1; this family rotates all features");
            }
            None => 1.0,
            Some(default) => partial.unwrap_or(default),
        };
        if !(theta > 0.0 && share > 0.0 && share <= 1.0) {
            return wrong("rope_parameters", format!("has base {theta} and rotates the share {share} of each head"));
        }
        let features = (head_dim as f64 * share) as usize;
        if features == 0 || !features.is_multiple_of(2) {
            return wrong("head_dim", format!("is {head_dim}; rotary embedding needs an even number of features"));
        }
        let scaling = scaling(nested, max_position_embeddings)?;
        Ok(Rope { theta, features, scaling, interleaved: false })
    }
}

fn scaling(nested: Fields<'_>, max_position_embeddings: usize) -> Resolved<Scaling> {
    let text = |field: &str| nested.0[field].as_str();
    let kind = text("rope_type").or_else(|| text("type")).unwrap_or("default");
    let optional = |field: &str| nested.0[field].as_f64();
    let number = |field: &str| match optional(field).filter(|value| *value > 0.0) {
        Some(value) => Ok(value),
        None => wrong(&format!("rope {field}"), format!("is missing or not positive; rope type {kind} needs it")),
    };
    Ok(match kind {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: number("factor")? },
        "dynamic" => Scaling::Dynamic { factor: number("factor")?, max_position_embeddings },
        "llama3" => Scaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")?,
        },
        "yarn" => {
            let original =
                number("original_max_position_embeddings").or_else(|error| match max_position_embeddings {
                    0 => Err(error),
                    positions => Ok(positions as f64),
                })?;
            let factor = optional("factor").unwrap_or(max_position_embeddings as f64 / original);
            let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
            let nonzero = |field: &str| optional(field).filter(|value| *value != 0.0);
            let attention_factor =
                optional("attention_factor").unwrap_or_else(|| match (nonzero("mscale"), nonzero("mscale_all_dim")) {
                    (Some(mscale), Some(all)) => scale(mscale) / scale(all),
                    _ => scale(1.0),
                });
            Scaling::Yarn {
                factor,
                beta_fast: nonzero("beta_fast").unwrap_or(32.0),
                beta_slow: nonzero("beta_slow").unwrap_or(1.0),
                original_max_position_embeddings: original,
                attention_factor,
                truncate: nested.flag("truncate", true),
            }
        }
        other => {
            return wrong("rope_type", format!("is {other:?}; built are default, linear, dynamic, llama3 and yarn"));
        }
    })
}
