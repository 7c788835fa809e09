//! A document that is put together from pieces of a file.

use tokenmill_shared::{Location, Result};

use super::lines::LINE_LIMIT;
use super::{Bad, Document, Extent, Flow, Reason, Sink, cuts, too_long};

/// Text that is put together until it is a document, or too long or damaged to be one. Of a long one parts are handed on
/// before.
#[derive(Default)]
pub(super) struct Growing {
    /// Bytes after which it may be cut.
    part_bytes: Option<usize>,
    /// What is not handed on yet.
    text: String,
    /// Bytes of that in which it cannot be cut.
    searched: usize,
    /// Where it begins in the file.
    begin: Option<u64>,
    /// Whether a part was handed on.
    begun: bool,
    /// What is wrong with it.
    bad: Option<Bad<'static>>,
    /// Its bytes, the damaged ones included.
    length: u64,
}

/// Where text comes from that a document grows by.
pub(super) struct Place {
    /// Which document that is.
    pub at: Location,
    /// The document's number.
    pub record: u64,
    /// Where the text begins and ends in the file.
    pub begin: u64,
    pub end: u64,
}

impl Growing {
    /// Of documents that come in parts after so many bytes, if they do.
    pub fn new(part_bytes: Option<usize>) -> Self {
        Self { part_bytes, ..Self::default() }
    }

    /// Adds text, or says what is wrong with it.
    pub fn push(
        &mut self,
        text: std::result::Result<&str, Bad<'static>>,
        place: &Place,
        sink: &mut dyn Sink,
    ) -> Result<Flow> {
        let begin = *self.begin.get_or_insert(place.begin);
        match text {
            Ok(text) => {
                self.length += text.len() as u64;
                if self.bad.is_none() {
                    self.text.push_str(text);
                }
            }
            Err(bad) => {
                self.bad.get_or_insert(bad);
            }
        }
        while self.bad.is_none()
            && let Some(cut) = self.cut()
        {
            let extent = Extent { begins: !self.begun, ends: false };
            let part = Document { text: &self.text[..cut], extent, record: place.record, begin, end: place.end };
            if sink.document(part)? == Flow::Stop {
                return Ok(Flow::Stop);
            }
            self.begun = true;
            self.searched = 0;
            self.text.drain(..cut);
        }
        if self.text.len() > LINE_LIMIT {
            // Its memory is not needed any more; what goes on is only counted.
            self.text = String::new();
            self.bad.get_or_insert(Bad::whole(Reason::TooLong, too_long(place.at.clone().at_byte(begin), self.length)));
        }
        Ok(Flow::Continue)
    }

    /// Where the first part of it ends, if that is there.
    fn cut(&mut self) -> Option<usize> {
        let part_bytes = self.part_bytes.filter(|bytes| self.text.len() > *bytes)?;
        let cut = cuts::find(&self.text, part_bytes.max(self.searched));
        // The last character, of at most four bytes, is not decided yet.
        self.searched = self.text.len().saturating_sub(4);
        cut
    }

    /// Whether nothing came of it yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0 && self.bad.is_none()
    }

    /// Hands on the document or its last part, or says what is wrong with it.
    pub fn end(&mut self, sink: &mut dyn Sink, record: u64, end: u64) -> Result<Flow> {
        self.length = 0;
        let begin = self.begin.take().unwrap_or(0);
        let extent = Extent { begins: !std::mem::take(&mut self.begun), ends: true };
        let flow = match self.bad.take() {
            Some(bad) => sink.bad(bad)?,
            None => sink.document(Document { text: &self.text, extent, record, begin, end })?,
        };
        self.text.clear();
        self.searched = 0;
        Ok(flow)
    }
}
