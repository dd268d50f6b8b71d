//! CNI configurations, as the container runtime chooses them. Read only; other parts of one, such as kubeconfigs, are not kept.

use serde_json::Value;
use smol_str::SmolStr;

use crate::fault::Fault;

/// Larger files are no configuration.
pub const MOST_BYTES: usize = 256 * 1024;

/// What matters of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfList {
    /// Name of its file.
    pub file: SmolStr,
    /// Name of the network.
    pub name: SmolStr,
    /// Its plugins, in order.
    pub plugins: Vec<SmolStr>,
    /// The bridge of its first plugin, where that names one.
    pub bridge: Option<SmolStr>,
}

/// Reads one file: a list of plugins, or an old configuration of one.
pub fn parse(file: &str, text: &str) -> Result<ConfList, Fault> {
    let place = format!("CNI configuration {file}");
    let wanted = "a CNI configuration, or move the file out of the folder";
    let broken = |found: &str| Fault::malformed(&place, "the file", found, wanted);
    let value: Value = serde_json::from_str(text).map_err(|error| {
        broken(&format!(
            "broken at line {} column {}",
            error.line(),
            error.column()
        ))
    })?;
    let plugin_type = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(SmolStr::new);
    let single = [value.clone()];
    let plugins: &[Value] = match value.get("plugins") {
        Some(plugins) => plugins.as_array().map(Vec::as_slice).unwrap_or_default(),
        None => &single,
    };
    let types: Option<Vec<SmolStr>> = plugins.iter().map(plugin_type).collect();
    let types = types.filter(|types| !types.is_empty());
    let types = types.ok_or_else(|| broken("without a plugin's type"))?;
    // Flannel's plugin keeps the bridge's configuration in `delegate`.
    let bridge = plugins.first().and_then(|plugin| {
        let delegate = plugin
            .get("delegate")
            .and_then(|delegate| delegate.get("bridge"));
        delegate.or_else(|| plugin.get("bridge"))?.as_str()
    });
    Ok(ConfList {
        file: file.into(),
        name: value
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .into(),
        plugins: types,
        bridge: bridge.filter(|bridge| !bridge.is_empty()).map(SmolStr::new),
    })
}

/// The configuration that a container runtime takes of these files: the first by name that it can read. What is broken
/// before it is told.
pub fn chosen<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> (Option<ConfList>, Vec<Fault>) {
    let mut files: Vec<(&str, &str)> = files
        .into_iter()
        .filter(|(name, _)| is_configuration(name))
        .collect();
    files.sort_unstable();
    let mut faults = Vec::new();
    for (name, text) in files {
        match parse(name, text) {
            Ok(conflist) => return (Some(conflist), faults),
            Err(fault) => faults.push(fault),
        }
    }
    (None, faults)
}

/// Whether a runtime looks at a file of this name.
pub(super) fn is_configuration(name: &str) -> bool {
    [".conflist", ".conf", ".json"]
        .iter()
        .any(|end| name.ends_with(end))
}
