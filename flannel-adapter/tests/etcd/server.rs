//! A server of etcd for one test, and a gate before it that can be closed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(30);

/// A running etcd; it ends with this value.
pub(crate) struct Etcd {
    process: Child,
    address: SocketAddr,
    is_secure: bool,
    folder: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        let etcd = Self::spawn(&[], false);
        etcd.until_ready().await;
        etcd
    }

    /// One that asks for certificates. `keys` gets an authority `ca.pem`, a client's `own.pem` and `own.key`, and an
    /// authority `other.pem` that signed nothing of it.
    pub(crate) async fn start_secure(keys: &Path) -> Self {
        make_certificates(keys);
        let file = |name: &str| keys.join(name).display().to_string();
        let options = [
            format!("--cert-file={}", file("server.pem")),
            format!("--key-file={}", file("server.key")),
            format!("--trusted-ca-file={}", file("ca.pem")),
            "--client-cert-auth".to_owned(),
        ];
        let etcd = Self::spawn(&options, true);
        etcd.until_ready().await;
        etcd
    }

    fn spawn(options: &[String], is_secure: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, peers) = (free_address(), free_address());
        let scheme = if is_secure { "https" } else { "http" };
        let process = Command::new("etcd")
            .arg(format!(
                "--data-dir={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--listen-client-urls={scheme}://{address}"))
            .arg(format!("--advertise-client-urls={scheme}://{address}"))
            .arg(format!("--listen-peer-urls=http://{peers}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peers}"))
            .arg(format!("--initial-cluster=default=http://{peers}"))
            .args(options)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start etcd ({error}); install etcd-server"));
        Self {
            process,
            address,
            is_secure,
            folder,
        }
    }

    async fn until_ready(&self) {
        let log = self.folder.path().join("log");
        let ready = async {
            while !std::fs::read_to_string(&log)
                .unwrap_or_default()
                .contains("ready to serve client requests")
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(
            tokio::time::timeout(DEADLINE, ready).await.is_ok(),
            "etcd does not start: {}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> serde_json::Value {
        let body =
            serde_json::json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)});
        self.ask("/v3/kv/put", &body).await
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.ask(
            "/v3/kv/deleterange",
            &serde_json::json!({"key": STANDARD.encode(key)}),
        )
        .await;
    }

    /// Throws away all history.
    pub(crate) async fn compact(&self) {
        let answer = self.put("/elsewhere", "").await;
        let revision = answer["header"]["revision"].clone();
        self.ask(
            "/v3/kv/compaction",
            &serde_json::json!({"revision": revision, "physical": true}),
        )
        .await;
    }

    pub(crate) async fn require_password(&self, name: &str, password: &str) {
        self.ask(
            "/v3/auth/user/add",
            &serde_json::json!({"name": name, "password": password}),
        )
        .await;
        self.ask("/v3/auth/role/add", &serde_json::json!({"name": "root"}))
            .await;
        self.ask(
            "/v3/auth/user/grant",
            &serde_json::json!({"user": name, "role": "root"}),
        )
        .await;
        self.ask("/v3/auth/enable", &serde_json::json!({})).await;
    }

    async fn ask(&self, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let request = hyper::Request::post(path)
            .header(hyper::header::HOST, "etcd")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        assert!(
            status.is_success(),
            "{path}: {}",
            String::from_utf8_lossy(&text)
        );
        serde_json::from_slice(&text).unwrap()
    }
}

/// A port that was free a moment ago.
fn free_address() -> SocketAddr {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// What a gate does with connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// Ends them.
    Closed,
    /// Keeps those that are there, but answers no longer pass; new ones are not affected.
    Mute {
        before: u32,
    },
}

/// Passes connections on.
pub(crate) struct Gate {
    address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    count: Arc<watch::Sender<u32>>,
}

impl Gate {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let count = Arc::new(watch::Sender::new(0));
        let (modes, counts) = (mode.clone(), count.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = *counts.borrow();
                counts.send_replace(number + 1);
                tokio::spawn(pass(stream, to, number, modes.subscribe()));
            }
        });
        Self {
            address,
            mode,
            count,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn close(&self) {
        self.mode.send_replace(Mode::Closed);
    }

    pub(crate) fn open(&self) {
        self.mode.send_replace(Mode::Open);
    }

    pub(crate) fn stop_answers(&self) {
        let before = *self.count.borrow();
        self.mode.send_replace(Mode::Mute { before });
    }
}

async fn pass(mut near: TcpStream, to: SocketAddr, number: u32, mut mode: watch::Receiver<Mode>) {
    let Ok(mut far) = TcpStream::connect(to).await else {
        return;
    };
    let (mut asked, mut answered) = (vec![0; 8192], vec![0; 8192]);
    loop {
        let now = *mode.borrow_and_update();
        if now == Mode::Closed {
            return;
        }
        let is_mute = matches!(now, Mode::Mute { before } if number < before);
        tokio::select! {
            changed = mode.changed() => if changed.is_err() { return },
            read = near.read(&mut asked) => match read {
                Ok(length) if length > 0 => if far.write_all(&asked[..length]).await.is_err() { return },
                _ => return,
            },
            read = far.read(&mut answered) => match read {
                Ok(length) if length > 0 => {
                    if !is_mute && near.write_all(&answered[..length]).await.is_err() { return }
                }
                _ => return,
            },
        }
    }
}

/// Makes an authority, a server's certificate and a client's, and an authority that nobody uses.
fn make_certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(folder)
            .output()
            .expect("openssl is installed");
        assert!(
            output.status.success(),
            "openssl {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    for (name, subject) in [("ca", "authority"), ("other", "stranger")] {
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={subject} -keyout {name}.key -out {name}.pem"
        ));
    }
    for (name, extension) in [
        (
            "server",
            "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth",
        ),
        ("own", "extendedKeyUsage=clientAuth"),
    ] {
        std::fs::write(folder.join(format!("{name}.ext")), extension).unwrap();
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.pem"
        ));
    }
}
