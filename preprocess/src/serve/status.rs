//! The status page and the metrics: what is served, who reads it, how far and how fast. Read-only, over HTTP/1.1, behind a
//! door of their own, so that neither a browser nor Prometheus speaks to the one of Flight.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, AUTHORIZATION, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use super::catalogue::Catalogue;
use super::door::{Counts, Door, Protocol, Refusal, Visit, chain};
use super::limits;
use super::statistics::Statistics;
use super::{metrics, page};

/// What is told.
pub struct Status {
    /// What is served.
    pub catalogue: Arc<Catalogue>,
    /// Who reads.
    pub statistics: Arc<Statistics>,
    /// What came to the door of Flight.
    pub counts: Arc<Counts>,
}

/// What every answer says: nothing may be fetched, run, framed or kept, so that not even a name that slipped through
/// unescaped could do anything.
const ALWAYS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONNECTION, "close"),
];

const TEXT: &str = "text/plain; charset=utf-8";

impl Protocol for Status {
    async fn connection<S>(door: &Door<Self>, stream: S, visit: Visit) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| {
            let answer = answer(door, request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut http = http1::Builder::new();
        // One request a connection, so that one deadline bounds all of it.
        http.timer(TokioTimer::new())
            .keep_alive(false)
            .header_read_timeout(visit.deadline.saturating_duration_since(Instant::now()))
            .max_buf_size(limits::HEAD_BYTES as usize)
            .max_headers(limits::HEADERS);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        match timeout_at(visit.deadline + limits::STATUS_ANSWER, connection).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.is_timeout() => Err(door.too_slow("no request came in time")),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(door.too_slow("the answer was not taken in time")),
        }
    }
}

/// Answers a request, of whose body nothing is read.
fn answer<B>(door: &Door<Status>, mut request: Request<B>) -> Response<Full<Bytes>> {
    if let Some(token) = request.headers().get(AUTHORIZATION).and_then(password) {
        request.headers_mut().insert(AUTHORIZATION, token);
    }
    let status = &door.protocol;
    let refused = |code, reason: &str| response(code, TEXT, format!("{reason}\n"));
    match door.judge(&request) {
        Some(Refusal::Head) => return refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large"),
        Some(Refusal::Token) => {
            let reason = "needs a token: a bearer token, or a password with any name";
            let mut answer = refused(StatusCode::UNAUTHORIZED, reason);
            let how = HeaderValue::from_static("Basic realm=\"tokenmill: any name, and a token as the password\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, how);
            return answer;
        }
        None => {}
    }
    door.counts.requests.fetch_add(1, Ordering::Relaxed);
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, "this is for reading; use GET");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match request.uri().path() {
        "/" => response(StatusCode::OK, "text/html; charset=utf-8", page::html(status)),
        "/metrics" => response(StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(status)),
        _ => refused(StatusCode::NOT_FOUND, "there are / and /metrics"),
    }
}

/// The password of a browser's `Basic` as the bearer token that it is: a browser asks for no other.
fn password(authorization: &HeaderValue) -> Option<HeaderValue> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    let pair = scheme.eq_ignore_ascii_case("Basic").then(|| BASE64.decode(encoded).ok())??;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    HeaderValue::from_bytes(&[b"Bearer ", &pair[colon + 1..]].concat()).ok()
}

fn response(code: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.extend(ALWAYS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    answer
}
