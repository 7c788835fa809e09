//! Adapters: only they are trained and saved; resuming changes no bit; merged, they are part of the model.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tokenmill_tests::{Place, binaries, digest, lines, run};
use tokenmill_trainer::model::{Batch, Model};
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

fn tensors(place: &Place, file: &str) -> HashMap<String, Tensor> {
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
    // The role under the name that PEFT knows.
    assert_eq!(config["modules_to_save"], serde_json::json!(["embed_tokens"]));
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
        model.logits(&Batch::new(ids.clone(), 1)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
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

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Logits of a model, with an adapter or without.
fn logits(model: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let mut model = Model::load(model).unwrap();
    if let Some(adapter) = adapter {
        model.load_adapters(adapter, 0).unwrap();
    }
    let ids: Vec<u32> = (0..16).map(|at| at * 37 % 1024).collect();
    model.logits(&Batch::new(ids.clone(), 1)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A base model with these tensors in place of its own, and this configuration.
fn changed_base(place: &Place, output: &str, rows: &[(&str, &Tensor)], config: &[(&str, Value)]) -> std::path::PathBuf {
    let mut all = tensors(place, "base/model.safetensors");
    all.extend(rows.iter().map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone())));
    let mut json: Value = serde_json::from_slice(&std::fs::read(place.path("base/config.json")).unwrap()).unwrap();
    config.iter().for_each(|(key, value)| json[key] = value.clone());
    if json["tie_word_embeddings"] == true {
        all.remove(HEAD);
    }
    place.write(&format!("{output}/config.json"), json.to_string());
    candle_core::safetensors::save(&all, place.path(&format!("{output}/model.safetensors"))).unwrap();
    place.path(output)
}

/// An adapter as PEFT would have written it: the pairs of `out`, these tensors and this configuration.
fn adapter(place: &Place, output: &str, rows: &[(&str, &Tensor)], config: &[(&str, Value)]) -> std::path::PathBuf {
    let mut all = tensors(place, "out/adapter_model.safetensors");
    all.retain(|name, _| name.contains("lora_"));
    all.extend(rows.iter().map(|(name, tensor)| (format!("base_model.model.{name}"), (*tensor).clone())));
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(place.path("out/adapter_config.json")).unwrap()).unwrap();
    json["modules_to_save"] = Value::Null;
    config.iter().for_each(|(key, value)| json[key] = value.clone());
    place.write(&format!("{output}/adapter_config.json"), json.to_string());
    candle_core::safetensors::save(&all, place.path(&format!("{output}/adapter_model.safetensors"))).unwrap();
    place.path(output)
}

/// The four shapes in which PEFT saves rows of embeddings, the first three of a vocabulary that had been enlarged.
#[test]
fn rows_of_embeddings_are_read_in_every_shape_that_peft_writes() {
    let place = prepared();
    run(&mut continued(&place, "out", &["--max_steps", "3", "--save_strategy", "no"])).ok();
    let random = |rows: usize| Tensor::randn(0f32, 0.1, (rows, 32), &Device::Cpu).unwrap();
    let (e, h, other) = (random(1032), random(1032), random(1032));
    let pairs = adapter(&place, "pairs", &[], &[]);
    let larger = changed_base(&place, "larger", &[(EMBEDDING, &e), (HEAD, &h)], &[("vocab_size", json!(1032))]);
    let expected = logits(&larger, Some(&pairs));
    let both = json!(["embed_tokens", "lm_head"]);
    let (base, plain) = (place.path("base"), [(EMBEDDING, &e), (HEAD, &h)]);
    let saved = adapter(&place, "a", &plain, &[("modules_to_save", both.clone())]);
    assert_eq!(logits(&base, Some(&saved)), expected);
    let triple = [
        ("model.embed_tokens.modules_to_save.weight", &e),
        ("model.embed_tokens.original_module.weight", &other),
        (EMBEDDING, &other),
        ("lm_head.modules_to_save.weight", &h),
        ("lm_head.original_module.weight", &other),
        (HEAD, &other),
    ];
    let triple = adapter(&place, "b", &triple, &[("modules_to_save", both)]);
    assert_eq!(logits(&base, Some(&triple)), expected);
    let untrained = adapter(&place, "c", &plain, &[]);
    assert_eq!(logits(&base, Some(&untrained)), expected);
    // Rows that came with an adapter go on with it.
    let more = ["--peft_path", untrained.to_str().unwrap(), "--max_steps", "1", "--save_strategy", "no"];
    run(&mut continued(&place, "on", &more)).ok();
    let (on, rows) =
        (tensors(&place, "on/adapter_model.safetensors"), |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap());
    assert_eq!(rows(&on["base_model.model.model.embed_tokens.weight"]), rows(&e));
    assert_eq!(rows(&on["base_model.model.lm_head.weight"]), rows(&h));

    let base_rows = tensors(&place, "base/model.safetensors");
    let with_rows = |name: &str, ids: &[usize], trained: &Tensor| {
        let mut all = rows(&base_rows[name]);
        ids.iter().zip(rows(trained)).for_each(|(id, row)| all[*id] = row);
        Tensor::new(all, &Device::Cpu).unwrap()
    };
    let (few, fewer) = (random(2), random(1));
    let (e, h) = (with_rows(EMBEDDING, &[3, 700], &few), with_rows(HEAD, &[5], &fewer));
    let single = changed_base(&place, "single", &[(EMBEDDING, &e), (HEAD, &h)], &[]);
    let delta = [
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", &few),
        ("lm_head.token_adapter.trainable_tokens_delta", &fewer),
    ];
    let indices = json!({"embed_tokens": [3, 700], "lm_head": [5]});
    let tokens = adapter(&place, "d", &delta, &[("trainable_token_indices", indices)]);
    assert_eq!(logits(&base, Some(&tokens)), logits(&single, Some(&pairs)));
    let beyond = adapter(&place, "beyond", &delta, &[("trainable_token_indices", json!([3, 1025]))]);
    let error = Model::load(&base).unwrap().load_adapters(&beyond, 0).unwrap_err().to_string();
    assert!(error.contains("embed_tokens.token_adapter") && error.contains("1024 rows"), "{error}");
    let half = adapter(&place, "half", &plain[..1], &[]);
    let error = Model::load(&base).unwrap().load_adapters(&half, 0).unwrap_err().to_string();
    assert!(error.contains("only one of embedding and head"), "{error}");
}

#[test]
fn tied_weights_are_trained_as_one_unless_an_adapter_has_them_apart() {
    let place = prepared();
    run(&mut continued(&place, "out", &["--max_steps", "3", "--save_strategy", "no"])).ok();
    let tied = changed_base(&place, "tied", &[], &[("tie_word_embeddings", json!(true))]);
    let more = ["--model_name_or_path", tied.to_str().unwrap(), "--max_steps", "3", "--save_strategy", "no"];
    let ended = run(continued(&place, "one", &more).args(["--modules_to_save", "lm_head"])).ok();
    assert!(ended.stderr.contains("embedding and head are tied and stay so"), "{}", ended.stderr);
    let saved = tensors(&place, "one/adapter_model.safetensors");
    let rows = |name: &str| saved[&format!("base_model.model.{name}")].to_vec2::<f32>().unwrap();
    assert_eq!(rows(EMBEDDING), rows(HEAD));
    let config: Value = serde_json::from_slice(&std::fs::read(place.path("one/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["modules_to_save"], json!(["embed_tokens", "lm_head"]));
    assert_eq!(config["ensure_weight_tying"], json!(true));
    let mut model = Model::load(&tied).unwrap();
    model.load_adapters(&place.path("one"), 0).unwrap();
    assert!(model.config().tie_word_embeddings && model.parameters().iter().all(|one| one.name != HEAD));

    // PEFT, not told otherwise, trains a copy of the one that is named.
    let e = Tensor::randn(0f32, 0.1, (1024, 32), &Device::Cpu).unwrap();
    let apart = adapter(&place, "apart", &[(EMBEDDING, &e)], &[("modules_to_save", json!(["embed_tokens"]))]);
    let base_rows = tensors(&place, "base/model.safetensors").remove(EMBEDDING).unwrap();
    let untied = changed_base(&place, "untied", &[(EMBEDDING, &e), (HEAD, &base_rows)], &[]);
    let pairs = adapter(&place, "pairs", &[], &[]);
    assert_eq!(logits(&tied, Some(&apart)), logits(&untied, Some(&pairs)));
    let merge = |output: &str, adapter: &Path| {
        let mut command = Command::new(&binaries().trainer);
        command.arg("merge").arg("--base_model").arg(&tied).arg("--lora_model").arg(adapter);
        run(command.arg("--output_dir").arg(place.path(output))).ok();
        let config = std::fs::read(place.path(output).join("config.json")).unwrap();
        serde_json::from_slice::<Value>(&config).unwrap()["tie_word_embeddings"].clone()
    };
    assert_eq!(merge("merged-apart", &apart), json!(false));
    assert!(tensors(&place, "merged-apart/model.safetensors").contains_key(HEAD));
    // Rows trained alone belong to both, and stay one matrix.
    let few = Tensor::randn(0f32, 0.1, (2, 32), &Device::Cpu).unwrap();
    let delta = [("model.embed_tokens.token_adapter.trainable_tokens_delta", &few)];
    let tokens = adapter(&place, "tokens", &delta, &[("trainable_token_indices", json!([3, 5]))]);
    assert_eq!(merge("merged-tokens", &tokens), json!(true));
}
