//! What a program did to files and directories, in order, as `record.c` writes it down.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tokenmill_tests::{Place, root, run};

/// One call that succeeded.
#[derive(Debug, Clone)]
pub enum Call {
    /// A file was opened that is created if absent.
    Open { inode: u64, path: PathBuf, truncated: bool, appends: bool },
    /// Bytes were written.
    Write { inode: u64, offset: usize, bytes: Vec<u8> },
    /// A file or a directory was synced.
    Sync { inode: u64, path: PathBuf },
    /// A directory was made.
    Mkdir { inode: u64, path: PathBuf },
    /// Something got another name.
    Rename { from: PathBuf, to: PathBuf },
    /// A file got a second name.
    HardLink { from: PathBuf, to: PathBuf },
    /// A symbolic link was made.
    Link { inode: u64, path: PathBuf, target: PathBuf },
    /// A name was removed.
    Remove { path: PathBuf },
}

/// The preloaded library, compiled once a run.
fn recorder() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.so");
        let source = root().join("tests/power_cut/record.c");
        let mut compile = Command::new("cc");
        run(compile.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&path).arg(source).arg("-ldl")).ok();
        (dir, path)
    });
    path
}

/// Runs `command`, which must succeed, and returns what it did below `place`.
pub fn record(command: &mut Command, place: &Place) -> Vec<Call> {
    let log = tempfile::NamedTempFile::new().unwrap();
    // The place itself counts too, which a path that ends in a slash would leave out.
    let under = place.path("text").parent().unwrap().to_owned();
    command.env("LD_PRELOAD", recorder()).env("RECORD_LOG", log.path()).env("RECORD_UNDER", under);
    run(command).ok();
    let bytes = std::fs::read(log.path()).unwrap();
    let mut rest = bytes.as_slice();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut number = || {
            let (number, after) = rest.split_first_chunk::<8>().expect("a whole record");
            rest = after;
            u64::from_le_bytes(*number)
        };
        let [kind, inode, number, one, two] = [number(), number(), number(), number(), number()];
        let mut part = |length: u64| {
            let (part, after) = rest.split_at(length as usize);
            rest = after;
            part.to_vec()
        };
        let (one, two) = (part(one), part(two));
        let path = |bytes: Vec<u8>| PathBuf::from(OsString::from_vec(bytes));
        calls.push(match kind as u8 {
            b'o' => {
                let has = |flag: i32| number & flag as u64 != 0;
                Call::Open { inode, path: path(one), truncated: has(TRUNCATE), appends: has(APPEND) }
            }
            b'w' => Call::Write { inode, offset: number as usize, bytes: one },
            b's' => Call::Sync { inode, path: path(one) },
            b'm' => Call::Mkdir { inode, path: path(one) },
            b'r' => Call::Rename { from: path(one), to: path(two) },
            b'h' => Call::HardLink { from: path(one), to: path(two) },
            b'l' => Call::Link { inode, path: path(one), target: path(two) },
            b'u' => Call::Remove { path: path(one) },
            other => panic!("a record of kind {other}"),
        });
    }
    assert!(!calls.is_empty(), "the recorder saw nothing");
    calls
}

/// `O_TRUNC` and `O_APPEND` of Linux.
const TRUNCATE: i32 = 0o1000;
const APPEND: i32 = 0o2000;
