//! The cluster's certificate authority.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Signs the certificates of one cluster.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    certificate: String,
}

/// Files of a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority; its certificate is `ca.crt` in the folder.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        parameters
            .distinguished_name
            .push(DnType::CommonName, "lab");
        let certificate = parameters.self_signed(&key)?.pem();
        fs::write(folder.join("ca.crt"), &certificate)?;
        Ok(Self {
            issuer: Issuer::new(parameters, key),
            folder: folder.to_owned(),
            certificate,
        })
    }

    /// The file of its certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a server with these names and addresses.
    pub fn server(&self, name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names)?;
        for address in addresses {
            parameters
                .subject_alt_names
                .push(SanType::IpAddress(*address));
        }
        parameters
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        parameters.distinguished_name.push(DnType::CommonName, name);
        self.sign(name, parameters)
    }

    /// A certificate that makes its holder a user of the API server, in a group.
    pub fn client(&self, file: &str, user: &str, group: &str) -> Result<Identity> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
        let subject = &mut parameters.distinguished_name;
        subject.push(DnType::CommonName, user);
        subject.push(DnType::OrganizationName, group);
        self.sign(file, parameters)
    }

    /// A key pair without certificate: the API server signs the tokens of service accounts with it.
    pub fn key_pair(&self, file: &str) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let identity = self.identity(file);
        fs::write(&identity.certificate, key.public_key_pem())?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }

    fn sign(&self, file: &str, mut parameters: CertificateParams) -> Result<Identity> {
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        let identity = self.identity(file);
        fs::write(&identity.certificate, certificate.pem())?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }

    fn identity(&self, file: &str) -> Identity {
        Identity {
            certificate: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        }
    }
}
