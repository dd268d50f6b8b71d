//! Manifests, or what an API server has, as the state of a cluster, for commands that need no agent.

use std::fs;
use std::io::ErrorKind;
use std::path::{self, Path};

use towpath_api::{Place, Severity};
use towpath_core::model::Cluster;

use super::arguments::SourceLocation;
use super::error::CommandError;
use super::remark;
use crate::source::{self, Detail, Loaded, SourceState, kubernetes};

/// The state of a cluster as far as it could be read.
pub(super) struct World {
    pub(super) cluster: Cluster,
    /// Everything was read, and nothing of it is an error.
    pub(super) is_sound: bool,
}

/// Reads everything that is there. What is wrong is said on standard error, and the rest is used.
pub(super) fn load(source: &SourceLocation) -> Result<World, CommandError> {
    let Loaded {
        cluster,
        findings,
        state,
        ..
    } = match source {
        SourceLocation::File(directory) => load_files(directory, Detail::Problems)?,
        SourceLocation::Kubernetes(kubeconfig) => kubernetes::load(kubeconfig.as_deref())?,
    };
    for finding in &findings {
        remark(&format!("towpath: {finding}"));
    }
    let has_error = findings
        .iter()
        .any(|finding| finding.severity == Severity::Error);
    let is_sound = state.is_in_sync() && !has_error;
    if let SourceState::NotInSync { reason } = state {
        if cluster == Cluster::default() {
            return Err(CommandError::Failed(reason));
        }
        remark(&format!("towpath: {source} is incomplete: {reason}"));
    }
    Ok(World { cluster, is_sound })
}

/// Reads a directory, or one file, that must be there.
pub(super) fn load_files(root: &Path, detail: Detail) -> Result<Loaded, CommandError> {
    let failed = |text: &str| {
        let root = Place::of_path(root);
        Err(CommandError::Failed(format!(
            "cannot read manifests of {root}: {text}"
        )))
    };
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() || metadata.is_file() => Ok(source::load(root, detail)),
        Ok(_) => failed(
            "it is neither a directory nor a file; give a directory of manifests, or one file",
        ),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            failed(&format!("{error}; give a path that you may read"))
        }
        Err(_) if fs::symlink_metadata(root).is_ok() => {
            failed("the link leads nowhere; bring back what it leads to, or give another path")
        }
        Err(_) => {
            let advice =
                "it does not exist; correct the path, make the directory, or mount what holds it";
            match path::absolute(root) {
                Ok(whole) if whole != root => failed(&format!(
                    "{advice} (it was looked for as {})",
                    Place::of_path(&whole)
                )),
                _ => failed(advice),
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use towpath_api::Outcome;
    use towpath_core::model::{Cluster, Update};

    /// The state that manifests describe; all must be good.
    pub(crate) fn cluster(manifests: &str) -> Cluster {
        let mut cluster = Cluster::default();
        for document in towpath_api::read("test.yaml", manifests.as_bytes()) {
            match document.outcome {
                Outcome::Object { object, .. } => cluster.apply(Update::Upsert(object)),
                outcome => panic!("not an object: {outcome:?}"),
            };
        }
        cluster
    }

    /// A front end, a back end with two ports and both families, and a bystander.
    pub(crate) const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web } }
spec: { containers: [ { name: c, image: i } ] }
status: { podIPs: [ { ip: 10.0.0.1 }, { ip: "fd00::1" } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: db, namespace: shop, labels: { app: db } }
spec:
  containers:
  - { name: c, image: i, ports: [ { name: sql, containerPort: 5432 }, { containerPort: 53, protocol: UDP } ] }
status: { podIPs: [ { ip: 10.0.0.2 }, { ip: "fd00::2" } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: cron, namespace: shop, labels: { app: cron } }
spec: { containers: [ { name: c, image: i } ] }
status: { podIPs: [ { ip: 10.0.0.3 } ] }
"#;

    /// Only the front end may reach the back end, and only its database; over IPv6 everybody may.
    pub(crate) const DATABASE_POLICY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: db, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  ingress:
  - from: [ { podSelector: { matchLabels: { app: web } } } ]
    ports: [ { port: sql } ]
  - from: [ { ipBlock: { cidr: "fd00::/8" } } ]
"#;
}
