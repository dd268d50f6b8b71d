//! Reads Flannel's files. Parsing stands with each of them.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::fault::Parsed;
use crate::net_conf::NetConf;
use crate::subnet_env::SubnetEnv;

/// Both files take a few hundred bytes.
const MOST_BYTES: u64 = 256 * 1024;

/// Why a file cannot be read. One that is not there is no error.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

/// Reads `subnet.env`; none if flanneld has not written it since the node started.
pub fn subnet_env(path: &Path) -> Result<Option<Parsed<SubnetEnv>>, FileError> {
    let text = text(path)?;
    Ok(text.map(|text| SubnetEnv::parse(&path.display().to_string(), &text)))
}

/// Reads `net-conf.json`; none if it is not there.
pub fn net_conf(path: &Path) -> Result<Option<Parsed<Option<NetConf>>>, FileError> {
    let text = text(path)?;
    Ok(text.map(|text| NetConf::parse(&path.display().to_string(), &text)))
}

/// The text of a plain file. What is not UTF-8 becomes a text that the parser refuses.
fn text(path: &Path) -> Result<Option<String>, FileError> {
    let failed = |source| FileError {
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("no plain file")));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_none_and_a_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");

        assert!(subnet_env(&path).unwrap().is_none());
        fs::write(&path, b"FLANNEL_MTU=14\xff").unwrap();
        let parsed = subnet_env(&path).unwrap().unwrap();
        let refused = net_conf(folder.path()).unwrap_err();

        assert!(
            parsed
                .faults
                .iter()
                .any(|fault| fault.field == "FLANNEL_MTU")
        );
        assert_eq!(
            refused.to_string(),
            format!("cannot read {}", folder.path().display())
        );
    }
}
