//! `preprocess serve`: prepared datasets, text that is prepared as it is read, and tokenizing, over Arrow Flight.
//!
//! ```text
//! door (limits, TLS, token) ─▶ flight (the calls) ─▶ stream (blocks of a ticket)    ◀─ catalogue (what is served)
//!                                                 └▶ exchange (text in, ids out)
//! ```
//! The service keeps no state of its readers: a [ticket](tokenmill_shared::service::Ticket) is all of it. What waits for a
//! reader that takes nothing is bounded: [`limits`] says by what.

pub mod arguments;
mod catalogue;
mod door;
mod exchange;
mod flight;
pub mod limits;
mod log;
mod message;
mod stall;
mod statistics;
mod stream;
mod tls;
mod token;

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use hyper::Request;
use hyper::body::Incoming;
use serde_json::json;
use tokenmill_shared::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::codegen::Service;

pub use arguments::ServeArguments;

use self::catalogue::Catalogue;
use self::door::{Counts, Door, Handler};
use self::flight::Flight;
use self::log::log;
use self::statistics::Statistics;
use self::token::Tokens;

/// Serves what `arguments` name until SIGTERM or SIGINT.
///
/// # Errors
/// Flags that contradict each other, something that cannot be opened, an address that is taken.
pub fn serve(arguments: &ServeArguments) -> Result<()> {
    arguments.check_exposure()?;
    let tls = tls::configuration(arguments, &["h2"])?;
    let tokens = arguments.token_file.as_deref().map(Tokens::read).transpose()?;
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
    tokens: Option<Tokens>,
    catalogue: Arc<Catalogue>,
) -> Result<()> {
    let no_signals = |error| Error::config("serve", format!("cannot wait for signals ({error})"));
    let mut terminated = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let (stop, stopping) = watch::channel(false);
    let [live, streams, cores] = flight::semaphores();
    let counts = Arc::new(Counts::default());
    let flight = Flight {
        catalogue: Arc::clone(&catalogue),
        statistics: Arc::new(Statistics::default()),
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
    let scheme = if tls.is_some() { "grpcs" } else { "grpc" };
    let door = Arc::new(Door {
        tls,
        tokens,
        max_connections: arguments.max_connections,
        max_connections_per_peer: arguments.max_connections_per_peer,
        handler,
        counts,
    });
    let listener = door::bind("--listen", arguments.listen).await?;
    let address = listener.local_addr().unwrap_or(arguments.listen);
    let names: Vec<&str> = catalogue.iter().map(|served| served.name.as_str()).collect();
    log(
        "serving",
        json!({"at": format!("{scheme}://{address}"), "datasets": names, "token": arguments.token_file.is_some()}),
    );
    let open = tokio::spawn(door.serve(listener, stopping));
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    log("stopping", json!({}));
    let _ = stop.send(true);
    let _ = open.await;
    log("stopped", json!({}));
    Ok(())
}
