//! Local HTTP: probes and metrics on addresses that somebody asked for, control on a unix socket.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::liveness::Liveness;
use crate::readiness::Readiness;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A TCP address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The socket's directory or file cannot be made.
    #[error("cannot make the socket {path}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process answers on the socket.
    #[error("another process serves {path}; stop it first, or choose another --socket")]
    InUse {
        /// The path.
        path: PathBuf,
    },
}

/// Reads an address to listen on: `PORT` or `:PORT` is loopback, anything else must be `ADDRESS:PORT`.
pub fn parse_listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse()
        .map_err(|_| format!("{text:?} is neither a port nor an address with a port"))
}

/// `/livez` and `/readyz`.
pub fn probes(liveness: Liveness, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(move || async move { live(&liveness) }))
        .route("/readyz", get(move || async move { ready(&readiness) }))
}

/// `/metrics` in the text format of `OpenMetrics`.
pub fn metrics(registry: Arc<Registry>) -> Router {
    Router::new().route("/metrics", get(move || async move { encode(&registry) }))
}

fn live(liveness: &Liveness) -> Response {
    let overdue = liveness.overdue(Instant::now());
    if overdue.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    let lines: Vec<String> = overdue
        .iter()
        .map(|(name, silence)| format!("{name} has not turned for {} s\n", silence.as_secs()))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.concat()).into_response()
}

fn ready(readiness: &Readiness) -> Response {
    let awaited = readiness.awaited();
    if awaited.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    let lines: Vec<String> = awaited
        .iter()
        .map(|awaited| format!("awaiting {}: {}\n", awaited.condition, awaited.reason))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.concat()).into_response()
}

fn encode(registry: &Registry) -> Response {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Binds a TCP address.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Bind { address, source })
}

/// Binds a unix socket that only its owner can use (0600), in a directory that only its owner can enter (0700,
/// when we make it). A socket file that nobody serves any more is replaced; one that somebody serves is not.
pub async fn listen_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
        && !directory.exists()
    {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(failed)?;
    }
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            let error = io::Error::other("a file that is no socket is in the way");
            return Err(failed(error));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(ListenError::InUse {
                path: path.to_owned(),
            });
        }
    }
    bind_private(path).map_err(failed)
}

/// Binds where nobody else can enter and moves the socket to its place, in that of a stale one: under its own name it
/// never has other rights than it should, whatever the process' umask is.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let private = path.with_file_name(format!(".{}", std::process::id()));
    // Of a process that had our number and did not come to its end.
    match fs::remove_dir_all(&private) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) | Ok(()) => {}
    }
    DirBuilder::new().mode(0o700).create(&private)?;
    let socket = private.join("s");
    let bound = UnixListener::bind(&socket).and_then(|listener| {
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        fs::rename(&socket, path)?;
        Ok(listener)
    });
    fs::remove_dir_all(&private)?;
    bound
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty};
    use hyper::body::Bytes;
    use hyper_util::rt::TokioIo;
    use std::time::Duration;

    use crate::serve::serve;

    /// Serves `router` on a unix socket and asks it for `path`.
    async fn ask(router: Router, path: &str) -> (StatusCode, String) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/test.sock");
        let listener = listen_unix(&socket).await.unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, router, async { drop(ended.await) }));
        let stream = TokioIo::new(UnixStream::connect(&socket).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .body(Empty::<Bytes>::new())
            .unwrap();

        let response = sender.send_request(request).await.unwrap();

        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        drop(sender);
        drop(end);
        server.await.unwrap();
        driver.await.unwrap().unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_what_is_awaited() {
        let readiness = Readiness::default();
        let condition = readiness.add("source", "directory is gone");

        let (status, body) = ask(probes(Liveness::default(), readiness.clone()), "/readyz").await;

        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body, "awaiting source: directory is gone\n");
        condition.met();
        let (status, _) = ask(probes(Liveness::default(), readiness), "/readyz").await;
        assert_eq!(status, StatusCode::OK);
    }

    #[tokio::test]
    async fn liveness_fails_when_a_loop_is_silent() {
        let mut liveness = Liveness::default();
        let long_ago = Instant::now().checked_sub(Duration::from_mins(1)).unwrap();
        liveness.add("graph", Duration::from_secs(10), long_ago);

        let (status, body) = ask(probes(liveness, Readiness::default()), "/livez").await;

        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.starts_with("graph has not turned for"), "{body}");
    }

    #[tokio::test]
    async fn metrics_are_text() {
        let mut registry = Registry::with_prefix("towpath");
        let events = prometheus_client::metrics::counter::Counter::<u64>::default();
        registry.register("events", "Events", events.clone());
        events.inc_by(3);

        let (status, body) = ask(metrics(Arc::new(registry)), "/metrics").await;

        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("towpath_events_total 3"), "{body}");
    }

    #[tokio::test]
    async fn the_socket_is_private_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/test.sock");
        drop(listen_unix(&socket).await.unwrap());

        let listener = listen_unix(&socket).await.unwrap();

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&socket), mode(socket.parent().unwrap())),
            (0o600, 0o700)
        );
        let second = listen_unix(&socket).await.unwrap_err();
        assert!(matches!(second, ListenError::InUse { .. }), "{second}");
        drop(listener);
    }

    #[tokio::test]
    async fn a_socket_appears_with_its_rights_in_a_folder_that_all_may_enter() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let socket = directory.path().join("s");
        let left = directory.path().join(format!(".{}", std::process::id()));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("s"), "of an earlier process").unwrap();

        let listener = listen_unix(&socket).await.unwrap();

        // Bound under another name, and moved when it had its rights.
        let bound = listener.local_addr().unwrap();
        assert_eq!(bound.as_pathname(), Some(left.join("s").as_path()));
        let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!((mode, names), (0o600, vec!["s".into()]));
        assert!(UnixStream::connect(&socket).await.is_ok());
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();

        let error = listen_unix(&path).await.unwrap_err();

        assert!(matches!(error, ListenError::Socket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn a_bare_port_is_loopback() {
        assert_eq!(
            parse_listen_address("9100"),
            Ok("127.0.0.1:9100".parse().unwrap())
        );
        assert_eq!(
            parse_listen_address(":9100"),
            Ok("127.0.0.1:9100".parse().unwrap())
        );
        assert_eq!(
            parse_listen_address("[::]:1"),
            Ok("[::]:1".parse().unwrap())
        );
        assert!(parse_listen_address("localhost").is_err());
    }
}
