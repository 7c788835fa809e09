//! SIGKILL at any write, fsync, rename, link, mkdir or unlink, and the same command again: the same bytes as if
//! nothing had happened, and nothing partial visible in between. The same for full disks and I/O errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tokenmill_tests::{Ended, Place, digest, lines, root, run};

/// The preloaded library of `fault.c`, compiled once a run.
pub(crate) fn shim() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fault.so");
        let source = root().join("tests/fault.c");
        let compiled =
            run(Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&path).arg(source).arg("-ldl"));
        assert_eq!(compiled.code, Some(0), "{}", compiled.stderr);
        (dir, path)
    });
    path
}

/// Runs `command` with a fault at call `at`; returns how it ended and what the shim noted.
pub(crate) fn with_fault(command: &mut Command, place: &Place, at: u64, mode: &str) -> (Ended, String) {
    let log = place.path("fault.log");
    let _ = std::fs::remove_file(&log);
    command.env("LD_PRELOAD", shim()).env("FAULT_AT", at.to_string()).env("FAULT_MODE", mode).env("FAULT_LOG", &log);
    command.env("FAULT_UNDER", place.path(""));
    let ended = run(command);
    (ended, std::fs::read_to_string(&log).unwrap_or_default())
}

/// The calls of a whole run in order: w for write, f for fsync, r for rename, l for link, m for mkdir, u for
/// unlink.
pub(crate) fn calls_of(command: &mut Command, place: &Place) -> String {
    let (ended, noted) = with_fault(command, place, 0, "kill");
    ended.ok();
    assert!(!noted.trim().is_empty(), "the shim counted nothing");
    noted.trim().to_owned()
}

fn corpus(place: &Place) {
    for file in 0..3 {
        place.write(&format!("text/{file}.txt"), lines(40, file));
    }
}

/// `count` of the `calls`, counted from 1; all, if there are no more. Writes are by far the most, and would leave no room
/// for others if all were chosen alike: half of the places are theirs, evenly spread, the other half the others'.
fn points(calls: &str, count: u64) -> Vec<u64> {
    let of = |write: bool| {
        let kinds = (1..).zip(calls.chars()).filter(|(_, kind)| (*kind == 'w') == write);
        kinds.map(|(at, _)| at).collect::<Vec<u64>>()
    };
    let (writes, others) = (of(true), of(false));
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(calls.len());
    let for_writes = (count / 2).max(count.saturating_sub(others.len())).min(writes.len());
    let mut points = [spread(&writes, for_writes), spread(&others, count - for_writes)].concat();
    points.sort_unstable();
    points
}

/// `count` of these, evenly spread, the first and the last among them.
fn spread(all: &[u64], count: usize) -> Vec<u64> {
    (0..count).map(|number| all[number * (all.len() - 1) / (count - 1).max(1)]).collect()
}

fn scale(normal: u64) -> u64 {
    if std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale != "pr") { u64::MAX } else { normal }
}

/// How often a program was killed, by what it was about to do.
type Hits = BTreeMap<String, u64>;

fn assert_fifty_of_every_kind(hits: &Hits) {
    println!("killed at {hits:?}");
    assert!(hits.values().sum::<u64>() >= 50, "{hits:?}");
    assert!(["hit write", "hit fsync", "hit rename"].iter().all(|kind| hits.contains_key(*kind)), "{hits:?}");
}

const SPLIT: [&str; 2] = ["--validation_split_percentage", "20"];

#[test]
fn prepare_killed_anywhere_and_run_again_gives_the_same_bytes() {
    let clean = Place::new();
    corpus(&clean);
    let calls = calls_of(&mut clean.prepare("out", &SPLIT), &clean);
    let expected = digest(&clean.path("out"));
    let mut hit = Hits::new();
    for at in points(&calls, scale(60)) {
        let place = Place::new();
        corpus(&place);
        let (ended, noted) = with_fault(&mut place.prepare("out", &SPLIT), &place, at, "kill");
        assert!(
            ended.code.is_none() && noted.starts_with("hit "),
            "call {at} of {}: {noted:?} {}",
            calls.len(),
            ended.stderr
        );
        *hit.entry(noted.trim().to_owned()).or_default() += 1;
        if place.path("out/manifest.json").exists() {
            let mut found = digest(&place.path("out"));
            found.retain(|path, _| !path.to_string_lossy().starts_with('.'));
            assert_eq!(found, expected, "a manifest without its dataset after call {at}");
        }
        run(&mut place.prepare("out", &SPLIT)).ok();
        assert_eq!(digest(&place.path("out")), expected, "killed at call {at}: {noted}");
        let left = digest(&place.path("cache")).into_keys().find(|path| path.to_string_lossy().contains(".tmp-"));
        assert_eq!(left, None, "killed at call {at}: {noted}");
    }
    assert_fifty_of_every_kind(&hit);
}

#[test]
fn a_full_disk_or_an_io_error_is_named_and_a_rerun_completes_with_the_same_bytes() {
    let clean = Place::new();
    corpus(&clean);
    let calls = calls_of(&mut clean.prepare("out", &[]), &clean);
    let expected = digest(&clean.path("out"));
    for (mode, code, says) in [("enospc", 4, "No space left"), ("eio", 1, "error")] {
        for at in points(&calls, scale(12)) {
            let place = Place::new();
            corpus(&place);
            let (ended, noted) = with_fault(&mut place.prepare("out", &[]), &place, at, mode);
            assert!(noted.starts_with("hit "), "call {at}: {noted:?}");
            if noted.trim() != "hit unlink" {
                ended.fails(code, &[place.path("").to_str().unwrap(), says]);
            }
            run(&mut place.prepare("out", &[])).ok();
            assert_eq!(digest(&place.path("out")), expected, "{mode} at call {at}");
        }
    }
}

#[test]
fn a_checkpoint_is_whole_or_absent_whenever_the_trainer_is_killed() {
    let place = Place::new();
    corpus(&place);
    run(&mut place.prepare("data", &[])).ok();
    let flags = ["--max_steps", "4", "--save_steps", "2", "--data_seed", "7"];
    run(&mut place.train("data", "clean", &flags)).ok();
    let calls = calls_of(&mut place.train("data", "counted", &flags), &place);
    let weights = |output: &str| digest(&place.path(output)).remove(Path::new("model.safetensors")).unwrap();
    let expected = weights("clean");
    let mut hit = Hits::new();
    for at in points(&calls, scale(56)) {
        let output = format!("killed-{at}");
        let (ended, noted) = with_fault(&mut place.train("data", &output, &flags), &place, at, "kill");
        assert!(
            ended.code.is_none() && noted.starts_with("hit "),
            "call {at} of {}: {noted:?} {}",
            calls.len(),
            ended.stderr
        );
        *hit.entry(noted.trim().to_owned()).or_default() += 1;
        for step in [2, 4] {
            let whole = digest(&place.path(&format!("clean/checkpoint-{step}")));
            let dir = place.path(&format!("{output}/checkpoint-{step}"));
            if dir.exists() {
                let mut found: Vec<_> = digest(&dir).into_keys().collect();
                found.sort();
                assert!(found.iter().eq(whole.keys()), "a partial checkpoint after call {at}: {found:?}");
            }
        }
        let resumes = place.path(&format!("{output}/checkpoint-2")).exists()
            || place.path(&format!("{output}/checkpoint-4")).exists();
        let resume: &[&str] = if resumes { &["--resume_from_checkpoint", "true"] } else { &[] };
        run(place.train("data", &output, &flags).args(resume)).ok();
        assert_eq!(weights(&output), expected, "killed at call {at}: {noted}");
    }
    assert_fifty_of_every_kind(&hit);
}
