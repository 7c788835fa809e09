//! A partition that somebody is making, read along by everybody else who wants it.
//!
//! Who makes it holds `<store>/.claim-<fingerprint>`, which says the name of the temporary file that is being written. Frames
//! are appended whole, so readers take them as the file grows, and know its end by its footer. If the maker is gone before
//! that, the next one makes the partition anew, to the same bytes: frames are a function of the documents alone, so a
//! reader goes on where it was.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tokenmill_shared::storage::{self, Claim};
use tokenmill_shared::{Error, Result};

use super::{FOOTER_BYTES, Frame, PartitionWriter, Store, footer_at, frame_at};

const CLAIM: &str = ".claim-";

impl Store {
    /// Starts writing a partition that others read along; `None` while another writes it so.
    pub fn claim(&self, fingerprint: &str) -> Result<Option<PartitionWriter>> {
        let Some(claim) = Claim::take(&self.claim_path(fingerprint))? else { return Ok(None) };
        let writer = self.create(fingerprint)?;
        let name = writer.file.temporary_path().file_name().and_then(OsStr::to_str).expect("a name of ours");
        claim.say(name)?;
        Ok(Some(PartitionWriter { claim: Some(claim), ..writer }))
    }

    /// The partition as far as it is there: whole, or as the one who claimed it writes it. `None` if it is neither.
    pub fn partial(&self, fingerprint: &str) -> Result<Option<PartialReader>> {
        if let Some(whole) = PartialReader::open(&self.path(fingerprint))? {
            return Ok(Some(whole));
        }
        match Claim::word(&self.claim_path(fingerprint))? {
            // Written by programs of this machine's user, and yet no way out of the store.
            Some(name) if Path::new(&name).file_name() == Some(OsStr::new(&name)) => {
                PartialReader::open(&self.dir.join(name))
            }
            _ => Ok(None),
        }
    }

    fn claim_path(&self, fingerprint: &str) -> PathBuf {
        self.dir.join(format!("{CLAIM}{fingerprint}"))
    }
}

impl PartitionWriter {
    /// What is being written, to read along.
    pub fn partial(&self) -> Result<PartialReader> {
        Ok(PartialReader { file: storage::open(self.file.temporary_path())? })
    }
}

/// Removes the claims of killed processes.
pub(super) fn remove_stale_claims(dir: &Path) -> Result<()> {
    for path in storage::files_in(dir)? {
        if path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(CLAIM)) {
            drop(Claim::take(&path)?);
        }
    }
    Ok(())
}

/// How far a partition was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    bytes: u64,
    frames: u64,
    documents: u64,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Growth {
    /// A frame.
    Frame(Frame),
    /// Nothing yet.
    Nothing,
    /// The partition ended.
    End,
}

/// The file of a partition that may still be written.
#[derive(Debug)]
pub struct PartialReader {
    file: storage::File,
}

impl PartialReader {
    fn open(path: &Path) -> Result<Option<Self>> {
        match storage::open(path) {
            Ok(file) => Ok(Some(Self { file })),
            Err(Error::Storage { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What follows `passed`, which goes on behind it.
    ///
    /// # Errors
    /// Bytes that are neither a frame nor the footer of what was passed.
    pub fn next(&self, passed: &mut Passed) -> Result<Growth> {
        let end = self.file.size()?;
        // No frame is shorter: a header and a document are as long.
        if end < passed.bytes + FOOTER_BYTES as u64 {
            return Ok(Growth::Nothing);
        }
        if let Some(frame) = frame_at(&self.file, passed.bytes, end)? {
            passed.bytes += frame.bytes.len() as u64;
            passed.frames += 1;
            passed.documents += frame.documents as u64;
            return Ok(Growth::Frame(frame));
        }
        match footer_at(&self.file, passed.bytes)? {
            Some(whole) if whole == (passed.frames, passed.documents) => Ok(Growth::End),
            Some(_) => Err(Error::corrupt(self.file.path(), "has frames that its footer does not count")),
            // A frame of which a part is there.
            None => Ok(Growth::Nothing),
        }
    }
}
