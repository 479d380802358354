//! TLS without verification: a probe asks whether the container answers, not who it is (as upstream does, which knows no
//! certificate of a pod).

use std::{
    io,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{FetchError, dial::Connection};

/// HTTP/2, as negotiated by ALPN.
pub(super) const HTTP2: &[u8] = b"h2";

static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Anybody(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    // Fails only for a provider without any cipher suite of those versions.
    let builder = builder.unwrap_or_else(|error| unreachable!("aws-lc-rs has TLS 1.2 and 1.3: {error}"));
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    // Each probe is to see the server as it is now.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
});

/// The handshake.
///
/// # Errors
/// [`FetchError::Timeout`], [`FetchError::NotTls`], [`FetchError::Tls`].
pub(super) async fn connect(
    host: &str,
    connection: Connection,
    until: Instant,
) -> Result<TlsStream<Connection>, FetchError> {
    let bare = host.trim_matches(['[', ']']);
    // A host that is no name of the DNS is only left out of the handshake, which nobody verifies.
    let name = ServerName::try_from(bare.to_owned())
        .unwrap_or_else(|_| ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()));
    let handshake = TlsConnector::from(CONFIG.clone()).connect(name, connection);
    match timeout_at(until, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(if is_not_tls(&error) { FetchError::NotTls } else { FetchError::Tls(error) }),
        Err(_) => Err(FetchError::Timeout),
    }
}

fn is_not_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(inner, Some(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)))
}

/// Whoever has the key of the certificate that it shows.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
