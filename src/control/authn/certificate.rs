//! Client certificates. Any that is well-formed is let in at the handshake: whether it is worth anything is asked for each
//! request, so that the client of a bad one gets a 401 that it can read, not a broken connection.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::User;

/// Authorities of clients could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not PEM.
    #[error("read the authority's certificate")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// No certificate of an authority.
    #[error("use the authority's certificate")]
    Root(#[source] Error),
    /// Nothing to verify with.
    #[error("set up the verification of client certificates")]
    Verifier(#[source] VerifierBuilderError),
}

/// A client certificate that is worth nothing.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Of another authority, expired, or not for clients.
    #[error("verify the client certificate")]
    Verify(#[source] Error),
    /// Not what was well-formed before.
    #[error("the client certificate cannot be read")]
    Malformed,
    /// Nobody's.
    #[error("the client certificate has no common name")]
    NoName,
}

/// Verifies client certificates and reads who they belong to.
pub struct ClientAuthority(Arc<dyn ClientCertVerifier>);

impl ClientAuthority {
    /// Trusts the authorities in `pem`.
    ///
    /// # Errors
    /// See [`TrustError`].
    pub fn new(pem: &str) -> Result<ClientAuthority, TrustError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.map_err(TrustError::Pem)?).map_err(TrustError::Root)?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map(ClientAuthority)
            .map_err(TrustError::Verifier)
    }

    /// Whose certificate the first of the chain is: the common name is the user, organizations are groups.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn user(&self, chain: &[CertificateDer<'static>], now: UnixTime) -> Result<User, CertificateError> {
        let (first, others) = chain.split_first().ok_or(CertificateError::Malformed)?;
        self.0.verify_client_cert(first, others, now).map_err(CertificateError::Verify)?;
        let (_, certificate) = X509Certificate::from_der(first).map_err(|_| CertificateError::Malformed)?;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).unwrap_or_default()
        };
        let name = certificate.subject().iter_common_name().map(text).next().unwrap_or_default();
        if name.is_empty() {
            return Err(CertificateError::NoName);
        }
        let groups = certificate.subject().iter_organization().map(text).collect();
        Ok(User { name, groups, ..User::default() })
    }
}

/// Lets any well-formed certificate in, and none as well.
#[derive(Debug)]
pub struct AnyClient(Arc<CryptoProvider>);

impl Default for AnyClient {
    fn default() -> AnyClient {
        AnyClient(Arc::new(aws_lc_rs::default_provider()))
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match X509Certificate::from_der(end_entity) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(_) => Err(Error::InvalidCertificate(rustls::CertificateError::BadEncoding)),
        }
    }

    // That the client has the key is part of the handshake whoever signed its certificate.
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
