//! The metrics, in Prometheus's text format.

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering::Relaxed;

use super::catalogue::Content;
use super::status::Status;
use crate::doctor::number;

/// The format's version 0.0.4, which every Prometheus reads.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All of them. Streams are counted by dataset and by what is read of it, never by reader: whoever comes could make up new
/// names without end.
pub fn text(status: &Status) -> String {
    let Status { catalogue, statistics, counts } = status;
    let mut text = Text::default();
    text.family("tokenmill_build_info", "gauge", "Version of the service.");
    text.value(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("tokenmill_uptime_seconds", "gauge", "Seconds since the service began.");
    text.value(&[], statistics.began.elapsed().as_secs_f64());
    if let Some(kib) = number("/proc/self/status", "VmRSS:") {
        text.family("process_resident_memory_bytes", "gauge", "Memory that is in use.");
        text.value(&[], kib << 10);
    }
    text.family("tokenmill_dataset_info", "gauge", "What is served.");
    for served in catalogue.iter() {
        let labels =
            [("dataset", served.name.as_str()), ("source", served.kind()), ("fingerprint", served.fingerprint())];
        text.value(&labels, 1);
    }
    text.family("tokenmill_streams", "gauge", "Streams that are open.");
    let open = statistics.open();
    let sums = statistics.sums();
    for (dataset, reads) in sums.keys() {
        let of_kind = open.iter().filter(|consumer| consumer.dataset == *dataset && consumer.what == *reads);
        text.value(&[("dataset", dataset), ("reads", reads)], of_kind.count());
    }
    let sent = [
        ("tokenmill_streams_opened_total", "Streams that were opened."),
        ("tokenmill_rows_sent_total", "Blocks, or texts of an exchange, that were sent."),
        ("tokenmill_tokens_sent_total", "Tokens that were sent."),
    ];
    for (at, (name, help)) in sent.into_iter().enumerate() {
        text.family(name, "counter", help);
        for ((dataset, reads), sent) in &sums {
            let value = [sent.opened, sent.rows, sent.tokens][at];
            text.value(&[("dataset", dataset), ("reads", reads)], value);
        }
    }
    let texts = [
        (
            "tokenmill_text_tokenized_bytes_total",
            "Bytes of text that were tokenized here; others and the store gave the rest.",
        ),
        ("tokenmill_text_scanned_files_total", "Files of text that were read to find where they are cut."),
    ];
    for (at, (name, help)) in texts.into_iter().enumerate() {
        text.family(name, "counter", help);
        for served in catalogue.iter() {
            if let Content::Live(live) = &served.content {
                let made = [&live.made().tokenized_bytes, &live.made().scanned_files][at];
                text.value(&[("dataset", &served.name)], made.load(Relaxed));
            }
        }
    }
    text.family("tokenmill_connections", "gauge", "Connections that are open.");
    text.value(&[], counts.open.load(Relaxed));
    text.family("tokenmill_connections_accepted_total", "counter", "Connections that were let in.");
    text.value(&[], counts.accepted.load(Relaxed));
    text.family("tokenmill_connections_closed_total", "counter", "Connections that the service closed, by the reason.");
    text.value(&[("reason", "beyond_limit")], counts.beyond_limit.load(Relaxed));
    text.value(&[("reason", "too_slow")], counts.too_slow.load(Relaxed));
    text.family("tokenmill_requests_total", "counter", "Requests that were answered.");
    text.value(&[], counts.requests.load(Relaxed));
    text.family("tokenmill_requests_without_token_total", "counter", "Requests without a valid token.");
    text.value(&[], counts.without_token.load(Relaxed));
    text.text
}

#[derive(Default)]
struct Text {
    text: String,
    name: &'static str,
}

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn value(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let pairs: Vec<String> = labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escaped(text))).collect();
        let labels = if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }
}
