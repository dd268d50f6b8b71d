//! Files that are replaced as a whole: whatever happens, the old content or the new one is there, never a part.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces the file at `path`, with these permission bits. Once it returns the new content outlives a power cut; after
/// a failure the old one is there.
pub fn replace(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let fresh = unfinished(path);
    remove(&fresh)?;
    let written = write_whole(&fresh, mode, write).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // What failed is told; that a part is left as well would not help.
        remove(&fresh).ok();
    }
    written?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Where the new content stands until it is whole: beside it, under a hidden name. A crash may leave it there.
pub fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// Removes a file; one that is not there is gone already.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Nobody reads it before it has its permissions: it is made for its owner alone.
fn write_whole(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut file = BufWriter::new(file);
    write(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whatever_a_crash_has_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        fs::write(&path, "old").unwrap();
        fs::write(unfinished(&path), "half of something longer").unwrap();

        replace(&path, 0o640, |file| file.write_all(b"new")).unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(mode(&path), 0o640);
        assert!(!unfinished(&path).exists());
    }

    #[test]
    fn a_failure_leaves_the_old_content_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        fs::write(&path, "old").unwrap();

        let outcome = replace(&path, 0o600, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("the disk is full"))
        });

        assert_eq!(outcome.unwrap_err().to_string(), "the disk is full");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_unfinished_content_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");

        replace(&path, 0o644, |file| {
            file.flush()?;
            assert_eq!(mode(&unfinished(&path)), 0o600);
            Ok(())
        })
        .unwrap();

        assert_eq!(mode(&path), 0o644);
    }
}
