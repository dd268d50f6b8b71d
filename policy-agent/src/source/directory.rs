//! Which manifest files a directory holds, and how to tell that one changed.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, FileType, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

/// Files in one source.
pub(super) const FILES: usize = 100_000;
/// Nesting of directories.
const DEPTH: usize = 32;
/// Time stamps of files are only as fine as the kernel's clock tick; within this time two writes may look alike.
const TICK: Duration = Duration::from_millis(50);

/// Whether a file of this name is read: `*.yaml`, `*.yml` and `*.json`, without those that editors and tools hide.
pub fn is_manifest(path: &Path) -> bool {
    let is_hidden = path
        .file_name()
        .is_none_or(|name| matches!(name.as_encoded_bytes(), [b'.' | b'#', ..] | [.., b'~']));
    let has_extension = path
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json");
    has_extension && !is_hidden
}

/// Which file or directory it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    /// Inodes are used again at once; this tells old and new apart, where the file system keeps it.
    created: Option<SystemTime>,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let created = metadata.created().ok();
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            created,
        }
    }

    /// Whether both are on one file system.
    pub(super) fn shares_device(&self, other: &Self) -> bool {
        self.device == other.device
    }
}

/// What a file looks like from outside: a hash of all that a write would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signature(u64);

impl Signature {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let mut hasher = DefaultHasher::new();
        Identity::of(metadata).hash(&mut hasher);
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        (metadata.size(), modified, changed).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Whether a write right after this look could leave the same signature.
pub(super) fn is_recent(metadata: &Metadata, now: SystemTime) -> bool {
    let seconds = u64::try_from(metadata.ctime());
    let nanoseconds = u32::try_from(metadata.ctime_nsec());
    let (Ok(seconds), Ok(nanoseconds)) = (seconds, nanoseconds) else {
        return true;
    };
    let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    // A clock that jumped back makes everything recent, which costs only a read.
    now.duration_since(changed).is_ok_and(|age| age < TICK) || changed > now
}

/// Why a file or directory that is there cannot be looked at, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) reason: String,
    pub(super) advice: &'static str,
}

impl Obstacle {
    pub(super) fn new(reason: impl Into<String>, advice: &'static str) -> Self {
        let reason = reason.into();
        Self { reason, advice }
    }

    /// Of a path that [`is_dangling`].
    pub(super) fn dangling() -> Self {
        let advice = "bring back what it leads to, or remove the link";
        Self::new("the link leads nowhere", advice)
    }

    /// Of something that is neither a file nor a directory; it is never opened, since that may wait or have an effect.
    pub(super) fn special(kind: FileType) -> Self {
        let what = if kind.is_fifo() {
            "a named pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        };
        let advice = "put a file of manifests there, or remove it or its name's ending";
        Self::new(format!("it is {what}, or a link to one"), advice)
    }

    /// Of what the kernel refuses.
    pub(super) fn refused(error: &io::Error) -> Self {
        let advice = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EACCES | Errno::EPERM) => "give the agent the right to read it",
            Some(Errno::ELOOP) => "remove the link, or let it lead to a file",
            _ => "see to its file system, or remove it",
        };
        Self::new(error.to_string(), advice)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason, self.advice)
    }
}

/// Whether a link stands here that leads nowhere. What it leads to may be away for a while, like a volume that is not
/// mounted, so nothing below it is known to be gone.
pub(super) fn is_dangling(path: &Path) -> bool {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    is_link && fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Manifest files by name.
    pub(super) files: BTreeMap<Arc<str>, Signature>,
    /// Directories, the root included.
    pub(super) directories: BTreeMap<PathBuf, Identity>,
    /// Directories and files that could not be looked at. Nothing below them is known to be gone.
    pub(super) unreadable: Vec<(PathBuf, Obstacle)>,
    /// Files whose names are no text.
    pub(super) unnamed: Vec<PathBuf>,
    /// There are more files than [`FILES`].
    pub(super) is_too_large: bool,
}

/// Walks a directory. `on_directory` is called before a directory is listed, so that a watch set there misses
/// nothing. Symbolic links are followed, each directory once.
pub(super) fn walk(root: &Path, on_directory: &mut dyn FnMut(&Path)) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let mut visited = HashSet::new();
    let metadata = fs::metadata(root)?;
    if !metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    let identity = Identity::of(&metadata);
    visited.insert(identity);
    on_directory(root);
    let entries = list(root)?;
    listing.directories.insert(root.to_path_buf(), identity);
    visit(entries, 1, &mut visited, &mut listing, on_directory);
    Ok(listing)
}

/// The entries of a directory in the order of their names.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

fn visit(
    entries: Vec<PathBuf>,
    depth: usize,
    visited: &mut HashSet<Identity>,
    listing: &mut Listing,
    on_directory: &mut dyn FnMut(&Path),
) {
    for path in entries {
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_foreign = path.extension().is_some() && !is_manifest(&path);
        if is_hidden || (is_foreign && !path.is_dir() && !is_dangling(&path)) {
            continue;
        }
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(_) if is_dangling(&path) => {
                listing.unreadable.push((path, Obstacle::dangling()));
                continue;
            }
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                listing.unreadable.push((path, Obstacle::refused(&error)));
                continue;
            }
        };
        if metadata.is_dir() {
            visit_directory(path, &metadata, depth, visited, listing, on_directory);
        } else if is_manifest(&path) && !metadata.is_file() {
            let obstacle = Obstacle::special(metadata.file_type());
            listing.unreadable.push((path, obstacle));
        } else if is_manifest(&path) {
            if listing.files.len() >= FILES {
                listing.is_too_large = true;
                return;
            }
            match path.to_str() {
                Some(name) => {
                    listing.files.insert(name.into(), Signature::of(&metadata));
                }
                None => listing.unnamed.push(path),
            }
        }
    }
}

fn visit_directory(
    path: PathBuf,
    metadata: &Metadata,
    depth: usize,
    visited: &mut HashSet<Identity>,
    listing: &mut Listing,
    on_directory: &mut dyn FnMut(&Path),
) {
    let identity = Identity::of(metadata);
    // A link back to a directory above, or a second way to one that is read already.
    if !visited.insert(identity) {
        return;
    }
    if depth >= DEPTH {
        let obstacle = Obstacle::new(
            format!("directories are nested more than {DEPTH} deep"),
            "move its manifests further up",
        );
        listing.unreadable.push((path, obstacle));
        return;
    }
    on_directory(&path);
    match list(&path) {
        Ok(entries) => {
            listing.directories.insert(path, identity);
            visit(entries, depth + 1, visited, listing, on_directory);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => listing.unreadable.push((path, Obstacle::refused(&error))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn manifests_are_told_by_their_names() {
        for name in ["a.yaml", "d/b.yml", "c.json", "x.y.yaml"] {
            assert!(is_manifest(Path::new(name)), "{name}");
        }
        for name in [
            ".a.yaml",
            "..data",
            "a.yaml~",
            "#a.yaml#",
            ".a.yaml.swp",
            "a.yaml.bak",
            "yaml",
            "4913",
            "a.YAML",
        ] {
            assert!(!is_manifest(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn links_are_followed_once_and_hidden_directories_left_out() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for directory in ["sub", "..2026", ".git"] {
            fs::create_dir(path(directory)).unwrap();
        }
        for file in [
            "a.yaml",
            "sub/b.yaml",
            "..2026/c.yaml",
            ".git/d.yaml",
            "note.txt",
        ] {
            fs::write(path(file), "").unwrap();
        }
        symlink("..2026", path("..data")).unwrap();
        symlink("..data/c.yaml", path("c.yaml")).unwrap();
        symlink("..", path("sub/loop")).unwrap();
        symlink("sub", path("zub")).unwrap();

        let mut directories = Vec::new();
        let listing = walk(root.path(), &mut |path| {
            directories.push(path.to_path_buf());
        })
        .unwrap();

        let names: Vec<_> = listing
            .files
            .keys()
            .map(|name| PathBuf::from(&**name))
            .collect();
        assert_eq!(names, [path("a.yaml"), path("c.yaml"), path("sub/b.yaml")]);
        assert_eq!(directories, [root.path().to_path_buf(), path("sub")]);
        assert_eq!(listing.unreadable.len(), 0);
    }

    #[test]
    fn a_link_to_nowhere_is_not_taken_for_gone() {
        let root = tempfile::tempdir().unwrap();
        for name in ["file.yaml", "folder", "folder.d", ".hidden.yaml"] {
            symlink("nowhere", root.path().join(name)).unwrap();
        }

        let listing = walk(root.path(), &mut |_| {}).unwrap();

        let expected = ["file.yaml", "folder", "folder.d"]
            .map(|name| (root.path().join(name), Obstacle::dangling()));
        assert_eq!(listing.unreadable, expected);
    }

    #[test]
    fn what_is_no_file_is_told_and_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let _socket = UnixListener::bind(path("a.yaml")).unwrap();
        symlink("/dev/zero", path("b.yaml")).unwrap();
        mkfifo(&path("c.json"), Mode::S_IRUSR).unwrap();
        mkfifo(&path("pipe"), Mode::S_IRUSR).unwrap();

        let listing = walk(root.path(), &mut |_| {}).unwrap();

        let reasons: Vec<_> = listing
            .unreadable
            .iter()
            .map(|(path, obstacle)| (path.clone(), obstacle.reason.as_str()))
            .collect();
        let expected = [
            (path("a.yaml"), "it is a socket, or a link to one"),
            (path("b.yaml"), "it is a device, or a link to one"),
            (path("c.json"), "it is a named pipe, or a link to one"),
        ];
        assert_eq!(reasons, expected);
        assert!(listing.files.is_empty());
    }

    #[test]
    fn a_root_that_is_not_there_is_an_error() {
        let root = tempfile::tempdir().unwrap();

        let error = walk(&root.path().join("gone"), &mut |_| {}).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_directory_nested_too_deep_is_not_taken_for_empty() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join(vec!["d"; DEPTH + 1].join("/"));
        fs::create_dir_all(&deep).unwrap();

        let listing = walk(root.path(), &mut |_| {}).unwrap();

        assert_eq!(listing.unreadable.len(), 1);
    }
}
