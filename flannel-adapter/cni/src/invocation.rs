//! What the runtime says in variables: the verb, and which attachment of which pod it is about.

use std::ffi::OsString;

use crate::error::CniError;

/// Longest id of a container; runtimes use 64 characters.
const MOST_ID: usize = 256;
/// Longest value in `CNI_ARGS` that we take: names of Kubernetes objects have at most 253 characters.
const MOST_VALUE: usize = 253;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// An interface of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) container: String,
    pub(crate) interface: String,
}

/// Who the pod is, as `CNI_ARGS` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
}

/// A variable of the process.
pub(crate) type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Verb {
    /// Reads `CNI_COMMAND`.
    pub(crate) fn read(variable: Variable<'_>) -> Result<Self, CniError> {
        let text = required(variable, "CNI_COMMAND")?;
        match text.as_str() {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            _ => Err(CniError::environment(
                "CNI_COMMAND",
                "is none of ADD, DEL, CHECK, STATUS, GC, VERSION",
            )),
        }
    }
}

impl Attachment {
    /// Reads `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub(crate) fn read(variable: Variable<'_>) -> Result<Self, CniError> {
        let container = required(variable, "CNI_CONTAINERID")?;
        if !is_container_id(&container) {
            let fault = "is no id of a container: letters, digits, and inside of it . _ -";
            return Err(CniError::environment("CNI_CONTAINERID", fault));
        }
        let interface = required(variable, "CNI_IFNAME")?;
        if !is_interface_name(&interface) {
            let fault = "is no name of an interface: at most 15 bytes without / : and white space";
            return Err(CniError::environment("CNI_IFNAME", fault));
        }
        Ok(Self {
            container,
            interface,
        })
    }
}

/// Reads `CNI_NETNS`.
pub(crate) fn read_network_namespace(variable: Variable<'_>) -> Result<String, CniError> {
    required(variable, "CNI_NETNS")
}

impl PodName {
    /// Reads `CNI_ARGS`: `KEY=VALUE` pairs, separated by semicolons. Keys of others are theirs.
    pub(crate) fn read(variable: Variable<'_>) -> Result<Self, CniError> {
        let text = required(variable, "CNI_ARGS")?;
        let (mut namespace, mut name, mut uid) = (None, None, None);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let fault = "is not a list of KEY=VALUE pairs with semicolons between them";
                return Err(CniError::environment("CNI_ARGS", fault));
            };
            match key {
                "K8S_POD_NAMESPACE" => namespace = Some(value),
                "K8S_POD_NAME" => name = Some(value),
                "K8S_POD_UID" => uid = Some(value),
                _ => {}
            }
        }
        let checked = |key: &str, value: Option<&str>| {
            let value = value.filter(|value| is_object_name(value));
            let fault = || format!("names no {key}; this plugin is for pods of Kubernetes");
            value
                .map(str::to_owned)
                .ok_or_else(|| CniError::environment("CNI_ARGS", &fault()))
        };
        Ok(Self {
            namespace: checked("K8S_POD_NAMESPACE", namespace)?,
            name: checked("K8S_POD_NAME", name)?,
            uid: uid.filter(|uid| is_object_name(uid)).map(str::to_owned),
        })
    }
}

fn required(variable: Variable<'_>, name: &str) -> Result<String, CniError> {
    match variable(name).map(OsString::into_string) {
        Some(Ok(text)) if !text.is_empty() => Ok(text),
        Some(Ok(_)) | None => Err(CniError::environment(name, "is missing")),
        Some(Err(_)) => Err(CniError::environment(name, "is not UTF-8")),
    }
}

pub(crate) fn is_container_id(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    text.len() <= MOST_ID
        && text.starts_with(is_plain)
        && text
            .chars()
            .all(|c| is_plain(c) || matches!(c, '.' | '_' | '-'))
}

pub(crate) fn is_interface_name(text: &str) -> bool {
    let is_bad = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
    !text.is_empty() && text.len() <= 15 && !matches!(text, "." | "..") && !text.contains(is_bad)
}

/// Wide enough for every name in Kubernetes; the agent looks it up and finds it or not.
fn is_object_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    !text.is_empty() && text.len() <= MOST_VALUE && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn pod(arguments: &str) -> Result<PodName, CniError> {
        let text = arguments.to_owned();
        PodName::read(&move |name| (name == "CNI_ARGS").then(|| text.clone().into()))
    }

    #[test]
    fn a_pod_is_read_from_the_arguments_of_a_runtime() {
        let found = pod(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=ab;K8S_POD_UID=12-34",
        );

        let expected = PodName {
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            uid: Some("12-34".to_owned()),
        };
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn arguments_that_name_no_pod_are_refused() {
        for text in [
            "",
            "IgnoreUnknown=1",
            "K8S_POD_NAMESPACE=shop",
            "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=",
            "K8S_POD_NAMESPACE=sh op;K8S_POD_NAME=web",
            "K8S_POD_NAMESPACE=../..;K8S_POD_NAME=a/b",
            "nonsense",
        ] {
            let error = pod(text).unwrap_err();

            assert_eq!(error.code, Code::Environment, "{text}: {error:?}");
        }
    }

    #[test]
    fn attachments_are_checked_as_the_specification_says() {
        let read = |container: &'static str, interface: &'static str| {
            Attachment::read(&move |name| match name {
                "CNI_CONTAINERID" => Some(container.into()),
                "CNI_IFNAME" => Some(interface.into()),
                _ => None,
            })
        };

        assert!(read("0a1b-c.d_e", "eth0").is_ok());
        for (container, interface) in [
            ("", "eth0"),
            ("-a", "eth0"),
            ("a/b", "eth0"),
            ("a", ""),
            ("a", ".."),
            ("a", "a/b"),
            ("a", "a:b"),
            ("a", "sixteen-bytes-xx"),
        ] {
            let error = read(container, interface).unwrap_err();
            assert_eq!(error.code, Code::Environment, "{container} {interface}");
        }
    }
}
