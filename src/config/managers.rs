//! Who gets which processors, memory and NUMA nodes: the CPU, memory and topology managers' fields.

use std::collections::BTreeMap;

use super::{
    document::{Node, Value},
    schema::Findings,
    values::parse_bytes,
};
use crate::{
    api::resources::{CPU, MEMORY, Resources},
    pod::topology::{Amounts, CpuOptions, Cpus, TopologyOptions, TopologyPolicy, TopologyScope, is_memory},
};

/// The managers' settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ManagerConfig {
    /// `cpuManagerPolicy` static, with its options.
    pub cpu: Option<CpuOptions>,
    /// `reservedSystemCPUs`; `None`: as many as systemReserved and kubeReserved need, wherever they are.
    pub reserved_cpus: Option<Cpus>,
    /// `memoryManagerPolicy` Static, with `reservedMemory` by NUMA node.
    pub memory: Option<BTreeMap<u32, Amounts>>,
    /// Memory that the hard eviction threshold keeps free. Part of what `reservedMemory` has to add up to.
    pub eviction: Threshold,
    /// The topology manager.
    pub topology: TopologyOptions,
    /// `max-allowable-numa-nodes`: with more the topology manager does not start.
    pub max_numa_nodes: u32,
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// Bytes.
    Bytes(u64),
    /// A share of all memory, 0 to 1.
    Share(f64),
}

impl Threshold {
    /// Bytes on a machine with so much memory.
    pub fn of(self, memory: u64) -> u64 {
        match self {
            Threshold::Bytes(bytes) => bytes,
            Threshold::Share(share) => (memory as f64 * share) as u64,
        }
    }
}

/// Upstream's default of `max-allowable-numa-nodes`, and the least it can be.
const NUMA_NODES: u32 = 8;
/// Upstream's default of `evictionHard` `memory.available`.
const AVAILABLE: u64 = 100 << 20;
/// What the options of the CPU manager exclude of each other, as upstream has it.
const APART: [(&str, &str); 4] = [
    ("full-pcpus-only", "distribute-cpus-across-cores"),
    ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
];

/// Reads the fields. `reserved` is what systemReserved, kubeReserved and reservedSystemCPUs keep.
pub(super) fn managers(node: &Node, reserved: &Resources, findings: &mut Findings) -> ManagerConfig {
    let text = |path: &str| match node.get(path).map(|written| &written.value) {
        Some(Value::Text(text)) => text.as_str(),
        _ => "",
    };
    let policy = match text("topologyManagerPolicy") {
        "best-effort" => TopologyPolicy::BestEffort,
        "restricted" => TopologyPolicy::Restricted,
        "single-numa-node" => TopologyPolicy::SingleNumaNode,
        _ => TopologyPolicy::None,
    };
    let scope = if text("topologyManagerScope") == "pod" { TopologyScope::Pod } else { TopologyScope::Container };
    let (prefer_closest, max_numa_nodes) = topology_options(node, policy, findings);
    let memory = (text("memoryManagerPolicy") == "Static").then(|| reserved_memory(node, findings));
    ManagerConfig {
        cpu: cpu(node, text("cpuManagerPolicy") == "static", reserved, findings),
        // A list that cannot be read has been found wrong already.
        reserved_cpus: Cpus::parse(text("reservedSystemCPUs")).ok().filter(|cpus| !cpus.is_empty()),
        eviction: if memory.is_some() { eviction(node, findings) } else { Threshold::Bytes(AVAILABLE) },
        memory,
        topology: TopologyOptions { policy, scope, prefer_closest },
        max_numa_nodes,
    }
}

fn cpu(node: &Node, is_static: bool, reserved: &Resources, findings: &mut Findings) -> Option<CpuOptions> {
    const PATH: &str = "cpuManagerPolicyOptions";
    let written = options(node, PATH);
    if !is_static {
        if let (Some(policy_options), false) = (node.get(PATH), written.is_empty()) {
            findings.mistake(policy_options, PATH, "the none policy has no options");
        }
        return None;
    }
    if reserved.get(CPU).is_none_or(|amount| amount.is_zero())
        && let Some(policy) = node.get("cpuManagerPolicy")
    {
        let message = "the static policy requires systemReserved.cpu + kubeReserved.cpu, or reservedSystemCPUs, to be \
                       greater than zero";
        findings.mistake(policy, "cpuManagerPolicy", message);
    }
    let mut options = CpuOptions::default();
    for (name, value, place) in &written {
        let option = match *name {
            "full-pcpus-only" => &mut options.full_cores,
            "distribute-cpus-across-numa" => &mut options.across_nodes,
            "align-by-socket" => &mut options.by_socket,
            "distribute-cpus-across-cores" => &mut options.across_cores,
            "strict-cpu-reservation" => &mut options.strict,
            "prefer-align-cpus-by-uncorecache" => &mut options.by_cache,
            _ => {
                findings.mistake(place, &format!("{PATH}.{name}"), "unknown CPU Manager Policy option");
                continue;
            }
        };
        match boolean(value) {
            Some(value) => *option = value,
            None => {
                findings.mistake(place, &format!("{PATH}.{name}"), format!("expected true or false, found {value:?}"))
            }
        }
    }
    for (one, other) in APART {
        let is_set =
            |wanted: &str| written.iter().find(|(name, value, _)| *name == wanted && boolean(value) == Some(true));
        if let (Some((.., place)), Some(_)) = (is_set(one), is_set(other)) {
            let message = format!("{one} and {other} can not be used at the same time");
            findings.mistake(place, PATH, message);
        }
    }
    Some(options)
}

/// Names and values of a map of options, and where they are written.
fn options<'n>(node: &'n Node, path: &str) -> Vec<(&'n str, &'n str, &'n Node)> {
    let Some(Node { value: Value::Map(entries), .. }) = node.get(path) else { return Vec::new() };
    let entry = |(name, written): (&'n String, &'n Node)| match &written.value {
        Value::Text(text) => Some((name.as_str(), text.as_str(), written)),
        _ => None,
    };
    entries.iter().map(|(name, written)| (name, written)).filter_map(entry).collect()
}

/// As upstream reads them (Go's `strconv.ParseBool`).
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn topology_options(node: &Node, policy: TopologyPolicy, findings: &mut Findings) -> (bool, u32) {
    const PATH: &str = "topologyManagerPolicyOptions";
    let (mut closest, mut nodes) = (false, NUMA_NODES);
    // Without a policy upstream does not look at them.
    let written = if policy == TopologyPolicy::None { Vec::new() } else { options(node, PATH) };
    for (name, value, place) in written {
        let mut mistake = |message: String| findings.mistake(place, &format!("{PATH}.{name}"), message);
        match name {
            "prefer-closest-numa-nodes" => match boolean(value) {
                Some(value) => closest = value,
                None => mistake(format!("expected true or false, found {value:?}")),
            },
            "max-allowable-numa-nodes" => match value.parse::<u32>() {
                Ok(value) if value >= NUMA_NODES => nodes = value,
                Ok(_) => mistake(format!("the minimum value should not be less than {NUMA_NODES}")),
                Err(_) => mistake(format!("expected a whole number, found {value:?}")),
            },
            _ => mistake("unknown Topology Manager Policy option".to_owned()),
        }
    }
    (closest, nodes)
}

fn reserved_memory(node: &Node, findings: &mut Findings) -> BTreeMap<u32, Amounts> {
    let mut found: BTreeMap<u32, Amounts> = BTreeMap::new();
    let Some(Node { value: Value::List(items), .. }) = node.get("reservedMemory") else { return found };
    for (index, item) in items.iter().enumerate() {
        let path = format!("reservedMemory[{index}]");
        let number = match item.get("numaNode").map(|written| &written.value) {
            Some(Value::Integer(number)) => u32::try_from(*number).unwrap_or(0),
            _ => 0,
        };
        let Some(Node { value: Value::Map(limits), .. }) = item.get("limits") else { continue };
        for (resource, written) in limits {
            let path = format!("{path}.limits.{resource}");
            let bytes = match &written.value {
                Value::Integer(bytes) => u64::try_from(*bytes).unwrap_or(0),
                Value::Text(text) => parse_bytes(text).unwrap_or(0),
                _ => 0,
            };
            if !is_memory(resource) {
                let message = format!(
                    "the limit type {resource:?} for NUMA node {number} is not allowed, only memory and \
                     hugepages-<HugePageSize> are accepted"
                );
                findings.mistake(written, &path, message);
            } else if bytes == 0 {
                findings.mistake(written, &path, format!("the limit for NUMA node {number} has to be above zero"));
            } else if found.entry(number).or_default().insert(resource.clone(), bytes).is_some() {
                let message = format!(
                    "the reserved memory has a duplicate value for NUMA node {number} and resource \
                                       {resource:?}"
                );
                findings.mistake(written, &path, message);
            }
        }
    }
    found
}

/// What `evictionHard` says of memory, which upstream counts among what is reserved.
fn eviction(node: &Node, findings: &mut Findings) -> Threshold {
    const PATH: &str = "evictionHard";
    let merged = node.get("mergeDefaultEvictionSettings").is_some_and(|written| written.value == Value::Bool(true));
    let written = options(node, PATH);
    let Some((_, text, place)) = written.iter().find(|(name, ..)| *name == "memory.available") else {
        // Who writes any of the thresholds has no default for the others.
        return Threshold::Bytes(if node.get(PATH).is_none() || merged { AVAILABLE } else { 0 });
    };
    let share = text.strip_suffix('%').map(|percent| percent.parse::<f64>().map(|percent| percent / 100.0));
    let threshold = match share {
        Some(share) => share.ok().filter(|share| (0.0..=1.0).contains(share)).map(Threshold::Share),
        None => parse_bytes(text).ok().map(Threshold::Bytes),
    };
    threshold.unwrap_or_else(|| {
        let message = format!("expected an amount or a percentage, found {text:?}");
        findings.mistake(place, &format!("{PATH}.{MEMORY}.available"), message);
        Threshold::Bytes(AVAILABLE)
    })
}
