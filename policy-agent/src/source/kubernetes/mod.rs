//! A Kubernetes API server as a source.
//!
//! [`KubernetesSource::watch`] follows it on a thread of its own, for the agent; [`load`] lists everything once, for
//! the command line. What decides is pure: [`world`] with [`collection`] under it. Around them a thin shell:
//! [`follow`] lists and watches a kind, [`connection`] makes requests, [`stream`] cuts answers into objects, so that
//! never more than one page of slim objects is in memory. Of an object that was handed out its name, version and a
//! hash of its meaning are kept.

mod backoff;
mod change;
mod collection;
mod connection;
mod faults;
mod follow;
mod item;
mod line;
mod nodes;
mod own_node;
mod resource;
mod services;
mod stream;
mod world;
#[cfg(test)]
mod world_tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use smol_str::SmolStr;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use towpath_api::Place;
use towpath_core::model::{Cluster, Update};

pub(crate) use self::backoff::{Backoff, random};
pub(crate) use self::change::Change;
pub use self::connection::ConnectError;
use self::connection::Timing;
pub(crate) use self::connection::{Connection, Failure};
use self::follow::{Follower, Heard};
pub(crate) use self::nodes::NodesSeen;
pub(crate) use self::own_node::{OwnNode, OwnNodeWatch};
use self::resource::Resource;
use self::world::{Input, Page, Read, Step, World};
use super::{Batch, Loaded, Tally};
use crate::publish::Publisher;

/// What was heard and is not taken in yet, in messages; a page of a list is one.
const QUEUE: usize = 64;
/// Messages that become one batch at most.
const AT_ONCE: usize = 512;
/// Reads at a time; further ones wait.
const READS: usize = 8;

/// An API server, and who asks.
pub struct KubernetesSource {
    runtime: Runtime,
    connection: Connection,
    publisher: Option<Publisher>,
}

/// Why a cluster could not be read once.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The API server cannot even be asked.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The API server knows us and says no, or does not know us.
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl KubernetesSource {
    /// Reads the configuration: a kubeconfig, or without one the service account of the pod that this process is in.
    /// The API server need not be there.
    pub fn open(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        Self::open_with(kubeconfig, Timing::default())
    }

    fn open_with(kubeconfig: Option<&Path>, timing: Timing) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ConnectError::Runtime)?;
        let kubeconfig: Option<PathBuf> = kubeconfig.map(Path::to_owned);
        let connection = runtime.block_on(Connection::open(kubeconfig.as_ref(), timing))?;
        Ok(Self {
            runtime,
            connection,
            publisher: None,
        })
    }

    /// Has something told to the API server while it is followed.
    pub(crate) fn publishing(mut self, publisher: Option<Publisher>) -> Self {
        self.connection.own = publisher.as_ref().map(Publisher::own_node);
        self.publisher = publisher;
        self
    }

    /// Follows the API server on a thread of its own, for the agent of this node. The first batch in sync is the
    /// whole state; those before it have no updates and only say what is missing. `emit` may block: then nothing more
    /// is read. Dropping the handle ends the thread.
    pub fn watch(
        self,
        node: &str,
        emit: impl FnMut(Batch) + Send + 'static,
    ) -> io::Result<KubernetesHandle> {
        let (stop, stopped) = oneshot::channel();
        let world = World::new(Some(SmolStr::new(node)));
        let Self {
            runtime,
            connection,
            publisher,
        } = self;
        let mut tasks = JoinSet::new();
        if let Some(publisher) = publisher {
            tasks.spawn_on(publisher.run(connection.clone()), runtime.handle());
        }
        let thread = Builder::new()
            .name("kubernetes".to_owned())
            .spawn(move || runtime.block_on(run(connection, world, emit, stopped, tasks)))?;
        Ok(KubernetesHandle {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Lists everything once.
    fn load(&self) -> Result<Loaded, LoadError> {
        let mut world = World::new(None);
        self.runtime.block_on(async {
            for resource in Resource::ALL {
                list_once(&self.connection, &mut world, resource).await?;
            }
            Ok::<_, LoadError>(())
        })?;
        let mut cluster = Cluster::default();
        let mut places = BTreeMap::new();
        let place = Place {
            file: "kubernetes".into(),
            line: 0,
        };
        for update in world.step().updates {
            if let Update::Upsert(object) = &update {
                places.insert(object.key(), place.clone());
            }
            cluster.apply(update);
        }
        Ok(Loaded {
            cluster,
            places,
            findings: world.findings(),
            state: world.state(),
        })
    }
}

/// Reads a cluster once.
pub fn load(kubeconfig: Option<&Path>) -> Result<Loaded, LoadError> {
    KubernetesSource::open(kubeconfig)?.load()
}

/// A cluster that is followed; dropping it ends the thread.
pub struct KubernetesHandle {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for KubernetesHandle {
    fn drop(&mut self) {
        // When the thread has gone there is nobody to stop.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was told by what `emit` holds.
            thread.join().ok();
        }
    }
}

async fn list_once(
    connection: &Connection,
    world: &mut World,
    resource: Resource,
) -> Result<(), LoadError> {
    let (path, mut next) = (resource.path(), None);
    loop {
        let is_first = next.is_none();
        let listed = match connection.list(resource, &path, next.as_deref()).await {
            Ok(listed) => listed,
            Err(Failure::NotFound { .. }) if resource.is_optional() => {
                world.take(Input::Missing(resource));
                return Ok(());
            }
            Err(failure) => return Err(failure.into()),
        };
        next = listed.next;
        let page = Page {
            version: listed.version,
            items: listed.items,
            unnamed: listed.unnamed,
            is_first,
            is_last: next.is_none(),
        };
        world.take(Input::Page(resource, page));
        if next.is_none() {
            return Ok(());
        }
    }
}

/// Follows all kinds until it is told to stop, beside what is done already.
async fn run(
    connection: Connection,
    world: World,
    emit: impl FnMut(Batch),
    mut stopped: oneshot::Receiver<()>,
    mut tasks: JoinSet<()>,
) {
    let (sender, mut receiver) = channel(QUEUE);
    let found = Arc::new(Notify::new());
    let pods = Arc::new(watch::Sender::new(false));
    for resource in Resource::ALL {
        let follower = Follower {
            resource,
            connection: connection.clone(),
            sender: sender.clone(),
            pods: pods.clone(),
            found: found.clone(),
        };
        tasks.spawn(follower.run());
    }
    let mut owner = Owner {
        world,
        emit,
        reads: Arc::new(Semaphore::new(READS)),
        connection,
        sender,
        found,
    };
    loop {
        tokio::select! {
            // The sender is dropped to stop us.
            _ = &mut stopped => return,
            heard = receiver.recv() => match heard {
                Some(heard) => owner.take(heard, &mut receiver, &mut tasks),
                None => return,
            },
            Some(done) = tasks.join_next() => {
                if let Err(error) = done && let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

/// Owns what is known.
struct Owner<E> {
    world: World,
    emit: E,
    connection: Connection,
    sender: Sender<Heard>,
    reads: Arc<Semaphore>,
    found: Arc<Notify>,
}

impl<E: FnMut(Batch)> Owner<E> {
    /// Takes in what was heard, and what else is there, and tells what changed.
    fn take(&mut self, heard: Heard, receiver: &mut Receiver<Heard>, tasks: &mut JoinSet<()>) {
        let received = heard.at;
        self.world.take(heard.input);
        for _ in 1..AT_ONCE {
            let Ok(heard) = receiver.try_recv() else {
                break;
            };
            self.world.take(heard.input);
        }
        let Step {
            updates,
            is_news,
            reads,
            found,
            tally,
        } = self.world.step();
        for read in reads {
            let (connection, sender) = (self.connection.clone(), self.sender.clone());
            tasks.spawn(answer(read, connection, sender, self.reads.clone()));
        }
        if found.is_some() {
            self.found.notify_one();
        }
        self.tell(updates, tally, is_news, received);
    }

    fn tell(&mut self, updates: Vec<Update>, tally: Tally, is_news: bool, received: Instant) {
        if updates.is_empty() && !is_news && tally == Tally::default() {
            return;
        }
        (self.emit)(Batch {
            updates,
            findings: self.world.findings(),
            state: self.world.state(),
            received,
            objects: self.world.objects(),
            files: 0,
            tally,
            versions: self.world.versions(),
        });
    }
}

/// Makes a read until it succeeds.
async fn answer(
    read: Read,
    connection: Connection,
    sender: Sender<Heard>,
    permits: Arc<Semaphore>,
) {
    let (least, most) = connection.timing.retry;
    let mut retry = Backoff::new(least, most);
    if read.is_delayed {
        sleep(retry.next(random())).await;
    }
    loop {
        let Ok(permit) = permits.acquire().await else {
            return;
        };
        let answer = connection.read(&read).await;
        drop(permit);
        let at = Instant::now();
        let failure = match answer {
            Ok(answer) => {
                let input = Input::Answer(read, answer);
                // When the owner is gone, the source has ended.
                sender.send(Heard { input, at }).await.ok();
                return;
            }
            Err(failure) => failure,
        };
        let wait = retry.next(random()).max(failure.retry_after());
        let reason = format!("{} as of a new pod: {failure}", read.resource.plural());
        let input = Input::ReadTrouble(read.clone(), reason);
        if sender.send(Heard { input, at }).await.is_err() {
            return;
        }
        sleep(wait).await;
    }
}
