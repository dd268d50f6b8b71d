//! The evaluator against the specification, case by case; each flow is tried in both address families.

#[cfg(test)]
mod closed;
#[cfg(test)]
mod cluster_network_policy;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod network_policy;
mod node_identities;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod random;
