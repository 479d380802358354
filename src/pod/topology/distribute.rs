//! `distribute-cpus-across-numa` (KEP-2902): where one NUMA node is not enough, as many processors from each.

use std::collections::BTreeMap;

use super::{
    CpuTopology, Cpus,
    machine::Level::Node,
    take::{Style, Taking, packed},
};

/// A choice of nodes to take from.
struct Choice {
    nodes: Vec<u32>,
    /// Those of them that give what cannot be shared out evenly.
    remainder: Vec<u32>,
}

/// Takes `count` processors out of `free` in groups of `group` (threads of a core, or 1), evenly from as few NUMA nodes as
/// possible. Of several choices that is taken after which the nodes are most alike in what they have left. Packed where
/// there is no such choice.
///
/// # Errors
/// There are not as many.
pub fn distributed(
    topology: &CpuTopology,
    free: &Cpus,
    count: usize,
    group: usize,
    style: Style,
) -> Result<Cpus, String> {
    let style = Style { by_cache: false, ..style };
    if !count.is_multiple_of(group) {
        return packed(topology, free, count, style);
    }
    let mut taking = Taking::new(topology, free, count)?;
    if count == 0 {
        return Ok(taking.taken);
    }
    let nodes = taking.nodes();
    let left: BTreeMap<u32, usize> = nodes.iter().map(|node| (*node, taking.free_in(Node, *node).len())).collect();
    let groups = topology.all().len().div_ceil(group).div_ceil(topology.places(Node).len().max(1));
    let needed = count.div_ceil(group);
    for size in needed.div_ceil(groups.max(1))..=needed.min(nodes.len()) {
        let Some(choice) = best(&nodes, &left, size, count, group) else { continue };
        let share = count / size / group * group;
        let from = |taking: &mut Taking<'_>, node: u32, count: usize| {
            let cpus = packed(topology, &taking.free_in(Node, node), count, style)?;
            taking.take(&cpus);
            Ok::<(), String>(())
        };
        for node in &choice.nodes {
            from(&mut taking, *node, share)?;
        }
        while taking.needed > 0 {
            let before = taking.needed;
            for node in &choice.remainder {
                if taking.needed > 0 && taking.free_in(Node, *node).len() >= group {
                    from(&mut taking, *node, group)?;
                }
            }
            if taking.needed == before {
                return Err(format!("accounting error, not enough CPUs allocated, remaining: {before}"));
            }
        }
        return Ok(taking.taken);
    }
    packed(topology, free, count, style)
}

/// The most balanced choice of `size` nodes; `None` when no such choice can give as much.
fn best(nodes: &[u32], left: &BTreeMap<u32, usize>, size: usize, count: usize, group: usize) -> Option<Choice> {
    let mut best: Option<(f64, Choice)> = None;
    for nodes in combinations(nodes, size) {
        if best.as_ref().is_some_and(|(balance, _)| *balance == 0.0) {
            break;
        }
        let share = count / size / group * group;
        let whole_groups: usize = nodes.iter().map(|node| left[node] / group * group).sum();
        if whole_groups < count || nodes.iter().any(|node| left[node] < share) {
            continue;
        }
        let mut after = left.clone();
        for node in &nodes {
            after.entry(*node).and_modify(|left| *left -= share);
        }
        let remainder = count - share * size;
        let (balance, remainder) = match remainder {
            0 => (deviation(&after), Vec::new()),
            _ => match best_remainder(&nodes, &after, remainder, group) {
                Some(found) => found,
                None => continue,
            },
        };
        if best.as_ref().is_none_or(|(known, _)| balance < *known) {
            best = Some((balance, Choice { nodes, remainder }));
        }
    }
    best.map(|(_, choice)| choice)
}

/// The nodes that give the remainder, a group each in turn, and the balance after that. As many nodes as possible are tried
/// first, and the first of equals stays.
fn best_remainder(
    nodes: &[u32],
    after: &BTreeMap<u32, usize>,
    remainder: usize,
    group: usize,
) -> Option<(f64, Vec<u32>)> {
    let candidates: Vec<u32> = nodes.iter().copied().filter(|node| after[node] >= group).collect();
    let mut best: Option<(f64, Vec<u32>)> = None;
    for size in (1..=candidates.len()).rev() {
        for subset in combinations(&candidates, size) {
            let whole_groups: usize = subset.iter().map(|node| after[node] / group * group).sum();
            if whole_groups < remainder {
                continue;
            }
            let (mut after, mut remainder) = (after.clone(), remainder);
            for node in subset.iter().cycle() {
                if remainder == 0 {
                    break;
                }
                let left = after.entry(*node).or_default();
                if *left >= group {
                    *left -= group;
                    remainder = remainder.saturating_sub(group);
                }
            }
            let balance = deviation(&after);
            if best.as_ref().is_none_or(|(known, _)| balance < *known) {
                best = Some((balance, subset));
            }
        }
    }
    best
}

/// Standard deviation in thousandths, rounded as upstream rounds, so that the same choices count as equal.
fn deviation(values: &BTreeMap<u32, usize>) -> f64 {
    let thousandths = |value: f64| (value * 1000.0).round() / 1000.0;
    let count = values.len() as f64;
    let mean = thousandths(values.values().map(|value| *value as f64).sum::<f64>() / count);
    let sum: f64 = values.values().map(|value| (*value as f64 - mean).powi(2)).sum();
    thousandths((sum / count).sqrt())
}

/// Every choice of `size` out of `items`, in their order.
fn combinations(items: &[u32], size: usize) -> Vec<Vec<u32>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let mut found = Vec::new();
    for (index, item) in items.iter().enumerate() {
        for mut rest in combinations(&items[index + 1..], size - 1) {
            rest.insert(0, *item);
            found.push(rest);
        }
    }
    found
}
