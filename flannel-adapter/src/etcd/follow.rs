//! Lists, watches, and lists again.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::client::{Connection, Credentials, Endpoint, EtcdError, MOST_BYTES};
use super::state::{EtcdState, EtcdView};
use super::tls::{Tls, TlsError, TlsFiles};
use super::wire::{self, Watched};
use crate::lease::KeyNames;

/// Keys asked for at a time.
const PAGE: u32 = 1_000;
/// More keys than this are not Flannel's.
const MOST_KEYS: usize = 65_536;
/// How often everything is listed again although nothing seems amiss: a connection may be dead without a sign.
const RESYNC: Duration = Duration::from_mins(5);
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Where Flannel's etcd is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Its servers; one of them is enough.
    pub endpoints: Vec<Endpoint>,
    /// The keys.
    pub names: KeyNames,
    /// Name and password.
    pub credentials: Option<Credentials>,
    /// Certificates, for servers with `https`.
    pub tls: Option<TlsFiles>,
    /// How often everything is listed again; none is every five minutes.
    pub resync: Option<Duration>,
}

/// Why one round ended.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("no server of etcd is configured; name them as flanneld's --etcd-endpoints does")]
    NoEndpoint,
    #[error("there are more than {MOST_KEYS} keys under Flannel's prefix; is the prefix right?")]
    TooMany,
}

/// Keeps `views` up to date until nobody reads it any more. Whatever fails is tried again, at another server if there is one;
/// meanwhile the last view stays and says that it is stale.
pub async fn follow(config: EtcdConfig, views: watch::Sender<Arc<EtcdView>>) {
    let mut state = EtcdState::new(config.names.clone());
    let mut attempt = Attempt::default();
    loop {
        let round = Round {
            config: &config,
            views: &views,
        };
        let ended = tokio::select! {
            ended = round.run(&mut state, &mut attempt) => ended,
            () = views.closed() => return,
        };
        match ended {
            // A resync, or a compaction: list again at once.
            Ok(()) => {}
            Err(error) => {
                let reason = chain(&error);
                warn!(
                    error = reason,
                    "cannot read Flannel's facts from etcd; trying again"
                );
                round.tell(EtcdView {
                    stale: Some(reason),
                    ..state.view()
                });
                tokio::select! {
                    () = tokio::time::sleep(delay(attempt.failures, jitter())) => {}
                    () = views.closed() => return,
                }
                attempt.failures = attempt.failures.saturating_add(1);
                attempt.turn = attempt.turn.wrapping_add(1);
            }
        }
    }
}

/// Which attempt it is.
#[derive(Debug, Default)]
struct Attempt {
    /// Attempts without a list in a row.
    failures: u32,
    /// Whose turn it is among the servers.
    turn: usize,
}

/// From a connection to its end.
struct Round<'a> {
    config: &'a EtcdConfig,
    views: &'a watch::Sender<Arc<EtcdView>>,
}

impl Round<'_> {
    async fn run(&self, state: &mut EtcdState, attempt: &mut Attempt) -> Result<(), RoundError> {
        let endpoints = &self.config.endpoints;
        let endpoint = attempt
            .turn
            .checked_rem(endpoints.len())
            .and_then(|turn| endpoints.get(turn))
            .ok_or(RoundError::NoEndpoint)?;
        let tls = self.config.tls.as_ref().map(Tls::read).transpose()?;
        let credentials = self.config.credentials.as_ref();
        let mut connection = Connection::open(endpoint, credentials, tls.as_ref()).await?;
        match self.list(&mut connection, state).await {
            // The list's own revision went away between two pages.
            Err(RoundError::Etcd(error)) if error.is_compacted() => return Ok(()),
            ended => ended?,
        }
        info!(
            endpoint = %endpoint,
            revision = state.revision(),
            "listed Flannel's facts in etcd"
        );
        attempt.failures = 0;
        self.tell(state.view());
        let resync = self.config.resync.unwrap_or(RESYNC);
        match tokio::time::timeout(resync, self.watch(&mut connection, state)).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Ok(()),
        }
    }

    /// Lists page by page, all of one revision.
    async fn list(
        &self,
        connection: &mut Connection,
        state: &mut EtcdState,
    ) -> Result<(), RoundError> {
        let prefix = self.config.names.all().into_bytes();
        let end = wire::range_end(&prefix);
        let (mut start, mut revision, mut entries) = (prefix, 0, Vec::new());
        loop {
            let body = wire::list(&start, &end, PAGE, revision);
            let answer = connection.ask("/v3/kv/range", body).await?;
            let page = wire::listed(&answer).map_err(|error| connection.unreadable(&error))?;
            if revision == 0 {
                revision = page.revision;
            }
            let last = page.entries.last().map(|entry| entry.raw_key.clone());
            entries.extend(page.entries);
            if entries.len() > MOST_KEYS {
                return Err(RoundError::TooMany);
            }
            let (true, Some(mut next)) = (page.has_more, last) else {
                break;
            };
            next.push(0);
            start = next;
        }
        state.replace(entries, revision);
        Ok(())
    }

    /// Watches until etcd says that it threw away what we missed.
    async fn watch(
        &self,
        connection: &mut Connection,
        state: &mut EtcdState,
    ) -> Result<(), EtcdError> {
        let prefix = self.config.names.all().into_bytes();
        let end = wire::range_end(&prefix);
        let body = wire::watch(&prefix, &end, state.revision().saturating_add(1));
        let answer = connection.stream("/v3/watch", body).await?;
        let mut lines = Lines::new(answer);
        let ended = |reason: &str| EtcdError::Ended {
            endpoint: connection.endpoint().clone(),
            reason: reason.to_owned(),
        };
        loop {
            let line = match lines
                .next()
                .await
                .map_err(|error| connection.broken(error))?
            {
                Line::Whole(line) => line,
                Line::End => return Err(ended("the connection was closed")),
                Line::TooLong => return Err(ended("a line is too long")),
            };
            match wire::watched(&line).map_err(|error| connection.unreadable(&error))? {
                Watched::Changes { revision, changes } => {
                    if changes.is_empty() {
                        continue;
                    }
                    debug!(
                        revision,
                        changes = changes.len(),
                        "Flannel's facts changed in etcd"
                    );
                    state.apply(changes, revision);
                    self.tell(state.view());
                }
                Watched::Compacted => {
                    info!("etcd has thrown away changes that were missed; listing again");
                    return Ok(());
                }
                Watched::Ended(reason) => return Err(ended(&reason)),
            }
        }
    }

    fn tell(&self, view: EtcdView) {
        self.views.send_if_modified(|told| {
            let is_news = **told != view;
            if is_news {
                *told = Arc::new(view);
            }
            is_news
        });
    }
}

/// Cuts a body into lines.
struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

enum Line {
    Whole(Vec<u8>),
    End,
    TooLong,
}

impl Lines {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: Vec::new(),
        }
    }

    async fn next(&mut self) -> Result<Line, hyper::Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Line::Whole(line));
            }
            if self.buffer.len() > MOST_BYTES {
                return Ok(Line::TooLong);
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(Line::End);
            };
            if let Ok(part) = frame?.into_data() {
                self.buffer.extend_from_slice(&part);
            }
        }
    }
}

/// How long to wait after so many failures in a row: doubled each time, a quarter of it by chance.
fn delay(failures: u32, jitter: u32) -> Duration {
    let full = FIRST_DELAY
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(LONGEST_DELAY);
    full.saturating_sub(full / 4 * (jitter % 256) / 256)
}

/// A number by chance, so that many nodes do not return at once.
fn jitter() -> u32 {
    let hash = RandomState::new().hash_one(0_u8);
    u32::try_from(hash & 0xff).unwrap_or_default()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_limit() {
        assert_eq!(delay(0, 0), FIRST_DELAY);
        assert_eq!(delay(2, 0), FIRST_DELAY * 4);
        assert_eq!(delay(u32::MAX, 0), LONGEST_DELAY);
        for chance in 0..256 {
            let found = delay(1, chance);
            assert!(
                found > FIRST_DELAY * 3 / 2 && found <= FIRST_DELAY * 2,
                "{found:?}"
            );
        }
    }
}
