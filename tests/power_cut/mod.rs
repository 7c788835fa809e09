//! A power cut at any instant: nothing that was published is lost or half visible, and the same command again gives the same
//! bytes.
//!
//! [`log`] records what the real program does to files and directories, whether it goes through the storage door or not;
//! [`disk`] says what may be left of it. Every state is looked at, and a sample of them is written out for the program to go
//! on with.

mod disk;
mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use tokenmill_tests::mutate::Mutator;
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, digest, lines, run};

use self::disk::{Disk, Leaf, Tree, is_trusted};
use self::log::{Call, record};
use crate::fault::KILL;
use crate::jobs::{Job, OUTPUT};
use crate::taking;

/// What a program did in a place.
struct Recorded {
    /// The disk before.
    first: Disk,
    calls: Vec<Call>,
    /// The disk after all calls.
    last: Disk,
    /// Draws what a power cut leaves.
    seed: u64,
}

impl Recorded {
    /// Runs `command` in `place`.
    fn of(seed: u64, place: &Place, command: &mut Command) -> Self {
        let first = Disk::of(&place.path(""));
        let calls = record(command, place);
        let mut last = first.clone();
        calls.iter().for_each(|call| last.apply(call));
        let hash = |(path, leaf)| match leaf {
            Leaf::File(_, content) => Some((path, blake3::hash(&content).to_hex().to_string())),
            _ => None,
        };
        let left: BTreeMap<PathBuf, String> = last.tree().into_iter().filter_map(hash).collect();
        assert_eq!(left, digest(&place.path("")), "the recorder missed something");
        Self { first, calls, last, seed }
    }

    /// The same where the sync at `place` in the calls, or several, did not happen.
    fn without(&self, skipped: impl Fn(usize, &Call) -> bool) -> Self {
        let calls = self.calls.iter().enumerate().filter(|(place, call)| !skipped(*place, call));
        Self {
            first: self.first.clone(),
            calls: calls.map(|(_, call)| call.clone()).collect(),
            last: self.last.clone(),
            seed: self.seed,
        }
    }

    /// Hands on what a power cut may leave after each number of calls: all of it where there is little to choose, else a
    /// random sample; about `count` states. Stops at the first for which `each` has something to say.
    fn each_state(&self, count: u64, each: &mut dyn FnMut(usize, &Tree) -> Option<String>) -> Option<String> {
        let mut random = Mutator::new(self.seed);
        let mut disk = self.first.clone();
        let of_each = (count / (self.calls.len() as u64 + 1)).max(2);
        for at in 0..=self.calls.len() {
            let ways = disk.ways();
            for number in 0..ways.min(of_each) {
                let mut rest = number;
                let mut choose = |ways_here: u64| {
                    let digit = rest % ways_here;
                    rest /= ways_here;
                    if ways > of_each { random.number() % ways_here } else { digit }
                };
                let tree = disk.after_power_cut(&mut choose);
                if let Some(said) = each(at, &tree) {
                    return Some(format!("after call {at} of {}: {said}", self.calls.len()));
                }
            }
            if let Some(call) = self.calls.get(at) {
                disk.apply(call);
            }
        }
        None
    }

    /// What is wrong with a state: something half visible, a manifest without its dataset or with more than that, or
    /// something lost of what there was when the program had ended.
    fn wrong_with(&self, at: usize, tree: &Tree) -> Option<String> {
        let ended = at == self.calls.len();
        self.last.half_visible(tree).or_else(|| self.manifest_alone(tree)).or_else(|| {
            let lost = self.last.published().into_iter().find(|path| !tree.contains_key(path));
            lost.filter(|_| ended).map(|path| format!("{} is lost", path.display()))
        })
    }

    fn manifest_alone(&self, tree: &Tree) -> Option<String> {
        let dir = Path::new("out");
        let published = self.last.published();
        let expected: BTreeSet<&PathBuf> = published.iter().filter(|path| path.starts_with(dir)).collect();
        let is_there = |path: &&PathBuf| path.starts_with(dir) && is_trusted(path) && is_file(tree, path);
        let found: BTreeSet<&PathBuf> =
            tree.keys().filter(is_there).filter(|path| !path.ends_with(INCOMPLETE)).collect();
        let differs = tree.contains_key(&dir.join("manifest.json")) && found != expected;
        differs.then(|| format!("the manifest stands over {found:?}"))
    }

    /// Fails the test if any of `count` states is wrong, or of all, if there are not so many; returns how many there were.
    fn assert_no_state_is_wrong(&self, count: u64) -> u64 {
        let mut states = 0;
        let wrong = self.each_state(count, &mut |at, tree| {
            states += 1;
            self.wrong_with(at, tree)
        });
        println!("{} calls, {states} states", self.calls.len());
        assert_eq!(wrong, None);
        assert!(states >= count.min(8000) / 4, "{states} states");
        states
    }

    /// The guard of the guard: states without one sync below `dir`, or without those of one directory, must show it. Of how many
    /// files and which directories.
    fn assert_every_sync_shows(&self, dir: &Path) -> (usize, BTreeSet<PathBuf>) {
        let shows =
            |without: Recorded| without.each_state(1000, &mut |at, tree| without.wrong_with(at, tree)).is_some();
        assert!(!shows(self.without(|_, _| false)));
        let synced = |call: &Call| match call {
            Call::Sync { path, .. } if path.starts_with(dir) => Some(path.clone()),
            _ => None,
        };
        let mut directories = BTreeSet::new();
        let mut files = 0;
        for (place, call) in self.calls.iter().enumerate() {
            let Some(path) = synced(call) else { continue };
            match self.last.holds_published(&path) {
                Some(true) => drop(directories.insert(path)),
                Some(false) => {}
                None => {
                    files += 1;
                    let shown = shows(self.without(|at, _| at == place));
                    assert!(shown, "{} was not synced, and nothing shows it", path.display());
                }
            }
        }
        for directory in &directories {
            let of_it = |_: usize, call: &Call| matches!(call, Call::Sync { path, .. } if path == directory);
            assert!(shows(self.without(of_it)), "{} was never synced, and nothing shows it", directory.display());
        }
        (files, directories)
    }

    /// `count` states, of evenly spread places, none twice.
    fn sample(&self, count: usize) -> Vec<(usize, Tree)> {
        let places: BTreeSet<usize> = (0..count).map(|number| number * self.calls.len() / (count - 1).max(1)).collect();
        let mut random = Mutator::new(self.seed);
        let mut sampled: Vec<(usize, Tree)> = Vec::new();
        let mut disk = self.first.clone();
        for at in 0..=self.calls.len() {
            for _ in 0..count.div_ceil(places.len()) {
                let tree = disk.after_power_cut(&mut |ways| random.number() % ways);
                if places.contains(&at) && sampled.last().is_none_or(|(_, last)| *last != tree) {
                    sampled.push((at, tree));
                }
            }
            if let Some(call) = self.calls.get(at) {
                disk.apply(call);
            }
        }
        sampled
    }
}

const INCOMPLETE: &str = ".tokenmill-incomplete";

fn is_file(tree: &Tree, path: &Path) -> bool {
    matches!(tree.get(path), Some(Leaf::File(..)))
}

fn write_out(tree: &Tree, place: &Place) {
    for (path, leaf) in tree {
        let path = place.path(path.to_str().unwrap());
        match leaf {
            Leaf::Directory(_) => std::fs::create_dir_all(path).unwrap(),
            Leaf::File(_, content) => std::fs::write(path, content.as_slice()).unwrap(),
            Leaf::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
        }
    }
}

/// Runs `job` again on a sample of states.
fn assert_prepare_goes_on(recorded: &Recorded, job: &Job, count: u64) {
    let clean = job.place();
    run(&mut job.prepare(&clean)).ok();
    let expected = digest(&clean.path(OUTPUT));
    for (at, tree) in recorded.sample(count as usize) {
        let place = Place::new();
        write_out(&tree, &place);
        run(&mut job.prepare(&place)).ok();
        assert_eq!(digest(&place.path(OUTPUT)), expected, "after call {at} of {}", recorded.calls.len());
    }
}

fn recorded_prepare(job: &Job) -> Recorded {
    let place = job.place();
    Recorded::of(job.seed, &place, &mut job.prepare(&place))
}

/// By night of another job every time.
#[test]
fn a_power_cut_during_prepare_leaves_nothing_half_visible_and_the_same_command_gives_the_same_bytes() {
    let mut ledger = Run::of("states of the disk after a power cut during prepare", 8000, 400_000);
    let job = Job::of(ledger.seed);
    let recorded = recorded_prepare(&job);
    let states = recorded.assert_no_state_is_wrong(ledger.size);
    assert_prepare_goes_on(&recorded, &job, ledger.size.isqrt() / 4);
    ledger.size = states;
    ledger.passed();
}

/// What was linked is whole at once; what the links are in is not.
#[test]
fn a_power_cut_while_a_dataset_is_taken_from_the_cache_leaves_nothing_half_visible() {
    let tried = Place::new();
    taking::cached(&tried);
    if !run(&mut Job::of_two_splits(1).prepare(&tried)).ok().json()["taken"]["cloned"].is_null() {
        println!("the temporary directory is on a file system that clones files, which the recorder does not know");
        return;
    }
    let mut ledger = Run::of("states of the disk after a power cut during prepare from the cache", 4000, 200_000);
    let (job, place) = (Job::of_two_splits(1), Place::new());
    let cached = taking::cached(&place);
    let recorded = Recorded::of(ledger.seed, &place, &mut job.prepare(&place));
    assert_eq!(digest(&place.path("out")), digest(&cached));
    let states = recorded.assert_no_state_is_wrong(ledger.size);
    assert_prepare_goes_on(&recorded, &job, ledger.size.isqrt() / 5);
    recorded.assert_every_sync_shows(&place.path("out"));
    ledger.size = states;
    ledger.passed();
}

/// What the first attempt left was a dataset but for the manifest, with a split that the second has not.
#[test]
fn a_power_cut_during_a_second_attempt_with_other_settings_leaves_nothing_of_the_first() {
    let mut ledger = Run::of("states of the disk after a power cut during a second prepare", 4000, 200_000);
    let (first, second) = (Job::of_two_splits(ledger.seed), Job::of_longer_blocks(ledger.seed));
    let (place, counted) = (first.place(), first.place());
    let calls = KILL.calls_of(&mut first.prepare(&counted), &counted);
    // The marker goes right after the manifest is there.
    let marker = calls.rfind('u').unwrap();
    let manifest = calls[..marker].rfind('r').unwrap() as u64 + 1;
    let (_, noted) = KILL.at(manifest, &mut first.prepare(&place), &place);
    assert_eq!(noted, "hit rename");
    assert!(place.path("out/validation/data-00000.arrow").exists() && !place.path("out/manifest.json").exists());
    let recorded = Recorded::of(ledger.seed, &place, &mut second.prepare(&place));
    let states = recorded.assert_no_state_is_wrong(ledger.size);
    assert_prepare_goes_on(&recorded, &second, ledger.size.isqrt() / 4);
    ledger.size = states;
    ledger.passed();
}

#[test]
fn a_power_cut_during_training_leaves_checkpoints_whole_or_absent_and_resuming_gives_the_same_weights() {
    let mut ledger = Run::of("states of the disk after a power cut during training", 2000, 200_000);
    let place = Place::new();
    place.write("text/a.txt", lines(120, ledger.seed));
    run(&mut place.prepare("data", &[])).ok();
    let flags = ["--max_steps", "4", "--save_steps", "2", "--save_total_limit", "1", "--data_seed", "7"];
    let recorded = Recorded::of(ledger.seed, &place, &mut place.train("data", "trained", &flags));
    let states = recorded.assert_no_state_is_wrong(ledger.size);
    let weights = |place: &Place| digest(&place.path("trained")).remove(Path::new("model.safetensors")).unwrap();
    let expected = weights(&place);
    for (at, tree) in recorded.sample(ledger.size.isqrt() as usize / 11) {
        let place = Place::new();
        write_out(&tree, &place);
        let resumes = tree
            .keys()
            .any(|path| path.starts_with("trained/checkpoint-2") || path.starts_with("trained/checkpoint-4"));
        let resume: &[&str] = if resumes { &["--resume_from_checkpoint", "true"] } else { &[] };
        run(place.train("data", "trained", &flags).args(resume)).ok();
        assert_eq!(weights(&place), expected, "after call {at} of {}", recorded.calls.len());
    }
    ledger.size = states;
    ledger.passed();
}

#[test]
fn every_sync_that_is_left_out_shows() {
    let recorded = recorded_prepare(&Job::of(1));
    let (files, directories) = recorded.assert_every_sync_shows(Path::new("/"));
    assert!(files >= 10 && directories.len() >= 5, "{files} files, {directories:?}");
}
