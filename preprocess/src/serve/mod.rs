//! `preprocess serve`: prepared datasets, text that is prepared as it is read, and tokenizing, over Arrow Flight.
//!
//! ```text
//! door (limits, TLS, token) ─▶ http2 ─▶ flight (the calls) ─▶ stream (blocks of a ticket)    ◀─ catalogue (what is served)
//!                                                          └▶ exchange (text in, ids out)
//! another door ─▶ status (HTTP/1.1) ─▶ page, metrics                                         ◀─ statistics
//! ```
//! The service keeps no state of its readers: a [ticket](tokenmill_shared::service::Ticket) is all of it. What waits for a
//! reader that takes nothing is bounded: [`limits`] says by what.

pub mod arguments;
mod catalogue;
mod door;
mod exchange;
mod flight;
mod http2;
pub mod limits;
mod log;
mod message;
mod metrics;
mod page;
mod stall;
mod statistics;
mod status;
mod stream;
mod tls;
mod token;

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use hyper::Request;
use hyper::body::Incoming;
use serde_json::json;
use tokenmill_shared::{Error, Result};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::codegen::Service;

pub use arguments::ServeArguments;

use self::catalogue::Catalogue;
use self::door::{Counts, Door};
use self::flight::Flight;
use self::http2::{Handler, Http2};
use self::log::log;
use self::statistics::Statistics;
use self::status::Status;
use self::token::Tokens;

/// Serves what `arguments` name until SIGTERM or SIGINT.
///
/// # Errors
/// Flags that contradict each other, something that cannot be opened, an address that is taken.
pub fn serve(arguments: &ServeArguments) -> Result<()> {
    arguments.check_exposure()?;
    let tls = tls::configuration(arguments, &["h2"])?;
    let tokens = arguments.token_file.as_deref().map(Tokens::read).transpose()?.map(Arc::new);
    let catalogue = Arc::new(Catalogue::open(arguments)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tokenmill-serve")
        .build()
        .map_err(|error| Error::config("serve", format!("cannot start threads ({error})")))?;
    let served = runtime.block_on(run(arguments, tls, tokens, catalogue));
    // What still reads for a stream that was cut off is not waited for.
    runtime.shutdown_background();
    served
}

async fn run(
    arguments: &ServeArguments,
    tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    tokens: Option<Arc<Tokens>>,
    catalogue: Arc<Catalogue>,
) -> Result<()> {
    let no_signals = |error| Error::config("serve", format!("cannot wait for signals ({error})"));
    let mut terminated = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let (stop, stopping) = watch::channel(false);
    let [live, streams, cores] = flight::semaphores();
    let counts = Arc::new(Counts::default());
    let statistics = Arc::new(Statistics::default());
    let flight = Flight {
        catalogue: Arc::clone(&catalogue),
        statistics: Arc::clone(&statistics),
        counts: Arc::clone(&counts),
        stopping: stopping.clone(),
        live,
        streams,
        cores,
    };
    let calls = FlightServiceServer::new(flight).max_decoding_message_size(limits::MESSAGE_BYTES);
    let handler: Handler = Arc::new(move |request: Request<Incoming>| {
        let mut calls = calls.clone();
        Box::pin(async move { calls.call(request).await.unwrap_or_else(|never| match never {}) })
    });
    let (scheme, http) = if tls.is_some() { ("grpcs", "https") } else { ("grpc", "http") };
    let names: Vec<&str> = catalogue.iter().map(|served| served.name.as_str()).collect();
    let mut serving = json!({"datasets": names, "token": arguments.token_file.is_some()});
    let listener = door::bind("--listen", arguments.listen).await?;
    serving["at"] = address_of(&listener, scheme).into();
    let mut doors = JoinSet::new();
    if let Some(address) = arguments.status_listen {
        let listener = door::bind("--status_listen", address).await?;
        serving["status"] = address_of(&listener, http).into();
        let door = Door {
            tls: tls::configuration(arguments, &["http/1.1"])?,
            tokens: tokens.clone(),
            max_connections: limits::STATUS_CONNECTIONS.0,
            max_connections_per_peer: limits::STATUS_CONNECTIONS.1,
            counts: Arc::default(),
            protocol: Status { catalogue: Arc::clone(&catalogue), statistics, counts: Arc::clone(&counts) },
        };
        doors.spawn(Arc::new(door).serve(listener, stopping.clone()));
    }
    let door = Door {
        tls,
        tokens,
        max_connections: arguments.max_connections,
        max_connections_per_peer: arguments.max_connections_per_peer,
        counts,
        protocol: Http2(handler),
    };
    doors.spawn(Arc::new(door).serve(listener, stopping));
    log("serving", serving);
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    log("stopping", json!({}));
    let _ = stop.send(true);
    while doors.join_next().await.is_some() {}
    log("stopped", json!({}));
    Ok(())
}

fn address_of(listener: &TcpListener, scheme: &str) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |address| format!("{scheme}://{address}"))
}
