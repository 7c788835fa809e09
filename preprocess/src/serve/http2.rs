//! HTTP/2, behind the door of Flight: how much a connection may ask for at a time, and when it has stood still too long.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, interval, timeout};
use tonic::Status;
use tonic::body::Body;

use super::door::{Door, Protocol, Refusal, Visit, chain};
use super::limits;
use super::stall::{OpenRequest, Requests, Verdict, WatchedBody};

/// Answers a request that was let in.
pub type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// Where a request comes from, among its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// HTTP/2, and who answers.
pub struct Http2(pub Handler);

impl Protocol for Http2 {
    async fn connection<S>(door: &Door<Self>, stream: S, visit: Visit) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Visit { peer, deadline, mut stopping } = visit;
        let requests = Arc::new(Requests::new(deadline));
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            let answer = answer(door, request, &requests);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(limits::PING)
            .keep_alive_timeout(limits::PING_ANSWER)
            .max_concurrent_streams(limits::STREAMS)
            .max_header_list_size(limits::HEAD_BYTES)
            .max_pending_accept_reset_streams(limits::PENDING_RESETS)
            .max_send_buf_size(limits::SEND_BUFFER)
            .initial_stream_window_size(limits::WINDOW.0)
            .initial_connection_window_size(limits::WINDOW.1);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut seconds = interval(Duration::from_secs(1));
        let mut leaving = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(|error| chain(&error)),
                _ = seconds.tick() => match requests.verdict(Instant::now()) {
                    Verdict::Stay => {}
                    Verdict::Leave if leaving => {}
                    Verdict::Leave => {
                        leaving = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Verdict::TooSlow(reason) => return Err(door.too_slow(reason)),
                },
                _ = stopping.wait_for(|stopping| *stopping), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Measures the head, compares the token, and only then has the rest read.
fn answer(
    door: &Door<Http2>,
    request: Request<Incoming>,
    requests: &Arc<Requests>,
) -> impl Future<Output = Response<WatchedBody>> + Send + use<> {
    let answer = match door.judge(&request) {
        Some(refusal) => {
            requests.refused();
            Err(status(refusal))
        }
        None => {
            door.counts.requests.fetch_add(1, Ordering::Relaxed);
            Ok((OpenRequest::new(requests), (door.protocol.0)(request)))
        }
    };
    async move {
        match answer {
            Err(refusal) => refusal.into_http().map(WatchedBody::refusal),
            Ok((open, answer)) => {
                let late = |_| Status::deadline_exceeded("the request was not sent in time").into_http();
                timeout(limits::REQUEST, answer).await.unwrap_or_else(late).map(|body| open.watch(body))
            }
        }
    }
}

fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Head => Status::resource_exhausted(format!(
            "a request has {} headers and a path of {} bytes at most",
            limits::HEADERS,
            limits::TARGET_BYTES
        )),
        Refusal::Token => Status::unauthenticated("needs a header: authorization: Bearer TOKEN"),
    }
}
