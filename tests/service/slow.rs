//! Who is slow costs one place, and who leaves or is stopped loses nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use arrow_flight::{Action, Ticket as FlightTicket};
use tokenmill_shared::dataset::Split;
use tokenmill_shared::service::Ticket;
use tokenmill_tests::{Place, lines, run};
use tonic::Code;

use super::{Chance, Serving, flight};

/// What the service may hold for a reader that takes nothing. Two batches ahead, the one being sent and HTTP/2's buffer
/// are 1.25 MiB; with what the allocator cannot give back between them, 60 such readers take 1.8 to 2.2 MiB each.
const HELD: u64 = 3 << 20;

/// A dataset of some 7 MB, more than anything holds on the way.
fn large() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(150_000, 3));
    run(&mut place.prepare("data", &[])).ok();
    place
}

/// What an HTTP/2 client says first: the preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Peers that begin and do not go on, each at another place; all are gone ten seconds later, and meanwhile others are
/// served as ever.
#[test]
fn peers_that_do_not_go_on_are_closed_in_ten_seconds() {
    let place = large();
    let serving = Serving::start(&place, false, &[]);
    // A HEADERS frame that says its head goes on in another frame.
    let headers = b"\0\0\x01\x01\0\0\0\0\x01\x83";
    let beginnings: [&[u8]; 4] = [b"", &PREFACE[..10], PREFACE, &[PREFACE, headers].concat()];
    let began = Instant::now();
    let mut slow: Vec<TcpStream> = Vec::new();
    for at in 0..48 {
        let mut stream = TcpStream::connect(serving.address).unwrap();
        stream.write_all(beginnings[at % beginnings.len()]).unwrap();
        slow.push(stream);
    }
    let health = || {
        let began = Instant::now();
        flight::runtime().block_on(async {
            let action = Action { r#type: "health".to_owned(), body: "".into() };
            flight::client(serving.address).do_action(action).await.unwrap();
        });
        began.elapsed()
    };
    assert!(health() < Duration::from_secs(2), "others are served");
    for stream in &mut slow {
        let left = Duration::from_secs(20).saturating_sub(began.elapsed());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
        let mut said = Vec::new();
        // Reset or closed: either is the end.
        let _ = stream.read_to_end(&mut said);
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(14)).contains(&took), "{took:?}");
    serving.says("no request came in time");
    health();
}

/// Readers that take nothing: what waits for each is bounded, and the one beside them gets everything.
#[test]
fn readers_that_take_nothing_cost_a_bounded_buffer() {
    let place = large();
    let serving = Serving::start(&place, false, &[]);
    let service = serving.service("data", None);
    let blocks = service.description.splits[&Split::Train].blocks;
    let read_all = || {
        let mut stream = service.blocks(service.ticket(Split::Train), blocks);
        let mut count = 0;
        while stream.next_block().unwrap().is_some() {
            count += 1;
        }
        count
    };
    assert_eq!(Some(read_all()), blocks);
    let before = serving.memory();
    let bytes = blocks.unwrap() * 32;
    const READERS: u64 = 40;
    flight::runtime().block_on(async {
        let mut stalled = Vec::new();
        for _ in 0..READERS {
            let ticket = Ticket { dataset: "data".to_owned(), ..Ticket::default() };
            let mut client = flight::client(serving.address);
            stalled.push(client.do_get(FlightTicket::new(ticket.to_bytes())).await.unwrap().into_inner());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let grown = serving.memory().saturating_sub(before);
        // The whole stream is more.
        assert!(grown < READERS * HELD && bytes > 2 * HELD, "{grown} bytes for {READERS} streams of {bytes}");
        drop(stalled);
    });
    assert_eq!(Some(read_all()), blocks);
}

/// A peer that would take everything and then reads nothing: HTTP/2 holds so much of each stream and no more.
#[test]
fn http2_holds_a_bounded_part_of_what_a_peer_asked_for_and_does_not_read() {
    let place = large();
    let serving = Serving::start(&place, false, &[]);
    const STREAMS: u64 = 60;
    let bytes = serving.service("data", None).description.splits[&Split::Train].blocks.unwrap() * 32;
    flight::runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(serving.address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let window = (1 << 31) - 1;
        let (send, connection) = builder
            .initial_window_size(window)
            .initial_connection_window_size(window)
            .handshake::<_, bytes::Bytes>(stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        let ticket = FlightTicket::new("{\"dataset\": \"data\"}");
        // Flag, length, field 1 with the ticket.
        let length = ticket.ticket.len() as u8;
        let message = [&[0, 0, 0, 0, length + 2, 10, length][..], &ticket.ticket].concat();
        let before = serving.memory();
        let mut open = Vec::new();
        for _ in 0..STREAMS {
            let request = http::Request::post("http://h/arrow.flight.protocol.FlightService/DoGet");
            let request = request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap();
            let (answer, mut body) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
            body.send_data(message.clone().into(), true).unwrap();
            open.push(answer);
        }
        // Until the first answer comes; from then on this thread, the only one, reads nothing.
        open.remove(0).await.unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let grown = serving.memory().saturating_sub(before);
        assert!(grown < STREAMS * HELD && bytes > 2 * HELD, "{grown} bytes for {STREAMS} streams of {bytes}");
    });
}

/// Streams that are opened and reset at once, as fast as it goes.
#[test]
fn a_flood_of_resets_ends_the_connection_and_not_the_service() {
    let place = large();
    let serving = Serving::start(&place, false, &[]);
    let ended = flight::runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(serving.address).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..20_000 {
            let request = http::Request::post("http://h/arrow.flight.protocol.FlightService/DoGet").body(()).unwrap();
            let Ok(mut send) = send.clone().ready().await else { break };
            let Ok((_, mut body)) = send.send_request(request, false) else { break };
            body.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        drop(send);
        tokio::time::timeout(Duration::from_secs(10), connection).await.expect("an end").unwrap()
    });
    // What it says may be lost with what was still being sent.
    let reason = ended.expect_err("the service ends it").reason();
    assert!(reason.is_none_or(|reason| reason == h2::Reason::ENHANCE_YOUR_CALM), "{reason:?}");
    serving.says("connection_ended");
    assert!(serving.service("data", None).description.splits.len() == 1);
}

/// SIGTERM at random times: the service ends in ten seconds without a failure, and a reader goes on at the block after
/// its last one.
#[test]
fn sigterm_ends_streams_at_a_batch_and_they_go_on_elsewhere() {
    let place = large();
    let mut serving = Serving::start(&place, false, &[]);
    let blocks = serving.service("data", None).description.splits[&Split::Train].blocks.unwrap();
    let mut chance = Chance(3);
    let mut stopped = 0;
    for _ in 0..20 {
        let ticket = Ticket { dataset: "data".to_owned(), seed: Some(2), ..Ticket::default() };
        let rows = flight::runtime().block_on(async {
            let mut client = flight::client(serving.address);
            let mut stream = client.do_get(FlightTicket::new(ticket.to_bytes())).await.unwrap().into_inner();
            let mut rows = 0;
            for _ in 0..chance.below(8) {
                rows += stream.message().await.unwrap().map_or(0, |message| u64::from(!message.data_body.is_empty()));
            }
            tokio::time::sleep(Duration::from_millis(chance.below(20))).await;
            serving.signal("-TERM");
            loop {
                match stream.message().await {
                    Ok(Some(message)) => rows += u64::from(!message.data_body.is_empty()),
                    Ok(None) => break rows,
                    Err(status) => {
                        assert_eq!(status.code(), Code::Unavailable, "{status}");
                        let position = status.message().rsplit(' ').next().unwrap().parse::<u64>().unwrap();
                        assert_eq!(position, (rows * 8192).min(blocks), "{status}");
                        stopped += 1;
                        break rows;
                    }
                }
            }
        });
        let (code, took) = serving.ended(Duration::from_secs(11));
        assert_eq!(code, Some(0), "{}", serving.log());
        assert!(took < Duration::from_secs(10), "{took:?}");
        serving = Serving::at(&place, serving.address, false, &[]);
        let rest = Ticket { position: rows * 8192, ..ticket };
        let service = serving.service("data", None);
        let mut stream = service.blocks(rest.clone(), Some(blocks));
        let mut left = 0;
        while let Some(block) = stream.next_block().unwrap() {
            assert_eq!((block.position, block.block), (rest.position + left, rest.order(blocks).block(block.position)));
            left += 1;
        }
        assert_eq!(rest.position.min(blocks) + left, blocks);
    }
    assert!(stopped > 5, "{stopped} of 20 were in the midst of it");
}
