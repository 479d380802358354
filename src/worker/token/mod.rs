//! Tokens of service accounts: what they are asked for with, and who gives them.
//!
//! A standalone node signs them itself ([`standalone`]); one that has joined a cluster asks the API server. Whoever needs
//! a token sees neither.

use std::fmt;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

use super::handle::BoxFuture;
use crate::{api::references::service_account, store::durable::StoreError};

pub mod standalone;

/// Shortest life of a token, seconds (as an API server has it).
pub const SHORTEST: i64 = 600;

/// Longest life of a token, seconds.
pub const LONGEST: i64 = 1 << 32;

/// What a token is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Namespace of the pod, and so of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Name of the pod the token is bound to.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Whom it is meant for; empty: whoever issued it.
    pub audience: String,
    /// How long it is to be valid, seconds from now.
    pub expiration_seconds: i64,
}

impl TokenRequest {
    /// A token for `pod`.
    pub fn of(pod: &Pod, audience: &str, expiration_seconds: i64) -> TokenRequest {
        let metadata = &pod.metadata;
        TokenRequest {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            service_account: service_account(pod).to_owned(),
            pod_name: metadata.name.clone().unwrap_or_default(),
            pod_uid: metadata.uid.clone().unwrap_or_default(),
            audience: audience.to_owned(),
            expiration_seconds,
        }
    }
}

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The JWT: a secret.
    pub value: String,
    /// When it was issued.
    pub issued: Timestamp,
    /// When it is valid no more.
    pub expires: Timestamp,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("issued", &self.issued).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Why there is no token. Worth another try when the objects have changed, and after a while.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// There is no such service account. In an API server's words.
    #[error("serviceaccounts {0:?} not found")]
    NoAccount(String),
    /// It is to live too short or too long.
    #[error("a token cannot be valid for {0} seconds: at least {SHORTEST}, at most {LONGEST}")]
    Lifetime(i64),
    /// The signing key cannot be read or written.
    #[error("the key that signs tokens")]
    Store(#[source] StoreError),
    /// What is in the key's file is no key. It is not replaced: every token out there would be worth nothing.
    #[error("{path} holds no P-256 private key in PKCS #8 PEM form")]
    Key {
        /// The file.
        path: std::path::PathBuf,
    },
    /// Signing failed, or there was no randomness.
    #[error("sign the token: {0}")]
    Sign(String),
}

/// Who gives tokens.
pub trait TokenSource: Send + Sync + 'static {
    /// A new token.
    fn token(&self, request: TokenRequest) -> BoxFuture<'static, Result<Token, TokenError>>;
}
