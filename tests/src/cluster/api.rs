//! The lab's hands at the API server: plain requests, objects as JSON.
//!
//! Not the product's client; what the product does with the API is seen from outside.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Request;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::wait::{PATIENCE, until_some};

/// Who writes the fields that the lab applies.
const FIELD_MANAGER: &str = "towpath-lab";

/// A user of the API server. Copies share connections and what is known of kinds.
#[derive(Clone, Debug)]
pub struct Api {
    agent: ureq::Agent,
    server: String,
    token: String,
    kinds: Arc<Mutex<BTreeMap<String, Vec<Kind>>>>,
}

/// A kind as discovery tells it.
#[derive(Clone, Debug, Deserialize)]
struct Kind {
    /// Plural.
    name: String,
    #[serde(rename = "kind")]
    singular: String,
    namespaced: bool,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The object, the list, or a `Status`.
    pub body: Value,
}

impl Api {
    /// A user by token. `server` is a URL that this process can reach.
    pub fn new(server: &str, authority: &str, token: &str) -> Result<Self> {
        let root = Certificate::from_pem(authority.as_bytes())?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[root]))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .proxy(None)
            // Several threads may ask at once.
            .max_idle_connections_per_host(16)
            .build()
            .new_agent();
        Ok(Self {
            agent,
            server: server.to_owned(),
            token: token.to_owned(),
            kinds: Arc::default(),
        })
    }

    /// The same server for another user.
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// One request, whatever its status. `path` begins with `/`.
    pub fn request(&self, method: &str, path: &str, content: &str, body: &str) -> Result<Answer> {
        let text = self.raw(method, path, content, body)?;
        // Some paths, such as /readyz, answer in plain words.
        let body = serde_json::from_str(&text.1).unwrap_or_else(|_| Value::from(text.1.as_str()));
        Ok(Answer {
            status: text.0,
            body,
        })
    }

    /// An object or a list.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.expect("GET", path, "", "")
    }

    /// An object, or nothing when there is none.
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.request("GET", path, "", "")?;
        if answer.status == 404 {
            return Ok(None);
        }
        succeeded("GET", path, answer).map(Some)
    }

    /// The words of an answer, for somebody who reads them in an own way.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, text) = self.raw("GET", path, "", "")?;
        if status != 200 {
            bail!("GET {path}: {status} {text}");
        }
        Ok(text)
    }

    /// A watch: one event a line, for as long as the server gives it. `path` has the query.
    pub fn watch(&self, path: &str) -> Result<impl BufRead + Send + use<>> {
        let url = format!("{}{path}", self.server);
        let request = Request::builder()
            .uri(&url)
            .header("Authorization", format!("Bearer {}", self.token))
            .body(())?;
        let request = self.agent.configure_request(request);
        let request = request.timeout_global(None).build();
        let answer = self
            .agent
            .run(request)
            .with_context(|| format!("GET {url}"))?;
        let status = answer.status();
        if status != 200 {
            bail!("GET {path}: {status}");
        }
        Ok(BufReader::new(answer.into_body().into_reader()))
    }

    /// Creates an object in a collection.
    pub fn create(&self, collection: &str, object: &Value) -> Result<Value> {
        self.expect("POST", collection, "application/json", &object.to_string())
    }

    /// Replaces an object.
    pub fn replace(&self, path: &str, object: &Value) -> Result<Value> {
        self.expect("PUT", path, "application/json", &object.to_string())
    }

    /// Merges fields into an object; `null` removes one.
    pub fn merge(&self, path: &str, fields: &Value) -> Result<Value> {
        let content = "application/merge-patch+json";
        self.expect("PATCH", path, content, &fields.to_string())
    }

    /// Deletes an object; one that is not there is no error.
    pub fn delete(&self, path: &str) -> Result<()> {
        // Nobody runs what the object stands for, so nobody would confirm a graceful end.
        let options = json!({ "gracePeriodSeconds": 0 }).to_string();
        let answer = self.request("DELETE", path, "application/json", &options)?;
        if answer.status != 404 {
            succeeded("DELETE", path, answer)?;
        }
        Ok(())
    }

    /// Applies all objects of a YAML text, as `kubectl apply --server-side` does.
    pub fn apply(&self, text: &str) -> Result<()> {
        for object in objects(text)? {
            let path = self.path_of(&object)?;
            let query = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
            // JSON is YAML.
            let content = "application/apply-patch+yaml";
            self.expect("PATCH", &query, content, &object.to_string())?;
        }
        Ok(())
    }

    /// Deletes all objects of a YAML text, the last first.
    pub fn withdraw(&self, text: &str) -> Result<()> {
        for object in objects(text)?.iter().rev() {
            self.delete(&self.path_of(object)?)?;
        }
        Ok(())
    }

    /// Whether the server says that it can be used.
    pub fn is_ready(&self) -> bool {
        self.raw("GET", "/readyz", "", "")
            .is_ok_and(|(status, text)| status == 200 && text == "ok")
    }

    /// A token of a service account, good for a month.
    pub fn service_token(&self, namespace: &str, account: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 30 * 24 * 3600 } });
        let answer = self.create(&path, &request)?;
        let token = answer["status"]["token"].as_str();
        Ok(token.context("the API server gave no token")?.to_owned())
    }

    /// Where an object is: discovery knows the plural of its kind.
    pub fn path_of(&self, object: &Value) -> Result<String> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let version = text(&object["apiVersion"]).context("an object has no apiVersion")?;
        let kind = text(&object["kind"]).context("an object has no kind")?;
        let name = text(&object["metadata"]["name"]).context("an object has no name")?;
        let kind = self.kind(&version, &kind)?;
        let mut path = group_path(&version);
        if kind.namespaced {
            let namespace = text(&object["metadata"]["namespace"]);
            let namespace = namespace.as_deref().unwrap_or("default");
            let _ = write!(path, "/namespaces/{namespace}");
        }
        let _ = write!(path, "/{}/{name}", kind.name);
        Ok(path)
    }

    fn kind(&self, version: &str, kind: &str) -> Result<Kind> {
        let find = |kinds: &[Kind]| {
            // `pods/status` has the kind Pod too.
            let mut plain = kinds.iter().filter(|found| !found.name.contains('/'));
            plain.find(|found| found.singular == kind).cloned()
        };
        let mut known = self.kinds.lock().expect("no holder panics");
        if let Some(found) = known.get(version).and_then(|kinds| find(kinds)) {
            return Ok(found);
        }
        // A definition may have come since the last look; after a restart it is served a moment after the rest.
        let path = group_path(version);
        let what = format!("{version} to be served");
        let list = until_some(&what, PATIENCE, || {
            let answer = self.request("GET", &path, "", "")?;
            if answer.status == 404 {
                return Ok(None);
            }
            succeeded("GET", &path, answer).map(Some)
        })?;
        let kinds: Vec<Kind> = Vec::deserialize(&list["resources"])?;
        let found = find(&kinds);
        known.insert(version.to_owned(), kinds);
        found.with_context(|| format!("the API server knows no kind {kind} in {version}"))
    }

    fn expect(&self, method: &str, path: &str, content: &str, body: &str) -> Result<Value> {
        succeeded(method, path, self.request(method, path, content, body)?)
    }

    fn raw(&self, method: &str, path: &str, content: &str, body: &str) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.server);
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .header("Authorization", format!("Bearer {}", self.token));
        let sent = if body.is_empty() {
            self.agent.run(request.body(())?)
        } else {
            let request = request.header("Content-Type", content);
            let request = request.body(body.as_bytes().to_vec())?;
            let request = self.agent.configure_request(request);
            // DELETE takes options in its body.
            self.agent
                .run(request.allow_non_standard_methods(true).build())
        };
        let mut answer = sent.with_context(|| format!("{method} {url}"))?;
        let text = answer
            .body_mut()
            .with_config()
            .limit(1 << 30)
            .read_to_string()
            .with_context(|| format!("{method} {url}"))?;
        Ok((answer.status().as_u16(), text))
    }
}

/// The objects of a text with one or more YAML documents.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

fn group_path(version: &str) -> String {
    if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    }
}

fn succeeded(method: &str, path: &str, answer: Answer) -> Result<Value> {
    if !(200..300).contains(&answer.status) {
        let message = answer.body["message"].as_str().map(str::to_owned);
        let words = message.unwrap_or_else(|| answer.body.to_string());
        bail!("{method} {path}: {} {words}", answer.status);
    }
    Ok(answer.body)
}
