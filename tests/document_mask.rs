//! `--document_mask`: the documents of a block are trained as if they were alone, wherever the blocks come from.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, lines, run};
use tokenmill_trainer::model::{Batch, Model};

const FLAGS: &str = "--train_sampling_strategy sequential --max_steps 12 --save_steps 5 --learning_rate 1e-2 \
    --gradient_accumulation_steps 2 --document_mask true";

fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    FLAGS.split_whitespace().chain(more.iter().copied()).collect()
}

fn json(place: &Place, output: &str, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(output).join(name)).unwrap()).unwrap()
}

fn losses(place: &Place, output: &str) -> Vec<f64> {
    let state = json(place, output, "trainer_state.json");
    state["log_history"].as_array().unwrap().iter().filter_map(|entry| entry["loss"].as_f64()).collect()
}

/// Every loss and the hash of the weights.
fn result(place: &Place, output: &str) -> (Vec<f64>, String) {
    (losses(place, output), digest(&place.path(output))[Path::new("model.safetensors")].clone())
}

#[test]
fn the_bits_are_the_same_from_a_dataset_a_view_of_it_and_live_text() {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 3));
    run(&mut place.prepare("large", &["--remainder", "pad", "--block_size", "64"])).ok();
    run(&mut place.prepare("small", &["--remainder", "pad", "--block_size", "24"])).ok();
    run(&mut place.train("small", "own", &flags(&[]))).ok();
    let own = result(&place, "own");
    run(&mut place.train("large", "view", &flags(&["--block_size", "24"]))).ok();
    assert_eq!(result(&place, "view"), own);

    let mut live = Command::new(&binaries().trainer);
    live.arg("--init_from_config").arg(place.write("model/config.json", TINY_LLAMA));
    live.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes")).args(["--streaming", "true"]);
    live.arg("--train_file_dir").arg(place.path("text")).arg("--cache_dir").arg(place.path("cache"));
    live.arg("--output_dir").arg(place.path("live")).args(["--use_peft", "false", "--do_train"]);
    live.args("--per_device_train_batch_size 2 --logging_steps 1 --validation_split_percentage 0".split(' '));
    run(live.args(flags(&["--block_size", "24", "--remainder", "pad"]))).ok();
    assert_eq!(result(&place, "live"), own);

    // Going on, the mask is one of the settings that count.
    let resume = ["--resume_from_checkpoint", "true", "--overwrite_output_dir", "false"];
    std::fs::remove_dir_all(place.path("own/checkpoint-12")).unwrap();
    run(&mut place.train("small", "own", &flags(&[&resume[..], &["--gradient_checkpointing", "true"]].concat()))).ok();
    assert_eq!(result(&place, "own"), own);
    run(&mut place.train("small", "own", &flags(&[&resume[..], &["--document_mask", "false"]].concat())))
        .fails(2, &["--resume_from_checkpoint", "document_mask = true"]);
    run(&mut place.train("small", "unmasked", &flags(&["--document_mask", "false"]))).ok();
    assert_ne!(losses(&place, "unmasked")[0], own.0[0]);
}

/// The same documents, each in a block of its own and several to a block: the first step has all of them.
#[test]
fn packed_documents_train_like_documents_in_blocks_of_their_own() {
    let place = Place::new();
    place.write("text/a.txt", lines(30, 6));
    let prepare = |output: &str, packing: [&str; 2]| {
        let made = run(&mut place.prepare(output, &[&packing[..], &["--block_size", "128"]].concat())).ok().json();
        made["manifest"]["splits"]["train"]["blocks"].as_u64().unwrap()
    };
    let (alone, packed) =
        (prepare("alone", ["--packing", "false"]), prepare("packed", ["--packing_strategy", "best_fit"]));
    assert!(alone == 30 && packed < 15, "{alone} {packed}");
    let train = |dataset: &str, output: &str, mask: &str| {
        let more = ["--document_mask", mask, "--max_steps", "3", "--per_device_train_batch_size", "30"];
        run(&mut place.train(dataset, output, &flags(&more))).ok();
        losses(&place, output)
    };
    let (alone, packed, unmasked) =
        (train("alone", "1", "false"), train("packed", "2", "true"), train("packed", "3", "false"));
    for (alone, packed) in alone.iter().zip(&packed) {
        assert!((alone / packed - 1.0).abs() < 1e-5, "{alone} {packed}");
    }
    assert!((alone[0] / unmasked[0] - 1.0).abs() > 1e-4);
}

#[test]
fn evaluation_is_masked_as_training_is() {
    let place = Place::new();
    place.write("text/a.txt", lines(60, 5));
    run(&mut place.prepare("data", &["--validation_split_percentage", "30"])).ok();
    run(&mut place.train("data", "out", &flags(&["--max_steps", "3", "--do_eval", "--save_strategy", "no"]))).ok();
    let mut model = Model::load(&place.path("out")).unwrap();
    let reader = Dataset::open(&place.path("data")).unwrap().split(Split::Validation).unwrap().unwrap();
    let (mut nll, mut labels, mut whole) = (0.0, 0, true);
    for block in 0..reader.len() {
        let mut ids = Vec::new();
        reader.read_block(block, &mut ids).unwrap();
        let starts = reader.document_starts(block).unwrap();
        let mut borders: Vec<usize> = starts.iter().map(|start| *start as usize).chain([0, ids.len()]).collect();
        borders.sort_unstable();
        borders.dedup();
        whole &= borders.len() == 2;
        for document in borders.windows(2) {
            let loss = model.evaluate(&Batch::new(ids[document[0]..document[1]].to_vec(), 1)).unwrap();
            nll += loss.nll;
            labels += loss.tokens;
        }
    }
    assert!(!whole && labels > 100);
    let found = json(&place, "out", "eval_results.json")["eval_loss"].as_f64().unwrap();
    assert!((found / (nll / labels as f64) - 1.0).abs() < 1e-6, "{found}, recomputed {}", nll / labels as f64);
}
