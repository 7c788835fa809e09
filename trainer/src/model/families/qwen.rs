//! The first Qwen. Source: the `modeling_qwen.py` that comes with the models.
//!
//! `use_dynamic_ntk` and `use_logn_attn` act beyond `seq_length` only, and not in training; here they act nowhere.

use serde_json::json;

use super::Family;
use crate::model::config::{Config, Defaults, Fields, Positions, Resolved, Sizes, wrong};
use crate::model::layout::{Builder, FeedForward, Layer, Layout, Parts, Qkv};

pub(super) fn resolve(fields: &Fields<'_>) -> Resolved<Config> {
    let (hidden_size, heads) = (fields.size(&["hidden_size"])?, fields.size(&["num_attention_heads"])?);
    let inner = fields.size(&["intermediate_size"])?;
    let head_dim = fields.optional(&["kv_channels"]).unwrap_or(128);
    if head_dim * heads != hidden_size {
        // The output projection takes all heads, and would not fit.
        return wrong(
            "kv_channels",
            format!("is {head_dim}; {heads} heads of it are not the {hidden_size} of hidden_size"),
        );
    }
    if !inner.is_multiple_of(2) {
        return wrong("intermediate_size", format!("is {inner}, which is odd; half of it is gated by the other half"));
    }
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: inner / 2,
        num_hidden_layers: fields.size(&["num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
    };
    let mut config = Config::new(fields, Family::Qwen, sizes)?;
    config.norm_epsilon = fields.number("layer_norm_epsilon", 1e-6);
    config.max_position_embeddings = fields.optional(&["seq_length", "max_position_embeddings"]).unwrap_or(8192);
    config.dropout.embedding = fields.dropout("emb_dropout_prob", 0.0)?;
    config.dropout.attention = fields.dropout("attn_dropout_prob", 0.0)?;
    fields.refuse_unless("scale_attn_weights", &[json!(true)])?;
    let share = fields.number("rotary_pct", 1.0);
    let defaults = Defaults { theta: fields.number("rotary_emb_base", 10_000.0), partial: Some(share) };
    config.positions = Positions::Rotary(vec![fields.rope(head_dim, config.max_position_embeddings, defaults)?]);
    Ok(config)
}

pub(super) fn layout(config: &Config) -> Layout {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let bias = !Fields(&config.json).flag("no_bias", true);
    let places = 2 * config.num_hidden_layers;
    let mut at = Builder::new(config);
    let embedding = at.matrix("transformer.wte", config.vocab_size, hidden);
    let layers = at.layers("transformer.h", config, |at| Layer {
        input_norm: at.norm("ln_1", hidden),
        qkv: Qkv::Blocks(at.linear("attn.c_attn", hidden, 3 * hidden, true)),
        output: {
            let output = at.linear("attn.c_proj", hidden, hidden, bias);
            at.scaled_for_residuals(output, places)
        },
        feed_forward_norm: at.norm("ln_2", hidden),
        feed_forward: {
            // The first of the two is what is gated.
            let (up, gate) = (at.linear("mlp.w1", hidden, inner, bias), at.linear("mlp.w2", hidden, inner, bias));
            let down = at.linear("mlp.c_proj", inner, hidden, bias);
            FeedForward::Gated { gate, up, down: at.scaled_for_residuals(down, places) }
        },
        head_norms: None,
        attention_norm: None,
        output_norm: None,
    });
    let final_norm = at.norm("transformer.ln_f", hidden);
    at.finish(config, "lm_head", Parts { embedding, positions: None, embedding_norm: None, layers, final_norm })
}
