//! TLS to etcd, with certificates from files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// The files that flanneld has as `--etcd-cafile`, `--etcd-certfile` and `--etcd-keyfile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that sign etcd's.
    pub authorities: PathBuf,
    /// Our certificate and its key, where etcd asks for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} for etcd from {path}")]
pub struct TlsError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Certificates, ready for connections.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
}

impl Tls {
    /// Reads the files. They are read at every connection, so that they can be replaced.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let mut authorities = RootCertStore::empty();
        for certificate in certificates("the authorities", &files.authorities)? {
            let added = authorities.add(certificate).map_err(io::Error::other);
            added.map_err(|source| failed("the authorities", &files.authorities, source))?;
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what the versions need")
            .with_root_certificates(authorities);
        let config = match &files.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("our certificate", certificate)?;
                let key_read = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other);
                let key_read = key_read.map_err(|source| failed("our key", key, source))?;
                let built = builder.with_client_auth_cert(chain, key_read);
                built.map_err(|error| failed("our key", key, io::Error::other(error)))?
            }
        };
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Speaks TLS with `host` over a stream.
    pub(super) async fn wrap(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.connector.connect(name, stream).await
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(what, path, io::Error::other(error)))?;
    if read.is_empty() {
        let source = io::Error::other("it holds no certificate");
        return Err(failed(what, path, source));
    }
    Ok(read)
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> TlsError {
    TlsError {
        what,
        path: path.to_owned(),
        source,
    }
}
