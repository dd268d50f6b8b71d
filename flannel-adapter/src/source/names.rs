//! Names of interfaces that tell who made them. They tell neither an address nor an identity.

use smol_str::SmolStr;

use super::{InterfaceKind, Observation};

/// A provider and how the names of its pods' interfaces begin.
struct Row {
    provider: &'static str,
    prefix: &'static str,
}

/// Those that are known. Random names such as `veth1a2b3c4d` tell nothing.
const ROWS: [Row; 6] = [
    Row {
        provider: "calico",
        prefix: "cali",
    },
    Row {
        provider: "aws-vpc-cni",
        prefix: "eni",
    },
    Row {
        provider: "gke",
        prefix: "gke",
    },
    Row {
        provider: "azure",
        prefix: "azv",
    },
    Row {
        provider: "cilium",
        prefix: "lxc",
    },
    Row {
        provider: "libvirt",
        prefix: "vnet",
    },
];

/// The provider whose interfaces have such names.
pub fn provider(name: &str) -> Option<&'static str> {
    let row = ROWS.iter().find(|row| {
        let rest = name.strip_prefix(row.prefix);
        // A name is more than its beginning, and libvirt counts.
        rest.is_some_and(|rest| {
            !rest.is_empty()
                && (row.provider != "libvirt" || rest.chars().all(|c| c.is_ascii_digit()))
        })
    });
    row.map(|row| row.provider)
}

/// What names tell, from the observations of netlink.
pub fn observations<'a>(
    seen: impl Iterator<Item = &'a Observation> + 'a,
) -> impl Iterator<Item = Observation> + 'a {
    seen.filter_map(|seen| {
        let facts = seen.facts.as_ref()?;
        if facts.kind == InterfaceKind::Host {
            return None;
        }
        Some(Observation {
            key: seen.key.clone(),
            interface: seen.interface.clone(),
            provider: Some(SmolStr::new_static(provider(&facts.name)?)),
            ..Observation::default()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_known_by_their_names() {
        let known = |name| provider(name);

        assert_eq!(known("cali12ab34cd56e"), Some("calico"));
        assert_eq!(known("eni0123456789a"), Some("aws-vpc-cni"));
        assert_eq!(known("vnet12"), Some("libvirt"));
        assert_eq!(known("vnetx"), None);
        assert_eq!(known("cali"), None);
        assert_eq!(known("veth1a2b3c4d"), None);
        assert_eq!(known("eth0"), None);
    }
}
