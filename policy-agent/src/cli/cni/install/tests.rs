//! Installations in directories of their own: afterwards everything is as before.

use std::collections::BTreeMap;

use serde_json::json;
use tempfile::TempDir;

use super::*;

const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}"#;

struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let host = Self { folder };
        fs::write(host.path("plugin"), "program").unwrap();
        host.write("net.d/10-flannel.conflist", FLANNEL);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn install(&self, method: Method) -> Result<Vec<Step>, InstallError> {
        self.install_with(method, json!({ "type": PLUGIN }))
    }

    fn install_with(&self, method: Method, entry: Value) -> Result<Vec<Step>, InstallError> {
        install(&Installation {
            method,
            configurations: &self.path("net.d"),
            programs: &self.path("bin"),
            state: &self.path("state"),
            plugin: &self.path("plugin"),
            entry,
            network: None,
        })
    }

    /// Every file below the directories of the host, with its text.
    fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.path("net.d"), self.path("bin")];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.folder.path()).unwrap().to_owned();
                if path.is_dir() {
                    found.insert(name, "directory".to_owned());
                    left.push(path);
                } else {
                    found.insert(name, fs::read_to_string(&path).unwrap());
                }
            }
        }
        found
    }
}

fn actions(steps: &[Step]) -> Vec<&'static str> {
    steps.iter().map(|(action, _)| *action).collect()
}

#[test]
fn both_methods_install_once_and_leave_nothing() {
    for (method, name) in [
        (Method::DropIn, "net.d/cbr0/90-towpath.conf"),
        (Method::Copy, "net.d/05-towpath.conflist"),
    ] {
        let host = Host::new();
        let before = host.files();

        let first = host.install(method).unwrap();
        let during = host.files();
        let second = host.install(method).unwrap();
        let unchanged = host.files();
        let removed = remove(&host.path("state"), false).unwrap();
        let again = remove(&host.path("state"), false).unwrap();

        assert_eq!(actions(&first), ["installed", "installed"]);
        assert_eq!(actions(&second), ["unchanged", "unchanged"]);
        assert_eq!(during, unchanged);
        assert!(during[Path::new(name)].contains(PLUGIN));
        assert_eq!(during[Path::new("bin/towpath-cni")], "program");
        let mode =
            |path: &str| fs::metadata(host.path(path)).map(|found| found.permissions().mode());
        assert!(mode("bin/towpath-cni").is_err());
        assert_eq!(actions(&removed), ["removed", "removed"]);
        assert_eq!((again, host.files()), (vec![], before));
        assert!(!host.path("state").join(RECORD).exists());
    }
}

#[test]
fn another_method_replaces_the_first() {
    let host = Host::new();
    let before = host.files();

    host.install(Method::Copy).unwrap();
    host.install(Method::DropIn).unwrap();
    let during = host.files();
    remove(&host.path("state"), false).unwrap();

    assert!(!during.contains_key(Path::new("net.d/05-towpath.conflist")));
    assert!(during.contains_key(Path::new("net.d/cbr0/90-towpath.conf")));
    assert_eq!(host.files(), before);
}

#[test]
fn drop_ins_of_others_stay() {
    let host = Host::new();
    fs::create_dir(host.path("net.d/cbr0")).unwrap();
    host.write("net.d/cbr0/50-other.conf", r#"{"type":"tuning"}"#);
    let before = host.files();

    host.install(Method::DropIn).unwrap();
    let changed = json!({ "type": PLUGIN, "timeoutSeconds": 3 });
    let steps = host.install_with(Method::DropIn, changed).unwrap();
    let during = host.files();
    remove(&host.path("state"), false).unwrap();

    assert_eq!(actions(&steps), ["unchanged", "installed"]);
    assert!(during[Path::new("net.d/cbr0/90-towpath.conf")].contains("timeoutSeconds"));
    assert_eq!(host.files(), before);
}

#[test]
fn a_copy_follows_the_original_when_it_is_installed_again() {
    let host = Host::new();
    host.install(Method::Copy).unwrap();
    host.write(
        "net.d/10-flannel.conflist",
        &FLANNEL.replace("0.3.1", "1.0.0"),
    );

    let steps = host.install(Method::Copy).unwrap();

    assert_eq!(actions(&steps), ["unchanged", "installed"]);
    assert!(host.files()[Path::new("net.d/05-towpath.conflist")].contains("1.0.0"));
}

#[test]
fn a_refusal_changes_nothing() {
    let host = Host::new();
    host.write(
        "net.d/50-multus.conf",
        r#"{"name":"multus-cni-network","type":"multus"}"#,
    );
    let before = host.files();

    let owned = host.install(Method::Copy).unwrap_err();
    host.write("net.d/10-flannel.conflist", "{ \"name\": \"cb");
    let torn = host.install(Method::DropIn).unwrap_err();
    host.write("net.d/10-flannel.conflist", FLANNEL);

    assert!(
        matches!(owned, InstallError::Chain(ChainError::Owned { .. })),
        "{owned}"
    );
    assert!(
        matches!(torn, InstallError::Chain(ChainError::Unreadable { .. })),
        "{torn}"
    );
    assert_eq!(host.files(), before);
    assert!(!host.path("state").exists());
}

#[test]
fn the_program_may_outlive_its_configuration() {
    let host = Host::new();
    host.install(Method::DropIn).unwrap();

    let removed = remove(&host.path("state"), true).unwrap();

    assert_eq!(actions(&removed), ["removed"]);
    assert!(host.path("bin/towpath-cni").exists());
}

#[test]
fn an_installation_that_others_changed_is_told() {
    let host = Host::new();
    let told = || {
        fault(&host.path("state"))
            .unwrap()
            .map(|fault| fault.to_string())
    };
    assert_eq!(told(), None);
    for method in [Method::DropIn, Method::Copy] {
        host.install(method).unwrap();
        assert_eq!(told(), None, "{method:?}");
    }

    host.write(
        "net.d/10-flannel.conflist",
        &FLANNEL.replace("0.3.1", "1.0.0"),
    );
    let changed = told().unwrap();
    assert!(
        changed.contains("10-flannel.conflist has changed"),
        "{changed}"
    );
    host.write("net.d/10-flannel.conflist", "{");
    assert_eq!(told(), None);
    fs::remove_file(host.path("net.d/10-flannel.conflist")).unwrap();
    let gone = told().unwrap();
    assert!(gone.contains("its original is gone"), "{gone}");

    host.write(
        "net.d/10-flannel.conflist",
        &FLANNEL.replace("0.3.1", "1.0.0"),
    );
    host.install(Method::Copy).unwrap();
    assert_eq!(told(), None);
    for name in ["net.d/05-towpath.conflist", "bin/towpath-cni"] {
        fs::remove_file(host.path(name)).unwrap();
        let lost = told().unwrap();
        assert!(lost.contains(name), "{lost}");
    }
}
