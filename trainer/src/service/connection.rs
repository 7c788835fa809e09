//! The connection to the service: address, security, and patience.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket as FlightTicket};
use serde_json::{Value, json};
use tokenmill_shared::service::{Description, Ticket};
use tokenmill_shared::{Error, Result, storage};
use tokio::runtime::Runtime;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};

/// What a stream may have in flight: four of the service's batches, so that the next is there when one is used up.
const STREAM_WINDOW: u32 = 1 << 20;

/// The largest message that is taken: a block of the largest size and its note.
const MESSAGE_BYTES: usize = 64 << 20;

/// Bytes of a frame; the service's batches then are one each.
const FRAME_BYTES: u32 = 512 << 10;

/// A token or certificate is not larger.
const FILE_BYTES: u64 = 1 << 20;

/// The wait after the first failure; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// See [`FIRST_WAIT`].
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What it takes to speak to a service, as it was said.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// `grpc://host:port/name` or `grpcs://host:port/name`.
    pub address: String,
    /// The file that holds the token.
    pub token_file: Option<PathBuf>,
    /// Who signs the service's certificate, if not one of those that browsers trust.
    pub ca_file: Option<PathBuf>,
    /// This client's own certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// How long a service that does not answer is waited for.
    pub patience: Duration,
}

/// A service, and what it is asked for.
pub struct Connection {
    address: String,
    name: String,
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
    patience: Duration,
    runtime: Runtime,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connection {
    /// Resolves `access`; speaks to nobody yet.
    ///
    /// # Errors
    /// An address that is none, or a file that does not hold what it should.
    pub fn new(access: &Access) -> Result<Self> {
        let (secure, authority, name) = parts(&access.address)?;
        let scheme = if secure { "https" } else { "http" };
        let wrong = |error: &dyn fmt::Display| Error::config("--data_service", format!("{}: {error}", access.address));
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"))
            .map_err(|error| wrong(&error))?
            .connect_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(4 * STREAM_WINDOW)
            .max_frame_size(FRAME_BYTES);
        if secure {
            endpoint = endpoint.tls_config(tls(access)?).map_err(|error| wrong(&error))?;
        } else if access.ca_file.is_some() || access.cert_file.is_some() {
            return Err(Error::config("--data_service", "is grpc://, and certificates are for grpcs://; use that"));
        }
        let authorization = access.token_file.as_deref().map(authorization).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tokenmill-service")
            .enable_all()
            .build()
            .map_err(|error| Error::config("--data_service", format!("cannot start a thread ({error})")))?;
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        let (address, patience) = (access.address.clone(), access.patience);
        Ok(Self { address, name, channel, authorization, patience, runtime })
    }

    /// What the service is asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The error of what came from this service.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::remote(format!("--data_service {}", self.address), reason)
    }

    fn client(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    /// What is known of what `ticket` names.
    pub fn describe(&self, ticket: &Ticket) -> Result<Description> {
        let descriptor = FlightDescriptor::new_cmd(ticket.to_bytes());
        let info = self.ask(|| {
            let (mut client, request) = (self.client(), self.request(descriptor.clone()));
            async move { client.get_flight_info(request).await }
        })?;
        let described = serde_json::from_slice(&info.into_inner().app_metadata);
        described.map_err(|error| self.error(format!("its description cannot be read ({error}); is it tokenmill's?")))
    }

    /// The tokenizer's files: names and bytes.
    pub fn tokenizer(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let broken = || self.error("its tokenizer cannot be read; is it tokenmill's?");
        let file = |body: Vec<u8>| {
            let end = body.iter().position(|byte| *byte == b'\n')?;
            let head: Value = serde_json::from_slice(&body[..end]).ok()?;
            let name = head["name"].as_str()?;
            // A file of the tokenizer's directory, and no path.
            let plain = !name.contains(['/', '\\']) && !name.starts_with('.') && !name.is_empty();
            plain.then(|| (name.to_owned(), body[end + 1..].to_vec()))
        };
        let bodies = self.action("tokenizer", json!({"dataset": self.name}))?;
        bodies.into_iter().map(|body| file(body).ok_or_else(broken)).collect()
    }

    /// The results of an action.
    fn action(&self, name: &str, body: Value) -> Result<Vec<Vec<u8>>> {
        self.ask(|| {
            let request = self.request(Action { r#type: name.to_owned(), body: body.to_string().into() });
            let mut client = self.client();
            async move {
                let mut results = client.do_action(request).await?.into_inner();
                let mut bodies = Vec::new();
                while let Some(result) = results.message().await? {
                    bodies.push(result.body.to_vec());
                }
                Ok(bodies)
            }
        })
    }

    /// Asks once for the stream of `ticket`.
    pub fn open(&self, ticket: &Ticket) -> Result<Streaming<FlightData>, Status> {
        let request = self.request(FlightTicket::new(ticket.to_bytes()));
        let mut client = self.client();
        self.runtime.block_on(async move { Ok(client.do_get(request).await?.into_inner()) })
    }

    /// The next message of a stream.
    pub fn message(&self, stream: &mut Streaming<FlightData>) -> Result<Option<FlightData>, Status> {
        self.runtime.block_on(stream.message())
    }

    /// Asks until there is an answer, as long as patience lasts.
    fn ask<T, F: Future<Output = Result<T, Status>>>(&self, mut call: impl FnMut() -> F) -> Result<T> {
        let mut patience = Patience::default();
        loop {
            match self.runtime.block_on(call()) {
                Ok(answer) => return Ok(answer),
                Err(status) => self.wait(&mut patience, &status)?,
            }
        }
    }

    /// Waits a little longer than the time before; after an answer that would not change, or when patience is at its end,
    /// there is an error instead.
    pub fn wait(&self, patience: &mut Patience, status: &Status) -> Result<()> {
        let why = format!("{:?}: {}{}", status.code(), status.message(), cause(status));
        if !is_passing(status) {
            let remedy = match status.code() {
                _ if why.contains("CaUsedAsEndEntity") => {
                    "; the service has the certificate of an authority: make one with CA:FALSE, as its page says"
                }
                _ if why.contains("UnknownIssuer") => "; say who signed it with --data_service_ca_file",
                Code::Unauthenticated => "; give its token with --data_service_token_file",
                Code::FailedPrecondition => "; start anew, or serve the dataset that the run began with",
                _ => "",
            };
            return Err(self.error(format!("{why}{remedy}")));
        }
        let since = *patience.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.patience {
            let seconds = self.patience.as_secs_f64();
            let reason =
                format!("no answer in {seconds} s ({why}); start it, or wait longer with --data_service_timeout");
            return Err(self.error(reason));
        }
        let wait = patience.wait.map_or(FIRST_WAIT, |wait| (wait * 2).min(LONGEST_WAIT));
        if patience.wait.is_none() {
            eprintln!("{}: {why}; trying again", self.address);
        }
        patience.wait = Some(wait);
        std::thread::sleep(wait);
        Ok(())
    }
}

/// How often, and since when, it was waited for nothing.
#[derive(Debug, Default)]
pub struct Patience {
    since: Option<Instant>,
    wait: Option<Duration>,
}

/// Whether asking again may help: the service is away, or full, or the connection broke.
fn is_passing(status: &Status) -> bool {
    if cause(status).to_lowercase().contains("certificate") {
        return false; // it will not become a valid one
    }
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Unknown => true,
        // HTTP/2's own failures come as this, with their cause; the service's come without one.
        Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

fn cause(status: &Status) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Whether TLS is meant, `host:port`, and the name.
fn parts(address: &str) -> Result<(bool, &str, String)> {
    let wrong = || {
        let reason = format!("{address:?} is not grpc://HOST:PORT/NAME or grpcs://HOST:PORT/NAME");
        Error::config("--data_service", reason)
    };
    let (scheme, rest) = address.split_once("://").ok_or_else(wrong)?;
    let secure = match scheme {
        "grpc" => false,
        "grpcs" => true,
        _ => return Err(wrong()),
    };
    let (authority, name) = rest.split_once('/').ok_or_else(wrong)?;
    let has_port =
        authority.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !has_port || name.is_empty() || name.contains('/') {
        return Err(wrong());
    }
    Ok((secure, authority, name.to_owned()))
}

fn tls(access: &Access) -> Result<ClientTlsConfig> {
    let read = |path: &Path| storage::read_at_most(path, FILE_BYTES);
    let mut tls = ClientTlsConfig::new();
    tls = match &access.ca_file {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
        None => tls.with_webpki_roots(),
    };
    match (&access.cert_file, &access.key_file) {
        (None, None) => Ok(tls),
        (Some(certificate), Some(key)) => Ok(tls.identity(Identity::from_pem(read(certificate)?, read(key)?))),
        (Some(_), None) => Err(Error::config("--data_service_key_file", "is missing beside --data_service_cert_file")),
        (None, Some(_)) => Err(Error::config("--data_service_cert_file", "is missing beside --data_service_key_file")),
    }
}

/// The header with the token of the file at `path`: its first line.
fn authorization(path: &Path) -> Result<MetadataValue<Ascii>> {
    let bytes = storage::read_at_most(path, FILE_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let token = text.lines().map(str::trim).find(|line| !line.is_empty());
    let header = token.and_then(|token| format!("Bearer {token}").parse::<MetadataValue<Ascii>>().ok());
    let mut header = header.ok_or_else(|| {
        Error::config("--data_service_token_file", format!("{} holds no token; write it into it", path.display()))
    })?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_a_port_and_a_name() {
        assert_eq!(parts("grpc://localhost:8815/wiki").unwrap(), (false, "localhost:8815", "wiki".to_owned()));
        assert_eq!(parts("grpcs://[::1]:1/a.b").unwrap(), (true, "[::1]:1", "a.b".to_owned()));
        for wrong in [
            "",
            "localhost:8815/a",
            "http://h:1/a",
            "grpc://h/a",
            "grpc://h:x/a",
            "grpc://:1/a",
            "grpc://h:1",
            "grpc://h:1/a/b",
        ] {
            let error = parts(wrong).unwrap_err().to_string();
            assert!(error.contains("--data_service") && error.contains("grpcs://HOST:PORT/NAME"), "{error}");
        }
    }
}
