//! What the containers of a pod were given for themselves, beyond amounts: processors, memory of NUMA nodes, devices.
//!
//! Decided once, when the pod is admitted, and durable in its record before anything is done for it. There is no second
//! book: what is free on the node is what no record has, so that nothing can be given twice, or lost, whatever happens
//! between two writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    devices::Artifacts,
    topology::{Cpus, NodeMask},
};

/// What a pod was given, by name of the container. Those that were given nothing are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grants {
    /// By name of the container.
    pub containers: BTreeMap<String, Grant>,
}

/// What a container was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Processors that nobody else's containers run on. An init container's are those of a container after it, too.
    #[serde(default, skip_serializing_if = "Cpus::is_empty")]
    pub cpus: Cpus,
    /// Memory of NUMA nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<MemoryGrant>,
    /// By resource (`example.com/device`): its devices.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, Vec<DeviceGrant>>,
    /// By resource: what the container needs for its devices, as their plugin said when they were made ready.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub artifacts: BTreeMap<String, Artifacts>,
}

/// Memory of NUMA nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryGrant {
    /// `memory` or `hugepages-<size>`.
    pub resource: String,
    /// The nodes it may come from.
    pub nodes: NodeMask,
    /// Bytes that count against them.
    pub bytes: u64,
}

/// A device of a device plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceGrant {
    /// As the plugin calls it.
    pub id: String,
    /// Where it is; empty: its plugin does not say.
    #[serde(default, skip_serializing_if = "is_nowhere")]
    pub nodes: NodeMask,
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_nowhere(nodes: &NodeMask) -> bool {
    nodes.is_empty()
}

impl Grants {
    /// Whether no container was given anything.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// What `container` was given, if anything.
    pub fn of(&self, container: &str) -> Option<&Grant> {
        self.containers.get(container)
    }

    /// What `container` was given, to add to it.
    pub fn of_mut(&mut self, container: &str) -> &mut Grant {
        self.containers.entry(container.to_owned()).or_default()
    }

    /// All processors of the pod's containers.
    pub fn cpus(&self) -> Cpus {
        self.containers.values().flat_map(|grant| grant.cpus.iter()).collect()
    }

    /// The devices of `resource` that the pod's containers have.
    pub fn devices<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a DeviceGrant> {
        self.containers.values().filter_map(|grant| grant.devices.get(resource)).flatten()
    }
}

impl Grant {
    /// The NUMA nodes its memory may come from; empty: all.
    pub fn memory_nodes(&self) -> NodeMask {
        self.memory.iter().fold(NodeMask::EMPTY, |nodes, grant| nodes.or(grant.nodes))
    }
}
