//! `manifest.json`: what a dataset is. A dataset exists when its manifest does; it is written last.
//!
//! Its last field is the BLAKE3 of the file's other bytes, so any flipped bit shows.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::writer::written_by;
use super::{FileName, Ledger, ShardKind, ShardName, Split};
use crate::{Error, Result, storage};

/// The newest version: this program reads every one up to it. What it writes says the oldest that can be read by, see
/// [`Layout::format_version`].
pub const FORMAT_VERSION: u32 = 2;

/// The file's name in the dataset's directory.
pub const MANIFEST: &str = "manifest.json";

/// What stands before and after the checksum, at the end of the file.
const BEFORE_CHECKSUM: &[u8] = b"\"blake3\": \"";
const AFTER_CHECKSUM: &[u8] = b"\"\n}\n";

/// A manifest of a billion blocks stays far below this; anything larger is not ours.
const MANIFEST_LIMIT: u64 = 256 << 20;

/// How wide a token id is on disk: from the tokenizer's largest id, never from the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenWidth {
    /// Two bytes, for ids up to 65,535.
    U16,
    /// Four bytes.
    U32,
}

impl TokenWidth {
    /// The narrowest width that holds `id`.
    pub fn for_largest_id(id: u32) -> Self {
        if id <= u32::from(u16::MAX) { Self::U16 } else { Self::U32 }
    }

    /// Bytes of one id.
    pub fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// Appends ids in this width, little-endian. Ids must fit, which the tokenizer's largest id says.
    pub fn encode(self, ids: &[u32], out: &mut Vec<u8>) {
        match self {
            Self::U16 => out.extend(ids.iter().flat_map(|id| (*id as u16).to_le_bytes())),
            Self::U32 => out.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
        }
    }

    /// Appends the ids in `bytes`, whose length is a multiple of the width.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<u32>) {
        match self {
            Self::U16 => out.extend(bytes.chunks_exact(2).map(|id| u32::from(u16::from_le_bytes([id[0], id[1]])))),
            Self::U32 => out.extend(bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]))),
        }
    }
}

/// How the blocks of a split come about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Its documents are one stream of ids, cut every `block_size`: only the last block may be padded.
    #[default]
    Stream,
    /// Every block has documents of its own, and may be padded; the sidecar says how many of its ids are tokens and of
    /// which documents they are.
    Blocks,
}

impl Layout {
    /// The oldest format version that has it. A stream is written as ever, so that older programs read it.
    pub fn format_version(self) -> u32 {
        match self {
            Self::Stream => 1,
            Self::Blocks => 2,
        }
    }

    fn is_stream(&self) -> bool {
        *self == Self::Stream
    }
}

/// A file of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
}

/// A shard, or the documents sidecar of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Its name.
    pub name: ShardName,
    /// Blocks in it.
    pub blocks: u64,
    /// Size and hash.
    #[serde(flatten)]
    pub file: FileEntry,
}

/// What documents and tokens of a split are like, for people; nothing depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Documents by length: of no token, of 1, of 2 to 3, of 4 to 7, and so on.
    pub documents_by_tokens: Vec<u64>,
    /// Tokens by what they are made of: letters of a script, digits, …
    pub tokens_by_kind: BTreeMap<String, u64>,
}

/// What one split holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Blocks.
    pub blocks: u64,
    /// Documents that reached packing.
    pub documents: u64,
    /// UTF-8 bytes of those documents' text, for bits per byte.
    pub text_bytes: u64,
    /// Ids of the last block that are tokens; fewer than `block_size` only when it is padded. Of [`Layout::Blocks`] the
    /// others may be padded too.
    pub last_block_valid_tokens: u64,
    /// The account of its tokens.
    pub ledger: Ledger,
    /// What its documents are like; absent where the writer did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
    /// Its files, shards and documents sidecars in turn.
    pub shards: Vec<ShardEntry>,
}

/// What the one who packs knows of a dataset; the rest of the [`Manifest`] follows from writing it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManifestHead {
    /// BLAKE3 over what the dataset is a pure function of, in hexadecimal.
    pub fingerprint: String,
    /// The largest id the tokenizer can produce.
    pub largest_token_id: u32,
    /// The end-of-sequence id appended after each document, if one is.
    pub eos_token_id: Option<u32>,
    /// The id that fills a padded block.
    pub pad_token_id: u32,
    /// The settings the dataset is a function of, for people; no path, time or machine.
    pub settings: serde_json::Value,
    /// Records of the input that were left out because they cannot be used, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected_records: BTreeMap<String, u64>,
}

/// What a dataset is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The program and version that wrote it.
    pub written_by: String,
    /// Token ids in a block.
    pub block_size: usize,
    /// Width of an id on disk.
    pub token_width: TokenWidth,
    /// How blocks come about; not in version 1, which has streams only.
    #[serde(default, skip_serializing_if = "Layout::is_stream")]
    pub layout: Layout,
    /// Fingerprint, tokenizer facts, settings.
    #[serde(flatten)]
    pub head: ManifestHead,
    /// The splits, by name.
    pub splits: BTreeMap<Split, SplitManifest>,
    /// BLAKE3 and size of `index.arrow`.
    pub index: FileEntry,
    /// Every other file, by its path in the dataset.
    pub files: BTreeMap<FileName, FileEntry>,
    /// BLAKE3 of the file with this field empty.
    pub blake3: String,
}

#[derive(Deserialize)]
struct VersionOnly {
    format_version: u32,
}

impl Manifest {
    /// The bytes of the file; also fills in [`Manifest::blake3`].
    pub(super) fn seal(&mut self) -> Vec<u8> {
        self.blake3 = String::new();
        self.blake3 = blake3::hash(&self.json()).to_hex().to_string();
        self.json()
    }

    fn json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a manifest has string keys and finite numbers");
        json.push(b'\n');
        json
    }

    /// Loads and checks the manifest of the dataset at `dir`.
    ///
    /// # Errors
    /// No dataset there; a newer format; damage of any kind, down to one bit.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if storage::stat(&path)?.is_none() {
            return Err(Error::config(
                dir.display().to_string(),
                "holds no dataset (no manifest.json); make one with `preprocess prepare --output_dir`",
            ));
        }
        let bytes = storage::read_at_most(&path, MANIFEST_LIMIT)?;
        let damaged =
            |why: String| Error::corrupt(&path, format!("{why}; run `preprocess prepare` again into a new directory"));
        let version: VersionOnly =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("is not a manifest ({error})")))?;
        let whole = checksum_is_right(&bytes);
        if version.format_version > FORMAT_VERSION {
            let or_damaged = if whole { "" } else { " (or is damaged: its checksum is not of this version)" };
            return Err(Error::config(
                path.display().to_string(),
                format!(
                    "has format version {}{or_damaged}, this program reads up to {FORMAT_VERSION}; use a newer tokenmill",
                    version.format_version
                ),
            ));
        }
        if !whole {
            return Err(damaged("is damaged: its bytes do not match its own checksum".to_owned()));
        }
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("is not a manifest ({error})")))?;
        match manifest.contradiction() {
            Some(why) => Err(damaged(format!("contradicts itself: {why}"))),
            None => Ok(manifest),
        }
    }

    /// Whether this version of the program wrote it, so that it would write the same again.
    pub fn is_of_this_version(&self) -> bool {
        self.written_by == written_by()
    }

    /// What is impossible in this manifest, so that its readers need not ask.
    fn contradiction(&self) -> Option<String> {
        if self.block_size == 0 || i32::try_from(self.block_size).is_err() {
            return Some(format!("block_size is {}", self.block_size));
        }
        if self.format_version < self.layout.format_version() {
            return Some(format!("format version {} has no such layout", self.format_version));
        }
        self.splits.iter().find_map(|(split, entry)| Some(format!("split {split}: {}", entry.contradiction(self)?)))
    }
}

impl SplitManifest {
    fn contradiction(&self, manifest: &Manifest) -> Option<String> {
        if !self.ledger.balances() {
            return Some("the ledger does not balance".to_owned());
        }
        let block_size = manifest.block_size as u64;
        let valid = self.last_block_valid_tokens;
        let ids = u128::from(self.blocks) * u128::from(block_size);
        let possible = match manifest.layout {
            Layout::Stream => {
                let padded = u128::from(self.ledger.in_blocks) + u128::from(block_size.saturating_sub(valid));
                (1..=block_size).contains(&valid) && ids == padded
            }
            Layout::Blocks => valid <= block_size && u128::from(self.ledger.in_blocks) <= ids,
        };
        if !possible {
            return Some(format!("{} blocks cannot hold {} tokens", self.blocks, self.ledger.in_blocks));
        }
        for (place, shard) in self.shards.iter().enumerate() {
            let expected = ShardName { kind: ShardKind::ALL[place % 2], number: (place / 2) as u32 };
            if shard.name != expected {
                return Some(format!("{} stands where {expected} belongs", shard.name));
            }
        }
        for kind in ShardKind::ALL {
            let of_kind = self.shards.iter().filter(|shard| shard.name.kind == kind);
            let blocks: u128 = of_kind.map(|shard| u128::from(shard.blocks)).sum();
            if blocks != u128::from(self.blocks) {
                return Some(format!("its files hold {blocks} blocks of {}", self.blocks));
            }
        }
        None
    }
}

fn checksum_is_right(bytes: &[u8]) -> bool {
    let Some(sealed) = bytes.strip_suffix(AFTER_CHECKSUM) else { return false };
    let Some((before, checksum)) = sealed.split_last_chunk::<64>() else { return false };
    let expected = blake3::Hasher::new().update(before).update(AFTER_CHECKSUM).finalize();
    before.ends_with(BEFORE_CHECKSUM) && expected.to_hex().as_bytes() == checksum
}
