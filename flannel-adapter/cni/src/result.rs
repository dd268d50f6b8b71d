//! What the plugins before us said: the pod's addresses, the host's interfaces, and the text to pass on.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::CniError;
use crate::version::Version;

/// Addresses that one attachment may have; Kubernetes has two.
const MOST_ADDRESSES: usize = 16;
/// Interfaces that a result may list.
const MOST_INTERFACES: usize = 64;

/// The result of the plugins before us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Previous {
    /// The pod's addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Interfaces on the host's side.
    pub(crate) host_interfaces: Vec<String>,
    /// What is to be printed.
    pub(crate) text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    cni_version: Option<String>,
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Address>>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

impl Interface {
    fn is_inside(&self) -> bool {
        self.sandbox.as_deref().is_some_and(|path| !path.is_empty())
    }
}

impl Previous {
    /// Reads a result; `version` is that of the configuration, in which it is to be printed.
    pub(crate) fn read(raw: &RawValue, version: Version) -> Result<Self, CniError> {
        let written: Written = serde_json::from_str(raw.get())
            .map_err(|error| CniError::undecodable("prevResult", &error))?;
        let interfaces = written.interfaces.unwrap_or_default();
        let ips = written.ips.unwrap_or_default();
        if interfaces.len() > MOST_INTERFACES || ips.len() > MOST_ADDRESSES {
            let message = format!(
                "prevResult has more than {MOST_INTERFACES} interfaces or {MOST_ADDRESSES} addresses"
            );
            return Err(CniError::configuration(message));
        }
        let mut addresses = Vec::new();
        for ip in &ips {
            if is_the_pods(ip, &interfaces) {
                addresses.push(parse(&ip.address)?);
            }
        }
        let host_interfaces = interfaces
            .iter()
            .filter(|interface| !interface.is_inside() && !interface.name.is_empty())
            .map(|interface| interface.name.clone())
            .collect();
        let is_in_version = written.cni_version.as_deref() == Some(version.text());
        Ok(Self {
            addresses,
            host_interfaces,
            text: if is_in_version {
                format!("{}\n", raw.get())
            } else {
                rewrite(raw, version)?
            },
        })
    }
}

/// An address counts unless the result says that it is on an interface of the host.
fn is_the_pods(ip: &Address, interfaces: &[Interface]) -> bool {
    let index = ip.interface.and_then(|index| usize::try_from(index).ok());
    index
        .and_then(|index| interfaces.get(index))
        .is_none_or(Interface::is_inside)
}

/// An address with its prefix length, such as `10.244.1.5/24`.
fn parse(text: &str) -> Result<IpAddr, CniError> {
    let (address, length) = text.split_once('/').unwrap_or((text, "0"));
    let most = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let parsed: Option<IpAddr> = address.parse().ok();
    parsed
        .filter(|address| {
            length
                .parse::<u8>()
                .is_ok_and(|length| length <= most(address))
        })
        .ok_or_else(|| {
            let text: String = text.chars().take(64).collect();
            CniError::configuration(format!("prevResult has {text:?}, which is no address"))
        })
}

/// The result in another version: what differs is whether addresses name their family.
fn rewrite(raw: &RawValue, version: Version) -> Result<String, CniError> {
    let mut value: Value = serde_json::from_str(raw.get())
        .map_err(|error| CniError::undecodable("prevResult", &error))?;
    if let Some(result) = value.as_object_mut() {
        result.insert("cniVersion".to_owned(), version.text().into());
    }
    let ips = value.get_mut("ips").and_then(Value::as_array_mut);
    for ip in ips.into_iter().flatten().filter_map(Value::as_object_mut) {
        if version.addresses_name_their_family() {
            let text = ip.get("address").and_then(Value::as_str);
            let family = if text.is_some_and(|text| text.contains(':')) {
                "6"
            } else {
                "4"
            };
            ip.insert("version".to_owned(), family.into());
        } else {
            ip.remove("version");
        }
    }
    Ok(format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, version: Version) -> Result<Previous, CniError> {
        Previous::read(&RawValue::from_string(text.to_owned()).unwrap(), version)
    }

    const BRIDGE: &str = r#"{ "cniVersion": "0.3.1", "interfaces": [{"name":"cni0","mac":"aa"},
        {"name":"veth1","mac":"bb"}, {"name":"eth0","mac":"cc","sandbox":"/var/run/netns/x"}],
        "ips": [{"version":"4","interface":2,"address":"10.244.1.5/24","gateway":"10.244.1.1"},
        {"version":"6","interface":2,"address":"fd00::5/64"}], "routes": [{"dst":"0.0.0.0/0"}], "dns": {},
        "number": 12345678901234567890123 }"#;

    #[test]
    fn the_result_of_the_bridge_plugin_goes_on_as_it_came() {
        let found = read(BRIDGE, Version::V0_3_1).unwrap();

        let expected = Previous {
            addresses: vec![[10, 244, 1, 5].into(), "fd00::5".parse().unwrap()],
            host_interfaces: vec!["cni0".to_owned(), "veth1".to_owned()],
            text: format!("{BRIDGE}\n"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_result_in_another_version_is_rewritten() {
        let newer = read(BRIDGE, Version::V1_0_0).unwrap();
        let older = read(&newer.text, Version::V0_4_0).unwrap();

        let newer: Value = serde_json::from_str(&newer.text).unwrap();
        let older: Value = serde_json::from_str(&older.text).unwrap();
        assert_eq!(newer["cniVersion"], "1.0.0");
        assert_eq!(newer["ips"][0].get("version"), None);
        assert_eq!(older["cniVersion"], "0.4.0");
        assert_eq!(older["ips"][1]["version"], "6");
        assert_eq!(older["ips"][0]["gateway"], "10.244.1.1");
    }

    #[test]
    fn an_address_of_the_host_is_not_the_pods() {
        let text = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"x"}],
            "ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.5/24","interface":1},
            {"address":"10.0.0.6/24"},{"address":"10.0.0.7/24","interface":-3},{"address":"10.0.0.8/24","interface":9}]}"#;

        let found = read(text, Version::V1_0_0).unwrap();

        let last: Vec<u8> = found
            .addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(address) => address.octets()[3],
                IpAddr::V6(_) => 0,
            })
            .collect();
        assert_eq!(last, [5, 6, 7, 8]);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for text in [
            "1",
            r#"{"ips":7}"#,
            r#"{"ips":[{"address":"nowhere"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/33"}]}"#,
            r#"{"ips":[{}]}"#,
            r#"{"interfaces":[7]}"#,
        ] {
            assert!(read(text, Version::V1_0_0).is_err(), "{text}");
        }
    }
}
