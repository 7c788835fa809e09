//! Prepared data is a pure function of input bytes, tokenizer and settings: the same bytes for any number
//! of workers, any read size, any partition size, any order of files on disk, any time and place.

use tokenmill_preprocess::{Output, PrepareOptions, Tuning, prepare};
use tokenmill_shared::config::{DataArguments, HubArguments, SampleBy, ValidationSplitMode};
use tokenmill_tests::mutate::Mutator;
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, data, digest, lines};

/// How a job is run, which must not show in its output.
#[derive(Debug, Clone)]
struct Way {
    workers: usize,
    read_bytes: usize,
    partition_bytes: u64,
    /// Files are written to disk in another order.
    reversed: bool,
    token_cache: bool,
}

fn write_corpus(place: &Place, reversed: bool) {
    let mut files: Vec<(String, Vec<u8>)> =
        (0..6).map(|file| (format!("text/{file}/a.txt"), lines(30 * file, file as u64).into_bytes())).collect();
    let records: String =
        lines(50, 9).lines().map(|line| serde_json::json!({"id": 1, "text": line}).to_string() + "\n").collect();
    files.push(("text/records.jsonl".to_owned(), records.clone().into_bytes()));
    files.push(("text/records.jsonl.zst".to_owned(), zstd::encode_all(records.as_bytes(), 3).unwrap()));
    files.push(("text/crlf.txt".to_owned(), lines(40, 3).replace('\n', "\r\n").into_bytes()));
    if reversed {
        files.reverse();
    }
    for (name, content) in files {
        place.write(&name, content);
    }
}

fn output_of(way: &Way, settings: &DataArguments) -> std::collections::BTreeMap<std::path::PathBuf, String> {
    let place = Place::new();
    write_corpus(&place, way.reversed);
    let options = PrepareOptions {
        data: DataArguments {
            train_file_dir: Some(place.path("text")),
            cache_dir: Some(place.path("cache")),
            token_cache: way.token_cache,
            preprocessing_num_workers: Some(way.workers),
            block_size: Some(16),
            ..settings.clone()
        },
        hub: HubArguments::default(),
        tokenizer: data("tokenizers/bytes"),
        model: None,
        output: Output::Directory(place.path("out")),
        tuning: Tuning { partition_bytes: way.partition_bytes, read_bytes: way.read_bytes, ..Tuning::default() },
    };
    let prepared = prepare(&options).unwrap();
    assert!(prepared.manifest.splits.values().all(|split| split.ledger.balances()));
    digest(&place.path("out"))
}

fn settings() -> Vec<DataArguments> {
    let base = DataArguments { validation_split_percentage: 10.0, ..DataArguments::default() };
    vec![
        base.clone(),
        DataArguments { sample_by: SampleBy::Paragraph, max_train_samples: Some(20), ..base.clone() },
        DataArguments {
            sample_by: SampleBy::Document,
            validation_split_mode: ValidationSplitMode::Hash,
            validation_split_percentage: 40.0,
            ..base
        },
    ]
}

#[test]
fn the_way_it_is_run_never_shows() {
    let ledger = Run::of("ways to run prepare", 24, 10_000);
    let mut draw = Mutator::new(ledger.seed);
    let reference =
        Way { workers: 1, read_bytes: 1 << 20, partition_bytes: 64 << 20, reversed: false, token_cache: true };
    let jobs: Vec<_> = settings().into_iter().map(|settings| (output_of(&reference, &settings), settings)).collect();
    for _ in 0..ledger.size {
        let way = Way {
            workers: *draw.choose(&[1, 2, 3, 8, 16]),
            read_bytes: *draw.choose(&[1, 7, 4096, 1 << 20]),
            partition_bytes: *draw.choose(&[1, 2000, 64 << 20]),
            reversed: *draw.choose(&[true, false]),
            token_cache: *draw.choose(&[true, false]),
        };
        let (expected, settings) = draw.choose(&jobs);
        assert_eq!(output_of(&way, settings), *expected, "{way:?}");
    }
    ledger.passed();
}

/// All of the combinations, once.
#[test]
fn every_combination_of_workers_reads_and_partitions_gives_one_output() {
    let settings = &settings()[0];
    let mut outputs = Vec::new();
    for workers in [1, 2, 3, 8] {
        for read_bytes in [1, 1 << 10, 1 << 20] {
            for partition_bytes in [500, 10_000, 64 << 20] {
                let way = Way { workers, read_bytes, partition_bytes, reversed: workers % 2 == 0, token_cache: true };
                outputs.push(output_of(&way, settings));
            }
        }
    }
    assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
}
