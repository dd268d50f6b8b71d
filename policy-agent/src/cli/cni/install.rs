//! Puts the plugin and its configuration on the node, and takes them away again. Every file appears in one step, what
//! is already so stays untouched, and what was made is noted before it is made.
//!
//! New files and directories are made under a hidden name in the very directory that runtimes watch, and renamed:
//! containerd looks again when a name goes, not when one comes.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use towpath_runtime::file;

use super::chain::{self, ChainError, ConfigurationFile, DROP_IN, PLUGIN};

/// Name of the note in the state directory.
pub(crate) const RECORD: &str = "cni-install.json";
/// Longest configuration that is read.
const MOST_BYTES: u64 = 1 << 20;

/// How the plugin gets into the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) enum Method {
    /// A file in the drop-in directory of the network; needs a runtime with libcni 1.3 or later.
    DropIn,
    /// A copy of the configuration with the plugin at its end, which comes before the original.
    Copy,
}

/// Why an installation failed. Nothing half-made is left in use.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The chain does not allow it.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The note is not ours.
    #[error("cannot understand {}; remove what it names by hand, then the file", path.display())]
    Record {
        /// The note.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

/// What is to be installed where.
#[derive(Clone, Debug)]
pub(super) struct Installation<'a> {
    pub(super) method: Method,
    pub(super) configurations: &'a Path,
    pub(super) programs: &'a Path,
    pub(super) state: &'a Path,
    /// The program to be copied.
    pub(super) plugin: &'a Path,
    /// Its entry in a chain.
    pub(super) entry: Value,
    pub(super) network: Option<&'a str>,
}

/// What was made, so that it can be found and removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    method: Method,
    program: PathBuf,
    configuration: PathBuf,
}

/// One thing that was done: what, to which object.
pub(super) type Step = (&'static str, PathBuf);

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File {
        action,
        path,
        source,
    }
}

/// Installs; what is already as it should be stays untouched. Another installation is removed first.
pub(super) fn install(wanted: &Installation<'_>) -> Result<Vec<Step>, InstallError> {
    let files = read_configurations(wanted.configurations)?;
    let chain = chain::choose(&files, wanted.network)?;
    let file = match wanted.method {
        Method::DropIn => {
            chain.check_drop_in()?;
            ConfigurationFile {
                name: format!("{}/{DROP_IN}", chain.network),
                text: format!("{:#}\n", wanted.entry),
            }
        }
        Method::Copy => chain.copy(&files, &wanted.entry)?,
    };
    let record = Record {
        method: wanted.method,
        program: wanted.programs.join(PLUGIN),
        configuration: wanted.configurations.join(&file.name),
    };
    let mut steps = Vec::new();
    let old = read_record(wanted.state)?;
    if old.as_ref().is_some_and(|old| *old != record) {
        let keeps_program = old.is_some_and(|old| old.program == record.program);
        steps.extend(remove(wanted.state, keeps_program)?);
    }
    fs::create_dir_all(wanted.state).map_err(failed("make", wanted.state))?;
    let text = serde_json::to_vec_pretty(&record).expect("paths of this host are text");
    replace(&wanted.state.join(RECORD), &text, 0o600)?;
    let program = fs::read(wanted.plugin).map_err(failed("read", wanted.plugin))?;
    // The program comes first: a chain that names it must find it.
    let is_new = replace(&record.program, &program, 0o755)?;
    steps.push((word(is_new), record.program));
    let is_new = match wanted.method {
        Method::DropIn => drop_in(&record.configuration, file.text.as_bytes())?,
        Method::Copy => replace(&record.configuration, file.text.as_bytes(), 0o600)?,
    };
    steps.push((word(is_new), record.configuration));
    Ok(steps)
}

fn word(is_new: bool) -> &'static str {
    if is_new { "installed" } else { "unchanged" }
}

/// What is wrong with an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallationFault {
    /// The program is gone, so runtimes fail for every new pod.
    ProgramGone(PathBuf),
    /// The configuration is gone, so nobody calls the plugin.
    ConfigurationGone(PathBuf),
    /// A copy is not what would be copied now.
    OutOfDate {
        /// The copy.
        copy: PathBuf,
        /// What is different.
        difference: String,
    },
}

impl fmt::Display for InstallationFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProgramGone(path) => {
                write!(
                    formatter,
                    "the program of the chained plugin is gone: {}",
                    path.display()
                )
            }
            Self::ConfigurationGone(path) => {
                write!(
                    formatter,
                    "the configuration of the chained plugin is gone: {}",
                    path.display()
                )
            }
            Self::OutOfDate { copy, difference } => {
                write!(formatter, "{} is out of date: {difference}", copy.display())
            }
        }
    }
}

/// Whether a state directory notes an installation.
pub(crate) fn is_installed(state: &Path) -> Result<bool, InstallError> {
    Ok(read_record(state)?.is_some())
}

/// What is wrong with the installation that a state directory notes, if there is one: others may have changed what it is
/// beside or made of since. Nothing is changed here.
pub(crate) fn fault(state: &Path) -> Result<Option<InstallationFault>, InstallError> {
    let Some(record) = read_record(state)? else {
        return Ok(None);
    };
    if !record.program.exists() {
        return Ok(Some(InstallationFault::ProgramGone(record.program)));
    }
    if !record.configuration.exists() {
        let path = record.configuration;
        return Ok(Some(InstallationFault::ConfigurationGone(path)));
    }
    match record.method {
        Method::DropIn => Ok(None),
        Method::Copy => stale_copy(record.configuration),
    }
}

/// A copy is out of date when it is not what would be copied now, apart from our own entry.
fn stale_copy(copy: PathBuf) -> Result<Option<InstallationFault>, InstallError> {
    let folder = copy.parent().unwrap_or(&copy);
    let name = copy.file_name().unwrap_or_default().to_string_lossy();
    let files = read_configurations(folder)?;
    let Some(copied) = files.iter().find(|file| file.name == name) else {
        return Ok(Some(InstallationFault::ConfigurationGone(copy)));
    };
    // One that is being written is whole in a moment, and a broken one is told by others.
    let difference = chain::difference(copied, &files).unwrap_or_else(|error| match error {
        ChainError::None => Some("its original is gone".to_owned()),
        _ => None,
    });
    Ok(difference.map(|difference| InstallationFault::OutOfDate { copy, difference }))
}

/// Removes what the note of a state directory names, and the note. Nothing of others is touched.
pub(in crate::cli) fn remove(state: &Path, keeps_program: bool) -> Result<Vec<Step>, InstallError> {
    let Some(record) = read_record(state)? else {
        return Ok(Vec::new());
    };
    let mut steps = Vec::new();
    let is_gone = match record.method {
        Method::DropIn => remove_drop_in(&record.configuration)?,
        Method::Copy => remove_file(&record.configuration)?,
    };
    if is_gone {
        steps.push(("removed", record.configuration));
    }
    if !keeps_program && remove_file(&record.program)? {
        steps.push(("removed", record.program));
    }
    remove_file(&state.join(RECORD))?;
    Ok(steps)
}

fn read_record(state: &Path) -> Result<Option<Record>, InstallError> {
    let path = state.join(RECORD);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| InstallError::Record { path, source }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", &path)(source)),
    }
}

/// The files that a runtime reads.
fn read_configurations(folder: &Path) -> Result<Vec<ConfigurationFile>, InstallError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let entry = entry.map_err(failed("list", folder))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if !chain::is_configuration(&name) {
            continue;
        }
        let found = match fs::metadata(&path) {
            Ok(found) if found.is_file() => found,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed("look at", &path)(error));
            }
            Ok(_) | Err(_) => continue,
        };
        if found.len() > MOST_BYTES {
            let error = io::Error::other("it is too long for a network configuration");
            return Err(failed("read", &path)(error));
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            // Its owner replaces it just now.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        files.push(ConfigurationFile { name, text });
    }
    Ok(files)
}

/// Puts a file in its place in one step; `false` when it was so already.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    let is_so = fs::read(path).is_ok_and(|found| found == content)
        && fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o777 == mode);
    if is_so {
        return Ok(false);
    }
    file::replace(path, mode, |file| file.write_all(content)).map_err(failed("write", path))?;
    Ok(true)
}

/// The same in a drop-in directory, which comes as a whole when it is not there yet.
fn drop_in(path: &Path, content: &[u8]) -> Result<bool, InstallError> {
    let directory = path.parent().unwrap_or(path);
    if directory.exists() {
        let is_new = replace(path, content, 0o600)?;
        if is_new {
            // Runtimes watch the directory above only.
            poke(directory);
        }
        return Ok(is_new);
    }
    let fresh = hidden(directory);
    remove_directory(&fresh)?;
    fs::create_dir(&fresh).map_err(failed("make", &fresh))?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o755)).map_err(failed("open", &fresh))?;
    replace(&fresh.join(DROP_IN), content, 0o600)?;
    fs::rename(&fresh, directory).map_err(failed("move into place", directory))?;
    Ok(true)
}

/// Removes our drop-in, and its directory unless others use it.
fn remove_drop_in(path: &Path) -> Result<bool, InstallError> {
    let directory = path.parent().unwrap_or(path);
    let others = fs::read_dir(directory).map(|entries| {
        let mut names = entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name());
        names.any(|name| name != DROP_IN)
    });
    match others {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("list", directory)(error)),
        Ok(true) => {
            let is_gone = remove_file(path)?;
            poke(directory);
            Ok(is_gone)
        }
        Ok(false) => {
            let is_there = path.exists();
            let stale = hidden(directory);
            remove_directory(&stale)?;
            fs::rename(directory, &stale).map_err(failed("move away", directory))?;
            remove_directory(&stale)?;
            Ok(is_there)
        }
    }
}

/// Makes runtimes that watch the directory above look again. One that does not hear of it looks at its next start.
fn poke(directory: &Path) {
    let name = hidden(directory);
    if File::create(&name).is_ok() {
        fs::remove_file(&name).ok();
    }
}

/// A name in the same directory that runtimes do not read.
fn hidden(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.towpath"))
}

fn remove_file(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn remove_directory(path: &Path) -> Result<(), InstallError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
