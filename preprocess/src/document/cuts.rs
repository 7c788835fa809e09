//! Where a document that is too long for memory may be cut into parts: places at which every fast engine begins a word, so
//! that the ids of the parts are those of the whole.
//!
//! They depend on the text alone, not on the tokenizer nor on how the file is read, and so do the parts and their hash. A
//! tokenizer whose tokens cross one all the same (an added token, or one that holds `，` after a letter) says so, and
//! gets both parts as one; see `Tokenizer::can_cut`.

/// The first such place from byte `from` on, before a character; `None` if there is none, or what is there of the text
/// does not tell yet.
pub fn find(text: &str, from: usize) -> Option<usize> {
    let from = (from.max(1)..=text.len()).find(|at| text.is_char_boundary(*at))?;
    let mut before = text[..from].chars().next_back()?;
    let mut following = text[from..].char_indices().peekable();
    while let Some((at, here)) = following.next() {
        let (_, after) = following.peek()?;
        if is_cut(before, here, *after) {
            return Some(from + at);
        }
        before = here;
    }
    None
}

/// Whether a word begins with `here`, whatever else stands around.
fn is_cut(before: char, here: char, after: char) -> bool {
    match here {
        // No pre-tokenizer puts one blank between two of these with what is before it.
        ' ' => is_plain(before) && is_plain(after),
        // After symbols a newline belongs to them (Llama 3, Qwen, GPT-4o, DeepSeek).
        '\n' => (before.is_ascii_alphanumeric() || is_ideograph(before)) && is_plain(after),
        '，' | '。' | '、' | '；' | '：' | '！' | '？' => is_ideograph(before),
        _ => false,
    }
}

fn is_plain(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '.' | ',' | ';' | ':' | '!' | '?')
}

fn is_ideograph(character: char) -> bool {
    ('\u{4e00}'..='\u{9fa5}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_the_first_from_there_on_that_the_text_decides() {
        for (text, from, cut) in [
            ("one two three", 0, Some(3)),
            ("one two three", 3, Some(3)),
            ("one two three", 4, Some(7)),
            ("one two three", 8, None),
            ("one ", 1, None),
            ("one  two", 1, None),
            ("one\ntwo", 1, Some(3)),
            (")\ntwo", 1, None),
            ("磨坊，水", 1, Some(6)),
            ("磨坊。", 1, None),
            ("，，，，", 1, None),
            ("", 0, None),
        ] {
            assert_eq!(find(text, from), cut, "{text:?} from {from}");
        }
    }
}
