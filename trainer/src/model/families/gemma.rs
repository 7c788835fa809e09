//! gemma, gemma2 and the text model of gemma3. Source: `transformers/models/{gemma,gemma2,gemma3}`.

use serde_json::json;

use super::Family;
use crate::model::config::{Config, Defaults, Fields, NormKind, Positions, Resolved, Sizes, WHOLE, wrong};
use crate::model::layout::{Builder, Layer, Layout};
use crate::ops::activation::Activation;

pub(super) fn resolve(family: Family, fields: &Fields<'_>) -> Resolved<Config> {
    let kv_heads = if family == Family::Gemma { 16 } else { 4 };
    let sizes = Sizes {
        vocab_size: fields.size(&["vocab_size"])?,
        hidden_size: fields.size(&["hidden_size"])?,
        intermediate_size: fields.size(&["intermediate_size"])?,
        num_hidden_layers: fields.size(&["num_hidden_layers"])?,
        num_attention_heads: fields.size(&["num_attention_heads"])?,
        num_key_value_heads: fields.optional(&["num_key_value_heads"]).unwrap_or(kv_heads),
        head_dim: fields.optional(&["head_dim"]).unwrap_or(256),
    };
    let mut config = Config::new(fields, family, sizes)?;
    config.norm = NormKind::Rms { offset: 1.0 };
    // Rounded to float32, as a float32 model multiplies by it.
    config.embedding_scale = (config.hidden_size as f64).sqrt() as f32;
    config.tie_word_embeddings = fields.flag("tie_word_embeddings", true);
    config.max_position_embeddings = fields.optional(&["max_position_embeddings"]).unwrap_or(8192);
    config.dropout.attention = fields.dropout("attention_dropout", 0.0)?;
    config.activation = fields.activation(&["hidden_activation", "hidden_act"], Activation::GeluTanh)?;
    if family == Family::Gemma && config.activation == Activation::Gelu {
        // The first releases say gelu and mean its tanh form; transformers reads them so.
        config.activation = Activation::GeluTanh;
    }
    fields.refuse_unless("use_bidirectional_attention", &[json!(false)])?;
    if family == Family::Gemma {
        let rope = fields.rope(config.head_dim, config.max_position_embeddings, WHOLE)?;
        config.positions = Positions::Rotary(vec![rope]);
        return Ok(config);
    }
    let (scores, logits) = if family == Family::Gemma2 { (Some(50.0), Some(30.0)) } else { (None, None) };
    config.attention_softcap = fields.cap("attn_logit_softcapping", scores)?;
    config.logit_softcap = fields.cap("final_logit_softcapping", logits)?;
    if family == Family::Gemma3 && config.attention_softcap.is_some() {
        return wrong("attn_logit_softcapping", "is set; transformers' gemma3 does not cap scores");
    }
    layers(&mut config, fields)?;
    rotations(&mut config, fields)?;
    Ok(config)
}

/// Local and global layers, and the scale of scores.
fn layers(config: &mut Config, fields: &Fields<'_>) -> Resolved<()> {
    let count = config.num_hidden_layers;
    // Every so many layers one is global.
    let pattern = match config.family {
        Family::Gemma2 => 2,
        _ => fields.optional(&["sliding_window_pattern", "_sliding_window_pattern"]).unwrap_or(6).max(1),
    };
    let local: Vec<bool> = match fields.0["layer_types"].as_array() {
        Some(types) if types.len() != count => {
            return wrong("layer_types", format!("names {} layers, there are {count}", types.len()));
        }
        Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
        None => (1..=count).map(|layer| layer % pattern != 0).collect(),
    };
    let scalar = fields.number("query_pre_attn_scalar", 256.0);
    if scalar <= 0.0 {
        return wrong("query_pre_attn_scalar", format!("is {scalar}"));
    }
    let window = fields.optional(&["sliding_window"]).filter(|window| *window > 0);
    let window = if fields.0.get("sliding_window").is_none() { Some(4096) } else { window };
    for (layer, local) in config.layers.iter_mut().zip(local) {
        layer.window = window.filter(|_| local);
        layer.rope = usize::from(local && config.family == Family::Gemma3);
        layer.scale = scalar.powf(-0.5) as f32;
    }
    Ok(())
}

/// One rotation, or in gemma3 that of global and that of local layers.
fn rotations(config: &mut Config, fields: &Fields<'_>) -> Resolved<()> {
    let (head_dim, positions) = (config.head_dim, config.max_position_embeddings);
    if config.family == Family::Gemma2 {
        config.positions = Positions::Rotary(vec![fields.rope(head_dim, positions, WHOLE)?]);
        return Ok(());
    }
    let (global, local) = (Defaults { theta: 1e6, partial: None }, WHOLE);
    let new = &fields.0["rope_parameters"];
    let ropes = if new.is_object() {
        let of = |kind: &str, defaults| fields.rope_of(Fields(&new[kind]), head_dim, positions, defaults);
        vec![of("full_attention", global)?, of("sliding_attention", local)?]
    } else {
        let base = fields.number("rope_local_base_freq", 10_000.0);
        // Only global layers are scaled.
        let old = json!({"rope_theta": base});
        let local = fields.rope_of(Fields(&old), head_dim, positions, local)?;
        vec![fields.rope(head_dim, positions, global)?, local]
    };
    config.positions = Positions::Rotary(ropes);
    Ok(())
}

pub(super) fn layout(config: &Config) -> Layout {
    let bias = Fields(&config.json).flag("attention_bias", false);
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    Builder::new(config).llama_like(config, |at| {
        let qkv = at.separate(config, bias);
        let output = at.linear("self_attn.o_proj", config.query_width(), hidden, bias);
        let head_norms = (config.family == Family::Gemma3)
            .then(|| ["self_attn.q_norm", "self_attn.k_norm"].map(|name| at.norm(name, head_dim)));
        let feed_forward = at.gated(config, false);
        let input_norm = at.norm("input_layernorm", hidden);
        let after_attention = at.norm("post_attention_layernorm", hidden);
        if config.family == Family::Gemma {
            let (attention_norm, output_norm) = (None, None);
            let feed_forward_norm = after_attention;
            return Layer {
                input_norm,
                qkv,
                head_norms,
                output,
                attention_norm,
                feed_forward_norm,
                feed_forward,
                output_norm,
            };
        }
        Layer {
            input_norm,
            qkv,
            head_norms,
            output,
            attention_norm: Some(after_attention),
            feed_forward_norm: at.norm("pre_feedforward_layernorm", hidden),
            feed_forward,
            output_norm: Some(at.norm("post_feedforward_layernorm", hidden)),
        }
    })
}
