//! Takes a survey of this node: asks the kernel and reads CNI configurations. Changes nothing.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use smol_str::SmolStr;
use towpath_dataplane::link::{NetlinkError, Route, Scanner, Snapshot};
use towpath_dataplane::nft::{Flowtable, flowtables};

use super::conflist::{ConfList, MOST_BYTES, chosen, is_configuration};
use super::{Survey, SurveyedFlowtable, SurveyedLink, SurveyedProgram};
use crate::fault::Fault;

/// Files of a folder that are looked at.
const MOST_FILES: usize = 256;

/// Why a survey cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The folder of configurations cannot be read.
    #[error("cannot read CNI configurations in {folder}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Takes a survey of the network namespace of `scanner`. `own_table` says which nftables tables are ours. The configuration is
/// read by [`read_conflists`].
pub fn survey(
    scanner: &mut Scanner,
    snapshot: &Snapshot,
    conflist: Option<ConfList>,
    own_table: impl Fn(&str) -> bool,
) -> Result<Survey, SurveyError> {
    let name_of = |index: u32| {
        let link = snapshot.interfaces.iter().find(|link| link.index == index);
        link.map(|link| link.name.clone())
    };
    let links = snapshot.interfaces.iter().map(|link| SurveyedLink {
        index: link.index,
        name: link.name.clone(),
        kind: link.kind.clone(),
        master: link.master,
        has_peer: link.peer.is_some(),
    });
    let mut routed: Vec<u32> = scanner
        .routes(Route::is_to_one_host)?
        .iter()
        .map(|route| route.index)
        .collect();
    routed.dedup();
    let programs = scanner
        .attached_programs()?
        .into_iter()
        .filter_map(|program| {
            Some(SurveyedProgram {
                interface: name_of(program.index)?,
                hook: program.hook,
                name: program.name,
            })
        });
    let foreign = flowtables()?
        .into_iter()
        .filter(|flowtable| !own_table(&flowtable.table));
    Ok(Survey {
        links: links.collect(),
        routed,
        conflist,
        programs: programs.collect(),
        flowtables: foreign.map(surveyed).collect(),
    })
}

fn surveyed(flowtable: Flowtable) -> SurveyedFlowtable {
    SurveyedFlowtable {
        table: flowtable.table,
        name: flowtable.name,
        interfaces: flowtable.interfaces,
    }
}

/// The configuration that the container runtime takes from a folder, usually `/etc/cni/net.d`, and what is broken before it. A folder
/// that is not there has none.
pub fn read_conflists(folder: &Path) -> Result<(Option<ConfList>, Vec<Fault>), SurveyError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, Vec::new())),
        Err(source) => {
            return Err(SurveyError::Folder {
                folder: folder.to_owned(),
                source,
            });
        }
    };
    let mut files: Vec<(SmolStr, String)> = Vec::new();
    for entry in entries.flatten().take(MOST_FILES) {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_configuration(name)) else {
            continue;
        };
        // One that went away meanwhile, or that is no text, is as good as broken.
        files.push((name.into(), text(&entry.path()).unwrap_or_default()));
    }
    Ok(chosen(
        files
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str())),
    ))
}

fn text(path: &Path) -> io::Result<String> {
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("no plain file"));
    }
    let mut text = String::new();
    file.take(u64::try_from(MOST_BYTES).unwrap_or(u64::MAX))
        .read_to_string(&mut text)?;
    Ok(text)
}
