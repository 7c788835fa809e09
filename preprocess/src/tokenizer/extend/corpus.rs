//! The documents of a directory, handed out in batches that are worked on in parallel.

use std::path::Path;

use rayon::prelude::*;
use tokenmill_shared::config::DataArguments;
use tokenmill_shared::{Error, Location, Result};

use crate::decode::READ_BYTES;
use crate::document::{self, Document, Flow, Reads, Rules, Start};
use crate::source::{self, Input};

/// Text in a batch: enough for all threads, little in memory.
const BATCH_BYTES: usize = 8 << 20;

/// Text files, as `prepare` reads them, one document a line or record.
pub(super) struct Corpus {
    inputs: Vec<Input>,
    rules: Rules,
}

impl Corpus {
    /// Lists the files below `dir`; `flag` is named in errors.
    pub(super) fn open(dir: &Path, flag: &str, text_field: &str) -> Result<Self> {
        let data = DataArguments { keep_linebreaks: false, text_field: text_field.to_owned(), ..Default::default() };
        let rules = Rules::new(&data)?;
        Ok(Self { inputs: source::list(dir, flag)?, rules })
    }

    /// Lets `map` see every document, many at once, and `reduce` what it made of them, in document order.
    ///
    /// # Errors
    /// A file that cannot be read, or a document for which `map` says why it cannot be used.
    pub(super) fn for_each<T: Send>(
        &self,
        map: impl Fn(&str) -> std::result::Result<T, String> + Sync,
        mut reduce: impl FnMut(T),
    ) -> Result<()> {
        for input in &self.inputs {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            let mut work = |batch: &mut Vec<(String, u64)>| -> Result<()> {
                let mapped: Vec<_> = batch.par_iter().map(|(text, record)| (map(text), *record)).collect();
                for (result, record) in mapped {
                    let made = result.map_err(|why| {
                        let at = Location::record(&input.name, record);
                        Error::input(at, format!("cannot be tokenized ({why}); remove the document"))
                    })?;
                    reduce(made);
                }
                batch.clear();
                Ok(())
            };
            let start = Start::of(input, &self.rules, READ_BYTES)?;
            document::for_each(input, &self.rules, start, Reads::alone(READ_BYTES), &mut |document: Document<'_>| {
                bytes += document.text.len();
                batch.push((document.text.to_owned(), document.record));
                if bytes >= BATCH_BYTES {
                    bytes = 0;
                    work(&mut batch)?;
                }
                Ok(Flow::Continue)
            })?;
            work(&mut batch)?;
        }
        Ok(())
    }
}
