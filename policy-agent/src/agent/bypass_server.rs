//! The routes of the control socket that open enforcement for a while, and close it. Only root can use the socket.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::bypass::{BypassScope, Opening};
use super::bypassing::{BypassRequest, Wish};
use super::event::Event;

/// The kernel takes it at once; an applier that retries may need longer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(8);
/// Bytes of a request: names and a reason.
const MOST_BYTES: usize = 8 * 1024;

/// Body of `off`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Closing {
    /// What is to be closed; everything when it is missing.
    pub(crate) scope: Option<BypassScope>,
}

/// The routes.
pub(super) fn routes(sender: SyncSender<Event>) -> Router {
    Router::new()
        .route("/v1/bypass/on", post(on))
        .route("/v1/bypass/off", post(off))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(sender)
}

async fn on(State(to): State<SyncSender<Event>>, Json(opening): Json<Opening>) -> Response {
    ask(&to, Wish::Open(opening)).await
}

async fn off(State(to): State<SyncSender<Event>>, Json(closing): Json<Closing>) -> Response {
    ask(&to, Wish::Close(closing.scope)).await
}

async fn ask(queue: &SyncSender<Event>, wish: Wish) -> Response {
    let (to, answer) = oneshot::channel();
    let busy = |text| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    let request = BypassRequest { wish, to };
    if queue.try_send(Event::Bypass(request)).is_err() {
        return busy("the agent is busy or ends; ask again\n");
    }
    match timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(Ok(answer))) => Json(answer).into_response(),
        Ok(Ok(Err(reason))) => (StatusCode::BAD_REQUEST, reason).into_response(),
        Ok(Err(_)) => busy("the agent ends\n"),
        Err(_) => busy("the kernel has not taken it yet; the agent goes on trying\n"),
    }
}
