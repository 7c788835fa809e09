//! Training from the service, to the bits of training from disk.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, run};

use super::{Serving, prepared};

pub(super) const FLAGS: &str = "--gradient_accumulation_steps 2 --num_train_epochs 2.5 --save_steps 3 --learning_rate 1e-2 \
    --lr_scheduler_type cosine --warmup_steps 3 --weight_decay 0.1 --do_eval";

/// A run like `Place::train`'s, from a service.
pub(super) fn train(place: &Place, address: &str, output: &str, more: &[&str]) -> Command {
    let config = place.write("model/config.json", TINY_LLAMA);
    let mut command = Command::new(&binaries().trainer);
    command.arg("--init_from_config").arg(config).arg("--data_service").arg(address);
    command.arg("--cache_dir").arg(place.path("trainers-cache"));
    command.arg("--output_dir").arg(place.path(output)).args(["--use_peft", "false", "--do_train"]);
    command.args(["--per_device_train_batch_size", "2", "--logging_steps", "1"]);
    command.args(FLAGS.split_whitespace()).args(more);
    command
}

fn json(place: &Place, output: &str, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(output).join(name)).unwrap()).unwrap()
}

/// The bits of every step's loss, the bits of the evaluation's, and the hash of the weights.
pub(super) fn result(place: &Place, output: &str) -> (Vec<u64>, u64, String) {
    let state = json(place, output, "trainer_state.json");
    let history = state["log_history"].as_array().unwrap().iter();
    let losses = history.filter_map(|entry| Some(entry["loss"].as_f64()?.to_bits())).collect();
    let evaluated = json(place, output, "eval_results.json")["eval_loss"].as_f64().unwrap().to_bits();
    (losses, evaluated, digest(&place.path(output))[Path::new("model.safetensors")].clone())
}

#[test]
fn a_served_dataset_trains_to_the_bits_of_the_one_on_disk() {
    let place = prepared();
    let serving = Serving::start(&place, false, &[]);
    for (name, more) in [
        ("random", vec![]),
        ("source", vec!["--train_sampling_strategy", "sequential"]),
        ("some", vec!["--max_train_samples", "11", "--max_eval_samples", "2", "--dataloader_drop_last", "true"]),
        ("cut", vec!["--block_size", "11", "--data_seed", "5"]),
    ] {
        let flags: Vec<&str> = FLAGS.split_whitespace().chain(more.iter().copied()).collect();
        run(&mut place.train("data", &format!("disk-{name}"), &flags)).ok();
        let ended = run(&mut train(&place, &serving.address("data"), name, &more)).ok();
        assert!(ended.stderr.contains("waiting for data"), "{}", ended.stderr);
        let found = result(&place, name);
        assert!(found.0.len() > 5);
        assert_eq!(found, result(&place, &format!("disk-{name}")), "{name}");
    }
    // A run on the disk goes on from the service: it is the same dataset.
    let checkpoint = place.path("disk-random/checkpoint-9");
    let resume = ["--resume_from_checkpoint", checkpoint.to_str().unwrap()];
    run(&mut train(&place, &serving.address("data"), "resumed", &resume)).ok();
    assert_eq!(result(&place, "resumed"), result(&place, "disk-random"));
    assert!(digest(&place.path("resumed")).contains_key(Path::new("tokenizer.json")));
    run(&mut train(&place, &serving.address("data"), "refused", &["--block_size", "9", resume[0], resume[1]]))
        .fails(2, &["--resume_from_checkpoint", "dataset"]);
}

/// Every block with documents of its own, and so with padding of its own.
#[test]
fn packed_documents_are_served_with_their_padding() {
    let place = Place::new();
    place.write("text/a.txt", tokenmill_tests::lines(60, 5));
    run(&mut place.prepare("data", &["--packing_strategy", "best_fit", "--validation_split_percentage", "10"])).ok();
    let serving = Serving::start(&place, false, &[]);
    let flags: Vec<&str> = FLAGS.split_whitespace().collect();
    run(&mut place.train("data", "disk", &flags)).ok();
    run(&mut train(&place, &serving.address("data"), "served", &[])).ok();
    assert_eq!(result(&place, "served"), result(&place, "disk"));
}

/// The notes of the service say where documents begin: of a dataset, of a view of it, and of text.
#[test]
fn documents_are_masked_as_those_on_disk() {
    let place = prepared();
    let serving = Serving::start(&place, true, &[]);
    let mask = ["--document_mask", "true"];
    for (name, more) in [("own", vec![]), ("cut", vec!["--block_size", "11"])] {
        let more = [&mask[..], &more].concat();
        let flags: Vec<&str> = FLAGS.split_whitespace().chain(more.iter().copied()).collect();
        run(&mut place.train("data", &format!("disk-{name}"), &flags)).ok();
        run(&mut train(&place, &serving.address("data"), name, &more)).ok();
        assert_eq!(result(&place, name), result(&place, &format!("disk-{name}")), "{name}");
    }
    let steps = ["--max_steps", "9", "--save_strategy", "no"];
    run(&mut train(&place, &serving.address("text"), "text", &[&mask[..], &steps].concat())).ok();
    run(&mut train(&place, &serving.address("text"), "unmasked", &steps)).ok();
    assert_ne!(result(&place, "text").1, result(&place, "unmasked").1);
}

#[test]
fn served_text_trains_to_the_bits_of_text_here() {
    let place = prepared();
    let serving = Serving::start(&place, true, &[]);
    let steps = ["--max_steps", "20", "--max_train_samples", "31"];
    let mut here = Command::new(&binaries().trainer);
    here.arg("--init_from_config").arg(place.write("model/config.json", TINY_LLAMA));
    here.arg("--train_file_dir").arg(place.path("text")).arg("--output_dir").arg(place.path("here"));
    here.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes")).arg("--cache_dir").arg(place.path("cache"));
    here.args(
        "--streaming true --use_peft false --do_train --per_device_train_batch_size 2 --logging_steps 1".split(' '),
    );
    here.args("--block_size 16 --max_eval_samples 3".split(' ')).args(FLAGS.split_whitespace()).args(steps);
    run(&mut here).ok();
    run(&mut train(&place, &serving.address("text"), "served", &steps)).ok();
    assert_eq!(result(&place, "served"), result(&place, "here"));
    let checkpoint = place.path("here/checkpoint-9");
    let resume = ["--resume_from_checkpoint", checkpoint.to_str().unwrap()];
    run(&mut train(&place, &serving.address("text"), "resumed", &[&steps[..], &resume].concat())).ok();
    assert_eq!(result(&place, "resumed"), result(&place, "here"));
}

#[test]
fn contradictions_and_absent_services_are_named() {
    let place = prepared();
    let serving = Serving::start(&place, true, &[]);
    let address = serving.address("data");
    for (more, parts) in [
        (vec!["--dataset_dir", "d"], &["--dataset_dir", "--data_service"][..]),
        (vec!["--train_file_dir", "d"], &["--train_file_dir", "--data_service"]),
        (vec!["--streaming", "true"], &["--streaming", "--data_service"]),
        (vec!["--sample_by", "document"], &["--sample_by", "--data_service", "serve"]),
        (vec!["--data_service", "localhost"], &["--data_service", "grpc://HOST:PORT/NAME"]),
        (vec!["--data_service_ca_file", "ca.pem"], &["--data_service", "grpcs://"]),
        (vec!["--data_service_timeout", "-1"], &["--data_service_timeout"]),
    ] {
        run(&mut train(&place, &address, "out", &more)).fails(2, parts);
    }
    let none = ["--data_service_timeout", "0.5"];
    run(&mut train(&place, "grpc://127.0.0.1:9/data", "out", &none))
        .fails(1, &["127.0.0.1:9", "--data_service_timeout"]);
    run(&mut train(&place, &serving.address("other"), "out", &none)).fails(1, &["no dataset \"other\"", "data, text"]);
    let skip = ["--ignore_data_skip", "true", "--max_steps", "3"];
    run(&mut train(&place, &serving.address("text"), "out", &skip)).fails(2, &["--ignore_data_skip"]);
}
