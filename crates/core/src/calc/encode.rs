//! From allowed sets to table entries of one endpoint and direction.
//!
//! The kernel reads `exact`, `class_protocol`, `class_any`, `any`, the profile and the default, in this order
//! ([`crate::tables`]). The base is what class 0 may reach; a class is written as its difference from the base
//! (*open*), as a whole in the hash maps (*closed*), or as rules of the profile, whichever is shortest.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::port_space::{PortSpace, contains, points, symmetric_difference};
use crate::model::{Protocol, Verdict};
use crate::tables::{ClassId, Profile, ProfileId, ProfilePorts, ProfileRule};

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
    pub(super) profile: Option<(ProfileId, Arc<Profile>)>,
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
}

/// Encodes the base and every class that differs from it.
pub(super) fn encode(base: &PortSpace, classes: &BTreeMap<ClassId, Arc<PortSpace>>) -> Encoded {
    let mut encoded = Encoded {
        default: verdict(base.other),
        ..Encoded::empty()
    };
    let base_rules = encode_base(base, &mut encoded.any);
    let mut groups: BTreeMap<&PortSpace, Vec<ClassId>> = BTreeMap::new();
    for (class, allowed) in classes.iter().filter(|(_, allowed)| ***allowed != *base) {
        groups.entry(allowed).or_default().push(*class);
    }
    let mut in_profile: Vec<(&PortSpace, Vec<ClassId>)> = Vec::new();
    let mut in_hash: Vec<(&PortSpace, Vec<ClassId>, ClassEntries)> = Vec::new();
    for (allowed, members) in groups {
        match class_entries(base, allowed) {
            Some(entries) => in_hash.push((allowed, members, entries)),
            None => in_profile.push((allowed, members)),
        }
    }
    in_hash.sort_by_key(|(_, members, entries)| members.len() * entries.len());
    let mut total = 0;
    for (allowed, members, entries) in in_hash {
        total += members.len() * entries.len();
        if total > MOST_ENTRIES {
            in_profile.push((allowed, members));
        } else {
            for class in members {
                encoded.add(class, &entries);
            }
        }
    }
    let mut rules = Vec::new();
    for (allowed, members) in in_profile {
        // What the base has in a hash map would be read before the profile.
        for ((protocol, port), base_verdict) in &encoded.any {
            let own = verdict(contains(allowed.of(*protocol), *port));
            if own != *base_verdict {
                let shadows = members
                    .iter()
                    .map(|class| ((*class, *protocol, *port), own));
                encoded.exact.extend(shadows);
            }
        }
        class_rules(allowed, &members.into(), &mut rules);
    }
    rules.extend(base_rules);
    if !rules.is_empty() {
        let profile = Arc::new(Profile { rules });
        encoded.profile = Some((profile_id(&profile), profile));
    }
    encoded
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

/// Writes the base as single ports where they are few; returns the profile rules for the rest.
fn encode_base(base: &PortSpace, any: &mut BTreeMap<(Protocol, u16), Verdict>) -> Vec<ProfileRule> {
    let mut rules = Vec::new();
    let constant = if base.other {
        PortSpace::full()
    } else {
        PortSpace::default()
    };
    for protocol in Protocol::ALL {
        let ranges = base.of(protocol);
        let deviation = symmetric_difference(ranges, constant.of(protocol));
        if let Some(points) = points(&deviation, BASE_POINTS) {
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

fn open_entries(base: &PortSpace, allowed: &PortSpace) -> Option<ClassEntries> {
    if base.other != allowed.other {
        return None;
    }
    let mut entries = ClassEntries::default();
    for protocol in Protocol::ALL {
        let difference = symmetric_difference(base.of(protocol), allowed.of(protocol));
        for port in points(&difference, CLASS_POINTS)? {
            entries.exact.push((
                protocol,
                port,
                verdict(contains(allowed.of(protocol), port)),
            ));
        }
    }
    Some(entries)
}

fn closed_entries(allowed: &PortSpace) -> Option<ClassEntries> {
    let mut entries = ClassEntries {
        any: Some(verdict(allowed.other)),
        ..ClassEntries::default()
    };
    let (full, empty) = (vec![(0, u16::MAX)], Vec::new());
    for protocol in Protocol::ALL {
        let ranges = allowed.of(protocol);
        let holes = points(&symmetric_difference(ranges, &full), CLASS_POINTS);
        let wide = holes.is_some();
        let deviation = match holes {
            Some(holes) => holes,
            None => points(&symmetric_difference(ranges, &empty), CLASS_POINTS)?,
        };
        if wide != allowed.other {
            entries.protocol.push((protocol, verdict(wide)));
        }
        entries.exact.extend(
            deviation
                .into_iter()
                .map(|port| (protocol, port, verdict(!wide))),
        );
    }
    Some(entries)
}

/// FNV-1a, 64 bits: the same content has the same id in every run.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Name of a profile.
pub(super) fn profile_id(profile: &Profile) -> ProfileId {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    profile.hash(&mut hasher);
    ProfileId(hasher.finish())
}
