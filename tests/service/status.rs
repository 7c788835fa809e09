//! The status page and the metrics: what they say is what happens, and they are as closed as the service itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use arrow_flight::Ticket as FlightTicket;
use serde_json::Value;
use tokenmill_shared::dataset::Split;
use tokenmill_shared::service::Ticket;
use tokenmill_tests::{lines, run};

use super::{Serving, flight, prepared};

/// A service with a status page on a port of its own.
fn start(place: &tokenmill_tests::Place, more: &[&str]) -> (Serving, SocketAddr) {
    start_with(place, false, more)
}

/// The same of a text too.
pub(super) fn start_with(place: &tokenmill_tests::Place, text: bool, more: &[&str]) -> (Serving, SocketAddr) {
    let serving = Serving::start(place, text, &[&["--status_listen", "127.0.0.1:0"], more].concat());
    let said: Value = serde_json::from_str(serving.log().lines().next().unwrap()).unwrap();
    let address = said["status"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    (serving, address)
}

/// All that comes back for `head`, which needs no empty line at its end.
fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    // It may be refused before all of it was sent.
    let _ = stream.write_all(format!("{head}\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

pub(super) fn get(address: SocketAddr, path: &str) -> String {
    let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}"));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    answer
}

fn code(answer: &str) -> &str {
    answer.get(9..12).unwrap_or_default()
}

/// The value of the one line that begins with `name`.
pub(super) fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn the_page_and_the_metrics_say_who_reads_what_and_how_far() {
    let place = tokenmill_tests::Place::new();
    place.write("text/a.txt", lines(200_000, 3));
    run(&mut place.prepare("data", &[])).ok();
    let (serving, address) = start(&place, &[]);
    let description = serving.service("data", None).description;
    let blocks = description.splits[&Split::Train].blocks.unwrap();
    let page = get(address, "/");
    assert!(page.contains("<td>data</td><td class=\"n\">prepared</td><td class=\"n\">16</td>"), "{page}");
    assert!(page.contains(&description.fingerprint[..12]) && page.contains("<p>none</p>"), "{page}");
    flight::runtime().block_on(async {
        let consumer = Some("<script>alert(1)</script>\"&".to_owned());
        let ticket = Ticket { dataset: "data".to_owned(), epoch: 5, consumer, ..Ticket::default() };
        let mut client = flight::client(serving.address);
        let mut stream = client.do_get(FlightTicket::new(ticket.to_bytes())).await.unwrap().into_inner();
        for _ in 0..3 {
            stream.message().await.unwrap().unwrap();
        }
        let page = get(address, "/");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&amp;"), "{page}");
        assert!(!page.contains("<script") && page.contains("default-src 'none'"), "{page}");
        let thousands = |count: u64| {
            let digits = count.to_string();
            digits[..digits.len() - 3].to_owned() + "," + &digits[digits.len() - 3..]
        };
        assert!(page.contains(&format!(" of {}</td>", thousands(blocks))), "{blocks} in {page}");
        let metrics = get(address, "/metrics");
        assert_eq!(metric(&metrics, "tokenmill_streams{dataset=\"data\",reads=\"train\"}"), 1.0);
        assert!(!metrics.contains("script"), "names of readers would be labels without end");
        // Two batches of 8192 blocks were taken; so many or some more were sent.
        let rows = metric(&metrics, "tokenmill_rows_sent_total{dataset=\"data\",reads=\"train\"}");
        assert!((2.0 * 8192.0..=blocks as f64).contains(&rows), "{rows}");
        while stream.message().await.unwrap().is_some() {}
    });
    let metrics = get(address, "/metrics");
    let of = |name: &str| metric(&metrics, &format!("tokenmill_{name}{{dataset=\"data\",reads=\"train\"}}"));
    assert_eq!(of("rows_sent_total"), blocks as f64);
    assert_eq!(of("tokens_sent_total"), blocks as f64 * 16.0);
    assert_eq!((of("streams_opened_total"), of("streams")), (1.0, 0.0));
    assert!(metric(&metrics, "process_resident_memory_bytes") > 1e6);
    assert!(metric(&metrics, "tokenmill_requests_total") >= 2.0);
}

#[test]
fn it_is_for_reading_two_paths_and_heads_are_as_long_as_the_limits_say() {
    let place = prepared();
    let (_serving, address) = start(&place, &[]);
    let head = |method: &str, path: &str, more: &str| format!("{method} {path} HTTP/1.1\r\nHost: h{more}");
    for (asked, expected) in [
        (head("GET", "/", ""), "200"),
        (head("HEAD", "/", ""), "200"),
        (head("GET", "/metrics?any=thing", ""), "200"),
        (head("GET", "/favicon.ico", ""), "404"),
        (head("GET", "//", ""), "404"),
        (head("GET", "/../etc/passwd", ""), "404"),
        (head("POST", "/", "\r\nContent-Length: 0"), "405"),
        (head("DELETE", "/metrics", ""), "405"),
        (head("GET", &format!("/?{}", "x".repeat(8000)), ""), "200"),
        (head("GET", &format!("/?{}", "x".repeat(8200)), ""), "431"),
        (head("GET", "/", &"\r\na: b".repeat(63)), "200"),
        (head("GET", "/", &"\r\na: b".repeat(64)), "431"),
        (head("GET", "/", &format!("\r\na: {}", "x".repeat(15 << 10))), "200"),
        (head("GET", "/", &format!("\r\na: {}", "x".repeat(17 << 10))), "431"),
        ("nonsense".to_owned(), "400"),
    ] {
        let answer = ask(address, &asked);
        assert_eq!(code(&answer), expected, "{}: {answer}", &asked[..asked.len().min(60)]);
    }
    let answer = ask(address, &head("HEAD", "/", ""));
    assert!(answer.ends_with("\r\n\r\n"), "a head alone: {answer}");
}

#[test]
fn it_needs_the_token_that_the_service_needs() {
    let place = prepared();
    let token = "0123456789abcdef0123456789abcdef";
    let file = place.write("tokens", format!("{token}\n"));
    let (serving, address) = start(&place, &["--token_file", file.to_str().unwrap()]);
    let with = |authorization: &str| {
        let answer = ask(address, &format!("GET / HTTP/1.1\r\nHost: h{authorization}"));
        code(&answer).to_owned()
    };
    assert_eq!(with(""), "401");
    assert_eq!(with(&format!("\r\nAuthorization: Bearer {token}")), "200");
    assert_eq!(with(&format!("\r\nAuthorization: Bearer {token}0")), "401");
    // "any:" and the token, in base64, as a browser sends a name and a password; and without the last character.
    assert_eq!(with("\r\nAuthorization: Basic YW55OjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVm"), "200");
    assert_eq!(with("\r\nAuthorization: Basic YW55OjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGU="), "401");
    assert_eq!(with("\r\nAuthorization: Basic %%%"), "401");
    assert!(!serving.log().contains(token));
    let any = "0.0.0.0:0";
    for (more, missing) in
        [(&[][..], "--tls_cert_file"), (&["--token_file", file.to_str().unwrap()], "--tls_cert_file")]
    {
        let mut command = Serving::command(&place, "127.0.0.1:0".parse().unwrap(), false, more);
        run(command.args(["--status_listen", any])).fails(2, &["--status_listen", missing]);
    }
}

/// Readers of the page that begin and do not go on are closed after ten seconds, and so many of one address at a time.
#[test]
fn slow_readers_of_the_page_are_closed_and_few_are_let_in() {
    let place = prepared();
    let (serving, address) = start(&place, &[]);
    let began = Instant::now();
    let mut slow: Vec<TcpStream> = (0..16)
        .map(|at| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&b"GET / HTTP/1.1\r\nHost: h\r\n"[..(at * 2).min(24)]).unwrap();
            stream
        })
        .collect();
    let mut beyond = TcpStream::connect(address).unwrap();
    beyond.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(beyond.read(&mut [0]), Ok(0) | Err(_)) && began.elapsed() < Duration::from_secs(5));
    // Flight has a door of its own.
    serving.service("data", None);
    for stream in &mut slow {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(14)).contains(&took), "{took:?}");
    get(address, "/");
}
