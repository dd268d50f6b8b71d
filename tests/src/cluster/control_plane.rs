//! A real control plane: etcd, API server, controllers and scheduler in the fabric's namespace.
//!
//! ```text
//!  the host           127.0.0.1:PORT  <- kubeconfig for tests, kubectl and people
//!                           | forwarder
//!  tpXXXX-fabric      192.168.N.254:6443 API server, etcd and controllers on loopback
//!                        br-lab  <- node namespaces
//! ```
//!
//! # In a test
//!
//! ```no_run
//! use towpath_tests::cluster::{Alone, ControlPlaneConfig};
//! # fn main() -> anyhow::Result<()> {
//! // One for all tests of this program; made at the first call, removed when the program ends.
//! let plane = &Alone::shared()?.plane;
//! plane.api().apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")?;
//! let pods = plane.api().get("/api/v1/namespaces/shop/pods")?;
//! let for_the_product = plane.kubeconfig();
//!
//! // One of its own, for a test that stops the server or needs an empty cluster.
//! let mut alone = Alone::start(&ControlPlaneConfig::default())?;
//! alone.plane.stop_server();
//! alone.plane.start_server()?;
//! # Ok(()) }
//! ```
//!
//! A test that uses it begins with `require!("kubernetes", Root, KubernetesServers)`. By hand:
//! `cargo xtask lab up --control-plane`.

use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;

use super::api::Api;
use super::certificates::{Authority, Identity};
use super::daemon::{Daemon, Recipe, START_PATIENCE};
use crate::addresses::Addresses;
use crate::netns::Namespace;
use crate::program;
use crate::run::Run;
use crate::tools::{self, Tool};
use crate::wait::until;

const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";

const CLUSTER_POLICY: &str = include_str!("cluster_policy.yaml");
const CLUSTER_POLICIES: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";

/// Controllers that act when no kubelet speaks for a node. Light nodes have none, and their pods are to stay.
const NODE_CONTROLLERS: [&str; 4] = [
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "pod-garbage-collector-controller",
    "cloud-node-lifecycle-controller",
];

/// What a control plane is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlPlaneConfig {
    /// Whether nodes without a living kubelet lose their pods, as in a real cluster.
    pub watch_nodes: bool,
    /// Whether pods are given a node.
    pub schedule: bool,
    /// Whether Services have IPv6 addresses too.
    pub ipv6: bool,
}

/// Users with a token of their own from the start, and their groups.
const USERS: [(&str, &str); 4] = [
    ("admin", "system:masters"),
    ("system:kube-controller-manager", ""),
    ("system:kube-scheduler", ""),
    ("system:kube-proxy", ""),
];

/// From where a kubeconfig is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// From the host, by the forwarder.
    Host,
    /// From the fabric or a node.
    Lab,
}

/// How a user proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential<'a> {
    /// By a token.
    Token(&'a str),
    /// By a certificate.
    Certificate(&'a Identity),
}

/// A running control plane. Dropping it ends its processes.
#[derive(Debug)]
pub struct ControlPlane {
    folder: PathBuf,
    fabric: String,
    addresses: Addresses,
    authority: Authority,
    tokens: Vec<(&'static str, String)>,
    host_server: String,
    api: Api,
    kubeconfig: PathBuf,
    scheduler: Option<Daemon>,
    controllers: Option<Daemon>,
    server: Daemon,
    etcd: Daemon,
    forwarder: Daemon,
}

impl ControlPlane {
    /// Starts one in the fabric's namespace, whose bridge has its addresses already, and waits until it is usable.
    pub fn start(
        fabric: &Namespace,
        folder: &Path,
        addresses: Addresses,
        config: &ControlPlaneConfig,
    ) -> Result<Self> {
        let folder = folder.join("control-plane");
        let authority = Authority::create(&folder.join("pki"))?;
        let tokens = write_tokens(&folder)?;
        let etcd = start_etcd(fabric, &folder)?;
        let server = start_server(fabric, &folder, addresses, &authority)?;
        let (forwarder, host_server) = start_forwarder(fabric, &folder, addresses)?;
        let admin = &tokens[0].1;
        let api = Api::new(&host_server, authority.certificate(), admin)?;
        let mut plane = Self {
            kubeconfig: folder.join("admin.kubeconfig"),
            fabric: fabric.name().to_owned(),
            folder,
            addresses,
            authority,
            tokens,
            host_server,
            api,
            scheduler: None,
            controllers: None,
            server,
            etcd,
            forwarder,
        };
        plane.write_kubeconfig("admin", View::Host, Credential::Token(plane.token("admin")))?;
        plane.wait_ready()?;
        plane.start_controllers(config)?;
        if config.schedule {
            plane.start_scheduler()?;
        }
        plane.wait_account("default")?;
        Ok(plane)
    }

    /// The administrator, from this process.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The administrator's kubeconfig for the host.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The address plan.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Signs certificates for nodes.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The token of one of the users that exist from the start: `admin`, `system:kube-proxy`, ...
    pub fn token(&self, user: &str) -> &str {
        let found = self.tokens.iter().find(|(name, _)| *name == user);
        &found.expect("the user is in the list").1
    }

    /// URL of the API server as it is seen from there.
    pub fn url(&self, view: View) -> String {
        match view {
            View::Host => self.host_server.clone(),
            View::Lab => format!("https://{}:{PORT}", self.addresses.server()),
        }
    }

    /// Writes `NAME.kubeconfig`.
    pub fn write_kubeconfig(
        &self,
        name: &str,
        view: View,
        credential: Credential<'_>,
    ) -> Result<PathBuf> {
        let user = match credential {
            Credential::Token(token) => json!({ "token": token }),
            Credential::Certificate(identity) => json!({
                "client-certificate": identity.certificate,
                "client-key": identity.key,
            }),
        };
        let cluster =
            json!({ "server": self.url(view), "certificate-authority": self.authority.file() });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": name } }],
            "current-context": "lab",
        });
        let path = self.place_of_kubeconfig(name);
        fs::write(&path, serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }

    /// Where [`ControlPlane::write_kubeconfig`] has written a kubeconfig of this name, if it has.
    pub fn written_kubeconfig(&self, name: &str) -> Option<PathBuf> {
        Some(self.place_of_kubeconfig(name)).filter(|path| path.exists())
    }

    fn place_of_kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.kubeconfig"))
    }

    /// Waits until the controllers have given a namespace its service account: before that it takes no pods.
    pub fn wait_account(&self, namespace: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        let what = format!("service account of namespace {namespace}");
        let waited = until(&what, START_PATIENCE, || {
            Ok(self.api.find(&path)?.is_some())
        });
        waited.map_err(|error| match &self.controllers {
            Some(controllers) => controllers.explain(&error),
            None => error,
        })
    }

    /// Brings the kind `ClusterNetworkPolicy`, and waits until it can be used.
    pub fn define_cluster_policies(&self) -> Result<()> {
        self.api.apply(CLUSTER_POLICY)?;
        until("kind ClusterNetworkPolicy", START_PATIENCE, || {
            Ok(self.api.find(CLUSTER_POLICIES)?.is_some())
        })
    }

    /// Takes the kind `ClusterNetworkPolicy` away, with all its objects, and waits until it is gone.
    pub fn remove_cluster_policies(&self) -> Result<()> {
        self.api.withdraw(CLUSTER_POLICY)?;
        until("no kind ClusterNetworkPolicy", START_PATIENCE, || {
            Ok(self.api.find(CLUSTER_POLICIES)?.is_none())
        })
    }

    /// Ends the API server at once, as a crash would. Everything else goes on.
    pub fn stop_server(&mut self) {
        self.server.kill();
    }

    /// Starts the API server again and waits until it is usable.
    pub fn start_server(&mut self) -> Result<()> {
        self.server.restart()?;
        self.wait_ready()
    }

    /// The API server's process, for tests that make it hang.
    pub fn server(&self) -> &Daemon {
        &self.server
    }

    /// The controllers' process, for measurements that are to have the processors: elsewhere they run on another machine.
    pub fn controllers(&self) -> Option<&Daemon> {
        self.controllers.as_ref()
    }

    /// Has etcd forget all old versions of everything, so that whoever asks for changes since one is told to list
    /// anew (status 410).
    pub fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: serde_json::Value| -> Result<serde_json::Value> {
            let url = format!("{ETCD}/v3/{path}");
            let text = Namespace::existing(&self.fabric).enter(|| -> Result<String> {
                let mut answer = ureq::post(&url).send(body.to_string())?;
                Ok(answer.body_mut().read_to_string()?)
            })??;
            Ok(serde_json::from_str(&text)?)
        };
        // A key that no object has; the answer tells the revision.
        let answer = ask("kv/range", json!({ "key": "AA==" }))?;
        let revision = answer["header"]["revision"].clone();
        ask(
            "kv/compaction",
            json!({ "revision": revision, "physical": true }),
        )
        .with_context(|| format!("cannot compact etcd at revision {revision}"))?;
        Ok(())
    }

    /// All of it goes on when this value is gone.
    pub fn release(self) {
        for daemon in [self.server, self.etcd, self.forwarder] {
            daemon.release();
        }
        for daemon in [self.scheduler, self.controllers].into_iter().flatten() {
            daemon.release();
        }
    }

    fn wait_ready(&mut self) -> Result<()> {
        let api = self.api.clone();
        let ready = self
            .server
            .wait("the API server ready", || Ok(api.is_ready()));
        // It ends when it finds no etcd.
        ready.map_err(|error| match self.etcd.check() {
            Ok(()) => error,
            Err(ended) => self.etcd.explain(&ended),
        })
    }

    fn start_controllers(&mut self, config: &ControlPlaneConfig) -> Result<()> {
        let mut controllers = "*".to_owned();
        if !config.watch_nodes {
            for name in NODE_CONTROLLERS {
                controllers.push_str(",-");
                controllers.push_str(name);
            }
        }
        let key = self.folder.join("pki/accounts.key");
        let recipe = self
            .recipe(Tool::ControllerManager, "system:kube-controller-manager")?
            .flag("service-account-private-key-file", key)
            .flag("root-ca-file", self.authority.file())
            .flag("use-service-account-credentials", "true")
            .flag("controllers", controllers);
        self.controllers = Some(recipe.start()?);
        Ok(())
    }

    fn start_scheduler(&mut self) -> Result<()> {
        let recipe = self.recipe(Tool::Scheduler, "system:kube-scheduler")?;
        self.scheduler = Some(recipe.start()?);
        Ok(())
    }

    /// What the servers beside the API server have in common.
    fn recipe(&self, tool: Tool, user: &str) -> Result<Recipe> {
        let fabric = Namespace::existing(&self.fabric);
        let credential = Credential::Token(self.token(user));
        let kubeconfig = self.write_kubeconfig(tool.name(), View::Lab, credential)?;
        Ok(
            Recipe::new(tool.name(), &tool.path()?, &fabric, &self.folder)
                .flag("kubeconfig", kubeconfig)
                .flag("leader-elect", "false")
                .flag("bind-address", "127.0.0.1")
                .flag("cert-dir", self.folder.join(tool.name())),
        )
    }
}

/// A control plane without nodes: for what only speaks with the API server. Dropping it removes everything.
#[derive(Debug)]
pub struct Alone {
    /// The control plane.
    pub plane: ControlPlane,
    run: Run,
}

impl Alone {
    /// Starts one.
    pub fn start(config: &ControlPlaneConfig) -> Result<Self> {
        let run = Run::claim()?;
        let addresses = Addresses::of_run(run.prefix(), config.ipv6);
        addresses.set_up(&run.fabric)?;
        let plane = ControlPlane::start(&run.fabric, run.folder(), addresses, config)?;
        Ok(Self { plane, run })
    }

    /// The one that the tests of this program share. The keeper removes it when the program ends.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Alone>> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::start(&ControlPlaneConfig::default()))
            .as_ref()
            .map_err(|error| anyhow!("the shared control plane did not start: {error:#}"))
    }

    /// What its namespace starts with.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Leaves it running. `cargo xtask lab down` removes it.
    pub fn release(self) -> Result<()> {
        self.plane.release();
        self.run.release()
    }
}

fn write_tokens(folder: &Path) -> Result<Vec<(&'static str, String)>> {
    let random = RandomState::new();
    let mut lines = String::new();
    let mut tokens = Vec::new();
    for (user, group) in USERS {
        let token = format!(
            "{:016x}{:016x}",
            random.hash_one((user, 1)),
            random.hash_one((user, 2))
        );
        let groups = if group.is_empty() {
            String::new()
        } else {
            format!(",\"{group}\"")
        };
        let _ = writeln!(lines, "{token},{user},{user}{groups}");
        tokens.push((user, token));
    }
    fs::write(folder.join("tokens.csv"), lines)?;
    Ok(tokens)
}

fn start_etcd(fabric: &Namespace, folder: &Path) -> Result<Daemon> {
    let program = tools::etcd()
        .context("no etcd; install the Debian package etcd-server, or set KUBEBUILDER_ASSETS")?;
    Recipe::new("etcd", &program, fabric, folder)
        .flag("data-dir", folder.join("etcd"))
        .flag("listen-client-urls", ETCD)
        .flag("advertise-client-urls", ETCD)
        .flag("listen-peer-urls", "http://127.0.0.1:2380")
        // What is lost with the machine is not missed.
        .flag("unsafe-no-fsync", "true")
        .start()
}

fn start_server(
    fabric: &Namespace,
    folder: &Path,
    addresses: Addresses,
    authority: &Authority,
) -> Result<Daemon> {
    let services = addresses.services();
    // The Service `kubernetes` has the first address.
    let first: Vec<IpAddr> = services
        .iter()
        .filter_map(|network| network.hosts().next())
        .collect();
    let mut seen_as = vec![IpAddr::from(Ipv4Addr::LOCALHOST), addresses.server().into()];
    seen_as.extend(first);
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ];
    let own = authority.server("kube-apiserver", &names, &seen_as)?;
    let to_kubelets = authority.client("kubelet-client", "kube-apiserver", "system:masters")?;
    let accounts = authority.key_pair("accounts")?;
    let ranges: Vec<String> = services.iter().map(ToString::to_string).collect();
    Recipe::new("kube-apiserver", &Tool::ApiServer.path()?, fabric, folder)
        .flag("etcd-servers", ETCD)
        .flag("bind-address", addresses.server().to_string())
        .flag("advertise-address", addresses.server().to_string())
        .flag("secure-port", PORT.to_string())
        .flag("cert-dir", folder.join("kube-apiserver"))
        .flag("tls-cert-file", own.certificate)
        .flag("tls-private-key-file", own.key)
        .flag("client-ca-file", authority.file())
        .flag("kubelet-client-certificate", to_kubelets.certificate)
        .flag("kubelet-client-key", to_kubelets.key)
        .flag("kubelet-preferred-address-types", "InternalIP")
        .flag("service-account-key-file", accounts.certificate)
        .flag("service-account-signing-key-file", accounts.key)
        .flag("service-account-issuer", "https://kubernetes.default.svc")
        .flag("service-cluster-ip-range", ranges.join(","))
        .flag("authorization-mode", "Node,RBAC")
        .flag("enable-admission-plugins", "NodeRestriction")
        .flag("token-auth-file", folder.join("tokens.csv"))
        .flag("allow-privileged", "true")
        .start()
}

/// A process in the fabric's namespace with a socket of the host's loopback; its URL there.
fn start_forwarder(
    fabric: &Namespace,
    folder: &Path,
    addresses: Addresses,
) -> Result<(Daemon, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("https://{}", listener.local_addr()?);
    let server = SocketAddr::from((addresses.server(), PORT));
    let forwarder = Recipe::new("forwarder", &program::probe()?, fabric, folder)
        .arg("forward")
        .arg("--to")
        .arg(server.to_string())
        .start_with(Stdio::from(OwnedFd::from(listener)))?;
    Ok((forwarder, url))
}
