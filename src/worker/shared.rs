//! What all pods of the node share: the stores, the network, the cgroups, the configuration.

use std::{net::IpAddr, sync::Arc};

use berth_cni::Network;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use super::{
    execute::Host,
    host::{PodEvent, PodHost},
    manager::Hosts,
    record::PodRecord,
};
use crate::{
    api::unsupported::{Consequence, unsupported},
    cgroup::Cgroups,
    config::NodeConfig,
    image::ImageStore,
    pod::{
        Rejection,
        admission::{self, NodeFacts},
    },
    runtime::{downward::Allocatable, spawn::SealedBinary},
};

/// Shared by all pods.
pub struct Shared {
    /// Configuration.
    pub config: NodeConfig,
    /// cgroups.
    pub cgroups: Cgroups,
    /// Images.
    pub images: ImageStore,
    /// Pod network.
    pub network: Network,
    /// The supervisors' program.
    pub binary: SealedBinary,
    /// Addresses of the node, the first one primary.
    pub host_ips: Vec<IpAddr>,
    /// What the node has for pods.
    pub allocatable: Allocatable,
    /// Bytes of memory of the machine.
    pub memory: u64,
    /// What admission knows of the node.
    pub facts: NodeFacts,
    /// Bit mask of the agent's own bounding set: what a privileged container gets.
    pub capabilities: u64,
}

/// Makes hands for pods.
pub struct RealHosts(pub Arc<Shared>);

impl Hosts for RealHosts {
    fn host(&self, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Arc<dyn PodHost> {
        Arc::new(Host::new(self.0.clone(), record, events))
    }

    fn admit(&self, pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
        let refused: Vec<_> =
            unsupported(pod).into_iter().filter(|issue| issue.consequence == Consequence::Refused).collect();
        admission::admit(pod, others, &self.0.facts, &refused)
    }
}
