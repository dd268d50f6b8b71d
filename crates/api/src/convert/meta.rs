//! `metadata`: names, namespace, labels.

use smol_str::SmolStr;
use towpath_core::model::{Labels, PodUid};

use crate::check;
use crate::fault::quote;
use crate::field::{Field, Fields};
use crate::limits;
use crate::outcome::Kind;
use crate::value::Content;

/// The metadata that we read.
pub(super) struct Meta {
    /// `None` when missing or invalid; reported.
    pub(super) name: Option<SmolStr>,
    /// What stands there instead of a name, as a message shows it.
    pub(super) bad_name: Option<String>,
    /// `None` for cluster-wide kinds, or when invalid (reported).
    pub(super) namespace: Option<SmolStr>,
    pub(super) labels: Labels,
    /// Of Pods, as container runtimes are told it.
    pub(super) uid: Option<PodUid>,
}

/// On the API's copy of a static pod: the uid that the kubelet gave the pod itself.
const MIRRORED: &str = "kubernetes.io/config.mirror";

/// Reads `metadata`; `None` when there is none to read (reported).
pub(super) fn read(root: &Fields<'_>, kind: Kind) -> Option<Meta> {
    let field = root.require("metadata", "write metadata with at least a name")?;
    let metadata = field.fields()?;
    let written = metadata.get("name");
    let name = written.as_ref().map(|name| read_name(name, kind));
    let bad_name = match (&name, written.map(|name| &name.value.content)) {
        (Some(None), Some(Content::Scalar { text, .. })) => Some(quote(text)),
        _ => None,
    };
    if name.is_none() && !metadata.is_broken() {
        let advice = if metadata.get("generateName").is_some() {
            "a manifest in a file needs a fixed name; write name instead of generateName"
        } else {
            "write the object's name"
        };
        field.error("name is missing", advice);
    }
    // Of a policy the labels mean nothing to us.
    let labels = match kind {
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => None,
        _ => metadata.get("labels"),
    };
    Some(Meta {
        name: name.flatten(),
        bad_name,
        namespace: if kind.is_namespaced() {
            read_namespace(&metadata)
        } else {
            None
        },
        labels: labels
            .and_then(|labels| read_labels(&labels))
            .unwrap_or_default(),
        uid: match kind {
            Kind::Pod => read_uid(&metadata),
            _ => None,
        },
    })
}

fn read_name(field: &Field<'_>, kind: Kind) -> Option<SmolStr> {
    let text = field.text()?;
    let checked = match kind {
        Kind::Namespace => check::label_name(text),
        _ => check::object_name(text),
    };
    field.checked(checked).map(SmolStr::new)
}

fn read_namespace(metadata: &Fields<'_>) -> Option<SmolStr> {
    match metadata.get("namespace") {
        // It may have stood in the part that could not be read.
        None if metadata.is_broken() => None,
        None => Some(SmolStr::new_static("default")),
        Some(field) => match field.text()? {
            "" => Some(SmolStr::new_static("default")),
            text => field.checked(check::label_name(text)).map(SmolStr::new),
        },
    }
}

fn read_labels(field: &Field<'_>) -> Option<Labels> {
    let fields = field.fields()?;
    if fields.iter().len() > limits::LABELS {
        field.error(
            format!(
                "the object has {} labels, more than {}",
                fields.iter().len(),
                limits::LABELS
            ),
            "remove those that nothing selects by",
        );
        return None;
    }
    let pairs = fields.iter().filter_map(|(key, value)| {
        let key = value.checked(check::label_key(key));
        let text = value.text()?;
        let text = value.checked(check::label_value(text));
        Some((key?, text?))
    });
    Some(pairs.collect())
}

/// A uid in another form than Kubernetes' own is as good as none.
fn read_uid(metadata: &Fields<'_>) -> Option<PodUid> {
    let mirrored = metadata.get("annotations").and_then(|field| {
        let annotations = field.fields()?;
        annotations.get(MIRRORED)?.text()?.parse().ok()
    });
    mirrored.or_else(|| metadata.get("uid")?.text()?.parse().ok())
}
