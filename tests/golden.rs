//! Loss, logits and every gradient equal PyTorch's, for every family and rope kind that is built.
//!
//! The fixtures are tiny checkpoints with what `transformers` computes on them in f32 on a CPU
//! (`tests/data/fixtures/gen.py`). `TOKENMILL_FIXTURES` names another directory of them.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tokenmill_trainer::model::{Batch, Config, Model};

const FIXTURES: [&str; 27] = [
    "llama",
    "llama_mha_bias",
    "llama3_rope",
    "llama_linear_rope",
    "llama_dynamic_rope",
    "llama_yarn_rope",
    "llama_yarn_untruncated",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "baichuan_7b",
    "baichuan_13b",
    "baichuan2_7b",
    "baichuan2_13b",
    "qwen",
    "gpt2",
    "gpt2_by_layer",
    "bloom",
    "bloom_heads6",
    "bloom_normed",
    "gpt_neox",
    "gpt_neox_serial",
];

const LOGITS: f32 = 2e-5;
const LOSS: f64 = 1e-6;
const GRADIENT: f32 = 1e-5;

/// Where the fixture `name` is: in the directory asked for, or else among our own.
fn directory(name: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/fixtures").join(name);
    let Some(asked) = std::env::var_os("TOKENMILL_FIXTURES").map(PathBuf::from) else { return own };
    assert!(asked.is_dir(), "TOKENMILL_FIXTURES names {}, which is no directory", asked.display());
    let asked = asked.join(name);
    if !asked.is_dir() {
        println!("{name} is not in TOKENMILL_FIXTURES: it is our own");
        return own;
    }
    asked
}

struct Golden {
    dir: PathBuf,
    tensors: std::collections::HashMap<String, Tensor>,
}

/// How far a model is from the golden values.
#[derive(Debug)]
struct Distance {
    logits: f32,
    loss: f64,
    /// The worst parameter's max|Δ| / max|reference|.
    gradient: (f32, String),
}

impl Distance {
    fn is_close(&self) -> bool {
        self.logits <= LOGITS && self.loss <= LOSS && self.gradient.0 <= GRADIENT
    }
}

impl Golden {
    fn open(name: &str) -> Self {
        let dir = directory(name);
        let tensors = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu).unwrap();
        Self { dir, tensors }
    }

    /// The gradient of a parameter. transformers 5 calls gpt_neox's head `lm_head`, in its files `embed_out`.
    fn gradient(&self, name: &str) -> Option<String> {
        let names = [format!("grad.{name}"), format!("grad.{}", name.replace("embed_out.", "lm_head."))];
        names.into_iter().find(|name| self.tensors.contains_key(name))
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.tensors[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn distance(&self, model: &mut Model) -> Distance {
        let ids = &self.tensors["input_ids"];
        let values: Vec<i64> = ids.flatten_all().unwrap().to_vec1().unwrap();
        let batch = Batch::new(values.iter().map(|id| *id as u32).collect(), ids.dims2().unwrap().0);
        let logits = model.logits(&batch).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let scale = 1.0 / batch.label_tokens() as f32;
        model.clear_gradients();
        let loss = model.forward_backward(&batch, scale, false).unwrap();
        let reference = f64::from(self.values("loss")[0]);
        let mut worst = (0.0, String::new());
        for (index, parameter) in model.parameters().iter().enumerate() {
            let expected = self.values(&self.gradient(&parameter.name).unwrap());
            let distance = largest_difference(&model.gradients().of(index).unwrap(), &expected);
            let relative = distance / expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            if relative > worst.0 || relative.is_nan() {
                worst = (relative, parameter.name.clone());
            }
        }
        Distance {
            logits: largest_difference(&logits, &self.values("logits")),
            loss: (loss.nll / loss.tokens as f64 / reference - 1.0).abs(),
            gradient: worst,
        }
    }
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_loss_and_every_gradient_equal_the_reference() {
    for name in FIXTURES {
        let golden = Golden::open(name);
        let mut model = Model::load(&golden.dir).unwrap();
        let gradients = golden.tensors.keys().filter(|key| key.starts_with("grad.")).count();
        assert_eq!(gradients, model.parameters().len(), "{name}: every parameter has a golden gradient");
        let distance = golden.distance(&mut model);
        println!("{name:20} {distance:?}");
        assert!(distance.is_close(), "{name}: {distance:?}");
    }
}

#[test]
fn a_sharded_checkpoint_loads_like_a_single_one() {
    let model = Model::load(&directory("sharded")).unwrap();
    let index: Value =
        serde_json::from_slice(&std::fs::read(directory("sharded").join("model.safetensors.index.json")).unwrap())
            .unwrap();
    let total: usize = model.parameters().iter().map(|parameter| parameter.tensor.elem_count()).sum();
    assert_eq!(total as u64, index["metadata"]["total_parameters"].as_u64().unwrap());
}

/// Old files of gpt2 and bloom leave out `transformer.`, and hold masks; transformers 5 may call gpt_neox's head `lm_head`.
#[test]
fn files_with_other_names_and_buffers_load_like_new_ones() {
    let buffers = ["h.0.attn.bias", "h.1.attn.masked_bias", "gpt_neox.layers.0.attention.bias", "rotary_emb.inv_freq"];
    for name in ["gpt2", "bloom", "gpt_neox", "qwen"] {
        let golden = Golden::open(name);
        let new = candle_core::safetensors::load(golden.dir.join("model.safetensors"), &Device::Cpu).unwrap();
        let renamed = |name: String| name.replace("transformer.", "").replace("embed_out", "lm_head");
        let mut old: std::collections::HashMap<String, Tensor> =
            new.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
        let mask = Tensor::ones((1, 1, 4, 4), DType::U8, &Device::Cpu).unwrap();
        old.extend(buffers.map(|buffer| (buffer.to_owned(), mask.clone())));
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(golden.dir.join("config.json"), copy.path().join("config.json")).unwrap();
        candle_core::safetensors::save(&old, copy.path().join("model.safetensors")).unwrap();
        assert!(golden.distance(&mut Model::load(copy.path()).unwrap()).is_close(), "{name}");
        old.insert("h.0.attn.extra".to_owned(), mask);
        candle_core::safetensors::save(&old, copy.path().join("model.safetensors")).unwrap();
        let error = Model::load(copy.path()).unwrap_err().to_string();
        assert!(error.contains("h.0.attn.extra"), "{error}");
    }
}

/// Values of a field that each change what is computed; none, if the field does not shape it. A field that is in no list
/// fails the test.
fn changes(fixture: &str, config: &Value, field: &str) -> Vec<Value> {
    let model_type = config["model_type"].as_str().unwrap();
    match field {
        "rms_norm_eps" | "layer_norm_epsilon" | "layer_norm_eps" => vec![json!(1e-2)],
        "num_attention_heads" | "n_head" => vec![json!(2)],
        "num_key_value_heads" => vec![json!(1), json!(2)],
        "head_dim" | "kv_channels" => vec![json!(8)],
        "hidden_size" | "n_embd" => vec![json!(16)],
        "intermediate_size" | "n_inner" => vec![json!(48), json!(80)],
        "num_hidden_layers" | "n_layer" => vec![json!(1)],
        "vocab_size" => vec![json!(50)],
        "n_positions" => vec![json!(50)],
        // Of gemma, "gelu" means the tanh form.
        "hidden_act" if model_type == "gemma" => vec![json!("relu"), json!("silu")],
        "hidden_act" | "hidden_activation" | "activation_function" => vec![json!("relu"), json!("silu"), json!("gelu")],
        "model_type" => vec![json!("gpt_bigcode")],
        "attention_dropout" | "hidden_dropout" | "attn_pdrop" | "resid_pdrop" | "embd_pdrop" => vec![json!(0.1)],
        "attention_bias" | "mlp_bias" => vec![json!(!config[field].as_bool().unwrap())],
        "rope_parameters.rope_theta" | "rotary_emb_base" => vec![json!(500.0)],
        "rope_parameters.rope_type" => vec![json!("su")],
        "rope_parameters.partial_rotary_factor" | "rotary_pct" => vec![json!(0.25), json!(0.75)],
        "rope_parameters.full_attention" | "rope_parameters.sliding_attention" => {
            vec![json!({"rope_theta": 500.0, "rope_type": "default"}), json!({"rope_type": "su"})]
        }
        "rope_parameters.factor" => vec![json!(3.0)],
        "rope_parameters.low_freq_factor" => vec![json!(2.0)],
        "rope_parameters.high_freq_factor" => vec![json!(8.0)],
        "rope_parameters.original_max_position_embeddings" => vec![json!(128)],
        "rope_parameters.truncate" => vec![json!(true)],
        "max_position_embeddings" if fixture == "llama_dynamic_rope" => vec![json!(20)],
        // 7B is told from 13B by it.
        "max_position_embeddings" if model_type == "baichuan" => vec![json!(null)],
        "z_loss_weight" => vec![json!(null), json!(0.1)],
        "sliding_window" if !config[field].is_null() => vec![json!(7), json!(null)],
        "layer_types" if !config["sliding_window"].is_null() => {
            let types = config[field].as_array().unwrap();
            vec![json!(vec!["full_attention"; types.len()]), json!(vec!["sliding_attention"; types.len()])]
        }
        "query_pre_attn_scalar" => vec![json!(30)],
        "attn_logit_softcapping" | "final_logit_softcapping" => vec![json!(2.0)],
        "use_bidirectional_attention" | "add_cross_attention" => vec![json!(true)],
        "scale_attn_weights" | "no_bias" => vec![json!(false)],
        "scale_attn_by_inverse_layer_idx" | "apply_residual_connection_post_layernorm" | "use_parallel_residual" => {
            vec![json!(!config[field].as_bool().unwrap())]
        }
        // Beside max_position_embeddings or tables that do the same, or beyond it.
        "max_position_embeddings" | "model_max_length" | "seq_length" | "use_dynamic_ntk" | "use_logn_attn" => vec![],
        // Windows that are not used, and where they would begin.
        "sliding_window" | "layer_types" | "use_sliding_window" | "max_window_layers" | "_sliding_window_pattern" => {
            vec![]
        }
        // What the weights in the file decide.
        "tie_word_embeddings" => vec![],
        // Names and token ids, how weights begin and are stored, generation, other tasks, the order of sums.
        "architectures"
        | "dtype"
        | "transformers_version"
        | "bos_token_id"
        | "eos_token_id"
        | "pad_token_id"
        | "initializer_range"
        | "use_cache"
        | "pretraining_tp"
        | "slow_but_exact"
        | "reorder_and_upcast_attn"
        | "classifier_dropout"
        | "is_decoder"
        | "rope_parameters" => vec![],
        summary if summary.starts_with("summary_") => vec![],
        unknown => panic!("{fixture}: {unknown} is in no list"),
    }
}

/// Fields that a fixture's configuration leaves out, where they matter.
fn absent(fixture: &str) -> Vec<(&'static str, Value)> {
    match fixture {
        "llama" => vec![("partial_rotary_factor", json!(0.5))],
        "llama_yarn_rope" => vec![
            ("rope_parameters.attention_factor", json!(1.0)),
            ("rope_parameters.beta_fast", json!(0.5)),
            ("rope_parameters.beta_slow", json!(0.1)),
            ("rope_parameters.mscale", json!(2.0)),
        ],
        "qwen2" | "qwen3" => vec![("use_sliding_window", json!(true))],
        "qwen" => vec![("attn_dropout_prob", json!(0.1)), ("emb_dropout_prob", json!(0.1))],
        "bloom" => vec![("n_embed", json!(16))],
        _ => vec![],
    }
}

/// Each field that shapes the computation, changed, must change the result beyond the tolerance, or be refused at load: a
/// field that is ignored shows.
#[test]
fn every_configuration_field_that_shapes_the_computation_is_read() {
    for name in FIXTURES {
        let golden = Golden::open(name);
        let config: Value = serde_json::from_slice(&std::fs::read(golden.dir.join("config.json")).unwrap()).unwrap();
        let mut fields: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        let rope = config["rope_parameters"].as_object().into_iter().flatten();
        fields.extend(rope.map(|(field, _)| format!("rope_parameters.{field}")));
        let mut all: Vec<(&str, Value)> = absent(name);
        for field in &fields {
            let present = match field.split_once('.') {
                Some((outer, inner)) => &config[outer][inner],
                None => &config[field],
            };
            let changes = changes(name, &config, field).into_iter().filter(|change| change != present);
            all.extend(changes.map(|change| (field.as_str(), change)));
        }
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(golden.dir.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
        for (field, value) in all {
            let mut config = config.clone();
            if field == "use_sliding_window" {
                (config["sliding_window"], config["layer_types"]) =
                    (json!(8), json!(["full_attention", "sliding_attention"]));
            }
            if field == "rope_parameters.mscale" {
                config["rope_parameters"]["mscale_all_dim"] = json!(1.0);
            }
            set(&mut config, field, value.clone());
            std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
            let close = Model::load(copy.path()).map(|mut model| golden.distance_of_matching(&mut model));
            assert!(!matches!(close, Ok(Some(true))), "{name}: {field} = {value} changes nothing");
        }
    }
}

impl Golden {
    /// Whether a model of perhaps another shape is close; `None` if it has other parameters.
    fn distance_of_matching(&self, model: &mut Model) -> Option<bool> {
        let same = model.parameters().iter().all(|parameter| self.gradient(&parameter.name).is_some());
        same.then(|| self.distance(model).is_close())
    }
}

fn set(config: &mut Value, field: &str, value: Value) {
    match field.split_once('.') {
        Some((outer, inner)) => config[outer][inner] = value,
        None => config[field] = value,
    }
}

#[test]
fn configurations_of_transformers_4_and_5_mean_the_same() {
    for name in FIXTURES {
        let new: Value = serde_json::from_slice(&std::fs::read(directory(name).join("config.json")).unwrap()).unwrap();
        let mut old = new.clone();
        let fields = old.as_object_mut().unwrap();
        let Some(mut rope) = fields.remove("rope_parameters") else { continue };
        let mut take = |from: &str| rope.as_object_mut().unwrap().remove(from);
        match new["model_type"].as_str().unwrap() {
            "gemma3_text" => {
                let theta = |kind: Option<Value>| kind.unwrap()["rope_theta"].clone();
                old["rope_theta"] = theta(take("full_attention"));
                old["rope_local_base_freq"] = theta(take("sliding_attention"));
                fields_without_layer_types(&mut old, "sliding_window_pattern", 6);
            }
            "gpt_neox" => {
                old["rotary_emb_base"] = take("rope_theta").unwrap();
                old["rotary_pct"] = take("partial_rotary_factor").unwrap();
            }
            family => {
                old["rope_theta"] = take("rope_theta").unwrap();
                if let Some(share) = take("partial_rotary_factor") {
                    old["partial_rotary_factor"] = share;
                }
                if family == "gemma2" {
                    fields_without_layer_types(&mut old, "cache_implementation", 0);
                }
                if rope["rope_type"] != "default" {
                    let kind = rope.as_object_mut().unwrap().remove("rope_type").unwrap();
                    rope["type"] = kind;
                    old["rope_scaling"] = rope;
                }
            }
        }
        let (old, new) = (Config::resolve(old).unwrap(), Config::resolve(new).unwrap());
        assert_eq!((old.positions, old.layers, old.head_dim), (new.positions, new.layers, new.head_dim), "{name}");
    }
}

/// Before 4.5x, which layers are local went by a rule.
fn fields_without_layer_types(config: &mut Value, field: &str, value: u64) {
    let fields = config.as_object_mut().unwrap();
    fields.remove("layer_types");
    fields.remove("_sliding_window_pattern");
    fields.insert(field.to_owned(), json!(value));
}
