//! gpt2. Source: `transformers/models/gpt2`.

use serde_json::json;

use super::Family;
use crate::model::config::{Config, DropoutRates, Fields, NormKind, Positions, Resolved, Sizes, wrong};
use crate::model::layout::{Builder, FeedForward, Layer, Layout, Parts, Qkv};
use crate::ops::activation::Activation;

pub(super) fn resolve(fields: &Fields<'_>) -> Resolved<Config> {
    let (hidden_size, heads) = (fields.size(&["n_embd"])?, fields.size(&["n_head"])?);
    if !hidden_size.is_multiple_of(heads) {
        return wrong("n_head", format!("is {heads}, which does not divide n_embd, {hidden_size}"));
    }
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: fields.optional(&["n_inner"]).unwrap_or(4 * hidden_size),
        num_hidden_layers: fields.size(&["n_layer"])?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads,
    };
    let mut config = Config::new(fields, Family::Gpt2, sizes)?;
    config.norm = NormKind::Layer;
    config.norm_epsilon = fields.number("layer_norm_epsilon", 1e-5);
    config.activation = fields.activation(&["activation_function"], Activation::GeluTanh)?;
    config.positions = Positions::Learned;
    config.max_position_embeddings = fields.size(&["n_positions"])?;
    config.tie_word_embeddings = fields.flag("tie_word_embeddings", true);
    let residual = fields.dropout("resid_pdrop", 0.1)?;
    config.dropout = DropoutRates {
        embedding: fields.dropout("embd_pdrop", 0.1)?,
        attention: fields.dropout("attn_pdrop", 0.1)?,
        attention_output: residual,
        feed_forward_output: residual,
    };
    fields.refuse_unless("add_cross_attention", &[json!(false)])?;
    let (scaled, by_layer) =
        (fields.flag("scale_attn_weights", true), fields.flag("scale_attn_by_inverse_layer_idx", false));
    for (number, layer) in config.layers.iter_mut().enumerate() {
        layer.scale = if scaled { layer.scale } else { 1.0 };
        layer.scale /= if by_layer { (number + 1) as f32 } else { 1.0 };
    }
    Ok(config)
}

pub(super) fn layout(config: &Config) -> Layout {
    let (hidden, inner, places) = (config.hidden_size, config.intermediate_size, 2 * config.num_hidden_layers);
    let mut at = Builder::new(config);
    let embedding = at.matrix("transformer.wte", config.vocab_size, hidden);
    let positions = Some(at.matrix("transformer.wpe", config.max_position_embeddings, hidden));
    let layers = at.layers("transformer.h", config, |at| Layer {
        input_norm: at.norm("ln_1", hidden),
        qkv: Qkv::Blocks(at.conv1d("attn.c_attn", hidden, 3 * hidden)),
        output: {
            let output = at.conv1d("attn.c_proj", hidden, hidden);
            at.scaled_for_residuals(output, places)
        },
        feed_forward_norm: at.norm("ln_2", hidden),
        feed_forward: {
            let up = at.conv1d("mlp.c_fc", hidden, inner);
            let down = at.conv1d("mlp.c_proj", inner, hidden);
            FeedForward::Plain { up, down: at.scaled_for_residuals(down, places) }
        },
        head_norms: None,
        attention_norm: None,
        output_norm: None,
    });
    let final_norm = at.norm("transformer.ln_f", hidden);
    at.finish(config, "lm_head", Parts { embedding, positions, embedding_norm: None, layers, final_norm })
}
