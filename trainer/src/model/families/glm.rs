//! glm and glm4, as transformers has them. Source: `transformers/models/{glm,glm4}`.

use super::Family;
use crate::model::config::{Config, Defaults, Fields, Positions, Resolved, Sizes};
use crate::model::layout::{Builder, FeedForward, Layer, Layout};
use crate::ops::activation::Activation;

pub(super) fn resolve(family: Family, fields: &Fields<'_>) -> Resolved<Config> {
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size: fields.size(&["hidden_size"])?,
        intermediate_size: fields.size(&["intermediate_size"])?,
        num_hidden_layers: fields.size(&["num_hidden_layers"])?,
        num_attention_heads: fields.size(&["num_attention_heads"])?,
        num_key_value_heads: fields.optional(&["num_key_value_heads"]).unwrap_or(2),
        head_dim: fields.optional(&["head_dim"]).unwrap_or(128),
    };
    let mut config = Config::new(fields, family, sizes)?;
    config.norm_epsilon = fields.number("rms_norm_eps", 1.5625e-7);
    config.activation = fields.activation(&["hidden_act"], Activation::Silu)?;
    config.dropout.attention = fields.dropout("attention_dropout", 0.0)?;
    config.max_position_embeddings = fields.optional(&["max_position_embeddings"]).unwrap_or(131_072);
    let half = Defaults { theta: 10_000.0, partial: Some(0.5) };
    let mut rope = fields.rope(config.head_dim, config.max_position_embeddings, half)?;
    rope.interleaved = true;
    config.positions = Positions::Rotary(vec![rope]);
    Ok(config)
}

pub(super) fn layout(config: &Config) -> Layout {
    let bias = Fields(&config.json).flag("attention_bias", true);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    Builder::new(config).llama_like(config, |at| Layer {
        qkv: at.separate(config, bias),
        output: at.linear("self_attn.o_proj", config.query_width(), hidden, false),
        head_norms: None,
        feed_forward: FeedForward::GatedAsOne {
            gate_up: at.linear("mlp.gate_up_proj", hidden, 2 * inner, false),
            down: at.linear("mlp.down_proj", inner, hidden, false),
        },
        input_norm: at.norm("input_layernorm", hidden),
        feed_forward_norm: at.norm("post_attention_layernorm", hidden),
        attention_norm: (config.family == Family::Glm4).then(|| at.norm("post_self_attn_layernorm", hidden)),
        output_norm: (config.family == Family::Glm4).then(|| at.norm("post_mlp_layernorm", hidden)),
    })
}
