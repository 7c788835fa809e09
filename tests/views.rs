//! A dataset read in blocks of another size is the dataset of that size.

use std::path::Path;

use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Place, digest, lines, run};

/// Ids, tokens among them, and where documents begin, of every block.
fn blocks(reader: &dyn BlockReader) -> Vec<(Vec<u32>, usize, Vec<u32>)> {
    let block = |index| {
        let mut ids = Vec::new();
        reader.read_block(index, &mut ids).unwrap();
        (ids, reader.valid_tokens(index).unwrap(), reader.document_starts(index).unwrap())
    };
    (0..reader.len()).map(block).collect()
}

#[test]
fn another_block_size_is_what_prepare_would_make() {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 3));
    place.write("text/b.jsonl", "{\"text\": \"\"}\n{\"text\": \"the river's mill\"}\n".repeat(9));
    let sizes = [2usize, 3, 7, 16, 17, 64, 100, 100_000];
    for remainder in ["pad", "drop"] {
        let name = |size: usize| format!("{remainder}-{size}");
        let mut prepared = Vec::new();
        for size in sizes {
            let flags = ["--block_size", &size.to_string(), "--remainder", remainder, "--append_eos", "false"];
            run(&mut place.prepare(&name(size), &flags)).ok();
            prepared.push(Dataset::open(&place.path(&name(size))).unwrap());
        }
        for from in &prepared {
            for (to, size) in prepared.iter().zip(sizes) {
                let own = from.manifest().block_size;
                let view = blocks(from.recut(Split::Train, size).unwrap().unwrap().as_ref());
                let oracle = blocks(&to.split(Split::Train).unwrap().unwrap());
                // A remainder that was dropped is not there to be cut.
                let dropped = from.manifest().splits[&Split::Train].ledger.remainder as usize;
                assert!(dropped == 0 || remainder == "drop");
                let missing = if dropped == 0 { 0 } else { dropped.div_ceil(size) };
                assert!(view.len() + missing >= oracle.len(), "{remainder} {own} to {size}");
                let ended = view.last().is_some_and(|(_, valid, _)| *valid < size) && dropped > 0;
                let same = view.len() - usize::from(ended);
                assert_eq!(view[..same], oracle[..same], "{remainder} {own} to {size}");
                assert!(same > 0 || ended, "{remainder} {own} to {size}");
            }
        }
    }
}

#[test]
fn training_in_another_block_size_gives_the_bits_of_its_dataset() {
    let place = Place::new();
    place.write("text/a.txt", lines(40, 3));
    run(&mut place.prepare("large", &["--remainder", "pad", "--block_size", "64"])).ok();
    run(&mut place.prepare("small", &["--remainder", "pad", "--block_size", "24"])).ok();
    let flags = ["--max_steps", "30", "--save_steps", "20"];
    let of = |output: &str| digest(&place.path(output))[Path::new("model.safetensors")].clone();
    run(&mut place.train("small", "own", &flags)).ok();
    run(&mut place.train("large", "view", &[&flags[..], &["--block_size", "24"]].concat())).ok();
    assert_eq!(of("view"), of("own"));
    run(&mut place.train("large", "unasked", &flags)).ok();
    assert_ne!(of("unasked"), of("own"), "without --block_size a dataset keeps its own");
    let resume = ["--resume_from_checkpoint", "true", "--overwrite_output_dir", "false"];
    std::fs::remove_dir_all(place.path("view/checkpoint-30")).unwrap();
    run(&mut place.train("large", "view", &[&flags[..], &resume, &["--block_size", "24"]].concat())).ok();
    assert_eq!(of("view"), of("own"));
    run(&mut place.train("large", "view", &[&flags[..], &resume, &["--block_size", "32"]].concat()))
        .fails(2, &["--resume_from_checkpoint", "dataset"]);
}
