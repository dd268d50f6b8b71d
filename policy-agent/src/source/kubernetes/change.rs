//! Requests that change something. No retries here, and nothing of what is written.

use hyper::Request;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use kube::client::Body;

use super::connection::{Connection, Failure};

/// A request that changes something.
#[derive(Clone, Debug)]
pub(crate) struct Change<'a> {
    pub(crate) method: &'static str,
    pub(crate) uri: &'a str,
    /// What kind of body it is.
    pub(crate) content: &'static str,
    pub(crate) body: Vec<u8>,
    /// The right that it takes, in words.
    pub(crate) right: &'static str,
    /// The manifest that gives the right.
    pub(crate) manifest: &'static str,
}

impl Connection {
    /// Makes a change. What the API server answers to a success is read, so that the connection can be used again,
    /// and forgotten.
    pub(crate) async fn change(&self, change: Change<'_>) -> Result<(), Failure> {
        let Change {
            method,
            uri,
            content,
            body,
            right,
            manifest,
        } = change;
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, content)
            .body(Body::from(body))
            .map_err(|error| Failure::Body(error.to_string()))?;
        let advice = || format!("to {right} takes the rights of {manifest}");
        let response = self.send(request, uri, advice).await?;
        self.drain(response.into_body()).await
    }
}
