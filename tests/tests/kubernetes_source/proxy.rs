//! Stands between a source and the API server: plain HTTP in, the control plane's URL out. It can hold watches of a
//! kind back, cut every connection, and change what passes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use anyhow::{Context as _, Result};
use serde_json::json;
use towpath_tests::cluster::{ControlPlane, View};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// What is done to what passes.
#[derive(Default)]
struct Rules {
    /// Watches of paths that end so wait.
    held: Vec<String>,
    /// Texts and what they become.
    changes: Vec<(String, String)>,
    /// All clients' connections.
    clients: Vec<TcpStream>,
    /// Whether new connections are closed unheard.
    refuses: bool,
    has_ended: bool,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Rules>,
    changed: Condvar,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().expect("no holder panics")
    }
}

/// The proxy. Dropping it ends it.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    kubeconfig: PathBuf,
    _folder: tempfile::TempDir,
}

impl Proxy {
    pub(crate) fn start(plane: &ControlPlane) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "proxy", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "admin", "user": { "token": plane.token("admin") } }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "admin" } }],
            "current-context": "proxy",
        });
        std::fs::write(&kubeconfig, config.to_string())?;
        let root = Certificate::from_pem(plane.authority().certificate().as_bytes())?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[root]))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .new_agent();
        let upstream = Upstream {
            agent,
            server: plane.url(View::Host),
        };
        let shared = Arc::new(Shared::default());
        let served = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (shared, upstream) = (served.clone(), upstream.clone());
                if shared.rules().has_ended {
                    return;
                }
                // A connection that breaks is what the source is to bear.
                thread::spawn(move || serve(client, &shared, &upstream).ok());
            }
        });
        Ok(Self {
            shared,
            address,
            kubeconfig,
            _folder: folder,
        })
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Lets watches of this plural begin or go on no more.
    pub(crate) fn hold(&self, plural: &str) {
        self.shared.rules().held.push(format!("/{plural}"));
    }

    /// Lets them go on.
    pub(crate) fn release(&self) {
        self.shared.rules().held.clear();
        self.shared.changed.notify_all();
    }

    /// Changes every occurrence of a text from now on.
    pub(crate) fn change(&self, from: &str, to: &str) {
        let change = (from.to_owned(), to.to_owned());
        self.shared.rules().changes.push(change);
    }

    /// Changes nothing more.
    pub(crate) fn change_nothing(&self) {
        self.shared.rules().changes.clear();
    }

    /// Breaks every connection, and every new one, as if the server were away.
    pub(crate) fn refuse(&self) {
        self.shared.rules().refuses = true;
        self.cut();
    }

    /// Passes connections on again.
    pub(crate) fn accept(&self) {
        self.shared.rules().refuses = false;
    }

    /// Breaks every connection.
    pub(crate) fn cut(&self) {
        for client in self.shared.rules().clients.drain(..) {
            // It may be gone already.
            client.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.rules().has_ended = true;
        self.release();
        self.cut();
        // Wakes the listener, which then ends.
        TcpStream::connect(self.address).ok();
    }
}

#[derive(Clone)]
struct Upstream {
    agent: ureq::Agent,
    server: String,
}

/// One request; the connection ends with its answer.
fn serve(mut client: TcpStream, shared: &Shared, upstream: &Upstream) -> Result<()> {
    {
        let mut rules = shared.rules();
        if rules.refuses {
            return Ok(());
        }
        rules.clients.push(client.try_clone()?);
    }
    let (path, token) = head(&client)?;
    let is_watch = path.contains("watch=true");
    let url = format!("{}{path}", upstream.server);
    let answer = upstream
        .agent
        .get(&url)
        .header("Authorization", &token)
        .call()?;
    let status = answer.status();
    let kind = if is_watch {
        path.split('?').next().unwrap_or_default()
    } else {
        ""
    };
    wait(shared, kind);
    write!(
        client,
        "HTTP/1.1 {} X\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
        status.as_u16()
    )?;
    let mut body = BufReader::new(answer.into_body().into_reader());
    let mut part = Vec::new();
    loop {
        part.clear();
        let size = if is_watch {
            body.read_until(b'\n', &mut part)?
        } else {
            body.read_to_end(&mut part)?
        };
        if size == 0 {
            break;
        }
        wait(shared, kind);
        client.write_all(&changed(shared, &part))?;
    }
    client.shutdown(Shutdown::Both)?;
    Ok(())
}

/// Path and credentials of a request.
fn head(client: &TcpStream) -> Result<(String, String)> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let first = lines.next().context("no request")??;
    let path = first.split(' ').nth(1).context("no path")?.to_owned();
    let mut token = String::new();
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            value.trim().clone_into(&mut token);
        }
    }
    Ok((path, token))
}

/// Waits while a watch is held.
fn wait(shared: &Shared, path: &str) {
    let rules = shared.rules();
    let is_held = |rules: &mut Rules| rules.held.iter().any(|held| path.ends_with(held.as_str()));
    // The guard is of no more use.
    drop(
        shared
            .changed
            .wait_while(rules, is_held)
            .expect("no holder panics"),
    );
}

fn changed(shared: &Shared, part: &[u8]) -> Vec<u8> {
    let rules = shared.rules();
    if rules.changes.is_empty() {
        return part.to_vec();
    }
    let mut text = String::from_utf8_lossy(part).into_owned();
    for (from, to) in &rules.changes {
        text = text.replace(from, to);
    }
    text.into_bytes()
}
