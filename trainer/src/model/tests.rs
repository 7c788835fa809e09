use serde_json::json;

use super::*;
use crate::ops::cpu::values;

fn tiny(family: &str) -> Config {
    Config::resolve(json!({
        "model_type": family, "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64,
        "initializer_range": 0.2, "sliding_window": 3, "attention_bias": true, "mlp_bias": true,
    }))
    .unwrap()
}

fn batch() -> Batch {
    let input_ids: Vec<u32> = (0..24).map(|at| at * 7 % 50).collect();
    let labels = input_ids.iter().map(|id| i64::from(*id)).collect();
    Batch { input_ids, labels, batch_size: 2, seq_len: 12 }
}

#[test]
fn a_lost_gradient_is_found_whichever_parameter_it_is_of() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let mut model = Model::init(tiny(family), 1).unwrap();
        let names: Vec<String> = model.parameters().iter().map(|parameter| parameter.name.clone()).collect();
        for name in names {
            model.clear_gradients();
            dropped_gradient::set(Some(&name));
            model.forward_backward(&batch(), 1.0, false).unwrap();
            dropped_gradient::set(None);
            let error = model.gradients().check_all_written(1).unwrap_err().to_string();
            assert!(error.contains(&name) && error.contains("no gradient"), "{error}");
        }
        model.clear_gradients();
        model.forward_backward(&batch(), 1.0, false).unwrap();
        model.gradients().check_all_written(1).unwrap();
    }
}

#[test]
fn recomputing_and_accumulating_change_no_bit_they_should_not() {
    let mut model = Model::init(tiny("qwen3"), 1).unwrap();
    let mut gradients = |recompute: bool, times: usize| {
        model.clear_gradients();
        for _ in 0..times {
            model.forward_backward(&batch(), 0.5, recompute).unwrap();
        }
        let mut all = Vec::new();
        model
            .gradients()
            .for_each(|_, gradient| {
                all.extend_from_slice(gradient);
                Ok(())
            })
            .unwrap();
        all
    };
    let (kept, recomputed, twice) = (gradients(false, 1), gradients(true, 1), gradients(false, 2));
    assert_eq!(kept, recomputed);
    for (once, twice) in kept.iter().zip(twice) {
        assert!((2.0 * once - twice).abs() <= 1e-5 * once.abs().max(1e-3), "{once} {twice}");
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = Model::init(tiny("llama"), 1).unwrap();
            let loss = model.forward_backward(&batch(), 1.0, false).unwrap();
            let mut bits = vec![loss.nll.to_bits()];
            model
                .gradients()
                .for_each(|_, gradient| {
                    bits.extend(gradient.iter().map(|value| u64::from(value.to_bits())));
                    Ok(())
                })
                .unwrap();
            bits
        })
    };
    let one = run(1);
    for threads in [2, 3, 4] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

fn with_adapters(family: &str, dropout: f64) -> Model {
    let mut model = Model::init(tiny(family), 3).unwrap();
    let settings = LoraSettings {
        rank: 3,
        alpha: 6.0,
        dropout,
        use_rslora: false,
        target_modules: vec!["all".to_owned()],
        modules_to_save: vec!["lm_head".to_owned(), "input_layernorm".to_owned()],
    };
    model.add_adapters(settings, 1).unwrap();
    // B begins as zero, which would hide A.
    for (number, parameter) in model.parameters().iter().enumerate() {
        if parameter.name.contains("lora_B") {
            write(&parameter.tensor, |b| {
                b.iter_mut().enumerate().for_each(|(at, b)| *b = ((at * 7 + number) % 11) as f32 / 40.0 - 0.1);
            })
            .unwrap();
        }
    }
    model
}

#[test]
fn frozen_parameters_get_no_gradient_and_dropout_is_the_same_when_made_again() {
    let mut model = with_adapters("llama", 0.3);
    let mut gradients = |step: u64, recompute: bool| {
        model.clear_gradients();
        model.set_pass(step, 0);
        let loss = model.forward_backward(&batch(), 1.0, recompute).unwrap();
        model.gradients().check_all_written(1).unwrap();
        let all: Vec<_> = (0..model.parameters().len()).map(|index| model.gradients().of(index).unwrap()).collect();
        for (parameter, gradient) in model.parameters().iter().zip(&all) {
            assert_eq!(parameter.trainable, !gradient.is_empty(), "{}", parameter.name);
        }
        (loss.nll.to_bits(), all)
    };
    assert!(gradients(1, false) == gradients(1, true));
    assert!(gradients(1, false) != gradients(2, false));
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let mut full = Model::init(tiny("qwen2"), 3).unwrap();
    assert_gradients_are_slopes(&mut full);
    for family in ["llama", "qwen3"] {
        assert_gradients_are_slopes(&mut with_adapters(family, 0.0));
    }
}

fn assert_gradients_are_slopes(model: &mut Model) {
    model.clear_gradients();
    model.forward_backward(&batch(), 1.0, false).unwrap();
    let trained: Vec<_> = (0..model.parameters().len()).filter(|index| model.parameters()[*index].trainable).collect();
    for index in trained {
        let gradient = model.gradients().of(index).unwrap();
        let at = gradient.len() / 2;
        let tensor = model.parameters()[index].tensor.clone();
        let value = values(&tensor).unwrap()[at];
        let step = 2e-3;
        let mut loss_at = |shift: f32| {
            write(&tensor, |values| values[at] = value + shift).unwrap();
            model.evaluate(&batch()).unwrap().nll
        };
        let slope = (loss_at(step) - loss_at(-step)) / f64::from(2.0 * step);
        loss_at(0.0);
        let name = &model.parameters()[index].name;
        assert!(
            (slope - f64::from(gradient[at])).abs() < 2e-2 * (1.0 + slope.abs()),
            "{name}: {slope} {}",
            gradient[at]
        );
    }
}

#[test]
fn logits_and_evaluation_agree() {
    let mut model = Model::init(tiny("mistral"), 5).unwrap();
    let batch = batch();
    let logits = model.logits(&batch.input_ids, 2, 12).unwrap();
    let nll: f64 = (0..2)
        .flat_map(|row| (0..11).map(move |step| (row, step)))
        .map(|(row, step)| {
            let logits: Vec<f64> = values(&logits).unwrap()[(row * 12 + step) * 50..][..50]
                .iter()
                .map(|value| f64::from(*value))
                .collect();
            let label = batch.input_ids[row * 12 + step + 1] as usize;
            logits.iter().map(|value| value.exp()).sum::<f64>().ln() - logits[label]
        })
        .sum();
    let evaluation = model.evaluate(&batch).unwrap();
    assert!((evaluation.nll - nll).abs() < 1e-4, "{} {nll}", evaluation.nll);
    assert_eq!(evaluation.tokens, 22);
    assert_eq!(model.next_logits(&batch.input_ids[..12]).unwrap().len(), 50);
}

/// Beside a quantised weight an adapter gets the loss and gradients that it gets beside the restored one; nothing else
/// is quantised.
#[test]
fn a_quantised_model_is_the_model_of_its_restored_weights() {
    use super::quantised::Quantisation;
    use crate::ops::quantised::Codebook;
    let kinds = [
        Quantisation::FourBit { codebook: Codebook::Nf4, double: true },
        Quantisation::FourBit { codebook: Codebook::Fp4, double: false },
        Quantisation::Int8 { threshold: None },
    ];
    for kind in kinds {
        let mut plain = with_adapters("llama", 0.0);
        let mut quantised = with_adapters("llama", 0.0);
        quantised.quantise(kind).unwrap();
        let projections = |model: &Model| -> usize {
            let weights = model.parameters().iter().filter(|one| one.name.ends_with("_proj.weight"));
            weights.map(|one| one.tensor.elem_count()).sum()
        };
        assert_eq!(quantised.quantised_size().1, projections(&plain));
        let mut restored = with_adapters("llama", 0.0);
        restored.quantise(kind).unwrap();
        restored.restore().unwrap();
        assert!(!restored.is_quantised());
        let gradients = |model: &mut Model| {
            model.clear_gradients();
            let loss = model.forward_backward(&batch(), 1.0, false).unwrap();
            let all = (0..model.parameters().len()).flat_map(|index| model.gradients().of(index).unwrap());
            (loss.nll, all.collect::<Vec<f32>>())
        };
        let (loss, found) = gradients(&mut quantised);
        let (expected_loss, expected) = gradients(&mut restored);
        assert!((loss / expected_loss - 1.0).abs() < 1e-6, "{kind:?}: {loss} {expected_loss}");
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        assert_eq!(found.len(), expected.len());
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart < 1e-5 * largest, "{kind:?}: {apart} of {largest}");
        let (other, _) = gradients(&mut plain);
        assert!((loss / other - 1.0).abs() > 1e-6, "{kind:?}: quantising changed nothing");
    }
}
