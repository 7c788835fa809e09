//! Documents that are read in parts: tokens, blocks and borders of documents are those of the documents read whole,
//! memory is that of a part.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokenmill_preprocess::{Output, PrepareOptions, Prepared, Tuning, prepare};
use tokenmill_shared::config::{DataArguments, EncodingErrors, HubArguments, OnBadRecord, SampleBy};
use tokenmill_tests::{Place, binaries, data, digest, lines, root};

/// All in one part.
const WHOLE: usize = 1 << 30;

/// How text is read: bytes after which a document may be cut, and bytes that are read at a time.
type Way = (usize, usize);

fn prepared(
    place: &Place,
    output: &str,
    (part_bytes, read_bytes): Way,
    tokenizer: &str,
    settings: &DataArguments,
) -> Prepared {
    let options = PrepareOptions {
        data: DataArguments {
            train_file_dir: Some(place.path("text")),
            cache_dir: Some(place.path("cache")),
            validation_split_percentage: 0.0,
            block_size: Some(16),
            ..settings.clone()
        },
        hub: HubArguments::default(),
        tokenizer: data("tokenizers").join(tokenizer),
        model: None,
        output: Output::Directory(place.path(output)),
        tuning: Tuning { part_bytes, read_bytes, ..Tuning::default() },
    };
    let prepared = prepare(&options).unwrap();
    assert!(prepared.manifest.splits.values().all(|split| split.ledger.balances()));
    prepared
}

/// Shards, borders of documents and index; the manifest has another fingerprint.
fn blocks(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = digest(dir);
    files.remove(Path::new("manifest.json")).expect("a dataset");
    files
}

fn write_texts(place: &Place) {
    let long = |count, seed| lines(count, seed).replace('\n', " ");
    place.write("text/a.txt", format!("short\n{}\n\n{}\nshort again", long(60, 1), long(40, 2)));
    place.write("text/b.txt", lines(80, 3).replace('\n', "\r\n"));
    place.write("text/c.txt.zst", zstd::encode_all(format!("磨坊，{}", long(50, 4)).as_bytes(), 1).unwrap());
    place.write("text/d.jsonl", json!({"text": long(30, 5)}).to_string());
}

#[test]
fn blocks_do_not_show_in_what_parts_documents_were_read() {
    let place = Place::new();
    write_texts(&place);
    for sample_by in [SampleBy::Line, SampleBy::Paragraph, SampleBy::Document] {
        for keep_linebreaks in [true, false] {
            let base = DataArguments { sample_by, keep_linebreaks, ..DataArguments::default() };
            for tokenizer in ["bytes", "pieces"] {
                let of = |name: &str, way: Way, settings: &DataArguments| {
                    let output = format!("{tokenizer}-{sample_by:?}-{keep_linebreaks}-{name}");
                    let made = prepared(&place, &output, way, tokenizer, settings);
                    (blocks(&place.path(&output)), made)
                };
                let (whole, of_whole) = of("whole", (WHOLE, 1 << 20), &base);
                for way in [(1, 1 << 20), (17, 1), (100, 7), (1000, 1 << 20)] {
                    let (parts, made) = of(&way.0.to_string(), way, &base);
                    assert_eq!(parts, whole, "{sample_by:?} {keep_linebreaks} {tokenizer} {way:?}");
                    // Hashes of documents are of their parts: there were some.
                    let (made, of_whole) = (made.manifest, &of_whole.manifest);
                    assert!(way.0 > 100 || made.head.fingerprint != of_whole.head.fingerprint, "{way:?}");
                    for (split, found) in &made.splits {
                        let expected = &of_whole.splits[split];
                        assert_eq!((found.documents, found.text_bytes), (expected.documents, expected.text_bytes));
                        assert_eq!(found.statistics, expected.statistics);
                    }
                }
                // From the store, in blocks of another size.
                let other = DataArguments { max_train_samples: Some(9), ..base.clone() };
                let (whole, _) = of("few", (WHOLE, 1 << 20), &other);
                let (parts, made) = of("few17", (17, 1 << 20), &other);
                assert_eq!(parts, whole);
                assert_eq!(made.reuse.bytes_tokenized, 0, "{:?}", made.reuse);
            }
        }
    }
}

/// The reference takes documents whole, however they were scanned.
#[test]
fn a_tokenizer_that_cannot_cut_takes_documents_whole() {
    let place = Place::new();
    write_texts(&place);
    let base = DataArguments { append_eos: false, ..DataArguments::default() };
    for (name, part_bytes) in [("parts", 50), ("whole", WHOLE)] {
        prepared(&place, name, (part_bytes, 100), "unconverted/generic_unigram", &base);
    }
    assert_eq!(blocks(&place.path("parts")), blocks(&place.path("whole")));
}

/// What is wrong with a document may come after parts of it.
#[test]
fn a_document_that_turns_out_bad_leaves_nothing_behind() {
    let place = Place::new();
    let long = |seed| lines(40, seed).replace('\n', " ").into_bytes();
    let bad = [long(2), b"\xff and more words".to_vec(), long(5)].concat();
    let skip = DataArguments { on_bad_record: OnBadRecord::Skip, ..DataArguments::default() };
    for (name, parts) in
        [("with", vec![long(1), bad.clone(), long(3), bad.clone(), bad.clone()]), ("without", vec![long(1), long(3)])]
    {
        place.write("text/a.txt", parts.join(&b'\n'));
        let made = prepared(&place, name, (50, 64), "bytes", &skip);
        assert_eq!(made.manifest.splits.values().next().unwrap().documents, 2);
        assert_eq!(made.manifest.head.rejected_records.get("invalid_encoding").copied(), (name == "with").then_some(3));
    }
    assert_eq!(blocks(&place.path("with")), blocks(&place.path("without")));
    // What is mended is the same in parts.
    place.write("text/a.txt", [long(1), bad].join(&b'\n'));
    let mended = DataArguments { encoding_errors: EncodingErrors::Replace, ..DataArguments::default() };
    for (name, part_bytes) in [("mended", 50), ("whole", WHOLE)] {
        prepared(&place, name, (part_bytes, 3), "bytes", &mended);
    }
    assert_eq!(blocks(&place.path("mended")), blocks(&place.path("whole")));
}

/// A document of 80 MiB, by night of 1 GiB, in less memory than it has.
#[test]
fn a_long_document_takes_the_memory_of_its_parts() {
    let night = std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night");
    let size: usize = if night { 1 << 30 } else { 80 << 20 };
    let place = Place::new();
    let text = std::fs::read_to_string(root().join("quickstart/text/english/alice-in-wonderland.txt")).unwrap();
    let path = place.write("text/a.txt", "before\n");
    let mut file = std::io::BufWriter::new(std::fs::OpenOptions::new().append(true).open(&path).unwrap());
    let mut left = size;
    while left > 0 {
        let line = text.replace('\n', " ");
        file.write_all(line.as_bytes()).unwrap();
        left = left.saturating_sub(line.len());
    }
    file.write_all(b"\nafter\n").unwrap();
    drop(file);
    let measured = |name: &str| {
        let prepare = place.prepare(name, &["--preprocessing_num_workers", "2", "--token_cache", "false"]);
        let mut child = std::process::Command::new(&binaries().preprocess)
            .args(prepare.get_args())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut peak = 0;
        let status = loop {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
            peak = peak.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        assert!(status.success());
        peak
    };
    let with = measured("out");
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.path("out/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["splits"]["train"]["documents"], 3);
    std::fs::write(&path, "before\n\nafter\n").unwrap();
    let without = measured("small");
    println!("{size} bytes in one document: {} MiB, a short one {} MiB", with >> 20, without >> 20);
    // 70 parts of text in flight and their ids, 70 MiB, and what is made of them; of 1 GiB in one document it was 101.
    assert!(with < without + (128 << 20), "{} MiB, and {} with a short one", with >> 20, without >> 20);
}
