//! Requests to a hub. The token goes to the endpoint and nowhere else, and into no message.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::Response;

use crate::{Error, Result};

/// A listing beyond this is not one.
const JSON_LIMIT: u64 = 64 << 20;

/// Redirections followed: a renamed repository, and the store of large files.
const REDIRECTIONS: usize = 5;

/// Time to connect, to begin an answer, and between two pieces of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody answered, or not in time.
    Unreachable(String),
    /// An answer with this status.
    Status(u16),
    /// An answer that makes no sense.
    Strange(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) => f.write_str(reason),
            Self::Status(status) => write!(f, "the server answered with status {status}"),
            Self::Strange(what) => write!(f, "the server answered {what}"),
        }
    }
}

/// A client of one endpoint.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// An answer and where it was found.
pub(super) type Answer = Response<ureq::Body>;

impl Client {
    pub fn new(endpoint: String, token: Option<String>) -> Result<Self> {
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        if authority(&endpoint).is_none() {
            return Err(Error::config("HF_ENDPOINT", format!("{endpoint:?} is no http:// or https:// address")));
        }
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::config("HF_TOKEN", "holds something that no token does; set it again"));
        }
        // Proxies are those of the environment: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("tokenmill/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into(), endpoint, token })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The address of a path below the endpoint.
    pub fn address(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    pub fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self.get(&self.address(path), None)?;
        if answer.status().as_u16() != 200 {
            return Err(Failure::Status(answer.status().as_u16()));
        }
        let mut bytes = Vec::new();
        let read = answer.into_body().into_reader().take(JSON_LIMIT).read_to_end(&mut bytes);
        read.map_err(|error| Failure::Unreachable(format!("{} broke off ({error})", self.endpoint)))?;
        serde_json::from_slice(&bytes).map_err(|error| Failure::Strange(format!("no JSON of a hub ({error})")))
    }

    /// What is at `address`, from byte `from` on; redirections are followed.
    pub fn get(&self, address: &str, from: Option<u64>) -> Result<Answer, Failure> {
        let mut address = address.to_owned();
        for _ in 0..=REDIRECTIONS {
            let answer = self.request(false, &address, from)?;
            match next(&address, &answer)? {
                Some(redirected) => address = redirected,
                None => return Ok(answer),
            }
        }
        Err(Failure::Strange(format!("with more than {REDIRECTIONS} redirections")))
    }

    /// The headers of what is at `address`: those of the hub, not of the store it may send to.
    pub fn head(&self, address: &str) -> Result<Answer, Failure> {
        let mut address = address.to_owned();
        for _ in 0..=REDIRECTIONS {
            let answer = self.request(true, &address, None)?;
            match next(&address, &answer)? {
                Some(redirected)
                    if authority(&redirected) == authority(&address) && header(&answer, "x-linked-etag").is_none() =>
                {
                    address = redirected;
                }
                _ => return Ok(answer),
            }
        }
        Err(Failure::Strange(format!("with more than {REDIRECTIONS} redirections")))
    }

    fn request(&self, head: bool, address: &str, from: Option<u64>) -> Result<Answer, Failure> {
        let mut request = if head { self.agent.head(address) } else { self.agent.get(address) };
        // A compressed answer has another length and no ranges.
        request = request.header("Accept-Encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| authority(address) == authority(&self.endpoint)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from.filter(|from| *from > 0) {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let place = authority(address).unwrap_or_default();
        request.call().map_err(|error| Failure::Unreachable(format!("{place} cannot be reached ({error})")))
    }
}

/// A header as text.
pub(super) fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Where a redirection leads; `None` if the answer is none.
fn next(address: &str, answer: &Answer) -> Result<Option<String>, Failure> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let to = header(answer, "location").ok_or_else(|| Failure::Strange("with a redirection to nowhere".to_owned()))?;
    match (authority(to), to.starts_with('/'), authority(address)) {
        (Some(_), ..) => Ok(Some(to.to_owned())),
        (None, true, Some(place)) => Ok(Some(format!("{place}{to}"))),
        _ => Err(Failure::Strange("with a redirection to no address".to_owned())),
    }
}

/// `https://host:port` of an address.
fn authority(address: &str) -> Option<&str> {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"))?;
    let host = rest.split(['/', '?', '#']).next().filter(|host| !host.is_empty())?;
    Some(&address[..address.len() - rest.len() + host.len()])
}

/// One part of a path, percent-encoded.
pub(super) fn encode(part: &str) -> String {
    let mut encoded = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_encoded() {
        assert_eq!(authority("https://a.b:8/c?d"), Some("https://a.b:8"));
        assert_eq!(authority("http://a"), Some("http://a"));
        for none in ["ftp://a", "https://", "/a", "a.b"] {
            assert_eq!(authority(none), None, "{none}");
        }
        assert_eq!(encode("refs/convert/a b+磨"), "refs%2Fconvert%2Fa%20b%2B%E7%A3%A8");
        assert!(Client::new("huggingface.co".to_owned(), None).is_err());
        let error = Client::new("https://a".to_owned(), Some("hf_x\n".to_owned())).err().unwrap().to_string();
        assert!(!error.contains("hf_x"), "{error}");
    }
}
