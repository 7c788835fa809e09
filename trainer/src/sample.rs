//! What the model writes: a continuation of a prompt, to look at before and after training.

use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_shared::random::{Purpose, Stream};
use tokenmill_shared::{Error, Result};

use crate::model::Model;

/// Below 1 sharpens the distribution; small models ramble at 1 and repeat themselves at 0.
const TEMPERATURE: f64 = 0.7;

/// Continues `prompt` by `tokens` tokens drawn with a seeded generator; the same for the same weights.
pub fn continuation(
    model: &mut Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    tokens: usize,
    seed: u64,
) -> Result<String> {
    let failed = |why: String| Error::config("--sample_prompt", why);
    let mut ids = Vec::new();
    tokenizer.encode(prompt, true, &mut ids).map_err(failed)?;
    if ids.is_empty() {
        return Err(failed("has no token".to_owned()));
    }
    let stream = Stream::new(seed, Purpose::Sample, 0);
    for at in 0..tokens {
        let logits = model.next_logits(&ids)?;
        let next = draw(&logits, stream.uniform(at as u64));
        if Some(next) == tokenizer.eos_token_id {
            break;
        }
        ids.push(next);
    }
    tokenizer.decode(&ids).map_err(failed)
}

/// The token at `position` (in [0, 1)) of the cumulative distribution.
fn draw(logits: &[f32], position: f64) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| (f64::from(logit - largest) / TEMPERATURE).exp();
    let mut left = position * logits.iter().map(weight).sum::<f64>();
    let found = logits.iter().position(|logit| {
        left -= weight(logit);
        left < 0.0
    });
    found.unwrap_or(0) as u32
}
