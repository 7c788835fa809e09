//! Our ids beside those of the `tokenizers` crate on texts that nobody wrote: random, mutated and assembled documents,
//! and every code point alone and in company.
//!
//! `cargo bench --workspace --bench fuzz_tokenizers -- [documents=N] [seed=S] [points] [record] [NAME…]`
//!
//! The tokenizers are those of the shared directory and of the tests, all or those named. `points` goes through all
//! code points too; `record` adds a line for each tokenizer to tokenizer_ledger.tsv. A text with other ids is made as
//! short as it goes and printed, and the bench fails.
//!
//! `… -- ids=DIR corpus=NAME` writes the ids of each document of a corpus to standard output instead, as 32-bit numbers
//! after their count: exact_corpora.py compares them with Python's.
#![allow(clippy::disallowed_methods)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rayon::prelude::*;
use tokenmill_benches::{corpus, machine, shared_dir};
use tokenmill_preprocess::tokenizer::Tokenizer;

/// Documents a tokenizer without `documents=`: about a second each.
const DOCUMENTS: u64 = 2_000;

/// Differing texts that are printed for a tokenizer.
const SHOWN: usize = 20;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let setting = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str, default| setting(name).map_or(default, |text| text.parse().expect("a number"));
    if let (Some(dir), Some(name)) = (setting("ids"), setting("corpus")) {
        return write_ids(Path::new(dir), name);
    }
    let (documents, seed) = (number("documents", DOCUMENTS), number("seed", 1));
    let has = |word: &str| words.iter().any(|given| given == word);
    let named: Vec<&String> = words.iter().filter(|w| !w.contains('=') && *w != "points" && *w != "record").collect();
    println!("fuzz_tokenizers: {}", machine());
    let real = RealText::load();
    let mut failed = false;
    for dir in directories() {
        let name = name_of(&dir);
        if !named.is_empty() && !named.contains(&&name) {
            continue;
        }
        let pair = Pair::load(&dir);
        let pieces = pair.pieces();
        let generate = |index| document(&real, &pieces, seed, index);
        let kinds: [(&str, u64, u64, Generate<'_>); 2] = [
            ("documents", documents, seed, &generate),
            ("code points", if has("points") { POINTS } else { 0 }, 0, &code_point),
        ];
        for (kind, count, seed, generate) in kinds.into_iter().filter(|kind| kind.1 > 0) {
            let different = pair.compare(&name, count, generate);
            println!("{name}: {different} of {count} {kind} differ (seed {seed})");
            failed |= different > 0;
            if has("record") {
                record(&[&name, kind, &seed.to_string(), &count.to_string(), &different.to_string()]);
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The text of a number.
type Generate<'a> = &'a (dyn Fn(u64) -> String + Sync);

/// Every directory with a tokenizer that is fuzzed.
fn directories() -> Vec<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tokenizers");
    let mut found = Vec::new();
    for parent in [shared_dir().join("data/tokenizers"), tests.clone(), tests.join("unconverted")] {
        let entries = std::fs::read_dir(parent).expect("a directory of tokenizers");
        found.extend(entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()));
    }
    found.retain(|path| !path.ends_with("unconverted"));
    found.sort();
    found
}

/// The directory's name; that of one in `unconverted` with it, because the real one may be there too.
fn name_of(dir: &Path) -> String {
    let last = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_unconverted = dir.parent().is_some_and(|parent| parent.ends_with("unconverted"));
    if is_unconverted { format!("unconverted/{last}") } else { last }
}

/// A tokenizer as we load it, and its tokenizer.json in the reference.
struct Pair {
    ours: Tokenizer,
    reference: tokenizers::Tokenizer,
}

impl Pair {
    fn load(dir: &Path) -> Self {
        let ours = Tokenizer::load(dir).unwrap_or_else(|error| panic!("{error}"));
        let mut reference = tokenizers::Tokenizer::from_bytes(ours.json()).expect("a tokenizer.json");
        reference.with_truncation(None).expect("no truncation is possible");
        reference.with_padding(None);
        Self { ours, reference }
    }

    /// What text may be assembled from: pieces of the vocabulary as text, and added tokens.
    fn pieces(&self) -> Vec<String> {
        let ids = 0..=self.ours.largest_id();
        let step = (ids.end() / 50_000 + 1) as usize;
        let mut pieces: Vec<String> = ids.step_by(step).filter_map(|id| self.ours.decode(&[id]).ok()).collect();
        pieces.extend(self.reference.get_added_tokens_decoder().values().map(|token| token.content.clone()));
        pieces.retain(|piece| !piece.is_empty());
        pieces.sort_unstable();
        pieces
    }

    /// Whether ids of `text` differ, with or without special tokens.
    fn differs(&self, text: &str) -> bool {
        [true, false].into_iter().any(|special| self.ids(text, special).0 != self.ids(text, special).1)
    }

    fn ids(&self, text: &str, special: bool) -> (Option<Vec<u32>>, Option<Vec<u32>>) {
        let mut ours = Vec::new();
        let result = self.ours.encode(text, special, &mut ours);
        let theirs = self.reference.encode_fast(text, special).ok().map(|encoding| encoding.get_ids().to_vec());
        (result.ok().map(|()| ours), theirs)
    }

    /// Compares `count` texts; prints the first that differ and says how many do.
    fn compare(&self, name: &str, count: u64, generate: Generate<'_>) -> usize {
        let mut different = 0;
        for begin in (0..count).step_by(1 << 16) {
            let range = begin..count.min(begin + (1 << 16));
            let texts: Vec<String> = range.into_par_iter().map(generate).filter(|text| self.differs(text)).collect();
            for text in texts.iter().take(SHOWN.saturating_sub(different)) {
                let short = self.shortened(text.clone());
                let (ours, theirs) = self.ids(&short, false);
                println!("{name}: {short:?}: {ours:?} instead of {theirs:?}");
            }
            different += texts.len();
        }
        different
    }

    /// `text` without what can be left out so that it still differs; itself if it does not differ any more, which
    /// means that what was encoded before it matters.
    fn shortened(&self, text: String) -> String {
        let mut characters: Vec<char> = text.chars().collect();
        let mut width = characters.len() / 2;
        while width > 0 {
            let mut at = 0;
            while at < characters.len() {
                let without: Vec<char> = characters
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| !(at..at + width).contains(i))
                    .map(|(_, c)| *c)
                    .collect();
                if self.differs(&without.iter().collect::<String>()) {
                    characters = without;
                } else {
                    at += width;
                }
            }
            width /= 2;
        }
        characters.into_iter().collect()
    }
}

/// Documents that people wrote, to be mutated.
struct RealText {
    documents: Vec<String>,
}

impl RealText {
    fn load() -> Self {
        let names = ["nasty", "en", "zh", "code"];
        Self {
            documents: names.iter().flat_map(|name| corpus(name, 2 << 20)).filter(|text| !text.is_empty()).collect(),
        }
    }

    /// Up to `length` characters from anywhere in any document.
    fn part(&self, chance: &mut Chance, length: usize) -> String {
        let text = &self.documents[chance.below(self.documents.len())];
        let mut from = chance.below(text.len());
        while !text.is_char_boundary(from) {
            from -= 1;
        }
        text[from..].chars().take(chance.below(length) + 1).collect()
    }
}

/// Random numbers by splitmix64: a function of the seed and the document's number.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// The document of a number: random, mutated or assembled.
fn document(real: &RealText, pieces: &[String], seed: u64, index: u64) -> String {
    let mut chance = Chance(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
    match chance.below(4) {
        0 => {
            let class = chance.below(CLASSES.len() + 1);
            (0..chance.below(60)).map(|_| character(&mut chance, class)).collect()
        }
        1 => (0..chance.below(20)).map(|_| pieces[chance.below(pieces.len())].as_str()).collect(),
        2 => {
            let mut text = real.part(&mut chance, 200);
            for _ in 0..=chance.below(4) {
                text = mutated(&text, real, pieces, &mut chance);
            }
            text
        }
        _ => {
            let mut text = String::new();
            for _ in 0..=chance.below(8) {
                match chance.below(3) {
                    0 => text.push_str(&pieces[chance.below(pieces.len())]),
                    1 => text.push_str(&real.part(&mut chance, 12)),
                    _ => text.push(character(&mut chance, CLASSES.len())),
                }
                if chance.below(2) == 0 {
                    text.push_str([" ", "\n", "  ", "\t", "▁", "\r\n", "\u{3000}"][chance.below(7)]);
                }
            }
            text
        }
    }
}

/// Ranges of code points that rules tell apart: ASCII, Latin, marks, spaces and joiners, Han, kana, Hangul, scripts of
/// Asia, full-width forms, emoji, and all there is.
const CLASSES: [(u32, u32); 12] = [
    (0x20, 0x7e),
    (0, 0x20),
    (0xa0, 0x24f),
    (0x300, 0x36f),
    (0x2000, 0x206f),
    (0x4e00, 0x9fff),
    (0x3000, 0x30ff),
    (0xac00, 0xd7a3),
    (0x600, 0x1200),
    (0xff00, 0xffef),
    (0x1f300, 0x1faff),
    (0, 0x10_ffff),
];

/// A character of a class, or of any where there is no such class.
fn character(chance: &mut Chance, class: usize) -> char {
    let class = if class < CLASSES.len() { class } else { chance.below(CLASSES.len()) };
    let (first, last) = CLASSES[class];
    char::from_u32(first + chance.below((last - first + 1) as usize) as u32).unwrap_or('\u{fffd}')
}

fn mutated(text: &str, real: &RealText, pieces: &[String], chance: &mut Chance) -> String {
    let characters: Vec<char> = text.chars().collect();
    let at = chance.below(characters.len() + 1);
    let to = (at + chance.below(8)).min(characters.len());
    let middle: String = match chance.below(7) {
        0 => String::new(),
        1 => characters[at..to].iter().rev().collect(),
        2 => characters[at..to].iter().collect::<String>().repeat(chance.below(12) + 1),
        3 => pieces[chance.below(pieces.len())].clone(),
        4 => real.part(chance, 20),
        5 => characters[at..to]
            .iter()
            .flat_map(
                |c| if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect::<Vec<_>>() },
            )
            .collect(),
        _ => (0..=chance.below(3)).map(|_| character(chance, CLASSES.len())).collect(),
    };
    let (before, after) = (characters[..at].iter(), characters[to..].iter());
    before.copied().chain(middle.chars()).chain(after.copied()).collect()
}

/// Texts for all code points: each alone, and between two letters, digits, spaces and Han characters.
const POINTS: u64 = 5 * 0x11_0000;

fn code_point(index: u64) -> String {
    let Some(point) = char::from_u32((index / 5) as u32) else { return String::new() };
    match index % 5 {
        0 => point.to_string(),
        1 => format!("a{point}a"),
        2 => format!("1{point}1"),
        3 => format!(" {point} "),
        _ => format!("中{point}中"),
    }
}

fn record(fields: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tokenizer_ledger.tsv");
    let date = Command::new("date").args(["-u", "+%F"]).output().expect("date runs").stdout;
    let line = format!("{}\t{}\t{}\n", String::from_utf8_lossy(&date).trim(), fields.join("\t"), machine());
    let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("the ledger");
    file.write_all(line.as_bytes()).expect("the ledger can be written");
}

fn write_ids(dir: &Path, name: &str) -> ExitCode {
    let tokenizer = Tokenizer::load(dir).unwrap_or_else(|error| panic!("{error}"));
    let mut out = std::io::stdout().lock();
    for documents in corpus(name, usize::MAX).chunks(256) {
        let encode = |text: &String| {
            let mut ids = vec![0];
            tokenizer.encode(text, true, &mut ids).unwrap_or_else(|why| panic!("{why}"));
            ids[0] = ids.len() as u32 - 1;
            ids.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
        };
        let written: Vec<Vec<u8>> = documents.par_iter().map(encode).collect();
        for bytes in written {
            // A reader that went away has seen enough.
            if out.write_all(&bytes).is_err() {
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
