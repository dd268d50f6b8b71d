//! HTTP exchanges with one etcd server.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::tls::Tls;
use super::wire::{self, WireError};

/// A server that does not answer for so long is no use.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Largest answer that is read. A lease takes some 300 bytes.
pub(super) const MOST_BYTES: usize = 16 * 1024 * 1024;

/// Address of an etcd server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
    is_secure: bool,
}

/// Why a text is no address of an etcd server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no address of an etcd server; write it as http://host:2379 or https://host:2379"
)]
pub struct EndpointError {
    found: String,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || EndpointError {
            found: text.chars().take(128).collect(),
        };
        let (is_secure, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else {
            (false, text.strip_prefix("http://").ok_or_else(refused)?)
        };
        let authority: hyper::http::uri::Authority =
            rest.trim_end_matches('/').parse().map_err(|_| refused())?;
        let host = authority.host();
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(refused());
        }
        let port = match authority.port() {
            Some(port) => port.as_str().parse().map_err(|_| refused())?,
            None => 2379,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            is_secure,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "https" } else { "http" };
        write!(formatter, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// Name and password, where etcd asks for them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why etcd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No connection.
    #[error("cannot connect to etcd at {endpoint}")]
    Connect {
        /// The server.
        endpoint: Endpoint,
        /// Why not.
        source: io::Error,
    },
    /// The exchange broke.
    #[error("the connection to etcd at {endpoint} broke")]
    Exchange {
        /// The server.
        endpoint: Endpoint,
        /// Why.
        source: hyper::Error,
    },
    /// No answer.
    #[error("etcd at {endpoint} did not answer within {} s", ANSWER_DEADLINE.as_secs())]
    Deadline {
        /// The server.
        endpoint: Endpoint,
    },
    /// It refused.
    #[error("etcd at {endpoint} answered {status}: {text}")]
    Refused {
        /// The server.
        endpoint: Endpoint,
        /// HTTP status.
        status: u16,
        /// Its words.
        text: String,
    },
    /// The answer is not what this version expects.
    #[error("cannot read the answer of etcd at {endpoint}: {reason}; is it etcd 3.4 or later?")]
    Answer {
        /// The server.
        endpoint: Endpoint,
        /// What is wrong with it.
        reason: String,
    },
    /// The watch ended.
    #[error("etcd at {endpoint} ended the watch: {reason}")]
    Ended {
        /// The server.
        endpoint: Endpoint,
        /// Its words.
        reason: String,
    },
}

impl EtcdError {
    /// Whether changes that were asked for are no longer there.
    pub(super) fn is_compacted(&self) -> bool {
        matches!(self, Self::Refused { text, .. } if text.contains("has been compacted"))
    }
}

/// A connection to one server.
pub(super) struct Connection {
    endpoint: Endpoint,
    sender: SendRequest<Full<Bytes>>,
    token: Option<String>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects, and signs in where there are credentials.
    pub(super) async fn open(
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
        tls: Option<&Tls>,
    ) -> Result<Self, EtcdError> {
        let opened = tokio::time::timeout(ANSWER_DEADLINE, connect(endpoint, tls)).await;
        let (sender, driver) = opened.unwrap_or_else(|_| Err(Self::late(endpoint)))?;
        let mut connection = Self {
            endpoint: endpoint.clone(),
            sender,
            token: None,
            driver,
        };
        if let Some(Credentials { name, password }) = credentials {
            let body = wire::authenticate(name, password);
            let answer = connection.ask("/v3/auth/authenticate", body).await?;
            let token = wire::token(&answer);
            connection.token = Some(token.map_err(|error| connection.unreadable(&error))?);
        }
        Ok(connection)
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn ask(&mut self, path: &str, body: Vec<u8>) -> Result<Bytes, EtcdError> {
        let answered = tokio::time::timeout(ANSWER_DEADLINE, async {
            let answer = self.send(path, body).await?;
            self.whole(answer).await
        });
        answered
            .await
            .unwrap_or_else(|_| Err(Self::late(&self.endpoint)))
    }

    /// Sends a request whose answer has no end.
    pub(super) async fn stream(
        &mut self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Incoming, EtcdError> {
        let sent = tokio::time::timeout(ANSWER_DEADLINE, self.send(path, body)).await;
        Ok(sent
            .unwrap_or_else(|_| Err(Self::late(&self.endpoint)))?
            .into_body())
    }

    /// The server's answer, if it is a good one.
    async fn send(&mut self, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, EtcdError> {
        let mut request = Request::post(path)
            .header(
                header::HOST,
                format!("{}:{}", self.endpoint.host, self.endpoint.port),
            )
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request
            .body(Full::new(body.into()))
            .map_err(|error| EtcdError::Answer {
                endpoint: self.endpoint.clone(),
                reason: format!("its token is no header: {error}"),
            })?;
        let sent = self.sender.send_request(request).await;
        let answer = sent.map_err(|source| self.broken(source))?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let text = self.whole(answer).await?;
        Err(EtcdError::Refused {
            endpoint: self.endpoint.clone(),
            status,
            text: wire::refusal(&text),
        })
    }

    async fn whole(&self, answer: Response<Incoming>) -> Result<Bytes, EtcdError> {
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes)
            .map_err(|error| EtcdError::Answer {
                endpoint: self.endpoint.clone(),
                reason: error.to_string(),
            })
    }

    fn late(endpoint: &Endpoint) -> EtcdError {
        EtcdError::Deadline {
            endpoint: endpoint.clone(),
        }
    }

    pub(super) fn broken(&self, source: hyper::Error) -> EtcdError {
        EtcdError::Exchange {
            endpoint: self.endpoint.clone(),
            source,
        }
    }

    pub(super) fn unreadable(&self, error: &WireError) -> EtcdError {
        EtcdError::Answer {
            endpoint: self.endpoint.clone(),
            reason: error.to_string(),
        }
    }
}

async fn connect(
    endpoint: &Endpoint,
    tls: Option<&Tls>,
) -> Result<(SendRequest<Full<Bytes>>, JoinHandle<()>), EtcdError> {
    let refused = |source| EtcdError::Connect {
        endpoint: endpoint.clone(),
        source,
    };
    // An IPv6 address stands in brackets.
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, endpoint.port))
        .await
        .map_err(refused)?;
    let broken = |source| EtcdError::Exchange {
        endpoint: endpoint.clone(),
        source,
    };
    if endpoint.is_secure {
        let tls = tls.ok_or_else(|| refused(io::Error::other("no certificates are configured")))?;
        let stream = tls.wrap(host, stream).await.map_err(refused)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        Ok((sender, drive(connection)))
    } else {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        Ok((sender, drive(connection)))
    }
}

/// Runs a connection. Its errors also reach who waits for an answer.
fn drive(
    connection: impl Future<Output = Result<(), hyper::Error>> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move { drop(connection.await) })
}
