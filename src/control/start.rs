//! The control plane as a whole: made ready, running, and stopped.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tracing::info;

use super::{
    authn::{Authenticator, ClientAuthority, TokenFileError, Tokens, TrustError},
    controllers::namespaces,
    error::ApiError,
    openapi::OpenApi,
    pki::{Authority, MASTERS, PkiError, kubeconfig},
    registry::{
        Registry, Target,
        incoming::Incoming,
        options::{FieldValidation, WriteOptions},
    },
    rest::{
        Api,
        connection::{self, TlsError},
    },
    storage::{
        Storage, compactor,
        embedded::{Embedded, OpenError},
    },
    types,
};
use crate::store::durable::{self, StoreError};

/// Namespaces that there always are.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// What the control plane is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it keeps everything.
    pub directory: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    /// Under which names and addresses clients reach it, beside those that are known.
    pub names: Vec<String>,
    /// Where the administrator's kubeconfig goes, beside its own place.
    pub kubeconfig: Option<PathBuf>,
    /// Tokens and whose they are.
    pub token_file: Option<PathBuf>,
}

/// The control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The file of tokens.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The authorities of clients.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The address.
    #[error("listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The kubeconfig.
    #[error("write the kubeconfig")]
    Kubeconfig(#[source] StoreError),
    /// What there always is.
    #[error("make the namespace {name}: {message}")]
    Namespace {
        /// Its name.
        name: &'static str,
        /// Why not.
        message: String,
    },
}

/// A control plane at work.
pub struct ControlPlane {
    /// Where it listens.
    pub address: SocketAddr,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// Objects, for those who are in the same process.
    pub registry: Registry,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
}

impl ControlPlane {
    /// Starts everything; it answers when this returns.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<ControlPlane, StartError> {
        let now = Timestamp::now();
        let authority = Authority::ensure(&config.directory.join("pki"), now)?;
        let tokens = config.token_file.as_deref().map(Tokens::read).transpose()?.unwrap_or_default();
        let bind = |source| StartError::Bind { address: config.address, source };
        let listener = connection::bind(config.address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let storage: Arc<dyn Storage> = Arc::new(Embedded::open(&config.directory.join("store.redb"))?);
        let registry = Registry { storage: storage.clone(), resources: types::ALL };
        for name in NAMESPACES {
            make_namespace(&registry, name).await?;
        }
        let certificates = Some(ClientAuthority::new(authority.certificate())?);
        let (stop, stopping) = watch::channel(false);
        let authenticator = Authenticator { certificates, tokens };
        let api = Arc::new(Api { registry: registry.clone(), authenticator, openapi: OpenApi, stopping });
        let server = serve(api, listener, &authority, &config, address, now)?;
        let workers = vec![
            tokio::spawn(compactor::run(storage, compactor::KEPT)),
            tokio::spawn(namespaces::run(registry.clone())),
        ];
        let kubeconfig = write_kubeconfig(&config, &authority, address, now)?;
        info!(%address, kubeconfig = %kubeconfig.display(), "the API server is ready");
        Ok(ControlPlane { address, kubeconfig, registry, stop, server, workers })
    }

    /// Stops: watches end, what is being answered is finished, and what was written is durable.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for worker in &self.workers {
            worker.abort();
        }
        // It ends by itself in bounded time; a panic of its has been reported.
        let _ = self.server.await;
        for worker in self.workers {
            let _ = worker.await;
        }
    }
}

fn serve(
    api: Arc<Api>,
    listener: TcpListener,
    authority: &Authority,
    config: &Config,
    address: SocketAddr,
    now: Timestamp,
) -> Result<JoinHandle<()>, StartError> {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut addresses = vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
    if !address.ip().is_unspecified() {
        addresses.push(address.ip());
    }
    for name in &config.names {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name.clone()),
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    let tls = connection::tls(&authority.serving(&names, &addresses, now)?)?;
    Ok(tokio::spawn(connection::serve(api, listener, tls)))
}

fn write_kubeconfig(
    config: &Config,
    authority: &Authority,
    address: SocketAddr,
    now: Timestamp,
) -> Result<PathBuf, StartError> {
    let admin = authority.client("kubernetes-admin", MASTERS, now)?;
    let reached = match address.ip().is_unspecified() {
        true => SocketAddr::new([127, 0, 0, 1].into(), address.port()),
        false => address,
    };
    let text = kubeconfig(&format!("https://{reached}"), authority.certificate(), &admin);
    let own = config.directory.join("admin.kubeconfig");
    let write = |path: &Path| durable::write(path, text.as_bytes()).map_err(StartError::Kubeconfig);
    write(&own)?;
    if let Some(path) = &config.kubeconfig {
        write(path)?;
    }
    Ok(config.kubeconfig.clone().unwrap_or(own))
}

async fn make_namespace(registry: &Registry, name: &'static str) -> Result<(), StartError> {
    let failed = |error: ApiError| StartError::Namespace { name, message: error.message };
    let Some(resource) = registry.resource("", "v1", "namespaces") else { return Ok(()) };
    let target = Target { resource, namespace: "", name: "" };
    let incoming = Incoming::new(json!({"metadata": {"name": name}}), Vec::new()).map_err(failed)?;
    let options = WriteOptions { dry_run: false, validation: FieldValidation::Ignore };
    match registry.create(target, incoming, options, &mut Vec::new()).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
