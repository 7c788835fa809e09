//! Datasets, tokenizers and checkpoints that nobody made: good ones changed at random are refused or are what they were, and nothing
//! panics or waits for ever. Records and compressed streams are fuzzed beside their readers.

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::mutate::Mutator;
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, data, lines, run};
use tokenmill_trainer::model::Model;

/// The ids of a block, and where documents begin in it.
type IdsAndStarts = (Vec<u32>, Vec<u32>);

/// All ids of a dataset's training split, with the beginnings of documents; the exit code of what is refused.
fn blocks(dir: &Path) -> Result<Vec<IdsAndStarts>, u8> {
    let read = || {
        let Some(split) = Dataset::open(dir)?.split(Split::Train)? else { return Ok(Vec::new()) };
        let block = |index| {
            let mut ids = Vec::new();
            split.read_block(index, &mut ids)?;
            Ok((ids, split.document_starts(index)?))
        };
        (0..split.len()).map(block).collect::<Result<Vec<_>, tokenmill_shared::Error>>()
    };
    read().map_err(|error| error.exit_code())
}

/// Gives a manifest the checksum of its other bytes, so that what lies behind that check is met too.
fn seal(manifest: &mut [u8]) {
    let Some(at) = manifest.windows(11).rposition(|window| window == b"\"blake3\": \"") else { return };
    let (begin, end) = (at + 11, at + 11 + 64);
    if manifest.len() < end {
        return;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&manifest[..begin]).update(&manifest[end..]);
    manifest[begin..end].copy_from_slice(hasher.finalize().to_hex().as_bytes());
}

#[test]
fn a_changed_dataset_is_refused_or_what_it_was() {
    let place = Place::new();
    place.write("text/a.txt", lines(12, 1));
    run(&mut place.prepare("data", &[])).ok();
    let dir = place.path("data");
    let good = blocks(&dir).unwrap();
    assert!(good.len() > 3);
    for (name, file, sealed) in [
        ("manifests, changed", "manifest.json", false),
        ("manifests with a right checksum, changed", "manifest.json", true),
        ("indexes, changed", "index.arrow", false),
        ("shards of blocks, changed", "train/data-00000.arrow", false),
        ("shards of documents, changed", "train/documents-00000.arrow", false),
    ] {
        let ledger = Run::of(name, 600, 300_000);
        let mut mutator = Mutator::new(ledger.seed);
        let path = dir.join(file);
        let bytes = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for _ in 0..ledger.size {
            let mut changed = mutator.change(&bytes);
            if sealed {
                seal(&mut changed);
            }
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &changed).unwrap();
            match catch_unwind(|| blocks(&dir)).expect("it does not panic") {
                Ok(found) if changed == bytes || !sealed => assert_eq!(found, good, "{file} {changed:?}"),
                // A manifest may say other things of the same blocks, such as who wrote them.
                Ok(found) => assert!(found == good || found.is_empty(), "{file} {}", String::from_utf8_lossy(&changed)),
                Err(code) => {
                    assert!(code == 3 || code == 2, "{file}: exit code {code}");
                    refused += 1;
                }
            }
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert!(refused > ledger.size / 2, "{name}: {refused}");
        ledger.passed();
    }
    assert_eq!(blocks(&dir).unwrap(), good);
}

/// A load that takes longer than this hangs: that of the good one takes some milliseconds, where nothing else has the machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn a_changed_tokenizer_is_refused_or_tokenizes() {
    let place = Place::new();
    for (what, name) in [("tokenizers of bytes, changed", "bytes"), ("tokenizers of pieces, changed", "pieces")] {
        let ledger = Run::of(what, 60, 30_000);
        let mut mutator = Mutator::new(ledger.seed);
        let bytes = std::fs::read(data("tokenizers").join(name).join("tokenizer.json")).unwrap();
        let config = std::fs::read(data("tokenizers").join(name).join("tokenizer_config.json")).unwrap();
        // Of a vocabulary nearly all is alike: changes fall before and behind it as often as into it.
        let vocabulary = bytes.windows(8).position(|window| window == b"\"vocab\":").unwrap();
        let (mut loaded, mut refused) = (0, 0);
        for turn in 0..ledger.size {
            let head = mutator.change(&bytes[..vocabulary]);
            let changed = match turn % 3 {
                0 => [&head, &bytes[vocabulary..]].concat(),
                1 => [&bytes[..vocabulary], &mutator.change(&bytes[vocabulary..])].concat(),
                _ => bytes.clone(),
            };
            place.write("tokenizer/tokenizer.json", changed);
            let config = if turn % 3 == 2 { mutator.change(&config) } else { config.clone() };
            place.write("tokenizer/tokenizer_config.json", config);
            let began = Instant::now();
            match Tokenizer::load(&place.path("tokenizer")) {
                Ok(tokenizer) => {
                    let mut ids = Vec::new();
                    let _ = tokenizer.encode("the mill, 磨坊 \u{1F600}\n<|endoftext|></s>", true, &mut ids);
                    loaded += 1;
                }
                Err(error) => {
                    assert!([2, 3].contains(&error.exit_code()), "{error}");
                    refused += 1;
                }
            }
            assert!(began.elapsed() < PATIENCE, "{name}, turn {turn}");
        }
        assert!(loaded > 0 && refused > 0, "{name}: {loaded} loaded, {refused} refused");
        ledger.passed();
    }
}

#[test]
fn a_changed_checkpoint_is_refused_or_loads() {
    let place = Place::new();
    place.write("text/a.txt", lines(20, 2));
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "model", &["--max_steps", "1", "--save_strategy", "no"])).ok();
    let good = place.path("model");
    let files = ["config.json", "model.safetensors"].map(|name| (name, std::fs::read(good.join(name)).unwrap()));
    for ((name, bytes), what) in files.iter().zip(["configurations of models, changed", "headers of weights, changed"])
    {
        let ledger = Run::of(what, 300, 150_000);
        let mut mutator = Mutator::new(ledger.seed);
        // Of weights the header says what is where; a changed weight is another weight.
        let header = if *name == "config.json" {
            bytes.len()
        } else {
            8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
        };
        let (mut loaded, mut refused) = (0, 0);
        for (name, bytes) in &files {
            place.write(&format!("changed/{name}"), bytes);
        }
        for _ in 0..ledger.size {
            let changed = [&mutator.change(&bytes[..header]), &bytes[header..]].concat();
            place.write(&format!("changed/{name}"), changed);
            let began = Instant::now();
            match catch_unwind(|| Model::load(&place.path("changed"))).expect("it does not panic") {
                Ok(_) => loaded += 1,
                Err(error) => {
                    assert!([2, 3].contains(&error.exit_code()), "{error}");
                    refused += 1;
                }
            }
            assert!(began.elapsed() < PATIENCE, "{name}");
        }
        assert!(loaded > 0 && refused > ledger.size / 4, "{name}: {loaded} loaded, {refused} refused");
        ledger.passed();
    }
}
