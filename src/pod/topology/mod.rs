//! Where on the machine a pod's resources come from: NUMA nodes, hints, and the policy that decides (upstream's topology
//! manager). Pure.
//!
//! A [`Provider`] gives out one kind of resource (processors, memory, devices). [`grant`] asks each of them in which NUMA
//! nodes a container (or the pod, by [`TopologyScope`]) could be served, merges the answers by the [`TopologyPolicy`], and
//! has each give its part. What they gave is in the pod's [`Grants`], which are durable with its record; what is free
//! follows from the grants there are.

mod cpu;
#[cfg(test)]
mod cpu_tests;
mod cpus;
mod distribute;
mod grant;
mod hint;
#[cfg(test)]
mod hint_tests;
pub mod machine;
mod mask;
mod memory;
#[cfg(test)]
mod memory_tests;
mod take;
#[cfg(test)]
mod take_tests;

use std::collections::BTreeMap;

pub use cpu::{CpuManager, CpuOptions, CpuProvider};
pub use cpus::Cpus;
pub use grant::{Provider, TopologyOptions, grant, reject};
pub use hint::{Hint, ResourceHints, merge};
pub use machine::{CpuTopology, Machine};
pub use mask::NodeMask;
pub use memory::{Amounts, MemoryManager, MemoryProvider, is_memory};
use serde::Serialize;

pub use super::grants::Grants;

/// `topologyManagerPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopologyPolicy {
    /// Nobody is asked for hints; providers give without one.
    #[default]
    None,
    /// The best hint is used, and the pod runs whatever it is.
    BestEffort,
    /// A pod whose best hint is not preferred is rejected.
    Restricted,
    /// A pod that does not get everything from one NUMA node is rejected.
    SingleNumaNode,
}

/// `topologyManagerScope`: for what one hint is decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopologyScope {
    /// For each container by itself.
    #[default]
    Container,
    /// For all containers of a pod together.
    Pod,
}

/// The NUMA nodes of the machine and how far they are from each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NumaNodes {
    /// By node: the distance to each node, by its number (`nodeN/distance` in sysfs). Without distances all are equal.
    pub distances: BTreeMap<u32, Vec<u32>>,
}

impl NumaNodes {
    /// All of them.
    pub fn all(&self) -> NodeMask {
        self.distances.keys().copied().collect()
    }

    /// The mean of the distances between the nodes of a set, of each to itself too, as upstream has it. The rows of sysfs
    /// list the nodes that are online, in order.
    pub fn average_distance(&self, mask: NodeMask) -> f64 {
        let position = |node: u32| self.distances.keys().position(|known| *known == node);
        let distance = |from: u32, to: u32| {
            let row = self.distances.get(&from)?;
            row.get(position(to)?).copied()
        };
        let pairs = mask.nodes().flat_map(|from| mask.nodes().map(move |to| (from, to)));
        let (sum, count) = pairs.fold((0.0, 0.0), |(sum, count), (from, to)| {
            (sum + distance(from, to).map_or(0.0, f64::from), count + 1.0)
        });
        if count == 0.0 { 0.0 } else { sum / count }
    }
}
