//! Datasets written and read back: by Arrow as by us; what is damaged, swapped or unfinished is refused.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use proptest::prelude::*;

use super::writing::INCOMPLETE;
use super::*;
use crate::config::Remainder;
use crate::mutate::Mutator;
use crate::night::Run;

/// Writes into a file that is read-only.
fn overwrite(path: &Path, bytes: impl AsRef<[u8]>) {
    make_writable(path);
    std::fs::write(path, bytes).unwrap();
}

fn make_writable(path: &Path) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
}

/// A split of `tokens` counting ids in documents of 10 tokens.
fn fill(writer: &mut DatasetWriter, split: Split, tokens: u32, width: TokenWidth, remainder: Remainder) {
    fill_with(writer, split, &(0..tokens).collect::<Vec<_>>(), width, remainder);
}

fn fill_with(writer: &mut DatasetWriter, split: Split, ids: &[u32], width: TokenWidth, remainder: Remainder) {
    let mut stream = writer.split(split).unwrap();
    let mut bytes = Vec::new();
    for document in ids.chunks(10) {
        stream.begin_document();
        bytes.clear();
        width.encode(document, &mut bytes);
        stream.push(&bytes).unwrap();
    }
    let written = stream.finish(remainder, 0).unwrap();
    let (documents, read) = (ids.len().div_ceil(10) as u64, ids.len() as u64);
    writer.add(written, SplitFacts { documents, text_bytes: 1, read, ..SplitFacts::default() }).unwrap();
}

fn commit(mut writer: DatasetWriter) -> Manifest {
    writer.add_tokenizer_file("tokenizer.json", b"{}").unwrap();
    let head = ManifestHead {
        fingerprint: "f".to_owned(),
        largest_token_id: 1 << 20,
        eos_token_id: None,
        pad_token_id: 0,
        settings: serde_json::json!({}),
        rejected_records: BTreeMap::new(),
    };
    writer.commit(head).unwrap()
}

/// A dataset with one split.
fn make(dir: &Path, block_size: usize, tokens: u32, width: TokenWidth, remainder: Remainder) -> Manifest {
    let mut writer = DatasetWriter::create(dir, block_size, width, Layout::Stream, "print").unwrap().unwrap();
    fill(&mut writer, Split::Train, tokens, width, remainder);
    commit(writer)
}

/// A dataset with both splits, the first in 7 shards of 2 record batches.
fn make_large(dir: &Path) -> Manifest {
    let writer = DatasetWriter::create(dir, 4096, TokenWidth::U32, Layout::Stream, "print").unwrap().unwrap();
    let mut writer = writer.with_shard_bytes(512 << 10);
    fill(&mut writer, Split::Train, 14 * 65_536 + 5_000, TokenWidth::U32, Remainder::Pad);
    fill(&mut writer, Split::Validation, 100, TokenWidth::U32, Remainder::Drop);
    commit(writer)
}

/// All ids and document starts of a split, blocks read from the last to the first.
fn read_all(dir: &Path) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
    let reader = Dataset::open(dir)?.split(Split::Train)?.unwrap();
    let (mut ids, mut starts) = (Vec::new(), Vec::new());
    for block in (0..reader.len()).rev() {
        let mut one = Vec::new();
        reader.read_block(block, &mut one)?;
        ids.splice(0..0, one);
        starts.insert(0, reader.document_starts(block)?);
    }
    Ok((ids, starts))
}

/// The manifest in `dir` with `change` made to its JSON and a right checksum again.
fn reseal(dir: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join(MANIFEST);
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["blake3"] = "".into();
    change(&mut json);
    let text = serde_json::to_string_pretty(&json).unwrap() + "\n";
    let checksum = blake3::hash(text.as_bytes()).to_hex();
    let body = text.strip_suffix("\"\n}\n").unwrap();
    overwrite(&path, format!("{body}{checksum}\"\n}}\n"));
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
        assert_eq!(read_all(dir.path()).unwrap().0, expected);

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
    let refused = DatasetWriter::create(dir.path(), 8, TokenWidth::U16, Layout::Stream, "print").unwrap_err();
    assert!(refused.to_string().contains("thesis.txt"), "{refused}");

    let dir = tempfile::tempdir().unwrap();
    make(&dir.path().join("a"), 8, 100, TokenWidth::U16, Remainder::Drop);
    let unfinished = dir.path().join("b");
    let writer = DatasetWriter::create(&unfinished, 8, TokenWidth::U16, Layout::Stream, "print").unwrap().unwrap();
    drop(writer);
    std::fs::create_dir_all(unfinished.join("train")).unwrap();
    std::fs::write(unfinished.join("train/data-00009.arrow"), b"left over").unwrap();
    assert_eq!(Dataset::open(&unfinished).unwrap_err().exit_code(), 2);
    make(&unfinished, 8, 100, TokenWidth::U16, Remainder::Drop);
    assert!(!unfinished.join("train/data-00009.arrow").exists() && !unfinished.join(INCOMPLETE).exists());
    assert_eq!(read_all(&unfinished).unwrap(), read_all(&dir.path().join("a")).unwrap());
}

#[test]
fn a_dataset_is_made_of_the_files_of_another_and_of_damaged_ones_it_is_not() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let manifest = make(from.path(), 8, 100, TokenWidth::U16, Remainder::Pad);
    let begin = || {
        let fingerprint = &manifest.head.fingerprint;
        DatasetWriter::create(to.path(), 8, TokenWidth::U16, Layout::Stream, fingerprint).unwrap().unwrap()
    };
    let tokenizer = from.path().join("tokenizer/tokenizer.json");
    let good = std::fs::read(&tokenizer).unwrap();
    overwrite(&tokenizer, b"other");
    let refused = begin().take(&Dataset::open(from.path()).unwrap()).unwrap_err();
    assert!(refused.to_string().contains("tokenizer.json") && refused.exit_code() == 3, "{refused}");
    assert!(Manifest::load(to.path()).is_err());
    overwrite(&tokenizer, good);
    let (taken, how) = begin().take(&Dataset::open(from.path()).unwrap()).unwrap();
    assert_eq!(taken, manifest);
    let files = manifest.files.len() + manifest.splits.values().map(|split| split.shards.len()).sum::<usize>() + 1;
    assert_eq!(how.values().sum::<u64>(), files as u64);
    assert_eq!(read_all(to.path()).unwrap(), read_all(from.path()).unwrap());
    let report = verify(to.path()).unwrap();
    assert!(report.wrong.is_empty() && report.unknown.is_empty(), "{report:?}");
    assert_eq!(std::fs::read(to.path().join(MANIFEST)).unwrap(), std::fs::read(from.path().join(MANIFEST)).unwrap());
}

#[test]
fn a_newer_format_is_refused_by_version() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 8, 100, TokenWidth::U16, Remainder::Drop);
    let path = dir.path().join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap().replacen("\"format_version\": 1", "\"format_version\": 3", 1);
    overwrite(&path, text);
    let error = Dataset::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("version 3"), "{error}");
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
    overwrite(&a.path().join(shard), bytes);
    assert_eq!(read_all(a.path()).unwrap_err().exit_code(), 3);
}

#[test]
fn many_shards_read_by_many_threads_are_one_stream() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = make_large(dir.path());
    let train = &manifest.splits[&Split::Train];
    assert_eq!((train.shards.len(), train.blocks, train.last_block_valid_tokens), (2 * 8, 226, 904));
    let dataset = Dataset::open(dir.path()).unwrap();
    let reader = dataset.split(Split::Train).unwrap().unwrap();
    let check = |block: u64| {
        let mut ids = Vec::new();
        reader.read_block(block, &mut ids).unwrap();
        let begin = block as u32 * 4096;
        let valid = reader.valid_tokens(block).unwrap();
        assert!(ids[..valid].iter().copied().eq(begin..begin + valid as u32), "block {block}");
        assert!(ids.len() == 4096 && ids[valid..].iter().all(|id| *id == 0), "block {block}");
        let starts: Vec<_> = (0..valid as u32).filter(|offset| (begin + offset).is_multiple_of(10)).collect();
        assert_eq!(reader.document_starts(block).unwrap(), starts, "block {block}");
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || (0..226 * 3).for_each(|turn| check((turn * 37 + thread * 91) % 226)));
        }
    });
    assert_eq!(verify(dir.path()).unwrap().wrong, Vec::<String>::new());
    assert_eq!(dataset.split(Split::Validation).unwrap().unwrap().valid_tokens(0).unwrap(), 100);
}

/// In random order a block costs its piece once its batch was checked; what changes after that is found all the same.
#[test]
fn blocks_read_in_any_order_are_checked_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = make_large(dir.path());
    let reader = Dataset::open(dir.path()).unwrap().split(Split::Train).unwrap().unwrap();
    let len = reader.len();
    let order = |epoch| (0..len).map(move |at| crate::order::Permutation::new(len, 5, epoch).at(at));
    let order: Vec<u64> = order(0).chain(order(1)).collect();
    let read = |block: u64| {
        let mut ids = Vec::new();
        reader.read_block(block, &mut ids).map(|()| ids)
    };
    let last = len - 1;
    for block in order.iter().copied().filter(|block| *block != last) {
        let first = block as u32 * 4096;
        assert!(read(block).unwrap().into_iter().eq(first..first + 4096), "{block}");
    }
    // A bit in the middle of every batch of one shard, below which all have been checked.
    let shard = manifest.splits[&Split::Train].shards.iter().find(|shard| shard.name.kind == ShardKind::Data).unwrap();
    let path = shard.name.path(dir.path(), Split::Train);
    let mut bytes = std::fs::read(&path).unwrap();
    let changed: Vec<usize> = (0..shard.blocks as usize / 16).map(|batch| (batch << 18) + (100 << 10)).collect();
    changed.iter().for_each(|at| bytes[*at] ^= 4);
    overwrite(&path, &bytes);
    let others = || order.iter().filter(|block| **block >= shard.blocks && **block != last);
    others().take(40).for_each(|block| drop(read(*block).unwrap()));
    let failed = order.iter().take(len as usize).filter(|block| **block < shard.blocks).filter(|block| {
        let error = match read(**block) {
            Ok(ids) => {
                let first = **block as u32 * 4096;
                assert!(ids.into_iter().eq(first..first + 4096));
                return false;
            }
            Err(error) => error.to_string(),
        };
        assert!(error.contains("changed after they were checked") || error.contains("checksum"), "{error}");
        true
    });
    assert!(failed.count() >= changed.len());
}

#[test]
fn a_split_without_a_token_has_an_empty_shard() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = make(dir.path(), 8, 0, TokenWidth::U16, Remainder::Drop);
    assert_eq!(manifest.splits[&Split::Train].shards.len(), 2);
    assert!(Dataset::open(dir.path()).unwrap().split(Split::Train).unwrap().unwrap().is_empty());
    assert!(verify(dir.path()).unwrap().wrong.is_empty());
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("train/state.json")).unwrap()).unwrap();
    assert_eq!(state["_data_files"], serde_json::json!([{"filename": "data-00000.arrow"}]));
    assert_eq!(state.as_object().unwrap().len(), 7);
}

#[test]
fn settings_with_any_number_are_read_back() {
    // 2^-1074 and its like are numbers that a fast JSON parser may round differently than it printed them.
    let dir = tempfile::tempdir().unwrap();
    let mut writer = DatasetWriter::create(dir.path(), 8, TokenWidth::U16, Layout::Stream, "print").unwrap().unwrap();
    fill(&mut writer, Split::Train, 100, TokenWidth::U16, Remainder::Drop);
    let numbers: Vec<f64> = (0..20_000u64).map(|index| f64::from_bits(crate::random::mix(index) >> 2)).collect();
    let head = ManifestHead {
        fingerprint: "f".to_owned(),
        largest_token_id: 100,
        eos_token_id: Some(1),
        pad_token_id: 0,
        settings: serde_json::json!({ "numbers": numbers }),
        rejected_records: BTreeMap::new(),
    };
    writer.commit(head).unwrap();
    Dataset::open(dir.path()).unwrap();
}

#[test]
fn what_another_unfinished_dataset_left_is_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = DatasetWriter::create(dir.path(), 8, TokenWidth::U32, Layout::Stream, "print").unwrap().unwrap();
    fill(&mut writer, Split::Train, 100, TokenWidth::U32, Remainder::Drop);
    fill(&mut writer, Split::Validation, 100, TokenWidth::U32, Remainder::Drop);
    writer.add_tokenizer_file("merges.txt", b"x").unwrap();
    drop(writer);
    std::fs::write(dir.path().join("train/notes.txt"), b"mine").unwrap();
    make(dir.path(), 8, 100, TokenWidth::U16, Remainder::Drop);
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.wrong, report.unknown), (vec![], vec!["train/notes.txt".to_owned()]));
}

#[test]
fn a_committed_dataset_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 8, 100, TokenWidth::U16, Remainder::Drop);
    // As a writer finds it that was killed, or asked for the lock, between manifest and marker.
    std::fs::write(dir.path().join(INCOMPLETE), b"").unwrap();
    assert!(DatasetWriter::create(dir.path(), 8, TokenWidth::U16, Layout::Stream, "print").unwrap().is_none());
    let report = verify(dir.path()).unwrap();
    assert!(report.wrong.is_empty() && report.unknown.is_empty());
}

/// The others wait, find its dataset and write nothing.
#[test]
fn of_several_writers_one_writes() {
    let ledger = Run::of("times that four writers of a dataset began at once", 20, 1000);
    for round in 0..ledger.size {
        let dir = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(4);
        let wrote = std::thread::scope(|scope| {
            let race = || {
                barrier.wait();
                let writer = DatasetWriter::create(dir.path(), 8, TokenWidth::U16, Layout::Stream, "print").unwrap();
                writer.map(|mut writer| {
                    fill(&mut writer, Split::Train, 100, TokenWidth::U16, Remainder::Drop);
                    commit(writer)
                })
            };
            let racers: Vec<_> = (0..4).map(|_| scope.spawn(race)).collect();
            racers.into_iter().filter_map(|racer| racer.join().unwrap()).count()
        });
        assert_eq!(wrote, 1, "round {round}");
        let report = verify(dir.path()).unwrap();
        assert!(report.wrong.is_empty() && report.unknown.is_empty(), "{report:?}");
    }
    ledger.passed();
}

/// What was written stays: the next one waits until the lock of the writer that fails is free, and begins anew.
#[test]
fn a_writer_that_ends_without_a_dataset_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let first = DatasetWriter::create(dir.path(), 8, TokenWidth::U16, Layout::Stream, "print").unwrap().unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| make(dir.path(), 8, 100, TokenWidth::U16, Remainder::Drop));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!second.is_finished(), "two write at once");
        drop(first);
        second.join().unwrap();
    });
    assert!(verify(dir.path()).unwrap().wrong.is_empty());
}

#[test]
fn a_manifest_that_lies_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 11] = [
        ("block_size is 0", |json| json["block_size"] = 0.into()),
        ("block_size is 9", |json| json["block_size"] = 9_000_000_000u64.into()),
        ("cannot hold", |json| json["block_size"] = 9.into()),
        ("cannot hold", |json| json["splits"]["train"]["last_block_valid_tokens"] = 9.into()),
        ("cannot hold", |json| json["splits"]["train"]["blocks"] = u64::MAX.into()),
        ("balance", |json| json["splits"]["train"]["ledger"]["read"] = 101.into()),
        ("blocks", |json| json["splits"]["train"]["shards"][1]["blocks"] = 11.into()),
        ("belongs", |json| json["splits"]["train"]["shards"][0]["name"] = "data-00001.arrow".into()),
        ("not the name", |json| json["splits"]["train"]["shards"][0]["name"] = "../data-00000.arrow".into()),
        ("not the name", |json| json["files"]["../../etc/passwd"] = json["index"].clone()),
        ("not a manifest", |json| json["splits"]["../test"] = json["splits"]["train"].clone()),
    ];
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 8, 100, TokenWidth::U16, Remainder::Drop);
    reseal(dir.path(), |_| {});
    let sealed = std::fs::read(dir.path().join(MANIFEST)).unwrap();
    Dataset::open(dir.path()).unwrap();
    for (why, change) in changes {
        overwrite(&dir.path().join(MANIFEST), &sealed);
        reseal(dir.path(), change);
        let error = Dataset::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(why) && error.exit_code() == 3, "{error}");
    }
}

/// A dataset whose shard of blocks has some 64 KiB.
struct Victim {
    dir: tempfile::TempDir,
    path: PathBuf,
    /// The shard.
    bytes: Vec<u8>,
    /// Its ids.
    ids: Vec<u32>,
}

impl Victim {
    fn new(first_id: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            DatasetWriter::create(dir.path(), 1024, TokenWidth::U16, Layout::Stream, "print").unwrap().unwrap();
        let ids: Vec<u32> = (0..32_768).map(|id| (id + first_id as u32) % 65_536).collect();
        fill_with(&mut writer, Split::Train, &ids, TokenWidth::U16, Remainder::Drop);
        commit(writer);
        let path = dir.path().join("train/data-00000.arrow");
        make_writable(&path);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() > 64 << 10);
        Self { dir, path, bytes, ids }
    }

    /// The ids of the shard's first block, as a reader gets them.
    fn read(&self) -> Result<Vec<u32>> {
        let reader = Dataset::open(self.dir.path())?.split(Split::Train)?.unwrap();
        let mut ids = Vec::new();
        reader.read_block(0, &mut ids).map(|()| ids)
    }

    /// Whether a reader is refused; it must be or get the right ids.
    fn refuses(&self, what: &str) -> bool {
        match self.read() {
            Ok(ids) => assert!(ids[..] == self.ids[..1024], "{what} gave other ids"),
            Err(error) => assert_eq!(error.exit_code(), 3, "{what}: {error}"),
        }
        self.read().is_err()
    }
}

/// By night all bits, of another shard every time.
#[test]
fn a_flipped_bit_of_a_shard_never_reaches_a_reader() {
    use std::os::unix::fs::FileExt;
    let mut ledger = Run::of("bits of a shard of 64 KiB, flipped", 8_900, u64::MAX);
    let victim = Victim::new(ledger.seed);
    let shard = std::fs::OpenOptions::new().write(true).open(&victim.path).unwrap();
    let bits = victim.bytes.len() * 8;
    // 61 and 8 share no factor, so every bit of a byte has its turn.
    let step = if (bits as u64) < ledger.size { 1 } else { 61 };
    let (mut refused, mut unused) = (0, 0);
    for bit in (0..bits).step_by(step) {
        let at = bit / 8;
        shard.write_all_at(&[victim.bytes[at] ^ 1 << (bit % 8)], at as u64).unwrap();
        // The schema before the first batch and the end marker hold no token.
        if victim.refuses(&format!("bit {bit}")) {
            refused += 1
        } else {
            unused += 1
        }
        shard.write_all_at(&[victim.bytes[at]], at as u64).unwrap();
    }
    assert!(refused > 64 * unused, "{refused} refused, {unused} of bytes that hold no token");
    ledger.size = refused + unused;
    ledger.passed();
}

#[test]
fn a_shard_of_any_shorter_length_is_refused() {
    let mut ledger = Run::of("lengths to which a shard of 64 KiB was cut", u64::MAX, u64::MAX);
    let victim = Victim::new(ledger.seed);
    let shard = std::fs::OpenOptions::new().write(true).open(&victim.path).unwrap();
    for length in (0..victim.bytes.len() as u64).rev() {
        shard.set_len(length).unwrap();
        assert_eq!(victim.read().unwrap_err().exit_code(), 3, "{length}");
    }
    ledger.size = victim.bytes.len() as u64;
    ledger.passed();
}

/// As a disk does it, or a tool that copies: a sector is zeros, is another one, or has changed places with it; a run of bytes
/// is random.
#[test]
fn a_sector_that_is_another_never_reaches_a_reader() {
    let ledger = Run::of("sectors of a shard of 64 KiB that were zero, another's or random", 600, 500_000);
    let victim = Victim::new(ledger.seed);
    let mut random = Mutator::new(ledger.seed);
    let sectors = victim.bytes.len() / 512;
    let mut refused = 0;
    for number in 0..ledger.size {
        let mut bytes = victim.bytes.clone();
        let (sector, other) = (number as usize % sectors * 512, random.below(sectors) * 512);
        match random.below(4) {
            0 => bytes[sector..sector + 512].fill(0),
            1 => bytes.copy_within(other..other + 512, sector),
            2 => {
                bytes.copy_within(other..other + 512, sector);
                bytes[other..other + 512].copy_from_slice(&victim.bytes[sector..sector + 512]);
            }
            _ => {
                let length = 1 + random.below(4096).min(bytes.len() - sector - 1);
                bytes[sector..sector + length].iter_mut().for_each(|byte| *byte = random.number() as u8);
            }
        }
        std::fs::write(&victim.path, &bytes).unwrap();
        refused += u64::from(victim.refuses(&format!("damage {number}")));
    }
    assert!(refused > ledger.size / 2, "{refused} of {}", ledger.size);
    ledger.passed();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Flips one bit or cuts one file short, anywhere: `verify` names it, and the reader never returns a wrong id.
    #[test]
    fn damage_anywhere_is_found(file in 0usize..13, at in any::<prop::sample::Index>(), bit in 0u8..8, truncate in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = DatasetWriter::create(dir.path(), 8, TokenWidth::U16, Layout::Stream, "print").unwrap().unwrap().with_shard_bytes(1);
        fill(&mut writer, Split::Train, 203, TokenWidth::U16, Remainder::Drop);
        fill(&mut writer, Split::Validation, 50, TokenWidth::U16, Remainder::Pad);
        commit(writer);
        let good = read_all(dir.path()).unwrap();
        let files = storage::list_files(dir.path()).unwrap();
        let victim = &files[file % files.len()];
        let mut bytes = std::fs::read(&victim.path).unwrap();
        let at = at.index(bytes.len());
        if truncate { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        overwrite(&victim.path, bytes);
        let found = match verify(dir.path()) {
            Ok(report) => !report.wrong.is_empty(),
            Err(_) => true,
        };
        prop_assert!(found, "{} at {at} not found by verify", victim.relative.display());
        if let Ok(read) = read_all(dir.path()) {
            prop_assert_eq!(read, good, "{} at {}", victim.relative.display(), at);
        }
    }
}
