//! Reading and parsing of many files, on more than one thread where that pays.

use std::fs::{self, File, FileType, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use nix::fcntl::OFlag;
use towpath_api::Document;
use towpath_dataplane::read_lease::{self, ReadLease};

use super::directory::{Obstacle, Signature, is_dangling, is_recent};

/// Bytes of one file.
pub(super) const FILE_BYTES: u64 = 8 << 20;
/// Bytes of texts that are parsed before what was read is entered; a file that begins below it is read whole.
const BYTES_AT_ONCE: u64 = FILE_BYTES;
/// Below this number of files one thread is quicker.
const FEW: usize = 16;
/// More threads would take the machine from its pods.
const THREADS: usize = 4;

/// A file as it was read.
#[derive(Debug)]
pub(super) struct ReadFile {
    pub(super) name: Arc<str>,
    pub(super) content: Content,
    /// Whether the kernel warrants that nobody had it open for writing.
    pub(super) is_leased: bool,
}

#[derive(Debug)]
pub(super) enum Content {
    /// Its documents, or `None` when the text has the hash that was passed in.
    Documents(Seen, Option<Vec<Document>>),
    /// It is there and holds nothing at all, as every file does between being opened and being written.
    Empty(Seen),
    /// It is no longer there.
    Gone,
    /// It is there and too large.
    TooLarge(Signature),
    /// Somebody has it open for writing.
    BeingWritten,
    /// It is there and cannot be read.
    Unreadable(Obstacle),
}

/// The bytes of a file, or why there are none.
enum Bytes {
    Read(Metadata, Vec<u8>, ReadLease),
    TooLarge(Signature),
    BeingWritten,
    /// A directory.
    NoFile,
    Special(FileType),
}

/// How a file is recognised as unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// `None` when the file may change without a trace in its signature.
    pub(super) signature: Option<Signature>,
    pub(super) hash: u64,
}

/// Reads files, as many of the first ones as fit into memory at once, and at least one; the number beside a name is the
/// hash of its last known text. Results are in the order of the names.
pub(super) fn read_some(names: &[(Arc<str>, Option<u64>)]) -> Vec<ReadFile> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS);
    let next = AtomicUsize::new(0);
    let parsed = AtomicU64::new(0);
    let work = || {
        let mut files = Vec::new();
        loop {
            // Whoever takes a number reads that file, so those that were read are the first ones.
            if parsed.load(Ordering::Relaxed) >= BYTES_AT_ONCE {
                return files;
            }
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((name, hash)) = names.get(index) else {
                return files;
            };
            files.push((index, read(name, *hash, &parsed)));
        }
    };
    if names.len() < FEW || threads < 2 {
        return work().into_iter().map(|(_, file)| file).collect();
    }
    let mut files: Vec<_> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut files = work();
        for helper in helpers {
            match helper.join() {
                Ok(more) => files.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        files
    });
    files.sort_unstable_by_key(|(index, _)| *index);
    files.into_iter().map(|(_, file)| file).collect()
}

fn read(name: &Arc<str>, known: Option<u64>, parsed: &AtomicU64) -> ReadFile {
    let mut is_leased = false;
    let content = match read_bytes(Path::new(&**name)) {
        Ok(Bytes::Read(metadata, bytes, lease)) => {
            is_leased = lease == ReadLease::Held;
            let hash = hash(&bytes);
            // The time is taken after the read: a write since then has a later stamp.
            let is_settled = !is_recent(&metadata, SystemTime::now());
            let signature = is_settled.then(|| Signature::of(&metadata));
            let seen = Seen { signature, hash };
            if bytes.trim_ascii().is_empty() {
                Content::Empty(seen)
            } else {
                let documents = (known != Some(hash)).then(|| {
                    parsed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    towpath_api::read(name, &bytes)
                });
                Content::Documents(seen, documents)
            }
        }
        Ok(Bytes::TooLarge(signature)) => Content::TooLarge(signature),
        Ok(Bytes::BeingWritten) => Content::BeingWritten,
        Ok(Bytes::NoFile) => Content::Gone,
        Ok(Bytes::Special(kind)) => Content::Unreadable(Obstacle::special(kind)),
        Err(_) if is_dangling(Path::new(&**name)) => Content::Unreadable(Obstacle::dangling()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Gone,
        Err(error) => Content::Unreadable(Obstacle::refused(&error)),
    };
    ReadFile {
        name: name.clone(),
        content,
        is_leased,
    }
}

fn read_bytes(path: &Path) -> io::Result<Bytes> {
    // Looked at before it is opened: opening a named pipe would wait for a writer.
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Ok(Bytes::NoFile);
    }
    if !metadata.is_file() {
        return Ok(Bytes::Special(metadata.file_type()));
    }
    if metadata.len() > FILE_BYTES {
        return Ok(Bytes::TooLarge(Signature::of(&metadata)));
    }
    // Without waiting, if it has become a pipe since then.
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let lease = read_lease::take(&file);
    if lease == ReadLease::Refused {
        return Ok(Bytes::BeingWritten);
    }
    // Of what was opened, before it is read.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Bytes::Special(metadata.file_type()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    (&mut file).take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Ok(Bytes::TooLarge(Signature::of(&metadata)));
    }
    Ok(Bytes::Read(metadata, bytes, lease))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_are_not_in_memory_all_at_once() {
        const COUNT: usize = FEW + 2;
        let directory = tempfile::tempdir().unwrap();
        let comment = "#".repeat(usize::try_from(BYTES_AT_ONCE / 2).unwrap());
        let files: Vec<(Arc<str>, Option<u64>)> = (0..COUNT)
            .map(|number| {
                let path = directory.path().join(format!("{number:02}.yaml"));
                fs::write(&path, format!("{comment}\n")).unwrap();
                (path.to_str().unwrap().into(), None)
            })
            .collect();

        let few = read_some(&files[..FEW - 1]).len();
        let mut names = Vec::new();
        let mut rest = &files[..];
        while !rest.is_empty() {
            let read = read_some(rest);
            assert!((1..=1 + THREADS).contains(&read.len()), "{}", read.len());
            rest = &rest[read.len()..];
            names.extend(read.into_iter().map(|file| file.name));
        }

        assert_eq!(few, 2);
        assert!(names.iter().eq(files.iter().map(|(name, _)| name)));
    }
}
