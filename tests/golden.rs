//! Loss, logits and every gradient equal PyTorch's, for every family and rope kind that is built.
//!
//! The fixtures are tiny checkpoints with what `transformers` computes on them in f32 on a CPU
//! (`tests/data/fixtures/gen.py`). `TOKENMILL_FIXTURES` names another directory of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tokenmill_trainer::model::{Batch, Config, Model};

const FIXTURES: [&str; 10] = [
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

    fn values(&self, name: &str) -> Vec<f32> {
        self.tensors[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn distance(&self, model: &mut Model) -> Distance {
        let ids = &self.tensors["input_ids"];
        let (batch_size, seq_len) = ids.dims2().unwrap();
        let labels: Vec<i64> = ids.flatten_all().unwrap().to_vec1().unwrap();
        let input_ids: Vec<u32> = labels.iter().map(|id| *id as u32).collect();
        let logits = model.logits(&input_ids, batch_size, seq_len).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let batch = Batch { input_ids, labels, batch_size, seq_len };
        let scale = 1.0 / batch.label_tokens() as f32;
        model.clear_gradients();
        let loss = model.forward_backward(&batch, scale, false).unwrap();
        let reference = f64::from(self.values("loss")[0]);
        let mut worst = (0.0, String::new());
        for (index, parameter) in model.parameters().iter().enumerate() {
            let expected = self.values(&format!("grad.{}", parameter.name));
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

/// Changes to each configuration field that shapes the computation, where the fixture makes it matter. Each
/// must change the result beyond the tolerance, or be refused at load: a field that is ignored shows.
#[test]
fn every_configuration_field_that_shapes_the_computation_is_read() {
    let general = [
        ("rms_norm_eps", json!(1e-2)),
        ("num_attention_heads", json!(2)),
        ("num_key_value_heads", json!(1)),
        ("head_dim", json!(8)),
        ("hidden_size", json!(32)),
        ("intermediate_size", json!(48)),
        ("num_hidden_layers", json!(1)),
        ("vocab_size", json!(100)),
        ("hidden_act", json!("gelu")),
        ("model_type", json!("gpt_bigcode")),
        ("rope_parameters.rope_theta", json!(500.0)),
        ("rope_parameters.rope_type", json!("su")),
        ("attention_dropout", json!(0.1)),
    ];
    let special: BTreeMap<&str, Vec<(&str, Value)>> = BTreeMap::from([
        (
            "llama",
            vec![("attention_bias", json!(true)), ("mlp_bias", json!(true)), ("partial_rotary_factor", json!(0.5))],
        ),
        ("llama_mha_bias", vec![("attention_bias", json!(false)), ("mlp_bias", json!(false))]),
        ("llama_linear_rope", vec![("rope_parameters.factor", json!(3.0))]),
        ("llama_dynamic_rope", vec![("rope_parameters.factor", json!(3.0)), ("max_position_embeddings", json!(20))]),
        (
            "llama3_rope",
            vec![
                ("rope_parameters.factor", json!(4.0)),
                ("rope_parameters.low_freq_factor", json!(2.0)),
                ("rope_parameters.high_freq_factor", json!(8.0)),
                ("rope_parameters.original_max_position_embeddings", json!(128)),
            ],
        ),
        (
            "llama_yarn_rope",
            vec![
                ("rope_parameters.factor", json!(2.0)),
                ("rope_parameters.original_max_position_embeddings", json!(64)),
                ("rope_parameters.attention_factor", json!(1.0)),
                ("rope_parameters.beta_fast", json!(0.5)),
                ("rope_parameters.beta_slow", json!(0.1)),
                ("rope_parameters.mscale", json!(2.0)),
            ],
        ),
        ("llama_yarn_untruncated", vec![("rope_parameters.truncate", json!(true))]),
        ("mistral", vec![("sliding_window", json!(7)), ("sliding_window", json!(null))]),
        ("qwen2", vec![("use_sliding_window", json!(true))]),
        ("qwen3", vec![("attention_bias", json!(true)), ("use_sliding_window", json!(true))]),
    ]);
    for name in FIXTURES {
        let golden = Golden::open(name);
        let empty = Vec::new();
        for (field, value) in general.iter().chain(special.get(name).unwrap_or(&empty)) {
            let copy = tempfile::tempdir().unwrap();
            for file in std::fs::read_dir(&golden.dir).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
            }
            let mut config: Value =
                serde_json::from_slice(&std::fs::read(golden.dir.join("config.json")).unwrap()).unwrap();
            if *field == "use_sliding_window" {
                (config["sliding_window"], config["layer_types"]) =
                    (json!(8), json!(["full_attention", "sliding_attention"]));
            }
            if *field == "rope_parameters.mscale" {
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
        let same =
            model.parameters().iter().all(|parameter| self.tensors.contains_key(&format!("grad.{}", parameter.name)));
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
        let mut rope = old.as_object_mut().unwrap().remove("rope_parameters").unwrap();
        old["rope_theta"] = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
        if rope["rope_type"] != "default" {
            let kind = rope.as_object_mut().unwrap().remove("rope_type").unwrap();
            rope["type"] = kind;
            old["rope_scaling"] = rope;
        }
        let (old, new) = (Config::resolve(old).unwrap(), Config::resolve(new).unwrap());
        assert_eq!((old.rope(), &old.windows, old.head_dim), (new.rope(), &new.windows, new.head_dim), "{name}");
    }
}
