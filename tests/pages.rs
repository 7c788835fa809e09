//! Pages in two languages say the same: they link to one another, name the same flags and have the same commands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokenmill_tests::root;

/// Chinese pages with the English ones they translate. Those of the parameters are made from the code, by a test of theirs.
fn pairs() -> Vec<(PathBuf, PathBuf)> {
    let mut pairs = Vec::new();
    for dir in ["", "shared/src/docs", "preprocess/src/docs", "trainer/src/docs"] {
        for entry in std::fs::read_dir(root().join(dir)).unwrap() {
            let chinese = entry.unwrap().path();
            let name = chinese.file_name().unwrap().to_str().unwrap();
            let Some(page) = name.strip_suffix(".zh-CN.md").filter(|page| *page != "parameters") else { continue };
            let english = chinese.with_file_name(format!("{page}.md"));
            pairs.push((chinese, english));
        }
    }
    pairs
}

fn flags(text: &str) -> BTreeSet<&str> {
    let is_of_flag = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let words = text.split(|c| !is_of_flag(c));
    words.filter(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(char::is_alphabetic))).collect()
}

/// The lines of blocks that begin with one of these, comments left out.
fn commands(text: &str) -> Vec<&str> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = ["```sh", "```python"].contains(&line);
        } else if inside {
            found.push(line.split(" #").next().unwrap_or_default().trim());
        }
    }
    found
}

fn links_to(text: &str, page: &Path) -> bool {
    text.contains(&format!("]({})", page.file_name().unwrap().to_str().unwrap()))
}

#[test]
fn pages_in_two_languages_say_the_same() {
    let pairs = pairs();
    assert!(pairs.len() > 8, "{pairs:?}");
    for (chinese, english) in pairs {
        let read =
            |page: &Path| std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        let (zh, en) = (read(&chinese), read(&english));
        let page = chinese.display();
        assert!(links_to(&zh, &english) && links_to(&en, &chinese), "{page} and its pair do not link to one another");
        let only: Vec<_> = flags(&zh).symmetric_difference(&flags(&en)).copied().map(str::to_owned).collect();
        assert!(only.is_empty(), "{page}: flags that one of both pages leaves out: {only:?}");
        assert_eq!(commands(&zh), commands(&en), "{page}");
    }
}
