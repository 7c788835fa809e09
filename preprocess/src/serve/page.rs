//! The status page.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;
use tokenmill_shared::dataset::Split;

use super::catalogue::Content;
use super::status::Status;
use crate::html::{begin, count, table};

/// A browser asks again after five seconds.
const AGAIN: &str = "<meta http-equiv=\"refresh\" content=\"5\">";

/// The page.
pub fn html(status: &Status) -> String {
    let mut page = begin("tokenmill data service", AGAIN);
    overview(&mut page, status);
    datasets(&mut page, status);
    consumers(&mut page, status);
    page.push_str("</body></html>\n");
    page
}

fn overview(page: &mut String, status: &Status) {
    let (sent, counts) = (status.statistics.sent(), &status.counts);
    let seconds = status.statistics.began.elapsed().as_secs();
    let rows = [
        ("running for", format!("{} h {:02} min {:02} s", seconds / 3600, seconds / 60 % 60, seconds % 60)),
        ("connections", count(counts.open.load(Relaxed) as u64)),
        ("streams opened", count(sent.opened)),
        ("tokens sent", count(sent.tokens)),
        ("connections beyond a limit", count(counts.beyond_limit.load(Relaxed))),
        ("connections too slow", count(counts.too_slow.load(Relaxed))),
        ("requests without a valid token", count(counts.without_token.load(Relaxed))),
    ];
    table(page, &[], &rows.map(|(name, value)| vec![name.to_owned(), value]));
}

/// What is served. Blocks of text are not counted here: that reads what is kept of it.
fn datasets(page: &mut String, status: &Status) {
    page.push_str("<h2>Datasets</h2>\n");
    let mut rows = Vec::new();
    for served in status.catalogue.iter() {
        let blocks = |split: Split| match &served.content {
            Content::Prepared(prepared) => prepared.len(split).map_or_else(String::new, count),
            Content::Live(_) => String::new(),
        };
        let fingerprint = served.fingerprint().get(..12).unwrap_or_default().to_owned();
        let (train, validation) = (blocks(Split::Train), blocks(Split::Validation));
        let size = count(served.block_size() as u64);
        rows.push(vec![served.name.clone(), served.kind().to_owned(), size, train, validation, fingerprint]);
    }
    let head = ["", "", "ids a block", "blocks to train", "to validate", "fingerprint"];
    table(page, &head, &rows);
}

fn consumers(page: &mut String, status: &Status) {
    page.push_str("<h2>Consumers</h2>\n");
    let open = status.statistics.open();
    if open.is_empty() {
        page.push_str("<p>none</p>\n");
        return;
    }
    let row = |consumer: Value| {
        let text = |key: &str| consumer[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| consumer[key].as_u64().map_or_else(String::new, count);
        let position = match consumer["end"].as_u64() {
            Some(end) => format!("{} of {}", number("position"), count(end)),
            None => number("position"),
        };
        let ago = consumer["seconds_since_sent"].as_f64().unwrap_or_default();
        vec![
            consumer["id"].to_string(),
            text("consumer"),
            text("peer"),
            text("dataset"),
            text("reads"),
            number("epoch"),
            position,
            number("tokens"),
            count(consumer["tokens_per_second"].as_f64().unwrap_or_default() as u64),
            format!("{ago:.1} s ago"),
        ]
    };
    let head = ["", "consumer", "from", "dataset", "reads", "epoch", "position", "tokens", "tokens/s", "last sent"];
    let rows: Vec<_> = open.iter().map(|consumer| row(consumer.json())).collect();
    table(page, &head, &rows);
}
