//! From allowed sets to table entries of one endpoint and direction.
//!
//! The kernel reads `exact`, `class_protocol`, `class_any`, `any`, the profile and the default, in this order
//! ([`crate::tables`]). The base is what class 0 may reach; a class is written as its difference from the base
//! (*open*), as a whole in the hash maps (*closed*), or as rules of the profile, whichever is shortest.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::port_space::{PortSpace, Ranges, contains, points, symmetric_difference};
use crate::model::{Protocol, Verdict};
use crate::tables::{ClassId, Profile, ProfilePorts, ProfileRule};

/// Ports of the base that are written one by one; more make a profile.
const BASE_POINTS: usize = 16;
/// Ports of a class that are written one by one.
const CLASS_POINTS: usize = 32;
/// Hash entries of one endpoint and direction (edge case 6).
const MOST_ENTRIES: usize = 2_000;

/// Entries of one endpoint and direction, without the endpoint's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) exact: BTreeMap<(ClassId, Protocol, u16), Verdict>,
    pub(super) class_protocol: BTreeMap<(ClassId, Protocol), Verdict>,
    pub(super) class_any: BTreeMap<ClassId, Verdict>,
    pub(super) any: BTreeMap<(Protocol, u16), Verdict>,
    pub(super) profile: Option<Arc<Profile>>,
    pub(super) default: Verdict,
}

fn verdict(allowed: bool) -> Verdict {
    if allowed {
        Verdict::Allow
    } else {
        Verdict::Deny
    }
}

/// Hash entries of one class.
#[derive(Default)]
struct ClassEntries {
    exact: Vec<(Protocol, u16, Verdict)>,
    protocol: Vec<(Protocol, Verdict)>,
    any: Option<Verdict>,
}

impl ClassEntries {
    fn len(&self) -> usize {
        self.exact.len() + self.protocol.len() + usize::from(self.any.is_some())
    }

    /// Adds single ports with the verdicts that `ranges` give them.
    fn add(&mut self, protocol: Protocol, ports: Vec<u16>, ranges: &Ranges) {
        let entry = |port| (protocol, port, verdict(contains(ranges, port)));
        self.exact.extend(ports.into_iter().map(entry));
    }
}

/// Classes that may use the same.
struct Group<'a> {
    allowed: &'a PortSpace,
    members: Vec<ClassId>,
    /// Entries of each member; `None` is written as rules of the profile.
    entries: Option<ClassEntries>,
}

/// The classes that differ from the base.
fn groups<'a>(base: &PortSpace, classes: &'a BTreeMap<ClassId, Arc<PortSpace>>) -> Vec<Group<'a>> {
    let mut members: BTreeMap<&PortSpace, Vec<ClassId>> = BTreeMap::new();
    for (class, allowed) in classes.iter().filter(|(_, allowed)| ***allowed != *base) {
        members.entry(allowed).or_default().push(*class);
    }
    let group = |(allowed, members)| Group {
        allowed,
        members,
        entries: class_entries(base, allowed),
    };
    members.into_iter().map(group).collect()
}

/// Encodes the base and every class that differs from it.
pub(super) fn encode(base: &PortSpace, classes: &BTreeMap<ClassId, Arc<PortSpace>>) -> Encoded {
    let mut encoded = Encoded {
        default: verdict(base.other),
        ..Encoded::empty()
    };
    let mut groups = groups(base, classes);
    let mut base_rules = encode_base(base, BASE_POINTS, &mut encoded.any);
    let size = |group: &Group| {
        let each = match &group.entries {
            Some(entries) => entries.len(),
            None => shadows(&encoded.any, group.allowed).count(),
        };
        group.members.len() * each
    };
    if encoded.any.len() + groups.iter().map(size).sum::<usize>() > MOST_ENTRIES {
        // In a profile without single ports of the base no class needs an entry.
        encoded.any.clear();
        base_rules = encode_base(base, 0, &mut encoded.any);
        move_to_profile(&mut groups);
    }
    let mut rules = Vec::new();
    for group in groups {
        if let Some(entries) = group.entries {
            for class in group.members {
                encoded.add(class, &entries);
            }
            continue;
        }
        for (protocol, port, own) in shadows(&encoded.any, group.allowed) {
            let entries = group
                .members
                .iter()
                .map(|class| ((*class, protocol, port), own));
            encoded.exact.extend(entries);
        }
        class_rules(group.allowed, &group.members.into(), &mut rules);
    }
    rules.extend(base_rules);
    if !rules.is_empty() {
        encoded.profile = Some(Arc::new(Profile { rules }));
    }
    encoded
}

/// The largest groups that pass the limit together give up their entries (edge case 6).
fn move_to_profile(groups: &mut [Group<'_>]) {
    let size = |group: &Group| {
        let each = group.entries.as_ref().map_or(0, ClassEntries::len);
        group.members.len() * each
    };
    groups.sort_by_key(size);
    let mut total = 0;
    for group in groups {
        total += size(group);
        if total > MOST_ENTRIES {
            group.entries = None;
        }
    }
}

/// Single ports of the base that a class in the profile must not see: they are read before it.
fn shadows<'a>(
    any: &'a BTreeMap<(Protocol, u16), Verdict>,
    allowed: &'a PortSpace,
) -> impl Iterator<Item = (Protocol, u16, Verdict)> + use<'a> {
    any.iter().filter_map(|((protocol, port), base_verdict)| {
        let own = verdict(contains(allowed.of(*protocol), *port));
        (own != *base_verdict).then_some((*protocol, *port, own))
    })
}

impl Encoded {
    /// No entries.
    pub(super) fn empty() -> Self {
        Self {
            exact: BTreeMap::new(),
            class_protocol: BTreeMap::new(),
            class_any: BTreeMap::new(),
            any: BTreeMap::new(),
            profile: None,
            default: Verdict::Deny,
        }
    }

    fn add(&mut self, class: ClassId, entries: &ClassEntries) {
        let exact = entries
            .exact
            .iter()
            .map(|(protocol, port, v)| ((class, *protocol, *port), *v));
        self.exact.extend(exact);
        let protocols = entries
            .protocol
            .iter()
            .map(|(protocol, v)| ((class, *protocol), *v));
        self.class_protocol.extend(protocols);
        self.class_any.extend(entries.any.map(|v| (class, v)));
    }
}

/// Writes the base as single ports where they are at most `most` of a protocol; returns the profile rules for the
/// rest.
fn encode_base(
    base: &PortSpace,
    most: usize,
    any: &mut BTreeMap<(Protocol, u16), Verdict>,
) -> Vec<ProfileRule> {
    let mut rules = Vec::new();
    let constant = if base.other {
        PortSpace::full()
    } else {
        PortSpace::default()
    };
    for protocol in Protocol::ALL {
        let ranges = base.of(protocol);
        let deviation = symmetric_difference(ranges, constant.of(protocol));
        if let Some(points) = points(&deviation, most) {
            any.extend(
                points
                    .into_iter()
                    .map(|port| ((protocol, port), verdict(!base.other))),
            );
            continue;
        }
        rules.extend(port_rule(None, protocol, ranges, true));
        if base.other {
            rules.extend(port_rule(None, protocol, &[(0, u16::MAX)], false));
        }
    }
    rules
}

fn port_rule(
    classes: Option<&Arc<[ClassId]>>,
    protocol: Protocol,
    ranges: &[(u16, u16)],
    allowed: bool,
) -> Option<ProfileRule> {
    (!ranges.is_empty()).then(|| ProfileRule {
        classes: classes.cloned(),
        ports: Some(ProfilePorts {
            protocol,
            ranges: ranges.into(),
        }),
        verdict: verdict(allowed),
    })
}

/// Decides everything for these classes.
fn class_rules(allowed: &PortSpace, classes: &Arc<[ClassId]>, rules: &mut Vec<ProfileRule>) {
    for protocol in Protocol::ALL {
        rules.extend(port_rule(
            Some(classes),
            protocol,
            allowed.of(protocol),
            true,
        ));
        rules.extend(port_rule(Some(classes), protocol, &[(0, u16::MAX)], false));
    }
    rules.push(ProfileRule {
        classes: Some(classes.clone()),
        ports: None,
        verdict: verdict(allowed.other),
    });
}

/// The shortest way to write a class in the hash maps, if there is one.
fn class_entries(base: &PortSpace, allowed: &PortSpace) -> Option<ClassEntries> {
    let ways = [open_entries(base, allowed), closed_entries(allowed)];
    ways.into_iter().flatten().min_by_key(ClassEntries::len)
}

/// As the difference from the base, protocol by protocol.
fn open_entries(base: &PortSpace, allowed: &PortSpace) -> Option<ClassEntries> {
    if base.other != allowed.other {
        return None;
    }
    let mut entries = ClassEntries::default();
    for protocol in Protocol::ALL {
        let ranges = allowed.of(protocol);
        let difference = points(
            &symmetric_difference(base.of(protocol), ranges),
            CLASS_POINTS,
        );
        let whole = constant(ranges);
        let shortest = match (difference, whole) {
            (Some(ports), Some((_, exceptions))) if ports.len() <= exceptions.len() + 1 => ports,
            (Some(ports), None) => ports,
            (_, Some((wide, exceptions))) => {
                entries.protocol.push((protocol, verdict(wide)));
                exceptions
            }
            (None, None) => return None,
        };
        entries.add(protocol, shortest, ranges);
    }
    Some(entries)
}

/// As a whole: nothing is left to the base.
fn closed_entries(allowed: &PortSpace) -> Option<ClassEntries> {
    let mut entries = ClassEntries {
        any: Some(verdict(allowed.other)),
        ..ClassEntries::default()
    };
    for protocol in Protocol::ALL {
        let ranges = allowed.of(protocol);
        let (wide, exceptions) = constant(ranges)?;
        if wide != allowed.other {
            entries.protocol.push((protocol, verdict(wide)));
        }
        entries.add(protocol, exceptions, ranges);
    }
    Some(entries)
}

/// All ports or none, and the few that differ from that.
fn constant(ranges: &Ranges) -> Option<(bool, Vec<u16>)> {
    let full = vec![(0, u16::MAX)];
    let holes = points(&symmetric_difference(ranges, &full), CLASS_POINTS);
    match holes {
        Some(holes) => Some((true, holes)),
        None => points(ranges, CLASS_POINTS).map(|ports| (false, ports)),
    }
}
