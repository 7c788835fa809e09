//! SIGKILL at any write, fsync, rename, link, mkdir or unlink, at another one of what is run to go on, and the same command again:
//! the same bytes as if nothing had happened, and nothing partial visible in between.

use std::collections::BTreeMap;
use std::path::Path;

use tokenmill_tests::mutate::Mutator;
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, digest, lines, run};

use crate::fault::{KILL, points};
use crate::jobs::{Job, OUTPUT, assert_whole_or_unfinished};

/// How often a program was killed, by what it was about to do.
type Hits = BTreeMap<String, u64>;

fn assert_fifty_of_every_kind(hits: &Hits) {
    println!("killed at {hits:?}");
    assert!(hits.values().sum::<u64>() >= 50, "{hits:?}");
    assert!(["hit write", "hit fsync", "hit rename"].iter().all(|kind| hits.contains_key(*kind)), "{hits:?}");
}

/// By night another job every time, killed at every call.
#[test]
fn prepare_killed_anywhere_and_run_again_gives_the_same_bytes() {
    let mut ledger = Run::of("prepare killed, and killed again as it goes on", 60, u64::MAX);
    let job = Job::of(ledger.seed);
    let clean = job.place();
    let calls = KILL.calls_of(&mut job.prepare(&clean), &clean);
    let expected = digest(&clean.path(OUTPUT));
    let mut random = Mutator::new(ledger.seed);
    let (mut hit, mut hit_again) = (Hits::new(), 0);
    let points = points(&calls, ledger.size);
    for at in points {
        let place = job.place();
        let (ended, noted) = KILL.at(at, &mut job.prepare(&place), &place);
        let after = format!("call {at} of {}, {noted}", calls.len());
        if ended.code.is_none() {
            assert!(noted.starts_with("hit "), "{after}");
            *hit.entry(noted).or_default() += 1;
        } else {
            // What was found in text of the last two seconds is not kept: in a slow run there are some calls more.
            assert!(at > calls.len() as u64 * 9 / 10, "{after}");
            ended.ok();
        }
        assert_whole_or_unfinished(&place.path(OUTPUT), &expected, &after);
        // What is left to do may be less than the call at which this is to end.
        let again = 1 + random.number() % (calls.len() as u64 - at / 2);
        let (ended, noted) = KILL.at(again, &mut job.prepare(&place), &place);
        let after = format!("{after}, then {again}, {noted}");
        hit_again += u64::from(ended.code.is_none());
        assert_whole_or_unfinished(&place.path(OUTPUT), &expected, &after);
        run(&mut job.prepare(&place)).ok();
        assert_eq!(digest(&place.path(OUTPUT)), expected, "killed at {after}");
        let left = digest(&place.path("cache")).into_keys().find(|path| path.to_string_lossy().contains(".tmp-"));
        assert_eq!(left, None, "killed at {after}");
    }
    assert_fifty_of_every_kind(&hit);
    ledger.size = hit.values().sum();
    assert!(hit_again > ledger.size / 3, "{hit_again} of {}", ledger.size);
    ledger.passed();
}

#[test]
fn a_checkpoint_is_whole_or_absent_whenever_the_trainer_is_killed() {
    let mut ledger = Run::of("training killed", 56, u64::MAX);
    let place = Place::new();
    place.write("text/a.txt", lines(120, ledger.seed));
    run(&mut place.prepare("data", &[])).ok();
    let flags = ["--max_steps", "4", "--save_steps", "2", "--data_seed", "7"];
    run(&mut place.train("data", "clean", &flags)).ok();
    let calls = KILL.calls_of(&mut place.train("data", "counted", &flags), &place);
    let weights = |output: &str| digest(&place.path(output)).remove(Path::new("model.safetensors")).unwrap();
    let expected = weights("clean");
    let mut hit = Hits::new();
    let points = points(&calls, ledger.size);
    ledger.size = points.len() as u64;
    for at in points {
        let output = format!("killed-{at}");
        let (ended, noted) = KILL.at(at, &mut place.train("data", &output, &flags), &place);
        assert!(
            ended.code.is_none() && noted.starts_with("hit "),
            "call {at} of {}: {noted:?} {}",
            calls.len(),
            ended.stderr
        );
        *hit.entry(noted.clone()).or_default() += 1;
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
    ledger.passed();
}
