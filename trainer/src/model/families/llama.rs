//! llama, mistral, qwen2 and qwen3. Source: `transformers/models/{llama,mistral,qwen2,qwen3}`.

use serde_json::Value;

use super::Family;
use crate::model::config::{Config, Fields, Positions, Resolved, Sizes, WHOLE, wrong};
use crate::model::layout::{Builder, Layer, Layout};
use crate::ops::activation::Activation;

pub(super) fn resolve(family: Family, fields: &Fields<'_>) -> Resolved<Config> {
    let (hidden_size, heads) = (fields.size(&["hidden_size"])?, fields.size(&["num_attention_heads"])?);
    let kv_heads = if family == Family::Mistral { 8 } else { heads };
    let head_dim = if family == Family::Qwen3 { 128 } else { hidden_size / heads };
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: fields.size(&["intermediate_size"])?,
        num_hidden_layers: fields.size(&["num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: fields.optional(&["num_key_value_heads"]).unwrap_or(kv_heads),
        head_dim: fields.optional(&["head_dim"]).unwrap_or(head_dim),
    };
    let mut config = Config::new(fields, family, sizes)?;
    config.activation = fields.activation(&["hidden_act"], Activation::Silu)?;
    config.dropout.attention = fields.dropout("attention_dropout", 0.0)?;
    let rope = fields.rope(config.head_dim, config.max_position_embeddings, WHOLE)?;
    config.positions = Positions::Rotary(vec![rope]);
    let windows = windows(fields, family, config.num_hidden_layers)?;
    config.layers.iter_mut().zip(windows).for_each(|(layer, window)| layer.window = window);
    Ok(config)
}

/// The sliding window of each layer.
fn windows(fields: &Fields<'_>, family: Family, layers: usize) -> Resolved<Vec<Option<usize>>> {
    let window = match &fields.0["sliding_window"] {
        Value::Null if fields.0.get("sliding_window").is_none() => Some(4096),
        value => value.as_u64().map(|window| window as usize).filter(|window| *window > 0),
    };
    match family {
        Family::Mistral => return Ok(vec![window; layers]),
        Family::Qwen2 | Family::Qwen3 => {}
        _ => return Ok(vec![None; layers]),
    }
    let window = window.filter(|_| fields.flag("use_sliding_window", false));
    if let Some(types) = fields.0["layer_types"].as_array() {
        if types.len() != layers {
            return wrong("layer_types", format!("names {} layers, there are {layers}", types.len()));
        }
        return Ok(types.iter().map(|kind| window.filter(|_| kind == "sliding_attention")).collect());
    }
    let full = fields.optional(&["max_window_layers"]).unwrap_or(28);
    Ok((0..layers).map(|layer| window.filter(|_| layer >= full)).collect())
}

pub(super) fn layout(config: &Config) -> Layout {
    let (family, fields) = (config.family, Fields(&config.json));
    let attention_bias = matches!(family, Family::Llama | Family::Qwen3) && fields.flag("attention_bias", false);
    let qkv_bias = attention_bias || family == Family::Qwen2;
    let mlp_bias = family == Family::Llama && fields.flag("mlp_bias", false);
    let hidden = config.hidden_size;
    Builder::new(config).llama_like(config, |at| Layer {
        qkv: at.separate(config, qkv_bias),
        output: at.linear("self_attn.o_proj", config.query_width(), hidden, attention_bias),
        head_norms: (family == Family::Qwen3)
            .then(|| ["self_attn.q_norm", "self_attn.k_norm"].map(|name| at.norm(name, config.head_dim))),
        feed_forward: at.gated(config, mlp_bias),
        input_norm: at.norm("input_layernorm", hidden),
        feed_forward_norm: at.norm("post_attention_layernorm", hidden),
        attention_norm: None,
        output_norm: None,
    })
}
