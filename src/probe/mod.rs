//! Handlers: what probes and lifecycle hooks run against a container, each within a time of its own.
//!
//! A handler is resolved from the API type first (ports by name, the pod's address where no host is given), then run.
//! Requests go from the node to the pod's address, whatever network namespace the pod has. Messages are those of
//! upstream, as people look for them. What an answer means is for the caller: `pod::probe` counts thresholds.

mod dial;
mod error;
pub mod grpc;
pub mod http;
mod port;
mod request;
pub mod tcp;
mod tls;

pub use error::{FetchError, HandlerError};
pub use http::{HttpGet, Purpose, Reply, http_get};
pub use tcp::{Place, tcp_connect};

/// Most of a body, or of a command's output, that is kept: 10 KiB, as upstream.
pub const OUTPUT: usize = 10 * 1024;

#[cfg(test)]
mod tests;
