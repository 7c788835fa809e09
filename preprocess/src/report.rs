//! `prepare --report FILE`: what a dataset is like, as one page that needs nothing but a browser. No script runs in it and
//! nothing is fetched.

use std::fmt::Write;

use indicatif::{HumanBytes, HumanCount};
use tokenmill_shared::dataset::{Layout, Split, SplitManifest};

use crate::html::{begin, count, escaped, table};
use crate::summary::{Prepared, Status};

/// The page.
pub fn html(prepared: &Prepared) -> String {
    let manifest = &prepared.manifest;
    let mut page = begin(&format!("Dataset {}", prepared.dataset_dir.display()), "");
    overview(&mut page, prepared);
    for (name, split) in &manifest.splits {
        of_split(&mut page, prepared, *name, split);
    }
    sources(&mut page, prepared);
    let settings = serde_json::to_string_pretty(&manifest.head.settings).unwrap_or_default();
    let _ = write!(page, "<h2>Settings</h2>\n<pre>{}</pre>\n", escaped(&settings));
    let _ = write!(page, "<p>{}, fingerprint {}</p>\n</body></html>\n", manifest.written_by, manifest.head.fingerprint);
    page
}

fn overview(page: &mut String, prepared: &Prepared) {
    let manifest = &prepared.manifest;
    let mut rows = vec![
        ("text", HumanBytes(prepared.text_bytes).to_string()),
        ("files", HumanCount(prepared.files as u64).to_string()),
        ("block size", HumanCount(manifest.block_size as u64).to_string()),
    ];
    match prepared.status {
        Status::Written => {
            let seconds = prepared.seconds.max(1e-3);
            let tokenized = prepared.reuse.bytes_tokenized;
            let speed = HumanBytes((tokenized as f64 / seconds) as u64);
            rows.push(("time", format!("{seconds:.1} s in all")));
            rows.push(("tokenized now", format!("{}, {speed} in a second", HumanBytes(tokenized))));
            rows.push(("partitions reused", HumanCount(prepared.reuse.partitions_reused).to_string()));
        }
        Status::NothingToDo => rows.push(("this run", "nothing to do: the dataset was there".to_owned())),
        Status::Taken => rows.push(("this run", "the dataset was taken from the cache".to_owned())),
    }
    let mut rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    for (reason, records) in &manifest.head.rejected_records {
        rows.push(vec![format!("records left out: {}", reason.replace('_', " ")), count(*records)]);
    }
    table(page, &[], &rows);
}

fn of_split(page: &mut String, prepared: &Prepared, name: Split, split: &SplitManifest) {
    let manifest = &prepared.manifest;
    let ledger = &split.ledger;
    let _ = writeln!(page, "<h2>{name}</h2>");
    let share = |part: u64| format!("{:.2} %", 100.0 * part as f64 / (ledger.read as f64).max(1.0));
    let mut rows = vec![
        vec!["blocks".to_owned(), count(split.blocks), String::new()],
        vec!["documents".to_owned(), count(split.documents), String::new()],
        vec!["tokens read".to_owned(), count(ledger.read), String::new()],
        vec!["in blocks".to_owned(), count(ledger.in_blocks), share(ledger.in_blocks)],
        vec!["at the end, in no block".to_owned(), count(ledger.remainder), share(ledger.remainder)],
    ];
    for (reason, tokens) in &ledger.rejected {
        rows.push(vec![format!("left out: {}", reason.replace('_', " ")), count(*tokens), share(*tokens)]);
    }
    if manifest.layout == Layout::Blocks {
        let ids = split.blocks * manifest.block_size as u64;
        let padding = ids - ledger.in_blocks;
        let of_ids = format!("{:.2} % of all ids", 100.0 * padding as f64 / (ids as f64).max(1.0));
        rows.push(vec!["padding".to_owned(), count(padding), of_ids]);
    }
    if manifest.head.eos_token_id.is_some() {
        rows.push(vec!["end-of-sequence, at most".to_owned(), count(split.documents), share(split.documents)]);
    }
    let fertility = split.text_bytes as f64 / (ledger.read as f64).max(1.0);
    rows.push(vec!["bytes of text a token".to_owned(), format!("{fertility:.2}"), String::new()]);
    table(page, &["", "", ""], &rows);
    let Some(statistics) = &split.statistics else { return };
    let lengths = statistics.documents_by_tokens.iter().enumerate().map(|(power, documents)| {
        let range = match power {
            0 => "none".to_owned(),
            1 => "1".to_owned(),
            _ => format!("{} to {}", 1u64 << (power - 1), (1u64 << power) - 1),
        };
        (range, *documents)
    });
    bars(page, "Documents by their tokens", &lengths.collect::<Vec<_>>());
    let kinds = statistics.tokens_by_kind.iter().map(|(kind, tokens)| (kind.replace('_', " "), *tokens));
    bars(page, "Tokens by what they are made of", &kinds.collect::<Vec<_>>());
}

fn sources(page: &mut String, prepared: &Prepared) {
    if prepared.sources.0.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h2>Where it came from</h2>");
    let all: u64 = prepared.sources.0.values().map(|source| source.tokens).sum();
    let row = |(name, source): (&String, &crate::statistics::SourceCount)| {
        let per_token = source.text_bytes as f64 / (source.tokens as f64).max(1.0);
        vec![
            name.clone(),
            count(source.documents),
            HumanBytes(source.text_bytes).to_string(),
            count(source.tokens),
            format!("{:.1} %", 100.0 * source.tokens as f64 / (all as f64).max(1.0)),
            format!("{per_token:.2}"),
        ]
    };
    let rows: Vec<_> = prepared.sources.0.iter().map(row).collect();
    table(page, &["", "documents", "text", "tokens", "", "bytes a token"], &rows);
}

fn bars(page: &mut String, title: &str, values: &[(String, u64)]) {
    let most = values.iter().map(|(_, value)| *value).max().unwrap_or_default().max(1);
    let all: u64 = values.iter().map(|(_, value)| *value).sum();
    let _ = write!(page, "<h3>{title}</h3>\n<table>");
    for (name, value) in values {
        let (width, share) = (20.0 * *value as f64 / most as f64, 100.0 * *value as f64 / (all as f64).max(1.0));
        let _ = write!(
            page,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{share:.1} %</td><td><span class=\"bar\" style=\"width:{width:.2}em\"></span></td></tr>",
            escaped(name),
            count(*value)
        );
    }
    page.push_str("</table>\n");
}
