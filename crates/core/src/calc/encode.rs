//! From allowed sets to table entries of one endpoint and direction.
//!
//! The kernel reads `exact`, `class_protocol`, `class_any`, `any`, the profile and the default, in this order
//! ([`crate::tables`]). The base is what class 0 may reach; a class is written as its difference from the base
//! (*open*), as a whole in the hash maps (*closed*), or as rules of the profile, whichever is shortest.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
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
/// Members of class lists that cost the kernel no more memory than a rule.
const MEMBERS_PER_RULE: usize = 16;

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
    let mut in_profile = Vec::new();
    for group in groups {
        if let Some(entries) = &group.entries {
            for class in group.members {
                encoded.add(class, entries);
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
        in_profile.push(group);
    }
    let mut rules = profile_rules(&in_profile);
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

/// Decides everything for the classes of these groups: group by group, or port by port where that is shorter. Many
/// classes on few ports are the usual case (edge case 6), and each rule costs a packet time. Group by group each class
/// is in one list; port by port it is in one for each set of ports, so that these lists are limited: where many classes
/// may use many ports, but not the same, they would grow with the product.
fn profile_rules(groups: &[Group<'_>]) -> Vec<ProfileRule> {
    let mut by_group = Vec::new();
    for group in groups {
        class_rules(group, &mut by_group);
    }
    if groups.len() < 2 {
        return by_group;
    }
    match rules_by_port(groups, MEMBERS_PER_RULE * by_group.len()) {
        Some(by_port) if by_port.len() < by_group.len() => by_port,
        _ => by_group,
    }
}

fn class_rules(group: &Group<'_>, rules: &mut Vec<ProfileRule>) {
    let classes: Arc<[ClassId]> = group.members.as_slice().into();
    for protocol in Protocol::ALL {
        let allowed = group.allowed.of(protocol);
        rules.extend(port_rule(Some(&classes), protocol, allowed, true));
        rules.extend(port_rule(Some(&classes), protocol, &[(0, u16::MAX)], false));
    }
    rules.push(other_rule(classes, group.allowed.other));
}

fn other_rule(classes: Arc<[ClassId]>, allowed: bool) -> ProfileRule {
    ProfileRule {
        classes: Some(classes),
        ports: None,
        verdict: verdict(allowed),
    }
}

/// A rule for each set of classes that may use the same ports, and one that denies the rest to all of them. `None`
/// where the lists of classes would have more than `most` members.
fn rules_by_port(groups: &[Group<'_>], most: usize) -> Option<Vec<ProfileRule>> {
    let members = |groups: &[&Group<'_>]| -> Arc<[ClassId]> {
        let mut classes: Vec<ClassId> = groups
            .iter()
            .flat_map(|group| group.members.iter().copied())
            .collect();
        classes.sort_unstable();
        classes.into()
    };
    let all = members(&groups.iter().collect::<Vec<_>>());
    let mut rules = Vec::new();
    let mut left = most;
    for protocol in Protocol::ALL {
        for (users, ranges) in users_of_ports(groups, protocol, &mut left)? {
            let users: Vec<&Group<'_>> = users.into_iter().map(|index| &groups[index]).collect();
            rules.extend(port_rule(Some(&members(&users)), protocol, &ranges, true));
        }
        rules.extend(port_rule(Some(&all), protocol, &[(0, u16::MAX)], false));
    }
    let others: Vec<&Group<'_>> = groups.iter().filter(|group| group.allowed.other).collect();
    if !others.is_empty() {
        rules.push(other_rule(members(&others), true));
    }
    rules.push(other_rule(all, false));
    Some(rules)
}

/// The ports of a protocol by the groups (as positions) that may use them. Takes the members of these groups from
/// `left`; `None` when there are more.
fn users_of_ports(
    groups: &[Group<'_>],
    protocol: Protocol,
    left: &mut usize,
) -> Option<BTreeMap<Vec<usize>, Ranges>> {
    // What begins and ends at a port number.
    let mut edges: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        for (first, last) in group.allowed.of(protocol) {
            for edge in [u32::from(*first), u32::from(*last) + 1] {
                edges.entry(edge).or_default().push(index);
            }
        }
    }
    let mut by_users: BTreeMap<Vec<usize>, Ranges> = BTreeMap::new();
    let mut users: BTreeSet<usize> = BTreeSet::new();
    let mut first = 0;
    for (edge, changing) in edges {
        if let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(edge.saturating_sub(1)))
            && !users.is_empty()
        {
            match by_users.entry(users.iter().copied().collect()) {
                Entry::Occupied(known) => known.into_mut().push((first, last)),
                Entry::Vacant(new) => {
                    let members: usize =
                        users.iter().map(|index| groups[*index].members.len()).sum();
                    *left = left.checked_sub(members)?;
                    new.insert(vec![(first, last)]);
                }
            }
        }
        for index in changing {
            if !users.remove(&index) {
                users.insert(index);
            }
        }
        first = edge;
    }
    Some(by_users)
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
