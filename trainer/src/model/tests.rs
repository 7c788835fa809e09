//! Every family in small: gradients are the slopes of the loss, no bit depends on threads, recomputing or how a step is
//! divided, and what is lost, frozen or masked stays so.

use serde_json::json;

use super::*;
use crate::ops::cpu::values;

/// A small model of a family, by its `model_type`; every field under the name that some family has for it.
fn tiny(family: &str) -> Config {
    Config::resolve(tiny_json(family)).unwrap()
}

fn tiny_json(family: &str) -> serde_json::Value {
    json!({
        "model_type": family, "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64,
        "initializer_range": 0.2, "sliding_window": 3, "attention_bias": true, "mlp_bias": true,
        "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12, "kv_channels": 4, "rotary_pct": 0.5,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "query_pre_attn_scalar": 5, "z_loss_weight": 0,
        "attn_logit_softcapping": if family == "gemma2" { json!(3.0) } else { json!(null) },
        "final_logit_softcapping": if family == "gemma2" { json!(4.0) } else { json!(null) },
        "sliding_window_pattern": 2, "pad_token_id": null,
    })
}

fn families() -> [&'static str; 14] {
    Family::ALL.map(Family::model_type)
}

fn batch() -> Batch {
    Batch::new((0..24).map(|at| at * 7 % 50).collect(), 2)
}

#[test]
fn a_lost_gradient_is_found_whichever_parameter_it_is_of() {
    for family in families() {
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

/// PyTorch's `Embedding` adds nothing to the row of its `padding_idx`; the output projection does, also where it is the same.
#[test]
fn looking_padding_up_trains_nothing() {
    let with = |family: &str, pad_token_id: serde_json::Value| {
        let mut json = tiny_json(family);
        match pad_token_id {
            serde_json::Value::Bool(_) => drop(json.as_object_mut().unwrap().remove("pad_token_id")),
            id => json["pad_token_id"] = id,
        }
        Config::resolve(json).unwrap()
    };
    let row = |family, pad| with(family, pad).padding_row;
    assert_eq!(
        [row("llama", json!(false)), row("gemma", json!(false)), row("gemma", json!(null))],
        [None, Some(0), None]
    );
    assert_eq!([row("glm", json!(false)), row("llama", json!(-1)), row("llama", json!(50))], [None, Some(49), None]);
    assert_eq!([row("gpt2", json!(7)), row("bloom", json!(7)), row("mistral", json!(7))], [None, None, Some(7)]);
    for family in families() {
        let gradients = |pad_token_id| {
            let mut model = Model::init(with(family, pad_token_id), 1).unwrap();
            gradients_of(&mut model, &[batch()], false)
        };
        let ((loss, all), (same_loss, without)) = (gradients(json!(null)), gradients(json!(7)));
        assert_eq!(loss, same_loss);
        let differ: Vec<usize> = (0..all.len()).filter(|at| all[*at] != without[*at]).collect();
        if row(family, json!(7)).is_none() {
            assert!(differ.is_empty(), "{family}");
            continue;
        }
        let tied = with(family, json!(7)).tie_word_embeddings;
        assert_eq!(differ.len(), 16, "{family}: one row of the embedding");
        assert!(differ.windows(2).all(|pair| pair[1] == pair[0] + 1), "{family}: {differ:?}");
        assert!(differ.iter().all(|at| tied || without[*at] == 0.0), "{family}");
    }
}

#[test]
fn recomputing_and_accumulating_change_no_bit_they_should_not() {
    families().into_iter().for_each(|family| assert_recomputes(&mut Model::init(tiny(family), 1).unwrap()));
}

fn assert_recomputes(model: &mut Model) {
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
        // Sums of terms of about 1: one rounding of those is 6e-8.
        assert!((2.0 * once - twice).abs() <= 1e-5 * once.abs().max(0.1), "{once} {twice}");
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut bits = Vec::new();
            for family in families() {
                let mut config = tiny(family);
                config.dropout.attention = 0.2;
                config.dropout.feed_forward_output = 0.1;
                let mut model = Model::init(config, 1).unwrap();
                let loss = model.forward_backward(&batch(), 1.0, false).unwrap();
                bits.push(loss.nll.to_bits());
                model
                    .gradients()
                    .for_each(|_, gradient| {
                        bits.extend(gradient.iter().map(|value| u64::from(value.to_bits())));
                        Ok(())
                    })
                    .unwrap();
            }
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
    let first_norm = if matches!(family, "gpt2" | "qwen") { "ln_1" } else { "input_layernorm" };
    let settings = LoraSettings {
        rank: 3,
        alpha: 6.0,
        dropout,
        use_rslora: false,
        target_modules: vec!["all".to_owned()],
        modules_to_save: vec!["lm_head".to_owned(), first_norm.to_owned()],
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
fn dropout_depends_on_seed_and_micro_batch_and_is_the_same_when_made_again() {
    let mut config = tiny("gpt2");
    config.dropout = DropoutRates { embedding: 0.1, attention: 0.2, attention_output: 0.3, feed_forward_output: 0.15 };
    let mut model = Model::init(config, 1).unwrap();
    let mut gradients = |seed: u64, step: u64, number: usize, recompute: bool| {
        model.clear_gradients();
        model.set_seed(seed);
        model.set_pass(step, number);
        let loss = model.forward_backward(&batch(), 1.0, recompute).unwrap();
        let all: Vec<_> = (0..model.parameters().len()).map(|index| model.gradients().of(index).unwrap()).collect();
        (loss.nll.to_bits(), all)
    };
    let first = gradients(7, 1, 0, false);
    assert!(first == gradients(7, 1, 0, true));
    for (seed, step, number) in [(8, 1, 0), (7, 2, 0), (7, 1, 1)] {
        assert!(first != gradients(seed, step, number, false), "{seed} {step} {number}");
    }
    // Nothing is dropped in evaluation.
    assert_eq!(model.evaluate(&batch()).unwrap(), Model::init(tiny("gpt2"), 1).unwrap().evaluate(&batch()).unwrap());
}

/// Two sequences, of three documents and of two.
fn cut() -> [Vec<u32>; 2] {
    [vec![0, 5, 6], vec![4]]
}

fn gradients_of(model: &mut Model, batches: &[Batch], recompute: bool) -> (f64, Vec<f32>) {
    model.clear_gradients();
    let losses: Vec<f64> =
        batches.iter().map(|batch| model.forward_backward(batch, 0.5, recompute).unwrap().nll).collect();
    (
        losses.iter().sum(),
        (0..model.parameters().len()).flat_map(|index| model.gradients().of(index).unwrap()).collect(),
    )
}

#[test]
fn documents_of_a_block_are_trained_as_if_they_were_alone() {
    let documents = Documents::new(12, cut().iter().map(Vec::as_slice));
    let together = Batch { documents: Some(documents.clone()), ..batch() };
    let alone: Vec<Batch> = (0..2)
        .flat_map(|sequence| documents.of(sequence).map(move |document| (sequence, document)))
        .map(|(sequence, document)| Batch::new(together.input_ids[sequence * 12..][document].to_vec(), 1))
        .collect();
    let labels: u64 = alone.iter().map(Batch::label_tokens).sum();
    assert_eq!((alone.len(), labels, together.label_tokens(), batch().label_tokens()), (5, 19, 19, 22));
    assert_eq!((together.given_labels(), batch().given_labels(), together.tokens_without_padding()), (19, 24, 24));
    for family in families() {
        for mut model in [Model::init(tiny(family), 1).unwrap(), with_adapters(family, 0.0)] {
            let (loss, found) = gradients_of(&mut model, std::slice::from_ref(&together), false);
            assert_eq!(
                gradients_of(&mut model, std::slice::from_ref(&together), true).1,
                found,
                "{family}: recomputed"
            );
            let (expected_loss, expected) = gradients_of(&mut model, &alone, false);
            assert!((loss / expected_loss - 1.0).abs() < 1e-6, "{family}: {loss} {expected_loss}");
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart < 5e-6 * largest, "{family}: {apart} of {largest}");
            let evaluated: f64 = alone.iter().map(|batch| model.evaluate(batch).unwrap().nll).sum();
            assert!((model.evaluate(&together).unwrap().nll / evaluated - 1.0).abs() < 1e-6, "{family}");
        }
    }
}

/// What one document says changes no bit of another's logits, nor of the gradients that come from its labels; without the
/// mask it does.
#[test]
fn nothing_leaks_from_one_document_into_another() {
    for family in families() {
        let mut config = tiny(family);
        config.dropout =
            DropoutRates { embedding: 0.1, attention: 0.2, attention_output: 0.1, feed_forward_output: 0.1 };
        let mut model = Model::init(config, 1).unwrap();
        let mut seen = |masked: bool, other: u32| {
            let mut batch = batch();
            batch.documents = masked.then(|| Documents::new(12, cut().iter().map(Vec::as_slice)));
            // Only the last document of either sequence counts; the first of either says something else.
            batch
                .labels
                .iter_mut()
                .enumerate()
                .filter(|(at, _)| ![6..12, 16..24].iter().any(|own| own.contains(at)))
                .for_each(|(_, label)| *label = -100);
            for at in [1, 3, 12, 14, 15] {
                batch.input_ids[at] = (batch.input_ids[at] + other) % 50;
            }
            let logits = model.logits(&batch).unwrap();
            let (first, second) = (logits.narrow(0, 0, 1).unwrap(), logits.narrow(0, 1, 1).unwrap());
            let logits = [first.narrow(1, 6, 6).unwrap(), second.narrow(1, 4, 8).unwrap()]
                .map(|logits| logits.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            (logits, gradients_of(&mut model, &[batch], false))
        };
        assert!(seen(true, 0) == seen(true, 9), "{family}");
        let (before, after) = (seen(false, 0), seen(false, 9));
        assert!(before.0 != after.0 && before.1 != after.1, "{family}");
    }
}

/// Along one direction in which all parameters move at once, with the same masks on both sides.
#[test]
fn gradients_under_dropout_are_the_slopes_of_the_loss() {
    for family in ["gpt2", "bloom", "gpt_neox", "gemma2"] {
        let mut config = tiny(family);
        config.dropout =
            DropoutRates { embedding: 0.1, attention: 0.2, attention_output: 0.3, feed_forward_output: 0.15 };
        let mut model = Model::init(config, 1).unwrap();
        let loss_at = |model: &mut Model, shift: f32| {
            for (number, parameter) in model.parameters().iter().enumerate() {
                write(&parameter.tensor, |values| {
                    values.iter_mut().enumerate().for_each(|(at, value)| *value += shift * direction(number, at));
                })
                .unwrap();
            }
            model.clear_gradients();
            model.forward_backward(&batch(), 1.0, false).unwrap().nll
        };
        loss_at(&mut model, 0.0);
        let mut expected = 0.0;
        model
            .gradients()
            .for_each(|number, gradient| {
                let along = |(at, value): (usize, &f32)| f64::from(*value) * f64::from(direction(number, at));
                expected += gradient.iter().enumerate().map(along).sum::<f64>();
                Ok(())
            })
            .unwrap();
        let step = 1e-3;
        let (above, below) = (loss_at(&mut model, step), loss_at(&mut model, -2.0 * step));
        let slope = (above - below) / f64::from(2.0 * step);
        assert!((slope / expected - 1.0).abs() < 5e-3, "{family}: {slope} {expected}");
    }
}

fn direction(number: usize, at: usize) -> f32 {
    ((at * 7 + number * 3) % 11) as f32 / 10.0 - 0.5
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for family in families() {
        assert_gradients_are_slopes(&mut Model::init(tiny(family), 3).unwrap());
        assert_gradients_are_slopes(&mut with_adapters(family, 0.0));
    }
    // The ways of a family that its released models do not all go.
    for (family, field, value) in [
        ("bloom", "apply_residual_connection_post_layernorm", json!(true)),
        ("gpt_neox", "use_parallel_residual", json!(false)),
        ("baichuan", "max_position_embeddings", json!(null)),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("gpt2", "tie_word_embeddings", json!(false)),
    ] {
        let mut json = tiny_json(family);
        json[field] = value;
        assert_gradients_are_slopes(&mut Model::init(Config::resolve(json).unwrap(), 3).unwrap());
    }
}

/// Merging folds B A, or its transpose, into the weight: the same logits as beside it.
#[test]
fn merged_adapters_compute_what_they_computed_beside_the_model() {
    for family in families() {
        let mut model = with_adapters(family, 0.0);
        let beside = model.logits(&batch()).unwrap();
        let adapted = model.parameters().iter().filter(|parameter| parameter.name.contains("lora_A")).count();
        let layers = if matches!(family, "llama" | "mistral" | "qwen2" | "qwen3" | "gemma") { 7 } else { adapted / 2 };
        assert_eq!(adapted, 2 * layers, "{family}");
        let turned = model.adapter_config("base")["fan_in_fan_out"].as_bool().unwrap();
        assert_eq!(turned, family == "gpt2");
        model.merge_adapters().unwrap();
        let merged = model.logits(&batch()).unwrap();
        let (beside, merged) = (values(&beside).unwrap(), values(&merged).unwrap());
        let apart = beside.iter().zip(&*merged).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart < 2e-5, "{family}: {apart}");
    }
}

/// Baichuan2's own code normalises the head in place when it evaluates; here what is saved is what was learned.
#[test]
fn evaluation_changes_no_weight_of_a_normalised_head() {
    let mut model = Model::init(tiny("baichuan"), 1).unwrap();
    assert!(model.config().normalized_head);
    let head = model.parameters().last().unwrap().clone();
    assert_eq!(head.name, "lm_head.weight");
    let before = values(&head.tensor).unwrap().to_vec();
    let loss = model.evaluate(&batch()).unwrap();
    assert_eq!(*values(&model.parameters().last().unwrap().tensor).unwrap(), *before);
    // Its length makes no difference.
    write(&head.tensor, |values| values.iter_mut().for_each(|value| *value *= 3.0)).unwrap();
    assert!((model.evaluate(&batch()).unwrap().nll - loss.nll).abs() < 1e-3);
}

/// Biases and norms are not decayed, embeddings and positions are; each family begins by its own rule.
#[test]
fn decay_and_initial_weights_go_by_role() {
    for family in families() {
        let model = Model::init(tiny(family), 1).unwrap();
        for parameter in model.parameters() {
            let (name, found) = (&parameter.name, values(&parameter.tensor).unwrap());
            assert_eq!(parameter.decay, parameter.tensor.rank() == 2, "{family} {name}");
            let spread = (found.iter().map(|value| value * value).sum::<f32>() / found.len() as f32).sqrt();
            let expected = match name {
                _ if name.ends_with("bias") => 0.0,
                _ if !parameter.decay => {
                    if family.starts_with("gemma") {
                        0.0
                    } else {
                        1.0
                    }
                }
                _ if family == "baichuan" && name.starts_with("lm_head") => 0.25 / 3f32.sqrt(),
                // Of two layers, each adds to the residual stream twice.
                _ if matches!(family, "gpt2" | "qwen") && name.contains("c_proj") => 0.1,
                _ => 0.2,
            };
            assert!((spread - expected).abs() <= 0.3 * expected, "{family} {name}: {spread}, not {expected}");
        }
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
    let logits = model.logits(&batch).unwrap();
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
