//! `--min_chars` and `--max_chars`: documents of other lengths are left out, and counted by the scan.

use tokenmill_shared::Result;

use super::{Bad, Document, Extent, Flow, Reason, Rules, Sink};

/// Hands on documents of the lengths that are asked for.
pub(super) struct OfLength<'a> {
    least: u64,
    most: u64,
    sink: &'a mut dyn Sink,
}

impl<'a> OfLength<'a> {
    pub(super) fn new(rules: &Rules, sink: &'a mut dyn Sink) -> Self {
        Self { least: rules.min_chars.unwrap_or(0), most: rules.max_chars.unwrap_or(u64::MAX), sink }
    }

    /// Why a text is left out. Characters are counted only where bytes do not tell: one is 1 to 4 of them.
    fn reason(&self, text: &str) -> Option<Reason> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let bytes = text.len() as u64;
        if bytes / 4 >= self.least && bytes <= self.most {
            return None;
        }
        let characters = text.chars().count() as u64;
        if characters < self.least {
            Some(Reason::TooFewCharacters)
        } else if characters > self.most {
            Some(Reason::TooManyCharacters)
        } else {
            None
        }
    }
}

impl Sink for OfLength<'_> {
    fn document(&mut self, document: Document<'_>) -> Result<Flow> {
        // A part of a document that is longer than any that is asked for at least; see [`Rules::in_parts`].
        if document.extent != Extent::WHOLE {
            return self.sink.document(document);
        }
        match self.reason(document.text) {
            None => self.sink.document(document),
            Some(reason) => {
                self.sink.left_out(reason, &document);
                Ok(Flow::Continue)
            }
        }
    }

    fn bad(&mut self, bad: Bad<'_>) -> Result<Flow> {
        self.sink.bad(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenmill_shared::config::DataArguments;

    #[test]
    fn characters_are_counted_without_the_newline_whatever_their_bytes() {
        let mut nobody = |_: Document<'_>| Ok(Flow::Continue);
        let data = DataArguments { min_chars: Some(2), max_chars: Some(3), ..DataArguments::default() };
        let of_length = OfLength::new(&Rules::new(&data).unwrap(), &mut nobody);
        for (text, expected) in [
            ("\n", Some(Reason::TooFewCharacters)),
            ("a\n", Some(Reason::TooFewCharacters)),
            ("字", Some(Reason::TooFewCharacters)),
            ("字典", None),
            ("😀😀😀\n", None),
            ("abc\n", None),
            ("abc\n\n", Some(Reason::TooManyCharacters)),
            ("字典字典", Some(Reason::TooManyCharacters)),
        ] {
            assert_eq!(of_length.reason(text), expected, "{text:?}");
        }
    }
}
