//! Bytes changed at random, always the same for a seed.

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
