//! Requests to the API server: where it is, who we are, and what its answers mean. No retries here.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::header::{ACCEPT, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde::Deserialize;
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

use super::item::Item;
use super::line::read_event;
use super::own_node::OwnNodeWatch;
use super::resource::Resource;
use super::stream::{Lines, List, OBJECT_BYTES, StreamError};
use super::world::{Answer, Event, Read};

/// Objects of one page.
const PAGE: u32 = 500;
/// Bytes of an answer that is no success.
const STATUS_BYTES: usize = 64 << 10;

/// Bytes that are read from a connection at once.
const READ_BYTES: usize = 16 << 10;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// From the request to the head of the answer, and between two parts of a list.
    pub(super) answer: Duration,
    /// Between two lines of a watch. The API server sends a bookmark a minute.
    pub(super) silence: Duration,
    /// Shortest and longest wait before another try.
    pub(super) retry: (Duration, Duration),
    /// The same for a kind that is not there.
    pub(super) look: (Duration, Duration),
    /// When the API server is to end a watch, in seconds, and how many more at random.
    pub(super) watch: (u32, u32),
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            answer: seconds(30),
            silence: seconds(150),
            retry: (Duration::from_millis(200), seconds(15)),
            look: (seconds(1), seconds(60)),
            watch: (300, 300),
        }
    }
}

/// Why the API server cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The process runs in no pod.
    #[error(
        "this is no pod with a service account; outside of a cluster give kubernetes:KUBECONFIG"
    )]
    NotInCluster(#[source] InClusterError),
    /// The kubeconfig is of no use.
    #[error("cannot use the kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// Its certificates or its way to a token are of no use.
    #[error("cannot use the certificates or credentials of the API server's configuration")]
    Credentials(#[source] kube::Error),
    /// No runtime.
    #[error("cannot start the runtime of the kubernetes source")]
    Runtime(#[source] std::io::Error),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot reach the API server at {server}: {error}")]
    Unreachable { server: String, error: String },
    #[error("the API server at {server} was silent for {} s", after.as_secs())]
    Silent { server: String, after: Duration },
    #[error("the API server refuses: {message}; {advice}")]
    Refused { message: String, advice: String },
    #[error("the API server does not know {path}")]
    NotFound { path: String },
    /// The version is too old to go on from.
    #[error("the API server no longer has the version to go on from")]
    Gone,
    #[error("the API server answers {code}: {message}")]
    Status {
        code: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("cannot understand the API server: {0}")]
    Body(String),
    #[error("the watch ended at once")]
    Brief,
}

impl Failure {
    /// When the API server wants to be asked again.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Self::Status {
                retry_after: Some(after),
                ..
            } => (*after).min(Duration::from_mins(1)),
            _ => Duration::ZERO,
        }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Body(error.to_string())
    }
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) version: u64,
    pub(super) items: Vec<Item>,
    pub(super) unnamed: Vec<String>,
    pub(super) next: Option<String>,
}

/// The way to an API server.
#[derive(Clone)]
pub(crate) struct Connection {
    client: Client,
    server: String,
    pub(super) timing: Timing,
    /// Hears of this node.
    pub(super) own: Option<Arc<OwnNodeWatch>>,
}

impl Connection {
    /// Reads the configuration; nothing is sent yet. To be called inside a runtime.
    pub(super) async fn open(
        kubeconfig: Option<&PathBuf>,
        timing: Timing,
    ) -> Result<Self, ConnectError> {
        let config = match kubeconfig {
            None => Config::incluster().map_err(ConnectError::NotInCluster)?,
            Some(path) => {
                let failed = |source| ConnectError::Kubeconfig {
                    path: path.clone(),
                    source,
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(failed)?
            }
        };
        let client = client(&config, timing).map_err(ConnectError::Credentials)?;
        Ok(Self {
            client,
            server: config.cluster_url.to_string(),
            timing,
            own: None,
        })
    }

    /// As the agent opens it; for tests of what is written.
    #[cfg(test)]
    pub(crate) async fn of_kubeconfig(path: &PathBuf) -> Result<Self, ConnectError> {
        Self::open(Some(path), Timing::default()).await
    }

    /// One page of all objects below a path.
    pub(super) async fn list(
        &self,
        resource: Resource,
        path: &str,
        next: Option<&str>,
    ) -> Result<Listed, Failure> {
        let mut uri = format!("{path}?limit={PAGE}");
        if let Some(next) = next {
            uri.push_str("&continue=");
            uri.push_str(&encode(next));
        }
        let mut body = self.get(resource, &uri).await?.into_body();
        let mut list = List::default();
        let (mut items, mut unnamed) = (Vec::new(), Vec::new());
        while let Some(bytes) = self.part(&mut body, self.timing.answer).await? {
            list.push(&bytes, |item| {
                match Item::read(resource, item) {
                    Ok(read) => {
                        self.see_own(resource, &read, item);
                        items.push(read);
                    }
                    Err(reason) => unnamed.push(reason),
                }
                Ok::<_, Failure>(())
            })?;
        }
        let end = list.end()?;
        Ok(Listed {
            version: end.version,
            items,
            unnamed,
            next: end.next,
        })
    }

    /// Starts to watch all objects from a version on.
    pub(super) async fn watch(&self, resource: Resource, from: u64) -> Result<Watch, Failure> {
        let (least, more) = self.timing.watch;
        let seconds = f64::from(least) + f64::from(more) * super::backoff::random();
        let uri = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds:.0}",
            resource.path()
        );
        Ok(Watch {
            resource,
            body: self.get(resource, &uri).await?.into_body(),
            lines: Lines::default(),
        })
    }

    /// The next events of a watch; `None` at its end. The events of what could be understood come with the failure.
    pub(super) async fn events(
        &self,
        watch: &mut Watch,
    ) -> Result<Option<Vec<Event>>, (Vec<Event>, Failure)> {
        let part = self.part(&mut watch.body, self.timing.silence).await;
        let Some(bytes) = part.map_err(|failure| (Vec::new(), failure))? else {
            return Ok(None);
        };
        let (resource, mut events) = (watch.resource, Vec::new());
        let outcome = watch.lines.push(&bytes, |line| {
            if !line.trim_ascii().is_empty() {
                events.push(self.read_event(resource, line)?);
            }
            Ok::<_, Failure>(())
        });
        match outcome {
            Ok(()) => Ok(Some(events)),
            Err(failure) => Err((events, failure)),
        }
    }

    /// Makes a consistent read.
    pub(super) async fn read(&self, read: &Read) -> Result<Answer, Failure> {
        let resource = read.resource;
        let path = match resource {
            Resource::NetworkPolicy => resource.path_in(&read.partition),
            _ if read.partition.is_empty() => resource.path(),
            _ => format!("{}/{}", resource.path(), read.partition),
        };
        let is_one = resource == Resource::Namespace;
        let answer = if is_one {
            self.read_one(resource, &path).await
        } else {
            self.read_list(resource, &path).await
        };
        match answer {
            Err(Failure::NotFound { .. }) if is_one => Ok(Answer::One(None)),
            Err(Failure::NotFound { .. }) if resource.is_optional() => Ok(Answer::Missing),
            answer => answer,
        }
    }

    async fn read_one(&self, resource: Resource, path: &str) -> Result<Answer, Failure> {
        let body = self.get(resource, path).await?.into_body();
        let bytes = self.whole(body, OBJECT_BYTES).await?;
        let item = Item::read(resource, &bytes).map_err(Failure::Body)?;
        Ok(Answer::One(Some(item)))
    }

    async fn read_list(&self, resource: Resource, path: &str) -> Result<Answer, Failure> {
        let mut page = self.list(resource, path, None).await?;
        let (version, mut items) = (page.version, std::mem::take(&mut page.items));
        loop {
            if let Some(reason) = page.unnamed.pop() {
                return Err(Failure::Body(reason));
            }
            let Some(next) = page.next.take() else {
                return Ok(Answer::List { version, items });
            };
            page = self.list(resource, path, Some(&next)).await?;
            items.append(&mut page.items);
        }
    }

    async fn get(&self, resource: Resource, uri: &str) -> Result<Response<Body>, Failure> {
        let request = Request::get(uri)
            .header(ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| Failure::Body(error.to_string()))?;
        let advice = || {
            let right = right(resource);
            format!("grant this right on {right} as deploy/rbac.yaml does")
        };
        self.send(request, uri, advice).await
    }

    /// Sends a request and waits for the head of the answer. `advice` is for who may not do that.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        uri: &str,
        advice: impl FnOnce() -> String,
    ) -> Result<Response<Body>, Failure> {
        let answer = timeout(self.timing.answer, self.client.send(request)).await;
        let response = match answer {
            Err(_) => return Err(self.silent(self.timing.answer)),
            Ok(Err(error)) => return Err(self.unreachable(&error)),
            Ok(Ok(response)) => response,
        };
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(uri, response, advice).await)
    }

    /// What an answer without success says.
    async fn refusal(
        &self,
        uri: &str,
        response: Response<Body>,
        advice: impl FnOnce() -> String,
    ) -> Failure {
        #[derive(Default, Deserialize)]
        struct Status {
            #[serde(default)]
            message: String,
        }

        let code = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        // The status line says enough if the rest cannot be read.
        let bytes = self
            .whole(response.into_body(), STATUS_BYTES)
            .await
            .unwrap_or_default();
        let Status { message } = serde_json::from_slice(&bytes).unwrap_or_default();
        let message = if message.is_empty() {
            code.canonical_reason().unwrap_or_default().to_owned()
        } else {
            message.chars().take(300).collect()
        };
        let path = uri.split('?').next().unwrap_or_default().to_owned();
        match code {
            StatusCode::UNAUTHORIZED => Failure::Refused {
                message,
                advice: "renew the token or certificate of the kubeconfig or service account"
                    .to_owned(),
            },
            StatusCode::FORBIDDEN => Failure::Refused {
                message,
                advice: advice(),
            },
            StatusCode::NOT_FOUND => Failure::NotFound { path },
            StatusCode::GONE => Failure::Gone,
            code => Failure::Status {
                code: code.as_u16(),
                message,
                retry_after,
            },
        }
    }

    /// Notes what is said of this node, for those who asked.
    fn see_own(&self, resource: Resource, item: &Item, bytes: &[u8]) {
        if let (Resource::Node, Some(own)) = (resource, &self.own) {
            own.see(&item.name, item.version, bytes);
        }
    }

    fn read_event(&self, resource: Resource, line: &[u8]) -> Result<Event, Failure> {
        let (event, object) = read_event(resource, line)?;
        match &event {
            Event::There(item) => self.see_own(resource, item, object),
            Event::Gone { name, .. } => {
                if let (Resource::Node, Some(own)) = (resource, &self.own) {
                    own.miss(name);
                }
            }
            Event::Bookmark(_) => {}
        }
        Ok(event)
    }

    /// Reads a body to its end and forgets it.
    pub(super) async fn drain(&self, mut body: Body) -> Result<(), Failure> {
        while self.part(&mut body, self.timing.answer).await?.is_some() {}
        Ok(())
    }

    /// The next bytes of a body; `None` at its end.
    async fn part(
        &self,
        body: &mut Body,
        silence: Duration,
    ) -> Result<Option<hyper::body::Bytes>, Failure> {
        loop {
            match timeout(silence, body.frame()).await {
                Err(_) => return Err(self.silent(silence)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(self.unreachable(&error)),
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// A body of at most so many bytes.
    pub(super) async fn whole(&self, mut body: Body, most: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(part) = self.part(&mut body, self.timing.answer).await? {
            bytes.extend_from_slice(&part);
            if bytes.len() > most {
                return Err(StreamError::TooLarge.into());
            }
        }
        Ok(bytes)
    }

    fn silent(&self, after: Duration) -> Failure {
        Failure::Silent {
            server: self.server.clone(),
            after,
        }
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Failure {
        Failure::Unreachable {
            server: self.server.clone(),
            error: chain(error),
        }
    }
}

/// A watch that was begun.
pub(super) struct Watch {
    resource: Resource,
    body: Body,
    lines: Lines,
}

/// As kube makes one, but a peer that is gone without a word is noticed within half a minute.
fn client(config: &Config, timing: Timing) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(timing.answer));
    connector.set_keepalive(Some(Duration::from_secs(15)));
    connector.set_keepalive_interval(Some(Duration::from_secs(5)));
    connector.set_keepalive_retries(Some(3));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let transport = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_timer(hyper_util::rt::TokioTimer::new())
        // By itself it grows with a list, and each watch then keeps some hundred kilobytes for its few bytes.
        .http1_read_buf_exact_size(READ_BYTES)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer()?)
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(transport);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}

/// A kind as a `ClusterRole` names it.
fn right(resource: Resource) -> String {
    match resource.kind().api_version().split_once('/') {
        Some((group, _)) => format!("{}.{group}", resource.plural()),
        None => resource.plural().to_owned(),
    }
}

/// Percent-encodes what is not plain.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
