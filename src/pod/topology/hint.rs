//! Hints: where what a container asks for could come from, and what the policy makes of all of them.

use std::collections::BTreeSet;

use super::{NodeMask, NumaNodes, TopologyPolicy};

/// One way to give a container what it asks for: from these NUMA nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// The nodes; `None`: any.
    pub affinity: Option<NodeMask>,
    /// No other way needs fewer nodes (or is better by the provider's own options).
    pub preferred: bool,
}

impl Hint {
    /// Any node will do.
    pub const ANY: Hint = Hint { affinity: None, preferred: true };
    /// No node can satisfy it.
    pub const NONE: Hint = Hint { affinity: None, preferred: false };
}

/// The ways there are for one resource of a container, or of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceHints {
    /// `cpu`, `memory`, `hugepages-2Mi`, `example.com/device`.
    pub resource: String,
    /// `None`: it does not matter where it comes from. Empty: there is no way.
    pub hints: Option<Vec<Hint>>,
}

impl ResourceHints {
    fn ways(&self) -> Vec<Hint> {
        match self.hints.as_deref() {
            None => vec![Hint::ANY],
            Some([]) => vec![Hint::NONE],
            Some(hints) => hints.to_vec(),
        }
    }
}

/// One choice of a way for each resource so far. Many choices come to the same: only that is kept, so that the work grows
/// with the number of masks rather than with that of all combinations of all resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    /// The nodes that all ways have in common.
    merged: NodeMask,
    /// The mask of all ways that have one, as long as it is the same.
    same: Option<NodeMask>,
    preferred: bool,
}

impl Choice {
    /// The same choice with one way more. Ways are only preferred together if they are the same.
    fn with(self, way: &Hint) -> Choice {
        let Some(mask) = way.affinity else { return Choice { preferred: self.preferred && way.preferred, ..self } };
        let differs = self.same.is_some_and(|same| same != mask);
        Choice {
            merged: self.merged.and(mask),
            same: Some(mask),
            preferred: self.preferred && way.preferred && !differs,
        }
        .settled()
    }

    /// What does not matter any more is forgotten.
    fn settled(self) -> Choice {
        if self.preferred { self } else { Choice { same: None, ..self } }
    }
}

/// Merges the hints of all resources into the one that the policy goes by, and says whether the policy admits it.
///
/// The result is upstream's (`HintMerger` in `topologymanager/policy.go`): a preferred hint before one that is not; of
/// preferred ones the narrowest (or, with `prefer-closest-numa-nodes`, the closest of the narrowest); of the others that
/// which has as many nodes as the most demanding resource needs, or else fewer, or else as few more as there can be.
pub fn merge(
    numa: &NumaNodes,
    policy: TopologyPolicy,
    prefer_closest: bool,
    resources: &[ResourceHints],
) -> (Hint, bool) {
    let single = policy == TopologyPolicy::SingleNumaNode;
    let useful = |way: &Hint| !single || (way.preferred && way.affinity.is_none_or(|mask| mask.count() == 1));
    let ways: Vec<Vec<Hint>> =
        resources.iter().map(|resource| resource.ways().into_iter().filter(useful).collect()).collect();
    let narrowest = |ways: &Vec<Hint>| ways.iter().filter_map(|way| way.affinity).map(NodeMask::count).min();
    let needed = ways.iter().filter_map(narrowest).max().unwrap_or(0);

    let all = numa.all();
    let mut choices = BTreeSet::from([Choice { merged: all, same: None, preferred: true }]);
    for ways in &ways {
        choices = choices.iter().flat_map(|choice| ways.iter().map(|way| choice.with(way))).collect();
    }
    let closest = prefer_closest && !single;
    let distance = |mask: NodeMask| if closest { numa.average_distance(mask) } else { 0.0 };
    let best = choices.into_iter().filter(|choice| !choice.merged.is_empty()).min_by(|one, other| {
        let rank = |choice: &Choice| {
            let count = choice.merged.count();
            match (choice.preferred, count <= needed) {
                (true, _) => (0, count),
                // As many as are needed, then the next fewer.
                (false, true) => (1, needed - count),
                (false, false) => (2, count),
            }
        };
        rank(one)
            .cmp(&rank(other))
            .then(distance(one.merged).total_cmp(&distance(other.merged)))
            .then(one.merged.width(other.merged))
    });
    let mut hint = match best {
        Some(best) => Hint { affinity: Some(best.merged), preferred: best.preferred },
        None => Hint { affinity: Some(all), preferred: false },
    };
    if single && hint.affinity == Some(all) {
        hint.affinity = None;
    }
    let admitted = hint.preferred || matches!(policy, TopologyPolicy::None | TopologyPolicy::BestEffort);
    (hint, admitted)
}
