//! The control plane's own authority, its serving certificate and the administrator's: made where there are none, in a
//! directory that only root can read. The authority stays; what it signs is signed anew at each start.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Span, Timestamp, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use crate::store::durable::{self, StoreError};

/// Group that may do everything.
pub const MASTERS: &str = "system:masters";

/// Years for which the authority is valid, as kubeadm has it.
const AUTHORITY_YEARS: i64 = 10;
/// Years for which what it signs is valid.
const SIGNED_YEARS: i64 = 1;

/// Certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The directory could not be made.
    #[error("make the directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] StoreError),
    /// A certificate or key could not be made or is none.
    #[error("{step}")]
    Certificate {
        /// `make the serving certificate`, …
        step: &'static str,
        /// Cause.
        #[source]
        source: rcgen::Error,
    },
}

fn failed(step: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { step, source }
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

/// An authority that can sign.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority in `directory` (`ca.crt`, `ca.key`); it is made, durably, where there is none.
    ///
    /// # Errors
    /// A file cannot be read or written, or is not what its name says.
    pub fn ensure(directory: &Path, now: Timestamp) -> Result<Authority, PkiError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
            .map_err(|source| PkiError::Directory { path: directory.to_owned(), source })?;
        let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
        if !certificate.exists() {
            let pair = make_authority(now)?;
            // The certificate last: where it is there, so is its key.
            durable::write(&key, pair.key.as_bytes())?;
            durable::write(&certificate, pair.certificate.as_bytes())?;
        }
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.to_owned(), source });
        let (certificate, key) = (read(&certificate)?, read(&key)?);
        let key = KeyPair::from_pem(&key).map_err(failed("read the key of the certificate authority"))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .map_err(failed("read the certificate of the certificate authority"))?;
        Ok(Authority { certificate, issuer })
    }

    /// Its certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a server with these names and addresses.
    ///
    /// # Errors
    /// A name is none.
    pub fn serving(&self, names: &[String], addresses: &[IpAddr], now: Timestamp) -> Result<Pair, PkiError> {
        let step = "make the serving certificate";
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed(step))?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth, now).map_err(failed(step))
    }

    /// A certificate for a client: user name and group, as the server will see them.
    ///
    /// # Errors
    /// A name cannot stand in a certificate.
    pub fn client(&self, user: &str, group: &str, now: Timestamp) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let step = "make a client certificate";
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth, now).map_err(failed(step))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
        now: Timestamp,
    ) -> Result<Pair, rcgen::Error> {
        valid(&mut params, now, SIGNED_YEARS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn make_authority(now: Timestamp) -> Result<Pair, PkiError> {
    let step = "make the certificate authority";
    let mut params = CertificateParams::default();
    valid(&mut params, now, AUTHORITY_YEARS);
    params.distinguished_name.push(DnType::CommonName, "berth");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::KeyEncipherment];
    let key = KeyPair::generate().map_err(failed(step))?;
    let certificate = params.self_signed(&key).map_err(failed(step))?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// From yesterday, for clocks that are slow, until some years from now.
fn valid(params: &mut CertificateParams, now: Timestamp, years: i64) {
    let today = TimeZone::UTC.to_datetime(now).date();
    let date = |date: Date| rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8);
    params.not_before = date(today.saturating_sub(Span::new().days(1)));
    params.not_after = date(today.saturating_add(Span::new().years(years)));
}

/// A kubeconfig with everything in it.
pub fn kubeconfig(server: &str, authority: &str, client: &Pair) -> String {
    let data = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: berth\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: berth-admin\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: berth\n  context:\n    cluster: berth\n    user: berth-admin\n\
         current-context: berth\n",
        data(authority),
        data(&client.certificate),
        data(&client.key),
    )
}
