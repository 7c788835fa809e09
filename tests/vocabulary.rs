//! A tokenizer with more tokens than the model: rows are added and begin as they should, ties stay, what must be trained
//! is, and what would not be is refused before weights are read.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tokenizers::{Model as _, Tokenizer};
use tokenmill_tests::{Ended, Place, TINY_LLAMA, binaries, data, digest, lines, run};
use tokenmill_trainer::model::{Batch, Model};

const OLD: usize = 600;
const NEW: usize = 40;
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

type Tensors = HashMap<String, Tensor>;

/// `base`: a model of the byte-level tokenizer, with as many rows; `tokenizer`: that one, extended; `data`: text in it.
fn prepared(change: impl Fn(&mut Value)) -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("old", &[])).ok();
    let mut config: Value = serde_json::from_str(TINY_LLAMA).unwrap();
    config["vocab_size"] = json!(OLD);
    change(&mut config);
    let config = place.write("config/config.json", config.to_string());
    let more = ["--init_from_config", config.to_str().unwrap(), "--max_steps", "2", "--save_strategy", "no"];
    run(&mut place.train("old", "base", &more)).ok();
    let text = "深度学习模型需要大量数据，我们训练语言模型，模型学习语言。\n".repeat(12);
    place.write("text/a.txt", text + &lines(10, 6));
    let mut extend = Command::new(&binaries().preprocess);
    extend.args(["tokenizer", "extend", "--tokenizer_name_or_path"]).arg(data("tokenizers/bytes"));
    extend.arg("--train_file_dir").arg(place.path("text")).args(["--num_new_tokens", &NEW.to_string()]);
    run(extend.arg("--output_dir").arg(place.path("tokenizer"))).ok();
    let tokenizer = place.path("tokenizer");
    run(&mut place.prepare("data", &["--tokenizer_name_or_path", tokenizer.to_str().unwrap()])).ok();
    place
}

fn trainer(place: &Place, output: &str, more: &[&str]) -> Command {
    let mut command = Command::new(&binaries().trainer);
    command.arg("--model_name_or_path").arg(place.path("base")).arg("--dataset_dir").arg(place.path("data"));
    command.arg("--output_dir").arg(place.path(output)).args(["--do_train", "--logging_steps", "1"]);
    command.args(["--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--weight_decay", "0.1"]).args(more);
    command
}

fn merge(place: &Place, adapter: &str, output: &str) -> Ended {
    let mut command = Command::new(&binaries().trainer);
    command.arg("merge").arg("--base_model").arg(place.path("base")).arg("--lora_model").arg(place.path(adapter));
    run(command.arg("--output_dir").arg(place.path(output)))
}

fn tensors(place: &Place, file: &str) -> Tensors {
    candle_core::safetensors::load(place.path(file), &Device::Cpu).unwrap()
}

fn json_of(place: &Place, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(file)).unwrap()).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

/// The mean, in f64, of the rows of the pieces that the old vocabulary has for the token of `id`.
fn mean_of_pieces(place: &Place, old: &[Vec<f32>], id: u32) -> Vec<f32> {
    let tokenizer = |dir: &Path| Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let piece = tokenizer(&place.path("tokenizer")).id_to_token(id).unwrap();
    let pieces = tokenizer(&data("tokenizers/bytes")).get_model().tokenize(&piece).unwrap();
    assert!(pieces.len() > 1, "{piece}");
    let mean = |at: usize| -> f64 {
        let sum: f64 = pieces.iter().map(|piece| f64::from(old[piece.id as usize][at])).sum();
        sum / pieces.len() as f64
    };
    (0..old[0].len()).map(|at| mean(at) as f32).collect()
}

const FROZEN: [&str; 8] = ["--use_peft", "false", "--learning_rate", "0", "--max_steps", "1", "--save_strategy", "no"];

#[test]
fn rows_are_added_as_means_of_old_pieces_and_ties_stay() {
    for tie in [false, true] {
        let place = prepared(|config| config["tie_word_embeddings"] = json!(tie));
        let ended = run(&mut trainer(&place, "out", &FROZEN)).ok();
        assert!(ended.stderr.contains("40 new tokens from id 600 on"), "{}", ended.stderr);
        let (before, after) = (tensors(&place, "base/model.safetensors"), tensors(&place, "out/model.safetensors"));
        assert_eq!(after.contains_key(HEAD), !tie);
        for name in [EMBEDDING, HEAD].iter().filter(|name| after.contains_key(**name)) {
            let (before, after) = (rows(&before[*name]), rows(&after[*name]));
            assert_eq!((before.len(), after.len()), (OLD, OLD + NEW));
            assert_eq!(after[..OLD], before[..]);
            for (id, row) in after.iter().enumerate().skip(OLD) {
                assert_eq!(*row, mean_of_pieces(&place, &before, id as u32), "{name}, id {id}");
            }
        }
        let config = json_of(&place, "out/config.json");
        assert_eq!((&config["vocab_size"], &config["tie_word_embeddings"]), (&json!(OLD + NEW), &json!(tie)));
        let files = |dir: &str| digest(&place.path(dir))[Path::new("tokenizer.json")].clone();
        assert_eq!(files("out"), files("tokenizer"));
    }
}

#[test]
fn rows_are_rounded_up_and_begin_the_same_for_the_same_seed() {
    let place = prepared(|_| {});
    let embedding = |output: &str, more: &[&str]| {
        run(trainer(&place, output, &FROZEN).args(["--pad_to_multiple_of", "64"]).args(more)).ok();
        assert_eq!(json_of(&place, &format!("{output}/config.json"))["vocab_size"], 640);
        rows(&tensors(&place, &format!("{output}/model.safetensors"))[EMBEDDING])
    };
    let base = rows(&tensors(&place, "base/model.safetensors")[EMBEDDING]);
    for init in ["mean_resizing", "normal"] {
        let flags = |seed| ["--new_token_init", init, "--seed", seed];
        let one = embedding(&format!("{init}-1"), &flags("1"));
        assert_eq!(one[..OLD], base[..]);
        let mut again = trainer(&place, "again", &FROZEN);
        again.args(["--pad_to_multiple_of", "64", "--overwrite_output_dir", "true"]).args(flags("1"));
        run(again.env("RAYON_NUM_THREADS", "1")).ok();
        assert_eq!(rows(&tensors(&place, "again/model.safetensors")[EMBEDDING]), one, "{init}: threads");
        assert_ne!(embedding(&format!("{init}-2"), &flags("2"))[OLD..], one[OLD..], "{init}: seed");
        let spread = |row: &[f32]| (row.iter().map(|value| value * value).sum::<f32>() / row.len() as f32).sqrt();
        let apart: Vec<f32> = one[OLD].iter().zip(&one[OLD + 1]).map(|(a, b)| a - b).collect();
        // 1e-9 of the variance, or all of initializer_range.
        let expected = if init == "normal" { 0.03..0.12 } else { 1e-8..1e-5 };
        assert!(expected.contains(&spread(&apart)), "{init}: {}", spread(&apart));
    }
    // Rows that only fill up begin as the mean of all.
    run(trainer(&place, "padded", &FROZEN).args(["--pad_to_multiple_of", "100"])).ok();
    let padded = rows(&tensors(&place, "padded/model.safetensors")[EMBEDDING]);
    let mean = |at: usize| (base.iter().map(|row| f64::from(row[at])).sum::<f64>() / OLD as f64) as f32;
    let mean: Vec<f32> = (0..32).map(mean).collect();
    assert_eq!((padded.len(), &padded[640], &padded[699]), (700, &mean, &mean));
}

/// Checkpoints of Qwen have more rows than tokens: new tokens get spare ones, and no row is added.
#[test]
fn spare_rows_are_used_before_any_is_added() {
    let place = prepared(|config| config["vocab_size"] = json!(1024));
    run(&mut trainer(&place, "out", &FROZEN)).ok();
    let before = rows(&tensors(&place, "base/model.safetensors")[EMBEDDING]);
    let after = rows(&tensors(&place, "out/model.safetensors")[EMBEDDING]);
    assert_eq!(json_of(&place, "out/config.json")["vocab_size"], 1024);
    assert_eq!((&after[..OLD], &after[OLD + NEW..]), (&before[..OLD], &before[OLD + NEW..]));
    for (id, row) in after.iter().enumerate().skip(OLD).take(NEW) {
        assert_eq!(*row, mean_of_pieces(&place, &before, id as u32), "id {id}");
    }
    run(trainer(&place, "kept", &FROZEN).args(["--new_token_init", "mean_resizing"])).ok();
    assert_eq!(rows(&tensors(&place, "kept/model.safetensors")[EMBEDDING]), before);
    // Of a model that knows them they are not new: its own tokenizer has them.
    let model = place.path("out");
    let ended = run(trainer(&place, "on", &FROZEN).args(["--model_name_or_path", model.to_str().unwrap()])).ok();
    assert!(!ended.stderr.contains("new tokens"), "{}", ended.stderr);
    assert_eq!(rows(&tensors(&place, "on/model.safetensors")[EMBEDDING]), after);
}

const LORA: [&str; 4] = ["--use_peft", "true", "--lora_rank", "4"];

#[test]
fn adapters_with_new_rows_train_resume_merge_and_go_on() {
    for (tie, flags) in [
        (false, vec!["--modules_to_save", "embed_tokens,lm_head"]),
        (true, vec!["--modules_to_save", "embed_tokens"]),
        (false, vec!["--train_new_rows_only", "true"]),
        (true, vec!["--train_new_rows_only", "true"]),
    ] {
        let place = prepared(|config| config["tie_word_embeddings"] = json!(tie));
        let only_new = flags[0] == "--train_new_rows_only";
        let all = [&LORA[..], &flags, &["--max_steps", "4", "--save_steps", "2"]].concat();
        run(&mut trainer(&place, "whole", &all)).ok();
        let from = place.path("whole/checkpoint-2");
        run(trainer(&place, "resumed", &all).args(["--resume_from_checkpoint", from.to_str().unwrap()])).ok();
        for file in ["adapter_model.safetensors", "adapter_config.json", "optimizer.pt"] {
            let last = |output: &str| digest(&place.path(&format!("{output}/checkpoint-4")))[Path::new(file)].clone();
            assert_eq!(last("resumed"), last("whole"), "{flags:?}, tied {tie}: {file}");
        }
        let adapter = tensors(&place, "whole/adapter_model.safetensors");
        let shape = |name: &str| adapter.get(&format!("base_model.model.{name}")).map(|tensor| tensor.dims().to_vec());
        let delta = "model.embed_tokens.token_adapter.trainable_tokens_delta";
        if only_new {
            assert_eq!((shape(delta), shape(EMBEDDING)), (Some(vec![NEW, 32]), None));
            let config = json_of(&place, "whole/adapter_config.json");
            let ids: Vec<usize> = (OLD..OLD + NEW).collect();
            assert_eq!(config["trainable_token_indices"]["embed_tokens"], json!(ids));
            assert_eq!(config["trainable_token_indices"].get("lm_head").is_some(), !tie);
        } else {
            assert_eq!((shape(delta), shape(EMBEDDING)), (None, Some(vec![OLD + NEW, 32])));
        }
        merge(&place, "whole", "merged").ok();
        let (base, merged) = (tensors(&place, "base/model.safetensors"), tensors(&place, "merged/model.safetensors"));
        assert_eq!(merged.contains_key(HEAD), !tie);
        let (before, after) = (rows(&base[EMBEDDING]), rows(&merged[EMBEDDING]));
        assert_eq!(after.len(), OLD + NEW);
        assert_eq!(after[..OLD] == before[..], only_new, "{flags:?}: old rows");
        let trained = (OLD..OLD + NEW).filter(|id| after[*id] != mean_of_pieces(&place, &before, *id as u32));
        assert_eq!(trained.count(), NEW, "{flags:?}, tied {tie}");
        // Beside the base and folded into it, the model is the same.
        let ids: Vec<u32> = (0..24).map(|at| at * 37 % 640).collect();
        let logits = |model: &mut Model| -> Vec<f32> {
            model.logits(&Batch::new(ids.clone(), 1)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let mut beside = Model::load(&place.path("base")).unwrap();
        beside.load_adapters(&place.path("whole"), 0).unwrap();
        let (beside, merged) = (logits(&mut beside), logits(&mut Model::load(&place.path("merged")).unwrap()));
        let apart = beside.iter().zip(&merged).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(beside.len() == merged.len() && apart < 2e-5, "{flags:?}: {apart}");
        // The adapter knows its tokens: going on from it adds nothing, and loses nothing.
        let peft = place.path("whole");
        let on = ["--peft_path", peft.to_str().unwrap(), "--learning_rate", "0", "--max_steps", "1"];
        let ended = run(trainer(&place, "on", &LORA).args(on)).ok();
        assert!(!ended.stderr.contains("new tokens from id"), "{}", ended.stderr);
        merge(&place, "on", "merged-on").ok();
        let on = tensors(&place, "merged-on/model.safetensors");
        assert!(
            on[EMBEDDING]
                .eq(&tensors(&place, "merged/model.safetensors")[EMBEDDING])
                .unwrap()
                .min_all()
                .unwrap()
                .to_scalar::<u8>()
                .unwrap()
                == 1
        );
    }
}

#[test]
fn an_adapter_of_the_old_vocabulary_goes_on_with_the_new_one() {
    let place = prepared(|_| {});
    let old = place.path("old");
    let of_old = ["--dataset_dir", old.to_str().unwrap(), "--max_steps", "2", "--save_strategy", "no"];
    let rows_too = ["--modules_to_save", "embed_tokens,lm_head"];
    run(trainer(&place, "plain", &LORA).args(of_old)).ok();
    run(trainer(&place, "rows", &LORA).args(of_old).args(rows_too)).ok();
    let peft = |dir: &str| place.path(dir).display().to_string();
    let on = |output: &str, adapter: &str, more: &[&str]| {
        let flags =
            ["--peft_path", &peft(adapter), "--max_steps", "1", "--learning_rate", "0", "--save_strategy", "no"];
        run(trainer(&place, output, &LORA).args(flags).args(more))
    };
    // The adapter's settings count: without rows of its own, new ones would never be trained.
    on("no", "plain", &rows_too).fails(2, &["--modules_to_save", "trainer merge", "--train_new_rows_only"]);
    on("new-rows", "plain", &["--train_new_rows_only"]).ok();
    let adapter = tensors(&place, "new-rows/adapter_model.safetensors");
    assert_eq!(adapter["base_model.model.lm_head.token_adapter.trainable_tokens_delta"].dims(), [NEW, 32]);
    // Its trained rows are what the new ones are made of.
    on("more-rows", "rows", &[]).ok();
    let (before, after) =
        (tensors(&place, "rows/adapter_model.safetensors"), tensors(&place, "more-rows/adapter_model.safetensors"));
    let name = format!("base_model.model.{EMBEDDING}");
    let (before, after) = (rows(&before[&name]), rows(&after[&name]));
    assert_eq!(after[..OLD], before[..]);
    assert_eq!(after[OLD + 7], mean_of_pieces(&place, &before, OLD as u32 + 7));
}

#[test]
fn only_new_rows_are_trained_if_that_is_asked_for() {
    for tie in [false, true] {
        let place = prepared(|config| config["tie_word_embeddings"] = json!(tie));
        let flags = ["--use_peft", "false", "--train_new_rows_only", "--max_steps", "4", "--save_steps", "2"];
        // An optimizer whose state is in our own file.
        let flags = [&flags[..], &["--optim", "adamw_hf"]].concat();
        run(&mut trainer(&place, "whole", &flags)).ok();
        let (before, after) = (tensors(&place, "base/model.safetensors"), tensors(&place, "whole/model.safetensors"));
        for (name, before) in &before {
            let (width, flat) = (32, |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let (before, after) = (flat(before), flat(&after[name]));
            assert_eq!(after[..before.len()], before[..], "{name} changed");
            if after.len() > before.len() {
                let old: Vec<Vec<f32>> = before.chunks(width).map(<[f32]>::to_vec).collect();
                let moved = |id: usize| after[id * width..][..width] != mean_of_pieces(&place, &old, id as u32)[..];
                assert!((OLD..OLD + NEW).all(moved), "{name}: a new row was not trained");
            }
        }
        let state = tensors(&place, "whole/checkpoint-4/trainer/optimizer.safetensors");
        assert!(state.values().all(|tensor| tensor.dims() == [NEW, 32]));
        assert_eq!(state.len(), if tie { 2 } else { 4 });
        let from = place.path("whole/checkpoint-2");
        run(trainer(&place, "resumed", &flags).args(["--resume_from_checkpoint", from.to_str().unwrap()])).ok();
        for file in ["model.safetensors", "trainer/optimizer.safetensors"] {
            let last = |output: &str| digest(&place.path(&format!("{output}/checkpoint-4")))[Path::new(file)].clone();
            assert_eq!(last("resumed"), last("whole"), "{file}");
        }
    }
}

#[test]
fn what_would_not_work_is_refused_before_weights_are_read() {
    let place = prepared(|_| {});
    // There is nothing to load: whoever gets as far fails otherwise.
    std::fs::remove_file(place.path("base/model.safetensors")).unwrap();
    let path = |name: &str| place.path(name).display().to_string();
    let (old, base) = (path("old"), path("base"));
    let refused = |more: &[&str], parts: &[&str]| run(&mut trainer(&place, "no", more)).fails(2, parts);
    let both = ["--modules_to_save", "40 tokens", "--modules_to_save embed_tokens,lm_head", "--train_new_rows_only"];
    refused(&LORA, &both);
    refused(&[&LORA[..], &["--modules_to_save", "embeddings"]].concat(), &["the head would not", both[2]]);
    refused(&[&LORA[..], &["--modules_to_save", "lm_head"]].concat(), &["the embedding would not", both[2]]);
    let clash = ["--modules_to_save", "lm_head", "--train_new_rows_only"];
    refused(&[&LORA[..], &clash].concat(), &["--train_new_rows_only", "--modules_to_save", "one of both"]);
    refused(&["--use_peft", "false", "--train_new_rows_only", "--dataset_dir", &old], &["there are no new rows"]);
    refused(&["--use_peft", "false", "--pad_to_multiple_of", "0"], &["--pad_to_multiple_of", "cannot be 0"]);
    // Without the model's own tokenizer there are no old pieces; with the extended one in its place neither.
    std::fs::rename(place.path("base/tokenizer.json"), place.path("own.json")).unwrap();
    let remedy = ["--new_token_init", "mean_resizing", "--tokenizer_name_or_path"];
    refused(&["--use_peft", "false"], &remedy);
    std::fs::copy(place.path("tokenizer/tokenizer.json"), place.path("base/tokenizer.json")).unwrap();
    refused(&["--use_peft", "false"], &remedy);
    // Another tokenizer is no extension: its ids stand for other tokens.
    std::fs::copy(data("tokenizers/pieces/tokenizer.json"), place.path("base/tokenizer.json")).unwrap();
    let mut other = serde_json::from_slice::<Value>(&std::fs::read(place.path("own.json")).unwrap()).unwrap();
    let vocab = other["model"]["vocab"].as_object_mut().unwrap();
    let (x, y) = (vocab["x"].clone(), vocab["y"].clone());
    (vocab["x"], vocab["y"]) = (y, x);
    place.write("base/tokenizer.json", other.to_string());
    refused(&["--use_peft", "false"], &["no extension", "\"x\"", "tokenizer extend"]);
    // Random weights have the rows that the configuration says.
    let config = path("config");
    let mut scratch = place.train("data", "no", &["--init_from_config", &config]);
    run(&mut scratch).fails(2, &["largest id is 639", "vocab_size", "640"]);
    for more in [["--train_new_rows_only", "true"], ["--pad_to_multiple_of", "8"]] {
        run(&mut place.train("data", "no", &more)).fails(2, &[more[0], "--init_from_config"]);
    }
    assert!(!place.path("no").exists() && Path::new(&base).exists());
}
