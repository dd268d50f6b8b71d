//! From a tree to an object of the model.
//!
//! Each kind has a file. All of them read the whole object and report every fault; whether there was an error
//! decides at the end between the object and its stand-in, so no half-read policy can be taken for a good one.

mod cluster_network_policy;
mod endpoint;
mod meta;
mod network_policy;
mod node;
mod selector;

use smol_str::SmolStr;
use towpath_core::model::{
    Action, Labels, Namespace, Object, Peers, Policy, PolicyId, PolicyKind, Ports, Rule, Subject,
    Tier,
};

use crate::fault::{Fault, Faults, Severity, quote};
use crate::field::{Field, Fields, is_near};
use crate::outcome::{BadObject, Identity, Kind, Outcome, show_kind};
use crate::value::{Content, Value};
use crate::yaml::SyntaxError;
use meta::Meta;

/// The label that the API server sets on every namespace.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What a converter makes of an object. It counts only when no error was reported.
struct Converted {
    object: Option<Object>,
    /// What closes the subject if there was an error.
    stand_in: Option<Policy>,
}

/// Converts one object. `value` may come from any serde format; lists are not expanded here.
pub fn convert(value: &Value<'_>) -> Outcome {
    convert_broken(value, None)
}

/// As [`convert`], for a document that ended in an error; the result is then never an object.
pub(crate) fn convert_broken(value: &Value<'_>, syntax: Option<&SyntaxError>) -> Outcome {
    let faults = Faults::default();
    if let Some(error) = syntax {
        faults.push(syntax_fault(error));
    }
    let recognised = recognise(&Field::root(value, &faults));
    let kind = match recognised {
        Recognised::Ours(kind) => kind,
        Recognised::Ignored(kind) if syntax.is_none() => {
            return Outcome::Ignored {
                kind,
                remarks: faults.into_vec(),
            };
        }
        Recognised::Ignored(_) | Recognised::Unknown => {
            return Outcome::Bad(BadObject {
                identity: None,
                faults: faults.into_vec(),
                stand_in: None,
            });
        }
    };
    convert_known(kind, value, faults)
}

/// Converts an object of a kind that is known from elsewhere: the API server leaves `kind` out of the items of a list.
pub(crate) fn convert_known(kind: Kind, value: &Value<'_>, faults: Faults) -> Outcome {
    let (identity, converted) = convert_kind(kind, &Field::root(value, &faults));
    let errors = faults.errors();
    let faults = faults.into_vec();
    match converted.object {
        Some(object) if errors == 0 => Outcome::Object {
            object,
            remarks: faults,
        },
        _ => {
            let reason = BadObject::reason(&faults);
            let stand_in = converted.stand_in.map(|policy| Policy {
                invalid: Some(reason),
                ..policy
            });
            Outcome::Bad(BadObject {
                identity: Some(identity),
                faults,
                stand_in,
            })
        }
    }
}

/// The fault of a text that is no document.
pub(crate) fn syntax_fault(error: &SyntaxError) -> Fault {
    Fault {
        severity: Severity::Error,
        path: String::new(),
        line: error.line,
        message: error.complaint.message.clone(),
        advice: error.complaint.advice.clone(),
    }
}

fn convert_kind(kind: Kind, root: &Field<'_>) -> (Identity, Converted) {
    let unnamed = Identity {
        kind,
        namespace: None,
        name: None,
        bad_name: None,
    };
    let nothing = Converted {
        object: None,
        stand_in: None,
    };
    let Some(fields) = root.fields() else {
        return (unnamed, nothing);
    };
    let Some(meta) = meta::read(&fields, kind) else {
        return (unnamed, nothing);
    };
    let converted = match kind {
        Kind::Namespace => convert_namespace(&meta),
        Kind::Node => node::convert(&fields, &meta),
        Kind::Pod => endpoint::convert_pod(&fields, &meta),
        Kind::WorkloadEndpoint => endpoint::convert_workload_endpoint(&fields, &meta),
        Kind::NetworkPolicy => network_policy::convert(&fields, &meta),
        Kind::ClusterNetworkPolicy => cluster_network_policy::convert(&fields, &meta),
    };
    (
        Identity {
            kind,
            namespace: meta.namespace,
            name: meta.name,
            bad_name: meta.bad_name,
        },
        converted,
    )
}

fn convert_namespace(meta: &Meta) -> Converted {
    let object = meta.name.clone().map(|name| {
        let own = (SmolStr::new_static(NAMESPACE_NAME_LABEL), name.clone());
        let labels: Labels = meta.labels.iter().cloned().chain([own]).collect();
        Object::Namespace(Namespace { name, labels })
    });
    Converted {
        object,
        stand_in: None,
    }
}

/// The closed stand-in for a policy whose subject is known: everything is denied, both ways. Its reason is
/// filled in later, and its name by the reader of the file when the object has none.
fn closed(
    kind: PolicyKind,
    namespace: SmolStr,
    name: Option<SmolStr>,
    subject: Subject,
    order: i32,
) -> Policy {
    let (tier, rules) = match kind {
        // A NetworkPolicy isolates by selecting.
        PolicyKind::NetworkPolicy => (Tier::NETWORK_POLICY, Vec::new()),
        // Whatever its tier was meant to be: in Admin nothing else can open what it may have wanted closed.
        PolicyKind::ClusterNetworkPolicy => {
            let name = Some(SmolStr::new_static("stand-in of an invalid policy"));
            let rule = Rule {
                name,
                action: Action::Deny,
                peers: Peers::Any,
                ports: Ports::Any,
            };
            (Tier::ADMIN, vec![rule])
        }
    };
    Policy {
        id: PolicyId {
            kind,
            namespace,
            name: name.unwrap_or_default(),
        },
        tier,
        order,
        subject,
        ingress: Some(rules.clone()),
        egress: Some(rules),
        invalid: None,
    }
}

/// What `apiVersion` and `kind` say.
enum Recognised {
    /// One of our kinds; what is wrong with the version is already reported.
    Ours(Kind),
    /// A kind that policy does not depend on, or a policy of another system (reported).
    Ignored(String),
    /// Not to be told; reported.
    Unknown,
}

/// Kinds of policies that we do not enforce, with what to do.
const UNENFORCED: [(&str, &str); 7] = [
    (
        "AdminNetworkPolicy",
        "write it as a ClusterNetworkPolicy of tier Admin",
    ),
    (
        "BaselineAdminNetworkPolicy",
        "write it as a ClusterNetworkPolicy of tier Baseline",
    ),
    (
        "CiliumClusterwideNetworkPolicy",
        "write it as a ClusterNetworkPolicy",
    ),
    ("CiliumNetworkPolicy", "write it as a NetworkPolicy"),
    ("GlobalNetworkPolicy", "write it as a ClusterNetworkPolicy"),
    ("StagedNetworkPolicy", "write it as a NetworkPolicy"),
    (
        "StagedGlobalNetworkPolicy",
        "write it as a ClusterNetworkPolicy",
    ),
];

fn recognise(root: &Field<'_>) -> Recognised {
    if !matches!(root.value.content, Content::Map(_)) {
        root.error(
            "this is not a manifest",
            "a manifest is a map with apiVersion, kind and metadata",
        );
        return Recognised::Unknown;
    }
    let Some(fields) = root.fields() else {
        return Recognised::Unknown;
    };
    let written = fields.get("kind").map(|field| field.text());
    let version = fields.get("apiVersion").map(|field| field.text());
    let Some(Some(written)) = written else {
        if written.is_none() && !fields.is_broken() {
            root.error(
                "kind is missing",
                "every manifest has apiVersion, kind and metadata",
            );
        }
        return Recognised::Unknown;
    };
    if let Some((name, advice)) = UNENFORCED.iter().find(|(name, _)| *name == written) {
        root.error(format!("{name} is not enforced by towpath"), *advice);
        return Recognised::Ignored(written.to_owned());
    }
    match find_kind(written, version.flatten()) {
        None => Recognised::Ignored(show_kind(written)),
        // A version of the wrong type is reported already.
        Some(kind) if version == Some(None) => Recognised::Ours(kind),
        Some(kind) => recognise_version(&fields, root, kind, written, version.flatten()),
    }
}

/// The kind of this name, or in its group the one that was probably meant: a policy with a slip in its kind must not
/// be left out in silence.
fn find_kind(written: &str, version: Option<&str>) -> Option<Kind> {
    let is_same = |kind: &Kind| kind.name().eq_ignore_ascii_case(written);
    let is_meant = |kind: &Kind| {
        is_near(kind.name(), written)
            && version.is_some_and(|version| group(version) == group(kind.api_version()))
    };
    let mut kinds = Kind::ALL.into_iter();
    kinds.clone().find(is_same).or_else(|| kinds.find(is_meant))
}

/// The group of an `apiVersion`.
fn group(version: &str) -> Option<&str> {
    version.split_once('/').map(|(group, _)| group)
}

/// One of our kinds, at least by name. Other groups have kinds of the same names.
fn recognise_version(
    fields: &Fields<'_>,
    root: &Field<'_>,
    kind: Kind,
    written: &str,
    version: Option<&str>,
) -> Recognised {
    let Some(version) = version else {
        if !fields.is_broken() {
            root.error(
                "apiVersion is missing",
                format!("write apiVersion: {}", kind.api_version()),
            );
        }
        return Recognised::Ours(kind);
    };
    if version == kind.api_version() && written == kind.name() {
        return Recognised::Ours(kind);
    }
    let is_ours = group(version) == group(kind.api_version())
        || (kind == Kind::NetworkPolicy && version.starts_with("extensions/"));
    if !is_ours {
        let is_policy = matches!(kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy);
        if is_policy {
            root.error(
                format!(
                    "{} of {} is not enforced by towpath",
                    kind.name(),
                    quote(version)
                ),
                format!("write it for apiVersion {}", kind.api_version()),
            );
        }
        return Recognised::Ignored(kind.name().to_owned());
    }
    if written != kind.name() {
        root.error(
            format!("the kind {} does not exist", quote(written)),
            format!("did you mean {}?", kind.name()),
        );
    }
    if version != kind.api_version() {
        root.error(
            format!("{} of {} is not supported", kind.name(), quote(version)),
            format!("write it for apiVersion {}", kind.api_version()),
        );
    }
    Recognised::Ours(kind)
}
