//! Blocks that are not cut from one stream: one document each, documents whole, or as the reference scripts make them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Place, data, digest, lines, overwrite, root, run};

/// The tokens of a block without padding, and where in it which document begins.
type Block = (Vec<u32>, Vec<(u32, u64)>);

/// Every block of the training split.
fn blocks(dir: &Path) -> Vec<Block> {
    let dataset = Dataset::open(dir).unwrap();
    let reader = dataset.split(Split::Train).unwrap().unwrap();
    let block = |index| {
        let mut ids = Vec::new();
        reader.read_block(index, &mut ids).unwrap();
        let valid = reader.valid_tokens(index).unwrap();
        assert!(ids[valid..].iter().all(|id| *id == dataset.manifest().head.pad_token_id));
        ids.truncate(valid);
        let documents = reader.documents(index).unwrap().unwrap();
        (ids, reader.document_starts(index).unwrap().into_iter().zip(documents).collect())
    };
    (0..reader.len()).map(block).collect()
}

/// The tokens of each document, by a dataset whose blocks hold one token.
fn documents(place: &Place, more: &[&str]) -> Vec<Vec<u32>> {
    run(&mut place.prepare("tokens", &[&["--block_size", "1"], more].concat())).ok();
    let reader = Dataset::open(&place.path("tokens")).unwrap().split(Split::Train).unwrap().unwrap();
    let mut documents: Vec<Vec<u32>> = Vec::new();
    for token in 0..reader.len() {
        if !reader.document_starts(token).unwrap().is_empty() {
            documents.push(Vec::new());
        }
        reader.read_block(token, documents.last_mut().unwrap()).unwrap();
    }
    documents
}

fn ledger(json: &Value) -> (u64, u64, BTreeMap<String, u64>) {
    let ledger = &json["manifest"]["splits"]["train"]["ledger"];
    let count = |field: &str| ledger[field].as_u64().unwrap();
    (count("read"), count("in_blocks"), serde_json::from_value(ledger["rejected"].clone()).unwrap())
}

#[test]
fn without_packing_a_document_is_a_block_truncated_or_padded() {
    let place = Place::new();
    place.write("text/a.txt", lines(60, 4));
    place.write("text/b.jsonl", "{\"text\": \"\"}\n");
    for eos in ["true", "false"] {
        let flags = ["--append_eos", eos, "--packing", "false"];
        let documents = documents(&place, &flags[..2]);
        let json = run(&mut place.prepare(eos, &flags)).ok().json();
        let found = blocks(&place.path(eos));
        let expected: Vec<_> = documents.iter().map(|ids| ids[..ids.len().min(16)].to_vec()).collect();
        assert_eq!(found.iter().map(|(ids, _)| ids.clone()).collect::<Vec<_>>(), expected);
        assert!(found.iter().all(|(_, runs)| runs.len() == 1 && runs[0].0 == 0));
        let longer: usize = documents.iter().map(|ids| ids.len().saturating_sub(16)).sum();
        let (read, in_blocks, rejected) = ledger(&json);
        assert_eq!(rejected, BTreeMap::from([("truncated".to_owned(), longer as u64)]));
        assert!(longer > 0 && read == in_blocks + longer as u64);
        std::fs::remove_dir_all(place.path("tokens")).unwrap();
    }
    let limited = run(&mut place.prepare("limited", &["--packing", "false", "--max_train_samples", "5"])).ok().json();
    assert_eq!(blocks(&place.path("limited")), blocks(&place.path("true"))[..5]);
    assert_eq!(limited["manifest"]["splits"]["train"]["blocks"], 5);
}

/// The same documents with more padding behind each give the same losses: no padding is a label.
#[test]
fn padding_is_never_a_label() {
    let place = Place::new();
    place.write("text/a.txt", (0..12).map(|line| format!("the mill {line}\n")).collect::<String>());
    let losses = |block_size: &str| {
        run(&mut place.prepare(block_size, &["--packing", "false", "--block_size", block_size])).ok();
        let flags = ["--max_steps", "4", "--train_sampling_strategy", "sequential"];
        run(&mut place.train(block_size, &format!("run-{block_size}"), &flags)).ok();
        let state = std::fs::read(place.path(&format!("run-{block_size}/trainer_state.json"))).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        let history = state["log_history"].as_array().unwrap();
        history.iter().filter_map(|entry| entry["loss"].as_f64()).collect::<Vec<_>>()
    };
    let (tight, wide) = (losses("16"), losses("48"));
    assert!(tight.len() == 4 && tight[0] > 1.0);
    for (a, b) in tight.iter().zip(&wide) {
        assert!((a / b - 1.0).abs() < 1e-5, "{tight:?} {wide:?}");
    }
}

#[test]
fn best_fit_keeps_documents_whole_and_says_the_padding_before() {
    let place = Place::new();
    place.write("text/a.txt", lines(400, 6));
    let strategy = ["--packing_strategy", "best_fit", "--block_size"];
    let first = run(&mut place.prepare("b64", &[&strategy[..], &["64"]].concat())).ok();
    let documents = documents(&place, &[]);
    for size in [64, 40] {
        let output = format!("b{size}");
        if size != 64 {
            let again = run(&mut place.prepare(&output, &[&strategy[..], &[&size.to_string()]].concat())).ok().json();
            let reuse = &again["reuse"];
            assert_eq!((&reuse["partitions_tokenized"], &reuse["partitions_reused"]), (&0.into(), &1.into()));
        }
        let found = blocks(&place.path(&output));
        let mut seen: BTreeMap<u64, Vec<Vec<u32>>> = BTreeMap::new();
        for (ids, runs) in &found {
            let ends = runs.iter().skip(1).map(|(start, _)| *start as usize).chain([ids.len()]);
            for ((start, document), end) in runs.iter().zip(ends) {
                seen.entry(*document).or_default().push(ids[*start as usize..end].to_vec());
            }
        }
        assert_eq!(seen.len(), documents.len());
        let mut cut = 0;
        for (document, pieces) in seen {
            let whole = &documents[document as usize];
            assert!(pieces.len() == whole.len().div_ceil(size), "a document that fits is cut");
            cut += usize::from(pieces.len() > 1);
            // A rest may come before the whole blocks of its document where blocks are in the order of others.
            let mut together: Vec<u32> = Vec::new();
            for part in whole.chunks(size) {
                assert!(pieces.iter().any(|piece| piece == part));
                together.extend(part);
            }
            assert_eq!(&together, whole);
        }
        assert!(size == 64 || cut > 0);
    }
    // Said before the files are written, and true.
    let found = blocks(&place.path("b64"));
    let padding = found.iter().map(|(ids, _)| 64 - ids.len()).sum::<usize>();
    let said = format!("train: {} blocks of 64 will hold", found.len());
    assert!(
        first.stderr.contains(&said) && first.stderr.contains(&format!("and {padding} of padding")),
        "{}",
        first.stderr
    );
    assert_eq!(first.json()["reuse"]["partitions_tokenized"], 1);
}

/// The blocks of the reference scripts, by Python's `datasets`: `data/group_texts.py`.
#[test]
fn compat_makes_the_blocks_of_the_scripts() {
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(data("group_texts.json")).unwrap()).unwrap();
    let place = Place::new();
    // Named so that the order is that of the program.
    for (name, from) in [("a.txt", "english/alice-in-wonderland.txt"), ("b.txt", "chinese/analects.txt")] {
        place.write(&format!("text/{name}"), std::fs::read(root().join("quickstart/text").join(from)).unwrap());
    }
    let mut ragged = 0;
    for (number, case) in golden.iter().enumerate() {
        let output = format!("case-{number}");
        let text = |field: &str| case[field].as_str().map_or_else(|| case[field].to_string(), str::to_owned);
        let tokenizer = data("tokenizers").join(text("tokenizer"));
        let mut flags = vec!["--tokenizer_name_or_path".to_owned(), tokenizer.display().to_string()];
        for field in ["keep_linebreaks", "block_size"] {
            flags.extend([format!("--{field}"), text(field)]);
        }
        flags.extend(match text("mode").as_str() {
            "medicalgpt_2024" => ["--compat", "medicalgpt", "--group_by_length", "true"].map(str::to_owned).to_vec(),
            mode => ["--compat", mode].map(str::to_owned).to_vec(),
        });
        let json = run(&mut place.prepare(&output, &flags.iter().map(String::as_str).collect::<Vec<_>>())).ok().json();
        let found = blocks(&place.path(&output));
        let ids: Vec<u8> = found.iter().flat_map(|(ids, _)| ids.iter().flat_map(|id| id.to_le_bytes())).collect();
        let sha256 = ring::digest::digest(&ring::digest::SHA256, &ids);
        let hex: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let short = found.iter().filter(|(ids, _)| ids.len() as u64 != case["block_size"].as_u64().unwrap()).count();
        assert_eq!(
            (found.len() as u64, short as u64),
            (case["blocks"].as_u64().unwrap(), case["ragged"].as_u64().unwrap())
        );
        assert_eq!(
            (ids.len() as u64 / 4, hex.as_str()),
            (case["ids"].as_u64().unwrap(), case["sha256"].as_str().unwrap()),
            "{case}"
        );
        assert_eq!(json["manifest"]["splits"]["train"]["documents"], case["rows"]);
        ragged += short;
        std::fs::remove_dir_all(place.path(&output)).unwrap();
    }
    assert!(golden.len() == 36 && ragged > 0);
}

#[test]
fn blocks_of_documents_are_checked_and_cannot_be_cut_anew() {
    let place = Place::new();
    place.write("text/a.txt", lines(60, 4));
    run(&mut place.prepare("data", &["--packing", "false"])).ok();
    run(&mut place.train("data", "out", &["--max_steps", "1", "--block_size", "8"]))
        .fails(2, &["--block_size", "of 16"]);
    run(&mut place.train("data", "out", &["--max_steps", "1", "--compat", "run_clm"]))
        .fails(2, &["--compat", "run_clm"]);
    // The sidecar says what is a label, so its damage stops training as that of ids does.
    let sidecar = place.path("data/train/documents-00000.arrow");
    let good = std::fs::read(&sidecar).unwrap();
    let (mut refused, stride) = (0, 1 + good.len() / 24);
    for at in (0..good.len()).step_by(stride) {
        let mut bytes = good.clone();
        bytes[at] ^= 8;
        overwrite(&sidecar, bytes);
        let ended = run(&mut place.train("data", "out", &["--num_train_epochs", "1", "--save_strategy", "no"]));
        // The schema before the first batch is not read, and the end mark is not either.
        match ended.code {
            Some(3) => refused += 1,
            code => assert_eq!(code, Some(0), "{}", ended.stderr),
        }
    }
    assert!(refused >= 12, "{refused}");
    overwrite(&sidecar, good);
    run(&mut place.train("data", "out", &["--max_steps", "1"])).ok();
}

#[test]
fn what_cannot_be_packed_so_is_refused_with_advice() {
    let place = Place::new();
    place.write("text/a.txt", lines(60, 4));
    run(&mut place.prepare("a", &["--packing_strategy", "best_fit", "--token_cache", "false"]))
        .fails(2, &["--token_cache", "best_fit"]);
    run(&mut place.prepare("a", &["--packing", "false", "--compat", "run_clm"])).fails(2, &["--packing", "run_clm"]);
    assert!(!place.path("a").exists());
    // Another rule is another dataset, and the setting is named.
    run(&mut place.prepare("a", &[])).ok();
    run(&mut place.prepare("a", &["--packing", "false"])).fails(2, &["another dataset", "packing"]);
    let before = digest(&place.path("a"));
    run(&mut place.prepare("a", &["--group_by_length", "false", "--packing", "true"])).ok();
    assert_eq!(digest(&place.path("a")), before);
}
