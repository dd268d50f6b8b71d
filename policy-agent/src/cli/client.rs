//! Client of the agent's control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// The agent answers from memory; one that does not is stuck.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an answer. Classes of a hundred thousand addresses take a twentieth of it.
const ANSWER_BYTES: usize = 64 << 20;

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
    /// The answer broke off.
    #[error("cannot read the agent's answer to {path}")]
    Body {
        /// What was asked for.
        path: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer does not end.
    #[error(
        "the answer to {path} has more than {limit} bytes; is it the agent that serves this socket?"
    )]
    TooLong {
        /// What was asked for.
        path: String,
        /// Bytes that are read of an answer.
        limit: usize,
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
    exchange(socket, path, None)
}

/// Tells the agent at `socket` what to do.
pub(super) fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ClientError> {
    exchange(socket, path, Some(serde_json::to_vec(body)?.into()))
}

fn exchange<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: Option<Bytes>,
) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClientError::Runtime)?;
    let body = runtime.block_on(async {
        let answer = tokio::time::timeout(ANSWER_DEADLINE, fetch(socket, path, body, ANSWER_BYTES));
        answer.await.unwrap_or(Err(ClientError::Deadline))
    })?;
    Ok(serde_json::from_slice(&body)?)
}

/// Whether an agent answers at `socket`.
pub(super) fn is_served(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

async fn fetch(
    socket: &Path,
    path: &str,
    body: Option<Bytes>,
    limit: usize,
) -> Result<Bytes, ClientError> {
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
    let request = match &body {
        None => hyper::Request::get(path),
        Some(_) => {
            hyper::Request::post(path).header(hyper::header::CONTENT_TYPE, "application/json")
        }
    };
    let request = request
        .header(hyper::header::HOST, "towpath")
        .body(Full::new(body.unwrap_or_default()))
        .expect("our paths are valid");
    let response = sender.send_request(request).await.map_err(exchange)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), limit).collect().await;
    let body = body.map_err(|source| {
        let path = path.to_owned();
        if source.is::<LengthLimitError>() {
            ClientError::TooLong { path, limit }
        } else {
            ClientError::Body { path, source }
        }
    })?;
    let body = body.to_bytes();
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What `fetch` makes of an answer with this body.
    fn fetched(body: &str, limit: usize) -> Result<Bytes, ClientError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
        let answer = format!("{head}{body}");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = BufReader::new(stream.try_clone().unwrap()).lines();
            request
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .for_each(drop);
            // Who has read enough hangs up.
            stream.write_all(answer.as_bytes()).ok();
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let fetched = runtime.block_on(fetch(&socket, "/classes", None, limit));
        server.join().unwrap();
        fetched
    }

    #[test]
    fn an_answer_is_read_up_to_a_limit() {
        assert_eq!(fetched("12345678", 8).unwrap(), "12345678");

        let error = fetched("123456789", 8).unwrap_err();

        assert!(
            matches!(error, ClientError::TooLong { limit: 8, .. }),
            "{error}"
        );
    }
}
