//! Which network configuration the container runtime uses, and what ours is to be. Pure: files come in as text.

use serde_json::{Map, Value, json};

/// Type of our plugin, and name of its program.
pub(super) const PLUGIN: &str = "towpath-cni";
/// Our file in a drop-in directory: after those of others.
pub(super) const DROP_IN: &str = "90-towpath.conf";
/// Names for a copied list; the first one that comes before the original is taken.
const COPIES: [&str; 2] = ["05-towpath.conflist", "00-towpath.conflist"];
/// Plugins that watch the lists and write them anew, so that a copy and they would never agree.
const OWNERS: [(&str, &str); 4] = [
    ("istio-cni", "Istio's"),
    ("linkerd-cni", "Linkerd's"),
    ("multus", "Multus'"),
    ("multus-shim", "Multus'"),
];

/// Why our plugin cannot be put into the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Nothing to chain to.
    #[error(
        "there is no network configuration to chain to; install Flannel's first, or give --network"
    )]
    None,
    /// A file is not what a runtime could read.
    #[error("{file} is no network configuration: {fault}; if it is being written, try again")]
    Unreadable {
        /// The file.
        file: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The name cannot be that of a directory.
    #[error("the network of {file} is named {name:?}, which is no name of the specification")]
    Name {
        /// The file.
        file: String,
        /// The name in it.
        name: String,
    },
    /// Somebody has put us in by hand.
    #[error("{file} has {PLUGIN} in it already; remove it there, or leave the chain to its owner")]
    ByHand {
        /// The file.
        file: String,
    },
    /// Drop-ins are switched off.
    #[error("{file} has loadOnlyInlinedPlugins, so drop-ins are not read; use --method copy")]
    InlineOnly {
        /// The file.
        file: String,
    },
    /// Another program owns the lists.
    #[error(
        "{owner} plugin {plugin} is in {file}, and its installer rewrites the lists whenever they change; use --method \
         drop-in where the runtime knows drop-ins, or add {PLUGIN} to that configuration by hand"
    )]
    Owned {
        /// Whose it is.
        owner: &'static str,
        /// The plugin by which it is known.
        plugin: String,
        /// The file that names it.
        file: String,
    },
    /// Nothing comes before it.
    #[error(
        "{file} comes before every name that a copy could have; rename it, or use --method drop-in"
    )]
    First {
        /// The file.
        file: String,
    },
}

/// A configuration that the runtime would use.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    pub(super) file: String,
    pub(super) network: String,
    list: Map<String, Value>,
}

/// A file of the configuration directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigurationFile {
    pub(super) name: String,
    pub(super) text: String,
}

/// Whether runtimes read a file of this name.
pub(super) fn is_configuration(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    matches!(extension, Some("conf" | "conflist" | "json")) && !name.starts_with('.')
}

/// The configuration that counts: the first one by name that is not ours, or the first one of a network.
pub(super) fn choose(
    files: &[ConfigurationFile],
    network: Option<&str>,
) -> Result<Chain, ChainError> {
    let mut sorted: Vec<&ConfigurationFile> = files
        .iter()
        .filter(|file| !COPIES.contains(&file.name.as_str()))
        .collect();
    sorted.sort_by_key(|file| &file.name);
    for file in sorted {
        let chain = read(file)?;
        if network.is_none_or(|wanted| wanted == chain.network) {
            return Ok(chain);
        }
    }
    Err(ChainError::None)
}

fn read(file: &ConfigurationFile) -> Result<Chain, ChainError> {
    let unreadable = |fault: &str| ChainError::Unreadable {
        file: file.name.clone(),
        fault: fault.to_owned(),
    };
    let value: Value =
        serde_json::from_str(&file.text).map_err(|error| unreadable(&error.to_string()))?;
    let Value::Object(found) = value else {
        return Err(unreadable("it is no object"));
    };
    let name = found
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !is_network_name(name) {
        return Err(ChainError::Name {
            file: file.name.clone(),
            name: name.to_owned(),
        });
    }
    let network = name.to_owned();
    let list = match found.get("plugins") {
        Some(Value::Array(plugins)) if !plugins.is_empty() => found,
        Some(_) => return Err(unreadable("plugins is no list, or an empty one")),
        None if found.get("type").is_some_and(Value::is_string) => list_of(found),
        None => return Err(unreadable("it has neither plugins nor a type")),
    };
    Ok(Chain {
        file: file.name.clone(),
        network,
        list,
    })
}

/// A single configuration as a list of one.
fn list_of(mut single: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = single.remove(key) {
            list.insert(key.to_owned(), value);
        }
    }
    list.insert("plugins".to_owned(), json!([single]));
    list
}

/// The specification's: a letter or digit, then also `_`, `.` and `-`.
fn is_network_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    name.len() <= 255
        && name.starts_with(is_plain)
        && name
            .chars()
            .all(|c| is_plain(c) || matches!(c, '_' | '.' | '-'))
}

impl Chain {
    fn plugins(&self) -> impl Iterator<Item = &str> {
        let plugins = self.list.get("plugins").and_then(Value::as_array);
        plugins
            .into_iter()
            .flatten()
            .filter_map(|plugin| plugin.get("type").and_then(Value::as_str))
    }

    fn refuse_by_hand(&self) -> Result<(), ChainError> {
        if self.plugins().any(|plugin| plugin == PLUGIN) {
            let file = self.file.clone();
            return Err(ChainError::ByHand { file });
        }
        Ok(())
    }

    /// Whether a drop-in directory is read for it.
    pub(super) fn check_drop_in(&self) -> Result<(), ChainError> {
        self.refuse_by_hand()?;
        let is_inline = match self.list.get("loadOnlyInlinedPlugins") {
            Some(Value::Bool(is_inline)) => *is_inline,
            Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
            _ => false,
        };
        if is_inline {
            let file = self.file.clone();
            return Err(ChainError::InlineOnly { file });
        }
        Ok(())
    }

    /// A list with our plugin at its end, and the name of its file. The network keeps its name: addresses that are
    /// given away and the runtime's cache go by it.
    pub(super) fn copy(
        &self,
        files: &[ConfigurationFile],
        plugin: &Value,
    ) -> Result<ConfigurationFile, ChainError> {
        self.refuse_by_hand()?;
        for file in files {
            refuse_owned(file)?;
        }
        let free = COPIES.iter().find(|name| **name < self.file.as_str());
        let Some(name) = free else {
            let file = self.file.clone();
            return Err(ChainError::First { file });
        };
        let mut list = self.list.clone();
        if let Some(Value::Array(plugins)) = list.get_mut("plugins") {
            plugins.push(plugin.clone());
        }
        let mut text = serde_json::to_string_pretty(&list).expect("JSON that was read is JSON");
        text.push('\n');
        Ok(ConfigurationFile {
            name: (*name).to_owned(),
            text,
        })
    }
}

/// In what a copy differs from the configuration that would be copied now, apart from our own entry.
pub(super) fn difference(
    copy: &ConfigurationFile,
    files: &[ConfigurationFile],
) -> Result<Option<String>, ChainError> {
    let copy = read(copy)?;
    let original = choose(files, Some(&copy.network))?;
    let mut list = copy.list;
    if let Some(Value::Array(plugins)) = list.get_mut("plugins") {
        plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    }
    Ok((list != original.list).then(|| format!("{} has changed", original.file)))
}

/// Files that cannot be read are somebody's too, but tell no owner.
fn refuse_owned(file: &ConfigurationFile) -> Result<(), ChainError> {
    let Ok(chain) = read(file) else { return Ok(()) };
    for plugin in chain.plugins() {
        if let Some((_, owner)) = OWNERS.iter().find(|(known, _)| *known == plugin) {
            return Err(ChainError::Owned {
                owner,
                plugin: plugin.to_owned(),
                file: file.name.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> ConfigurationFile {
        ConfigurationFile {
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    fn flannel() -> ConfigurationFile {
        file(
            "10-flannel.conflist",
            r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        )
    }

    fn ours() -> Value {
        json!({ "type": PLUGIN, "timeoutSeconds": 8 })
    }

    #[test]
    fn the_first_configuration_that_is_not_ours_counts() {
        let other = file("20-other.conf", r#"{"name":"other","type":"ptp"}"#);
        let copy = file("05-towpath.conflist", "{}");
        let files = [other, copy, flannel()];

        let chosen = choose(&files, None).unwrap();
        let named = choose(&files, Some("other")).unwrap();

        assert_eq!(
            (chosen.file.as_str(), chosen.network.as_str()),
            ("10-flannel.conflist", "cbr0")
        );
        assert_eq!(named.plugins().collect::<Vec<_>>(), ["ptp"]);
        assert_eq!(choose(&files, Some("absent")), Err(ChainError::None));
        assert_eq!(choose(&[], None), Err(ChainError::None));
    }

    #[test]
    fn a_copy_keeps_everything_and_adds_our_plugin_at_the_end() {
        let files = [flannel()];
        let chain = choose(&files, None).unwrap();

        let copy = chain.copy(&files, &ours()).unwrap();

        let text: Value = serde_json::from_str(&copy.text).unwrap();
        let mut expected: Value = serde_json::from_str(&flannel().text).unwrap();
        expected["plugins"].as_array_mut().unwrap().push(ours());
        assert_eq!(
            (copy.name.as_str(), text),
            ("05-towpath.conflist", expected)
        );
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let files = [file(
            "03-net.conf",
            r#"{"cniVersion":"0.3.1","name":"n","type":"ptp","mtu":1450}"#,
        )];

        let copy = choose(&files, None).unwrap().copy(&files, &ours()).unwrap();

        let text: Value = serde_json::from_str(&copy.text).unwrap();
        let expected = json!({
            "cniVersion": "0.3.1",
            "name": "n",
            "plugins": [{ "type": "ptp", "mtu": 1450 }, ours()],
        });
        assert_eq!(
            (copy.name.as_str(), text),
            ("00-towpath.conflist", expected)
        );
    }

    #[test]
    fn owners_of_the_chain_are_named() {
        for (plugin, owner) in OWNERS {
            let text =
                format!(r#"{{"name":"n","plugins":[{{"type":"bridge"}},{{"type":"{plugin}"}}]}}"#);
            let files = [flannel(), file("50-owned.conflist", &text)];

            let error = choose(&files, None)
                .unwrap()
                .copy(&files, &ours())
                .unwrap_err();

            assert!(
                matches!(&error, ChainError::Owned { owner: found, .. } if *found == owner),
                "{error}"
            );
            assert!(choose(&files, None).unwrap().check_drop_in().is_ok());
        }
    }

    #[test]
    fn what_no_runtime_could_read_is_refused_by_name() {
        for text in [
            "",
            "{",
            "[]",
            r#"{"name":"n"}"#,
            r#"{"name":"n","plugins":[]}"#,
            r#"{"name":"n","plugins":7}"#,
        ] {
            let error = choose(&[file("10-x.conflist", text)], None).unwrap_err();

            assert!(
                matches!(&error, ChainError::Unreadable { file, .. } if file == "10-x.conflist"),
                "{error}"
            );
        }
        for name in ["", "../up", ".", "a/b"] {
            let text = json!({ "name": name, "type": "ptp" }).to_string();
            let error = choose(&[file("10-x.conf", &text)], None).unwrap_err();

            assert!(matches!(error, ChainError::Name { .. }), "{error}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let inline = file(
            "10-a.conflist",
            r#"{"name":"n","loadOnlyInlinedPlugins":"True","plugins":[{"type":"ptp"}]}"#,
        );
        let hand = file(
            "10-a.conflist",
            r#"{"name":"n","plugins":[{"type":"ptp"},{"type":"towpath-cni"}]}"#,
        );
        let first = file("00-a.conf", r#"{"name":"n","type":"ptp"}"#);
        let chain = |file: &ConfigurationFile| choose(std::slice::from_ref(file), None).unwrap();

        assert!(matches!(
            chain(&inline).check_drop_in(),
            Err(ChainError::InlineOnly { .. })
        ));
        assert!(chain(&inline).copy(&[], &ours()).is_ok());
        assert!(matches!(
            chain(&hand).check_drop_in(),
            Err(ChainError::ByHand { .. })
        ));
        assert!(matches!(
            chain(&hand).copy(&[], &ours()),
            Err(ChainError::ByHand { .. })
        ));
        assert!(matches!(
            chain(&first).copy(&[], &ours()),
            Err(ChainError::First { .. })
        ));
    }

    #[test]
    fn runtimes_read_three_endings() {
        for (name, is_read) in [
            ("10-a.conflist", true),
            ("a.conf", true),
            ("a.json", true),
            ("a.conf.bak", false),
            ("kubeconfig", false),
            (".10-a.conflist", false),
        ] {
            assert_eq!(is_configuration(name), is_read, "{name}");
        }
    }
}
