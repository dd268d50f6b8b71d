//! A Service, read once for the command line.

use hyper::Request;
use hyper::header::ACCEPT;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::connection::{Connection, Failure};
use super::stream::OBJECT_BYTES;
use super::{KubernetesSource, LoadError};
use crate::source::services::{SERVICE_NAME, ServiceSeen};

impl KubernetesSource {
    /// Reads a Service; nothing if it is not there.
    pub(crate) fn see_service(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ServiceSeen>, LoadError> {
        let seen = see(&self.connection, namespace, name);
        Ok(self.runtime.block_on(seen)?)
    }
}

async fn see(
    connection: &Connection,
    namespace: &str,
    name: &str,
) -> Result<Option<ServiceSeen>, Failure> {
    #[derive(Deserialize)]
    struct List {
        items: Vec<EndpointSlice>,
    }

    let uri = format!("/api/v1/namespaces/{namespace}/services/{name}");
    let service = match get(connection, &uri, "get services").await {
        Err(Failure::NotFound { .. }) => return Ok(None),
        other => other?,
    };
    let uri = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={SERVICE_NAME}%3D{name}"
    );
    let List { items } = get(connection, &uri, "list endpointslices.discovery.k8s.io").await?;
    Ok(Some(ServiceSeen {
        service,
        slices: items,
    }))
}

async fn get<T: DeserializeOwned>(
    connection: &Connection,
    uri: &str,
    right: &str,
) -> Result<T, Failure> {
    let broken = |error: &dyn std::fmt::Display| Failure::Body(format!("{uri}: {error}"));
    let request = Request::get(uri)
        .header(ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|error| broken(&error))?;
    let advice = || format!("use a kubeconfig that may {right}");
    let body = connection.send(request, uri, advice).await?.into_body();
    let bytes = connection.whole(body, OBJECT_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|error| broken(&error))
}
