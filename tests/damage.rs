//! A damaged dataset is named by `verify` and never trained on.

use std::path::PathBuf;
use std::process::Command;

use tokenmill_tests::{Place, binaries, digest, lines, overwrite, run};

fn verify(place: &Place) -> tokenmill_tests::Ended {
    run(Command::new(&binaries().preprocess).arg("verify").arg(place.path("data")))
}

#[test]
fn flipped_bits_and_truncation_in_any_file_are_named_and_nothing_is_trained() {
    let place = Place::new();
    place.write("text/a.txt", lines(60, 1));
    run(&mut place.prepare("data", &["--validation_split_percentage", "10"])).ok();
    verify(&place).ok();
    let files: Vec<PathBuf> = digest(&place.path("data")).into_keys().collect();
    for file in files {
        let path = place.path("data").join(&file);
        let good = std::fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let damaged = [flipped(good.len() - 1), flipped(good.len() / 2), good[..good.len() / 2].to_vec()];
        for (kind, bytes) in damaged.into_iter().enumerate() {
            overwrite(&path, bytes);
            let name = file.to_str().unwrap();
            verify(&place).fails(3, &[name]);
            let ids = name == "manifest.json" || name == "index.arrow" || name.starts_with("train/data-");
            if ids {
                let ended = run(&mut place.train(
                    "data",
                    "run",
                    &["--num_train_epochs", "1", "--train_sampling_strategy", "sequential"],
                ));
                // The last byte of a shard belongs to Arrow's end mark: no id, so nothing that training reads.
                if kind == 0 && name.starts_with("train/data-") {
                    ended.ok();
                } else {
                    ended.fails(3, &[name]);
                    assert!(!place.path("run/model.safetensors").exists());
                }
                let _ = std::fs::remove_dir_all(place.path("run"));
            }
        }
        overwrite(&path, good);
    }
    verify(&place).ok();
}

#[test]
fn shards_under_each_others_names_and_foreign_shards_are_refused() {
    let (place, other) = (Place::new(), Place::new());
    place.write("text/a.txt", lines(60, 1));
    other.write("text/a.txt", lines(60, 2));
    run(&mut place.prepare("data", &["--validation_split_percentage", "50"])).ok();
    run(&mut other.prepare("data", &["--validation_split_percentage", "50"])).ok();
    let train = place.path("data/train/data-00000.arrow");
    let good = std::fs::read(&train).unwrap();
    for foreign in [place.path("data/validation/data-00000.arrow"), other.path("data/train/data-00000.arrow")] {
        overwrite(&train, std::fs::read(foreign).unwrap());
        verify(&place).fails(3, &["train/data-00000.arrow"]);
        run(&mut place.train("data", "run", &["--max_steps", "1"])).fails(3, &["train/data-00000.arrow"]);
    }
    overwrite(&train, good);
    verify(&place).ok();
}
