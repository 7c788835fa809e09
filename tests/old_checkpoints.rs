//! Checkpoints from before safetensors: their weights are the same, and nothing in them is run.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use tokenmill_tests::{Place, binaries, data, digest, lines, run};
use tokenmill_trainer::model::Model;
use tokenmill_trainer::torch::{TorchWriter, Value};

/// Of `tests/data/torch/checkpoints.py`.
fn checkpoint(name: &str) -> PathBuf {
    data("torch/checkpoints").join(name)
}

fn parameters(dir: &Path) -> Vec<(String, Vec<f32>)> {
    let model = Model::load(dir).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    model.parameters().iter().map(|parameter| (parameter.name.clone(), values(&parameter.tensor))).collect()
}

/// Whole, in shards of float16 and bfloat16, and as views of one storage, turned around and with gaps.
#[test]
fn weights_of_torch_save_are_those_of_safetensors() {
    let expected = parameters(&checkpoint("safetensors"));
    assert_eq!(expected.len(), 12);
    for name in ["single", "sharded", "views"] {
        assert_eq!(parameters(&checkpoint(name)), expected, "{name}");
    }
}

#[test]
fn safetensors_are_preferred_as_transformers_does() {
    let place = Place::new();
    place.write("both/config.json", std::fs::read(checkpoint("safetensors/config.json")).unwrap());
    place.write("both/model.safetensors", std::fs::read(checkpoint("safetensors/model.safetensors")).unwrap());
    place.write("both/pytorch_model.bin", b"not looked at");
    assert_eq!(parameters(&place.path("both")), parameters(&checkpoint("safetensors")));
}

#[test]
fn a_pickle_with_anything_but_tensors_is_refused_by_name_and_not_run() {
    let place = Place::new();
    for (name, parts) in [
        ("runs", vec!["__builtin__.print", "was not run"]),
        ("numpy", vec!["numpy", "was not run"]),
        ("module", vec!["torch.nn.modules.linear.Linear", "was not run"]),
        ("number", vec!["\"epoch\"", "no tensor", "state_dict()"]),
        ("list", vec!["no state dict"]),
        ("double", vec!["lm_head.weight", "F64"]),
        ("legacy", vec!["before 1.6", "torch.save it again"]),
        ("pickle", vec!["before 1.6"]),
    ] {
        place.write("model/config.json", std::fs::read(checkpoint("single/config.json")).unwrap());
        let bytes = std::fs::read(checkpoint(&format!("refused/{name}.bin"))).unwrap();
        place.write("model/pytorch_model.bin", bytes);
        let mut command = std::process::Command::new(&binaries().trainer);
        command.arg("merge").arg("--base_model").arg(place.path("model")).arg("--lora_model").arg(place.path("none"));
        let ended = run(command.arg("--output_dir").arg(place.path("merged")));
        ended.fails(3, &parts);
        assert!(
            ended.stderr.contains("pytorch_model.bin") && !ended.stdout.contains("never"),
            "{name}: {}",
            ended.stderr
        );
        assert!(!place.path("merged").exists());
    }
}

#[test]
fn truncated_and_incomplete_files_are_refused_with_their_name() {
    let place = Place::new();
    place.write("model/config.json", std::fs::read(checkpoint("single/config.json")).unwrap());
    let whole = std::fs::read(checkpoint("single/pytorch_model.bin")).unwrap();
    for length in [0, 1, 4, 100, whole.len() / 2, whole.len() - 1] {
        place.write("model/pytorch_model.bin", &whole[..length]);
        let error = Model::load(&place.path("model")).unwrap_err().to_string();
        assert!(error.contains("pytorch_model.bin"), "{length}: {error}");
    }
    // A shard that is missing, or lacks what the index places in it, or lies elsewhere.
    let index = std::fs::read_to_string(checkpoint("sharded/pytorch_model.bin.index.json")).unwrap();
    std::fs::remove_file(place.path("model/pytorch_model.bin")).unwrap();
    let first = std::fs::read(checkpoint("sharded/pytorch_model-00001-of-00002.bin")).unwrap();
    place.write("model/pytorch_model-00001-of-00002.bin", &first);
    let other = index.replace("00002-of", "../00002-of");
    let wrong = index.replace("00002-of-00002", "00001-of-00002");
    for (index, part) in [(&index, "pytorch_model-00002"), (&other, "cannot be a shard"), (&wrong, "lacks tensor")] {
        place.write("model/pytorch_model.bin.index.json", index);
        let error = Model::load(&place.path("model")).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// A file of torch.save with the tensors of a file of safetensors.
fn to_torch(from: &Path, to: &Path) {
    let mut tensors: Vec<_> =
        candle_core::safetensors::load(from, &candle_core::Device::Cpu).unwrap().into_iter().collect();
    tensors.sort_by(|one, other| one.0.cmp(&other.0));
    let mut file = TorchWriter::default();
    let entries: Vec<_> =
        tensors.iter().map(|(name, tensor)| (Value::from(name.as_str()), file.tensor(tensor))).collect();
    std::fs::write(to, file.write(Vec::new(), "archive", &Value::Dict(entries)).unwrap()).unwrap();
}

#[test]
fn a_model_and_an_adapter_in_the_old_form_train_and_merge_like_new_ones() {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "new", &["--max_steps", "1", "--save_strategy", "no"])).ok();
    place.write("old/config.json", std::fs::read(place.path("new/config.json")).unwrap());
    to_torch(&place.path("new/model.safetensors"), &place.path("old/pytorch_model.bin"));
    let train = |base: &str, output: &str, more: &[&str]| {
        let mut command = std::process::Command::new(&binaries().trainer);
        command.arg("--model_name_or_path").arg(place.path(base)).arg("--dataset_dir").arg(place.path("data"));
        command.arg("--output_dir").arg(place.path(output)).args(["--do_train", "--max_steps", "3"]);
        run(command.args(["--learning_rate", "1e-2", "--save_strategy", "no"]).args(more)).ok();
        digest(&place.path(output))[Path::new("adapter_model.safetensors")].clone()
    };
    assert_eq!(train("new", "of-new", &[]), train("old", "of-old", &[]));

    place.write("adapter/adapter_config.json", std::fs::read(place.path("of-new/adapter_config.json")).unwrap());
    to_torch(&place.path("of-new/adapter_model.safetensors"), &place.path("adapter/adapter_model.bin"));
    let again =
        |adapter: &str, output: &str| train("new", output, &["--peft_path", &place.path(adapter).to_string_lossy()]);
    assert_eq!(again("of-new", "again-new"), again("adapter", "again-old"));
}
