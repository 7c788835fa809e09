//! The requests of `object_store` by the HTTP client that hubs are asked with.

use std::io::Read;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use ureq::Agent;
use ureq::http::request::Parts;
use ureq::http::{Method, Request};

/// Time to connect, to begin an answer, and between two pieces of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer beyond this is none to what is asked: a window, or a page of a listing.
const ANSWER_LIMIT: u64 = 1 << 30;

/// Makes clients.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        Ok(HttpClient::new(Client(agent(allows_http))))
    }
}

fn agent(allows_http: bool) -> Agent {
    let config = Agent::config_builder()
        .https_only(!allows_http)
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .timeout_per_write(Some(PATIENCE))
        .user_agent(concat!("tokenmill/", env!("CARGO_PKG_VERSION")))
        .build();
    config.into()
}

/// What is at an address that is signed already. Others of the store were asked before, so its scheme is allowed.
pub(super) async fn get(url: String) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let request = Request::get(&url).body(Bytes::new().into())?;
    let answer = Client(agent(true)).call(request).await?;
    let status = answer.status();
    let answer = answer.into_body().bytes().await?;
    // The address has a signature: it is not for messages.
    if status.is_success() { Ok(answer) } else { Err(format!("the store answered {status}").into()) }
}

#[derive(Debug)]
struct Client(Agent);

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let agent = self.0.clone();
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let answer = tokio::task::spawn_blocking(move || send(&agent, parts, &body)).await;
        answer.unwrap_or_else(|panicked| Err(HttpError::new(HttpErrorKind::Unknown, panicked)))
    }
}

fn send(agent: &Agent, parts: Parts, body: &[u8]) -> Result<HttpResponse, HttpError> {
    let has_body = !body.is_empty() || [Method::PUT, Method::POST].contains(&parts.method);
    let answer =
        if has_body { agent.run(Request::from_parts(parts, body)) } else { agent.run(Request::from_parts(parts, ())) };
    let (parts, body) = answer.map_err(failed)?.into_parts();
    let mut bytes = Vec::new();
    let read = body.into_reader().take(ANSWER_LIMIT).read_to_end(&mut bytes);
    read.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))?;
    Ok(HttpResponse::from_parts(parts, Bytes::from(bytes).into()))
}

fn failed(error: ureq::Error) -> HttpError {
    let kind = match &error {
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Io(_) => HttpErrorKind::Connect,
        _ => HttpErrorKind::Request,
    };
    HttpError::new(kind, error)
}
