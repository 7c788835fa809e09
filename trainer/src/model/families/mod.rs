//! The model families: what each reads in its configuration, and its weights under their names.
//!
//! To add one: a variant of [`Family`], a file with `resolve` and `layout`, a fixture in `tests/golden.rs`.

mod baichuan;
mod bloom;
mod gemma;
mod glm;
mod gpt2;
mod gpt_neox;
mod llama;
mod qwen;

use serde_json::Value;

use super::config::{Config, Fields, Resolved};
use super::layout::Layout;

/// A model family that is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3 and what copies it.
    Llama,
    /// Mistral: a sliding window in every layer.
    Mistral,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: norms on the heads of q and k.
    Qwen3,
    /// Gemma: norms around 1, scaled embeddings, GeGLU.
    Gemma,
    /// Gemma 2: capped scores and logits, norms after each branch too, every other layer local.
    Gemma2,
    /// The text model of Gemma 3: head norms, and another rotation in local layers.
    Gemma3,
    /// GLM-4 as transformers has it: half of each head rotated, neighbours together.
    Glm,
    /// GLM-4-0414: norms after each branch too.
    Glm4,
    /// Baichuan and Baichuan2: 7B rotary, 13B ALiBi.
    Baichuan,
    /// The first Qwen.
    Qwen,
    /// GPT-2: learned positions, LayerNorm, weights with the input first.
    Gpt2,
    /// Bloom: ALiBi, LayerNorm.
    Bloom,
    /// GPT-NeoX and Pythia: both branches beside each other.
    GptNeox,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::Glm,
        Self::Glm4,
        Self::Baichuan,
        Self::Qwen,
        Self::Gpt2,
        Self::Bloom,
        Self::GptNeox,
    ];

    /// Its `model_type`, the class transformers (or the family's own code) has for it, and what the names of its weights
    /// begin with.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Llama => ("llama", "LlamaForCausalLM", "model."),
            Self::Mistral => ("mistral", "MistralForCausalLM", "model."),
            Self::Qwen2 => ("qwen2", "Qwen2ForCausalLM", "model."),
            Self::Qwen3 => ("qwen3", "Qwen3ForCausalLM", "model."),
            Self::Gemma => ("gemma", "GemmaForCausalLM", "model."),
            Self::Gemma2 => ("gemma2", "Gemma2ForCausalLM", "model."),
            Self::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM", "model."),
            Self::Glm => ("glm", "GlmForCausalLM", "model."),
            Self::Glm4 => ("glm4", "Glm4ForCausalLM", "model."),
            Self::Baichuan => ("baichuan", "BaichuanForCausalLM", "model."),
            Self::Qwen => ("qwen", "QWenLMHeadModel", "transformer."),
            Self::Gpt2 => ("gpt2", "GPT2LMHeadModel", "transformer."),
            Self::Bloom => ("bloom", "BloomForCausalLM", "transformer."),
            Self::GptNeox => ("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox."),
        }
    }

    /// The family that configurations call `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }

    /// What configurations call it.
    pub fn model_type(self) -> &'static str {
        self.names().0
    }

    /// The class name that transformers gives it.
    pub fn architecture(self) -> &'static str {
        self.names().1
    }

    /// What the names of its weights begin with; old files of some leave it out.
    pub(super) fn prefix(self) -> &'static str {
        self.names().2
    }

    /// Whether `--model_type asked` means it: its own name, or one that MedicalGPT has for several.
    pub fn is_called(self, asked: &str) -> bool {
        match asked {
            "qwen" => matches!(self, Self::Qwen | Self::Qwen2 | Self::Qwen3),
            "gemma" => matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3),
            "gemma3" => self == Self::Gemma3,
            "glm" | "chatglm" => matches!(self, Self::Glm | Self::Glm4),
            "baichuan2" => self == Self::Baichuan,
            "gptneox" | "pythia" => self == Self::GptNeox,
            asked => asked == self.model_type(),
        }
    }
}

/// Resolves the configuration of a model of `family`.
pub(super) fn resolve(family: Family, fields: &Fields<'_>) -> Resolved<Config> {
    let mut config = match family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => llama::resolve(family, fields),
        Family::Gemma | Family::Gemma2 | Family::Gemma3 => gemma::resolve(family, fields),
        Family::Glm | Family::Glm4 => glm::resolve(family, fields),
        Family::Baichuan => baichuan::resolve(fields),
        Family::Qwen => qwen::resolve(fields),
        Family::Gpt2 => gpt2::resolve(fields),
        Family::Bloom => bloom::resolve(fields),
        Family::GptNeox => gpt_neox::resolve(fields),
    }?;
    config.padding_row = padding_row(family, fields, config.vocab_size);
    Ok(config)
}

/// The `padding_idx` of PyTorch's `Embedding`, which most of transformers' classes make the configuration's `pad_token_id`:
/// its row stays as it is, also where padding is the end-of-sequence token and text is full of it. -1 is the last row.
fn padding_row(family: Family, fields: &Fields<'_>, vocab_size: usize) -> Option<u32> {
    let usual = match family {
        Family::Qwen | Family::Gpt2 | Family::Bloom | Family::GptNeox => return None,
        Family::Gemma | Family::Gemma2 | Family::Gemma3 | Family::Baichuan => Some(0),
        Family::Glm | Family::Glm4 => Some(151_329),
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => None,
    };
    let row = fields.0.get("pad_token_id").map_or(usual, Value::as_i64)?;
    let row = if row < 0 { row + vocab_size as i64 } else { row };
    u32::try_from(row).ok().filter(|row| (*row as usize) < vocab_size)
}

/// The weights of a model.
pub(super) fn layout(config: &Config) -> Layout {
    match config.family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => llama::layout(config),
        Family::Gemma | Family::Gemma2 | Family::Gemma3 => gemma::layout(config),
        Family::Glm | Family::Glm4 => glm::layout(config),
        Family::Baichuan => baichuan::layout(config),
        Family::Qwen => qwen::layout(config),
        Family::Gpt2 => gpt2::layout(config),
        Family::Bloom => bloom::layout(config),
        Family::GptNeox => gpt_neox::layout(config),
    }
}

#[cfg(test)]
mod tests {
    use super::Family;

    #[test]
    fn names_of_medicalgpt_mean_families() {
        let called = |asked: &str| -> Vec<&str> {
            Family::ALL.into_iter().filter(|family| family.is_called(asked)).map(Family::model_type).collect()
        };
        assert_eq!(called("qwen"), ["qwen2", "qwen3", "qwen"]);
        assert_eq!(called("qwen2"), ["qwen2"]);
        assert_eq!(called("chatglm"), ["glm", "glm4"]);
        assert_eq!(called("gemma"), ["gemma", "gemma2", "gemma3_text"]);
        for name in ["bloom", "llama", "baichuan", "mistral", "gpt2", "gpt_neox", "glm4"] {
            assert_eq!(called(name), [name]);
        }
        assert!(called("mamba").is_empty());
    }
}
