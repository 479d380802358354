//! Asks registries for manifests and blobs (OCI distribution specification 1.1, Docker registry API v2).
//!
//! A [`Session`] lives as long as one pull: it knows where to ask (mirrors, then the host itself) and holds the tokens.
//! Clients, with their connections and certificates, are shared by the sessions of the moment and gone with the last.

mod auth;
mod blob;
mod endpoint;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, Url, header::HeaderMap};

use self::endpoint::{Endpoint, Request};
use super::{
    config::{Credentials, ImageConfig, RegistryConfig},
    digest::Digest,
    error::{ImageError, RegistryError},
    manifest::{ACCEPT, Blob, MANIFEST_LIMIT},
    reference::ImageReference,
};

pub(super) use self::blob::Chunk;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Makes sessions.
pub(super) struct Registry {
    config: Arc<ImageConfig>,
    clients: Mutex<HashMap<ClientKey, Weak<reqwest::Client>>>,
}

/// What tells two clients apart: whether proxies are left alone, and whom they trust.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    direct: bool,
    ca_file: Option<PathBuf>,
}

/// A manifest or index as it was sent, digest checked.
#[derive(Debug)]
pub(super) struct Fetched {
    pub bytes: Vec<u8>,
    pub media_type: Option<String>,
    pub digest: Digest,
}

/// One repository, for the time of one pull.
pub(super) struct Session {
    reference: ImageReference,
    /// Mirrors in order, the host itself last.
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last.
    preferred: AtomicUsize,
    config: Arc<ImageConfig>,
}

impl Registry {
    pub(super) fn new(config: Arc<ImageConfig>) -> Registry {
        Registry { config, clients: Mutex::default() }
    }

    /// A session for the repository of `reference`. `credentials` are those of the pod, for the host itself only.
    pub(super) fn session(
        &self,
        reference: &ImageReference,
        credentials: Option<Credentials>,
    ) -> Result<Session, ImageError> {
        let failed = |host: &str, source| ImageError::Registry {
            reference: reference.to_string(),
            host: host.to_owned(),
            subject: "connection".into(),
            source,
        };
        let host = reference.host();
        let settings = self.settings(host);
        let mut endpoints = Vec::new();
        for mirror in &settings.mirrors {
            let url = Url::parse(&mirror.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let Some((url, name)) = url.and_then(|url| authority(&url).map(|name| (url, name))) else {
                return Err(failed(&mirror.url, RegistryError::Settings("not a mirror URL".into())));
            };
            let own = self.settings(&name);
            let mut endpoint =
                self.endpoint(url, &name, &own, own.credentials.clone(), reference).map_err(|e| failed(&name, e))?;
            endpoint.namespace = Some(host.to_owned());
            endpoints.push(endpoint);
        }
        // The name in references is not where Docker's registry is.
        let address = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let plain = settings.plain_http.unwrap_or_else(|| is_loopback(host));
        let url = Url::parse(&format!("{}://{address}", if plain { "http" } else { "https" }))
            .map_err(|error| failed(host, RegistryError::Settings(error.to_string())))?;
        let credentials = credentials.or_else(|| settings.credentials.clone());
        endpoints.push(self.endpoint(url, host, &settings, credentials, reference).map_err(|e| failed(host, e))?);
        Ok(Session {
            reference: reference.clone(),
            endpoints,
            preferred: AtomicUsize::new(0),
            config: Arc::clone(&self.config),
        })
    }

    fn settings(&self, host: &str) -> RegistryConfig {
        self.config.registries.get(host).cloned().unwrap_or_default()
    }

    fn endpoint(
        &self,
        url: Url,
        host: &str,
        settings: &RegistryConfig,
        credentials: Option<Credentials>,
        reference: &ImageReference,
    ) -> Result<Endpoint, RegistryError> {
        let key = ClientKey { direct: is_loopback(host), ca_file: settings.ca_file.clone() };
        let client = self.client(key)?;
        Ok(Endpoint::new(url, host, reference.repository(), credentials, client, self.config.progress_timeout))
    }

    fn client(&self, key: ClientKey) -> Result<Arc<reqwest::Client>, RegistryError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, client| client.strong_count() > 0);
        if let Some(client) = clients.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // Followed by hand: what may be sent where is ours to decide.
            .redirect(reqwest::redirect::Policy::none());
        if key.direct {
            builder = builder.no_proxy();
        }
        if let Some(path) = &key.ca_file {
            let failed =
                |error: &dyn std::fmt::Display| RegistryError::Settings(format!("CA file {}: {error}", path.display()));
            let pem = std::fs::read(path).map_err(|error| failed(&error))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))?;
            if certificates.is_empty() {
                return Err(failed(&"no certificate in it"));
            }
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|error| RegistryError::Settings(endpoint::cause(error)))?;
        let client = Arc::new(client);
        clients.insert(key, Arc::downgrade(&client));
        Ok(client)
    }

    #[cfg(test)]
    pub(super) fn live_clients(&self) -> usize {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.values().filter(|client| client.strong_count() > 0).count()
    }
}

impl Session {
    /// What the reference points to now, without fetching it; `None` when the registry does not say.
    pub(super) async fn head(&self) -> Result<Option<Digest>, ImageError> {
        let version = self.reference.version();
        let (_, headers, _) = self.ask(Method::HEAD, "manifests", version, MANIFEST_LIMIT).await?;
        let digest = headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(digest.and_then(|text| Digest::parse(text).ok()))
    }

    /// Fetches the manifest or index the reference points to.
    pub(super) async fn manifest(&self) -> Result<Fetched, ImageError> {
        self.document(self.reference.version(), self.reference.digest(), MANIFEST_LIMIT).await
    }

    /// Fetches a manifest by its descriptor.
    pub(super) async fn manifest_by(&self, blob: &Blob) -> Result<Fetched, ImageError> {
        let fetched = self.document(blob.digest.as_str(), Some(&blob.digest), MANIFEST_LIMIT).await?;
        self.check_size(blob, fetched.bytes.len() as u64)?;
        Ok(fetched)
    }

    async fn document(&self, version: &str, expected: Option<&Digest>, limit: u64) -> Result<Fetched, ImageError> {
        let subject = format!("manifest {version}");
        let (endpoint, headers, bytes) = self.ask(Method::GET, "manifests", version, limit).await?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let announced = text("docker-content-digest").and_then(|text| Digest::parse(text).ok());
        // What was asked for decides. For a tag, the registry's own word guards against a damaged answer.
        let expected = expected.or(announced.as_ref());
        let digest = expected.map_or_else(|| Digest::of(&bytes), |expected| expected.same_algorithm_of(&bytes));
        if let Some(expected) = expected
            && *expected != digest
        {
            let subject = format!("{}: {subject} from {}", self.reference, endpoint.host);
            return Err(ImageError::DigestMismatch { subject, expected: expected.clone(), actual: digest });
        }
        Ok(Fetched { media_type: text("content-type").map(str::to_owned), bytes, digest })
    }

    /// Fetches a small blob into memory, checked.
    pub(super) async fn small_blob(&self, blob: &Blob, limit: u64) -> Result<Vec<u8>, ImageError> {
        let subject = format!("blob {}", blob.digest);
        if blob.size > limit {
            let source = RegistryError::Protocol(format!("{} bytes, more than {limit}", blob.size));
            return Err(self.failed(self.last(), &subject, source));
        }
        let (endpoint, _, bytes) = self.ask(Method::GET, "blobs", blob.digest.as_str(), limit).await?;
        self.check_size(blob, bytes.len() as u64)?;
        let actual = blob.digest.same_algorithm_of(&bytes);
        if actual != blob.digest {
            let subject = format!("{}: {subject} from {}", self.reference, endpoint.host);
            return Err(ImageError::DigestMismatch { subject, expected: blob.digest.clone(), actual });
        }
        Ok(bytes)
    }

    fn check_size(&self, blob: &Blob, actual: u64) -> Result<(), ImageError> {
        if blob.size == actual {
            return Ok(());
        }
        let subject = format!("{}: {}", self.reference, blob.digest);
        Err(ImageError::SizeMismatch { subject, expected: blob.size, actual })
    }

    /// Asks the endpoints in turn, each with retries, for a whole answer of at most `limit` bytes.
    async fn ask(
        &self,
        method: Method,
        kind: &str,
        version: &str,
        limit: u64,
    ) -> Result<(&Endpoint, HeaderMap, Vec<u8>), ImageError> {
        let subject = format!("{} {version}", kind.trim_end_matches('s'));
        let mut last = None;
        for (index, endpoint) in self.in_order() {
            let accept = (kind == "manifests").then_some(ACCEPT);
            let request = Request { method: method.clone(), kind, version, accept, offset: 0 };
            match endpoint.fetch(&request, limit, self.config.retry).await {
                Ok((headers, bytes)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((endpoint, headers, bytes));
                }
                Err(source) => {
                    let reference = &self.reference;
                    tracing::debug!(host = %endpoint.host, %source, %reference, subject, "registry request failed");
                    last = Some(self.failed(endpoint, &subject, source));
                }
            }
        }
        Err(last.unwrap_or(ImageError::Interrupted(subject)))
    }

    /// All endpoints, the one that answered last first.
    fn in_order(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let first = self.endpoints.iter().enumerate().filter(move |(index, _)| *index == preferred);
        first.chain(self.endpoints.iter().enumerate().filter(move |(index, _)| *index != preferred))
    }

    fn last(&self) -> &Endpoint {
        &self.endpoints[self.preferred.load(Ordering::Relaxed).min(self.endpoints.len() - 1)]
    }

    fn failed(&self, endpoint: &Endpoint, subject: &str, source: RegistryError) -> ImageError {
        ImageError::Registry {
            reference: self.reference.to_string(),
            host: endpoint.host.clone(),
            subject: subject.to_owned(),
            source,
        }
    }
}

/// `host[:port]` of a URL.
fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// `localhost` or a loopback address, with or without a port: plain HTTP goes nowhere else.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
