//! Live against `prepare`, which is the oracle.

mod sharing;

use std::path::PathBuf;

use tokenmill_shared::config::{HubArguments, Remainder};
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_shared::storage;

use super::*;
use crate::job::{Output, Tuning};
use crate::prepare;

/// A directory of text and a cache.
struct Corpus(tempfile::TempDir);

impl Corpus {
    fn new(files: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join("text").join(name);
            storage::create_dir_all(path.parent().unwrap()).unwrap();
            storage::replace(&path, text.as_bytes()).unwrap();
        }
        Self(dir)
    }

    /// Two files that are cut, small ones in groups, empty documents, an empty file.
    fn mixed() -> Self {
        let text = |lines: usize, word: &str| {
            let line =
                |at: usize| if at % 7 == 3 { "\n".to_owned() } else { format!("{word} {at} ground {}\n", at * at) };
            (0..lines).map(line).collect::<String>()
        };
        let records =
            |count: usize| (0..count).map(|at| format!("{{\"text\": \"record {at}\"}}\n")).collect::<String>();
        let small = (0..40).map(|at| (format!("small/{at:02}.txt"), text(at % 9, "flour")));
        let mut files = vec![
            ("a.txt".to_owned(), text(200, "mill")),
            ("b.jsonl".to_owned(), records(150)),
            ("c.txt".to_owned(), String::new()),
            ("z.txt".to_owned(), text(31, "end")),
        ];
        files.extend(small);
        Self::new(&files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect::<Vec<_>>())
    }

    fn options(&self, change: impl FnOnce(&mut DataArguments, &mut Tuning)) -> PrepareOptions {
        let mut data = DataArguments {
            train_file_dir: Some(self.0.path().join("text")),
            cache_dir: Some(self.0.path().join("cache")),
            validation_split_percentage: 0.0,
            keep_linebreaks: false,
            append_eos: false,
            block_size: Some(64),
            ..DataArguments::default()
        };
        let mut tuning = Tuning { partition_bytes: 2000, ..Tuning::default() };
        change(&mut data, &mut tuning);
        PrepareOptions {
            data,
            hub: HubArguments::default(),
            tokenizer: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tokenizers/bytes")),
            model: None,
            output: Output::Cache,
            tuning,
        }
    }

    fn remove_cache(&self) {
        storage::remove_dir_all(&self.0.path().join("cache")).unwrap();
    }
}

fn open(options: &PrepareOptions) -> Live {
    Live::open(options, true).unwrap()
}

fn all(live: &Live, from: Position) -> Vec<Block> {
    live.blocks(from).unwrap().collect::<Result<_>>().unwrap()
}

/// The blocks of the dataset that `prepare` makes: ids, tokens, where documents begin, and how many did before.
fn prepared(options: &PrepareOptions) -> Vec<(Vec<u32>, usize, Vec<u32>, u64)> {
    let dataset = Dataset::open(&prepare(options).unwrap().dataset_dir).unwrap();
    let reader = dataset.split(Split::Train).unwrap().unwrap();
    let mut before = 0;
    let block = |index| {
        let mut ids = Vec::new();
        reader.read_block(index, &mut ids).unwrap();
        let starts = reader.document_starts(index).unwrap();
        before += starts.len() as u64;
        (ids, reader.valid_tokens(index).unwrap(), starts.clone(), before - starts.len() as u64)
    };
    (0..reader.len()).map(block).collect()
}

fn parts(blocks: &[Block]) -> Vec<(Vec<u32>, usize, Vec<u32>, u64)> {
    let part =
        |block: &Block| (block.ids.clone(), block.valid_tokens, block.document_starts.clone(), block.documents_before);
    blocks.iter().map(part).collect()
}

#[test]
fn the_blocks_are_those_that_prepare_makes() {
    let corpus = Corpus::mixed();
    // Scans of files that changed in the last two seconds are not remembered.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    for (block_size, remainder, partition_bytes, append_eos) in [
        (64, Remainder::Drop, 2000, false),
        (64, Remainder::Pad, 2000, true),
        (7, Remainder::Drop, 1, true),
        (1000, Remainder::Pad, 1 << 20, false),
        (1 << 20, Remainder::Drop, 2000, true),
    ] {
        let options = corpus.options(|data, tuning| {
            (data.block_size, data.remainder, data.append_eos) = (Some(block_size), remainder, append_eos);
            tuning.partition_bytes = partition_bytes;
        });
        corpus.remove_cache();
        let cold = all(&open(&options), Position::default());
        let expected = prepared(&options);
        assert_eq!(parts(&cold), expected, "{block_size} {remainder:?} {partition_bytes}");
        let live = open(&options);
        assert_eq!(live.known_blocks().unwrap(), Some(expected.len() as u64));
        assert_eq!(all(&live, Position::default()), cold);
        assert_eq!(live.made().tokenized_bytes.load(Ordering::Relaxed), 0, "all of it was in the store");
    }
}

#[test]
fn going_on_from_any_position_makes_the_same_blocks_and_one_partition_at_most() {
    let corpus = Corpus::mixed();
    for remainder in [Remainder::Drop, Remainder::Pad] {
        let options = corpus.options(|data, _| data.remainder = remainder);
        let unkept = || Live::open(&options, false).unwrap();
        let blocks = all(&unkept(), Position::default());
        assert!(blocks.len() > 80, "{}", blocks.len());
        for (done, block) in blocks.iter().enumerate() {
            // As a checkpoint keeps it.
            let saved = serde_json::to_string(&block.next).unwrap();
            let live = unkept();
            let mut rest = live.blocks(serde_json::from_str(&saved).unwrap()).unwrap();
            let next = rest.next().transpose().unwrap();
            assert_eq!(next.as_ref(), blocks.get(done + 1), "after block {done}");
            // What is read again begins in the partition of the next block, of 2000 bytes and a line.
            let again = block.next.block * 64 - block.next.tokens;
            assert!(again < 2300, "{again} tokens come again");
            if done % 29 == 0 {
                assert_eq!(all(&live, block.next.clone()), blocks[done + 1..]);
            }
        }
    }
    assert_eq!(open(&corpus.options(|_, _| {})).known_blocks().unwrap(), None, "nothing was kept");
}

#[test]
fn nothing_is_read_before_it_is_needed() {
    let good = |at: usize| (format!("{at:04}.txt"), "the mill grinds\n".repeat(10));
    let files: Vec<(String, String)> = (0..2000).map(good).collect();
    let corpus = Corpus::new(&files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect::<Vec<_>>());
    // What is in flight is far more than this corpus, so only the listing's order can keep it from being read.
    let bad = corpus.0.path().join("text/0900.txt");
    storage::replace(&bad, b"good\n\xff\n").unwrap();
    let live = open(&corpus.options(|_, _| {}));
    assert_eq!(live.made().scanned_files.load(Ordering::Relaxed), 0, "listing reads no file");
    let mut blocks = live.blocks(Position::default()).unwrap();
    let (mut documents, mut error) = (0, None);
    for block in blocks.by_ref() {
        match block {
            Ok(block) => documents = block.documents_before,
            Err(found) => error = Some(found.to_string()),
        }
    }
    let error = error.expect("a bad file");
    assert!(error.contains("0900.txt:2") && error.contains("byte 5") && error.contains("UTF-8"), "{error}");
    assert!(blocks.next().is_none(), "nothing comes after an error");
    // All before its partition came first; nothing after it was looked at.
    assert!((8800..9000).contains(&documents), "{documents} documents of 10 in each file");
    assert_eq!(live.made().scanned_files.load(Ordering::Relaxed), 901);
    drop(blocks);
    let live = open(&corpus.options(|_, _| {}));
    let first: Vec<Block> = live.blocks(Position::default()).unwrap().take(3).collect::<Result<_>>().unwrap();
    assert_eq!(first.len(), 3);
}

/// The channels are bounded by ids and text; a text beyond both is not read to its end unless its blocks are taken.
#[test]
fn reading_waits_for_the_one_who_takes() {
    let line = "the mill grinds the words and the words are ground again and again, as fine as flour\n";
    let file = |at: usize| (format!("{at:03}.txt"), line.repeat(12_000));
    let files: Vec<(String, String)> = (0..90).map(file).collect();
    let corpus = Corpus::new(&files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect::<Vec<_>>());
    let options = corpus.options(|data, tuning| (data.block_size, tuning.partition_bytes) = (Some(4096), 1 << 20));
    let live = open(&options);
    let mut blocks = live.blocks(Position::default()).unwrap();
    blocks.next().unwrap().unwrap();
    let scanned = || live.made().scanned_files.load(Ordering::Relaxed);
    let mut before = 0;
    // Until it stands still.
    while scanned() != before || before == 0 {
        before = scanned();
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    assert!(before < 80, "{before} files of 1 MB were read for one block");
    drop(blocks);
}

#[test]
fn a_panic_is_an_error_and_no_hang() {
    let corpus = Corpus::mixed();
    let live = open(&corpus.options(|_, _| {}));
    let found = Finder {
        setup: Arc::clone(&live.setup),
        inputs: Arc::clone(&live.inputs),
        memory: Arc::clone(&live.memory),
        made: Arc::clone(&live.made),
        from: (0, Start::default()),
        state: Default::default(),
    };
    let mut partitions = found.partitions();
    let mut left = 3;
    let partitions = std::iter::from_fn(move || {
        assert!(left > 0, "the third partition fails");
        left -= 1;
        partitions.next()
    });
    let mut blocks = live.blocks_of(Box::new(partitions), Position::default()).unwrap();
    let error = blocks.find_map(Result::err).expect("not a shorter text").to_string();
    let cause = blocks.next();
    assert!(error.contains("cannot go on reading") && cause.is_none(), "{error}");
}

#[test]
fn a_position_of_another_text_is_refused() {
    let corpus = Corpus::mixed();
    let options = corpus.options(|_, _| {});
    let blocks = all(&open(&options), Position::default());
    let path = corpus.0.path().join("text/a.txt");
    let text = String::from_utf8(storage::read(&path).unwrap()).unwrap();
    // As long as before, so that only its partitions tell.
    storage::replace(&path, text.replace("mill", "mall").as_bytes()).unwrap();
    let live = open(&options);
    let error = live.blocks(blocks[3].next.clone()).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("--resume_from_checkpoint"), "{error}");
    storage::replace(&path, format!("{text}more\n").as_bytes()).unwrap();
    assert_ne!(open(&options).fingerprint(), live.fingerprint());
}

#[test]
fn what_is_set_aside_needs_no_number_of_documents() {
    let corpus = Corpus::mixed();
    let set_aside = |change: &dyn Fn(&mut DataArguments)| {
        Live::open(
            &corpus.options(|data, _| {
                data.validation_split_percentage = 1.0;
                change(data);
            }),
            true,
        )
        .map(|live| live.set_aside())
    };
    assert_eq!(set_aside(&|_| {}).unwrap(), 256);
    assert_eq!(set_aside(&|data| data.max_eval_samples = Some(5)).unwrap(), 5);
    assert_eq!(set_aside(&|data| data.validation_split_percentage = 0.0).unwrap(), 0);
    assert_eq!(set_aside(&|data| data.validation_file_dir = vec!["v".into()]).unwrap(), 0);
    let error = set_aside(&|data| data.validation_split_percentage = 5.0).unwrap_err().to_string();
    assert!(error.contains("--max_eval_samples") && error.contains("--validation_file_dir"), "{error}");
    assert!(set_aside(&|data| data.validation_split_mode = ValidationSplitMode::Hash).is_err());
}

#[test]
fn documents_in_parts_make_the_same_blocks_from_every_position() {
    let long = |seed: usize| (0..60).map(|at| format!("word {} of it ", at * seed)).collect::<String>();
    let corpus = Corpus::new(&[("a.txt", format!("short\n{}\n\n{}\n", long(7), long(9))), ("b.txt", long(11))]);
    let whole = all(&open(&corpus.options(|_, _| {})), Position::default());
    corpus.remove_cache();
    let live = open(&corpus.options(|_, tuning| tuning.part_bytes = 40));
    let same = |blocks: &[Block], expected: &[Block]| {
        let of = |blocks: &[Block]| -> Vec<_> {
            let facts = |block: &Block| (block.ids.clone(), block.document_starts.clone(), block.documents_before);
            blocks.iter().map(facts).collect()
        };
        assert_eq!(of(blocks), of(expected));
    };
    let parts = all(&live, Position::default());
    same(&parts, &whole);
    for (number, block) in parts.iter().enumerate() {
        same(&all(&live, block.next.clone()), &whole[number + 1..]);
    }
}
