//! Real file systems that are really full: it is said, nothing half made is seen, and with more room the same command
//! completes. Mounting needs root; where it cannot be, that is said, and `io_errors.rs` has the same error at every call.

use std::path::{Path, PathBuf};
use std::process::Command;

use tokenmill_tests::night::Run;
use tokenmill_tests::{Ended, Place, digest, lines, run};

use crate::jobs::assert_whole_or_unfinished;

/// A mounted file system.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` where that is not allowed.
    fn new(at: PathBuf, arguments: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let ended = run(Command::new("mount").args(arguments).arg(&at));
        if ended.code != Some(0) {
            println!("cannot mount {arguments:?} here: {}", ended.stderr.trim());
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

fn text() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(4_000, 1));
    place
}

/// Output and cache on `small/`.
fn prepare(place: &Place) -> Ended {
    let cache = place.path("small/cache");
    run(&mut place.prepare("small/out", &["--cache_dir", cache.to_str().unwrap()]))
}

/// From no room to nearly enough, in so many steps on every change and by night.
fn at_all_levels(
    name: &'static str,
    steps: [u64; 2],
    mount: impl Fn(&Path, u64) -> Option<Mounted>,
    grow: impl Fn(&Path),
) {
    let place = text();
    if mount(&place.path("small"), 1 << 20).is_none() {
        return;
    }
    let ledger = Run::of(name, steps[0], steps[1]);
    prepare(&place).ok();
    let expected = digest(&place.path("small/out"));
    let needed = run(Command::new("du").args(["--summarize", "--block-size=1"]).arg(place.path("small"))).ok().stdout;
    let needed: u64 = needed.split('\t').next().unwrap().parse().unwrap();
    let mut full = 0;
    for level in 0..ledger.size {
        let place = text();
        let small = place.path("small");
        let _mounted = mount(&small, needed * level / ledger.size).unwrap();
        let ended = prepare(&place);
        if ended.code != Some(0) {
            ended.fails(4, &["small/", "No space left", "run the same command again"]);
            // Room may have been short for what comes after the manifest only.
            assert_whole_or_unfinished(&place.path("small/out"), &expected, &format!("level {level}"));
            full += 1;
        }
        grow(&small);
        prepare(&place).ok();
        assert_eq!(digest(&place.path("small/out")), expected, "level {level}");
    }
    assert!(full > ledger.size / 2, "{full} of {}", ledger.size);
    ledger.passed();
}

#[test]
fn a_full_tmpfs_is_named_and_a_rerun_completes() {
    let mount = |at: &Path, room: u64| {
        let size = format!("size={}", room.max(4096)); // 0 is without a limit
        Mounted::new(at.to_owned(), &["-t", "tmpfs", "-o", &size, "tmpfs"])
    };
    let grow = |at: &Path| drop(run(Command::new("mount").args(["-o", "remount,size=64m"]).arg(at)).ok());
    at_all_levels("sizes of a full tmpfs", [5, 50], mount, grow);
}

/// Filled by another file but for that room.
#[test]
fn a_full_ext4_is_named_and_a_rerun_completes() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let mount = |at: &Path, room: u64| {
        image.as_file().set_len(0).unwrap();
        image.as_file().set_len(16 << 20).unwrap();
        // Of the administrator's programs, which are not on every user's path.
        let make =
            run(Command::new("sh").args(["-c", "PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q \"$0\""]).arg(image.path()));
        if make.code != Some(0) {
            println!("cannot make an ext4 here: {}", make.stderr.trim());
            return None;
        }
        let mounted = Mounted::new(at.to_owned(), &["-o", "loop", image.path().to_str().unwrap()])?;
        let free = run(Command::new("stat").args(["--file-system", "--format=%f %S"]).arg(at)).ok().stdout;
        let free: u64 =
            free.split_whitespace().map(|blocks_or_bytes| blocks_or_bytes.parse::<u64>().unwrap()).product();
        // All of it cannot be had: where the blocks are takes blocks.
        let _ = std::fs::write(at.join("filling"), vec![1; (free - room) as usize]);
        Some(mounted)
    };
    let grow = |at: &Path| std::fs::remove_file(at.join("filling")).unwrap();
    at_all_levels("sizes of a full ext4", [5, 50], mount, grow);
}

/// There is room, but no file can be created.
#[test]
fn a_tmpfs_without_a_free_inode_is_named_and_a_rerun_completes() {
    let mount = |at: &Path, room: u64| {
        // A file of the job has some 20 kB.
        let inodes = format!("size=64m,nr_inodes={}", 2 + room / 20_000);
        Mounted::new(at.to_owned(), &["-t", "tmpfs", "-o", &inodes, "tmpfs"])
    };
    let grow = |at: &Path| drop(run(Command::new("mount").args(["-o", "remount,nr_inodes=1000"]).arg(at)).ok());
    at_all_levels("numbers of inodes of a full tmpfs", [5, 25], mount, grow);
}
