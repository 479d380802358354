//! Who asks. Each way to say so is tried in turn; the first that recognises the request decides, and one that is
//! presented something it does not accept does not: the others may.

mod certificate;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::BTreeMap;

use hyper::HeaderMap;
use rustls::pki_types::{CertificateDer, UnixTime};

pub use self::{
    certificate::{AnyClient, ClientAuthority, TrustError},
    tokens::{TokenFileError, Tokens},
};

/// Group of everybody who was recognised.
pub const AUTHENTICATED: &str = "system:authenticated";

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// What tells it from another of the same name; may be empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else is known.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why nobody was recognised; for the log, the client is only told that it is so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unrecognised {
    /// It said nothing of who it is.
    #[error("no credentials")]
    Nothing,
    /// What it said was not accepted, by any way to say so.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
}

/// Every way there is.
pub struct Authenticator {
    /// Certificates.
    pub certificates: Option<ClientAuthority>,
    /// Bearer tokens from a file.
    pub tokens: Tokens,
}

impl Authenticator {
    /// Recognises who sent a request over a connection whose client presented `chain` (empty: none).
    ///
    /// # Errors
    /// Nobody was recognised.
    pub fn authenticate(
        &self,
        chain: &[CertificateDer<'static>],
        headers: &HeaderMap,
        now: UnixTime,
    ) -> Result<User, Unrecognised> {
        let mut refused = Vec::new();
        let mut found = None;
        if let (Some(authority), false) = (&self.certificates, chain.is_empty()) {
            match authority.user(chain, now) {
                Ok(user) => found = Some(user),
                Err(error) => refused.push(crate::obs::chain::Chain(&error).to_string()),
            }
        }
        if found.is_none()
            && let Some(token) = bearer(headers)
        {
            match self.tokens.user(token) {
                Some(user) => found = Some(user),
                None => refused.push("the bearer token is not known".to_owned()),
            }
        }
        match found {
            Some(mut user) => {
                if !user.groups.iter().any(|group| group == AUTHENTICATED) {
                    user.groups.push(AUTHENTICATED.to_owned());
                }
                Ok(user)
            }
            None if refused.is_empty() => Err(Unrecognised::Nothing),
            None => Err(Unrecognised::Refused(refused)),
        }
    }
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(hyper::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
