//! Losses are means over tokens, however the tokens are divided into batches; and evaluation reports what a model
//! does on the validation text, computed here once more from logits.

use serde_json::Value;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Place, lines, run};
use tokenmill_trainer::model::{Batch, Model};

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(name)).unwrap()).unwrap()
}

/// The last block is mostly padding: were the means of micro-batches averaged, its few labels would weigh as much as
/// those of a full one.
#[test]
fn accumulated_losses_weigh_every_token_the_same() {
    let place = Place::new();
    place.write("text/a.txt", lines(12, 5));
    let made = run(&mut place.prepare("data", &["--remainder", "pad"])).ok().json();
    let split = &made["manifest"]["splits"]["train"];
    let blocks = split["blocks"].as_u64().unwrap();
    assert!(split["last_block_valid_tokens"].as_u64().unwrap() < 10, "{split}");
    let losses = |output: &str, batch_size: &str, accumulation: &str| -> Vec<f64> {
        let flags = ["--num_train_epochs", "3", "--save_strategy", "no", "--train_sampling_strategy", "sequential"];
        let mut command = place.train("data", output, &flags);
        command.args(["--per_device_train_batch_size", batch_size, "--gradient_accumulation_steps", accumulation]);
        run(command.args(["--learning_rate", "1e-2"])).ok();
        let state = json(&place, &format!("{output}/trainer_state.json"));
        state["log_history"].as_array().unwrap().iter().filter_map(|entry| entry["loss"].as_f64()).collect()
    };
    let (whole, pieces) = (losses("whole", "4", "1"), losses("pieces", "1", "4"));
    assert_eq!(whole.len() as u64, 3 * blocks.div_ceil(4));
    for (whole, pieces) in whole.iter().zip(&pieces) {
        assert!((whole / pieces - 1.0).abs() < 2e-6, "{whole} {pieces}");
    }
}

#[test]
fn evaluation_reports_what_the_model_does_on_the_text() {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    let text = lines(20, 8);
    place.write("validation/b.txt", &text);
    let validation = place.path("validation");
    run(&mut place.prepare("data", &["--validation_file_dir", validation.to_str().unwrap()])).ok();
    let flags = ["--max_steps", "6", "--learning_rate", "1e-2", "--do_eval", "--per_device_eval_batch_size", "3"];
    run(&mut place.train("data", "out", &flags)).ok();

    let mut model = Model::load(&place.path("out")).unwrap();
    let dataset = Dataset::open(&place.path("data")).unwrap();
    let reader = dataset.split(Split::Validation).unwrap().unwrap();
    let (mut nll, mut correct, mut labels) = (0.0, 0, 0);
    for block in 0..reader.len() {
        let mut ids = Vec::new();
        reader.read_block(block, &mut ids).unwrap();
        let logits = model.logits(&Batch::new(ids.clone(), 1)).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        for (logits, label) in logits.iter().zip(&ids[1..]) {
            let logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let label = logits[*label as usize];
            nll += logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln() + largest - label;
            correct += usize::from(label == largest);
            labels += 1;
        }
    }
    let (labels, read) = (f64::from(labels), dataset.manifest().splits[&Split::Validation].ledger.read as f64);
    let loss = nll / labels;
    let bits_per_byte = nll / std::f64::consts::LN_2 / (text.len() as f64 * labels / read);
    let results = json(&place, "out/eval_results.json");
    for (name, expected) in [
        ("eval_loss", loss),
        ("perplexity", loss.exp()),
        ("eval_accuracy", correct as f64 / labels),
        ("eval_bits_per_byte", bits_per_byte),
    ] {
        let found = results[name].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-5, "{name}: {found}, recomputed {expected}");
    }
    assert!(correct > 0 && results["eval_samples"] == reader.len());
}
