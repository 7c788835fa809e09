//! What one peer, and all of them together, can take.
//!
//! Every one of these is a constant with the reason beside it, but those that depend on how many readers there are.

use std::time::Duration;

/// From the connection to the first whole request, TLS included: slower is no client.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// A connection without a request is closed after this. A reader between epochs opens another one.
pub const IDLE: Duration = Duration::from_secs(30);

/// Bytes to a peer that takes none for this long: it is gone. HTTP/2 keeps taking when a stream is full.
pub const WRITE_STALL: Duration = Duration::from_secs(30);

/// A peer that answers no ping within [`PING_ANSWER`] of one of these is gone.
pub const PING: Duration = Duration::from_secs(10);

/// See [`PING`].
pub const PING_ANSWER: Duration = Duration::from_secs(20);

/// From a request's head to the head of its answer: an answer takes milliseconds, the rest waits for the body.
pub const REQUEST: Duration = Duration::from_secs(30);

/// A stream of which nothing is taken for this long ends; its reader goes on with a ticket. The longest optimizer step is
/// far below.
pub const STREAM_STALL: Duration = Duration::from_secs(600);

/// Time from SIGTERM to the end. Streams end at their next batch; ten seconds is what is promised.
pub const DRAIN: Duration = Duration::from_secs(9);

/// Requests at a time on one connection.
pub const STREAMS: u32 = 64;

/// All names and values of a request's head.
pub const HEAD_BYTES: u32 = 16 << 10;

/// Names in a request's head.
pub const HEADERS: usize = 64;

/// The path of a request.
pub const TARGET_BYTES: usize = 8 << 10;

/// Streams that a peer has reset and the service has not yet seen: a flood of resets ends the connection.
pub const PENDING_RESETS: usize = 32;

/// A message to the service: text of an exchange, above all.
pub const MESSAGE_BYTES: usize = 16 << 20;

/// Ids in one batch, unless one block is more: large enough that a message costs little beside its bytes, small enough
/// that a stream that stands still holds little.
pub const BATCH_BYTES: usize = 256 << 10;

/// What HTTP/2 takes of a stream before the peer does.
pub const SEND_BUFFER: usize = 512 << 10;

/// What a peer may send of a stream before the service takes it, and of all streams of a connection.
pub const WINDOW: (u32, u32) = (1 << 20, 4 << 20);

/// Connections to the status page at a time, and from one address: a browser or two and a Prometheus.
pub const STATUS_CONNECTIONS: (usize, usize) = (64, 16);

/// From the last moment for a request to the status page until its answer must have been taken: it is some kilobytes.
pub const STATUS_ANSWER: Duration = Duration::from_secs(10);

/// Streams of live text at a time: each has threads of its own and up to 128 MiB in flight.
pub const LIVE_STREAMS: usize = 16;
