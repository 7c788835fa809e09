//! Datasets that are mixed: `--dataset_dir wiki=DIR:3 code=DIR:1`.

use std::path::{Path, PathBuf};

use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_shared::mixture::{Mixture, Share};
use tokenmill_shared::{Error, Result, storage};

const FLAG: &str = "--dataset_dir";

/// Weights are kept in millionths: so many draws apart they still differ.
const MILLIONTHS: f64 = 1e6;

/// What `--dataset_dir` names.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Nothing.
    Nothing,
    /// One dataset.
    One(PathBuf),
    /// Several, or one with a name.
    Named(Vec<Named>),
}

/// A dataset with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// What its metrics are called by.
    pub name: String,
    /// Where it is.
    pub dir: PathBuf,
    /// Its weight in millionths, if it has one.
    pub weight: Option<u64>,
}

impl Given {
    /// Reads `DIR`, or `NAME=DIR` and `NAME=DIR:WEIGHT`, ordered by name. What is a path as it stands is a path.
    ///
    /// # Errors
    /// Several of which one has no name, or the name or weight of which cannot be; weights of some only.
    pub fn parse(given: &[PathBuf]) -> Result<Self> {
        let mut named: Vec<Named> = Vec::new();
        for path in given {
            match (parse(path)?, given.len()) {
                (Some(one), _) => named.push(one),
                (None, 1) => return Ok(Self::One(path.clone())),
                (None, _) => {
                    let reason = format!("has several datasets, and {} has no name; give NAME=DIR", path.display());
                    return Err(Error::config(FLAG, reason));
                }
            }
        }
        named.sort_by(|one, other| one.name.cmp(&other.name));
        if let Some(pair) = named.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::config(FLAG, format!("has two datasets of the name {}", pair[0].name)));
        }
        let weightless = named.iter().find(|one| one.weight.is_none());
        if let (Some(without), Some(with)) = (weightless, named.iter().find(|one| one.weight.is_some())) {
            let reason =
                format!("has a weight for {} and none for {}; give all of them one, or none", with.name, without.name);
            return Err(Error::config(FLAG, reason));
        }
        Ok(if named.is_empty() { Self::Nothing } else { Self::Named(named) })
    }
}

/// A dataset with a name; `None` if it is a directory alone.
fn parse(given: &Path) -> Result<Option<Named>> {
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let split = given.to_str().and_then(|given| given.split_once('='));
    let Some((name, rest)) = split.filter(|(name, rest)| is_name(name) && !rest.is_empty()) else { return Ok(None) };
    if storage::stat(given)?.is_some() {
        return Ok(None);
    }
    let number = |text: &str| text.parse::<f64>().ok();
    let weighted = rest.rsplit_once(':').and_then(|(dir, weight)| Some((dir, number(weight)?)));
    let (dir, weight) = match weighted {
        Some((dir, weight)) if storage::stat(Path::new(rest))?.is_none() => (dir, Some(weight)),
        _ => (rest, None),
    };
    let in_millionths = |weight: f64| {
        let whole = (weight * MILLIONTHS).round();
        let reason = format!("{weight} is no weight of {name}; it must be between 0.000001 and 1000000");
        if (1.0..=1e12).contains(&whole) { Ok(whole as u64) } else { Err(Error::config(FLAG, reason)) }
    };
    Ok(Some(Named { name: name.to_owned(), dir: dir.into(), weight: weight.map(in_millionths).transpose()? }))
}

/// Datasets that are mixed, read as one: the training blocks of all, one after the other.
#[derive(Debug)]
pub struct Mixed {
    /// The datasets, in the order of the mixture's.
    pub datasets: Vec<Dataset>,
    /// How they are drawn from.
    pub mixture: Mixture,
    readers: Vec<Box<dyn BlockReader>>,
    block_size: usize,
}

impl Mixed {
    /// The datasets of `named`, opened, in blocks of `block_size` if that is given.
    ///
    /// # Errors
    /// Tokenizers or block sizes that differ, a block size of 0, a dataset without a training block.
    pub fn new(named: &[Named], datasets: Vec<Dataset>, block_size: Option<usize>) -> Result<Self> {
        let own = |dataset: &Dataset| dataset.manifest().block_size;
        if block_size == Some(0) {
            return Err(Error::config("--block_size", "cannot be 0; leave it out for that of the datasets"));
        }
        for (one, dataset) in named.iter().zip(&datasets) {
            let tokenizer = |of: &Dataset| {
                let files = of.manifest().files.iter().filter(|(name, _)| name.is_tokenizer());
                files.map(|(name, entry)| (name.to_string(), entry.blake3.clone())).collect::<Vec<_>>()
            };
            if tokenizer(dataset) != tokenizer(&datasets[0]) {
                let reason = format!(
                    "{} and {} were made with different tokenizers; prepare both with the same",
                    named[0].name, one.name
                );
                return Err(Error::config(FLAG, reason));
            }
            if block_size.is_none() && own(dataset) != own(&datasets[0]) {
                let reason = format!(
                    "{} has blocks of {} and {} of {}; say with --block_size what all are cut to",
                    named[0].name,
                    own(&datasets[0]),
                    one.name,
                    own(dataset)
                );
                return Err(Error::config(FLAG, reason));
            }
        }
        let block_size = block_size.unwrap_or_else(|| own(&datasets[0]));
        let mut readers = Vec::with_capacity(datasets.len());
        for (one, dataset) in named.iter().zip(&datasets) {
            let reader = dataset.recut(Split::Train, block_size)?.filter(|reader| !reader.is_empty());
            let none = || Error::config(FLAG, format!("{} has no training block of {block_size} tokens", one.name));
            readers.push(reader.ok_or_else(none)?);
        }
        let shares = named.iter().zip(&readers).map(|(one, reader)| Share {
            name: one.name.clone(),
            blocks: reader.len(),
            weight: one.weight.unwrap_or(reader.len()),
        });
        let mixture = Mixture::new(shares.collect());
        Ok(Self { datasets, mixture, readers, block_size })
    }

    /// What is drawn in an epoch of `blocks` blocks, for people.
    pub fn lines(&self, blocks: u64) -> impl Iterator<Item = String> {
        self.mixture.shares().iter().map(move |share| {
            let part = self.mixture.proportion(share);
            let passes = blocks as f64 * part / share.blocks as f64;
            format!(
                "{}: {} blocks of {}, {:.2} % of what is drawn; an epoch goes through them {passes:.2} times",
                share.name,
                share.blocks,
                self.block_size,
                100.0 * part
            )
        })
    }

    /// These blocks by dataset, each by its own number: what `of` says of them, with the name.
    pub fn by_dataset(
        &self,
        blocks: &[u64],
        of: impl Fn(&dyn BlockReader, &[u64]) -> Result<String>,
    ) -> Result<Vec<String>> {
        let mut numbers = vec![Vec::new(); self.readers.len()];
        for (index, block) in blocks.iter().map(|block| self.mixture.locate(*block)) {
            numbers[index].push(block);
        }
        let some =
            self.mixture.shares().iter().zip(&self.readers).zip(&numbers).filter(|(_, blocks)| !blocks.is_empty());
        some.map(|((share, reader), blocks)| Ok(format!("of {} {}", share.name, of(reader.as_ref(), blocks)?)))
            .collect()
    }

    fn reader(&self, block: u64) -> (&dyn BlockReader, u64) {
        let (index, block) = self.mixture.locate(block);
        (self.readers[index].as_ref(), block)
    }
}

impl BlockReader for Mixed {
    fn block_size(&self) -> usize {
        self.block_size
    }

    fn len(&self) -> u64 {
        self.mixture.blocks()
    }

    fn valid_tokens(&self, index: u64) -> Result<usize> {
        let (reader, block) = self.reader(index);
        reader.valid_tokens(block)
    }

    fn read_block(&self, index: u64, out: &mut Vec<u32>) -> Result<()> {
        let (reader, block) = self.reader(index);
        reader.read_block(block, out)
    }

    fn fetched_with(&self, index: u64) -> Option<u64> {
        let (reader, block) = self.reader(index);
        // The blocks of a dataset keep their distance.
        reader.fetched_with(block).map(|first| index - block + first)
    }

    fn document_starts(&self, index: u64) -> Result<Vec<u32>> {
        let (reader, block) = self.reader(index);
        reader.document_starts(block)
    }

    fn documents(&self, index: u64) -> Result<Option<Vec<u64>>> {
        let (reader, block) = self.reader(index);
        reader.documents(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(given: &[&str]) -> Result<Given> {
        Given::parse(&given.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn datasets_have_names_and_all_or_none_of_them_weights() {
        let named = |name: &str, dir: &str, weight| Named { name: name.into(), dir: dir.into(), weight };
        assert_eq!(parsed(&[]).unwrap(), Given::Nothing);
        assert_eq!(parsed(&["/d/one"]).unwrap(), Given::One("/d/one".into()));
        assert_eq!(parsed(&["a/b=c"]).unwrap(), Given::One("a/b=c".into()));
        let found = parsed(&["wiki=/d/w:3", "code=/d/c:0.25"]).unwrap();
        assert_eq!(
            found,
            Given::Named(vec![named("code", "/d/c", Some(250_000)), named("wiki", "/d/w", Some(3_000_000))])
        );
        let found = parsed(&["b=C:/x", "a=/y:z"]).unwrap();
        assert_eq!(found, Given::Named(vec![named("a", "/y:z", None), named("b", "C:/x", None)]));
        for (given, parts) in [
            (&["a=/x:1", "/y"][..], &["/y", "NAME=DIR"][..]),
            (&["a=/x:1", "a=/y:1"], &["two", "name a"]),
            (&["a=/x:1", "b=/y"], &["weight for a", "none for b"]),
            (&["a=/x:0"], &["0 is no weight of a"]),
            (&["a=/x:-1"], &["-1 is no weight of a"]),
            (&["a=/x:nan"], &["NaN is no weight of a"]),
            (&["a=/x:1e9"], &["is no weight of a"]),
        ] {
            let error = parsed(given).unwrap_err().to_string();
            assert!(error.contains("--dataset_dir") && parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn what_is_a_path_as_it_stands_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        storage::create_dir_all(&path("x:2")).unwrap();
        let given = format!("a={}", path("x:2").display());
        let Given::Named(named) = parsed(&[&given]).unwrap() else { panic!("it has a name") };
        assert_eq!((&named[0].dir, named[0].weight), (&path("x:2"), None));
    }
}
