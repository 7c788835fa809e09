//! Bytes changed at random, always the same for a seed; and the ledger of how often that was done.
#![allow(clippy::disallowed_methods)] // tests touch files without the storage door

use std::io::Write;

/// Changes bytes.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

/// What parsers look for.
const TOKENS: [&[u8]; 26] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r\n",
    b"\r",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud83d",
    b"\"text\"",
    b"null",
    b"1e999",
    b"-",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff\xff\xff\x7f",
    b"\xc4\xe3",
];

impl Mutator {
    /// Begins a row of changes.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number (SplitMix64).
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    /// One of several.
    pub fn choose<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// The bytes after up to four changes; one time in sixteen after none.
    pub fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let changes = if self.below(16) == 0 { 0 } else { 1 + self.below(4) };
        for _ in 0..changes {
            let at = self.below(bytes.len() + 1);
            let length = self.below(9).min(bytes.len() - at);
            match self.below(7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.number() as u8,
                2 => drop(bytes.drain(at..at + length)),
                3 => {
                    let again = bytes[at..at + length].repeat(1 + self.below(3));
                    bytes.splice(at..at, again);
                }
                4 => bytes.truncate(at),
                5 => {
                    let token = *self.choose(&TOKENS);
                    let over = token.len().min(bytes.len() - at);
                    bytes.splice(at..at + over, token.iter().copied());
                }
                _ => {
                    let token = *self.choose(&TOKENS);
                    bytes.splice(at..at, token.iter().copied());
                }
            }
        }
        bytes
    }
}

/// Whether the larger sizes run.
pub fn is_night() -> bool {
    std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night")
}

/// How often a target is run: `count` times, or 100 times as often with `TOKENMILL_SCALE=night`.
pub fn count(count: u64) -> u64 {
    if is_night() { count * 100 } else { count }
}

/// Adds a line for a target that was run so often, with no failure, to the ledger beside this file; by night only.
pub fn record(target: &str, seed: u64, count: u64) {
    if !is_night() {
        return;
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz_ledger.tsv");
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, cpu)| cpu);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let date = std::process::Command::new("date").arg("+%F").output().map(|output| output.stdout).unwrap_or_default();
    let date = String::from_utf8_lossy(&date).trim().to_owned();
    let mut ledger = std::fs::OpenOptions::new().append(true).open(path).expect("the ledger");
    writeln!(ledger, "{target}\t{seed}\t{count}\t0\t{threads} cores of {cpu}\t{date}").expect("a writable ledger");
}
