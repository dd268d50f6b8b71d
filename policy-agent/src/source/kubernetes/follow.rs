//! One kind, followed for ever: list, watch, and again. Tells what it hears; decides nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::backoff::{Backoff, random};
use super::connection::{Connection, Failure};
use super::resource::Resource;
use super::world::{Event, Input, Page};

/// A watch that has lived so long was a good one.
const GOOD_WATCH: Duration = Duration::from_secs(10);

/// Something heard, and when.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) input: Input,
    pub(super) at: Instant,
}

/// Nobody listens any more.
pub(super) struct Ended;

/// Who follows a kind.
pub(super) struct Follower {
    pub(super) resource: Resource,
    pub(super) connection: Connection,
    pub(super) sender: Sender<Heard>,
    /// Whether the first page of pods was read. The other kinds are listed after it, so that their first lists are at
    /// least as new as every pod of it.
    pub(super) pods: Arc<watch::Sender<bool>>,
    /// Told when a missing kind seems to be there.
    pub(super) found: Arc<Notify>,
}

/// How the watch ended.
enum Next {
    /// Go on from the last version.
    Watch,
    /// List again.
    List,
}

impl Follower {
    /// Follows until nobody listens.
    pub(super) async fn run(self) {
        if self.resource != Resource::Pod {
            let mut pods = self.pods.subscribe();
            if pods.wait_for(|is_listed| *is_listed).await.is_err() {
                return;
            }
        }
        let timing = self.connection.timing;
        let mut retry = Backoff::new(timing.retry.0, timing.retry.1);
        let mut look = Backoff::new(timing.look.0, timing.look.1);
        loop {
            let round = async {
                match self.list().await? {
                    Ok(version) => {
                        look.reset();
                        self.watch(version, &mut retry).await?;
                    }
                    Err(Failure::NotFound { .. }) if self.resource.is_optional() => {
                        self.tell(Input::Missing(self.resource)).await?;
                        let wait = look.next(random());
                        // Found or not: it is looked at again.
                        timeout(wait, self.found.notified()).await.ok();
                    }
                    // The pages came too slowly; from the beginning.
                    Err(Failure::Gone) => sleep(retry.next(random())).await,
                    Err(failure) => self.rest(failure, &mut retry).await?,
                }
                Ok(())
            };
            if let Err(Ended) = round.await {
                return;
            }
        }
    }

    /// Lists everything; tells of each page.
    async fn list(&self) -> Result<Result<u64, Failure>, Ended> {
        let path = self.resource.path();
        let (mut next, mut version) = (None, 0);
        loop {
            let is_first = next.is_none();
            let listed = self
                .connection
                .list(self.resource, &path, next.as_deref())
                .await;
            let listed = match listed {
                Ok(listed) => listed,
                Err(failure) => return Ok(Err(failure)),
            };
            if is_first {
                version = listed.version;
            }
            next = listed.next;
            let is_last = next.is_none();
            let page = Page {
                version,
                items: listed.items,
                unnamed: listed.unnamed,
                is_first,
                is_last,
            };
            self.tell(Input::Page(self.resource, page)).await?;
            if self.resource == Resource::Pod {
                self.pods.send_replace(true);
            }
            if is_last {
                return Ok(Ok(version));
            }
        }
    }

    /// Watches until a list is needed.
    async fn watch(&self, mut version: u64, retry: &mut Backoff) -> Result<(), Ended> {
        let mut was_brief = false;
        loop {
            let began = Instant::now();
            let outcome = self.watch_once(&mut version).await?;
            let was_good = began.elapsed() >= GOOD_WATCH;
            if was_good {
                retry.reset();
            }
            match outcome {
                Ok(Next::Watch) => {}
                Ok(Next::List) => return Ok(()),
                Err(Failure::Gone) => {
                    self.tell(Input::Expired(self.resource)).await?;
                    sleep(retry.next(random())).await;
                    return Ok(());
                }
                // It had worked: one try at once, of which nobody need be told.
                Err(failure @ (Failure::Unreachable { .. } | Failure::Silent { .. }))
                    if was_good =>
                {
                    debug!(resource = self.resource.plural(), %failure, "the watch broke");
                }
                Err(failure) => {
                    // One that ends at once may have been cut; two are no watches.
                    let is_brief = matches!(failure, Failure::Brief);
                    let is_list_needed =
                        matches!(failure, Failure::Body(_)) || (is_brief && was_brief);
                    was_brief = is_brief;
                    self.rest(failure, retry).await?;
                    if is_list_needed {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn watch_once(&self, version: &mut u64) -> Result<Result<Next, Failure>, Ended> {
        let began = Instant::now();
        let mut watch = match self.connection.watch(self.resource, *version).await {
            Ok(watch) => watch,
            // The kind has gone: the list will say so.
            Err(Failure::NotFound { .. }) => return Ok(Ok(Next::List)),
            Err(failure) => return Ok(Err(failure)),
        };
        self.tell(Input::Healthy(self.resource)).await?;
        loop {
            let (events, outcome) = match self.connection.events(&mut watch).await {
                Ok(Some(events)) => (events, None),
                Ok(None) if began.elapsed() < Duration::from_secs(1) => {
                    (Vec::new(), Some(Err(Failure::Brief)))
                }
                Ok(None) => (Vec::new(), Some(Ok(Next::Watch))),
                Err((events, failure)) => (events, Some(Err(failure))),
            };
            let at = Instant::now();
            for event in events {
                *version = match &event {
                    Event::There(item) => item.version,
                    Event::Gone { version, .. } | Event::Bookmark(version) => *version,
                };
                let input = Input::Event(self.resource, event);
                self.send(Heard { input, at }).await?;
            }
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
        }
    }

    /// Says what is wrong, and waits.
    async fn rest(&self, failure: Failure, retry: &mut Backoff) -> Result<(), Ended> {
        let wait = retry.next(random()).max(failure.retry_after());
        let reason = format!("{}: {failure}", self.resource.plural());
        self.tell(Input::Trouble(self.resource, reason)).await?;
        sleep(wait).await;
        Ok(())
    }

    async fn tell(&self, input: Input) -> Result<(), Ended> {
        let at = Instant::now();
        self.send(Heard { input, at }).await
    }

    async fn send(&self, heard: Heard) -> Result<(), Ended> {
        self.sender.send(heard).await.map_err(|_| Ended)
    }
}
