//! What pre-tokenizers and normalizers ask of a character, as the pinned reference answers it: its regular expression
//! engine and its normalization tables are older than the standard library's.

use std::sync::LazyLock;

/// A letter (`\p{L}`).
pub(super) const LETTER: u8 = 1;
/// A number (`\p{N}`).
pub(super) const NUMBER: u8 = 2;
/// White space (`\s`).
pub(super) const SPACE: u8 = 4;
/// A mark (`\p{M}`).
pub(super) const MARK: u8 = 8;
/// Punctuation or a symbol (`\p{P}`, `\p{S}`).
pub(super) const SYMBOL: u8 = 16;
/// An upper-case or title-case letter (`\p{Lu}`, `\p{Lt}`).
pub(super) const UPPER: u8 = 32;
/// A lower-case letter (`\p{Ll}`).
pub(super) const LOWER: u8 = 64;
/// NFC may change it, or put it together with what stands before it.
pub(super) const COMPOSES: u8 = 128;

/// Ranges of code points and their classes, one a line, in hexadecimal: `first last classes`. Code points of no class
/// are left out. The test below probes the reference for every code point and says how to write the file anew.
const RANGES: &str = include_str!("unicode_classes.txt");

/// Entries of a table of bytes by code point: four bytes can be read of each, as vector instructions do.
pub(super) const CODE_POINTS: usize = 0x11_0000 + 3;

/// The classes of all code points: 1.1 MB, of which a text touches the pages of its scripts.
static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut classes = vec![0; CODE_POINTS].into_boxed_slice();
    for line in RANGES.lines() {
        let mut numbers = line.split(' ').map(|number| u32::from_str_radix(number, 16).expect("a hexadecimal number"));
        let mut next = || numbers.next().expect("three numbers") as usize;
        let (first, last, class) = (next(), next(), next());
        classes[first..=last].fill(class as u8);
    }
    classes
});

/// Classes of code points.
#[derive(Clone, Copy)]
pub(super) struct Classes(&'static [u8]);

impl Classes {
    pub(super) fn load() -> Self {
        Self(&CLASSES)
    }

    /// The classes of a code point.
    #[inline(always)]
    pub(super) fn of(self, character: u32) -> u8 {
        self.0[character as usize]
    }

    /// The classes of all code points.
    #[inline(always)]
    pub(super) fn table(self) -> &'static [u8] {
        self.0
    }
}

impl std::fmt::Debug for Classes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Classes")
    }
}

/// The code point that begins at `at` in `text`, which is valid UTF-8, and its length in bytes.
#[inline(always)]
pub(super) fn decode(text: &[u8], at: usize) -> (u32, usize) {
    let byte = |offset: usize| u32::from(text[at + offset]);
    let low = |offset: usize| byte(offset) & 0x3f;
    match byte(0) {
        first @ 0..0x80 => (first, 1),
        first @ 0x80..0xe0 => ((first & 0x1f) << 6 | low(1), 2),
        first @ 0xe0..0xf0 => ((first & 0xf) << 12 | low(1) << 6 | low(2), 3),
        first => ((first & 7) << 18 | low(1) << 12 | low(2) << 6 | low(3), 4),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokenizers::utils::SysRegex;
    use tokenizers::{NormalizedString, Normalizer, normalizers::unicode};

    use super::*;

    fn normalized(normalizer: &impl Normalizer, text: &str) -> String {
        let mut text = NormalizedString::from(text);
        normalizer.normalize(&mut text).unwrap();
        text.get().to_owned()
    }

    /// The file, from the reference.
    fn probed() -> String {
        let everything: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
        let mut classes = vec![0u8; 0x11_0000];
        for (pattern, class) in [
            (r"\p{L}", LETTER),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"\p{M}", MARK),
            (r"[\p{P}\p{S}]", SYMBOL),
            (r"[\p{Lu}\p{Lt}]", UPPER),
            (r"\p{Ll}", LOWER),
        ] {
            for (from, to) in SysRegex::new(pattern).unwrap().find_iter(&everything) {
                everything[from..to].chars().for_each(|character| classes[character as usize] |= class);
            }
        }
        // Second or later in a decomposition: may be put together with what stands before it.
        let mut later = BTreeSet::new();
        for character in everything.chars().filter(|character| !character.is_ascii()) {
            let text = character.to_string();
            let decomposed = normalized(&unicode::NFD, &text);
            later.extend(decomposed.chars().skip(1));
            // A mark of a class other than 0 comes before U+0345, whose class is the highest.
            let moves = normalized(&unicode::NFD, &format!("a\u{345}{text}")) != format!("a\u{345}{decomposed}");
            if moves || normalized(&unicode::NFC, &text) != text {
                classes[character as usize] |= COMPOSES;
            }
        }
        later.into_iter().for_each(|character| classes[character as usize] |= COMPOSES);
        // Hangul vowels and final consonants; the table of decompositions does not list them.
        (0x1161..=0x1175).chain(0x11a8..=0x11c2).for_each(|character| classes[character] |= COMPOSES);
        let mut lines = String::new();
        let mut first = 0;
        while first < classes.len() {
            let class = classes[first];
            let count = classes[first..].iter().take_while(|other| **other == class).count();
            if class != 0 {
                lines += &format!("{first:x} {:x} {class:x}\n", first + count - 1);
            }
            first += count;
        }
        lines
    }

    #[test]
    fn classes_are_those_of_the_reference_at_every_code_point() {
        let probed = probed();
        if std::env::var_os("TOKENMILL_REGENERATE").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tokenizer/unicode_classes.txt");
            #[allow(clippy::disallowed_methods)]
            std::fs::write(path, &probed).unwrap();
        }
        assert!(probed == RANGES, "run this test once with TOKENMILL_REGENERATE=1, which writes unicode_classes.txt");
    }

    #[test]
    fn every_character_decodes_to_itself() {
        for character in (0..=0x10_ffff).filter_map(char::from_u32) {
            let text = character.to_string();
            assert_eq!(decode(text.as_bytes(), 0), (u32::from(character), text.len()));
        }
    }
}
