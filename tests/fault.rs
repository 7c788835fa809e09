//! Programs that are killed, or whose calls fail, at a place of choice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tokenmill_tests::{Ended, Place, root, run};

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

/// What goes wrong with which calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Of `fault.c`: `kill`, `eio`, `short` and so on.
    pub(crate) mode: &'static str,
    /// Letters of the calls that are counted and hit.
    pub(crate) calls: &'static str,
    /// Only one call is hit, not all after it too.
    pub(crate) once: bool,
}

/// SIGKILL before something changes on the disk.
pub(crate) const KILL: Fault = Fault { mode: "kill", calls: "wfrlmu", once: true };

impl Fault {
    /// Runs `command` with this at call `at`; returns how it ended and what the shim noted.
    pub(crate) fn at(self, at: u64, command: &mut Command, place: &Place) -> (Ended, String) {
        let log = place.path("fault.log");
        let _ = std::fs::remove_file(&log);
        command.env("LD_PRELOAD", shim()).env("FAULT_LOG", &log).env("FAULT_UNDER", place.path(""));
        command.env("FAULT_AT", at.to_string()).env("FAULT_MODE", self.mode).env("FAULT_CALLS", self.calls);
        if self.once {
            command.env("FAULT_ONCE", "1");
        }
        let ended = run(command);
        let noted = std::fs::read_to_string(&log).unwrap_or_default();
        let _ = std::fs::remove_file(&log);
        (ended, noted.trim().to_owned())
    }

    /// The calls of an undisturbed run that it could hit, in order, a letter each.
    pub(crate) fn calls_of(self, command: &mut Command, place: &Place) -> String {
        let (ended, noted) = self.at(0, command, place);
        ended.ok();
        assert!(!noted.is_empty(), "the shim counted nothing");
        noted
    }
}

/// `count` of the `calls`, counted from 1; all, if there are no more. Writes are by far the most, and would leave no room
/// for others if all were chosen alike: half of the places are theirs, evenly spread, the other half the others'.
pub(crate) fn points(calls: &str, count: u64) -> Vec<u64> {
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
