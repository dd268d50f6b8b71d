//! Configuration in layers: a YAML file, then environment variables, then whatever the caller adds (flags).
//!
//! A table of [`Setting`]s drives both layers, so that a key of the file, its variable and its parser stand in one
//! place. All faults are collected and reported at once, each with its place.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

/// One thing that can be configured, in a configuration of type `C`.
pub struct Setting<C: 'static> {
    /// Key in the file.
    pub key: &'static str,
    /// Environment variable that overrides it.
    pub variable: &'static str,
    /// Puts a value in; an error says what is wrong with the value.
    pub set: fn(&mut C, Value) -> Result<(), String>,
}

/// One fault of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `file:line:column`, or the variable or flag.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Faults that are kept; more are counted.
const MOST_FAULTS: usize = 20;

/// The faults of a configuration, in the order of the layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    kept: Vec<Fault>,
    more: usize,
    /// Whether nothing of the file could be read: what seems to be missing may stand in it.
    pub is_file_unread: bool,
}

impl Faults {
    /// Adds one behind the others.
    pub fn push(&mut self, fault: Fault) {
        if self.kept.len() < MOST_FAULTS {
            self.kept.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// The first ones.
    pub fn kept(&self) -> &[Fault] {
        &self.kept
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

impl Extend<Fault> for Faults {
    fn extend<I: IntoIterator<Item = Fault>>(&mut self, faults: I) {
        for fault in faults {
            self.push(fault);
        }
    }
}

/// Every fault that was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The faults; there is at least one.
    pub faults: Faults,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Faults { kept, more, .. } = &self.faults;
        match kept.len() + more {
            1 => f.write_str("the configuration has a fault")?,
            count => write!(f, "the configuration has {count} faults")?,
        }
        for fault in kept {
            write!(f, "\n  {}: {}", fault.place, fault.message)?;
        }
        if *more > 0 {
            write!(f, "\n  and {more} more; correct those above first")?;
        }
        Ok(())
    }
}

/// Lays the file and the environment over `config`. `variable` looks a variable up, so that tests need no
/// environment of their own. Returns every fault; what had none is in `config`.
pub fn layer<C>(
    config: &mut C,
    settings: &[Setting<C>],
    file: Option<&Path>,
    variable: impl Fn(&str) -> Option<String>,
) -> Faults {
    let mut faults = Faults::default();
    if let Some(path) = file {
        let place = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => faults = layer_text(config, settings, &place, &text),
            Err(error) => {
                faults.is_file_unread = true;
                faults.push(Fault {
                    place,
                    message: format!("cannot read it: {error}"),
                });
            }
        }
    }
    for setting in settings {
        let Some(text) = variable(setting.variable) else {
            continue;
        };
        faults.extend(lay_variable(config, setting, &text));
    }
    faults
}

/// Lays the text of a configuration file over `config`.
pub fn layer_text<C>(config: &mut C, settings: &[Setting<C>], name: &str, text: &str) -> Faults {
    let mut faults = Faults::default();
    if text.trim().is_empty() {
        return faults;
    }
    let options = serde_saphyr::options! {
        // A key that stands twice is told below, like every other fault.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
    };
    let entries = match serde_saphyr::from_str_with_options::<Option<Entries>>(text, options) {
        Ok(entries) => entries.map(|entries| entries.0).unwrap_or_default(),
        Err(error) => {
            let place = error.location().map_or_else(
                || name.to_owned(),
                |at| format!("{name}:{}:{}", at.line(), at.column()),
            );
            let message = error.without_snippet().to_string();
            faults.is_file_unread = true;
            faults.push(Fault { place, message });
            return faults;
        }
    };
    let mut lines = BTreeMap::new();
    for (key, value) in entries {
        let at = key.referenced;
        let place = format!("{name}:{}:{}", at.line(), at.column());
        let first = lines.get(&key.value).copied();
        lines.entry(key.value.clone()).or_insert(at.line());
        let outcome = match settings.iter().find(|setting| setting.key == key.value) {
            Some(_) if let Some(line) = first => {
                Err(format!("{}: stands twice, first on line {line}", key.value))
            }
            Some(setting) => {
                (setting.set)(config, value).map_err(|error| format!("{}: {error}", key.value))
            }
            None => Err(unknown_key(&key.value, settings)),
        };
        faults.extend(outcome.err().map(|message| Fault { place, message }));
    }
    faults
}

/// Parses a value into a field; for the `set` of a [`Setting`].
pub fn put<T: DeserializeOwned>(field: &mut T, value: Value) -> Result<(), String> {
    *field = serde_json::from_value(value).map_err(|error| error.to_string())?;
    Ok(())
}

/// A variable holds a YAML value: a scalar, or a list in brackets. What the setting does not take so is taken as text:
/// a node may be called 123. An empty variable that the setting does not take counts as not set.
fn lay_variable<C>(config: &mut C, setting: &Setting<C>, text: &str) -> Option<Fault> {
    let as_text = || Value::String(text.to_owned());
    let value = serde_saphyr::from_str(text).unwrap_or_else(|_| as_text());
    let error = (setting.set)(config, value).err()?;
    if text.is_empty() || (setting.set)(config, as_text()).is_ok() {
        return None;
    }
    Some(Fault {
        place: setting.variable.to_owned(),
        message: error,
    })
}

fn unknown_key<C>(key: &str, settings: &[Setting<C>]) -> String {
    let near = settings.iter().map(|setting| setting.key).find(|known| {
        known.eq_ignore_ascii_case(key) || known.starts_with(key) || key.starts_with(known)
    });
    if let Some(near) = near {
        return format!("unknown key {key:?}; did you mean {near:?}?");
    }
    let keys: Vec<&str> = settings.iter().map(|setting| setting.key).collect();
    format!("unknown key {key:?}; the keys are {}", keys.join(", "))
}

/// The pairs of a mapping, keys with their place.
struct Entries(Vec<(Spanned<String>, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of keys to values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Entries(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Config {
        bridges: Vec<String>,
        group: u16,
        name: String,
    }

    const SETTINGS: &[Setting<Config>] = &[
        Setting {
            key: "bridges",
            variable: "X_BRIDGES",
            set: |c, v| put(&mut c.bridges, v),
        },
        Setting {
            key: "group",
            variable: "X_GROUP",
            set: |c, v| put(&mut c.group, v),
        },
        Setting {
            key: "name",
            variable: "X_NAME",
            set: |c, v| put(&mut c.name, v),
        },
    ];

    #[test]
    fn later_layers_win() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.yaml");
        std::fs::write(&file, "bridges: [cni0, br1]\ngroup: 7\nname: from-file\n").unwrap();
        let mut config = Config::default();

        let faults = layer(&mut config, SETTINGS, Some(&file), |name| {
            (name == "X_NAME").then(|| "from-variable".to_owned())
        });

        assert_eq!(faults, Faults::default());
        let bridges = vec!["cni0".to_owned(), "br1".to_owned()];
        assert_eq!(
            config,
            Config {
                bridges,
                group: 7,
                name: "from-variable".to_owned()
            }
        );
    }

    #[test]
    fn reports_all_faults_with_their_places() {
        let mut config = Config::default();
        let text = "bridges: 5\n# a comment\nGroup: 3\ngroup: 70000\nname: kept\n";

        let faults = layer_text(&mut config, SETTINGS, "agent.yaml", text);

        let places: Vec<&str> = faults
            .kept()
            .iter()
            .map(|fault| fault.place.as_str())
            .collect();
        assert_eq!(
            places,
            ["agent.yaml:1:1", "agent.yaml:3:1", "agent.yaml:4:1"]
        );
        assert!(
            faults.kept()[1].message.contains("did you mean \"group\"?"),
            "{}",
            faults.kept()[1].message
        );
        assert_eq!(config.name, "kept");
    }

    #[test]
    fn text_that_is_no_mapping_is_one_fault() {
        let mut config = Config::default();

        let faults = layer_text(&mut config, SETTINGS, "agent.yaml", "- a\n- b\n");

        assert_eq!(faults.kept().len(), 1);
        assert!(faults.is_file_unread);
        assert!(
            faults.kept()[0].place.starts_with("agent.yaml:1"),
            "{}",
            faults.kept()[0].place
        );
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        let mut config = Config::default();

        let faults = layer_text(&mut config, SETTINGS, "agent.yaml", "# nothing\n");

        assert_eq!((faults, config), (Faults::default(), Config::default()));
    }

    #[test]
    fn a_key_that_stands_twice_is_a_fault() {
        let mut config = Config::default();

        let faults = layer_text(&mut config, SETTINGS, "agent.yaml", "name: a\nname: b\n");

        let message = "name: stands twice, first on line 1".to_owned();
        let place = "agent.yaml:2:1".to_owned();
        assert_eq!(faults.kept(), [Fault { place, message }]);
    }

    #[test]
    fn a_variable_is_what_its_setting_takes() {
        let lay = |variables: &'static [(&str, &str)]| {
            let mut config = Config::default();
            let faults = layer(&mut config, SETTINGS, None, |name| {
                let (_, text) = variables.iter().find(|(known, _)| *known == name)?;
                Some((*text).to_owned())
            });
            (config, faults)
        };

        let (config, faults) = lay(&[("X_GROUP", "12"), ("X_NAME", "34"), ("X_BRIDGES", "[a]")]);
        let expected = Config {
            bridges: vec!["a".to_owned()],
            group: 12,
            name: "34".to_owned(),
        };
        assert_eq!((config, faults), (expected, Faults::default()));

        let (config, faults) = lay(&[("X_GROUP", ""), ("X_NAME", "")]);
        assert_eq!((config, faults), (Config::default(), Faults::default()));

        let (_, faults) = lay(&[("X_GROUP", "many")]);
        assert_eq!(faults.kept().len(), 1, "{faults:?}");
    }

    #[test]
    fn many_faults_are_counted_and_the_first_ones_told() {
        let lines: Vec<String> = (0..1_000).map(|key| format!("key{key}: 1")).collect();
        let text = lines.join("\n");

        let faults = layer_text(&mut Config::default(), SETTINGS, "agent.yaml", &text);

        let told = ConfigError { faults }.to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 1 + MOST_FAULTS + 1);
        assert_eq!(lines[0], "the configuration has 1000 faults");
        assert_eq!(
            lines[1 + MOST_FAULTS],
            "  and 980 more; correct those above first"
        );
    }
}
