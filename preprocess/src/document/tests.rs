//! What files become, for every kind of them.
// Without fsync: there are thousands of files.
#![allow(clippy::disallowed_methods)]

use super::*;
use std::path::Path;
use tokenmill_shared::storage;

fn documents_of(name: &str, bytes: &[u8], rules: &Rules, read_bytes: usize) -> Result<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    storage::replace(&dir.path().join(name), bytes).unwrap();
    let inputs = crate::source::list(dir.path(), "--train_file_dir").unwrap();
    let mut texts = Vec::new();
    let start = Start::of(&inputs[0], rules, read_bytes)?;
    for_each(&inputs[0], rules, start, Reads::alone(read_bytes), &mut |document: Document<'_>| {
        texts.push(document.text.to_owned());
        Ok(Flow::Continue)
    })?;
    Ok(texts)
}

fn rules(sample_by: SampleBy, keep_linebreaks: bool) -> Rules {
    Rules::new(&DataArguments { sample_by, keep_linebreaks, ..DataArguments::default() }).unwrap()
}

/// Expected values: Python's `open(..., encoding="utf-8")` and the `text` builder of `datasets`.
#[test]
fn text_is_cut_as_the_reference_cuts_it() {
    use SampleBy::{Document, Line, Paragraph};
    let text = "\u{feff}a\r\nb\rc\n\n\u{2028}d\x0b\x0c\u{85}e\n\n\n\nf";
    for (sample_by, keep, expected) in [
        (Line, true, vec!["\u{feff}a\n", "b\n", "c\n", "\n", "\u{2028}d\x0b\x0c\u{85}e\n", "\n", "\n", "\n", "f"]),
        (Line, false, vec!["\u{feff}a", "b", "c", "", "\u{2028}d\x0b\x0c\u{85}e", "", "", "", "f"]),
        (Paragraph, true, vec!["\u{feff}a\nb\nc", "\u{2028}d\x0b\x0c\u{85}e", "f"]),
        (Document, true, vec!["\u{feff}a\nb\nc\n\n\u{2028}d\x0b\x0c\u{85}e\n\n\n\nf"]),
    ] {
        for read_bytes in [1, 2, 3, 7, 1 << 20] {
            let found = documents_of("a.txt", text.as_bytes(), &rules(sample_by, keep), read_bytes).unwrap();
            assert_eq!(found, expected, "{sample_by:?} {keep} {read_bytes}");
        }
    }
    assert_eq!(documents_of("a.txt", b"a\n\n\nb\n", &rules(Paragraph, true), 1).unwrap(), ["a", "\nb\n"]);
    assert_eq!(documents_of("a.txt", b"a\r", &rules(Line, true), 1).unwrap(), ["a\n"]);
    assert_eq!(documents_of("a.txt", b"", &rules(Line, true), 1).unwrap(), Vec::<String>::new());
}

#[test]
fn every_shape_of_json_gives_the_same_documents() {
    let line = rules(SampleBy::Line, true);
    for (name, content) in [
        ("a.jsonl", "{\"text\": \"eins\"}\r\n\n  \n{\"id\": 2, \"text\": \"zwei\\n\"}"),
        ("a.json", "[{\"text\": \"eins\"},\n {\"id\": 2, \"text\": \"zwei\\n\"}]\n"),
        ("a.json", "{\"text\": \"eins\"}\n{\"id\": 2,\n \"text\": \"zwei\\n\"}\n"),
    ] {
        assert_eq!(documents_of(name, content.as_bytes(), &line, 3).unwrap(), ["eins", "zwei\n"], "{name} {content}");
    }
}

#[test]
fn errors_name_record_and_byte() {
    let line = rules(SampleBy::Line, true);
    for (name, content, parts) in [
        ("a.txt", &b"ok\n\xffx\n"[..], [":2 (byte 3)", "UTF-8"]),
        ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": }\n", [":2 (byte 14)", "not a JSON object"]),
        ("a.jsonl", b"{\"id\": 1, \"content\": \"a\"}\n", [":1", "it has id, content"]),
        ("a.jsonl", b"{\"text\": 5}\n", [":1", "a number"]),
        ("a.json", b"[{\"text\": \"a\"}, {\"text\": null}]", [":2", "null"]),
        ("a.json", b"[{\"text\": \"a\"}, {\"text\": \"b\"}", [":3", "not a JSON object"]),
    ] {
        let error = documents_of(name, content, &line, 100).unwrap_err();
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains(Path::new(name).to_str().unwrap()));
    }
}

/// What a file gives under a policy: documents with their records, and bad records with their reasons.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub documents: Vec<(u64, String)>,
    pub bad: Vec<(Reason, String)>,
    /// Whether the last document is not whole yet.
    open: bool,
}

impl Sink for Found {
    fn document(&mut self, document: Document<'_>) -> Result<Flow> {
        if document.extent.begins {
            self.documents.push((document.record, String::new()));
        }
        self.documents.last_mut().unwrap().1.push_str(document.text);
        self.open = !document.extent.ends;
        Ok(Flow::Continue)
    }

    fn bad(&mut self, bad: Bad<'_>) -> Result<Flow> {
        if std::mem::take(&mut self.open) {
            self.documents.pop();
        }
        self.bad.push((bad.reason, bad.error.to_string()));
        Ok(Flow::Continue)
    }
}

pub(super) fn found_in(name: &str, bytes: &[u8], rules: &Rules, read_bytes: usize) -> Result<Found> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), bytes).unwrap();
    let input = crate::source::list(dir.path(), "--train_file_dir").unwrap().remove(0);
    let mut found = Found::default();
    for_each(
        &input,
        rules,
        Start::of(&input, rules, read_bytes)?,
        Reads { bytes: read_bytes, decoders: 3 },
        &mut found,
    )?;
    Ok(found)
}

pub(super) fn rules_of(change: impl FnOnce(&mut DataArguments)) -> Rules {
    let mut data = DataArguments::default();
    change(&mut data);
    Rules::new(&data).unwrap()
}

#[test]
fn the_same_text_comes_out_of_every_encoding() {
    let text = "第一章　風雪\r\n\nIt was cold.\r夜半\u{1F600}鐘聲到客船\n末行";
    let wide = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    let gb18030 = encoding_rs::GB18030.encode(text).0.into_owned();
    let json = |text: &str| {
        text.split_inclusive('\n').map(|line| serde_json::json!({"text": line}).to_string() + "\n").collect::<String>()
    };
    for sample_by in [SampleBy::Line, SampleBy::Paragraph, SampleBy::Document] {
        for keep_linebreaks in [true, false] {
            let rules = rules_of(|data| {
                (data.sample_by, data.keep_linebreaks, data.encoding) = (sample_by, keep_linebreaks, Encoding::Auto);
            });
            let expected = found_in("a.txt", text.as_bytes(), &rules, 1 << 20).unwrap();
            assert!(!expected.documents.is_empty() && expected.bad.is_empty());
            for read_bytes in [1, 2, 3, 5, 1 << 20] {
                for (name, bytes) in [
                    ("gb18030", gb18030.clone()),
                    ("utf-16-le", [b"\xff\xfe".to_vec(), wide(u16::to_le_bytes)].concat()),
                    ("utf-16-be", [b"\xfe\xff".to_vec(), wide(u16::to_be_bytes)].concat()),
                    ("utf-8 with a mark", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
                ] {
                    let found = found_in("a.txt", &bytes, &rules, read_bytes).unwrap();
                    assert_eq!(found, expected, "{name} {sample_by:?} {keep_linebreaks} {read_bytes}");
                }
            }
        }
    }
    let rules = rules_of(|data| data.encoding = Encoding::Auto);
    let expected = found_in("a.jsonl", json(text).as_bytes(), &rules, 100).unwrap();
    assert_eq!(expected.documents.len(), 4);
    for name in ["a.jsonl", "a.json"] {
        for bytes in [
            encoding_rs::GB18030.encode(&json(text)).0.into_owned(),
            [b"\xff\xfe".to_vec(), json(text).encode_utf16().flat_map(u16::to_le_bytes).collect()].concat(),
            [b"\xef\xbb\xbf", json(text).as_bytes()].concat(),
        ] {
            assert_eq!(found_in(name, &bytes, &rules, 7).unwrap(), expected, "{name}");
        }
    }
}

#[test]
fn a_file_is_entered_in_the_middle_whatever_its_encoding() {
    let text = "卷一\n卷二　上\n\n卷三\r\n卷四\n";
    let rules = rules_of(|data| data.encoding = Encoding::Auto);
    let rows = |line: &str| format!("{},\"{}\"\n", line.trim().len(), line.trim().replace('"', "\"\""));
    let csv = "n,text\n".to_owned() + &text.split_inclusive('\n').map(rows).collect::<String>();
    for (name, text) in [("a.txt", text), ("a.csv", &csv)] {
        for bytes in [
            text.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            encoding_rs::GB18030.encode(text).0.into_owned(),
            [b"\xff\xfe".to_vec(), text.encode_utf16().flat_map(u16::to_le_bytes).collect()].concat(),
        ] {
            for suffix in ["", ".zst"] {
                let bytes = if suffix.is_empty() { bytes.clone() } else { zstd::encode_all(&bytes[..], 1).unwrap() };
                let dir = tempfile::tempdir().unwrap();
                storage::replace(&dir.path().join(format!("{name}{suffix}")), &bytes).unwrap();
                let input = crate::source::list(dir.path(), "--train_file_dir").unwrap().remove(0);
                let begin = Start::of(&input, &rules, 5).unwrap();
                let mut all: Vec<(Start, String)> = Vec::new();
                let mut next = begin;
                for_each(&input, &rules, begin, Reads::alone(5), &mut |document: Document<'_>| {
                    all.push((next, document.text.to_owned()));
                    next = Start { at: document.end, records: document.record, ..begin };
                    Ok(Flow::Continue)
                })
                .unwrap();
                assert_eq!(all.len(), 5, "{name} {:?}", begin.encoding);
                for (index, (start, _)) in all.iter().enumerate() {
                    let mut rest = Found::default();
                    for_each(&input, &rules, *start, Reads { bytes: 5, decoders: 2 }, &mut rest).unwrap();
                    let expected: Vec<&str> = all[index..].iter().map(|(_, text)| text.as_str()).collect();
                    let found: Vec<&str> = rest.documents.iter().map(|(_, text)| text.as_str()).collect();
                    assert_eq!(found, expected, "{name}{suffix} {:?} {start:?}", begin.encoding);
                }
            }
        }
    }
}

/// Expected values: `pandas.read_csv(..., dtype=str, keep_default_na=False)` of the same bytes.
#[test]
fn rows_are_read_as_pandas_reads_them() {
    let rules = rules_of(|_| {});
    let csv = "id,text\r\n1,plain\r\n\r\n2,\"quoted, with \"\"quotes\"\" and\nlines\"\n3,\n4,a\"b\n5,NA\n6,last";
    let expected = ["plain", "quoted, with \"quotes\" and\nlines", "", "a\"b", "NA", "last"];
    for read_bytes in [1, 2, 3, 1 << 20] {
        for (name, content) in [
            ("a.csv", csv.to_owned()),
            (
                "a.tsv",
                csv.replace(",\"q", "\t\"q")
                    .replace("d,t", "d\tt")
                    .replace("1,", "1\t")
                    .replace("3,", "3\t")
                    .replace("4,", "4\t")
                    .replace("5,", "5\t")
                    .replace("6,", "6\t"),
            ),
        ] {
            assert_eq!(documents_of(name, content.as_bytes(), &rules, read_bytes).unwrap(), expected, "{name}");
        }
    }
    let bad = b"text,id\nok,1\ntoo,many,fields\nshort\n\"open,4\nand,on";
    let found = found_in("a.csv", bad, &rules, 3).unwrap();
    assert_eq!(found.documents, [(1, "ok".to_owned()), (3, "short".to_owned())]);
    let reasons: Vec<Reason> = found.bad.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons, [Reason::InvalidRow, Reason::InvalidRow]);
    assert!(found.bad[0].1.contains("a.csv:2 (byte 13)") && found.bad[0].1.contains("3 fields"), "{:?}", found.bad);
    assert!(found.bad[1].1.contains("not closed"), "{:?}", found.bad);
    let short = found_in("a.csv", b"id,text\n1,a\n2\n", &rules, 3).unwrap();
    assert_eq!(short.bad[0].0, Reason::MissingField);
    let error = found_in("a.csv", b"id,body\n1,a\n", &rules, 3).unwrap_err().to_string();
    assert!(error.contains("no column \"text\"") && error.contains("id, body"), "{error}");
    let template = rules_of(|data| data.text_template = Some("{id}: {text}".to_owned()));
    assert_eq!(documents_of("a.csv", b"id,text\n1,a\n", &template, 3).unwrap(), ["1: a"]);
    for end in ["", "\n", "\r\n", "\r"] {
        let closed = format!("text{end}\n\"a\nb\"{end}");
        assert_eq!(documents_of("a.csv", closed.as_bytes(), &rules, 2).unwrap(), ["a\nb"], "{end:?}");
    }
}

#[test]
fn records_that_cannot_be_used_are_passed_over_with_reason_and_place() {
    let rules = rules_of(|_| {});
    let jsonl = b"{\"text\": \"a\"}\n{\"text\": }\n\n{\"text\": \"\xff\"}\n{\"body\": 1}\n{\"text\": null}\n{\"text\": \"b\"}\n[1]\n";
    let found = found_in("a.jsonl", jsonl, &rules, 7).unwrap();
    assert_eq!(found.documents, [(1, "a".to_owned()), (7, "b".to_owned())]);
    let expected = [
        (Reason::InvalidJson, "a.jsonl:2 (byte 14)"),
        (Reason::InvalidEncoding, "a.jsonl:4 (byte 36)"),
        (Reason::MissingField, "a.jsonl:5 (byte 40)"),
        (Reason::NotText, "a.jsonl:6 (byte 52)"),
        (Reason::InvalidJson, "a.jsonl:8 (byte 81)"),
    ];
    assert_eq!(found.bad.len(), expected.len(), "{:?}", found.bad);
    for ((reason, said), (expected, place)) in found.bad.iter().zip(expected) {
        assert!(*reason == expected && said.contains(place) && said.contains("--on_bad_record skip"), "{said}");
    }
    let text = b"fine\nb\xffd\n\nalso \xe7\xa3\xa8\n";
    let found = found_in("a.txt", text, &rules, 3).unwrap();
    assert_eq!(found.documents, [(1, "fine\n".to_owned()), (3, "\n".to_owned()), (4, "also 磨\n".to_owned())]);
    assert!(found.bad[0].1.contains("a.txt:2 (byte 6)"), "{:?}", found.bad);
    let paragraphs = rules_of(|data| data.sample_by = SampleBy::Paragraph);
    let found = found_in("a.txt", text, &paragraphs, 3).unwrap();
    assert_eq!(found.documents, [(2, "also 磨\n".to_owned())]);
    assert_eq!(found.bad.len(), 1);
    // An array's records of another type can be told apart, what is no JSON cannot.
    let found = found_in("a.json", b"[{\"text\": 1}, {\"text\": \"b\"}]", &rules, 3).unwrap();
    assert_eq!((found.documents.len(), found.bad.len()), (1, 1));
    assert!(found_in("a.json", b"[{\"text\": \"b\"}, oops]", &rules, 3).is_err());
    for (errors, expected) in [(EncodingErrors::Replace, "b\u{fffd}d"), (EncodingErrors::Ignore, "bd")] {
        let mended = rules_of(|data| data.encoding_errors = errors);
        assert_eq!(found_in("a.txt", text, &mended, 3).unwrap().documents[1].1, format!("{expected}\n"));
        let json = b"[{\"text\": \"b\xffd\"}]";
        assert_eq!(found_in("a.json", json, &mended, 3).unwrap().documents[0].1, expected);
        assert_eq!(found_in("a.csv", b"text\nb\xffd\n", &mended, 3).unwrap().documents[0].1, expected);
    }
}

/// A stream of three batches, or the same as a file.
pub(super) fn arrow(texts: &[&str], file: bool) -> Vec<u8> {
    use arrow_array::{RecordBatch, StringArray};
    let column = |texts: &[&str]| std::sync::Arc::new(StringArray::from_iter_values(texts)) as _;
    let batch = |texts: &[&str]| RecordBatch::try_from_iter([("id", column(texts)), ("text", column(texts))]).unwrap();
    let batches: Vec<RecordBatch> = texts.chunks(texts.len().div_ceil(3)).map(batch).collect();
    let schema = batches[0].schema();
    if file {
        let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &schema).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        return writer.into_inner().unwrap();
    }
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &schema).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

/// `pyarrow` and `datasets` take a stream that was cut at the border of a batch for a shorter one.
#[test]
fn every_truncation_of_an_arrow_file_is_an_error_and_damage_never_panics() {
    let texts = ["one", "two", "three", "four", "five"];
    let rules = rules_of(|_| {});
    for file in [false, true] {
        let whole = arrow(&texts, file);
        assert_eq!(documents_of("a.arrow", &whole, &rules, 100).unwrap(), texts, "{file}");
        let mut errors = 0;
        for length in 0..whole.len() {
            match documents_of("a.arrow", &whole[..length], &rules, 100) {
                Err(error) => {
                    assert_eq!(error.exit_code(), 3, "{error}");
                    errors += 1;
                }
                // Of the file format, what is behind the rows is not needed.
                Ok(found) => assert!(file && found == texts, "{length}: {found:?}"),
            }
        }
        assert!(errors > whole.len() / 2, "{errors}");
        for bit in (0..whole.len() * 8).step_by(7) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // Texts have no checksum; what is left to promise is an answer.
            let _ = documents_of("a.arrow", &damaged, &rules, 100);
        }
    }
    let start = Start { at: 3, records: 3, ..Start::default() };
    let dir = tempfile::tempdir().unwrap();
    storage::replace(&dir.path().join("a.arrow"), &arrow(&texts, false)).unwrap();
    let input = crate::source::list(dir.path(), "--train_file_dir").unwrap().remove(0);
    let mut rest = Found::default();
    for_each(&input, &rules, start, Reads::alone(100), &mut rest).unwrap();
    assert_eq!(rest.documents, [(4, "four".to_owned()), (5, "five".to_owned())]);
}
