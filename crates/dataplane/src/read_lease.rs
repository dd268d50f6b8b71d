//! Whether somebody has a file open for writing, and that nobody has while it is read (fcntl(2), "Leases").

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// Not in `libc` (include/uapi/asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;

/// The answer of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadLease {
    /// Nobody has the file open for writing. Whoever opens it for writing, or cuts it, waits until this descriptor is
    /// closed, so it is to be closed soon.
    Held,
    /// Somebody has it open for writing.
    Refused,
    /// The kernel does not say: the file belongs to another user, or its file system has no leases.
    Unknown,
}

/// Takes a read lease on a file that was opened for reading only.
#[expect(unsafe_code, reason = "an fcntl that no safe crate wraps")]
pub fn take(file: &File) -> ReadLease {
    let descriptor = file.as_raw_fd();
    // The kernel tells the holder by a signal that somebody waits. By default it is SIGIO, which ends a process; SIGURG
    // is ignored unless a process asks for it.
    // SAFETY: two operations on an open descriptor with numbers for arguments; neither touches memory of ours.
    let result = unsafe {
        match libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) {
            0 => libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK),
            error => error,
        }
    };
    match result {
        0 => ReadLease::Held,
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) => ReadLease::Refused,
        _ => ReadLease::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::thread;

    use super::*;

    #[test]
    fn a_writer_is_seen_and_waits_for_readers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let writer = File::create(&path).unwrap();

        assert_eq!(take(&File::open(&path).unwrap()), ReadLease::Refused);
        drop(writer);
        let readers = [File::open(&path).unwrap(), File::open(&path).unwrap()];
        assert_eq!(readers.each_ref().map(take), [ReadLease::Held; 2]);

        // A writer that may not wait is told so; the signal that comes with it changes nothing here.
        let error = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let waiting = thread::spawn({
            let path = path.clone();
            move || OpenOptions::new().write(true).open(path).is_ok()
        });
        drop(readers);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_file_without_leases_is_told_apart() {
        assert_eq!(take(&File::open("/dev/null").unwrap()), ReadLease::Unknown);
    }
}
