//! Files that nobody wrote: good ones of every kind, changed at random, cut, joined and repeated. Whatever they are, reading
//! ends with documents or an error, in bounded memory; and what comes out does not depend on how much is read at a time.

use super::tests::{Found, arrow, found_in, rules_of};
use super::*;
use crate::mutate::Mutator;
use crate::night::Run;

/// Good files of every kind.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let text = "磨坊 mill\r\n\r\n\"quoted\", 1984\n\tx\u{1F600}\n";
    let json = "{\"id\": 1, \"text\": \"a\\u78e8\\n\"}\n{\"text\": \"b\", \"meta\": {\"x\": [1, 2e5, null]}}\n";
    let csv = "id,text\n1,\"quoted \"\"x\"\",\nline\"\n2,plain\r\n3,磨坊\n";
    let texts = ["one", "磨坊", "three", "", "five"];
    let utf16: Vec<u8> = "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    vec![
        ("a.txt", text.as_bytes().to_vec()),
        ("a.txt", encoding_rs::GB18030.encode(text).0.into_owned()),
        ("a.txt", utf16),
        ("a.jsonl", json.as_bytes().to_vec()),
        ("a.json", json.as_bytes().to_vec()),
        ("a.json", format!("[{}]", json.trim().replace('\n', ",")).into_bytes()),
        ("a.csv", csv.as_bytes().to_vec()),
        ("a.tsv", csv.replace(',', "\t").into_bytes()),
        ("a.arrow", arrow(&texts, false)),
        ("a.arrow", arrow(&texts, true)),
        ("a.parquet", parquet(&texts)),
        ("a.txt.gz", crate::decode::tests::compress("gz", text.as_bytes())),
        ("a.jsonl.zst", crate::decode::tests::compress("zst", json.as_bytes())),
        ("a.csv.bz2", crate::decode::tests::compress("bz2", csv.as_bytes())),
        ("a.txt.xz", crate::decode::tests::compress("xz", text.as_bytes())),
    ]
}

fn parquet(texts: &[&str]) -> Vec<u8> {
    use arrow_array::{RecordBatch, StringArray};
    let column = std::sync::Arc::new(StringArray::from_iter_values(texts)) as _;
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn whatever_a_file_holds_reading_it_ends() {
    let seeds = seeds();
    let ledger = Run::of("files of every format, changed", 1500, 500_000);
    let mut mutator = Mutator::new(ledger.seed);
    let sample_by = [SampleBy::Line, SampleBy::Paragraph, SampleBy::Document];
    let encodings = [Encoding::Utf8, Encoding::Auto, Encoding::Gb18030, Encoding::Utf16];
    let errors = [EncodingErrors::Strict, EncodingErrors::Replace, EncodingErrors::Ignore];
    let (mut read, mut refused) = (0, 0);
    for _ in 0..ledger.size {
        let (name, seed) = mutator.choose(&seeds);
        let bytes = mutator.change(seed);
        let rules = rules_of(|data| {
            data.sample_by = *mutator.choose(&sample_by);
            data.encoding = *mutator.choose(&encodings);
            data.encoding_errors = *mutator.choose(&errors);
            data.keep_linebreaks = *mutator.choose(&[true, false]);
        });
        let result = |read_bytes| match found_in(name, &bytes, &rules, read_bytes) {
            Ok(Found { documents, bad, .. }) => Ok((documents, bad.into_iter().map(|bad| bad.0).collect::<Vec<_>>())),
            Err(error) => Err(error.exit_code()),
        };
        let found = result(1 << 20);
        assert_eq!(found, result(7), "{name} {bytes:?} {rules:?}");
        match found {
            Ok(_) => read += 1,
            Err(code) => {
                assert_eq!(code, 3, "{name} {bytes:?}");
                refused += 1;
            }
        }
    }
    assert!(read > ledger.size / 10 && refused > ledger.size / 10, "{read} read, {refused} refused");
    ledger.passed();
}

/// What is taken for a record is what serde_json takes for one, but for fields that nobody looks at.
#[test]
fn whatever_a_line_holds_serde_json_says_the_same() {
    let seeds: Vec<Vec<u8>> = [
        r#"{"text": "a\u78e8\n", "n": [1, -2.5e3, true, null, {"x": "y"}]}"#,
        r#"{"id": "1", "text": "b\ud83d\ude00", "text": "c"}"#,
        r#" { "text" : null , "x" : {} } "#,
    ]
    .map(|line| line.as_bytes().to_vec())
    .to_vec();
    let ledger = Run::of("lines of JSON, changed", 20_000, 20_000_000);
    let mut mutator = Mutator::new(ledger.seed);
    let fields = Fields::parse("text", None).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..ledger.size {
        let seed = mutator.choose(&seeds);
        let line = mutator.change(seed);
        let Ok(line) = std::str::from_utf8(&line) else { continue };
        let value = serde_json::from_str::<serde_json::Value>(line);
        match (fields.of(line), value) {
            (Ok(found), Ok(value)) => {
                let text = match &found.texts[0] {
                    fields::Text::Is(text) => Some(text.as_ref()),
                    _ => None,
                };
                assert_eq!(text, value["text"].as_str(), "{line}");
                taken += 1;
            }
            (Err(_), Err(_)) => refused += 1,
            // Half a pair of surrogates, or a number beyond f64, in a field that is passed over.
            (Ok(_), Err(error)) => {
                let said = error.to_string();
                assert!(
                    said.contains("surrogate") || said.contains("hex escape") || said.contains("out of range"),
                    "{line}: {said}"
                );
            }
            (Err(error), Ok(value)) => assert!(!value.is_object(), "{line}: {error}"),
        }
    }
    assert!(taken > 100 && refused > ledger.size / 4, "{taken} taken, {refused} refused");
    ledger.passed();
}

/// A long line is the record that it is when it is held, wherever it is cut, unless it has the field twice.
#[test]
fn whatever_a_long_line_holds_it_is_the_record_that_a_short_one_is() {
    let seeds: Vec<Vec<u8>> = [
        r#"{"text": "a\u78e8\n, b \ud83d\ude00 c", "n": [1, -2.5e3, "text", {"text": "\\"}]}"#,
        r#"{"id": "\ud83d", "x": {"text": "no"}, "te\u0078t": "and \"so\" on, \\ and 磨坊，水"}"#,
        r#"{"text": "b", "text": "c"}"#,
        r#" { "text" : null , "x" : {} } "#,
    ]
    .map(|line| line.as_bytes().to_vec())
    .to_vec();
    let ledger = Run::of("long lines of JSON, changed", 1500, 150_000);
    let mut mutator = Mutator::new(ledger.seed);
    let (held, mut parts) = (rules_of(|_| {}), rules_of(|_| {}));
    parts.part_bytes = Some(1);
    let (mut taken, mut refused, mut twice) = (0, 0, 0);
    for number in 0..ledger.size {
        let line = mutator.choose(&seeds);
        let line = if number % 3 == 0 { line.clone() } else { mutator.change(line) };
        let line: Vec<u8> = line.into_iter().filter(|byte| *byte != b'\n').collect();
        // The first piece ends somewhere in it.
        let before = parts.record_bytes() - number as usize % 128;
        let padded = [&vec![b' '; before][..], &line[..], &[b' '; 128], b"\n{\"text\": \"next\"}\n"].concat();
        let of = |rules: &Rules| found_in("a.jsonl", &padded, rules, 1).unwrap();
        let (held, found) = (of(&held), of(&parts));
        let reasons = |found: &Found| found.bad.iter().map(|bad| bad.0).collect::<Vec<_>>();
        let shown = String::from_utf8_lossy(&line);
        if found.bad.iter().any(|bad| bad.1.contains("more than once")) {
            assert!(line.windows(6).filter(|name| name.starts_with(b"\"te")).count() > 1, "{shown}");
            twice += 1;
            continue;
        }
        assert_eq!((&found.documents, reasons(&found)), (&held.documents, reasons(&held)), "{number} {shown}");
        if found.bad.is_empty() {
            taken += 1;
        } else {
            refused += 1;
        }
    }
    assert!(
        taken > ledger.size / 10 && refused > ledger.size / 10 && twice > ledger.size / 20,
        "{taken} {refused} {twice}"
    );
    ledger.passed();
}
