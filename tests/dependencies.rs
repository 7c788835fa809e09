//! One copy of what must be the same everywhere in the tree, and no dependency without a word on what it is for.

use std::collections::BTreeSet;

use tokenmill_tests::root;

#[test]
fn there_is_one_tokenizers_one_regex_engine_and_one_candle() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let versions = |name: &str| -> Vec<&str> {
        lock.split("[[package]]")
            .filter(|package| package.contains(&format!("name = \"{name}\"\n")))
            .filter_map(|package| package.lines().find_map(|line| line.strip_prefix("version = ")))
            .collect()
    };
    assert_eq!(versions("tokenizers"), ["\"0.23.2\""]);
    for name in ["onig", "onig_sys", "candle-core", "candle-nn", "safetensors", "gemm", "arrow-array", "parquet"] {
        assert_eq!(versions(name).len(), 1, "{name}: {:?}", versions(name));
    }
}

/// The crates that the members of the workspace name, but those of the workspace itself.
fn direct_dependencies() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for member in ["shared", "preprocess", "trainer", "tests", "benches"] {
        let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        let sections = manifest.split("\n[").filter(|section| {
            ["dependencies]", "dev-dependencies]", "build-dependencies]"].iter().any(|name| section.starts_with(name))
        });
        for line in sections.flat_map(|section| section.lines().skip(1)) {
            names.extend(line.split(['.', ' ', '=']).next().filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    names.retain(|name| !name.starts_with("tokenmill-"));
    names
}

#[test]
fn both_readmes_say_what_every_direct_dependency_is_for() {
    for (readme, heading) in [("README.md", "\n## Dependencies\n"), ("README.zh-CN.md", "\n## 依赖\n")] {
        let text = std::fs::read_to_string(root().join(readme)).unwrap();
        let (_, table) = text.split_once(heading).unwrap_or_else(|| panic!("{readme} has no {heading:?}"));
        let rows = table.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        let mut named = BTreeSet::new();
        for row in rows.take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert!(cells.len() == 2 && !cells[1].is_empty(), "{readme}: {row}");
            named.extend(cells[0].split(['、', ',']).map(|name| name.trim().to_owned()));
        }
        assert_eq!(named, direct_dependencies(), "{readme}");
    }
}
