//! The verbs of the specification.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use crate::agent::{Acknowledged, Client, Collection, Deletion, Health, PodRequest, Valid};
use crate::configuration::{self, Configuration, FailurePolicy};
use crate::error::{CniError, Code};
use crate::invocation::{Attachment, PodName, Verb, read_network_namespace};
use crate::queue;
use crate::result::Previous;
use crate::version::Version;

/// The interface by which Kubernetes knows a pod. What other networks add is not the pod's address to the API server,
/// so no policy is about it.
const POD_INTERFACE: &str = "eth0";
/// What no pod waits for may take so long.
const SHORT: Duration = Duration::from_secs(1);

/// What a verb that went well prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// On standard output.
    pub(crate) text: String,
    /// On standard error, for the log of the runtime.
    pub(crate) remark: Option<String>,
}

impl Said {
    fn remark(text: impl Into<String>) -> Self {
        Self {
            text: String::new(),
            remark: Some(text.into()),
        }
    }
}

/// What a verb leads to; an error goes with the version in which it is told.
pub(crate) type Outcome = Result<Said, (CniError, Version)>;

/// Does what the variables and the configuration ask for.
pub(crate) fn run(variable: impl Fn(&str) -> Option<OsString>, input: &[u8]) -> Outcome {
    let variable = &variable;
    let newest = |error| (error, Version::NEWEST);
    match Verb::read(variable).map_err(newest)? {
        Verb::Version => tell_version(input).map_err(newest),
        Verb::Del => Ok(delete(variable, input)),
        verb => {
            let version = configuration::version(input).map_err(newest)?;
            let done = since(verb, version)
                .and_then(|()| Configuration::read(input, version))
                .and_then(|configuration| match verb {
                    Verb::Add => add(variable, &configuration),
                    Verb::Check => check(variable, &configuration),
                    Verb::Gc => collect_garbage(configuration),
                    Verb::Status | Verb::Del | Verb::Version => status(&configuration),
                });
            done.map_err(|error| (error, version))
        }
    }
}

/// What standard input that cannot be read leads to: a deletion never fails.
pub(crate) fn unreadable(variable: impl Fn(&str) -> Option<OsString>, error: CniError) -> Outcome {
    match Verb::read(&variable) {
        Ok(Verb::Del) => Ok(Said::remark(error.message)),
        _ => Err((error, Version::NEWEST)),
    }
}

/// Whether a version of the specification has the verb.
fn since(verb: Verb, version: Version) -> Result<(), CniError> {
    let first = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Status | Verb::Gc => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::V0_3_0,
    };
    if version >= first {
        return Ok(());
    }
    let message = format!("version {version} of the specification has no such verb");
    let details = format!("it came with {first}");
    Err(CniError::new(Code::IncompatibleVersion, message, details))
}

fn tell_version(input: &[u8]) -> Result<Said, CniError> {
    // Older runtimes send nothing; what they send otherwise must be a configuration.
    let asked = if input.iter().all(u8::is_ascii_whitespace) {
        Version::NEWEST
    } else {
        match configuration::version(input) {
            Err(error) if error.code != Code::IncompatibleVersion => return Err(error),
            asked => asked.unwrap_or(Version::NEWEST),
        }
    };
    let text = serde_json::json!({
        "cniVersion": asked.text(),
        "supportedVersions": Version::ALL.map(Version::text),
    });
    Ok(Said {
        text: format!("{text}\n"),
        remark: None,
    })
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What ADD and CHECK know of the pod.
fn pod_request(
    variable: Variable<'_>,
    configuration: &Configuration,
    attachment: Attachment,
    previous: &Previous,
) -> Result<PodRequest, CniError> {
    let netns = read_network_namespace(variable)?;
    let PodName {
        namespace,
        name,
        uid,
    } = PodName::read(variable)?;
    if previous.addresses.is_empty() {
        let message =
            "prevResult has no address; towpath-cni comes after the plugin that gives one";
        return Err(CniError::configuration(message));
    }
    Ok(PodRequest {
        network: configuration.network.clone(),
        container: attachment.container,
        interface: attachment.interface,
        netns,
        namespace,
        name,
        uid,
        addresses: previous.addresses.clone(),
        host_interfaces: previous.host_interfaces.clone(),
        wait_milliseconds: 0,
    })
}

fn previous(configuration: &Configuration) -> Result<Previous, CniError> {
    let Some(raw) = &configuration.previous else {
        let message = "prevResult is missing; towpath-cni is chained after another plugin";
        return Err(CniError::configuration(message));
    };
    Previous::read(raw, configuration.version)
}

fn add(variable: Variable<'_>, configuration: &Configuration) -> Result<Said, CniError> {
    let attachment = Attachment::read(variable)?;
    let previous = previous(configuration)?;
    if attachment.interface != POD_INTERFACE {
        return Ok(Said {
            text: previous.text,
            remark: None,
        });
    }
    let request = pod_request(variable, configuration, attachment, &previous)?;
    let is_exempt = configuration.is_exempt(&request.namespace);
    let remark = match wait(configuration, request, is_exempt) {
        Ok(()) => None,
        Err(reason) if is_exempt => Some(format!(
            "the pod does not wait, as its namespace is exempt, and is closed until then: {reason}"
        )),
        Err(reason) if configuration.failure_policy == FailurePolicy::Open => Some(format!(
            "the pod starts without its policy, as failurePolicy is open: {reason}"
        )),
        Err(reason) => return Err(CniError::new(Code::TryAgainLater, LATE, reason)),
    };
    Ok(Said {
        text: previous.text,
        remark,
    })
}

const LATE: &str = "the pod's network policy is not in force yet";

/// Tells the agent of the pod, and waits until its policy is in force; the error says why it is not.
fn wait(configuration: &Configuration, request: PodRequest, is_exempt: bool) -> Result<(), String> {
    let time = if is_exempt {
        SHORT
    } else {
        configuration.timeout
    };
    let client = Client {
        socket: configuration.socket.clone(),
        deadline: Instant::now() + time,
        is_patient: !is_exempt,
    };
    let answer = if is_exempt {
        // As it stands, without a wait: the agent takes the pod over all the same.
        client.post("/v1/cni/add", &request)
    } else {
        client.ask_for_pod("/v1/cni/add", request)
    };
    match answer {
        Ok(answer) if answer.programmed => Ok(()),
        Ok(answer) => Err(answer.reason),
        Err(reason) => Err(reason),
    }
}

fn check(variable: Variable<'_>, configuration: &Configuration) -> Result<Said, CniError> {
    let attachment = Attachment::read(variable)?;
    let previous = previous(configuration)?;
    if attachment.interface != POD_INTERFACE {
        return Ok(Said::default());
    }
    let request = pod_request(variable, configuration, attachment, &previous)?;
    let client = Client {
        socket: configuration.socket.clone(),
        deadline: Instant::now() + configuration.timeout,
        is_patient: true,
    };
    match client.post::<crate::agent::Programmed>("/v1/cni/check", &request) {
        Ok(answer) if answer.programmed => Ok(Said::default()),
        Ok(answer) => Err(CniError::new(Code::NotProgrammed, LATE, answer.reason)),
        // The rules stay while no agent runs.
        Err(reason) if configuration.failure_policy == FailurePolicy::Open => {
            Ok(Said::remark(reason))
        }
        Err(reason) => Err(CniError::new(
            Code::TryAgainLater,
            "cannot ask the agent",
            reason,
        )),
    }
}

/// Never fails: whatever is wrong here, the pod must go.
fn delete(variable: Variable<'_>, input: &[u8]) -> Said {
    let read = || {
        let version = configuration::version(input)?;
        let configuration = Configuration::read(input, version)?;
        Ok((configuration, Attachment::read(variable)?))
    };
    let (configuration, attachment) = match read() {
        Ok(known) => known,
        Err(CniError { message, .. }) => return Said::remark(message),
    };
    if attachment.interface != POD_INTERFACE {
        return Said::default();
    }
    let deletion = Deletion {
        network: configuration.network,
        container: attachment.container,
        interface: attachment.interface,
    };
    let deadline = Instant::now() + SHORT;
    let client = Client {
        socket: configuration.socket,
        deadline,
        is_patient: false,
    };
    let Err(reason) = client.post::<Acknowledged>("/v1/cni/del", &deletion) else {
        return Said::default();
    };
    match queue::push(
        &configuration.queue,
        &deletion,
        deadline.max(Instant::now() + SHORT),
    ) {
        Ok(()) => Said::remark(format!("the agent will be told at its start: {reason}")),
        Err(error) => {
            let queue = configuration.queue.display();
            Said::remark(format!("cannot write {queue}: {error}; {reason}"))
        }
    }
}

fn status(configuration: &Configuration) -> Result<Said, CniError> {
    let client = Client {
        socket: configuration.socket.clone(),
        deadline: Instant::now() + SHORT,
        is_patient: false,
    };
    let health = client.get::<Health>("/v1/cni/status");
    let is_open = configuration.failure_policy == FailurePolicy::Open;
    match health {
        Ok(health) if health.ready => Ok(Said::default()),
        // Pods start all the same.
        Ok(Health { reason, .. }) | Err(reason) if is_open => Ok(Said::remark(reason)),
        Ok(health) if health.is_datapath_broken => {
            let message = "the policy of pods cannot be brought into force";
            Err(CniError::new(Code::Limited, message, health.reason))
        }
        Ok(Health { reason, .. }) => {
            let message = "the agent is not ready";
            Err(CniError::new(Code::Unavailable, message, reason))
        }
        Err(reason) => {
            let message = "the agent does not answer";
            Err(CniError::new(Code::Unavailable, message, reason))
        }
    }
}

/// Without a list of what is valid nothing is known to be garbage: pods that are being added are in no cache of the runtime
/// yet, and what libcni does know and nobody wants it has deleted one by one before.
fn collect_garbage(configuration: Configuration) -> Result<Said, CniError> {
    let Some(valid) = configuration.valid else {
        return Ok(Said::remark(
            "cni.dev/valid-attachments is missing, so nothing is forgotten",
        ));
    };
    let collection = Collection {
        network: configuration.network,
        valid: valid.into_iter().map(Valid::from).collect(),
    };
    let client = Client {
        socket: configuration.socket,
        deadline: Instant::now() + configuration.timeout,
        is_patient: true,
    };
    match client.post::<Acknowledged>("/v1/cni/gc", &collection) {
        Ok(Acknowledged {}) => Ok(Said::default()),
        Err(reason) => Err(CniError::new(
            Code::TryAgainLater,
            "cannot ask the agent",
            reason,
        )),
    }
}

#[cfg(test)]
mod tests;
