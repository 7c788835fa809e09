//! What is left of files that were not published, and how directories are listed.

use std::io::Write;

use super::*;

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
