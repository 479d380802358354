//! tcpSocket: whether something listens.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::api::core::v1::{ContainerPort, TCPSocketAction};
use tokio::time::Instant;

use super::{HandlerError, dial, port};

/// Where a tcpSocket handler connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// An address, or a name that the node can look up.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Place {
    /// Of an action: `ports` are the container's, `pod_ip` the host where none is given.
    ///
    /// # Errors
    /// [`HandlerError::UnknownPort`], [`HandlerError::InvalidPort`].
    pub fn resolve(action: &TCPSocketAction, ports: &[ContainerPort], pod_ip: IpAddr) -> Result<Place, HandlerError> {
        let host = action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| pod_ip.to_string());
        Ok(Place { host, port: port::resolve(&action.port, ports)? })
    }
}

/// Connects and closes again.
///
/// # Errors
/// [`HandlerError::Dial`].
pub async fn tcp_connect(place: &Place, timeout: Duration) -> Result<(), HandlerError> {
    dial::connect(&place.host, place.port, Instant::now() + timeout).await?;
    Ok(())
}
