#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;

use arrow_array::cast::AsArray;
use proptest::prelude::*;

use super::*;
use crate::config::Remainder;

/// A dataset of `tokens` counting ids in documents of 10 tokens.
fn make(dir: &Path, block_size: usize, tokens: u32, width: TokenWidth, remainder: Remainder) -> Manifest {
    let mut writer = DatasetWriter::create(dir, block_size, width).unwrap();
    let mut split = writer.split(Split::Train).unwrap();
    let mut bytes = Vec::new();
    for document in (0..tokens).collect::<Vec<_>>().chunks(10) {
        split.begin_document();
        bytes.clear();
        width.encode(document, &mut bytes);
        split.push(&bytes).unwrap();
    }
    let written = split.finish(remainder, 0).unwrap();
    writer.add(written, u64::from(tokens.div_ceil(10)), 1, u64::from(tokens), BTreeMap::new()).unwrap();
    writer.add_tokenizer_file("tokenizer.json", b"{}").unwrap();
    let head = ManifestHead {
        fingerprint: "f".to_owned(),
        largest_token_id: 65_535,
        eos_token_id: None,
        pad_token_id: 0,
        settings: serde_json::json!({}),
    };
    writer.commit(head).unwrap()
}

fn read_all(dir: &Path) -> Result<Vec<u32>> {
    let reader = Dataset::open(dir)?.split(Split::Train)?.unwrap();
    let mut ids = Vec::new();
    for block in (0..reader.len()).rev() {
        let mut one = Vec::new();
        reader.read_block(block, &mut one)?;
        ids.splice(0..0, one);
    }
    Ok(ids)
}

#[test]
fn blocks_come_back_in_both_widths_and_arrow_reads_the_same() {
    for (width, block_size, tokens) in
        [(TokenWidth::U16, 7, 1000), (TokenWidth::U32, 1024, 60_000), (TokenWidth::U32, 1, 3)]
    {
        let dir = tempfile::tempdir().unwrap();
        let manifest = make(dir.path(), block_size, tokens, width, Remainder::Drop);
        let blocks = tokens as usize / block_size;
        assert_eq!(manifest.splits[&Split::Train].blocks, blocks as u64);
        let expected: Vec<u32> = (0..(blocks * block_size) as u32).collect();
        assert_eq!(read_all(dir.path()).unwrap(), expected);

        let shard = std::fs::File::open(dir.path().join("train/data-00000.arrow")).unwrap();
        let mut by_arrow = Vec::new();
        for batch in arrow_ipc::reader::StreamReader::try_new(shard, None).unwrap() {
            let batch = batch.unwrap();
            let values = batch.column(0).as_fixed_size_list().values().to_data();
            width.decode(values.buffers()[0].as_slice(), &mut by_arrow);
        }
        assert_eq!(by_arrow, expected);
    }
}

#[test]
fn document_starts_are_where_documents_begin() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 8, 100, TokenWidth::U16, Remainder::Drop);
    let reader = Dataset::open(dir.path()).unwrap().split(Split::Train).unwrap().unwrap();
    for block in 0..reader.len() {
        let expected: Vec<u32> = (0..8).filter(|offset| (block as u32 * 8 + offset).is_multiple_of(10)).collect();
        assert_eq!(reader.document_starts(block).unwrap(), expected, "block {block}");
    }
}

#[test]
fn the_remainder_is_dropped_or_padded_and_short_splits_are_padded() {
    for (tokens, remainder, blocks, valid, left) in [
        (20, Remainder::Drop, 2, 8, 4),
        (20, Remainder::Pad, 3, 4, 0),
        (5, Remainder::Drop, 1, 5, 0),
        (16, Remainder::Pad, 2, 8, 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let split = make(dir.path(), 8, tokens, TokenWidth::U16, remainder).splits.remove(&Split::Train).unwrap();
        assert_eq!(
            (split.blocks, split.last_block_valid_tokens, split.ledger.remainder),
            (blocks, valid, left),
            "{tokens} {remainder:?}"
        );
    }
}

#[test]
fn other_content_is_refused_and_an_unfinished_dataset_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), b"mine").unwrap();
    let refused = DatasetWriter::create(dir.path(), 8, TokenWidth::U16).unwrap_err();
    assert!(refused.to_string().contains("thesis.txt"), "{refused}");

    let dir = tempfile::tempdir().unwrap();
    make(&dir.path().join("a"), 8, 100, TokenWidth::U16, Remainder::Drop);
    let unfinished = dir.path().join("b");
    let writer = DatasetWriter::create(&unfinished, 8, TokenWidth::U16).unwrap();
    let busy = DatasetWriter::create(&unfinished, 8, TokenWidth::U16).unwrap_err();
    assert!(busy.to_string().contains("another process"), "{busy}");
    drop(writer);
    std::fs::create_dir_all(unfinished.join("train")).unwrap();
    std::fs::write(unfinished.join("train/data-00009.arrow"), b"left over").unwrap();
    assert_eq!(Dataset::open(&unfinished).unwrap_err().exit_code(), 2);
    make(&unfinished, 8, 100, TokenWidth::U16, Remainder::Drop);
    assert!(!unfinished.join("train/data-00009.arrow").exists() && !unfinished.join(INCOMPLETE).exists());
    assert_eq!(read_all(&unfinished).unwrap(), read_all(&dir.path().join("a")).unwrap());
}

#[test]
fn a_newer_format_is_refused_by_version() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 8, 100, TokenWidth::U16, Remainder::Drop);
    let path = dir.path().join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap().replacen("\"format_version\": 1", "\"format_version\": 2", 1);
    std::fs::write(&path, text).unwrap();
    let error = Dataset::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
}

#[test]
fn shards_that_changed_places_are_found() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(a.path(), 8, 1000, TokenWidth::U16, Remainder::Drop);
    make(b.path(), 8, 1001, TokenWidth::U16, Remainder::Drop);
    // Same size, other content at the same place: only the checksums can tell.
    let shard = Path::new("train/data-00000.arrow");
    let mut bytes = std::fs::read(b.path().join(shard)).unwrap();
    let place = bytes.len() - 64;
    bytes[place] ^= 1;
    std::fs::write(a.path().join(shard), bytes).unwrap();
    assert_eq!(read_all(a.path()).unwrap_err().exit_code(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Flips one bit or cuts one file short, anywhere: `verify` names it, and the reader never returns a wrong id.
    #[test]
    fn damage_anywhere_is_found(file in 0usize..8, at in any::<prop::sample::Index>(), bit in 0u8..8, truncate in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 8, 203, TokenWidth::U16, Remainder::Drop);
        let good = read_all(dir.path()).unwrap();
        let files = crate::storage::list_files(dir.path()).unwrap();
        let victim = &files[file % files.len()];
        let mut bytes = std::fs::read(&victim.path).unwrap();
        let at = at.index(bytes.len());
        if truncate { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        std::fs::write(&victim.path, bytes).unwrap();
        let found = match verify(dir.path()) {
            Ok(report) => !report.wrong.is_empty(),
            Err(_) => true,
        };
        prop_assert!(found, "{} at {at} not found by verify", victim.relative.display());
        if let Ok(ids) = read_all(dir.path()) {
            prop_assert_eq!(ids, good, "{} at {}", victim.relative.display(), at);
        }
    }
}
