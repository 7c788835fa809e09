//! Records that are hard to read, judged by Python: `tests/data/records.py` made the cases and what they are.
#![allow(clippy::disallowed_methods)] // without fsync: there are thousands of files

use serde_json::Value;

use super::tests::{Found, found_in, rules_of};
use super::*;

/// The cases of one kind, with the bytes of their line.
fn cases(kind: &str) -> Vec<(Value, Vec<u8>)> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/data/records.json")).unwrap();
    let bytes = |case: &Value| {
        let hex = case["hex"].as_str().unwrap();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    all[kind].as_array().unwrap().iter().map(|case| (case.clone(), bytes(case))).collect()
}

/// What must be found of a case that stands on the second line of three.
fn expected(case: &Value, before: &str, after: &str, text: &str) -> (Vec<(u64, String)>, Vec<String>) {
    let mut documents = vec![(1, before.to_owned()), (3, after.to_owned())];
    if let Some(text) = case[text].as_str() {
        documents.insert(1, (2, text.to_owned()));
    }
    let reason = case["reason"].as_str().filter(|_| documents.len() == 2);
    (documents, reason.into_iter().map(str::to_owned).collect())
}

fn assert_found(name: &str, found: &Found, expected: &(Vec<(u64, String)>, Vec<String>)) {
    let reasons: Vec<String> = found.bad.iter().map(|(reason, _)| reason.name()).collect();
    assert_eq!((&found.documents, &reasons), (&expected.0, &expected.1), "{name}: {:?}", found.bad);
}

#[test]
fn every_hostile_line_of_json_is_what_python_says() {
    let rules = rules_of(|_| {});
    let cases = cases("json");
    assert!(cases.len() > 300);
    for (case, line) in cases {
        let name = case["name"].as_str().unwrap();
        let file = [b"{\"text\": \"before\"}\n", &line[..], b"\n{\"text\": \"after\"}\n"].concat();
        for read_bytes in [1, 1 << 20] {
            let found = found_in("a.jsonl", &file, &rules, read_bytes).unwrap();
            assert_found(name, &found, &expected(&case, "before", "after", "text"));
            let place = |at: u64| format!("a.jsonl:2 (byte {})", 19 + at);
            if let Some((_, said)) = found.bad.first() {
                assert!(said.contains(&place(case["at"].as_u64().unwrap_or(0))), "{name}: {said}");
            }
        }
        let mut documents = 0;
        let failed = found_of("a.jsonl", &file, &rules, &mut |_: Document<'_>| {
            documents += 1;
            Ok(Flow::Continue)
        });
        assert_eq!(failed.is_err(), case["reason"].is_string(), "{name}");
        assert_eq!(documents == 1, failed.is_err(), "{name}: nothing behind it is read");
    }
}

#[test]
fn every_hostile_line_of_text_is_what_python_says() {
    for (errors, text) in
        [(EncodingErrors::Strict, "text"), (EncodingErrors::Replace, "replaced"), (EncodingErrors::Ignore, "ignored")]
    {
        let rules = rules_of(|data| (data.encoding_errors, data.keep_linebreaks) = (errors, false));
        for (case, line) in cases("text") {
            let name = case["name"].as_str().unwrap();
            let file = [b"before\n", &line[..], b"\nafter\n"].concat();
            let found = found_in("a.txt", &file, &rules, 3).unwrap();
            let text = if case["text"].is_string() { "text" } else { text };
            assert_found(name, &found, &expected(&case, "before", "after", text));
            if let Some((_, said)) = found.bad.first() {
                let place = format!("a.txt:2 (byte {})", 7 + case["at"].as_u64().unwrap());
                assert!(said.contains(&place), "{name}: {said}");
            }
        }
    }
}

/// Hands the documents of a file on.
fn found_of(name: &str, bytes: &[u8], rules: &Rules, sink: &mut dyn Sink) -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), bytes).unwrap();
    let input = crate::source::list(dir.path(), "--train_file_dir").unwrap().remove(0);
    for_each(&input, rules, Start::of(&input, rules, 100)?, Reads { bytes: 100, decoders: 2 }, sink)
}

/// A million levels where nobody looks cost no stack; on the way to a field they are an error.
#[test]
fn nesting_is_bounded_where_it_costs() {
    let deep = |open: &str, close: &str| open.repeat(1_000_000) + &close.repeat(1_000_000);
    let rules = rules_of(|_| {});
    for json in [deep("[", "]"), deep("{\"a\":", "}").replace(":}", ":1}")] {
        let ignored = format!("{{\"a\": {json}, \"text\": \"t\"}}\n");
        let found = found_in("a.jsonl", ignored.as_bytes(), &rules, 1 << 20).unwrap();
        assert_eq!(found.documents, [(1, "t".to_owned())], "{:?}", found.bad.first().map(|bad| bad.0));
        let wanted = format!("{{\"text\": {json}}}\n");
        let found = found_in("a.jsonl", wanted.as_bytes(), &rules, 1 << 20).unwrap();
        assert_eq!(found.bad.len(), 1);
    }
    let keys = vec!["a"; 200];
    let nested =
        format!("{}\"t\"{}\n", keys.iter().map(|key| format!("{{\"{key}\":")).collect::<String>(), "}".repeat(200));
    let rules = rules_of(|data| data.text_field = format!("/{}", keys.join("/")));
    let found = found_in("a.jsonl", nested.as_bytes(), &rules, 1 << 20).unwrap();
    assert_eq!(found.bad[0].0, Reason::InvalidJson, "{:?}", found.bad);
    assert!(found.bad[0].1.contains("recursion limit"), "{:?}", found.bad);
}
