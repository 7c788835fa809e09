//! How much a test runs, and the ledger of what has run.
//!
//! On every change a test takes its small size, always with the same seed. With `TOKENMILL_SCALE=night` it takes one of at
//! most some twenty minutes, with the seed after those that the ledger has (`TOKENMILL_SEED` gives another), and adds what
//! it did to `ledger.tsv`, so that counts grow from run to run. A failure is counted there too, with its seed.
#![allow(clippy::disallowed_methods)] // tests touch files without the storage door

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::Command;

/// What one test runs.
#[derive(Debug)]
pub struct Run {
    name: &'static str,
    /// Makes the choices.
    pub seed: u64,
    /// How much of what its name in the ledger counts.
    pub size: u64,
    passed: bool,
}

impl Run {
    /// `by_change` on every change, `by_night` by night, of what the line `name` of the ledger counts.
    pub fn of(name: &'static str, by_change: u64, by_night: u64) -> Self {
        let ledger = Ledger::open().expect("a ledger");
        let last = ledger.lines.iter().filter(|line| line.name == name).map(Line::highest_seed).max();
        let last = last.unwrap_or_else(|| panic!("ledger.tsv has no line for {name:?}: add one, not run"));
        let given = std::env::var("TOKENMILL_SEED").ok().map(|seed| seed.parse().expect("TOKENMILL_SEED is a number"));
        let (seed, size) = if is_night() { (last + 1, by_night) } else { (1, by_change) };
        Self { name, seed: given.unwrap_or(seed), size, passed: false }
    }

    /// Says that all of it ran, without a failure.
    pub fn passed(mut self) {
        self.passed = true;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if is_night() {
            Ledger::open().and_then(|mut ledger| ledger.add(self)).expect("a writable ledger");
        }
    }
}

fn is_night() -> bool {
    std::env::var("TOKENMILL_SCALE").is_ok_and(|scale| scale == "night")
}

/// The file, locked.
struct Ledger {
    file: File,
    lines: Vec<Line>,
}

/// What one machine ran on one day of one thing.
struct Line {
    promise: String,
    name: String,
    /// Numbers and ranges of them: `1-3,7`; `-` if nothing was run.
    seeds: String,
    size: u64,
    failures: u64,
    machine: String,
    date: String,
}

const HEAD: &str = "promise\tcounted\tseeds\tsize\tfailures\tmachine\tdate\n";

impl Ledger {
    fn open() -> io::Result<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/ledger.tsv");
        let mut file = File::options().read(true).write(true).open(path)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let lines = text.strip_prefix(HEAD).expect("the columns of a ledger").lines().map(Line::parse).collect();
        Ok(Self { file, lines })
    }

    fn add(&mut self, run: &Run) -> io::Result<()> {
        let (machine, date) = (machine(), today());
        let is_of = |line: &Line| line.name == run.name;
        let first = self.lines.iter().position(is_of).expect("a line of it");
        let mut place = first + self.lines[first..].iter().take_while(|line| is_of(line)).count() - 1;
        let last = &self.lines[place];
        if last.seeds != "-" && (&last.machine, &last.date) != (&machine, &date) {
            let (promise, name) = (last.promise.clone(), last.name.clone());
            place += 1;
            self.lines.insert(place, Line::not_run(promise, name));
        }
        let line = &mut self.lines[place];
        (line.machine, line.date) = (machine, date);
        line.add_seed(run.seed);
        if run.passed {
            line.size += run.size
        } else {
            line.failures += 1
        }
        let text: String = std::iter::once(HEAD.to_owned()).chain(self.lines.iter().map(Line::text)).collect();
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        self.file.set_len(text.len() as u64)
    }
}

impl Line {
    fn not_run(promise: String, name: String) -> Self {
        let none = || "-".to_owned();
        Self { promise, name, seeds: none(), size: 0, failures: 0, machine: none(), date: none() }
    }

    fn parse(line: &str) -> Self {
        let columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let [promise, name, seeds, size, failures, machine, date] =
            columns.try_into().unwrap_or_else(|_| panic!("seven columns: {line:?}"));
        if size == "not run" {
            return Self::not_run(promise, name);
        }
        let number = |column: &str| column.parse().unwrap_or_else(|_| panic!("a number or \"not run\": {line:?}"));
        let (size, failures) = (number(&size), number(&failures));
        Self { promise, name, seeds, size, failures, machine, date }
    }

    fn text(&self) -> String {
        let Self { promise, name, seeds, size, failures, machine, date } = self;
        if seeds == "-" {
            return format!("{promise}\t{name}\t-\tnot run\t-\t-\t-\n");
        }
        format!("{promise}\t{name}\t{seeds}\t{size}\t{failures}\t{machine}\t{date}\n")
    }

    /// 0 if none was.
    fn highest_seed(&self) -> u64 {
        self.seeds.split([',', '-']).filter_map(|seed| seed.parse().ok()).max().unwrap_or(0)
    }

    fn add_seed(&mut self, seed: u64) {
        if self.seeds == "-" {
            self.seeds = seed.to_string();
            return;
        }
        let range = self.seeds.rfind(',').map_or(0, |comma| comma + 1);
        let (first, last) = self.seeds[range..].split_once('-').unwrap_or((&self.seeds[range..], &self.seeds[range..]));
        self.seeds = match last.parse::<u64>().expect("a seed") + 1 == seed {
            true => format!("{}{first}-{seed}", &self.seeds[..range]),
            false => format!("{},{seed}", self.seeds),
        };
    }
}

fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores of {}", model.map_or("?", |(_, model)| model))
}

fn today() -> String {
    let output = Command::new("date").arg("+%F").output().expect("date runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn seeds_are_kept_as_ranges() {
    let mut line = Line::not_run("1".to_owned(), "kills".to_owned());
    assert_eq!((line.highest_seed(), &*line.text()), (0, "1\tkills\t-\tnot run\t-\t-\t-\n"));
    for (seed, seeds, highest) in [(3, "3", 3), (4, "3-4", 4), (2, "3-4,2", 4), (5, "3-4,2,5", 5), (6, "3-4,2,5-6", 6)]
    {
        line.add_seed(seed);
        assert_eq!((&*line.seeds, line.highest_seed()), (seeds, highest));
        assert_eq!(Line::parse(line.text().trim_end()).text(), line.text());
    }
}
