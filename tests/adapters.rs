//! Adapters: only they are trained and saved; resuming changes no bit; merged, they are part of the model.

use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::Value;
use tokenmill_tests::{Place, binaries, digest, lines, run};
use tokenmill_trainer::model::Model;
use tokenmill_trainer::torch::{TorchFile, Value as TorchValue};

const LORA: [&str; 10] = [
    "--use_peft",
    "true",
    "--lora_rank",
    "4",
    "--lora_dropout",
    "0.1",
    "--learning_rate",
    "1e-2",
    "--modules_to_save",
    "embeddings",
];

/// A dataset, and a base model saved in `base`.
fn prepared() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "base", &["--max_steps", "1", "--save_strategy", "no"])).ok();
    place
}

/// A run that continues the base model.
fn continued(place: &Place, output: &str, more: &[&str]) -> Command {
    let mut command = Command::new(&binaries().trainer);
    command.arg("--model_name_or_path").arg(place.path("base")).arg("--dataset_dir").arg(place.path("data"));
    command.arg("--output_dir").arg(place.path(output)).args(["--do_train", "--logging_steps", "1"]);
    command.args(["--per_device_train_batch_size", "2"]).args(LORA).args(more);
    command
}

fn tensors(place: &Place, file: &str) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(place.path(file), &Device::Cpu).unwrap()
}

#[test]
fn adapters_are_all_that_is_trained_and_saved() {
    let place = prepared();
    run(&mut continued(&place, "out", &["--max_steps", "6", "--save_steps", "3"])).ok();
    for dir in ["out", "out/checkpoint-6"] {
        assert!(!place.path(dir).join("model.safetensors").exists() && !place.path(dir).join("config.json").exists());
        let adapter = tensors(&place, &format!("{dir}/adapter_model.safetensors"));
        // Seven projections in two layers, A and B each, and the embedding.
        assert_eq!(adapter.len(), 2 * 2 * 7 + 1);
        let b = &adapter["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"];
        assert_eq!(b.dims(), [32, 4]);
        assert!(b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0);
    }
    let state = TorchFile::open(&place.path("out/checkpoint-6/optimizer.pt")).unwrap();
    let Some(TorchValue::Dict(state)) = state.value().get("state") else { panic!("no state") };
    assert_eq!(state.len(), 2 * 2 * 7 + 1);
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("out/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["peft_type"]), (&Value::from(4), &Value::from("LORA")));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
}

#[test]
fn resuming_adapters_changes_no_bit_with_dropout_and_recomputing() {
    let place = prepared();
    let flags = ["--max_steps", "8", "--save_steps", "2", "--gradient_accumulation_steps", "2"];
    run(&mut continued(&place, "whole", &flags)).ok();
    let files = ["adapter_model.safetensors", "optimizer.pt"];
    let last = |output: &str| {
        let found = digest(&place.path(&format!("{output}/checkpoint-8")));
        files.map(|file| found[Path::new(file)].clone())
    };
    for (step, recompute) in [(2, "true"), (4, "false"), (6, "true")] {
        let output = format!("resumed-{step}");
        let from = place.path(&format!("whole/checkpoint-{step}"));
        let more = ["--gradient_checkpointing", recompute, "--resume_from_checkpoint", from.to_str().unwrap()];
        run(continued(&place, &output, &flags).args(more)).ok();
        assert_eq!(last(&output), last("whole"), "resumed at {step}");
    }
}

#[test]
fn a_merged_adapter_is_the_model_it_was_beside() {
    let place = prepared();
    run(&mut continued(&place, "out", &["--max_steps", "6", "--save_strategy", "no"])).ok();
    let merge = |output: &str| {
        let mut command = Command::new(&binaries().trainer);
        command.arg("merge").arg("--base_model").arg(place.path("base")).arg("--lora_model").arg(place.path("out"));
        run(command.arg("--output_dir").arg(place.path(output)))
    };
    merge("merged").ok();
    merge("merged").fails(2, &["--output_dir", "exists"]);
    assert!(place.path("merged/tokenizer.json").exists());
    let ids: Vec<u32> = (0..24).map(|at| at * 37 % 600).collect();
    let logits = |model: &mut Model| -> Vec<f32> {
        model.logits(&ids, 1, 24).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let mut beside = Model::load(&place.path("base")).unwrap();
    let base = logits(&mut beside);
    beside.load_adapters(&place.path("out"), 0).unwrap();
    let (beside, merged) = (logits(&mut beside), logits(&mut Model::load(&place.path("merged")).unwrap()));
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(apart(&beside, &merged) < 2e-5, "{}", apart(&beside, &merged));
    assert!(apart(&base, &merged) > 1e-2, "training changed nothing: {}", apart(&base, &merged));
    // The run goes on from the adapter where it was, under the adapter's own settings.
    let out = place.path("out");
    let more = ["--peft_path", out.to_str().unwrap(), "--max_steps", "1", "--learning_rate", "0", "--lora_rank", "2"];
    let ended = run(&mut continued(&place, "on", &more)).ok();
    assert!(ended.stderr.contains("--lora_rank has no effect here"), "{}", ended.stderr);
    let weights = |dir: &str| digest(&place.path(dir))[Path::new("adapter_model.safetensors")].clone();
    assert_eq!(weights("on"), weights("out"));
}

#[test]
fn targets_are_named_listed_or_matched_and_strangers_are_refused() {
    let place = prepared();
    let adapted = |output: &str, targets: &[&str]| {
        let more = ["--max_steps", "1", "--save_strategy", "no", "--target_modules"];
        run(continued(&place, output, &more).args(targets)).ok();
        let names = tensors(&place, &format!("{output}/adapter_model.safetensors")).into_keys();
        names.filter(|name| name.contains("lora_A")).count()
    };
    assert_eq!(adapted("two", &["q_proj,v_proj"]), 4);
    assert_eq!(adapted("words", &["q_proj", "o_proj", "mlp.up_proj"]), 6);
    assert_eq!(adapted("pattern", &[r"model\.layers\.1\..*(q|k)_proj"]), 2);
    run(&mut continued(&place, "no", &["--target_modules", "query"]))
        .fails(2, &["query", "q_proj", "--target_modules"]);
    run(&mut continued(&place, "no", &["--modules_to_save", "head"])).fails(2, &["head", "lm_head"]);
    run(&mut continued(&place, "no", &["--lora_rank", "0"])).fails(2, &["--lora_rank", "--use_peft false"]);
    let text = place.path("text");
    run(&mut continued(&place, "no", &["--peft_path", text.to_str().unwrap()])).fails(2, &["adapter_config.json"]);
    let ended = run(&mut place.train("data", "full", &["--max_steps", "1", "--lora_alpha", "16"])).ok();
    assert!(ended.stderr.contains("--lora_alpha has no effect here"), "{}", ended.stderr);
}
