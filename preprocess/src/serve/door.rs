//! The door: who may come in, how many, and for how long.
//!
//! tonic's and hyper's own loops have no limit on connections, none on the time to a first request, and none on a peer
//! that takes nothing, so this one accepts. In order: connections are counted, TLS is spoken, a request's head is measured
//! and its token compared; only then is a byte of its body read. What is spoken behind it is a [`Protocol`]'s.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::header::AUTHORIZATION;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::limits;
use super::log::log;
use super::stall::WriteStall;
use super::token::Tokens;

/// What is let in.
pub struct Door<P> {
    /// How TLS is spoken, if it is.
    pub tls: Option<Arc<ServerConfig>>,
    /// Tokens of which a request must bring one, if it must.
    pub tokens: Option<Arc<Tokens>>,
    /// Connections at a time.
    pub max_connections: usize,
    /// Connections at a time from one address.
    pub max_connections_per_peer: usize,
    /// What came and went.
    pub counts: Arc<Counts>,
    /// What is spoken behind it.
    pub protocol: P,
}

/// What is spoken with those who are let in.
pub trait Protocol: Send + Sync + Sized + 'static {
    /// One connection to its end; the reason, if it is cut off.
    fn connection<S>(door: &Door<Self>, stream: S, visit: Visit) -> impl Future<Output = Result<(), String>> + Send
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static;
}

/// Who came, and for how long.
#[derive(Debug, Clone)]
pub struct Visit {
    /// From where.
    pub peer: SocketAddr,
    /// When the first whole request must have come.
    pub deadline: Instant,
    /// True when the service ends.
    pub stopping: watch::Receiver<bool>,
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its head is too large.
    Head,
    /// It brings no valid token.
    Token,
}

/// What came and went at a door.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that are open.
    pub open: AtomicUsize,
    /// Connections that were let in.
    pub accepted: AtomicU64,
    /// Connections beyond a limit, closed at once.
    pub beyond_limit: AtomicU64,
    /// Connections closed because the peer was too slow.
    pub too_slow: AtomicU64,
    /// Requests without a valid token.
    pub without_token: AtomicU64,
    /// Requests that were answered.
    pub requests: AtomicU64,
    peers: Mutex<HashMap<IpAddr, usize>>,
}

impl Counts {
    fn peers(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `peer`, unless there is none.
    fn place<P>(self: &Arc<Self>, peer: IpAddr, door: &Door<P>) -> Option<Place> {
        let peer = prefix(peer);
        let mut peers = self.peers();
        let of_peer = peers.get(&peer).copied().unwrap_or(0);
        if self.open.load(Ordering::Relaxed) >= door.max_connections || of_peer >= door.max_connections_per_peer {
            self.beyond_limit.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        peers.insert(peer, of_peer + 1);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Place { counts: Arc::clone(self), peer })
    }
}

/// Who has an IPv6 address has the 2^64 that share its prefix.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

/// A connection that is counted, until it is dropped.
struct Place {
    counts: Arc<Counts>,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        let mut peers = self.counts.peers();
        match peers.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(peers.remove(&self.peer)),
        }
    }
}

impl<P: Protocol> Door<P> {
    /// Lets in whoever comes, until `stopping` says otherwise; then waits until those who are in have ended, at most
    /// [`limits::DRAIN`].
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => break,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Dropped, it is closed.
                    let Some(place) = self.counts.place(peer.ip(), &self) else { continue };
                    let deadline = Instant::now() + limits::FIRST_REQUEST;
                    let (door, visit) = (Arc::clone(&self), Visit { peer, deadline, stopping: stopping.clone() });
                    connections.spawn(async move {
                        door.connection(stream, visit).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file handles, for one: those who are in go on, and later there are some again.
                    log("accept_failed", json!({"reason": error.to_string()}));
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let ended = timeout(limits::DRAIN, async { while connections.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            log("cut_off", json!({"connections": connections.len()}));
        }
    }

    async fn connection(&self, stream: TcpStream, visit: Visit) {
        // Messages are written whole; waiting to fill a packet would only delay them.
        let _ = stream.set_nodelay(true);
        let (stream, peer, deadline) = (WriteStall::new(stream), visit.peer, visit.deadline);
        let ended = match &self.tls {
            None => P::connection(self, stream, visit).await,
            Some(config) => match timeout_at(deadline, TlsAcceptor::from(Arc::clone(config)).accept(stream)).await {
                Ok(Ok(stream)) => P::connection(self, stream, visit).await,
                Ok(Err(error)) => Err(format!("TLS: {error}")),
                Err(_) => Err(self.too_slow("TLS was not spoken in time")),
            },
        };
        if let Err(reason) = ended {
            log("connection_ended", json!({"peer": peer.to_string(), "reason": reason}));
        }
    }

    /// Counts a connection that is cut off for `reason`.
    pub fn too_slow(&self, reason: &str) -> String {
        self.counts.too_slow.fetch_add(1, Ordering::Relaxed);
        reason.to_owned()
    }

    /// Whether the head of a request has the right size and a token; its refusal, if not.
    pub fn judge<B>(&self, request: &Request<B>) -> Option<Refusal> {
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if request.headers().len() > limits::HEADERS || target > limits::TARGET_BYTES {
            return Some(Refusal::Head);
        }
        let tokens = self.tokens.as_ref()?;
        let mut given = request.headers().get_all(AUTHORIZATION).iter();
        let admitted = given.next().is_some_and(|value| tokens.admit(value.as_bytes())) && given.next().is_none();
        if admitted {
            return None;
        }
        self.counts.without_token.fetch_add(1, Ordering::Relaxed);
        Some(Refusal::Token)
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Binds `address`.
pub async fn bind(flag: &str, address: SocketAddr) -> tokenmill_shared::Result<TcpListener> {
    let listener: io::Result<TcpListener> = TcpListener::bind(address).await;
    listener.map_err(|error| {
        tokenmill_shared::Error::config(flag, format!("{address}: {error}; choose another address or port"))
    })
}
