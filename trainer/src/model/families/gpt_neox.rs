//! gpt_neox, Pythia included. Source: `transformers/models/gpt_neox`. The head is `embed_out`, as in all files;
//! transformers 5 calls it `lm_head` in memory only.

use super::Family;
use crate::model::config::{
    Config, Defaults, DropoutRates, Fields, NormKind, Positions, Residual, Resolved, Sizes, wrong,
};
use crate::model::layout::{Builder, FeedForward, Layer, Layout, Parts, Qkv};
use crate::ops::activation::Activation;

pub(super) fn resolve(fields: &Fields<'_>) -> Resolved<Config> {
    let (hidden_size, heads) = (fields.size(&["hidden_size"])?, fields.size(&["num_attention_heads"])?);
    if !hidden_size.is_multiple_of(heads) {
        return wrong("num_attention_heads", format!("is {heads}, which does not divide hidden_size, {hidden_size}"));
    }
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: fields.size(&["intermediate_size"])?,
        num_hidden_layers: fields.size(&["num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads,
    };
    let mut config = Config::new(fields, Family::GptNeox, sizes)?;
    config.norm = NormKind::Layer;
    config.norm_epsilon = fields.number("layer_norm_eps", 1e-5);
    config.activation = fields.activation(&["hidden_act"], Activation::Gelu)?;
    let hidden = fields.dropout("hidden_dropout", 0.0)?;
    config.dropout = DropoutRates {
        embedding: hidden,
        attention: fields.dropout("attention_dropout", 0.0)?,
        attention_output: hidden,
        feed_forward_output: hidden,
    };
    if fields.flag("use_parallel_residual", true) {
        config.residual = Residual::Parallel;
    }
    let defaults = Defaults {
        theta: fields.number("rotary_emb_base", 10_000.0),
        partial: Some(fields.number("rotary_pct", 0.25)),
    };
    config.positions =
        Positions::Rotary(vec![fields.rope(config.head_dim, config.max_position_embeddings, defaults)?]);
    Ok(config)
}

pub(super) fn layout(config: &Config) -> Layout {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let bias = Fields(&config.json).flag("attention_bias", true);
    let mut at = Builder::new(config);
    let embedding = at.matrix("gpt_neox.embed_in", config.vocab_size, hidden);
    let layers = at.layers("gpt_neox.layers", config, |at| Layer {
        input_norm: at.norm("input_layernorm", hidden),
        feed_forward_norm: at.norm("post_attention_layernorm", hidden),
        qkv: Qkv::PerHead(at.linear("attention.query_key_value", hidden, 3 * hidden, bias)),
        output: at.linear("attention.dense", hidden, hidden, bias),
        feed_forward: FeedForward::Plain {
            up: at.linear("mlp.dense_h_to_4h", hidden, inner, true),
            down: at.linear("mlp.dense_4h_to_h", inner, hidden, true),
        },
        head_norms: None,
        attention_norm: None,
        output_norm: None,
    });
    let final_norm = at.norm("gpt_neox.final_layer_norm", hidden);
    at.finish(config, "embed_out", Parts { embedding, positions: None, embedding_norm: None, layers, final_norm })
}
