//! Pages that need nothing but a browser: no script runs in them and nothing is fetched.

use std::fmt::Write;

use indicatif::HumanCount;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:60em;margin:2em auto;padding:0 1em}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.15em .8em .15em 0;text-align:left;font-weight:normal}td.n{text-align:right;font-variant-numeric:tabular-nums}\
th{color:#666}.bar{display:inline-block;height:.75em;background:#3b7dbf;vertical-align:baseline}\
pre{background:#f4f4f4;padding:1em;overflow:auto}";

/// A page up to its heading, `title`. `head` is HTML that its head has besides.
pub fn begin(title: &str, head: &str) -> String {
    let title = escaped(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>{head}<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
    )
}

/// The first cell of a row is text, the others are numbers.
pub fn table(page: &mut String, head: &[&str], rows: &[Vec<String>]) {
    page.push_str("<table>");
    if head.iter().any(|cell| !cell.is_empty()) {
        let cells: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
        let _ = write!(page, "<tr>{cells}</tr>");
    }
    for row in rows {
        let cell = |(place, text): (usize, &String)| {
            let class = if place > 0 { " class=\"n\"" } else { "" };
            format!("<td{class}>{}</td>", escaped(text))
        };
        let cells: String = row.iter().enumerate().map(cell).collect();
        let _ = write!(page, "<tr>{cells}</tr>");
    }
    page.push_str("</table>\n");
}

/// With its thousands apart.
pub fn count(value: u64) -> String {
    HumanCount(value).to_string()
}

/// `text` as it is written in a page: file names and settings may hold what HTML would read as its own.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
