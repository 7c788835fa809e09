//! What a fast engine must agree on with the reference before it is used.

use super::Engine;
use super::pieces::Working;
use super::reference::Reference;

/// Texts that have told tokenizers apart: contractions, case folding, runs of white space and controls,
/// digits, scripts, combining marks, joiners, unassigned and private code points.
const PROBES: &[&str] = &[
    "",
    " ",
    "a",
    "Hello, world! It's 1234567 o'clock, isn't it? I'LL we'Ve I'\u{17f} \u{212a}elvin",
    "  leading, trailing  \n\n\n and\ttabs \t\t\r\n\r\r lone\u{b}\u{c}\u{85}\u{a0}\u{2003}\u{2028}\u{3000}spaces   ",
    "\u{feff}BOM \0NUL \u{1}\u{7f}\u{9f} \u{200b}\u{200d}\u{2060} \u{e000}\u{10ffff}\u{fdd0}\u{378}",
    "def f(x):\n    return {'a': [x**2, 0xFF, 1e-9], \"b\": f\"{x!r}\"}  # ok\n\n\tif x != y && z <= w { i++; }",
    "中文文本，没有空格。第１２３章：「你好」——世界！ 日本語のテキストです。カタカナ ｶﾅ 한국어 텍스트",
    "Ελληνικά Русский עברית العربية हिन्दी ไทย ქართული Ǆǅǆ ŉ ß ẞ İı ﬁ",
    "e\u{301} \u{e9} a\u{30a}\u{323} \u{1e69} \u{1100}\u{1161}\u{11a8} \u{89d}\u{5ae} \u{1df8}\u{1df9} \u{1aea} \u{344}",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 🇨🇳🇺🇸 \u{1faef} ☃︎ ☃️ ½ ² Ⅷ ①  ٣٤٥ १२३ 12,345.678",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                \n\n\n\n\n\n!!!!!!!!!!!!!!!!!!",
    "\n't \t-Z \n \n \t'l <|endoftext|> <s> </s> [INST] <|im_start|>user",
];

/// The first probe on which `fast` gives other ids than `reference`.
fn first_difference(fast: &dyn Engine, reference: &dyn Engine) -> Option<String> {
    let all = PROBES.concat();
    let mut working = Working::default();
    let mut differs = |text: &&str| {
        [true, false].into_iter().any(|special| {
            let (mut ids, mut expected) = (Vec::new(), Vec::new());
            let results = (
                fast.encode(text, special, &mut working, &mut ids),
                reference.encode(text, special, &mut working, &mut expected),
            );
            results.0 != results.1 || ids != expected
        })
    };
    PROBES.iter().copied().chain([all.as_str()]).find(|text| differs(text)).map(str::to_owned)
}

/// The fast engine, or its reference if both differ on a probe, which is said.
pub(super) fn proved<E: Engine>(
    fast: E,
    into_reference: impl FnOnce(E) -> Box<Reference>,
) -> Result<E, Box<Reference>> {
    let Some(text) = first_difference(&fast, fast.reference()) else { return Ok(fast) };
    eprintln!("the fast tokenizer and the reference differ on {text:?}; using the reference, please report this");
    Err(into_reference(fast))
}

/// What the post-processor puts before and after a document, if that is the same for every document.
pub(super) fn around(reference: &dyn Engine) -> Option<(Vec<u32>, Vec<u32>)> {
    let (mut working, mut bare, mut whole) = (Working::default(), Vec::new(), Vec::new());
    reference.encode("a", false, &mut working, &mut bare).ok()?;
    reference.encode("a", true, &mut working, &mut whole).ok()?;
    let mut places = (0..=whole.len().checked_sub(bare.len())?).filter(|at| whole[*at..].starts_with(&bare));
    match (places.next(), places.next()) {
        (Some(at), None) if !bare.is_empty() => Some((whole[..at].to_vec(), whole[at + bare.len()..].to_vec())),
        _ => None,
    }
}
