//! Client of the agent's control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// The agent answers from memory; one that does not is stuck.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("cannot reach the agent at {socket}; is it running, and is this user root?")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The exchange broke.
    #[error("cannot ask the agent for {path}")]
    Exchange {
        /// What was asked for.
        path: String,
        /// Why not.
        source: hyper::Error,
    },
    /// The agent did not answer in time.
    #[error("the agent did not answer within {} s", ANSWER_DEADLINE.as_secs())]
    Deadline,
    /// The agent refused.
    #[error("the agent answered {status}: {text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        text: String,
    },
    /// The answer is not what this version expects.
    #[error("cannot read the agent's answer; do the agent and this program have the same version?")]
    Answer(#[from] serde_json::Error),
    /// The runtime cannot start.
    #[error("cannot start the client")]
    Runtime(#[source] io::Error),
}

/// Asks the agent at `socket` for `path`.
pub(super) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClientError::Runtime)?;
    let body = runtime.block_on(async {
        let answer = tokio::time::timeout(ANSWER_DEADLINE, fetch(socket, path));
        answer.await.unwrap_or(Err(ClientError::Deadline))
    })?;
    Ok(serde_json::from_slice(&body)?)
}

/// Whether an agent answers at `socket`.
pub(super) fn is_served(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

async fn fetch(socket: &Path, path: &str) -> Result<Bytes, ClientError> {
    let exchange = |source| ClientError::Exchange {
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(exchange)?;
    let driver = tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, "towpath")
        .body(Empty::<Bytes>::new())
        .expect("our paths are valid");
    let response = sender.send_request(request).await.map_err(exchange)?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(exchange)?
        .to_bytes();
    driver.abort();
    if status.is_success() {
        return Ok(body);
    }
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    Err(ClientError::Refused {
        status: status.as_u16(),
        text,
    })
}
