//! A compressed file that a reader left in the middle, for the next one to go on with.
//!
//! A large file is read partition after partition, and only its first byte can be entered: 1 GB in partitions of 64 MiB
//! would be decompressed seven times over. One decoder is kept, with the last bytes that it gave, because a reader asks
//! for more than its partition holds.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::PathBuf;

use tokenmill_shared::storage::Stat;

use crate::source::Input;

/// So many of the last bytes are kept, or up to twice as many: four times what readers have ahead of themselves.
const LAST_BYTES: usize = 1 << 20;

thread_local! {
    /// What was left last on this thread.
    static LEFT: Cell<Option<Paused>> = const { Cell::new(None) };
}

struct Paused {
    file: (PathBuf, Stat),
    decoder: Box<dyn Read + Send>,
    /// Bytes that it gave.
    given: u64,
    /// The last of them.
    last: Vec<u8>,
}

/// Decompressed bytes of a file from some place on; dropped before their end, they can be gone on with.
pub(super) struct Resumable {
    paused: Option<Paused>,
    /// Where in the last bytes it is; at their end, the decoder gives more.
    at: usize,
}

impl Resumable {
    /// From the first byte.
    pub(super) fn new(input: &Input, decoder: Box<dyn Read + Send>) -> Self {
        let file = (input.path.clone(), input.stat);
        Self { paused: Some(Paused { file, decoder, given: 0, last: Vec::new() }), at: 0 }
    }

    /// From `offset` or some byte before it on, if that is where this thread left the same file; otherwise nothing.
    pub(super) fn take(input: &Input, offset: u64) -> Option<(Self, u64)> {
        let paused = LEFT.take()?;
        let first = paused.given - paused.last.len() as u64;
        if (&paused.file.0, paused.file.1) != (&input.path, input.stat) || offset < first {
            return None;
        }
        let from = offset.min(paused.given);
        Some((Self { at: (from - first) as usize, paused: Some(paused) }, from))
    }
}

impl Read for Resumable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(paused) = &mut self.paused else { return Ok(0) };
        if self.at < paused.last.len() {
            let read = (&paused.last[self.at..]).read(buffer)?;
            self.at += read;
            return Ok(read);
        }
        let read = match paused.decoder.read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                // What failed is not gone on with.
                self.paused = None;
                return Err(error);
            }
        };
        if paused.last.len() + read > 2 * LAST_BYTES {
            paused.last.drain(..paused.last.len().saturating_sub(LAST_BYTES));
        }
        paused.last.extend_from_slice(&buffer[..read]);
        paused.given += read as u64;
        self.at = paused.last.len();
        if read == 0 && !buffer.is_empty() {
            self.paused = None;
        }
        Ok(read)
    }
}

impl Drop for Resumable {
    fn drop(&mut self) {
        if let Some(paused) = self.paused.take() {
            LEFT.set(Some(paused));
        }
    }
}
