//! What is left of files that were not published, and how directories are listed.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::night::Run;

#[test]
fn an_unpublished_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut file = TemporaryFile::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    drop(file);
    assert!(list_files(dir.path()).unwrap().is_empty());
}

#[test]
fn stale_temporaries_go_and_live_and_foreign_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let live = TemporaryFile::create(&dir.path().join("a")).unwrap();
    let stale = dir.path().join(".tmp-host-1-1f.0");
    let foreign = dir.path().join(".tmp-notes");
    std::fs::write(&stale, b"x").unwrap();
    std::fs::write(&foreign, b"x").unwrap();
    assert_eq!(remove_stale_temporaries(dir.path()).unwrap(), vec![stale.clone()]);
    assert!(foreign.exists() && !stale.exists());
    live.publish().unwrap();
    assert!(dir.path().join("a").exists());
}

#[test]
fn files_are_listed_by_the_bytes_of_their_path() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "a-1", "a/z", "B"] {
        create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        replace(&dir.path().join(name), b"").unwrap();
    }
    let names: Vec<_> = list_files(dir.path()).unwrap().into_iter().map(|entry| entry.relative).collect();
    assert_eq!(names, ["B", "a-1", "a/z", "b"].map(PathBuf::from));
}

#[test]
fn a_link_to_a_directory_above_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    assert!(list_files(dir.path()).unwrap_err().to_string().contains("symbolic link"));
}

#[test]
fn reading_more_than_the_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    replace(&path, &[0; 100]).unwrap();
    assert_eq!(read_at_most(&path, 100).unwrap().len(), 100);
    assert_eq!(read_at_most(&path, 99).unwrap_err().exit_code(), 3);
}

/// A start removes what was left behind, and nothing that another thread of the process has just created.
#[test]
fn what_begins_at_once_with_a_removal_of_left_behind_files_is_kept() {
    let ledger = Run::of("files and directories begun while left behind ones were removed", 100, 50_000);
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let begins = Arc::new(());
        let is_over = Arc::downgrade(&begins);
        let dir = dir.path();
        scope.spawn(move || {
            while is_over.strong_count() > 0 {
                remove_stale_temporaries(dir).unwrap();
            }
        });
        for number in 0..ledger.size {
            probe(dir).unwrap();
            replace(&dir.join("a"), b"whole").unwrap();
            let begun = dir.join(number.to_string());
            TemporaryDirectory::create(&begun).unwrap().publish().unwrap();
            remove_dir_all(&begun).unwrap();
        }
        drop(begins);
    });
    ledger.passed();
}

/// Readers see the old file or the new one, whole, and never an older one after a newer.
#[test]
fn readers_see_a_replaced_file_old_or_new() {
    let ledger = Run::of("times that a file was replaced under four readers", 500, 10_000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.json");
    // Lengths differ, so that a mixture would show in them too.
    let content = |number: u64| format!("{number} ").repeat(20 + number as usize % 700);
    replace(&path, content(0).as_bytes()).unwrap();
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let replaces = Arc::new(());
        let (is_over, path, seen) = (Arc::downgrade(&replaces), &path, &seen);
        let read = move || {
            let mut last = 0;
            while is_over.strong_count() > 0 {
                let text = std::fs::read_to_string(path).unwrap();
                let number = text.split(' ').next().unwrap().parse().unwrap();
                assert!(text == content(number) && number >= last, "after {last}: {text:?}");
                seen.fetch_add(u64::from(number != last), Ordering::Relaxed);
                last = number;
            }
        };
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(read.clone())).collect();
        for number in 1..=ledger.size {
            let before = seen.load(Ordering::Relaxed);
            replace(path, content(number).as_bytes()).unwrap();
            // In memory files are replaced faster than they are read: every fifth waits for a reader.
            let is_seen = || seen.load(Ordering::Relaxed) > before || readers.iter().any(|reader| reader.is_finished());
            while number % 5 == 0 && !is_seen() {
                std::thread::yield_now();
            }
        }
        drop(replaces);
    });
    let seen = seen.into_inner();
    assert!(seen >= ledger.size / 5, "{seen} of {} were seen", ledger.size);
    assert_eq!(list_files(dir.path()).unwrap().len(), 1);
    ledger.passed();
}
