//! Waiting for a socket or for another thread's word to stop waiting.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Ends the wait of the thread that owns the receiving half; can be cloned and sent.
#[derive(Clone, Debug)]
pub struct Waker {
    pipe: Arc<PipeWriter>,
}

impl Waker {
    /// Makes the current wait, or else the next one, return at once.
    pub fn wake(&self) {
        // A full pipe already wakes; a closed one has nobody to wake.
        (&*self.pipe).write_all(&[0]).ok();
    }
}

/// The half that waits.
#[derive(Debug)]
pub struct Sleeper {
    pipe: PipeReader,
    waker: Waker,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awake {
    /// The socket has something to read, or an error to fetch.
    pub is_readable: bool,
    /// A [`Waker`] was used.
    pub is_woken: bool,
}

impl Sleeper {
    /// Both halves; the other one is [`Sleeper::waker`].
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        for end in [reader.as_fd(), writer.as_fd()] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            pipe: reader,
            waker: Waker {
                pipe: Arc::new(writer),
            },
        })
    }

    /// A handle that ends [`Sleeper::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Waits for `socket`, a waker, or the end of `timeout`.
    pub fn wait(&mut self, socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<Awake> {
        let mut watched = [
            PollFd::new(socket, PollFlags::POLLIN),
            PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN),
        ];
        // A wait that is too long for the type ends earlier; the caller waits again.
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_events = |watched: &PollFd<'_>| watched.any().unwrap_or(false);
        let awake = Awake {
            is_readable: has_events(&watched[0]),
            is_woken: has_events(&watched[1]),
        };
        if awake.is_woken {
            let mut drained = [0; 64];
            while matches!(self.pipe.read(&mut drained), Ok(length) if length == drained.len()) {}
        }
        Ok(awake)
    }
}
