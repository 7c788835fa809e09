//! Which tokenizer class a directory is for: the one that transformers' AutoTokenizer would make.

use serde_json::Value;

/// The classes that are converted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// transformers' `TokenizersBackend`, for directories without a class of their own.
    Generic,
    Llama,
    Gemma,
    T5,
    Xglm,
    Gpt2,
    Qwen2,
    /// Code that comes with the model: SentencePiece as it is.
    Baichuan,
    /// Code that comes with the model: SentencePiece, and commands behind the vocabulary.
    ChatGlm,
    /// Code that comes with the model: tiktoken.
    Qwen,
}

/// Families whose class transformers 5.23 sets, whatever a directory says (`TOKENIZER_MAPPING_NAMES`): those of causal
/// language models that come with the files read here.
const REGISTERED: &[(Class, &[&str])] = &[
    (
        Class::Generic,
        &[
            "mistral",
            "mistral3",
            "mixtral",
            "ministral",
            "ministral3",
            "phi3",
            "phimoe",
            "internlm2",
            "internlm3",
            "minicpm3",
            "jamba",
            "nemotron",
            "arctic",
            "ernie4_5",
            "ernie4_5_moe",
            "glm",
            "glm4",
            "glm4_moe",
            "gpt_bigcode",
            "granite",
            "granitemoe",
            "olmo2",
            "olmo3",
            "persimmon",
            "stablelm",
        ],
    ),
    (
        Class::Gemma,
        &["gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "recurrent_gemma", "t5gemma"],
    ),
    (Class::Gpt2, &["gpt2", "gptj", "gpt_neo", "opt", "phi", "codegen", "dbrx", "jais2", "starcoder2"]),
    (Class::Qwen2, &["qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"]),
    (Class::T5, &["t5", "mt5", "switch_transformers"]),
    (Class::Xglm, &["xglm"]),
];

/// Families for which the registered class counts even where the directory names another.
const DIRECTORY_IS_WRONG: &[&str] = &["qwen2"];

/// The class of a directory with this tokenizer_config.json and config.json (null where absent).
///
/// # Errors
/// The class is one that is not converted here; its name.
pub(super) fn class_of(config: &Value, model: &Value) -> Result<Class, String> {
    let named = config["tokenizer_class"].as_str().or_else(|| model["tokenizer_class"].as_str());
    let named = named.map(|name| name.strip_suffix("Fast").unwrap_or(name));
    let family = model["model_type"].as_str().unwrap_or_default();
    let registered = REGISTERED.iter().find(|(_, families)| families.contains(&family)).map(|(class, _)| *class);
    let class = match named {
        None => return Ok(registered.unwrap_or(Class::Generic)),
        Some("BaichuanTokenizer" | "BaiChuanTokenizer") => return Ok(Class::Baichuan),
        Some("ChatGLMTokenizer") => return Ok(Class::ChatGlm),
        Some("QWenTokenizer") => return Ok(Class::Qwen),
        Some(other) if has_own_code(config) => return Err(other.to_owned()),
        Some("LlamaTokenizer") => Class::Llama,
        Some("GemmaTokenizer") => Class::Gemma,
        Some("T5Tokenizer") => Class::T5,
        Some("XGLMTokenizer") => Class::Xglm,
        Some("GPT2Tokenizer") => Class::Gpt2,
        Some("Qwen2Tokenizer") => Class::Qwen2,
        Some("TokenizersBackend" | "PreTrainedTokenizer" | "BloomTokenizer") => Class::Generic,
        Some(other) => return Err(other.to_owned()),
    };
    Ok(match registered {
        Some(Class::Generic) => Class::Generic,
        Some(registered) if DIRECTORY_IS_WRONG.contains(&family) => registered,
        _ => class,
    })
}

fn has_own_code(config: &Value) -> bool {
    !config["auto_map"].is_null()
}

/// Whether a directory is for tokenizer.json alone, as those that are written here are.
pub(super) fn is_fast_only(config: &Value) -> bool {
    matches!(config["tokenizer_class"].as_str(), Some("PreTrainedTokenizerFast" | "TokenizersBackend"))
}
