//! A configuration file in place of flags, as `HfArgumentParser` takes one: it becomes words of a command line,
//! so that a value means the same in both.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, storage};

/// A configuration beyond this is not one.
const LIMIT: u64 = 4 << 20;

/// Replaces a first word that names a .json, .yaml, .yml or .toml file by the flags in it; what follows it on the
/// command line comes later and so wins.
///
/// # Errors
/// The file cannot be read, or is no mapping of names to values.
pub fn expand(argv: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(path) = argv.get(1).map(Path::new) else { return Ok(argv) };
    let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
    let parse: fn(&str) -> std::result::Result<Value, String> = match kind {
        "json" => |text| serde_json::from_str(text).map_err(|error| error.to_string()),
        "yaml" | "yml" => |text| serde_saphyr::from_str(text).map_err(|error| first_line(&error)),
        "toml" => |text| {
            toml::from_str(text).map_err(|error| {
                let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                format!("{} at line {line}", error.message())
            })
        },
        _ => return Ok(argv),
    };
    let refuse = |reason: String| Error::config(path.display().to_string(), reason);
    let text = String::from_utf8(storage::read_at_most(path, LIMIT)?)
        .map_err(|error| refuse(format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to())))?;
    let Value::Object(settings) = parse(&text).map_err(|error| refuse(format!("cannot be read: {}", error.trim())))?
    else {
        return Err(refuse("must map names of flags to values".to_owned()));
    };
    let mut words = vec![argv[0].clone()];
    for (name, value) in &settings {
        words.extend(flag(name, value));
    }
    words.extend_from_slice(&argv[2..]);
    Ok(words)
}

/// What is wrong and where, without the lines of the file that follow: one of them may hold a secret.
fn first_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// One setting as words: a list follows its flag, a mapping is inline JSON, null leaves the default.
fn flag(name: &str, value: &Value) -> Vec<OsString> {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Null => Vec::new(),
        Value::Array(values) => {
            let flag = OsString::from(format!("--{name}"));
            std::iter::once(flag).chain(values.iter().map(|value| word(value).into())).collect()
        }
        value => vec![format!("--{name}={}", word(value)).into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_formats_become_the_same_words() {
        let files = [
            ("a.json", r#"{"block_size": 8, "keep_linebreaks": false, "report_to": ["a", "b"], "seed": null}"#),
            ("a.yaml", "block_size: 8\nkeep_linebreaks: false\nreport_to: [a, b]\nseed: null\n"),
            ("a.toml", "block_size = 8\nkeep_linebreaks = false\nreport_to = [\"a\", \"b\"]\n"),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            storage::replace(&path, text.as_bytes()).unwrap();
            let words = expand(vec!["trainer".into(), path.into(), "--block_size".into(), "9".into()]).unwrap();
            let expected = ["trainer", "--block_size=8", "--keep_linebreaks=false", "--report_to", "a", "b"];
            assert_eq!(words, expected.into_iter().chain(["--block_size", "9"]).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn what_is_no_mapping_is_refused_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text, part) in
            [("a.json", "[1]", "names of flags"), ("b.yaml", "a: [", "cannot be read"), ("c.toml", "a = ", "line 1")]
        {
            let path = dir.path().join(name);
            storage::replace(&path, text.as_bytes()).unwrap();
            let error = expand(vec!["trainer".into(), path.into()]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(part), "{error}");
        }
    }
}
