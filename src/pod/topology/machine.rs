//! What the machine has, and where: processors in cores, caches, sockets and NUMA nodes; memory and huge pages by node.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cpus, NodeMask, NumaNodes};

/// The machine, as far as resources have a place on it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machine {
    /// Processors that are online.
    pub cpus: CpuTopology,
    /// NUMA nodes and their distances.
    pub numa: NumaNodes,
    /// By node: its memory.
    pub memory: BTreeMap<u32, NodeMemory>,
}

/// Memory of a NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeMemory {
    /// Bytes, huge pages included.
    pub total: u64,
    /// Bytes in huge pages, by the size of a page in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
}

/// Where a processor is. Each place is called by its lowest processor, but NUMA nodes and sockets by their own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its core: the threads that share one.
    pub core: u32,
    /// The processors with which it shares the last cache before memory (L3); its socket where there is none.
    pub cache: u32,
    /// Physical package.
    pub socket: u32,
    /// NUMA node.
    pub node: u32,
}

/// A kind of place, from small to large as a rule. A socket may have several nodes and a node several sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Threads of one core.
    Core,
    /// Processors of one last-level ("uncore") cache.
    Cache,
    /// Physical package.
    Socket,
    /// NUMA node.
    Node,
}

impl Place {
    /// The number of its place of a kind.
    pub fn at(&self, level: Level) -> u32 {
        match level {
            Level::Core => self.core,
            Level::Cache => self.cache,
            Level::Socket => self.socket,
            Level::Node => self.node,
        }
    }
}

/// Processors and their places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuTopology(pub BTreeMap<u32, Place>);

impl CpuTopology {
    /// All processors.
    pub fn all(&self) -> Cpus {
        self.0.keys().copied().collect()
    }

    /// Where a processor is; `None` for one that is not there.
    pub fn place(&self, cpu: u32) -> Option<&Place> {
        self.0.get(&cpu)
    }

    /// The places of a kind, ascending.
    pub fn places(&self, level: Level) -> BTreeSet<u32> {
        self.0.values().map(|place| place.at(level)).collect()
    }

    /// All processors of a place.
    pub fn within(&self, level: Level, place: u32) -> Cpus {
        self.0.iter().filter(|(_, found)| found.at(level) == place).map(|(cpu, _)| *cpu).collect()
    }

    /// All processors of some NUMA nodes.
    pub fn in_nodes(&self, nodes: NodeMask) -> Cpus {
        self.0.iter().filter(|(_, place)| nodes.contains(place.node)).map(|(cpu, _)| *cpu).collect()
    }

    /// NUMA nodes that have processors.
    pub fn nodes(&self) -> NodeMask {
        self.places(Level::Node).into_iter().collect()
    }

    /// Sockets with processors in some NUMA nodes.
    pub fn sockets_of(&self, nodes: NodeMask) -> BTreeSet<u32> {
        self.0.values().filter(|place| nodes.contains(place.node)).map(|place| place.socket).collect()
    }

    /// The processors of `cpus` whose core is wholly among them.
    pub fn whole_cores(&self, cpus: &Cpus) -> Cpus {
        let whole =
            |cpu: &u32| self.place(*cpu).is_some_and(|place| self.within(Level::Core, place.core).is_subset(cpus));
        cpus.iter().filter(whole).collect()
    }

    /// Threads of a core; of the largest where they differ.
    pub fn threads_per_core(&self) -> usize {
        self.places(Level::Core).into_iter().map(|core| self.within(Level::Core, core).len()).max().unwrap_or(1)
    }
}
