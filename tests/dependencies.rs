//! One copy of what must be the same everywhere in the tree.

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
