//! Threads of the agent: named, and none may die unnoticed.

use std::sync::mpsc::SyncSender;
use std::thread::{Builder, JoinHandle};

use super::AgentError;
use super::event::Event;

/// Tells the graph when its thread panics: the agent then ends, with the rules in place.
pub(super) struct Guard {
    name: &'static str,
    sender: SyncSender<Event>,
}

impl Guard {
    pub(super) fn new(name: &'static str, sender: SyncSender<Event>) -> Self {
        Self { name, sender }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // When the graph is gone too, the agent ends already.
            self.sender.send(Event::Panicked(self.name)).ok();
        }
    }
}

/// Starts a thread.
pub(super) fn spawn(
    name: &'static str,
    sender: SyncSender<Event>,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, AgentError> {
    let guard = Guard::new(name, sender);
    let body = move || {
        let _guard = guard;
        body();
    };
    Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|source| AgentError::Thread { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn a_panic_is_told() {
        let (sender, receiver) = sync_channel(1);

        let thread = spawn("fragile", sender, || panic!("on purpose")).unwrap();

        assert!(matches!(receiver.recv(), Ok(Event::Panicked("fragile"))));
        assert!(thread.join().is_err());
    }
}
