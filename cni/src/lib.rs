//! Pod networking on Linux primitives: a bridge, a veth pair per pod, host-local addresses, and one nftables table
//! of our own for masquerading and host ports. Everything is done by talking to the kernel over netlink; no program
//! is run, nothing is kept in files (but for a record of changed kernel settings), and there is no daemon.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (owner, state, socket_of_the_pod): (&str, &std::path::Path, std::os::fd::OwnedFd) = todo!();
//! use berth_cni::{Network, NetworkConfig};
//!
//! let network = Network::new(NetworkConfig::default(), state)?;
//! network.ensure_host()?;
//! let lease = network.lease(owner, &[])?;          // put it in the pod's record now
//! network.attach(owner, socket_of_the_pod, &lease, &[])?;
//! network.detach(owner, &[])?;
//! network.release(owner);
//! # Ok(()) }
//! ```
//!
//! How packets go:
//!
//! - pod to pod: within the bridge; pod to host and back: by the bridge's own address, the pods' gateway;
//! - pod to outside: routed, with the host's address as source (`masquerade`); outside to pod: routed;
//! - host port to pod: translated by two maps in the nftables table, one lookup however many ports there are. From
//!   the host itself also by 127.0.0.1 (but not by ::1: the kernel has no `route_localnet` for IPv6).
//!
//! A firewall of the host that drops forwarded packets must be told to let the bridge pass: a table of our own
//! cannot overrule another one.

mod config;
mod conntrack;
mod error;
mod ipam;
mod lease;
mod link;
mod monitor;
mod netlink;
pub mod netns;
mod network;
mod nft;
mod pool;
mod sysctl;

pub use config::NetworkConfig;
pub use error::NetworkError;
pub use ipam::Range;
pub use lease::{Attachment, Lease, MacAddress, POD_INTERFACE, PortMapping, Protocol};
pub use monitor::RulesetMonitor;
pub use netlink::{Refusal, RequestError};
pub use network::Network;
