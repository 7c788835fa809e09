//! From documents to token ids, a batch at a time; many batches run at once.

use tokenmill_shared::dataset::TokenWidth;
use tokenmill_shared::{Error, Location, Result};

use crate::document::{Document, Extent, LINE_LIMIT};
use crate::source::Input;
use crate::store::{DocumentEntry, Frame};
use crate::tokenizer::Tokenizer;

/// A batch is full at this many bytes of text: some milliseconds of tokenizing, far above the cost of
/// handing it to another thread.
pub const BATCH_BYTES: usize = 128 << 10;

/// Consecutive documents of one file, or a part of one.
#[derive(Debug, Default)]
pub struct TextBatch {
    text: String,
    /// End of each document in `text`, its record number, and which part of it that is.
    documents: Vec<(usize, u64, Extent)>,
}

impl TextBatch {
    /// Adds a document.
    pub fn push(&mut self, text: &str, record: u64) {
        self.push_part(text, record, Extent::WHOLE);
    }

    /// Adds a part of a document.
    pub fn push_part(&mut self, text: &str, record: u64, extent: Extent) {
        self.text.push_str(text);
        self.documents.push((self.text.len(), record, extent));
    }

    /// Whether it is time to send it on.
    pub fn is_full(&self) -> bool {
        self.text.len() + self.documents.len() * 16 >= BATCH_BYTES
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// Bytes of text in it.
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }
}

/// The parts of a long document, as long as they must be for the tokenizer.
pub struct Parts<'a> {
    tokenizer: &'a Tokenizer,
    input: &'a Input,
    /// What is not in a batch yet: it is not known whether it can be cut off behind that.
    open: Option<(String, Extent)>,
}

impl<'a> Parts<'a> {
    /// Of documents of `input`.
    pub fn new(tokenizer: &'a Tokenizer, input: &'a Input) -> Self {
        Self { tokenizer, input, open: None }
    }

    /// Takes the next part; returns those before it, and at the document's end also that, if they can be told apart.
    ///
    /// # Errors
    /// So many parts that cannot be told apart that together they are longer than a document may be.
    pub fn next(&mut self, found: &Document<'_>) -> Result<Vec<TextBatch>> {
        let batch = |text: &str, extent| {
            let mut batch = TextBatch::default();
            batch.push_part(text, found.record, extent);
            batch
        };
        let mut batches = Vec::new();
        let (mut text, mut extent) = (String::new(), found.extent);
        if let Some((open, of_open)) = self.open.take() {
            if self.tokenizer.can_cut(&open, found.text) {
                batches.push(batch(&open, of_open));
            } else {
                (text, extent) = (open, Extent { begins: of_open.begins, ..extent });
            }
        }
        text.push_str(found.text);
        if text.len() > 2 * LINE_LIMIT {
            let reason = "has 128 MiB in which this tokenizer sees no place to cut it; cut it into smaller documents";
            return Err(Error::input(Location::record(&self.input.name, found.record), reason));
        }
        if extent.ends {
            batches.push(batch(&text, extent));
        } else {
            self.open = Some((text, extent));
        }
        Ok(batches)
    }
}

/// What is done to each document.
#[derive(Debug)]
pub struct Encoding {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Add the special tokens that calling the tokenizer adds.
    pub add_special_tokens: bool,
    /// Append this id to a document that does not end with it.
    pub append: Option<u32>,
    /// The width of ids on disk.
    pub width: TokenWidth,
}

impl Encoding {
    /// The tokens of a batch of documents of `input`.
    pub fn encode(&self, batch: &TextBatch, input: &Input) -> Result<Frame> {
        let mut ids = Vec::with_capacity(batch.text.len() / 3);
        let mut documents = Vec::with_capacity(batch.documents.len());
        let mut encoder = self.tokenizer.encoder();
        let mut begin = 0;
        for (end, record, extent) in &batch.documents {
            let text = &batch.text[begin..*end];
            begin = *end;
            let before = ids.len();
            encoder.encode_part(text, *extent, self.add_special_tokens, &mut ids).map_err(|why| {
                Error::input(
                    Location::record(&input.name, *record),
                    format!("cannot be tokenized ({why}); remove the document"),
                )
            })?;
            if let Some(eos) = self.append
                && extent.ends
                && (ids.len() == before || ids.last() != Some(&eos))
            {
                ids.push(eos);
            }
            let hash = blake3::hash(text.as_bytes());
            documents.push(DocumentEntry {
                extent: *extent,
                tokens: (ids.len() - before) as u32,
                text_bytes: text.len() as u32,
                hash: u32::from_le_bytes(hash.as_bytes()[..4].try_into().expect("four bytes")),
            });
        }
        let mut bytes = Vec::with_capacity(ids.len() * self.width.bytes());
        self.width.encode(&ids, &mut bytes);
        Ok(Frame::new(&documents, &bytes))
    }
}
