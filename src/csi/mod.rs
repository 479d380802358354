//! The node's side of the Container Storage Interface: its messages, the drivers that have registered, and the calls to
//! them. What is done with a volume of a pod, and what is kept of it, is in `worker::csi`.

pub mod client;
pub mod drivers;
pub mod messages;
pub mod volume;

/// Upstream's name of all of this.
pub const PLUGIN: &str = "kubernetes.io/csi";
