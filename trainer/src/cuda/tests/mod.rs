//! The decoder on a GPU beside the one on the CPU. These tests are built with `--features cuda` and need a GPU;
//! `tests/gpu.sh` runs them.

mod ops;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use candle_core::Device as CpuDevice;
use serde_json::{Value, json};

use super::*;
use crate::model::{Batch, Documents, DropoutRates, EmbeddingNoise, LoraSettings, Model};
use crate::ops::cpu::values;
use crate::ops::precision::Precision;
use crate::ops::quantised::Codebook;
use crate::optimizer::Optimizer;

static GPU: LazyLock<Arc<Device>> =
    LazyLock::new(|| Device::open().unwrap_or_else(|reason| panic!("these tests need a GPU: {reason}")));

/// Families that are built for the GPU.
const FAMILIES: [&str; 12] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "bloom",
];

/// A model of two layers; `head_dim` times 4 is its width.
fn config(family: &str, head_dim: usize, vocab_size: usize, window: Option<usize>) -> Config {
    let hidden = 4 * head_dim;
    // Caps that scores and logits of so small a model reach.
    let caps = if family == "gemma2" { (json!(0.5), json!(1.5)) } else { (Value::Null, Value::Null) };
    let json = json!({
        "model_type": family, "attn_logit_softcapping": caps.0, "final_logit_softcapping": caps.1,
        "query_pre_attn_scalar": head_dim, "rotary_pct": 0.5, "layer_types": ["sliding_attention", "full_attention"], "vocab_size": vocab_size, "hidden_size": hidden, "intermediate_size": hidden + 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim,
        "max_position_embeddings": 256, "initializer_range": 0.7 / (hidden as f64).sqrt(), "sliding_window": window,
        "attention_bias": true, "mlp_bias": true, "n_embd": hidden, "n_layer": 2, "n_head": 4, "n_positions": 256,
        "kv_channels": head_dim, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "multi_query_group_num": 2, "ffn_hidden_size": hidden + 8, "padded_vocab_size": vocab_size,
    });
    Config::resolve(json).unwrap()
}

/// Ids of which some come often and the last positions of one sequence have no label.
fn batch(vocab_size: usize, batch_size: usize, seq_len: usize) -> Batch {
    let count = batch_size * seq_len;
    let input_ids: Vec<u32> =
        (0..count).map(|at| if at % 4 == 1 { 3 } else { (at * 7919 % vocab_size) as u32 }).collect();
    let label = |(at, id): (usize, &u32)| if at + 3 < seq_len || at >= seq_len { i64::from(*id) } else { -100 };
    let labels = input_ids.iter().enumerate().map(label).collect();
    Batch { labels, ..Batch::new(input_ids, batch_size) }
}

/// Loss and gradients of one micro-batch.
fn gradients(model: &mut Model, batch: &Batch, recompute: bool) -> (f64, Vec<Vec<f32>>) {
    model.clear_gradients();
    let loss = model.forward_backward(batch, 0.25, recompute).unwrap();
    model.fetch_gradients().unwrap();
    model.gradients().check_all_written(1).unwrap();
    let all = (0..model.parameters().len()).map(|index| model.gradients().of(index).unwrap()).collect();
    (loss.smoothed(model.label_smoothing.into()), all)
}

fn on_gpu(config: &Config, precision: Precision) -> Model {
    let mut model = Model::init(config.clone(), 1).unwrap();
    shake(&model);
    model.precision = precision;
    model.label_smoothing = 0.1;
    model.move_to(GPU.clone()).unwrap();
    model
}

fn on_cpu(config: &Config) -> Model {
    let mut model = Model::init(config.clone(), 1).unwrap();
    shake(&model);
    model.label_smoothing = 0.1;
    model
}

/// Norms and biases begin as ones and zeros, which would hide that they are not used.
fn shake(model: &Model) {
    for (number, parameter) in model.parameters().iter().enumerate().filter(|(_, parameter)| !parameter.decay) {
        crate::ops::cpu::write(&parameter.tensor, |values| {
            values.iter_mut().enumerate().for_each(|(at, x)| *x += ((at * 7 + number) % 11) as f32 / 50.0 - 0.1);
        })
        .unwrap();
    }
}

/// max|Δ| / max|reference| of the worst parameter.
fn worst(model: &Model, found: &[Vec<f32>], expected: &[Vec<f32>]) -> (f64, String) {
    let mut worst = (0.0, String::new());
    for ((found, expected), parameter) in found.iter().zip(expected).zip(model.parameters()) {
        assert_eq!(found.len(), expected.len());
        // Of a frozen parameter.
        if expected.is_empty() {
            continue;
        }
        let apart = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        let apart = apart / expected.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
        if apart > worst.0 || apart.is_nan() {
            worst = (apart, parameter.name.clone());
        }
    }
    worst
}

/// ‖Δ‖ / ‖reference‖ over all gradients.
fn relative_norm(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let apart = norm(&mut found.iter().flatten().zip(expected.iter().flatten()).map(|(a, b)| a - b));
    apart / norm(&mut expected.iter().flatten().copied())
}

#[test]
fn float32_is_within_rounding_of_the_cpu_in_every_family() {
    for family in FAMILIES {
        for (head_dim, vocab, window, batch_size, seq_len) in
            [(4, 50, None, 2, 12), (16, 133, None, 3, 70), (32, 300, Some(9), 1, 150)]
        {
            let config = config(family, head_dim, vocab, window);
            assert_eq!(unsupported_model(&config), None, "{family}");
            let batch = batch(vocab, batch_size, seq_len);
            let (mut cpu, mut gpu) = (on_cpu(&config), on_gpu(&config, Precision::F32));
            let (expected, found) = (gradients(&mut cpu, &batch, false), gradients(&mut gpu, &batch, false));
            let (apart, name) = worst(&cpu, &found.1, &expected.1);
            println!("{family} {head_dim}: loss {:.1e}, {name} {apart:.1e}", found.0 / expected.0 - 1.0);
            assert!((found.0 / expected.0 - 1.0).abs() < 1e-6, "{family} {head_dim}: {} {}", found.0, expected.0);
            assert!(apart <= 1e-5, "{family} {head_dim}: {name} {apart}");
            let (expected, found) = (cpu.evaluate(&batch).unwrap(), gpu.evaluate(&batch).unwrap());
            assert!(
                (found.nll / expected.nll - 1.0).abs() < 1e-6 && (found.smooth / expected.smooth - 1.0).abs() < 1e-6
            );
            assert_eq!((found.tokens, found.correct), (expected.tokens, expected.correct), "{family}");
            let (expected, found) =
                (cpu.next_logits(&batch.input_ids[..9]).unwrap(), gpu.next_logits(&batch.input_ids[..9]).unwrap());
            let apart = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 2e-5, "{family}: {apart}");
        }
    }
}

/// bf16 has 8 bits: 2⁻⁹ ≈ 2e-3 for each rounding. The bound is what autocast is from float32 as well.
#[test]
fn bf16_is_within_its_rounding_of_the_cpu_in_float32() {
    for family in FAMILIES {
        for (head_dim, vocab, window, batch_size, seq_len) in [
            (16, 133, None, 2, 70),
            (64, 300, None, 2, 200),
            (64, 300, Some(50), 1, 130),
            (128, 300, None, 2, 100),
            (128, 300, Some(33), 1, 64),
        ] {
            let config = config(family, head_dim, vocab, window);
            let batch = batch(vocab, batch_size, seq_len);
            let (mut cpu, mut gpu) = (on_cpu(&config), on_gpu(&config, Precision::Bf16));
            let (expected, found) = (gradients(&mut cpu, &batch, false), gradients(&mut gpu, &batch, false));
            let apart = relative_norm(&found.1, &expected.1);
            println!("{family} {head_dim}: loss {:.1e}, gradients {apart:.1e}", found.0 / expected.0 - 1.0);
            assert!((found.0 / expected.0 - 1.0).abs() < 2e-3, "{family} {head_dim}: {} {}", found.0, expected.0);
            assert!(apart < 2e-2, "{family} {head_dim}: {apart}");
        }
    }
}

#[test]
fn every_run_has_the_same_bits_recomputed_or_not_and_micro_batches_add_up() {
    for (family, precision) in [("qwen3", Precision::F32), ("llama", Precision::Bf16), ("bloom", Precision::Bf16)] {
        let config = config(family, 64, 300, None);
        let batch = batch(300, 2, 100);
        let mut gpu = on_gpu(&config, precision);
        let first = gradients(&mut gpu, &batch, false);
        assert!(first == gradients(&mut gpu, &batch, false), "{family}");
        assert!(first == gradients(&mut gpu, &batch, true), "{family}, recomputed");
        assert!(first == gradients(&mut on_gpu(&config, precision), &batch, true), "{family}, anew");
        gpu.clear_gradients();
        gpu.forward_backward(&batch, 0.25, false).unwrap();
        gpu.forward_backward(&batch, 0.25, false).unwrap();
        gpu.fetch_gradients().unwrap();
        let twice: Vec<_> = (0..gpu.parameters().len()).map(|index| gpu.gradients().of(index).unwrap()).collect();
        let doubled: Vec<Vec<f32>> = first.1.iter().map(|all| all.iter().map(|x| 2.0 * x).collect()).collect();
        let (apart, name) = worst(&gpu, &twice, &doubled);
        assert!(apart < 1e-5, "{family}: {name} {apart}");
    }
}

/// Two sequences of documents that begin where tiles do, and where they do not.
fn documents(seq_len: usize) -> Documents {
    Documents::new(seq_len, [&[3, 64, 65][..], &[20]].into_iter())
}

#[test]
fn documents_are_masked_as_on_the_cpu_in_every_family() {
    for family in FAMILIES {
        for (head_dim, window, precision) in
            [(16, None, Precision::F32), (16, Some(9), Precision::F32), (64, None, Precision::Bf16)]
        {
            let config = config(family, head_dim, 133, window);
            let batch = Batch { documents: Some(documents(70)), ..batch(133, 2, 70) };
            let (mut cpu, mut gpu) = (on_cpu(&config), on_gpu(&config, precision));
            let (expected, found) = (gradients(&mut cpu, &batch, false), gradients(&mut gpu, &batch, false));
            assert!(found == gradients(&mut gpu, &batch, true), "{family}, recomputed");
            let (of_loss, largest) = ((found.0 / expected.0 - 1.0).abs(), worst(&cpu, &found.1, &expected.1).0);
            let apart = relative_norm(&found.1, &expected.1);
            println!("{family} {precision:?}: loss {of_loss:.1e}, worst {largest:.1e}, all {apart:.1e}");
            match precision {
                Precision::F32 => assert!(of_loss < 1e-6 && largest <= 1e-5, "{family}: {of_loss} {largest}"),
                _ => assert!(of_loss < 2e-3 && apart < 2e-2, "{family}: {of_loss} {apart}"),
            }
            let (expected, found) = (cpu.evaluate(&batch).unwrap(), gpu.evaluate(&batch).unwrap());
            assert_eq!(found.tokens, expected.tokens, "{family}");
            assert!((found.nll / expected.nll - 1.0).abs() < 2e-3, "{family}, evaluated");
        }
    }
}

/// What one document says changes no bit of another's loss, nor of the gradients that come from its labels; without the
/// mask it does.
#[test]
fn nothing_leaks_from_one_document_into_another() {
    for (family, precision) in [("llama", Precision::F32), ("gpt2", Precision::F32), ("bloom", Precision::Bf16)] {
        for head_dim in [16, 64, 128] {
            let mut gpu = on_gpu(&config(family, head_dim, 133, None), precision);
            let mut seen = |masked: bool, other: u32| {
                // No id comes so often that its gradient is summed in pieces, which others' ids would move.
                let mut batch = Batch::new((0..200).map(|at| at * 31 % 133).collect(), 2);
                batch.documents = masked.then(|| documents(100));
                // Only a document of each sequence counts; the one before it, and the one after, say something else.
                let counts = |at: usize| (3..64).contains(&at) || (120..200).contains(&at);
                for at in 0..200 {
                    if !counts(at) {
                        batch.labels[at] = -100;
                        batch.input_ids[at] = (batch.input_ids[at] + other) % 133;
                    }
                }
                gpu.clear_gradients();
                let loss = gpu.forward_backward(&batch, 0.25, false).unwrap();
                gpu.fetch_gradients().unwrap();
                let all: Vec<_> = (0..gpu.parameters().len()).map(|index| gpu.gradients().of(index).unwrap()).collect();
                (loss.nll, all)
            };
            assert!(seen(true, 0) == seen(true, 9), "{family} {head_dim}");
            let (before, after) = (seen(false, 0), seen(false, 9));
            assert!(before.0 != after.0 && before.1 != after.1, "{family} {head_dim}");
        }
    }
}

#[test]
fn the_norm_and_updates_are_those_of_the_cpu() {
    let config = config("qwen2", 16, 133, None);
    let arguments = TrainerArguments { use_peft: false, weight_decay: 0.1, ..TrainerArguments::default() };
    let run = |mut model: Model| {
        let mut optimizer = Optimizer::new(&model, &arguments).unwrap();
        let mut norms = Vec::new();
        for step in 0..4 {
            model.clear_gradients();
            model.forward_backward(&batch(133, 2, 40 + step), 0.01, false).unwrap();
            norms.push(model.gradient_norm().unwrap());
            optimizer.update(&mut model, 1e-2, norms[step], 1.0).unwrap();
        }
        model.fetch().unwrap();
        optimizer.fetch(&model).unwrap();
        let all = |tensor| values(tensor).unwrap().to_vec();
        let parameters: Vec<Vec<f32>> = model.parameters().iter().map(|parameter| all(&parameter.tensor)).collect();
        let moments: Vec<Vec<f32>> = optimizer.state(&model).map(|(_, tensor)| all(tensor)).collect();
        (norms, parameters, moments)
    };
    let (expected, found) = (run(on_cpu(&config)), run(on_gpu(&config, Precision::F32)));
    assert!(found == run(on_gpu(&config, Precision::F32)));
    for (found, expected) in found.0.iter().zip(&expected.0) {
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
    }
    // An update is about the learning rate whatever the gradient: one of nearly 0 may have the other sign.
    assert!(relative_norm(&found.1, &expected.1) < 1e-4, "{}", relative_norm(&found.1, &expected.1));
    assert!(relative_norm(&found.2, &expected.2) < 1e-4, "{}", relative_norm(&found.2, &expected.2));
}

/// Adapters beside every projection, B not zero any more, and an output projection that is trained whole.
fn add_adapters(model: &mut Model, dropout: f64) {
    let settings = LoraSettings {
        rank: 5,
        alpha: 8.0,
        dropout,
        use_rslora: false,
        target_modules: vec!["all".to_owned()],
        modules_to_save: vec!["lm_head".to_owned()],
    };
    model.add_adapters(settings, 3).unwrap();
    for (number, parameter) in model.parameters().iter().enumerate().filter(|(_, one)| one.name.contains("lora_B")) {
        crate::ops::cpu::write(&parameter.tensor, |values| {
            values.iter_mut().enumerate().for_each(|(at, x)| *x = ((at * 7 + number) % 11) as f32 / 50.0 - 0.1);
        })
        .unwrap();
    }
}

const INT8: Option<Quantisation> = Some(Quantisation::Int8 { threshold: None });

fn nf4(double: bool) -> Option<Quantisation> {
    Some(Quantisation::FourBit { codebook: Codebook::Nf4, double })
}

/// A model with adapters on the GPU beside the same on the CPU, perhaps over weights in fewer bits.
fn with_adapters(
    config: &Config,
    precision: Precision,
    dropout: f64,
    quantisation: Option<Quantisation>,
) -> [Model; 2] {
    [false, true].map(|on_gpu| {
        let mut model = on_cpu(config);
        if let Some(quantisation) = quantisation {
            model.quantise(quantisation).unwrap();
        }
        add_adapters(&mut model, dropout);
        model.set_seed(5);
        model.set_pass(7, 1);
        if on_gpu {
            model.precision = precision;
            model.move_to(GPU.clone()).unwrap();
        }
        model
    })
}

#[test]
fn adapters_and_weights_in_fewer_bits_are_those_of_the_cpu_in_every_family() {
    for family in FAMILIES {
        for (dropout, quantisation) in [(0.0, None), (0.3, None), (0.1, nf4(true)), (0.0, nf4(false)), (0.1, INT8)] {
            let config = config(family, 16, 133, None);
            let batch = batch(133, 2, 70);
            let [mut cpu, mut gpu] = with_adapters(&config, Precision::F32, dropout, quantisation);
            let (expected, found) = (gradients(&mut cpu, &batch, false), gradients(&mut gpu, &batch, false));
            let (apart, name) = worst(&cpu, &found.1, &expected.1);
            println!(
                "{family} {dropout} {quantisation:?}: loss {:.1e}, {name} {apart:.1e}",
                found.0 / expected.0 - 1.0
            );
            assert!((found.0 / expected.0 - 1.0).abs() < 1e-6, "{family}: {} {}", found.0, expected.0);
            assert!(apart <= 1e-5, "{family} {dropout} {quantisation:?}: {name} {apart}");
            assert!(found == gradients(&mut gpu, &batch, true), "{family}, recomputed");
            let (expected, found) = (cpu.evaluate(&batch).unwrap(), gpu.evaluate(&batch).unwrap());
            assert!((found.nll / expected.nll - 1.0).abs() < 1e-6, "{family}, evaluated");
        }
        let config = config(family, 64, 300, None);
        let batch = batch(300, 2, 100);
        for quantisation in [nf4(true), INT8] {
            let [mut cpu, mut gpu] = with_adapters(&config, Precision::Bf16, 0.1, quantisation);
            let (expected, found) = (gradients(&mut cpu, &batch, false), gradients(&mut gpu, &batch, false));
            let apart = relative_norm(&found.1, &expected.1);
            println!("{family} {quantisation:?}, bf16: loss {:.1e}, gradients {apart:.1e}", found.0 / expected.0 - 1.0);
            assert!((found.0 / expected.0 - 1.0).abs() < 2e-3 && apart < 2e-2, "{family}: {apart}");
        }
    }
}

/// Dropout wherever a model has it, and noise on its embeddings: the masks of the CPU, made again in the backward, and none
/// of either in an evaluation.
#[test]
fn what_is_dropped_is_that_of_the_cpu_in_every_family() {
    for family in FAMILIES {
        for (head_dim, precision) in [(16, Precision::F32), (64, Precision::Bf16)] {
            let mut config = config(family, head_dim, 133, None);
            config.dropout =
                DropoutRates { embedding: 0.1, attention: 0.2, attention_output: 0.15, feed_forward_output: 0.3 };
            assert_eq!(unsupported_model(&config), None, "{family}");
            let batch = batch(133, 2, 70);
            let (mut cpu, mut gpu) = (on_cpu(&config), on_gpu(&config, precision));
            for model in [&mut cpu, &mut gpu] {
                model.set_seed(5);
                model.embedding_noise = Some(EmbeddingNoise { alpha: 5.0, seed: 5, pass: 0 });
                model.set_pass(7, 1);
            }
            let (expected, found) = (gradients(&mut cpu, &batch, false), gradients(&mut gpu, &batch, false));
            assert!(found == gradients(&mut gpu, &batch, true), "{family}, recomputed");
            let (of_loss, (largest, name)) = ((found.0 / expected.0 - 1.0).abs(), worst(&cpu, &found.1, &expected.1));
            let apart = relative_norm(&found.1, &expected.1);
            println!("{family} {precision:?}: loss {of_loss:.1e}, {name} {largest:.1e}, all {apart:.1e}");
            match precision {
                Precision::F32 => assert!(of_loss < 1e-6 && largest <= 1e-5, "{family}: {of_loss} {name} {largest}"),
                _ => assert!(of_loss < 2e-3 && apart < 2e-2, "{family}: {of_loss} {apart}"),
            }
            let (expected, evaluated) = (cpu.evaluate(&batch).unwrap(), gpu.evaluate(&batch).unwrap());
            assert!((evaluated.nll / expected.nll - 1.0).abs() < 2e-3, "{family}, evaluated");
            gpu.set_pass(8, 0);
            assert!(found != gradients(&mut gpu, &batch, false), "{family}: another pass, other masks");
        }
    }
}

#[test]
fn updates_of_adapters_leave_the_rest_as_it_is() {
    let config = config("llama", 16, 133, None);
    let arguments = TrainerArguments { weight_decay: 0.1, ..TrainerArguments::default() };
    let before = on_cpu(&config);
    let [cpu, gpu] = with_adapters(&config, Precision::F32, 0.1, None).map(|mut model| {
        let mut optimizer = Optimizer::new(&model, &arguments).unwrap();
        for step in 0..4 {
            model.clear_gradients();
            model.set_pass(step, 0);
            model.forward_backward(&batch(133, 2, 40), 0.01, false).unwrap();
            let norm = model.gradient_norm().unwrap();
            optimizer.update(&mut model, 1e-2, norm, 1.0).unwrap();
        }
        model.fetch().unwrap();
        optimizer.fetch(&model).unwrap();
        let all = |tensor| values(tensor).unwrap().to_vec();
        let parameters: Vec<Vec<f32>> = model.parameters().iter().map(|parameter| all(&parameter.tensor)).collect();
        let moments: Vec<Vec<f32>> = optimizer.state(&model).map(|(_, tensor)| all(tensor)).collect();
        let trained: Vec<bool> = model.parameters().iter().map(|parameter| parameter.trainable).collect();
        (parameters, moments, trained)
    });
    assert!(relative_norm(&gpu.0, &cpu.0) < 1e-4 && relative_norm(&gpu.1, &cpu.1) < 1e-4);
    for (index, parameter) in before.parameters().iter().enumerate() {
        let same = values(&parameter.tensor).unwrap().to_vec() == gpu.0[index];
        assert_eq!(same, !gpu.2[index], "{}", parameter.name);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fixtures").join(name)
}

/// What `transformers` computes on tiny checkpoints: `tests/data/fixtures/gen.py`.
#[test]
fn losses_and_gradients_are_those_of_transformers() {
    for name in [
        "llama",
        "llama_mha_bias",
        "llama3_rope",
        "llama_linear_rope",
        "llama_dynamic_rope",
        "llama_yarn_rope",
        "mistral",
        "qwen",
        "qwen2",
        "qwen3",
        "gemma",
        "glm",
        "gpt2",
        "gpt2_by_layer",
        "bloom",
        "bloom_heads6",
        "baichuan_7b",
        "baichuan_13b",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt_neox",
        "gpt_neox_serial",
    ] {
        let dir = fixture(name);
        let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &CpuDevice::Cpu).unwrap();
        let (batch_size, _) = golden["input_ids"].dims2().unwrap();
        let ids: Vec<i64> = golden["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
        let batch = Batch::new(ids.iter().map(|id| *id as u32).collect(), batch_size);
        let mut model = Model::load(&dir).unwrap();
        if let Some(reason) = unsupported_model(model.config()) {
            panic!("{name}: {reason}");
        }
        model.move_to(GPU.clone()).unwrap();
        let loss = model.forward_backward(&batch, 1.0 / batch.label_tokens() as f32, false).unwrap();
        model.fetch_gradients().unwrap();
        let of = |name: &str| -> Vec<f32> { golden[name].flatten_all().unwrap().to_vec1().unwrap() };
        // transformers 5 calls gpt_neox's head `lm_head`, in its files `embed_out`.
        let gradient = |name: &str| of(&format!("grad.{}", name.replace("embed_out.", "lm_head.")));
        let expected: Vec<_> = model.parameters().iter().map(|parameter| gradient(&parameter.name)).collect();
        let found: Vec<_> = (0..expected.len()).map(|index| model.gradients().of(index).unwrap()).collect();
        let (apart, parameter) = worst(&model, &found, &expected);
        let of_loss = loss.nll / loss.tokens as f64 / f64::from(of("loss")[0]) - 1.0;
        println!("{name}: loss {of_loss:.1e}, {parameter} {apart:.1e}");
        assert!(of_loss.abs() < 1e-6 && apart <= 1e-5, "{name}: {of_loss} {parameter} {apart}");
    }
}

#[test]
fn what_is_not_built_is_named() {
    let asked = |change: fn(&mut TrainerArguments)| {
        let mut arguments = TrainerArguments { use_peft: false, ..TrainerArguments::default() };
        change(&mut arguments);
        unsupported(&arguments, None).map(|(flag, _)| flag)
    };
    assert_eq!(asked(|_| ()), None);
    assert_eq!(asked(|arguments| arguments.use_peft = true), None);
    let int8 = |threshold| unsupported(&TrainerArguments::default(), Some(Quantisation::Int8 { threshold }));
    assert_eq!(int8(None), None);
    assert_eq!(int8(Some(6.0)).map(|(flag, _)| flag), Some("--int8_threshold"));
    assert_eq!(asked(|arguments| arguments.optim = Rule::Sgd), Some("--optim"));
    let normed = Config::load(&fixture("bloom_normed")).unwrap();
    assert!(unsupported_model(&normed).unwrap().contains("bloom with branches that are added to normed values"));
    let baichuan2 = Config::load(&fixture("baichuan2_7b")).unwrap();
    assert!(unsupported_model(&baichuan2).unwrap().contains("a normalised output projection"));
}
