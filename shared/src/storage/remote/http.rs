//! The requests of `object_store` by the HTTP client that hubs are asked with.

use std::io::Read;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use ureq::Agent;

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
        let config = Agent::config_builder()
            .https_only(!allows_http)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("tokenmill/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(HttpClient::new(Client(config.into())))
    }
}

#[derive(Debug)]
struct Client(Agent);

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let agent = self.0.clone();
        let answer = tokio::task::spawn_blocking(move || send(&agent, request)).await;
        answer.unwrap_or_else(|panicked| Err(HttpError::new(HttpErrorKind::Unknown, panicked)))
    }
}

fn send(agent: &Agent, request: HttpRequest) -> Result<HttpResponse, HttpError> {
    let (parts, body) = request.into_parts();
    let has_body = body.content_length() > 0 || ["PUT", "POST"].contains(&parts.method.as_str());
    let answer = if has_body {
        let pieces = body.as_bytes().map(|bytes| bytes.to_vec()).unwrap_or_default();
        agent.run(ureq::http::Request::from_parts(parts, pieces))
    } else {
        agent.run(ureq::http::Request::from_parts(parts, ()))
    };
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
