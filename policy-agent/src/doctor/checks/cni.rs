//! CNI configurations that fight.

use flannel_adapter::detect::Carrier;

use super::super::facts::{Cni, Facts};
use super::super::{Said, Severity, seen};
use crate::cli::cni::InstallationFault;

/// Which configuration new pods get, and what stands beside it.
pub(super) fn configurations(facts: &Facts) -> Vec<Said> {
    seen(&facts.cni, |cni| {
        let mut said: Vec<Said> = cni.files.iter().filter_map(broken).collect();
        said.extend(cni.fault.as_ref().map(changed));
        let Some(chosen) = cni.chosen() else {
            said.push(Said::new(
                Severity::Note,
                format!("no CNI configuration in {}", cni.folder),
                "a kubelet of this node starts no pod",
                "Flannel's DaemonSet puts it there; look at its init container, or give the right --cni-config-dir",
            ));
            return said;
        };
        said.extend(fight(facts, cni));
        said.extend(
            cni.drop_ins
                .iter()
                .filter(|network| **network != chosen.name)
                .map(|network| {
                    Said::new(
                        Severity::Warning,
                        format!(
                            "towpath-cni is chained to the network {network}, and new pods get {}",
                            chosen.name
                        ),
                        "new pods do not wait for their policy",
                        "chain it again: towpath cni install",
                    )
                }),
        );
        if said.is_empty() {
            let plugins: Vec<&str> = chosen.plugins.iter().map(AsRef::as_ref).collect();
            said = Said::ok(format!(
                "new pods get {}: {}",
                chosen.file,
                plugins.join(", ")
            ));
        }
        said
    })
}

/// What `towpath cni install` put there is not as it was.
fn changed(fault: &InstallationFault) -> Said {
    let (severity, why) = match fault {
        InstallationFault::ProgramGone(_) => (
            Severity::Serious,
            "the runtime cannot call it, so no new pod starts",
        ),
        InstallationFault::ConfigurationGone(_) => (
            Severity::Warning,
            "new pods do not wait for their policy; until it is in force they are closed",
        ),
        InstallationFault::OutOfDate { .. } => (
            Severity::Warning,
            "new pods are still plugged in as the original said before",
        ),
    };
    Said::new(
        severity,
        fault.to_string(),
        why,
        "run towpath cni install again, with --method copy for a copy; or towpath cni remove",
    )
}

fn broken(
    file: &(
        smol_str::SmolStr,
        Result<flannel_adapter::detect::ConfList, String>,
    ),
) -> Option<Said> {
    let (name, Err(reason)) = file else {
        return None;
    };
    Some(Said::new(
        Severity::Warning,
        format!("the CNI configuration {name} cannot be read: {reason}"),
        "runtimes differ in what they take instead",
        "correct it, or move it out of the folder",
    ))
}

/// Several configurations for different networks: the first by name wins. A copy of one under the same network, as our
/// own installation makes it, is no fight.
fn fight(facts: &Facts, cni: &Cni) -> Option<Said> {
    let chosen = cni.chosen()?;
    let others: Vec<&str> = cni
        .files
        .iter()
        .filter_map(|(_, file)| file.as_ref().ok())
        .filter(|other| other.name != chosen.name)
        .map(|other| other.file.as_str())
        .collect();
    if others.is_empty() {
        return None;
    }
    let carriers = facts.detection.get().map(|found| found.carriers.as_slice());
    let is_bridge = |carrier: &Carrier| {
        matches!(
            carrier,
            Carrier::Bridge {
                is_flannel: true,
                ..
            }
        )
    };
    let is_taken_over = facts.flannel.get().is_some_and(|flannel| flannel.is_there)
        && carriers.is_some_and(|carriers| !carriers.first().is_some_and(is_bridge));
    let severity = if is_taken_over {
        Severity::Warning
    } else {
        Severity::Note
    };
    Some(Said::new(
        severity,
        format!(
            "new pods get {} ({}); beside it there is {}",
            chosen.file,
            chosen.name,
            others.join(", ")
        ),
        "the first by name wins, so what a program adds or removes there changes who plugs pods in",
        "remove the configurations of what is not used any more",
    ))
}
