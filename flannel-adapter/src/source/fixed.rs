//! What the operator says in the configuration: it counts more than anything else.

use std::net::IpAddr;
use std::time::Duration;

use smol_str::{SmolStr, format_smolstr};
use towpath_core::model::{InterfaceName, MacAddress};

use super::{Delta, EndpointSource, Identity, InterfaceRef, Observation, SourceError, SourceName};

/// An endpoint as the operator describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticEndpoint {
    /// The interface of this host.
    pub interface: InterfaceName,
    /// Who is behind it.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
}

/// A configuration that does not change while the process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticSource {
    endpoints: Vec<StaticEndpoint>,
}

impl StaticSource {
    /// These endpoints, for as long as the process runs.
    pub fn new(endpoints: Vec<StaticEndpoint>) -> Self {
        Self { endpoints }
    }
}

impl EndpointSource for StaticSource {
    fn name(&self) -> SourceName {
        SourceName::Static
    }

    fn snapshot(&mut self) -> Result<Vec<Observation>, SourceError> {
        let numbered = self.endpoints.iter().enumerate();
        let observed = numbered.map(|(number, endpoint)| Observation {
            key: format_smolstr!("{number} {}", endpoint.interface),
            interface: Some(InterfaceRef::Name(SmolStr::new(
                endpoint.interface.as_str(),
            ))),
            addresses: endpoint.addresses.clone(),
            mac: endpoint.mac,
            identity: Some(endpoint.identity.clone()),
            ..Observation::default()
        });
        Ok(observed.collect())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Vec<Delta>, SourceError> {
        std::thread::sleep(timeout);
        Ok(Vec::new())
    }
}
