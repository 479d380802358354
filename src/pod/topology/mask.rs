//! Sets of NUMA nodes.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::cpus::{format_list, parse_list};

/// A set of NUMA nodes of one machine: bit `n` stands for node `n`. In JSON and for people a list as the kernel writes it:
/// `0-1,3`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeMask(u64);

impl NodeMask {
    /// No node.
    pub const EMPTY: NodeMask = NodeMask(0);
    /// The highest number a node can have here; the kernel's own bound (`CONFIG_NODES_SHIFT`) is 1023, which no machine
    /// that runs Kubernetes comes near.
    pub const HIGHEST: u32 = 63;

    /// The set of one node; empty for one past [`NodeMask::HIGHEST`].
    pub const fn one(node: u32) -> NodeMask {
        if node > NodeMask::HIGHEST { NodeMask(0) } else { NodeMask(1 << node) }
    }

    /// How many nodes there are.
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `node` is one of them.
    pub const fn contains(self, node: u32) -> bool {
        node <= NodeMask::HIGHEST && self.0 & (1 << node) != 0
    }

    /// The nodes in both.
    pub const fn and(self, other: NodeMask) -> NodeMask {
        NodeMask(self.0 & other.0)
    }

    /// The nodes in either.
    pub const fn or(self, other: NodeMask) -> NodeMask {
        NodeMask(self.0 | other.0)
    }

    /// Whether all of them are in `other`.
    pub const fn is_subset(self, other: NodeMask) -> bool {
        self.0 & !other.0 == 0
    }

    /// The nodes, ascending.
    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..=NodeMask::HIGHEST).filter(move |node| self.contains(*node))
    }

    /// Every set of these nodes but the empty one, those of fewer nodes first. There are 2ⁿ − 1 of them, which is why the
    /// topology manager has a bound for the nodes of a machine (`max-allowable-numa-nodes`).
    pub fn subsets(self) -> Vec<NodeMask> {
        let nodes: Vec<u32> = self.nodes().collect();
        let mut found = vec![NodeMask::EMPTY];
        for node in nodes {
            let with: Vec<NodeMask> = found.iter().map(|mask| mask.or(NodeMask::one(node))).collect();
            found.extend(with);
        }
        found.retain(|mask| !mask.is_empty());
        found.sort_by(|one, other| one.width(*other));
        found
    }

    /// Narrower sets first, of those as narrow that with the lower number as a bit mask (upstream's `IsNarrowerThan`).
    pub fn width(self, other: NodeMask) -> Ordering {
        (self.count(), self.0).cmp(&(other.count(), other.0))
    }
}

impl FromIterator<u32> for NodeMask {
    fn from_iter<I: IntoIterator<Item = u32>>(nodes: I) -> NodeMask {
        nodes.into_iter().fold(NodeMask::EMPTY, |mask, node| mask.or(NodeMask::one(node)))
    }
}

impl fmt::Display for NodeMask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&format_list(self.nodes()))
    }
}

impl Serialize for NodeMask {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeMask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NodeMask, D::Error> {
        let text = String::deserialize(deserializer)?;
        let nodes = parse_list(&text).map_err(D::Error::custom)?;
        match nodes.iter().find(|node| **node > NodeMask::HIGHEST) {
            Some(node) => Err(D::Error::custom(format!("NUMA node {node} is past {}", NodeMask::HIGHEST))),
            None => Ok(nodes.into_iter().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_come_by_width_and_then_by_their_lower_nodes() {
        let all: NodeMask = [0, 1, 3].into_iter().collect();
        let found: Vec<String> = all.subsets().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["0", "1", "3", "0-1", "0,3", "1,3", "0-1,3"]);
    }

    #[test]
    fn a_set_is_written_as_the_kernel_writes_lists() {
        let mask: NodeMask = [0, 1, 3].into_iter().collect();
        let text = serde_json::to_string(&mask).unwrap();
        assert_eq!(text, "\"0-1,3\"");
        assert_eq!(serde_json::from_str::<NodeMask>(&text).unwrap(), mask);
        assert!(serde_json::from_str::<NodeMask>("\"64\"").is_err());
    }
}
