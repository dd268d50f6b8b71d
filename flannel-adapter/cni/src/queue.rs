//! Deletions that the agent could not be told, in a bounded file that it reads at its start.
//!
//! The kernel tells the agent of interfaces that go, so a lost line costs nothing but a claim that expires.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::agent::Deletion;

/// Lines that are kept; of more, the oldest go.
pub(crate) const MOST_LINES: usize = 256;
/// More than so many lines can have.
const MOST_BYTES: u64 = 256 << 10;
/// Between two attempts to lock: the kernel has no lock with a deadline, and who holds this one writes a few lines.
const PAUSE: Duration = Duration::from_millis(5);

/// Adds a line; on disk when it returns. Without the directory no agent has ever run here, and nothing is kept.
pub(crate) fn push(path: &Path, deletion: &Deletion, deadline: Instant) -> io::Result<()> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    lock(&file, deadline)?;
    let mut bytes = Vec::new();
    (&mut file).take(MOST_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut line = serde_json::to_string(deletion)?;
    line.push('\n');
    // A line without its end was being written when the power went.
    let whole: Vec<&str> = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .collect();
    if whole.contains(&line.as_str()) {
        return Ok(());
    }
    let is_appended = whole.len() < MOST_LINES && whole.concat().len() == bytes.len();
    if is_appended {
        file.seek(SeekFrom::End(0))?;
        file.write_all(line.as_bytes())?;
    } else {
        let surplus = (whole.len() + 1).saturating_sub(MOST_LINES);
        let kept = whole[surplus..].concat() + &line;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(kept.as_bytes())?;
    }
    file.sync_all()
}

/// Takes the lock; the file's close gives it back.
fn lock(file: &File, deadline: Instant) -> io::Result<()> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process holds the lock",
                ));
            }
            Err(TryLockError::WouldBlock) => sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn deletion(number: usize) -> Deletion {
        Deletion {
            network: "cbr0".to_owned(),
            container: format!("c{number}"),
            interface: "eth0".to_owned(),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn lines(path: &Path) -> Vec<Deletion> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn the_newest_lines_are_kept_and_none_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");

        for number in 0..MOST_LINES + 3 {
            push(&path, &deletion(number), soon()).unwrap();
            push(&path, &deletion(number), soon()).unwrap();
        }

        let expected: Vec<Deletion> = (3..MOST_LINES + 3).map(deletion).collect();
        assert_eq!(lines(&path), expected);
    }

    #[test]
    fn a_torn_line_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        push(&path, &deletion(1), soon()).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"network\":\"cb").unwrap();

        push(&path, &deletion(2), soon()).unwrap();

        assert_eq!(lines(&path), [deletion(1), deletion(2)]);
    }

    #[test]
    fn without_its_directory_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/queue");

        push(&path, &deletion(1), soon()).unwrap();

        assert!(!path.exists());
    }

    #[test]
    fn who_holds_the_lock_for_ever_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        let held = File::create(&path).unwrap();
        held.lock().unwrap();

        let error = push(&path, &deletion(1), Instant::now()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
