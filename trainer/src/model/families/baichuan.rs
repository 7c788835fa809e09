//! Baichuan and Baichuan2, 7B and 13B. Source: the `modeling_baichuan.py` that comes with the models. One `model_type`
//! stands for four of them, told apart by what only some of their configurations say.

use serde_json::{Value, json};

use super::Family;
use crate::model::config::{Config, Fields, Positions, Resolved, Sizes, WHOLE};
use crate::model::layout::{Builder, Layer, Layout, Qkv};
use crate::ops::activation::Activation;

/// Rows of Baichuan2's embedding; the first Baichuan has 64,000.
const BAICHUAN2_VOCAB: usize = 125_696;

pub(super) fn resolve(fields: &Fields<'_>) -> Resolved<Config> {
    let (hidden_size, heads) = (fields.size(&["hidden_size"])?, fields.size(&["num_attention_heads"])?);
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: fields.size(&["intermediate_size"])?,
        num_hidden_layers: fields.size(&["num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads,
    };
    let mut config = Config::new(fields, Family::Baichuan, sizes)?;
    config.activation = fields.activation(&["hidden_act"], Activation::Silu)?;
    // 7B alone has max_position_embeddings.
    let positions = fields.optional(&["max_position_embeddings"]);
    config.max_position_embeddings = positions.or(fields.optional(&["model_max_length"])).unwrap_or(4096);
    if let Some(positions) = positions {
        config.positions = Positions::Rotary(vec![fields.rope(config.head_dim, positions, WHOLE)?]);
    }
    // Baichuan2 alone has z_loss_weight; its head is a NormHead.
    let z_loss = &fields.0["z_loss_weight"];
    fields.refuse_unless("z_loss_weight", &[json!(0)])?;
    config.normalized_head = *z_loss != Value::Null || config.vocab_size == BAICHUAN2_VOCAB;
    Ok(config)
}

pub(super) fn layout(config: &Config) -> Layout {
    let hidden = config.hidden_size;
    Builder::new(config).llama_like(config, |at| Layer {
        qkv: Qkv::Blocks(at.linear("self_attn.W_pack", hidden, 3 * hidden, false)),
        output: at.linear("self_attn.o_proj", hidden, hidden, false),
        head_norms: None,
        feed_forward: at.gated(config, false),
        input_norm: at.norm("input_layernorm", hidden),
        feed_forward_norm: at.norm("post_attention_layernorm", hidden),
        attention_norm: None,
        output_norm: None,
    })
}
