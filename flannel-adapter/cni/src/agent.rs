//! Client of the agent's control socket: one HTTP request over a unix socket, with a deadline for all of it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::configuration::ValidAttachment;

/// Longest answer that we read.
const MOST_ANSWER: u64 = 64 << 10;
/// Pause between two attempts while no agent is there, or it has too much to do. Nothing tells when a socket begins to be
/// served: its file is there before.
const PAUSE: Duration = Duration::from_millis(50);
/// The agent is to answer so long before we give up, so that its reason is told.
const SLACK: Duration = Duration::from_millis(200);

/// Body of `/v1/cni/add` and `/v1/cni/check`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodRequest {
    pub(crate) network: String,
    pub(crate) container: String,
    pub(crate) interface: String,
    pub(crate) netns: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
    pub(crate) addresses: Vec<std::net::IpAddr>,
    pub(crate) host_interfaces: Vec<String>,
    /// How long the agent may wait; set by the client.
    pub(crate) wait_milliseconds: u64,
}

/// Body of `/v1/cni/del`, and a line of the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Deletion {
    pub(crate) network: String,
    pub(crate) container: String,
    pub(crate) interface: String,
}

/// Body of `/v1/cni/gc`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Collection {
    pub(crate) network: String,
    pub(crate) valid: Vec<Valid>,
}

/// An attachment that stays.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Valid {
    pub(crate) container: String,
    pub(crate) interface: String,
}

impl From<ValidAttachment> for Valid {
    fn from(entry: ValidAttachment) -> Self {
        Self {
            container: entry.container,
            interface: entry.interface,
        }
    }
}

/// Answer of `/v1/cni/add` and `/v1/cni/check`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Programmed {
    pub(crate) programmed: bool,
    #[serde(default)]
    pub(crate) reason: String,
}

/// Answer of `/v1/cni/status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Health {
    pub(crate) ready: bool,
    #[serde(default)]
    pub(crate) is_datapath_broken: bool,
    #[serde(default)]
    pub(crate) reason: String,
}

/// Answer of a request that is only acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Acknowledged {}

/// Where the agent is, and until when it may answer.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) socket: PathBuf,
    pub(crate) deadline: Instant,
    /// Whether to try again while nobody answers. An agent that restarts is back within a second.
    pub(crate) is_patient: bool,
}

/// How one attempt failed.
#[derive(Debug)]
enum Failure {
    /// Another attempt may help.
    Passing(String),
    /// It cannot.
    Final(String),
}

impl Client {
    /// Asks; the error says why there is no answer.
    pub(crate) fn get<T: DeserializeOwned + Send + 'static>(
        self,
        path: &'static str,
    ) -> Result<T, String> {
        self.exchange(move |_| request("GET", path, &[]))
    }

    /// Sends a body and asks for the answer.
    pub(crate) fn post<T: DeserializeOwned + Send + 'static>(
        self,
        path: &'static str,
        body: &impl Serialize,
    ) -> Result<T, String> {
        let body = to_json(body);
        self.exchange(move |_| request("POST", path, &body))
    }

    /// Sends what is known of a pod; the agent may wait nearly as long as we do.
    pub(crate) fn ask_for_pod(
        self,
        path: &'static str,
        pod: PodRequest,
    ) -> Result<Programmed, String> {
        self.exchange(move |left: Duration| {
            let wait = left.saturating_sub(SLACK);
            let pod = PodRequest {
                wait_milliseconds: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                ..pod.clone()
            };
            request("POST", path, &to_json(&pod))
        })
    }

    /// The exchange runs on a thread, because a call may block that knows no deadline; the thread ends with us.
    fn exchange<T: DeserializeOwned + Send + 'static>(
        self,
        make: impl Fn(Duration) -> Vec<u8> + Send + 'static,
    ) -> Result<T, String> {
        let (sender, receiver) = channel();
        let deadline = self.deadline;
        let mut why = format!("the agent at {} does not answer", self.socket.display());
        let started = thread::Builder::new().spawn(move || self.attempts(&make, &sender));
        if let Err(error) = started {
            return Err(format!("cannot start a thread: {error}"));
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Passing(words))) => why = words,
                Ok(Err(Failure::Final(words))) => return Err(words),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(why),
            }
        }
    }

    /// Attempts until one succeeds, or another makes no sense; each failure is told.
    fn attempts<T: DeserializeOwned>(
        &self,
        make: &impl Fn(Duration) -> Vec<u8>,
        sender: &Sender<Result<T, Failure>>,
    ) {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let outcome = self.attempt(&make(left));
            let is_passing = matches!(outcome, Err(Failure::Passing(_)));
            // Who asked may have given up.
            if sender.send(outcome).is_err() || !is_passing || !self.is_patient {
                return;
            }
            thread::sleep(PAUSE.min(left));
        }
    }

    fn attempt<T: DeserializeOwned>(&self, request: &[u8]) -> Result<T, Failure> {
        let path = self.socket.display();
        let connected = UnixStream::connect(&self.socket);
        let mut stream = connected.map_err(|error| {
            classify(
                &error,
                format!("cannot reach the agent at {path}; is it running? {error}"),
            )
        })?;
        let mut answer = Vec::new();
        let exchanged = stream
            .write_all(request)
            .and_then(|()| stream.take(MOST_ANSWER).read_to_end(&mut answer));
        exchanged
            .map_err(|error| classify(&error, format!("the agent at {path} broke off: {error}")))?;
        read(&answer)
    }
}

/// Whether a failure may be over in a moment, as while an agent starts.
fn classify(error: &io::Error, words: String) -> Failure {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NotFound,
        UnexpectedEof, WouldBlock,
    };
    match error.kind() {
        NotFound | ConnectionRefused | ConnectionReset | ConnectionAborted | BrokenPipe
        | UnexpectedEof | WouldBlock | Interrupted => Failure::Passing(words),
        _ => Failure::Final(words),
    }
}

fn to_json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("our bodies have text keys only")
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: towpath\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Reads an HTTP answer.
fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failure> {
    let cut = || Failure::Passing("the agent broke off its answer".to_owned());
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.ok_or_else(cut)?);
    let body = &body[4..];
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    if length.is_some_and(|length| body.len() < length) {
        return Err(cut());
    }
    let words = || String::from_utf8_lossy(body).trim().to_owned();
    match status {
        Some("200") => serde_json::from_slice(body)
            .map_err(|error| Failure::Final(format!("cannot read the agent's answer: {error}"))),
        // It has too much to do, or starts, or ends.
        Some("503") => Err(Failure::Passing(words())),
        Some(status) => Err(Failure::Final(format!(
            "the agent answered {status}: {}",
            words()
        ))),
        None => Err(cut()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn answers_are_read_by_status_and_length() {
        let answer = |status: &str, body: &str| {
            format!("HTTP/1.1 {status}\r\nContent-Length: 19\r\n\r\n{body}").into_bytes()
        };
        let good = answer("200 OK", "{\"programmed\":true}");

        let found: Programmed = read(&good).unwrap();

        assert!(found.programmed);
        let short = &good[..good.len() - 1];
        for passing in [b"".as_slice(), b"HTTP/1.1 200 OK\r\n", short] {
            let failure = read::<Programmed>(passing).unwrap_err();
            assert!(matches!(failure, Failure::Passing(_)), "{failure:?}");
        }
        let busy = read::<Programmed>(&answer("503 Busy", "the agent is busy..")).unwrap_err();
        assert!(matches!(busy, Failure::Passing(words) if words == "the agent is busy.."));
        for status in ["404 Not Found", "400 Bad Request"] {
            let failure = read::<Programmed>(&answer(status, "no such page here..")).unwrap_err();
            assert!(matches!(failure, Failure::Final(_)), "{failure:?}");
        }
    }

    #[test]
    fn an_agent_that_never_answers_costs_no_more_than_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let client = Client {
            socket,
            deadline: Instant::now() + Duration::from_millis(50),
            is_patient: true,
        };

        let error = client.get::<Health>("/v1/cni/status").unwrap_err();

        assert!(error.contains("does not answer"), "{error}");
    }

    #[test]
    fn an_agent_that_comes_late_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let client = Client {
            socket: socket.clone(),
            deadline: Instant::now() + Duration::from_secs(20),
            is_patient: true,
        };

        let asking = thread::spawn(move || client.get::<Health>("/v1/cni/status"));
        let listener = UnixListener::bind(&socket).unwrap();
        // The first connection is broken off, as by an agent that ends.
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        let body = "{\"ready\":true}";
        let text = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // What is not read when the socket closes would break the answer off.
        let expected = request("GET", "/v1/cni/status", &[]);
        let mut asked = vec![0; expected.len()];
        stream.read_exact(&mut asked).unwrap();
        assert_eq!(asked, expected);
        stream.write_all(text.as_bytes()).unwrap();
        drop(stream);

        assert!(asking.join().unwrap().unwrap().ready);
    }

    #[test]
    fn without_patience_one_attempt_is_all() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client {
            socket: folder.path().join("nobody"),
            deadline: Instant::now() + Duration::from_secs(20),
            is_patient: false,
        };

        let error = client.get::<Health>("/v1/cni/status").unwrap_err();

        assert!(error.contains("is it running?"), "{error}");
    }
}
