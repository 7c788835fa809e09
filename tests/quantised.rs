//! Quantised bases: adapters learn beside them, resuming changes no bit, checkpoints of bitsandbytes are read, and what
//! cannot be is refused by name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::Value;
use tokenmill_tests::{Place, binaries, data, digest, lines, run};
use tokenmill_trainer::model::{Batch, Model};

const QLORA: [&str; 4] = ["--load_in_4bit", "true", "--qlora", "true"];

/// A dataset, and a base model saved in `base`.
fn prepared() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "base", &["--max_steps", "1", "--save_strategy", "no"])).ok();
    place
}

/// A run of adapters beside the model in `base`.
fn beside(place: &Place, base: &Path, output: &str, more: &[&str]) -> Command {
    let mut command = Command::new(&binaries().trainer);
    command.arg("--model_name_or_path").arg(base).arg("--dataset_dir").arg(place.path("data"));
    command.arg("--output_dir").arg(place.path(output)).args(["--do_train", "--logging_steps", "1"]);
    command.args(["--per_device_train_batch_size", "2", "--lora_rank", "4", "--learning_rate", "1e-2"]).args(more);
    command
}

fn losses(place: &Place, output: &str) -> Vec<f64> {
    let state = std::fs::read(place.path(output).join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    state["log_history"].as_array().unwrap().iter().filter_map(|entry| entry["loss"].as_f64()).collect()
}

fn fixture(name: &str) -> PathBuf {
    data("fixtures").join(name)
}

#[test]
fn adapters_learn_beside_quantised_weights_and_resuming_changes_no_bit() {
    let place = prepared();
    let base = place.path("base");
    let int8 = ["--load_in_8bit", "true"];
    let outliers = ["--load_in_8bit", "true", "--int8_threshold", "6"];
    for (output, flags) in [("4bit", &QLORA[..]), ("8bit", &int8[..]), ("outliers", &outliers[..])] {
        let steps = ["--max_steps", "12", "--save_steps", "4", "--lr_scheduler_type", "constant"];
        run(beside(&place, &base, output, &steps).args(flags)).ok();
        let losses = losses(&place, output);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        assert!(mean(&losses[9..]) < mean(&losses[..3]) - 0.05, "{output}: {losses:?}");
        let adapter =
            candle_core::safetensors::load(place.path(output).join("adapter_model.safetensors"), &Device::Cpu);
        assert_eq!(adapter.unwrap().len(), 2 * 2 * 7, "all projections of two layers, and nothing else");

        let resumed = format!("{output}-resumed");
        let from = place.path(&format!("{output}/checkpoint-4"));
        let more = ["--resume_from_checkpoint", from.to_str().unwrap(), "--gradient_checkpointing", "true"];
        run(beside(&place, &base, &resumed, &steps).args(flags).args(more)).ok();
        let last = |output: &str| {
            let found = digest(&place.path(&format!("{output}/checkpoint-12")));
            ["adapter_model.safetensors", "optimizer.pt"].map(|file| found[Path::new(file)].clone())
        };
        assert_eq!(last(output), last(&resumed), "{output}");
        if output == "4bit" {
            run(beside(&place, &base, "other", &steps).args(int8).args(more))
                .fails(2, &["--resume_from_checkpoint", "quantisation", "nf4, double", "int8"]);
        }
    }
    // Beside other weights other adapters are learned.
    let weights = |output: &str| digest(&place.path(output))[Path::new("adapter_model.safetensors")].clone();
    assert!(weights("4bit") != weights("8bit") && weights("8bit") != weights("outliers"));
    // An adapter of a quantised base goes into the full one.
    let mut merge = Command::new(&binaries().trainer);
    merge.arg("merge").arg("--base_model").arg(&base).arg("--lora_model").arg(place.path("4bit"));
    run(merge.arg("--output_dir").arg(place.path("merged"))).ok();
    assert!(!Model::load(&place.path("merged")).unwrap().is_quantised());
}

#[test]
fn what_cannot_be_quantised_is_refused_and_what_differs_is_said() {
    let place = prepared();
    let base = place.path("base");
    let with = |flags: &str| {
        let more = ["--max_steps", "1", "--save_strategy", "no", "--overwrite_output_dir"];
        run(beside(&place, &base, "out", &more).args(flags.split_whitespace()))
    };
    with("--load_in_4bit --use_peft false").fails(2, &["--use_peft", "--load_in_4bit"]);
    with("--load_in_8bit --use_peft false").fails(2, &["--use_peft", "--load_in_8bit"]);
    with("--load_in_8bit --load_in_4bit").fails(2, &["--load_in_8bit", "--load_in_4bit"]);
    for (flags, said) in [
        ("--load_in_4bit", "NF4 with double quantisation is used"),
        ("--qlora", "the model is loaded in 4 bits"),
        ("--qlora --compat medicalgpt", "--qlora has no effect here"),
        ("--load_in_8bit --qlora", "--qlora has no effect here"),
        ("--int8_threshold 6", "--int8_threshold has no effect here"),
    ] {
        let ended = with(flags).ok();
        assert!(ended.stderr.contains(said), "{flags}: {}", ended.stderr);
    }
    let ended = with("--load_in_4bit --compat medicalgpt").ok();
    assert!(!ended.stderr.contains("NF4"), "{}", ended.stderr);
}

/// Checkpoints that bitsandbytes and transformers wrote (`tests/data/fixtures/quantised.py`).
#[test]
fn checkpoints_of_bitsandbytes_are_read() {
    let place = prepared();
    for name in ["bnb_nf4", "bnb_int8"] {
        let golden = candle_core::safetensors::load(fixture(name).join("golden.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<i64> = golden["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let flat = |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().unwrap().to_vec1().unwrap() };
        let mut model = Model::load(&fixture(name)).unwrap();
        assert!(model.is_quantised());
        let found = flat(&model.logits(&Batch::new(ids.clone(), 2)).unwrap());
        let apart = found.iter().zip(flat(&golden["logits"])).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart < 1e-5, "{name}: {apart}");

        let more = ["--max_steps", "2", "--save_strategy", "no"];
        run(&mut beside(&place, &fixture(name), name, &more)).ok();
        run(beside(&place, &fixture(name), "no", &more).args(["--use_peft", "false"]))
            .fails(2, &["--use_peft", "quantised"]);
        let ended = run(beside(&place, &fixture(name), "again", &more).args(QLORA).arg("--overwrite_output_dir")).ok();
        assert!(ended.stderr.contains("quantised already"), "{}", ended.stderr);
        let mut merge = Command::new(&binaries().trainer);
        merge.arg("merge").arg("--base_model").arg(fixture(name)).arg("--lora_model").arg(place.path(name));
        let ended = run(merge.arg("--output_dir").arg(place.path(&format!("{name}-merged")))).ok();
        assert!(ended.stderr.contains("restored values"), "{}", ended.stderr);
        let merged = place.path(&format!("{name}-merged"));
        let config: Value = serde_json::from_slice(&std::fs::read(merged.join("config.json")).unwrap()).unwrap();
        assert!(config.get("quantization_config").is_none() && config["dtype"] == "float32", "{config}");
        assert!(!Model::load(&merged).unwrap().is_quantised());
    }
}

#[test]
fn damaged_quantised_checkpoints_are_refused_by_tensor() {
    let place = Place::new();
    let up = "model.layers.0.mlp.up_proj.weight";
    let changed = |name: &str, change: Change<'_>| {
        let bytes = std::fs::read(fixture(name).join("model.safetensors")).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        let mut tensors: HashMap<String, Stored> = read.tensors().into_iter().map(owned).collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        place.write("damaged/model.safetensors", bytes);
        place.write("damaged/config.json", std::fs::read(fixture(name).join("config.json")).unwrap());
        Model::load(&place.path("damaged")).unwrap_err().to_string()
    };
    let state = format!("{up}.quant_state.bitsandbytes__nf4");
    let told: [(&str, Change<'_>, &str); 6] = [
        ("bnb_nf4", &|tensors| drop(tensors.remove(&format!("{up}.absmax"))), "absmax"),
        ("bnb_nf4", &|tensors| tensors.get_mut(&state).unwrap().2[0] = b'x', "quant_state"),
        ("bnb_nf4", &|tensors| tensors.get_mut(&format!("{up}.quant_map")).unwrap().2[2] ^= 64, "quant_map"),
        ("bnb_nf4", &|tensors| tensors.get_mut(&format!("{up}.nested_quant_map")).unwrap().2[2] ^= 64, "dynamic map"),
        (
            "bnb_nf4",
            &|tensors| {
                let codes = tensors.get_mut(up).unwrap();
                codes.1[0] -= 1;
                codes.2.pop();
            },
            "does not fit",
        ),
        ("bnb_int8", &|tensors| tensors.get_mut("model.layers.0.mlp.up_proj.weight_format").unwrap().2[0] = 1, "GPU"),
    ];
    for (name, change, part) in told {
        let error = changed(name, change);
        assert!(error.contains("up_proj") && error.contains(part), "{part}: {error}");
    }
    let error = changed("bnb_int8", &|tensors| drop(tensors.remove("model.layers.0.mlp.up_proj.SCB")));
    assert!(error.contains("up_proj"), "{error}");
    let json = std::fs::read_to_string(fixture("bnb_nf4").join("config.json")).unwrap();
    place.write("gptq/config.json", json.replace("\"bitsandbytes\"", "\"gptq\""));
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    run(&mut beside(&place, &place.path("gptq"), "out", &[])).fails(2, &["gptq", "bitsandbytes"]);
}

/// What is done to a file's tensors.
type Change<'c> = &'c dyn Fn(&mut HashMap<String, Stored>);

/// Type, shape and bytes.
type Stored = (safetensors::Dtype, Vec<usize>, Vec<u8>);
