//! What is served, by name. A client asks for names; which directories they stand for was said on the command line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokenmill_shared::dataset::{BlockReader, Dataset, Split, TokenWidth};
use tokenmill_shared::service::{Description, Source, SplitDescription};
use tokenmill_shared::{Error, Result, hub, storage};

use super::arguments::ServeArguments;
use crate::job::{Output, PrepareOptions, Tuning};
use crate::live::Live;
use crate::tokenizer::Tokenizer;

/// Everything that is served.
#[derive(Debug)]
pub struct Catalogue(BTreeMap<String, Arc<Served>>);

/// One dataset, or text that becomes one as it is read.
#[derive(Debug)]
pub struct Served {
    /// The name it is asked for by.
    pub name: String,
    /// What it is.
    pub content: Content,
}

/// What is behind a name.
#[derive(Debug)]
pub enum Content {
    /// A dataset on disk, with its splits open.
    Prepared(Box<Prepared>),
    /// Text.
    Live(Arc<Live>),
}

/// A dataset on disk.
#[derive(Debug)]
pub struct Prepared {
    dataset: Dataset,
    splits: BTreeMap<Split, Arc<dyn BlockReader>>,
    /// Loaded when it is first asked for.
    tokenizer: Mutex<Option<Arc<Tokenizer>>>,
}

impl Catalogue {
    /// Opens everything that `arguments` name.
    ///
    /// # Errors
    /// Two of one name, none at all, or one that cannot be opened.
    pub fn open(arguments: &ServeArguments) -> Result<Self> {
        let mut found = BTreeMap::new();
        let mut add = |flag: &str, name: String, content: Content| {
            let served = Arc::new(Served { name: name.clone(), content });
            match found.insert(name, served) {
                None => Ok(()),
                Some(other) => Err(Error::config(flag, format!("the name {} is given twice", other.name))),
            }
        };
        for (name, dir) in ServeArguments::named("--dataset_dir", &arguments.dataset_dir)? {
            add("--dataset_dir", name, Content::Prepared(Box::new(Prepared::open(&dir)?)))?;
        }
        for (name, dir) in ServeArguments::named("--text_dir", &arguments.text_dir)? {
            add("--text_dir", name, Content::Live(Arc::new(open_text(arguments, &dir)?)))?;
        }
        if found.is_empty() {
            return Err(Error::config(
                "--dataset_dir",
                "is missing; give --dataset_dir NAME=DIR or --text_dir NAME=DIR",
            ));
        }
        Ok(Self(found))
    }

    /// What is served by `name`.
    pub fn get(&self, name: &str) -> Option<Arc<Served>> {
        self.0.get(name).cloned()
    }

    /// Everything, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.0.values()
    }
}

fn open_text(arguments: &ServeArguments, dir: &Path) -> Result<Live> {
    let (data, hub) = (&arguments.data, &arguments.hub);
    let unnamed = [
        ("--train_file_dir", data.train_file_dir.is_some()),
        ("--train_file", !data.train_file.is_empty()),
        ("--dataset_name", data.dataset_name.is_some()),
    ];
    if let Some((flag, _)) = unnamed.into_iter().find(|(_, given)| *given) {
        return Err(Error::config(flag, "has no name to ask for it by; give --text_dir NAME=DIR"));
    }
    let find = |path: &Path, flag: &str, wanted: hub::Wanted<'_>| {
        hub::model_directory(flag, path, wanted, hub, data.cache_dir.as_deref())
    };
    let flag = "--tokenizer_name_or_path";
    let model = arguments.model_name_or_path.as_deref();
    let tokenizer = arguments.tokenizer_name_or_path.as_deref().or(model);
    let missing = || Error::config(flag, "is missing; --text_dir needs it to make ids of the text");
    let options = PrepareOptions {
        data: tokenmill_shared::config::DataArguments { train_file_dir: Some(dir.to_owned()), ..data.clone() },
        hub: hub.clone(),
        tokenizer: find(tokenizer.ok_or_else(missing)?, flag, &hub::tokenizer_files)?,
        model: model.map(|path| find(path, "--model_name_or_path", &hub::configuration_files)).transpose()?,
        output: Output::Cache,
        tuning: Tuning::default(),
    };
    Live::open(&options, true)
}

impl Prepared {
    fn open(dir: &Path) -> Result<Self> {
        let dataset = Dataset::open(dir)?;
        dataset.check_tokenizer()?;
        let mut splits: BTreeMap<Split, Arc<dyn BlockReader>> = BTreeMap::new();
        for split in dataset.manifest().splits.keys() {
            if let Some(reader) = dataset.split(*split)? {
                splits.insert(*split, Arc::new(reader));
            }
        }
        Ok(Self { dataset, splits, tokenizer: Mutex::default() })
    }

    /// The blocks of a split, of `block_size` if that is given; `None` if there is no such split.
    ///
    /// # Errors
    /// Files that changed since they were opened.
    pub fn blocks(&self, split: Split, block_size: Option<usize>) -> Result<Option<Arc<dyn BlockReader>>> {
        let own = self.dataset.manifest().block_size;
        match block_size.filter(|size| *size != own) {
            None => Ok(self.splits.get(&split).cloned()),
            Some(size) => Ok(self.dataset.recut(split, size)?.map(Arc::from)),
        }
    }

    /// Blocks of a split, if there is one, of the dataset's own size.
    pub fn len(&self, split: Split) -> Option<u64> {
        self.splits.get(&split).map(|reader| reader.len())
    }

    /// What is known of its splits, in blocks of `block_size`.
    ///
    /// # Errors
    /// Files that changed since they were opened.
    pub fn describe_splits(&self, block_size: usize) -> Result<BTreeMap<Split, SplitDescription>> {
        let manifest = self.dataset.manifest();
        let mut splits = BTreeMap::new();
        for (split, entry) in &manifest.splits {
            let Some(reader) = self.blocks(*split, Some(block_size))? else { continue };
            let blocks = reader.len();
            let tokens = match blocks.checked_sub(1) {
                _ if block_size == manifest.block_size => entry.ledger.in_blocks,
                Some(last) => last * block_size as u64 + reader.valid_tokens(last)? as u64,
                None => 0,
            };
            let description = SplitDescription {
                blocks: Some(blocks),
                tokens: Some(tokens),
                dropped_tokens: entry.ledger.remainder,
                bytes_per_token: entry.text_bytes as f64 / (entry.ledger.read as f64).max(1.0),
            };
            splits.insert(*split, description);
        }
        Ok(splits)
    }

    /// How wide its ids are.
    pub fn width(&self) -> TokenWidth {
        self.dataset.manifest().token_width
    }

    fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        let mut loaded = self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokenizer) = &*loaded {
            return Ok(Arc::clone(tokenizer));
        }
        Ok(Arc::clone(loaded.insert(Arc::new(Tokenizer::load(&self.dataset.tokenizer_dir())?))))
    }

    fn tokenizer_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let files = self.dataset.manifest().files.keys().filter(|name| name.is_tokenizer());
        files
            .map(|name| {
                let path = name.path(self.dataset.dir());
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Ok((file, storage::read(&path)?))
            })
            .collect()
    }
}

/// A tokenizer in use.
#[derive(Debug)]
pub enum TokenizerOf {
    /// That of a dataset.
    Prepared(Arc<Tokenizer>),
    /// That of text.
    Live(Arc<Live>),
}

impl std::ops::Deref for TokenizerOf {
    type Target = Tokenizer;

    fn deref(&self) -> &Tokenizer {
        match self {
            Self::Prepared(tokenizer) => tokenizer,
            Self::Live(live) => live.tokenizer(),
        }
    }
}

impl Served {
    /// Its fingerprint.
    pub fn fingerprint(&self) -> &str {
        match &self.content {
            Content::Prepared(prepared) => &prepared.dataset.manifest().head.fingerprint,
            Content::Live(live) => live.fingerprint(),
        }
    }

    /// Whether it is prepared or text, in a word.
    pub fn kind(&self) -> &'static str {
        match &self.content {
            Content::Prepared(_) => "prepared",
            Content::Live(_) => "text",
        }
    }

    /// Ids in a block where nothing else is asked for.
    pub fn block_size(&self) -> usize {
        match &self.content {
            Content::Prepared(prepared) => prepared.dataset.manifest().block_size,
            Content::Live(live) => live.block_size(),
        }
    }

    /// Its tokenizer, loaded if need be.
    pub fn tokenizer(&self) -> Result<TokenizerOf> {
        Ok(match &self.content {
            Content::Prepared(prepared) => TokenizerOf::Prepared(prepared.tokenizer()?),
            Content::Live(live) => TokenizerOf::Live(Arc::clone(live)),
        })
    }

    /// Its tokenizer's files: names and bytes.
    pub fn tokenizer_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        match &self.content {
            Content::Prepared(prepared) => prepared.tokenizer_files(),
            Content::Live(live) => {
                let files = live.tokenizer().files.iter();
                Ok(files.map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect())
            }
        }
    }

    /// What is known of it, in blocks of `block_size` if that is given.
    ///
    /// # Errors
    /// Files that changed since they were opened.
    pub fn describe(&self, block_size: Option<usize>) -> Result<Description> {
        let hash = |(name, bytes): (String, Vec<u8>)| (name, blake3::hash(&bytes).to_hex().to_string());
        let tokenizer = self.tokenizer_files()?.into_iter().map(hash).collect();
        let own_block_size = self.block_size();
        let block_size = block_size.unwrap_or(own_block_size);
        let dataset = self.name.clone();
        match &self.content {
            Content::Prepared(prepared) => {
                let manifest = prepared.dataset.manifest();
                Ok(Description {
                    dataset,
                    source: Source::Prepared,
                    fingerprint: self.fingerprint().to_owned(),
                    block_size,
                    own_block_size,
                    token_width: manifest.token_width,
                    largest_token_id: manifest.head.largest_token_id,
                    set_aside: 0,
                    splits: prepared.describe_splits(block_size)?,
                    tokenizer,
                })
            }
            Content::Live(live) => {
                let live = live.recut(block_size)?;
                Ok(Description {
                    dataset,
                    source: Source::Live,
                    fingerprint: live.fingerprint().to_owned(),
                    block_size: live.block_size(),
                    own_block_size,
                    token_width: live.width(),
                    largest_token_id: live.tokenizer().largest_id(),
                    set_aside: live.set_aside(),
                    splits: describe_text(&live)?,
                    tokenizer,
                })
            }
        }
    }
}

fn describe_text(live: &Live) -> Result<BTreeMap<Split, SplitDescription>> {
    let of = |blocks: Option<u64>| SplitDescription {
        blocks,
        tokens: blocks.map(|blocks| blocks * live.block_size() as u64),
        dropped_tokens: 0,
        bytes_per_token: 0.0,
    };
    let known = live.known_blocks()?;
    let mut splits = BTreeMap::new();
    splits.insert(Split::Train, of(known.map(|known| known.saturating_sub(live.set_aside()))));
    if live.set_aside() > 0 {
        splits.insert(Split::Validation, of(known.map(|known| known.min(live.set_aside()))));
    }
    Ok(splits)
}
