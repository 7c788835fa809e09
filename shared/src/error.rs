//! What can go wrong, sorted by what the reader of the message can do about it.
//!
//! Every variant carries the place (path, record, byte; step, parameter) and a message that ends in a
//! remedy. Binaries turn an error into an exit code with [`Error::exit_code`] and print one line a cause.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in these crates that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where in the input something was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The input file.
    pub file: PathBuf,
    /// 1-based line, record or row number, where the format has one.
    pub record: Option<u64>,
    /// Byte offset in the decompressed file, where it is known.
    pub byte: Option<u64>,
}

impl Location {
    /// A whole file.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), record: None, byte: None }
    }

    /// A record of a file; `record` counts from 1.
    pub fn record(file: impl Into<PathBuf>, record: u64) -> Self {
        Self { file: file.into(), record: Some(record), byte: None }
    }

    /// Adds the byte offset in the decompressed file.
    pub fn at_byte(mut self, byte: u64) -> Self {
        self.byte = Some(byte);
        self
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(record) = self.record {
            write!(f, ":{record}")?;
        }
        if let Some(byte) = self.byte {
            write!(f, " (byte {byte})")?;
        }
        Ok(())
    }
}

/// An error with its place and remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line, a configuration file or a model's configuration asks for something impossible.
    #[error("{what}: {reason}")]
    Config {
        /// The flag, field or file at fault, e.g. `--block_size`.
        what: String,
        /// Why it cannot be, and what to do.
        reason: String,
    },
    /// A record of the input cannot be used.
    #[error("{at}: {reason}")]
    Input {
        /// Where.
        at: Location,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Something is larger than a limit that protects memory or time.
    #[error("{at}: {what} is {found}, the limit is {limit}; {remedy}")]
    Limit {
        /// Where.
        at: Location,
        /// What was measured.
        what: &'static str,
        /// How much there was.
        found: u64,
        /// How much is allowed.
        limit: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// A file of ours, or a checkpoint, is damaged: its bytes are not those that were written.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What does not match, where, and what to do.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}{}", path.display(), storage_advice(source))]
    Storage {
        /// The file or directory.
        path: PathBuf,
        /// The operation, as a verb: `read`, `write`, `rename`.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A service on the network did not give what was asked for.
    #[error("{what}: {reason}")]
    Remote {
        /// What was asked for: the flag and the name.
        what: String,
        /// Why it did not come, and what to do.
        reason: String,
    },
    /// Numbers left the range in which training means anything.
    #[error("step {step}: {reason}")]
    Numeric {
        /// The optimizer step, counted from 1.
        step: u64,
        /// What was found, in which parameter or batch, and what to do.
        reason: String,
    },
    /// Stopped by a signal; what was finished is kept.
    #[error("interrupted; what was finished is kept")]
    Interrupted,
}

impl Error {
    /// A [`Error::Config`] in one line.
    pub fn config(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { what: what.into(), reason: reason.into() }
    }

    /// A [`Error::Input`] in one line.
    pub fn input(at: Location, reason: impl Into<String>) -> Self {
        Self::Input { at, reason: reason.into() }
    }

    /// A [`Error::Corrupt`] in one line.
    pub fn corrupt(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), reason: reason.into() }
    }

    /// A [`Error::Remote`] in one line.
    pub fn remote(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Remote { what: what.into(), reason: reason.into() }
    }

    /// Wraps an I/O error: `.map_err(Error::storage("read", path))`.
    pub fn storage(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Storage { path, action, source }
    }

    /// The process exit code of this class of error: 1 failed, 2 usage or configuration, 3 input rejected
    /// or corrupt, 4 no space, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config { .. } => 2,
            Self::Input { .. } | Self::Limit { .. } | Self::Corrupt { .. } => 3,
            Self::Storage { source, .. } if is_out_of_space(source) => 4,
            Self::Storage { .. } | Self::Remote { .. } | Self::Numeric { .. } => 1,
            Self::Interrupted => 130,
        }
    }
}

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory)
}

fn storage_advice(error: &io::Error) -> &'static str {
    if is_out_of_space(error) {
        ": no space left; free some (finished files are kept) and run the same command again"
    } else {
        ""
    }
}

/// Prints an error and its causes, one line each, to standard error.
pub fn print(program: &str, error: &dyn std::error::Error) {
    eprintln!("{program}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}
