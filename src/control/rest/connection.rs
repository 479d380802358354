//! Connections: TLS with HTTP/1.1 and HTTP/2, and their end.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{SharedApi, handler};
use crate::control::{authn::AnyClient, pki::Pair};

/// Time for a handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most connections at a time; more wait in the kernel's queue.
const MOST: usize = 20_000;
/// How long what is being answered may take when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// Requests at a time over one connection, as upstream.
const STREAMS: u32 = 250;
/// How often a client that is silent is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The server's side of TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Certificate or key cannot be read.
    #[error("read the serving certificate")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// They cannot be used.
    #[error("use the serving certificate")]
    Config(#[source] rustls::Error),
}

/// TLS with a serving certificate, and with any client's.
///
/// # Errors
/// See [`TlsError`].
pub fn tls(pair: &Pair) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect();
    let certificates = certificates.map_err(TlsError::Pem)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(TlsError::Pem)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(Arc::new(AnyClient::default()))
        .with_single_cert(certificates, key)
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until the API is told to stop, and then a little longer what is being answered.
pub async fn serve(api: SharedApi, listener: TcpListener, config: Arc<ServerConfig>) {
    let acceptor = TlsAcceptor::from(config);
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MOST));
    let mut stopping = api.stopping.clone();
    loop {
        let permit = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break,
            permit = room.clone().acquire_owned() => permit,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Descriptors run out, mostly; a pause lets some come back.
                warn!(%error, "accept a connection, trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, watcher, api) = (acceptor.clone(), graceful.watcher(), api.clone());
        tokio::spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%peer, %error, "set TCP_NODELAY, ignoring");
            }
            if let Err(error) = connection(api, acceptor, stream, watcher).await {
                debug!(%peer, %error, "a connection ended");
            }
            drop(permit);
        });
    }
    if tokio::time::timeout(FAREWELL, graceful.shutdown()).await.is_err() {
        debug!("connections still open are cut off");
    }
}

async fn connection(
    api: SharedApi,
    acceptor: TlsAcceptor,
    stream: tokio::net::TcpStream,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let chain: Vec<CertificateDer<'static>> = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect();
    let chain = Arc::new(chain);
    let service = service_fn(move |request| {
        let (api, chain) = (api.clone(), chain.clone());
        async move { Ok::<_, Infallible>(handler::handle(api, request, &chain).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    watcher.watch(connection.into_owned()).await
}

/// Binds an address.
///
/// # Errors
/// It is in use, or not ours.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}
