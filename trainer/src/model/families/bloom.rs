//! bloom. Source: `transformers/models/bloom`. `slow_but_exact` and `pretraining_tp` change the order of sums only.

use super::Family;
use crate::model::config::{Config, DropoutRates, Fields, NormKind, Positions, Residual, Resolved, Sizes, wrong};
use crate::model::layout::{Builder, FeedForward, Layer, Layout, Parts, Qkv};
use crate::ops::activation::Activation;

pub(super) fn resolve(fields: &Fields<'_>) -> Resolved<Config> {
    // The first releases call the width n_embed.
    let hidden_size = fields.size(&["n_embed", "hidden_size"])?;
    let heads = fields.size(&["n_head", "num_attention_heads"])?;
    if !hidden_size.is_multiple_of(heads) {
        return wrong("n_head", format!("is {heads}, which does not divide hidden_size, {hidden_size}"));
    }
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        num_hidden_layers: fields.size(&["n_layer", "num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads,
    };
    let mut config = Config::new(fields, Family::Bloom, sizes)?;
    config.norm = NormKind::Layer;
    config.norm_epsilon = fields.number("layer_norm_epsilon", 1e-5);
    config.activation = Activation::GeluTanh;
    config.positions = Positions::Alibi;
    config.max_position_embeddings = fields.optional(&["seq_length"]).unwrap_or(2048);
    config.tie_word_embeddings = fields.flag("tie_word_embeddings", true);
    let hidden = fields.dropout("hidden_dropout", 0.0)?;
    config.dropout = DropoutRates {
        embedding: 0.0,
        attention: fields.dropout("attention_dropout", 0.0)?,
        attention_output: hidden,
        feed_forward_output: hidden,
    };
    if fields.flag("apply_residual_connection_post_layernorm", false) {
        config.residual = Residual::Normed;
    }
    Ok(config)
}

pub(super) fn layout(config: &Config) -> Layout {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut at = Builder::new(config);
    let embedding = at.matrix("transformer.word_embeddings", config.vocab_size, hidden);
    let embedding_norm = Some(at.norm("transformer.word_embeddings_layernorm", hidden));
    let layers = at.layers("transformer.h", config, |at| Layer {
        input_norm: at.norm("input_layernorm", hidden),
        qkv: Qkv::PerHead(at.linear("self_attention.query_key_value", hidden, 3 * hidden, true)),
        output: at.linear("self_attention.dense", hidden, hidden, true),
        feed_forward_norm: at.norm("post_attention_layernorm", hidden),
        feed_forward: FeedForward::Plain {
            up: at.linear("mlp.dense_h_to_4h", hidden, inner, true),
            down: at.linear("mlp.dense_4h_to_h", inner, hidden, true),
        },
        head_norms: None,
        attention_norm: None,
        output_norm: None,
    });
    let final_norm = at.norm("transformer.ln_f", hidden);
    at.finish(config, "lm_head", Parts { embedding, positions: None, embedding_norm, layers, final_norm })
}
