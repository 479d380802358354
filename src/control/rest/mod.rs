//! The API server over HTTP: what a request is about, who asks, whether they may, and the answer in the form they accept.

pub mod body;
pub mod connection;
pub mod discovery;
pub mod form;
pub mod handler;
mod health;
mod impersonation;
pub mod request_info;
mod resources;
pub mod response;
mod stream;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod version;

use std::sync::Arc;

use tokio::sync::watch;

use super::{authn::Authenticator, openapi::OpenApi, registry::Registry};

/// Everything that answers requests.
pub struct Api {
    /// Objects.
    pub registry: Registry,
    /// Who asks.
    pub authenticator: Authenticator,
    /// The schemas of everything, made when somebody asks for them.
    pub openapi: OpenApi,
    /// Turns true when the server is to stop: what runs for long then ends.
    pub stopping: watch::Receiver<bool>,
}

/// The API, as its handlers share it.
pub type SharedApi = Arc<Api>;
