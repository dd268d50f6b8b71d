//! The routes of the control socket that the CNI plugin uses (`flannel-adapter/cni`). ADD is a long poll: the answer
//! comes when the pod is programmed, or with the reason when the plugin can wait no longer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::cni::{Acknowledged, CniRequest, Programmed};
use super::cni_claims::{Attachment, Claim, pod_id};
use super::event::Event;

/// The graph answers between two flushes.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait that a plugin may ask for; less than a connection may last.
const MOST_WAIT: Duration = Duration::from_secs(10);
const MOST_ADDRESSES: usize = 16;
const MOST_INTERFACES: usize = 64;
/// Longest name of anything.
const MOST_TEXT: usize = 256;
/// Attachments that one GC may name.
const MOST_VALID: usize = 16_384;

type Sender = SyncSender<Event>;

/// Body of ADD and CHECK.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodRequest {
    network: String,
    container: String,
    interface: String,
    namespace: String,
    name: String,
    uid: Option<String>,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    host_interfaces: Vec<String>,
    #[serde(default)]
    wait_milliseconds: u64,
}

impl PodRequest {
    /// The claim in it; an error says what is wrong.
    fn claim(self) -> Result<Claim, &'static str> {
        let texts = [
            &self.network,
            &self.container,
            &self.interface,
            &self.namespace,
            &self.name,
        ];
        if texts.iter().any(|text| text.len() > MOST_TEXT) {
            return Err("a name is too long");
        }
        if self.host_interfaces.len() > MOST_INTERFACES {
            return Err("there are too many interfaces");
        }
        let mut addresses = self.addresses;
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() || addresses.len() > MOST_ADDRESSES {
            return Err("there is no address, or there are too many");
        }
        let named = self.host_interfaces.iter();
        Ok(Claim {
            attachment: Attachment {
                network: self.network,
                container: self.container,
                interface: self.interface,
            },
            pod: pod_id(&self.namespace, &self.name),
            uid: self.uid.and_then(|text| text.parse().ok()),
            addresses,
            // One that no rule could hold is not known to the graph either.
            host_interfaces: named.filter_map(|name| name.parse().ok()).collect(),
        })
    }
}

/// Body of GC.
#[derive(Debug, Deserialize)]
struct Collection {
    network: String,
    valid: Vec<Valid>,
}

#[derive(Debug, Deserialize)]
struct Valid {
    container: String,
    interface: String,
}

/// The routes.
pub(super) fn routes(sender: Sender) -> Router {
    Router::new()
        .route("/v1/cni/add", post(add))
        .route("/v1/cni/check", post(check))
        .route("/v1/cni/del", post(delete))
        .route("/v1/cni/gc", post(collect))
        .route("/v1/cni/status", get(status))
        .with_state(sender)
}

async fn add(State(to): State<Sender>, Json(request): Json<PodRequest>) -> Response {
    let wait = Duration::from_millis(request.wait_milliseconds).min(MOST_WAIT);
    let claim = match request.claim() {
        Ok(claim) => claim,
        Err(fault) => return refused(fault),
    };
    let waits = !wait.is_zero();
    let asked = claim.clone();
    let make = move |to| CniRequest::Add { claim, waits, to };
    let patience = if waits { wait } else { ANSWER_DEADLINE };
    match ask(&to, make, patience).await {
        Err(Unanswered::Late) if waits => {
            // Who waited is forgotten with the channel; the claim stays until DEL.
            let make = |to| CniRequest::Check { claim: asked, to };
            answer(ask(&to, make, ANSWER_DEADLINE).await)
        }
        answered => answer(answered),
    }
}

async fn check(State(to): State<Sender>, Json(request): Json<PodRequest>) -> Response {
    let claim = match request.claim() {
        Ok(claim) => claim,
        Err(fault) => return refused(fault),
    };
    let make = |to| CniRequest::Check { claim, to };
    answer::<Programmed>(ask(&to, make, ANSWER_DEADLINE).await)
}

async fn delete(State(to): State<Sender>, Json(gone): Json<Attachment>) -> Response {
    let make = |to| CniRequest::Delete {
        gone: vec![gone],
        to: Some(to),
    };
    answer::<Acknowledged>(ask(&to, make, ANSWER_DEADLINE).await)
}

async fn collect(State(to): State<Sender>, Json(request): Json<Collection>) -> Response {
    let Collection { network, valid } = request;
    if valid.len() > MOST_VALID {
        return refused("there are too many attachments");
    }
    let valid: BTreeSet<(String, String)> = valid
        .into_iter()
        .map(|entry| (entry.container, entry.interface))
        .collect();
    let make = |to| CniRequest::KeepOnly { network, valid, to };
    answer::<Acknowledged>(ask(&to, make, ANSWER_DEADLINE).await)
}

async fn status(State(to): State<Sender>) -> Response {
    answer(ask(&to, CniRequest::Health, ANSWER_DEADLINE).await)
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unanswered {
    /// The graph's queue is full, it has no room for another who waits, or it ends.
    Busy,
    Late,
}

async fn ask<T>(
    to: &Sender,
    make: impl FnOnce(oneshot::Sender<T>) -> CniRequest,
    patience: Duration,
) -> Result<T, Unanswered> {
    let (sender, answer) = oneshot::channel();
    to.try_send(Event::Cni(make(sender)))
        .map_err(|_| Unanswered::Busy)?;
    match timeout(patience, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Unanswered::Busy),
        Err(_) => Err(Unanswered::Late),
    }
}

fn answer<T: Serialize>(answered: Result<T, Unanswered>) -> Response {
    let busy = |text| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    match answered {
        Ok(answer) => Json(answer).into_response(),
        Err(Unanswered::Busy) => busy("the agent is busy or ends; ask again\n"),
        Err(Unanswered::Late) => busy("the agent does not answer\n"),
    }
}

fn refused(fault: &'static str) -> Response {
    (StatusCode::BAD_REQUEST, fault).into_response()
}
