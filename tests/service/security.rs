//! Who comes in: with a token, with the right certificate, and within the limits.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arrow_flight::{Action, Criteria, Empty, FlightData, FlightDescriptor, Ticket as FlightTicket};
use futures::stream;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Response};
use serde_json::Value;
use tokenmill_tests::{Ended, Place, data, run};
use tokenmill_trainer::service::{Access, Connection, Service};
use tonic::{Code, Status};

use super::{Chance, Serving, access, flight, prepared};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "another-token-of-the-same-service";

fn tls(name: &str) -> String {
    data(&format!("tls/{name}")).to_str().unwrap().to_owned()
}

fn with_token(place: &Place) -> Vec<String> {
    let file = place.write("tokens", format!("{TOKEN}\n{OTHER}\n"));
    vec!["--token_file".to_owned(), file.to_str().unwrap().to_owned()]
}

fn flags(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

/// Every call, with this header; the code of each.
fn call_all(serving: &Serving, authorization: Option<&[u8]>) -> Vec<(&'static str, Code)> {
    fn of<T>(result: Result<T, Status>) -> Code {
        result.map_or_else(|status| status.code(), |_| Code::Ok)
    }
    flight::runtime().block_on(async {
        let header = authorization.map(|value| tonic::metadata::AsciiMetadataValue::try_from(value).expect("a header"));
        let mut client = arrow_flight::flight_service_client::FlightServiceClient::with_interceptor(
            tonic::transport::Endpoint::from_shared(format!("http://{}", serving.address)).unwrap().connect_lazy(),
            move |mut request: tonic::Request<()>| {
                if let Some(header) = &header {
                    request.metadata_mut().insert("authorization", header.clone());
                }
                Ok(request)
            },
        );
        let descriptor = FlightDescriptor::new_path(vec!["data".to_owned()]);
        let action = Action { r#type: "health".to_owned(), body: "".into() };
        let nothing = || stream::iter([FlightData::new()]);
        vec![
            ("list", of(client.list_flights(Criteria::default()).await)),
            ("info", of(client.get_flight_info(descriptor.clone()).await)),
            ("poll", of(client.poll_flight_info(descriptor.clone()).await)),
            ("schema", of(client.get_schema(descriptor).await)),
            ("get", of(client.do_get(FlightTicket::new("{\"dataset\": \"data\"}")).await)),
            ("put", of(client.do_put(nothing()).await)),
            ("exchange", of(client.do_exchange(nothing()).await)),
            ("action", of(client.do_action(action).await)),
            ("actions", of(client.list_actions(Empty {}).await)),
            ("handshake", of(client.handshake(stream::iter([Default::default()])).await)),
        ]
    })
}

#[test]
fn no_call_is_answered_without_a_token_of_the_file() {
    let place = prepared();
    let token_flags = with_token(&place);
    let serving = Serving::start(&place, false, &flags(&token_flags));
    let mut chance = Chance(5);
    let mut wrong: Vec<Option<Vec<u8>>> = vec![
        None,
        Some(b"".to_vec()),
        Some(TOKEN.as_bytes().to_vec()),
        Some(format!("Bearer {}", &TOKEN[..31]).into_bytes()),
        Some(format!("Bearer {TOKEN}0").into_bytes()),
        Some(format!("Bearer {}", TOKEN.to_uppercase()).into_bytes()),
        Some(format!("Basic {TOKEN}").into_bytes()),
        Some(format!("Bearer {}", "x".repeat(8000)).into_bytes()),
    ];
    for _ in 0..42 {
        let mut near = TOKEN.as_bytes().to_vec();
        let at = chance.below(near.len() as u64) as usize;
        near[at] = near[at].wrapping_add(1 + chance.below(3) as u8);
        wrong.push(Some([b"Bearer ".to_vec(), near].concat()));
    }
    for authorization in &wrong {
        for (call, code) in call_all(&serving, authorization.as_deref()) {
            assert_eq!(code, Code::Unauthenticated, "{call} with {authorization:?}");
        }
    }
    for token in [TOKEN, OTHER] {
        for (call, code) in call_all(&serving, Some(format!("Bearer {token}").as_bytes())) {
            assert_ne!(code, Code::Unauthenticated, "{call}");
        }
    }
    // No handler saw one of the others, and no log has a token.
    let statistics = statistics(&serving, Some(TOKEN));
    assert_eq!(statistics["requests_without_token"], 10 * wrong.len() as u64);
    assert_eq!(statistics["requests"], 21);
    let log = serving.log();
    assert!(!log.contains(TOKEN) && !log.contains(OTHER), "{log}");
}

fn statistics(serving: &Serving, token: Option<&str>) -> Value {
    flight::runtime().block_on(async {
        let mut request = tonic::Request::new(Action { r#type: "statistics".to_owned(), body: "".into() });
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut results = flight::client(serving.address).do_action(request).await.unwrap().into_inner();
        serde_json::from_slice(&results.message().await.unwrap().unwrap().body).unwrap()
    })
}

/// A connection that speaks HTTP/2 and nothing above it.
async fn http2(serving: &Serving) -> SendRequest<bytes::Bytes> {
    let stream = tokio::net::TcpStream::connect(serving.address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn action_request(headers: &[(String, String)]) -> http::request::Builder {
    let mut request =
        Request::builder().method(Method::POST).uri("http://localhost/arrow.flight.protocol.FlightService/DoAction");
    request = request.header("content-type", "application/grpc").header("te", "trailers");
    headers.iter().fold(request, |request, (name, value)| request.header(name, value))
}

fn grpc_status(headers: &HeaderMap) -> Option<&str> {
    headers.get("grpc-status").map(|value| value.to_str().unwrap())
}

/// The refusal comes while the request's body is still being sent, and nothing of it was asked for.
#[test]
fn a_token_is_compared_before_the_body_is_read() {
    let place = prepared();
    let token_flags = with_token(&place);
    let serving = Serving::start(&place, false, &flags(&token_flags));
    flight::runtime().block_on(async {
        let mut send = http2(&serving).await;
        let (answer, _body) = send.send_request(action_request(&[]).body(()).unwrap(), false).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("an answer at once").unwrap();
        assert_eq!(grpc_status(answer.headers()), Some("16"));
    });
}

#[test]
fn heads_are_as_long_as_the_limits_say_and_no_longer() {
    let place = prepared();
    let serving = Serving::start(&place, false, &[]);
    let mut head = Vec::new();
    head.extend((0..61).map(|at| (format!("x-{at}"), "1".to_owned())));
    let long = |bytes: usize| vec![("x-long".to_owned(), "y".repeat(bytes))];
    let target = |bytes: usize| {
        let path = format!("http://localhost/arrow.flight.protocol.FlightService/{}", "z".repeat(bytes));
        Request::builder().method(Method::POST).uri(path).header("content-type", "application/grpc").body(()).unwrap()
    };
    let ask = |request: Request<()>| -> Result<Response<()>, h2::Error> {
        flight::runtime().block_on(async {
            let (answer, mut body) = http2(&serving).await.send_request(request, false)?;
            // The message of a health action: flag, length, field 1 with its text.
            let message = [&[0, 0, 0, 0, 8, 10, 6][..], b"health"].concat();
            let _ = body.send_data(message.into(), true);
            answer.await.map(|answer| answer.map(|_| ()))
        })
    };
    let code = |request: Request<()>| match ask(request) {
        Ok(answer) if answer.status() == 200 => grpc_status(answer.headers()).unwrap_or("0").to_owned(),
        Ok(answer) => answer.status().as_u16().to_string(),
        Err(error) => error.to_string(),
    };
    let with = |headers: &[(String, String)]| action_request(headers).body(()).unwrap();
    // content-type, te and 61 or 62 more; 64 is the limit.
    assert_eq!(code(with(&head)), "0");
    head.push(("x-last".to_owned(), "1".to_owned()));
    assert_eq!(code(with(&head)), "0");
    head.push(("x-beyond".to_owned(), "1".to_owned()));
    assert_eq!(code(with(&head)), "8", "resource exhausted");
    assert_eq!(code(with(&long(15 << 10))), "0");
    assert_eq!(code(with(&long(16 << 10))), "431");
    assert_eq!(code(target(8000)), "12", "unimplemented");
    assert_eq!(code(target(8200)), "8");
}

#[test]
fn beyond_this_machine_needs_tls_and_a_token() {
    let place = prepared();
    let token_flags = with_token(&place);
    let any = "0.0.0.0:0".parse().unwrap();
    let certificate = ["--tls_cert_file", &tls("server.pem"), "--tls_key_file", &tls("server.key")].map(str::to_owned);
    let refused = |more: &[&str], parts: &[&str]| {
        let mut command = Serving::command(&place, any, false, more);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill(); // it would serve for ever
        Ended::from(child.wait_with_output().unwrap()).fails(2, parts);
    };
    refused(&[], &["--listen", "--tls_cert_file"]);
    refused(&flags(&token_flags), &["--listen", "--tls_cert_file"]);
    refused(&flags(&certificate), &["--listen", "--token_file"]);
    let local = "127.0.0.1:0".parse().unwrap();
    for (more, parts) in [
        (vec!["--tls_cert_file", &certificate[1]], &["--tls_key_file"][..]),
        (vec!["--tls_key_file", &certificate[3]], &["--tls_cert_file"]),
        (vec!["--tls_cert_file", &certificate[3], "--tls_key_file", &certificate[3]], &["--tls_cert_file"]),
        (vec!["--tls_cert_file", &certificate[1], "--tls_key_file", &tls("client.key")], &["--tls_key_file"]),
        (vec!["--tls_client_ca_file", &certificate[1]], &["--tls_client_ca_file", "TLS"]),
        (vec!["--token_file", place.write("short", "abc\n").to_str().unwrap()], &["--token_file"]),
        (vec!["--dataset_dir", "a/b=c"], &["--dataset_dir", "NAME=DIR"]),
        (vec!["--train_file_dir", "d"], &["--train_file_dir", "--text_dir"]),
    ] {
        let mut command = Serving::command(&place, local, false, &more.iter().map(|word| &**word).collect::<Vec<_>>());
        if parts == ["--train_file_dir", "--text_dir"] {
            command.args(["--text_dir", "t=d"]);
        }
        run(&mut command).fails(2, parts);
    }
    let both = [certificate.to_vec(), token_flags].concat();
    let serving = Serving::at(&place, any, false, &flags(&both));
    let mut allowed = access(&format!("grpcs://localhost:{}/data", serving.address.port()));
    allowed.ca_file = Some(tls("ca.pem").into());
    let denied = Service::open(Connection::new(&allowed).unwrap(), None).unwrap_err().to_string();
    assert!(denied.contains("--data_service_token_file"), "{denied}");
    allowed.token_file = Some(place.path("tokens"));
    Service::open(Connection::new(&allowed).unwrap(), None).unwrap();
}

#[test]
fn certificates_that_are_wrong_are_refused_by_either_side() {
    let place = prepared();
    let serve = |certificate: &str, more: &[&str]| {
        let [pem, key] = ["pem", "key"].map(|kind| tls(&format!("{certificate}.{kind}")));
        Serving::start(&place, false, &[&["--tls_cert_file", &pem, "--tls_key_file", &key], more].concat())
    };
    let open = |serving: &Serving, change: &dyn Fn(&mut Access)| {
        let mut access = access(&format!("grpcs://localhost:{}/data", serving.address.port()));
        access.patience = Duration::from_secs(2);
        access.ca_file = Some(tls("ca.pem").into());
        change(&mut access);
        Connection::new(&access)
            .and_then(|connection| Service::open(connection, None))
            .map_err(|error| error.to_string())
    };
    // The trainer refuses the service.
    for certificate in ["expired", "not_yet", "wrong_name", "wrong_purpose", "stranger"] {
        let began = Instant::now();
        let error = open(&serve(certificate, &[]), &|_| {}).unwrap_err();
        assert!(error.contains("certificate"), "{certificate}: {error}");
        assert!(began.elapsed() < Duration::from_secs(2), "it is not waited for another one");
    }
    let of_itself = |access: &mut Access| access.ca_file = Some(tls("self_signed.pem").into());
    let error = open(&serve("self_signed", &[]), &of_itself).unwrap_err();
    assert!(error.contains("CA:FALSE"), "{error}");
    let serving = serve("server", &[]);
    open(&serving, &|_| {}).unwrap();
    let error = open(&serving, &|access| access.ca_file = Some(tls("other_ca.pem").into())).unwrap_err();
    assert!(error.contains("--data_service_ca_file"), "{error}");
    assert!(open(&serving, &|access| access.ca_file = None).is_err(), "nobody that browsers trust has signed it");
    let plain = format!("grpc://localhost:{}/data", serving.address.port());
    assert!(open(&serving, &|access| (access.address, access.ca_file) = (plain.clone(), None)).is_err());
    // The service refuses the trainer.
    let serving = serve("server", &["--tls_client_ca_file", &tls("ca.pem")]);
    let identity = |certificate: &str| {
        let [pem, key] = ["pem", "key"].map(|kind| tls(&format!("{certificate}.{kind}")));
        move |access: &mut Access| {
            (access.cert_file, access.key_file) = (Some(pem.clone().into()), Some(key.clone().into()));
        }
    };
    assert!(open(&serving, &|_| {}).is_err());
    for certificate in ["expired", "not_yet", "wrong_purpose", "stranger", "server"] {
        assert!(open(&serving, &identity(certificate)).is_err(), "{certificate}");
    }
    open(&serving, &identity("client")).unwrap();
}

#[test]
fn only_tls_1_2_and_1_3_are_spoken() {
    let place = prepared();
    let [pem, key] = ["pem", "key"].map(|kind| tls(&format!("server.{kind}")));
    let serving = Serving::start(&place, false, &["--tls_cert_file", &pem, "--tls_key_file", &key]);
    // A hello of TLS 1.0 or 1.1, without extensions: record, handshake, version, random, no session, suites, no compression.
    for minor in [1, 2] {
        let mut hello = vec![3, minor];
        hello.extend([7; 32]);
        hello.extend([0, 0, 6, 0xc0, 0x2b, 0xc0, 0x09, 0xc0, 0x13, 1, 0]);
        let mut record = vec![22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
        record.extend(hello);
        let mut stream = TcpStream::connect(serving.address).unwrap();
        stream.write_all(&record).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = [0; 7];
        std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
        assert_eq!(answer[0], 21, "an alert, for version 3.{minor}");
    }
    let openssl = |version: &str| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &serving.address.to_string(), version, "-CAfile", &tls("ca.pem")]);
        command.args(["-alpn", "h2", "-brief"]).stdin(Stdio::null());
        command.output().ok().map(|output| output.status.success())
    };
    // Where there is no openssl only what is refused is seen.
    for version in ["-tls1_2", "-tls1_3"] {
        assert!(openssl(version).unwrap_or(true), "{version}");
    }
}

#[test]
fn a_flood_of_connections_stays_outside_and_goes_away() {
    let place = prepared();
    let serving = Serving::start(&place, false, &["--max_connections", "40", "--max_connections_per_peer", "30"]);
    let before = serving.memory();
    let mut flood: Vec<TcpStream> = Vec::new();
    for _ in 0..1000 {
        flood.push(TcpStream::connect(serving.address).unwrap());
    }
    let refused = |flood: &mut Vec<TcpStream>| {
        let mut closed = 0;
        for stream in flood.iter_mut() {
            stream.set_nonblocking(true).unwrap();
            closed += usize::from(matches!(std::io::Read::read(stream, &mut [0]), Ok(0)));
        }
        closed
    };
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(refused(&mut flood), 970, "30 of one address are let in");
    let grown = serving.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    drop(flood);
    let began = Instant::now();
    let service = serving.service("data", None);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(service.description.splits.len() == 2);
    let statistics = statistics(&serving, None);
    assert!(statistics["connections_beyond_limit"].as_u64().unwrap() >= 970, "{statistics}");
}
