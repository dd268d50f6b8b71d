//! From the agent's side of the desk to the requests that an API server gets. The server is the test's own, since a real
//! one fails when it likes.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::http::StatusCode;
use axum::{Json, Router};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::denied::DeniedNote;
use super::standing::Standing;
use super::*;

/// Long enough for any machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request that waits for its answer.
struct Request {
    /// What the Event tells.
    note: String,
    answer: oneshot::Sender<StatusCode>,
}

/// Serves requests as the test answers them, and makes a kubeconfig that leads to it.
async fn serve() -> (mpsc::Receiver<Request>, NamedTempFile) {
    let (sender, requests) = mpsc::channel(QUEUE);
    let take = async move |Json(event): Json<Value>| {
        let note = event["note"].as_str().expect("a note").to_owned();
        let (answer, answered) = oneshot::channel();
        let sent = sender.send(Request { note, answer }).await;
        assert!(sent.is_ok(), "a request after the end");
        (answered.await.expect("an answer"), Json(json!({})))
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, Router::new().fallback(take)).into_future());
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "u", "user": {} }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        "current-context": "x",
    });
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "{kubeconfig}").unwrap();
    (requests, file)
}

fn denial(text: &str) -> Denial {
    let note = DeniedNote {
        namespace: "shop".into(),
        // Each of its own, so that no budget of a pod decides.
        pod: text.into(),
        uid: None,
        is_dropped: true,
        text: text.to_owned(),
    };
    Denial { note, packets: 1 }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

async fn next(requests: &mut mpsc::Receiver<Request>) -> Request {
    let next = timeout(PATIENCE, requests.recv()).await;
    next.expect("a request in time").expect("a server")
}

#[tokio::test]
async fn denials_of_a_pause_are_counted_and_never_told() {
    let (mut requests, kubeconfig) = serve().await;
    let path = kubeconfig.path().to_owned();
    let connection = Connection::of_kubeconfig(&path).await.unwrap();
    let wanted = Wanted {
        denied_events: true,
        ..Wanted::default()
    };
    let (desk, publisher) = open("node-a", &wanted, Metrics::default).unwrap();
    let writer = tokio::spawn(publisher.run(connection));
    let denied = desk.denied.as_ref().unwrap();
    let standing = || desk.standings.all()[0].1;
    let suppressed = || desk.metrics.events_suppressed.get();

    denied.try_send(denial("first")).unwrap();
    let first = next(&mut requests).await;
    // They stand in the queue before the pause begins, so that the machine's pace does not matter.
    for number in 0..QUEUE {
        denied
            .try_send(denial(&format!("in-between-{number}")))
            .unwrap();
    }
    assert!(denied.try_send(denial("one-too-many")).is_err());
    first.answer.send(StatusCode::TOO_MANY_REQUESTS).unwrap();

    until("the refusal is told", || standing() == Standing::Failing).await;
    let all = 1 + QUEUE as u64;
    until("the pause is over", || suppressed() == all).await;
    denied.try_send(denial("last")).unwrap();
    let last = next(&mut requests).await;
    last.answer.send(StatusCode::CREATED).unwrap();
    until("the next is told", || standing() == Standing::Working).await;
    assert_eq!((first.note.as_str(), last.note.as_str()), ("first", "last"));
    assert_eq!(suppressed(), all);
    assert_eq!(denied.capacity(), QUEUE);
    drop(desk);
    timeout(PATIENCE, writer).await.expect("it ends").unwrap();
    assert!(requests.try_recv().is_err());
}
