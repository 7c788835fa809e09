//! Shell patterns for paths: `*` and `?` stay in one directory, `**` does not, `[abc]` is one of them.

use std::path::{Path, PathBuf};

use regex::Regex;
use tokenmill_shared::{Error, Result, storage};

/// Whether a word has anything of a pattern.
pub(super) fn is_pattern(word: &str) -> bool {
    word.contains(['*', '?', '['])
}

/// The regular expression of a pattern for whole paths. `what` is named where it is none.
pub(crate) fn compile(pattern: &str, what: &str) -> Result<Regex> {
    let mut text = String::from("^");
    let mut rest = pattern;
    while let Some(symbol) = rest.chars().next() {
        let (part, length) = if rest.starts_with("**/") {
            ("(?:.*/)?".to_owned(), 3)
        } else if rest.starts_with("**") {
            (".*".to_owned(), 2)
        } else if symbol == '*' {
            ("[^/]*".to_owned(), 1)
        } else if symbol == '?' {
            ("[^/]".to_owned(), 1)
        } else if let Some(end) = rest.find(']').filter(|_| symbol == '[') {
            (rest[..=end].replace("[!", "[^"), end + 1)
        } else {
            (regex::escape(&symbol.to_string()), symbol.len_utf8())
        };
        text.push_str(&part);
        rest = &rest[length..];
    }
    text.push('$');
    Regex::new(&text).map_err(|_| Error::config(what, format!("has {pattern:?}, which is no pattern")))
}

/// The files that a pattern matches, by the bytes of their paths. Names that begin with a dot are matched by a dot only.
pub(super) fn expand(pattern: &str, flag: &str) -> Result<Vec<PathBuf>> {
    let parts: Vec<&str> = pattern.split('/').collect();
    let first = parts.iter().position(|part| is_pattern(part)).unwrap_or(parts.len() - 1);
    let base = PathBuf::from(parts[..first].join("/"));
    let base = if first == 0 {
        PathBuf::from(".")
    } else if base.as_os_str().is_empty() {
        PathBuf::from("/")
    } else {
        base
    };
    let mut found = if storage::stat(&base)?.is_none() {
        Vec::new()
    } else if parts[first..].iter().any(|part| part.contains("**")) {
        below(&base, &parts[first..].join("/"), flag)?
    } else {
        matching(&base, &parts[first..], flag)?
    };
    if first == 0 {
        // As they were asked for, without the directory that was not named.
        found.iter_mut().for_each(|path| *path = path.strip_prefix(".").unwrap_or(path).to_owned());
    }
    found.sort_by(|one, other| one.as_os_str().as_encoded_bytes().cmp(other.as_os_str().as_encoded_bytes()));
    Ok(found)
}

fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.'))
}

/// Files anywhere below `dir`.
fn below(dir: &Path, pattern: &str, flag: &str) -> Result<Vec<PathBuf>> {
    let regex = compile(pattern, flag)?;
    let wanted = |path: &Path| path.to_str().is_some_and(|path| regex.is_match(path) && !is_hidden(path));
    Ok(storage::list_files(dir)?.into_iter().filter(|file| wanted(&file.relative)).map(|file| file.path).collect())
}

/// Files that lie as deep below `dir` as the pattern has parts: nothing else is listed.
fn matching(dir: &Path, parts: &[&str], flag: &str) -> Result<Vec<PathBuf>> {
    let [part, rest @ ..] = parts else { return Ok(Vec::new()) };
    let regex = compile(part, flag)?;
    let wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| regex.is_match(name) && (!is_hidden(name) || part.starts_with('.')))
    };
    if rest.is_empty() {
        return Ok(storage::files_in(dir)?.into_iter().filter(wanted).collect());
    }
    let mut found = Vec::new();
    for dir in storage::list_directories(dir)?.iter().filter(|dir| wanted(dir)) {
        found.extend(matching(dir, rest, flag)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_find_what_a_shell_finds() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "b.txt", "c.jsonl", ".hidden.txt", "d/a.txt", "d/e/a.txt", "f/a.txt", "f/.g/a.txt"] {
            let path = dir.path().join(name);
            storage::create_dir_all(path.parent().unwrap()).unwrap();
            storage::replace(&path, b"x").unwrap();
        }
        let root = dir.path().to_str().unwrap();
        for (pattern, expected) in [
            ("*.txt", "a.txt b.txt"),
            ("[!a].*", "b.txt c.jsonl"),
            ("?.jsonl", "c.jsonl"),
            ("*/a.txt", "d/a.txt f/a.txt"),
            ("d/*/a.*", "d/e/a.txt"),
            ("**/a.txt", "a.txt d/a.txt d/e/a.txt f/a.txt"),
            ("d/**", "d/a.txt d/e/a.txt"),
            (".*.txt", ".hidden.txt"),
            ("nowhere/*.txt", ""),
        ] {
            let found = expand(&format!("{root}/{pattern}"), "--train_file").unwrap();
            let found: Vec<&str> =
                found.iter().map(|path| path.strip_prefix(root).unwrap().to_str().unwrap()).collect();
            assert_eq!(found.join(" "), expected, "{pattern}");
        }
    }
}
