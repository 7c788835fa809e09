//! Memory is bounded by what is worked on at once, not by how much text there is.

use std::io::Write;

use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, root, with_peak_memory};

/// Bytes of memory at most, with so many bytes of text in one file.
fn peak(text_bytes: u64) -> u64 {
    let place = Place::new();
    let alice = std::fs::read(root().join("quickstart/text/english/alice-in-wonderland.txt")).unwrap();
    let mut file = std::io::BufWriter::new(std::fs::File::create(place.write("text/a.txt", "")).unwrap());
    for _ in 0..text_bytes.div_ceil(alice.len() as u64) {
        file.write_all(&alice).unwrap();
    }
    drop(file);
    let flags = ["--preprocessing_num_workers", "2", "--token_cache", "false", "--block_size", "1024"];
    let (ended, peak) = with_peak_memory(&mut place.prepare("out", &flags));
    ended.ok();
    peak
}

/// Less than 1 % of what is added, beyond what allocators do with pages.
#[test]
fn memory_does_not_grow_with_the_text() {
    const SOME: u64 = 64 << 20;
    let ledger = Run::of("bytes of text, memory that of 64 MiB", 192 << 20, 2 << 30);
    let (some, more) = (peak(SOME), peak(ledger.size));
    println!("{} MiB of text: {} MiB, {}: {}", SOME >> 20, some >> 20, ledger.size >> 20, more >> 20);
    assert!(more < some + (ledger.size - SOME) / 100 + (16 << 20), "{} MiB and {} MiB", some >> 20, more >> 20);
    ledger.passed();
}
