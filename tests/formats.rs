//! Every kind of file, compressed or not, gives the same documents; and what a block says can be looked at.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow_array::{RecordBatch, StringArray};
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, binaries, data, digest, lines, overwrite, run};

fn gzip_members(parts: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        all.extend(encoder.finish().unwrap());
    }
    all
}

fn parquet(texts: &[&str]) -> Vec<u8> {
    let ids = Arc::new(StringArray::from_iter_values(texts.iter().map(|_| "id")));
    let column = Arc::new(StringArray::from_iter_values(texts));
    let batch = RecordBatch::try_from_iter([("id", ids as _), ("text", column as _)]).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// An Arrow stream, or an Arrow file, of several batches.
fn arrow(texts: &[&str], file: bool) -> Vec<u8> {
    let batch = |texts: &[&str]| {
        let ids = Arc::new(StringArray::from_iter_values(texts.iter().map(|_| "id")));
        let column = Arc::new(StringArray::from_iter_values(texts));
        RecordBatch::try_from_iter([("id", ids as _), ("text", column as _)]).unwrap()
    };
    let batches: Vec<RecordBatch> = texts.chunks(7).map(batch).collect();
    let schema = batches[0].schema();
    if file {
        let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &schema).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        return writer.into_inner().unwrap();
    }
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &schema).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

/// Rows with every text in quotes.
fn rows(texts: &[&str], delimiter: char) -> Vec<u8> {
    let row = |text: &&str| format!("id{delimiter}\"{}\"\n", text.replace('"', "\"\""));
    format!("id{delimiter}text\n{}", texts.iter().map(row).collect::<String>()).into_bytes()
}

#[test]
fn the_same_documents_in_any_format_and_compression_give_the_same_blocks() {
    let text = lines(60, 4);
    let documents: Vec<&str> = text.split_inclusive('\n').collect();
    let record = |text: &&str| serde_json::json!({"n": 1, "text": text}).to_string();
    let jsonl: String = documents.iter().map(|document| record(document) + "\n").collect();
    let json = format!("[{}]", documents.iter().map(record).collect::<Vec<_>>().join(",\n"));
    let mut blocks = Vec::new();
    for (name, content) in [
        ("a.txt", text.clone().into_bytes()),
        ("a.jsonl", jsonl.clone().into_bytes()),
        ("a.json", json.into_bytes()),
        ("a.json", jsonl.into_bytes()),
        ("a.parquet", parquet(&documents)),
        ("a.arrow", arrow(&documents, false)),
        ("a.arrow", arrow(&documents, true)),
        ("a.csv", rows(&documents, ',')),
        ("a.tsv", rows(&documents, '\t')),
    ] {
        let middle = content.len() / 2;
        let frames = [&content[..middle], &content[middle..]];
        let zst: Vec<u8> = frames.iter().flat_map(|frame| zstd::encode_all(*frame, 1).unwrap()).collect();
        for (suffix, bytes) in [("", content.clone()), (".gz", gzip_members(&frames)), (".zst", zst)] {
            let place = Place::new();
            place.write(&format!("text/{name}{suffix}"), bytes);
            run(&mut place.prepare("out", &[])).ok();
            blocks.push((format!("{name}{suffix}"), digest(&place.path("out/train"))));
        }
    }
    let first = blocks[0].1.clone();
    for (name, found) in blocks {
        assert_eq!(found, first, "{name}");
    }
}

#[test]
fn inspect_says_what_is_in_a_dataset_and_shows_blocks_as_text() {
    let place = Place::new();
    place.write("text/a.txt", "the mill grinds words slowly\n".repeat(30));
    run(&mut place.prepare("out", &[])).ok();
    let inspect =
        |more: &[&str]| run(Command::new(&binaries().preprocess).arg("inspect").arg(place.path("out")).args(more));
    let described = inspect(&[]).ok().stdout;
    assert!(described.contains("train") && described.contains("tokens read"), "{described}");
    let text = inspect(&["--split", "train", "--row", "0", "--decode"]).ok().stdout;
    assert!(text.starts_with("the mill grinds words slowly\n<|endoftext|>the m"), "{text}");
    let block = inspect(&["--row", "1", "--json", "true"]).ok().json();
    assert_eq!(block["input_ids"].as_array().unwrap().len(), 16);
    inspect(&["--row", "999999"]).fails(2, &["--row", "blocks 0 to"]);
    inspect(&["--split", "validation"]).fails(2, &["--split", "no split validation"]);
}

#[test]
fn every_token_is_accounted_for() {
    let place = Place::new();
    place.write("text/a.txt", lines(100, 1));
    for (output, flags) in [
        ("a", &[][..]),
        ("b", &["--remainder", "pad"]),
        ("c", &["--max_train_samples", "3"]),
        ("d", &["--validation_split_percentage", "30", "--max_eval_samples", "2"]),
    ] {
        let json = run(&mut place.prepare(output, flags)).ok().json();
        for (name, split) in json["manifest"]["splits"].as_object().unwrap() {
            let ledger = &split["ledger"];
            let count = |field: &str| ledger[field].as_u64().unwrap();
            let rejected: u64 =
                ledger["rejected"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
            assert_eq!(count("read"), count("in_blocks") + count("remainder") + rejected, "{output} {name}");
            let full =
                (split["blocks"].as_u64().unwrap() - 1) * 16 + split["last_block_valid_tokens"].as_u64().unwrap();
            assert_eq!(count("in_blocks"), full, "{output} {name}");
        }
        if output == "c" {
            assert_eq!(json["manifest"]["splits"]["train"]["blocks"], 3);
        }
    }
}

/// Datasets of every format version there was, as the program of that time wrote them: `data/datasets/make.sh`.
#[test]
fn datasets_of_every_version_are_read_and_newer_ones_are_not() {
    let ledger = Run::of("versions of the format, each read, trained on and made again", 2, 2);
    // The first of seven lines is for validation, and the second is blank.
    for (version, flags, first) in
        [(1u32, &[][..], "\n<|endoftext|>磨坊"), (2, &["--packing", "false"], "\n<|endoftext|>\n")]
    {
        let place = Place::new();
        let old = data(&format!("datasets/version-{version}"));
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(old.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(json["format_version"], version);
        run(Command::new(&binaries().preprocess).arg("verify").arg(&old)).ok();
        let shown = run(Command::new(&binaries().preprocess).arg("inspect").arg(&old).args(["--row", "0", "--decode"]));
        let shown = shown.ok().stdout;
        assert!(shown.starts_with(first), "{shown}");
        // The same text makes the same blocks today.
        place.write("text/a.txt", std::fs::read(data("datasets/text/a.txt")).unwrap());
        let split = ["--validation_split_percentage", "20"];
        run(&mut place.prepare("now", &[&split[..], flags].concat())).ok();
        let of = |dir: &Path| {
            let mut files = digest(dir);
            files.remove(Path::new("manifest.json")); // says which program wrote it
            files
        };
        assert_eq!(of(&place.path("now")), of(&old));
        std::os::unix::fs::symlink(&old, place.path("old")).unwrap();
        run(&mut place.train("old", "out", &["--max_steps", "2", "--save_strategy", "no"])).ok();

        // A newer one is refused by its version, by both programs.
        let manifest = place.path("now/manifest.json");
        let text = std::fs::read_to_string(&manifest).unwrap();
        let newer = text.replacen(&format!("\"format_version\": {version}"), "\"format_version\": 17", 1);
        overwrite(&manifest, newer);
        let says = ["format version 17", "reads up to 2", "newer tokenmill"];
        run(Command::new(&binaries().preprocess).arg("inspect").arg(place.path("now"))).fails(2, &says);
        run(&mut place.train("now", "out-2", &["--max_steps", "2"])).fails(2, &says);
    }
    ledger.passed();
}
