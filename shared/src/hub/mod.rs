//! Models, tokenizers and datasets of a Hugging Face hub, by name: fetched into Python's cache, found there without a
//! network.
//!
//! ```text
//! $HF_HUB_CACHE (or $HF_HOME/hub, ~/.cache/huggingface/hub)
//!   models--ORG--NAME/refs/main                   the commit that the name stands for
//!   models--ORG--NAME/snapshots/COMMIT/FILE       links to
//!   models--ORG--NAME/blobs/HASH                  the bytes, named by their hash
//! ```
//! What `huggingface_hub` fetched is used, and what is fetched here is used by it. A file gets its name only when every
//! byte is there and its hash is the hub's; a download that broke off goes on where it stopped. A local directory of the
//! name wins, as in transformers.
//!
//! Of the crate hf-hub this uses nothing: 1.0 brings 297 crates, and 0.5 neither checks hashes nor notices a server that
//! ignores a range, and knows no offline mode. The protocol is four requests, made with ureq.
//! Source: huggingface_hub 1.33 (`file_download.py`, `constants.py`).

mod client;
mod download;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use self::client::Client;
use crate::config::{HubArguments, Secret};
use crate::{Error, Result, storage};

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model, with or without its tokenizer.
    Model,
    /// A dataset.
    Dataset,
}

impl Kind {
    /// The kind in paths of the API and the cache.
    fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository at a revision.
#[derive(Debug, Clone)]
pub struct Repository {
    /// What it holds.
    pub kind: Kind,
    /// `ORG/NAME`, or `NAME` of the oldest ones.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
}

/// Which files are wanted, of all names; none if what is needed is not among them.
pub type Wanted<'a> = &'a dyn Fn(&[String]) -> Vec<String>;

impl Repository {
    /// Whether a repository can be called so.
    pub fn has_plain_id(&self) -> bool {
        is_repository_id(&self.id)
    }

    fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.id.replace('/', "--"))
    }

    /// The path of a file's page below the endpoint.
    fn file_path(&self, commit: &str, name: &str) -> String {
        let prefix = if self.kind == Kind::Dataset { "datasets/" } else { "" };
        let name: Vec<String> = name.split('/').map(client::encode).collect();
        format!("{prefix}{}/resolve/{}/{}", self.id, client::encode(commit), name.join("/"))
    }

    /// The command that fetches it in Python.
    fn command(&self) -> String {
        let kind = if self.kind == Kind::Dataset { " --repo-type dataset" } else { "" };
        let revision = if self.revision == "main" { String::new() } else { format!(" --revision {}", self.revision) };
        format!("`hf download {}{kind}{revision}`", self.id)
    }
}

/// Where names are looked up.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    offline: bool,
}

/// An answer of `/api/models/ID/revision/REVISION`.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The directory that `given` means: itself if it is there, or the snapshot of the model of that name with the files
/// `wanted`, fetched if need be. A path that no repository can be called is returned as it is. `flag` is named in errors.
///
/// # Errors
/// As [`Hub::snapshot`].
pub fn model_directory(
    flag: &str,
    given: &Path,
    wanted: Wanted<'_>,
    arguments: &HubArguments,
    cache_dir: Option<&Path>,
) -> Result<PathBuf> {
    let id = given.to_str().filter(|name| is_repository_id(name));
    match id {
        Some(id) if storage::stat(given)?.is_none() => {
            let revision = arguments.model_revision.clone();
            let repository = Repository { kind: Kind::Model, id: id.to_owned(), revision };
            Hub::new(arguments, cache_dir)?.snapshot(flag, &repository, wanted)
        }
        _ => Ok(given.to_owned()),
    }
}

impl Hub {
    /// The hub that flags and environment ask for: HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HOME, HF_HUB_OFFLINE.
    /// `cache_dir` overrides the cache, as in `from_pretrained`.
    pub fn new(arguments: &HubArguments, cache_dir: Option<&Path>) -> Result<Self> {
        let home = || {
            let root = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let root = root.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
            Some(
                variable("HF_HOME").map_or_else(|| root.map(|root| root.join("huggingface")), |home| Some(home.into())),
            )?
        };
        let cache = cache_dir.filter(|dir| !storage::is_remote(dir)).map(Path::to_owned);
        let cache =
            cache.or_else(|| variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).map(Into::into));
        let cache = cache.or_else(|| Some(home()?.join("hub"))).ok_or_else(|| {
            Error::config("HF_HOME", "is not set, and neither is HOME; set HF_HOME to where models shall be kept")
        })?;
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let token = match arguments.hub_token.as_ref().map(Secret::expose) {
            Some(token) => Some(token.to_owned()),
            None => variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
                let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
                let bytes = storage::read_at_most(&path, 1 << 12).ok()?;
                Some(String::from_utf8_lossy(&bytes).trim().to_owned())
            }),
        };
        let on = |name: &str| {
            variable(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        let offline = on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE");
        Ok(Self { client: Client::new(endpoint, token.filter(|token| !token.is_empty()))?, cache, offline })
    }

    /// The snapshot of `repository` with the files `wanted`.
    ///
    /// # Errors
    /// A repository that is not there or not accessible, a hash that is wrong; without a network, one that is not in the
    /// cache: with the command that fetches it.
    pub fn snapshot(&self, flag: &str, repository: &Repository, wanted: Wanted<'_>) -> Result<PathBuf> {
        let id = &repository.id;
        if self.offline {
            return self.cached(repository, wanted)?.ok_or_else(|| {
                let reason = format!(
                    "{id} is no directory here and not in {}, and HF_HUB_OFFLINE is set; fetch it with {}",
                    self.cache.display(),
                    repository.command()
                );
                Error::config(flag, reason)
            });
        }
        let path = format!("api/{}/{id}/revision/{}", repository.kind.plural(), client::encode(&repository.revision));
        let listing = match self.client.json::<Listing>(&path) {
            Ok(listing) => listing,
            Err(error @ client::Failure::Unreachable(_)) => {
                if let Some(dir) = self.cached(repository, wanted)? {
                    eprintln!("{flag} {id}: {error}; using what is in {}", dir.display());
                    return Ok(dir);
                }
                let reason = format!(
                    "{error}, and {id} is no directory here and not in {}; where there is a network, fetch it with {}",
                    self.cache.display(),
                    repository.command()
                );
                return Err(Error::remote(format!("{flag} {id}"), reason));
            }
            Err(error) => return Err(Error::remote(format!("{flag} {id}"), self.explain(&error, repository))),
        };
        let strange = |what: &str| {
            Error::remote(format!("{flag} {id}"), format!("{} gave {what:?}, which cannot be", self.client.endpoint()))
        };
        if !is_hash(&listing.sha) {
            return Err(strange(&listing.sha));
        }
        let names: Vec<String> = listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        if let Some(name) = names.iter().find(|name| !is_plain_path(name)) {
            return Err(strange(name));
        }
        let wanted = wanted(&names);
        if wanted.is_empty() {
            return Err(Error::config(
                flag,
                format!(
                    "{id} on {} holds nothing that can be read here; it has {}",
                    self.client.endpoint(),
                    shown(&names)
                ),
            ));
        }
        let root = self.cache.join(repository.folder());
        let dir = root.join("snapshots").join(&listing.sha);
        let mut missing = Vec::new();
        for name in wanted {
            if storage::stat(&dir.join(&name))?.is_none() {
                missing.push(name);
            }
        }
        let download =
            download::Download { client: &self.client, cache: &self.cache, repository, commit: &listing.sha };
        download
            .fetch(&missing)
            .map_err(|failure| failure.into_error(format!("{flag} {id}"), |error| self.explain(error, repository)))?;
        if repository.revision != listing.sha {
            let reference = root.join("refs").join(&repository.revision);
            storage::create_dir_all(reference.parent().unwrap_or(&root))?;
            storage::replace(&reference, listing.sha.as_bytes())?;
        }
        Ok(dir)
    }

    /// The snapshot in the cache, if all that is wanted is in it.
    fn cached(&self, repository: &Repository, wanted: Wanted<'_>) -> Result<Option<PathBuf>> {
        let root = self.cache.join(repository.folder());
        let reference = root.join("refs").join(&repository.revision);
        let commit = match storage::stat(&reference)? {
            Some(_) => String::from_utf8_lossy(&storage::read_at_most(&reference, 1 << 10)?).trim().to_owned(),
            None => repository.revision.clone(),
        };
        let dir = root.join("snapshots").join(&commit);
        if !is_plain_path(&commit) || storage::stat(&dir)?.is_none() {
            return Ok(None);
        }
        let files = storage::list_files(&dir)?;
        let names: Vec<String> =
            files.into_iter().filter_map(|file| Some(file.relative.to_str()?.to_owned())).collect();
        Ok((!wanted(&names).is_empty()).then_some(dir))
    }

    fn explain(&self, error: &client::Failure, repository: &Repository) -> String {
        let (endpoint, id) = (self.client.endpoint(), &repository.id);
        match error {
            client::Failure::Status(401 | 403) if self.client.has_token() => {
                format!("{endpoint} gives no access with this token; ask for it on {endpoint}/{id}, or check HF_TOKEN")
            }
            client::Failure::Status(401 | 403) => format!(
                "{endpoint} has no public repository of that name, and no directory here has it; if it is private or gated, set HF_TOKEN"
            ),
            client::Failure::Status(404) => {
                format!(
                    "{endpoint} has no {id} with a revision {}, and no directory here has that name",
                    repository.revision
                )
            }
            error => format!("{error}; run the same command again to go on, or fetch it with {}", repository.command()),
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The files of a model directory that are read: configuration, tokenizer, weights as safetensors, or as .bin where
/// there are none.
pub fn model_files(names: &[String]) -> Vec<String> {
    let top = |name: &&String| !name.contains('/');
    let is_safe = |name: &String| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let weights: fn(&str) -> bool = if names.iter().filter(top).any(is_safe) {
        |name| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
    } else {
        |name| {
            let stem = name.strip_suffix(".bin").or_else(|| name.strip_suffix(".bin.index.json"));
            stem.is_some_and(|stem| stem.starts_with("pytorch_model") || stem == "adapter_model")
        }
    };
    let described = names.iter().any(|name| name == "config.json" || name == "adapter_config.json");
    if !described || !names.iter().filter(top).any(|name| weights(name)) {
        return Vec::new();
    }
    let kept = ["config.json", "generation_config.json", "adapter_config.json"];
    let kept = |name: &str| kept.contains(&name) || weights(name) || is_tokenizer_file(name);
    names.iter().filter(top).filter(|name| kept(name)).cloned().collect()
}

/// The files of a model that say what it is, without its weights.
pub fn configuration_files(names: &[String]) -> Vec<String> {
    let wanted = ["config.json", "generation_config.json"];
    names.iter().filter(|name| wanted.contains(&name.as_str())).cloned().collect()
}

/// The files of a tokenizer that are read.
pub fn tokenizer_files(names: &[String]) -> Vec<String> {
    let top = names.iter().filter(|name| !name.contains('/'));
    // Its end-of-sequence id may be in the model's configuration alone.
    let files: Vec<String> = top.filter(|name| is_tokenizer_file(name) || *name == "config.json").cloned().collect();
    if files.iter().any(|name| name != "config.json") { files } else { Vec::new() }
}

fn is_tokenizer_file(name: &str) -> bool {
    const NAMES: [&str; 6] = [
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "vocab.txt",
    ];
    NAMES.contains(&name)
        || name.starts_with("tokenizer")
        || name.ends_with(".tiktoken")
        || name.ends_with(".model") && !name.contains("pytorch")
}

/// Whether a repository can be called so: `NAME` or `ORG/NAME`.
fn is_repository_id(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &&str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("--")
            && !part.contains("..")
    };
    parts.len() <= 2 && name.len() <= 96 && parts.iter().all(plain)
}

/// Whether `path` stays below where it is joined to.
fn is_plain_path(path: &str) -> bool {
    !path.is_empty() && !path.contains(['\\', '\0']) && path.split('/').all(|part| !["", ".", ".."].contains(&part))
}

/// A commit or the name of a blob.
fn is_hash(text: &str) -> bool {
    (8..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn shown(names: &[String]) -> String {
    let some: BTreeSet<&str> = names.iter().map(String::as_str).take(8).collect();
    let some: Vec<_> = some.into_iter().collect();
    if some.is_empty() { "no file".to_owned() } else { format!("{} of {} files", some.join(", "), names.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &str) -> Vec<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_what_is_read_is_fetched() {
        let all = "README.md config.json model.safetensors pytorch_model.bin onnx/model.safetensors tokenizer.json \
             tokenizer_config.json vocab.json merges.txt flax_model.msgpack modeling_x.py original/consolidated.00.pth";
        let model = "config.json model.safetensors tokenizer.json tokenizer_config.json vocab.json merges.txt";
        assert_eq!(model_files(&files(all)), files(model));
        assert_eq!(
            tokenizer_files(&files(all)),
            files("config.json tokenizer.json tokenizer_config.json vocab.json merges.txt")
        );
        let old = "config.json pytorch_model.bin.index.json pytorch_model-00001-of-00002.bin training_args.bin tokenizer.model";
        let kept = "config.json pytorch_model.bin.index.json pytorch_model-00001-of-00002.bin tokenizer.model";
        assert_eq!(model_files(&files(old)), files(kept));
        let old_adapter = "adapter_config.json adapter_model.bin README.md";
        assert_eq!(model_files(&files(old_adapter)), files("adapter_config.json adapter_model.bin"));
        for nothing in ["README.md", "config.json tokenizer.json", "model.safetensors"] {
            assert!(model_files(&files(nothing)).is_empty(), "{nothing}");
        }
        assert!(tokenizer_files(&files("config.json model.safetensors")).is_empty());
    }

    #[test]
    fn names_that_no_repository_has_are_paths() {
        for id in ["gpt2", "Qwen/Qwen2.5-0.5B", "a_b/c.d"] {
            assert!(is_repository_id(id), "{id}");
        }
        for path in ["/a/b", "./a", "../a", "a/b/c", "a//b", "a/", "~/a", "", "a b", "a--b", "-a", "a/.b", "磨坊"] {
            assert!(!is_repository_id(path), "{path}");
        }
        for hostile in ["../x", "/etc/passwd", "a/../../b", "a\\b", "a//b", "", "."] {
            assert!(!is_plain_path(hostile), "{hostile}");
        }
        assert!(is_plain_path("data/train-00000-of-00001.parquet"));
    }
}
