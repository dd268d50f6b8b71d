//! Serving HTTP to clients that need not be honest: one request a connection, little time, few connections, so that
//! neither memory nor the end of the process depends on a client.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// Connections of one server. With more, the oldest is dropped: an honest one is answered before it is the oldest.
const CONNECTIONS: usize = 64;
/// Time of one connection, from its begin to the end of the answer. More than the control socket takes to give up.
const DEADLINE: Duration = Duration::from_secs(15);
/// Time for what is being answered when the server ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;

/// Serves until `end` is done; requests that came whole before are still answered.
pub async fn serve<L: Listener>(mut listener: L, router: Router, end: impl Future<Output = ()>) {
    let mut end = pin!(end);
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            () = &mut end => break,
            (stream, _) = listener.accept() => stream,
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        connections.push_back(tokio::spawn(answer(stream, router.clone())));
    }
    drop(listener);
    let deadline = Instant::now() + FAREWELL;
    for mut connection in connections {
        if timeout_at(deadline, &mut connection).await.is_err() {
            connection.abort();
        }
    }
}

/// Answers one request.
async fn answer<S>(stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that is too slow, says nonsense or goes away has done so at its own cost.
    timeout(DEADLINE, connection).await.ok();
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::oneshot;

    use super::*;
    use crate::http::listen_unix;

    /// A server on a unix socket, what ends it, and its directory.
    async fn start() -> (tempfile::TempDir, oneshot::Sender<()>, JoinHandle<()>) {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen_unix(&directory.path().join("s")).await.unwrap();
        let router = Router::new().route("/", get(|| async { "answer" }));
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, router, async { drop(ended.await) }));
        (directory, end, server)
    }

    /// A connection on which this was sent.
    async fn send(directory: &Path, bytes: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(directory.join("s")).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// What comes until the server closes.
    async fn receive(mut stream: UnixStream) -> String {
        let mut text = String::new();
        // A connection that is dropped while bytes of ours are unread ends in an error.
        stream.read_to_string(&mut text).await.ok();
        text
    }

    const WHOLE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const HALF: &[u8] = b"GET / HTTP/1.1\r\nX: ";

    #[tokio::test]
    async fn one_request_is_answered_and_the_connection_closed() {
        let (directory, _end, _server) = start().await;

        let text = receive(send(directory.path(), WHOLE).await).await;

        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(text.ends_with("answer"), "{text}");
    }

    #[tokio::test]
    async fn slow_clients_do_not_keep_others_out() {
        let (directory, _end, _server) = start().await;
        let mut slow = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            slow.push(send(directory.path(), HALF).await);
        }

        let text = receive(send(directory.path(), WHOLE).await).await;

        assert!(text.ends_with("answer"), "{text}");
        // The first of the slow ones had to give way.
        assert_eq!(receive(slow.remove(0)).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_dropped_after_a_while() {
        let (directory, _end, _server) = start().await;

        assert_eq!(receive(send(directory.path(), HALF).await).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_does_not_keep_the_server_from_ending() {
        let (directory, end, server) = start().await;
        let _slow = send(directory.path(), HALF).await;
        receive(send(directory.path(), WHOLE).await).await;
        let before = Instant::now();

        end.send(()).unwrap();
        server.await.unwrap();

        assert!(before.elapsed() <= FAREWELL, "{:?}", before.elapsed());
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let (directory, _end, _server) = start().await;
        let mut stream = UnixStream::connect(directory.path().join("s"))
            .await
            .unwrap();
        stream.write_all(HALF).await.unwrap();

        let sent = stream.write_all(&vec![b'y'; 8 << 20]).await;

        assert!(sent.is_err(), "8 MiB of one header were taken");
    }
}
