//! The control socket, the probes and the metrics: HTTP on one thread of its own.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch};
use towpath_runtime::http::{ListenError, listen, listen_unix, metrics, probes};
use towpath_runtime::liveness::Liveness;
use towpath_runtime::readiness::Readiness;
use towpath_runtime::serve::serve;
use tracing::error;

use super::AgentError;
use super::config::Config;
use super::event::{Event, Question};
use super::thread::spawn;

/// The graph answers between two flushes; if it does not, it is stuck, and liveness says so too.
const ANSWER_DEADLINE: Duration = Duration::from_secs(8);

type Sender = SyncSender<Event>;

/// Everything that is served.
pub(super) struct Served {
    pub(super) sender: Sender,
    pub(super) liveness: Liveness,
    pub(super) readiness: Readiness,
    pub(super) registry: Registry,
}

/// The thread of the servers; dropping the handle's sender ends it.
pub(super) struct Server {
    end: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Binds everything, then serves on a thread of its own. When `shutdown` is done, the graph is told to end.
    pub(super) fn start<F>(config: &Config, served: Served, shutdown: F) -> Result<Self, AgentError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .map_err(|source| AgentError::Thread {
                name: "server",
                source,
            })?;
        let listeners = runtime.block_on(Listeners::bind(config))?;
        let (end, ended) = watch::channel(false);
        let sender = served.sender.clone();
        let body = move || runtime.block_on(listeners.serve(served, ended, shutdown));
        let thread = spawn("server", sender, body)?;
        Ok(Self { end, thread })
    }

    /// Stops serving and waits until the thread has ended.
    pub(super) fn end(self) {
        self.end.send_replace(true);
        if self.thread.join().is_err() {
            error!("the server thread has panicked");
        }
    }
}

struct Listeners {
    socket: UnixListener,
    health: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, ListenError> {
        let health = match config.health {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let metrics = match config.metrics {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        Ok(Self {
            socket: listen_unix(&config.socket).await?,
            health,
            metrics,
        })
    }

    async fn serve(
        self,
        served: Served,
        ended: watch::Receiver<bool>,
        shutdown: impl Future<Output = ()>,
    ) {
        let Served {
            sender,
            liveness,
            readiness,
            registry,
        } = served;
        let probes = probes(liveness, readiness);
        let figures = metrics(Arc::new(registry));
        let control = control(sender.clone())
            .merge(probes.clone())
            .merge(figures.clone());
        tokio::join!(
            serve(self.socket, control, until(ended.clone())),
            serve_tcp(self.health, probes, ended.clone()),
            serve_tcp(self.metrics, figures, ended.clone()),
            forward(shutdown, sender, ended),
        );
    }
}

/// Done when the agent ends.
async fn until(mut ended: watch::Receiver<bool>) {
    // The other end is dropped only when the agent ends.
    ended.wait_for(|is_ended| *is_ended).await.map(drop).ok();
}

/// Serves an address, if one was asked for.
async fn serve_tcp(listener: Option<TcpListener>, router: Router, ended: watch::Receiver<bool>) {
    if let Some(listener) = listener {
        serve(listener, router, until(ended)).await;
    }
}

/// Tells the graph to end when `shutdown` is done, unless it ended by itself.
async fn forward(shutdown: impl Future<Output = ()>, sender: Sender, ended: watch::Receiver<bool>) {
    tokio::select! {
        () = until(ended) => {}
        () = shutdown => {
            // The queue may be full: the graph is busy, and is told as soon as it has room. When it is gone, it has
            // ended by itself.
            let told = tokio::task::spawn_blocking(move || sender.send(Event::End).is_ok()).await;
            if let Err(error) = told {
                error!(%error, "cannot tell the agent to end");
            }
        }
    }
}

/// Routes of the control socket.
fn control(sender: Sender) -> Router {
    Router::new()
        .route("/status", get(|State(to)| ask(to, Question::Status)))
        .route("/endpoints", get(|State(to)| ask(to, Question::Endpoints)))
        .route("/policies", get(|State(to)| ask(to, Question::Policies)))
        .route("/classes", get(|State(to)| ask(to, Question::Classes)))
        .route("/denied", get(|State(to)| ask(to, Question::Denied)))
        .route("/flannel", get(|State(to)| ask(to, Question::Flannel)))
        .route("/bypasses", get(|State(to)| ask(to, Question::Bypasses)))
        .with_state(sender.clone())
        .merge(super::bypass_server::routes(sender.clone()))
        .merge(super::cni_server::routes(sender))
}

async fn ask<T: Serialize>(
    to: Sender,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Response {
    let (sender, answer) = oneshot::channel();
    let busy = |text| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    if to.try_send(Event::Ask(question(sender))).is_err() {
        return busy("the agent is busy or ends; ask again\n");
    }
    match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(_)) => busy("the agent ends\n"),
        Err(_) => busy("the agent does not answer\n"),
    }
}
