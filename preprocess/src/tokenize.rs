//! From documents to token ids, a batch at a time; many batches run at once.

use tokenmill_shared::dataset::TokenWidth;
use tokenmill_shared::{Error, Location, Result};

use crate::source::Input;
use crate::store::{DocumentEntry, Frame};
use crate::tokenizer::Tokenizer;

/// A batch is full at this many bytes of text: some milliseconds of tokenizing, far above the cost of
/// handing it to another thread.
pub const BATCH_BYTES: usize = 128 << 10;

/// Consecutive documents of one file.
#[derive(Debug, Default)]
pub struct TextBatch {
    text: String,
    /// End of each document in `text`, and its record number.
    documents: Vec<(usize, u64)>,
}

impl TextBatch {
    /// Adds a document.
    pub fn push(&mut self, text: &str, record: u64) {
        self.text.push_str(text);
        self.documents.push((self.text.len(), record));
    }

    /// Whether it is time to send it on.
    pub fn is_full(&self) -> bool {
        self.text.len() + self.documents.len() * 16 >= BATCH_BYTES
    }

    /// Bytes of text in it.
    pub fn text_bytes(&self) -> usize {
        self.text.len()
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
        for (end, record) in &batch.documents {
            let text = &batch.text[begin..*end];
            begin = *end;
            let before = ids.len();
            encoder.encode(text, self.add_special_tokens, &mut ids).map_err(|why| {
                Error::input(
                    Location::record(&input.name, *record),
                    format!("cannot be tokenized ({why}); remove the document"),
                )
            })?;
            if let Some(eos) = self.append
                && (ids.len() == before || ids.last() != Some(&eos))
            {
                ids.push(eos);
            }
            let hash = blake3::hash(text.as_bytes());
            documents.push(DocumentEntry {
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
