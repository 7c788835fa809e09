//! Files of a snapshot: fetched beside their final name, gone on with after a break, hashed, linked.

use std::io::Read;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::client::{Client, Failure, header};
use super::{Repository, is_hash};
use crate::progress::{Progress, Unit};
use crate::storage::{self, AppendFile};
use crate::{Error, Result};

/// So many attempts that bring nothing new end a download.
const ATTEMPTS: u32 = 5;

/// Bytes written at a time.
const PIECE: usize = 1 << 20;

/// What one run fetches of a repository.
pub(super) struct Download<'a> {
    pub client: &'a Client,
    pub cache: &'a Path,
    pub repository: &'a Repository,
    pub commit: &'a str,
}

/// Why a file is not there.
pub(super) enum Broken {
    /// A request failed.
    Request(Failure),
    /// The disk, or the file's bytes.
    Other(Error),
}

impl Broken {
    pub fn into_error(self, what: String, explain: impl FnOnce(&Failure) -> String) -> Error {
        match self {
            Self::Request(failure) => Error::remote(what, explain(&failure)),
            Self::Other(error) => error,
        }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Request(failure)
    }
}

/// A file as the hub describes it.
struct Description {
    name: String,
    /// The hash by which it is kept: SHA-256 of a large file, SHA-1 as git makes it of a small one.
    etag: String,
    size: u64,
}

impl Download<'_> {
    /// Fetches the files that the snapshot lacks.
    pub fn fetch(&self, names: &[String]) -> Result<(), Broken> {
        let described = names.iter().map(|name| self.describe(name)).collect::<Result<Vec<_>, _>>()?;
        if described.is_empty() {
            return Ok(());
        }
        let total = described.iter().map(|file| file.size).sum();
        let text = indicatif::HumanBytes(total);
        eprintln!(
            "fetching {} files of {} ({text}) from {}",
            described.len(),
            self.repository.id,
            self.client.endpoint()
        );
        let progress = Progress::new("fetching", Unit::Bytes, Some(total));
        described.iter().try_for_each(|file| self.fetch_one(file, &progress))
    }

    fn describe(&self, name: &str) -> Result<Description, Failure> {
        let answer = self.client.head(&self.client.address(&self.repository.file_path(self.commit, name)))?;
        let status = answer.status().as_u16();
        if status >= 400 {
            return Err(Failure::Status(status));
        }
        let missing = |what: &str| Failure::Strange(format!("without {what} of {name}; is HF_ENDPOINT a hub?"));
        let etag = header(&answer, "x-linked-etag").or_else(|| header(&answer, "etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_hash(&etag) {
            return Err(missing("the hash"));
        }
        let size = header(&answer, "x-linked-size").or_else(|| header(&answer, "content-length"));
        let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| missing("the size"))?;
        Ok(Description { name: name.to_owned(), etag, size })
    }

    fn fetch_one(&self, file: &Description, progress: &Progress) -> Result<(), Broken> {
        let folder = self.repository.folder();
        let (blobs, locks) = (self.cache.join(&folder).join("blobs"), self.cache.join(".locks").join(&folder));
        storage::create_dir_all(&blobs)?;
        storage::create_dir_all(&locks)?;
        // The lock that Python takes, too.
        let _lock = storage::lock_file(&locks.join(format!("{}.lock", file.etag)), true)?;
        let blob = blobs.join(&file.etag);
        if storage::stat(&blob)?.is_none() {
            let incomplete = blobs.join(format!("{}.incomplete", file.etag));
            self.receive(file, &incomplete, progress)?;
            if let Err(error) = check(file, &incomplete) {
                storage::remove_file(&incomplete)?;
                return Err(error.into());
            }
            storage::sync_file(&incomplete)?;
            storage::rename(&incomplete, &blob)?;
        } else {
            progress.add(file.size);
        }
        let link = self.cache.join(&folder).join("snapshots").join(self.commit).join(&file.name);
        storage::create_dir_all(link.parent().unwrap_or(self.cache))?;
        let up = "../".repeat(2 + file.name.matches('/').count());
        storage::link(&link, Path::new(&format!("{up}blobs/{}", file.etag)))?;
        Ok(())
    }

    /// Adds to `incomplete` until it has the whole size.
    fn receive(&self, file: &Description, incomplete: &Path, progress: &Progress) -> Result<(), Broken> {
        let address = self.client.address(&self.repository.file_path(self.commit, &file.name));
        let mut there = storage::stat(incomplete)?.map_or(0, |stat| stat.size);
        if there > file.size {
            storage::remove_file(incomplete)?;
            there = 0;
        }
        progress.add(there);
        let mut failed = 0;
        while there < file.size || there == 0 {
            let before = there;
            let failure = match self.receive_some(&address, file.size, incomplete, &mut there, progress) {
                Ok(()) if there == file.size => break,
                Ok(()) => Failure::Unreachable("the connection ended early".to_owned()),
                Err(Broken::Request(failure)) => failure,
                Err(other) => return Err(other),
            };
            let lasting = matches!(failure, Failure::Status(status) if status < 500 && status != 429 && status != 408);
            failed = if there > before { 0 } else { failed + 1 };
            if lasting || failed == ATTEMPTS {
                return Err(failure.into());
            }
            sleep(Duration::from_millis(200 << failed));
        }
        Ok(())
    }

    fn receive_some(
        &self,
        address: &str,
        size: u64,
        incomplete: &Path,
        there: &mut u64,
        progress: &Progress,
    ) -> Result<(), Broken> {
        let answer = self.client.get(address, Some(*there))?;
        match answer.status().as_u16() {
            206 => {}
            // All of it, whatever was asked for: begin anew.
            200 => {
                storage::remove_file(incomplete)?;
                *there = 0;
            }
            status => return Err(Failure::Status(status).into()),
        }
        let mut file = AppendFile::open(incomplete)?;
        let mut body = answer.into_body().into_reader().take(size - *there);
        let mut buffer = vec![0; PIECE];
        loop {
            let read = body.read(&mut buffer);
            let read = read.map_err(|error| Failure::Unreachable(format!("the connection broke off ({error})")))?;
            if read == 0 {
                return Ok(());
            }
            file.append(&buffer[..read])?;
            *there += read as u64;
            progress.add(read as u64);
        }
    }
}

/// The bytes at `path` against the hash they are to be kept by.
fn check(file: &Description, path: &Path) -> Result<()> {
    let mut hash = match file.etag.len() {
        64 => Context::new(&SHA256),
        40 => {
            let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            hash.update(format!("blob {}\0", file.size).as_bytes());
            hash
        }
        // Another hub's own kind of name; its size was right.
        _ => return Ok(()),
    };
    let mut reader = storage::open(path)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match reader.read(&mut buffer).map_err(Error::storage("read", path))? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == file.etag.to_lowercase() {
        return Ok(());
    }
    let reason = format!(
        "arrived with hash {found}, the hub says {}; nothing of it is kept: run the same command again, and if that does not help look at the proxy or HF_ENDPOINT",
        file.etag
    );
    Err(Error::corrupt(&file.name, reason))
}
