//! Documents that are read in parts: tokens, blocks and borders of documents are those of the documents read whole,
//! memory is that of a part.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokenmill_preprocess::{Output, PrepareOptions, Prepared, Tuning, prepare};
use tokenmill_shared::config::{
    Compat, DataArguments, EncodingErrors, HubArguments, OnBadRecord, PackingStrategy, SampleBy, ValidationSplitMode,
};
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, data, digest, lines, root, run, with_peak_memory, within_address_space};

/// All in one part.
const WHOLE: usize = 1 << 30;

/// How text is read: bytes after which a document may be cut, and bytes that are read at a time.
type Way = (usize, usize);

/// All in one split.
fn undivided() -> DataArguments {
    DataArguments { validation_split_percentage: 0.0, ..DataArguments::default() }
}

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
            let base = DataArguments { sample_by, keep_linebreaks, ..undivided() };
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
    let base = DataArguments { append_eos: false, ..undivided() };
    for (name, part_bytes) in [("parts", 50), ("whole", WHOLE)] {
        prepared(&place, name, (part_bytes, 100), "unconverted/generic_unigram", &base);
    }
    assert_eq!(blocks(&place.path("parts")), blocks(&place.path("whole")));
}

/// So such a tokenizer is given none beyond the limit of those: in parts it would be put together again up to twice that, and
/// the reference takes 40 bytes for each.
#[test]
fn a_tokenizer_that_cannot_cut_is_given_no_document_beyond_the_limit() {
    let place = Place::new();
    let line = lines(400, 1).replace('\n', " ");
    place.write("text/a.txt", ["before\n", &line.repeat((65 << 20) / line.len()), "\nafter\n"].concat());
    let tokenizer = data("tokenizers/unconverted/generic_unigram");
    let flags = ["--tokenizer_name_or_path", tokenizer.to_str().unwrap(), "--append_eos", "false"];
    let prepare = place.prepare("out", &[&flags[..], &["--on_bad_record", "skip"]].concat());
    let made = run(&mut within_address_space(&prepare, 3 << 29)).ok().json();
    assert_eq!(made["manifest"]["rejected_records"], json!({"too_long": 1}));
    assert_eq!(made["manifest"]["splits"]["train"]["documents"], 2);
}

/// What asks how long a document is or what all its tokens are gets it whole, and what counts documents counts no parts.
#[test]
fn a_part_is_never_taken_for_a_document() {
    let place = Place::new();
    let long = |count, seed| lines(count, seed).replace('\n', " ");
    let texts = [long(60, 1), long(9, 2), format!("{} on", long(60, 1)), long(60, 1), "short".to_owned(), long(70, 3)];
    place.write("text/a.txt", texts.join("\n"));
    place.write("text/b.jsonl", texts.map(|text| json!({ "text": text }).to_string()).join("\n"));
    let length = |text: &str| Some(text.chars().count() as u64);
    let divided = DataArguments { validation_split_percentage: 40.0, ..DataArguments::default() };
    for (name, settings) in [
        ("shorter", DataArguments { max_chars: length(&long(60, 1)), ..undivided() }),
        ("longer", DataArguments { min_chars: length(&format!("{} on", long(60, 1))), ..undivided() }),
        ("distinct", DataArguments { deduplicate: true, ..undivided() }),
        ("documents", DataArguments { packing: false, ..undivided() }),
        ("fitting", DataArguments { packing_strategy: PackingStrategy::BestFit, ..undivided() }),
        ("batches", DataArguments { compat: vec![Compat::RunClm], ..undivided() }),
        ("some", DataArguments { skip_documents: Some(2), take_documents: Some(6), ..undivided() }),
        ("first", divided.clone()),
    ] {
        for way in [WHOLE, 5] {
            prepared(&place, &format!("{name}-{way}"), (way, 100), "bytes", &settings);
        }
        let of = |way| blocks(&place.path(&format!("{name}-{way}")));
        assert_eq!(of(5), of(WHOLE), "{name}");
    }
    // By its hash all of a document goes to one split: they are equally long, and end alike.
    let texts: Vec<String> = (0..20).map(|number| format!("{number:02} {}", long(60, 4))).collect();
    std::fs::remove_file(place.path("text/a.txt")).unwrap();
    let records: Vec<String> = texts.iter().map(|text| json!({ "text": text }).to_string()).collect();
    place.write("text/b.jsonl", records.join("\n"));
    let by_hash = DataArguments { validation_split_mode: ValidationSplitMode::Hash, ..divided };
    let made = prepared(&place, "by-hash", (5, 100), "bytes", &by_hash);
    assert_eq!(made.manifest.splits.len(), 2);
    for split in made.manifest.splits.values() {
        assert!(split.documents > 0 && split.text_bytes == split.documents * texts[0].len() as u64);
    }
}

/// What is wrong with a document may come after parts of it.
#[test]
fn a_document_that_turns_out_bad_leaves_nothing_behind() {
    let place = Place::new();
    let long = |seed| lines(40, seed).replace('\n', " ").into_bytes();
    let bad = [long(2), b"\xff and more words".to_vec(), long(5)].concat();
    let skip = DataArguments { on_bad_record: OnBadRecord::Skip, ..undivided() };
    for (name, parts) in
        [("with", vec![long(1), bad.clone(), long(3), bad.clone(), bad.clone()]), ("without", vec![long(1), long(3)])]
    {
        place.write("text/a.txt", parts.join(&b'\n'));
        let made = prepared(&place, name, (50, 64), "bytes", &skip);
        assert_eq!(made.manifest.splits.values().next().unwrap().documents, 2);
        assert_eq!(made.manifest.head.rejected_records.get("invalid_encoding").copied(), (name == "with").then_some(3));
    }
    assert_eq!(blocks(&place.path("with")), blocks(&place.path("without")));
    // A record of JSON that is broken behind its text, has none, or has it twice.
    let text = |seed| String::from_utf8(long(seed)).unwrap();
    let good = |seed| json!({"n": [1, 2], "text": text(seed)}).to_string();
    let bad = [
        format!("{{\"text\": \"{}\", \"n\": [1, 2}}", text(7)),
        format!("{{\"text\": \"{0}\", \"text\": \"{0}\"}}", text(8)),
        json!({"title": text(9)}).to_string(),
        json!({"title": text(9), "text": 5}).to_string(),
    ];
    let with = [&[good(1)], &bad[..], &[good(3), bad[0].clone()]].concat();
    for (name, lines) in [("with-json", with), ("without-json", vec![good(1), good(3)])] {
        std::fs::remove_dir_all(place.path("text")).unwrap();
        place.write("text/a.jsonl", lines.join("\n"));
        let made = prepared(&place, name, (5, 64), "bytes", &skip);
        assert_eq!(made.manifest.splits.values().next().unwrap().documents, 2);
        let rejected = made.manifest.head.rejected_records;
        let expected = [("invalid_json", 3), ("missing_field", 1), ("not_text", 1)];
        let expected = expected.map(|(reason, count)| (reason.to_owned(), count)).into();
        assert_eq!(rejected, if name == "with-json" { expected } else { BTreeMap::new() });
    }
    assert_eq!(blocks(&place.path("with-json")), blocks(&place.path("without-json")));
    std::fs::remove_dir_all(place.path("text")).unwrap();
    let bad = [long(2), b"\xff and more words".to_vec(), long(5)].concat();
    // What is mended is the same in parts.
    place.write("text/a.txt", [long(1), bad].join(&b'\n'));
    let mended = DataArguments { encoding_errors: EncodingErrors::Replace, ..undivided() };
    for (name, part_bytes) in [("mended", 50), ("whole", WHOLE)] {
        prepared(&place, name, (part_bytes, 3), "bytes", &mended);
    }
    assert_eq!(blocks(&place.path("mended")), blocks(&place.path("whole")));
}

/// A document of 80 MiB, by night of 1 GiB, in less memory than it has.
#[test]
fn a_long_document_takes_the_memory_of_its_parts() {
    let ledger = Run::of("bytes of one document, as text and as JSON", 80 << 20, 1 << 30);
    let size = ledger.size as usize;
    let alice = std::fs::read_to_string(root().join("quickstart/text/english/alice-in-wonderland.txt")).unwrap();
    let line = alice.replace('\n', " ");
    let escaped = json!(line).to_string();
    let escaped = escaped.trim_matches('"');
    // 70 parts of text in flight and their ids, 70 MiB, and what is made of them: of 1 GiB in one document it was 101. A
    // line of JSON is held up to 64 MiB before it goes through in parts.
    for (name, line, around, more) in [
        ("a.txt", &line[..], ["before\n", "\nafter\n"], 128),
        ("a.jsonl", escaped, ["{\"text\": \"before\"}\n{\"text\": \"", "\", \"n\": 1}\n{\"text\": \"after\"}\n"], 192),
    ] {
        let place = Place::new();
        let path = place.write(&format!("text/{name}"), around[0]);
        let mut file = std::io::BufWriter::new(std::fs::OpenOptions::new().append(true).open(&path).unwrap());
        for _ in 0..size.div_ceil(line.len()) {
            file.write_all(line.as_bytes()).unwrap();
        }
        file.write_all(around[1].as_bytes()).unwrap();
        drop(file);
        let with = peak_of_preparing(&place, "out");
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(place.path("out/manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["splits"]["train"]["documents"], 3);
        std::fs::write(&path, around.concat()).unwrap();
        let without = peak_of_preparing(&place, "small");
        println!("{size} bytes in one document of {name}: {} MiB, a short one {} MiB", with >> 20, without >> 20);
        assert!(with < without + (more << 20), "{name}: {} MiB, and {} with a short one", with >> 20, without >> 20);
    }
    ledger.passed();
}

/// Bytes of memory that preparing the text takes at most.
fn peak_of_preparing(place: &Place, output: &str) -> u64 {
    let flags = ["--preprocessing_num_workers", "2", "--token_cache", "false"];
    let (ended, peak) = with_peak_memory(&mut place.prepare(output, &flags));
    ended.ok();
    peak
}
