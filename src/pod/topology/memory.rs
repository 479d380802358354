//! The static memory manager: memory and huge pages of NUMA nodes for the containers of Guaranteed pods.
//!
//! A node serves either containers that it holds alone, or containers that all have the same group of nodes: so what is
//! promised to a group cannot be used up by a neighbour of one of its nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::{Grants, Hint, Machine, NodeMask, Provider, ResourceHints, cpu::has_pod_resources, grant::reject};
use crate::{
    api::{
        container_ref::ContainerRef,
        qos::{QosClass, qos_class},
        quantity::Quantity,
        resources::{HUGEPAGES_PREFIX, MEMORY, is_sidecar, requests},
    },
    pod::{admission::Rejection, grants::MemoryGrant},
};

/// Bytes by resource: `memory`, `hugepages-<size>`.
pub type Amounts = BTreeMap<String, u64>;

/// The memory manager with the static policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryManager {
    /// By node: what may be given out.
    allocatable: BTreeMap<u32, Amounts>,
}

/// Whether the memory manager keeps account of a resource.
pub fn is_memory(resource: &str) -> bool {
    resource == MEMORY || resource.starts_with(HUGEPAGES_PREFIX)
}

impl MemoryManager {
    /// Of the machine's memory `reserved` (`reservedMemory`: by node) is kept. Its sums have to be what systemReserved,
    /// kubeReserved and the hard eviction threshold keep together: `kept`.
    ///
    /// # Errors
    /// They are not, a node is not there, or nothing is reserved; upstream's sentence.
    pub fn new(machine: &Machine, reserved: &BTreeMap<u32, Amounts>, kept: &Amounts) -> Result<MemoryManager, String> {
        if let Some(node) = reserved.keys().find(|node| !machine.memory.contains_key(node)) {
            return Err(format!(
                "the reserved memory configuration references a NUMA node {node} that does not exist on this machine"
            ));
        }
        let mut sums = Amounts::new();
        for (resource, bytes) in reserved.values().flatten() {
            *sums.entry(resource.clone()).or_default() += bytes;
        }
        for resource in sums.keys().chain(kept.keys()) {
            let [sum, kept] = [&sums, kept].map(|amounts| amounts.get(resource).copied().unwrap_or(0));
            if sum != kept {
                return Err(format!(
                    "the total amount \"{sum}\" of type {resource:?} is not equal to the value \"{kept}\" determined by \
                     Node Allocatable feature"
                ));
            }
        }
        if sums.get(MEMORY).is_none_or(|sum| *sum == 0) {
            return Err("you should specify the system reserved memory".to_owned());
        }
        let mut allocatable = BTreeMap::new();
        for (node, memory) in &machine.memory {
            let kept = |resource: &str| reserved.get(node).and_then(|kept| kept.get(resource)).copied().unwrap_or(0);
            let mut amounts = Amounts::new();
            let mut in_huge_pages = 0;
            for (size, bytes) in &memory.huge_pages {
                let size = Quantity::from_bytes(i64::try_from(*size).unwrap_or(i64::MAX));
                let resource = format!("{HUGEPAGES_PREFIX}{size}");
                in_huge_pages += bytes;
                amounts.insert(resource.clone(), bytes.saturating_sub(kept(&resource)));
            }
            amounts.insert(MEMORY.to_owned(), memory.total.saturating_sub(kept(MEMORY) + in_huge_pages));
            allocatable.insert(*node, amounts);
        }
        Ok(MemoryManager { allocatable })
    }

    /// Gives out memory that other pods do not have.
    pub fn provider<'m>(&'m self, others: Vec<&'m Grants>) -> MemoryProvider<'m> {
        MemoryProvider { manager: self, others }
    }
}

/// What [`MemoryManager`] has for one pod.
#[derive(Debug)]
pub struct MemoryProvider<'m> {
    manager: &'m MemoryManager,
    others: Vec<&'m Grants>,
}

/// A node and what is left of it.
#[derive(Debug, Clone)]
struct Node {
    free: Amounts,
    /// How many grants have to do with it.
    grants: usize,
    /// The nodes it serves together with; itself alone at first.
    group: NodeMask,
}

/// All nodes, with what the grants leave of them.
struct State<'m> {
    allocatable: &'m BTreeMap<u32, Amounts>,
    nodes: BTreeMap<u32, Node>,
}

impl<'m> State<'m> {
    fn new(manager: &'m MemoryManager, grants: &[&Grants]) -> State<'m> {
        let node = |(number, amounts): (&u32, &Amounts)| {
            (*number, Node { free: amounts.clone(), grants: 0, group: NodeMask::one(*number) })
        };
        let nodes = manager.allocatable.iter().map(node).collect();
        let mut state = State { allocatable: &manager.allocatable, nodes };
        for grant in grants.iter().flat_map(|grants| grants.containers.values()).flat_map(|grant| &grant.memory) {
            state.count(grant);
        }
        state
    }

    /// Takes a grant from its nodes, one after the other.
    fn count(&mut self, grant: &MemoryGrant) {
        let mut bytes = grant.bytes;
        for number in grant.nodes.nodes() {
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            node.grants += 1;
            node.group = grant.nodes;
            if let Some(free) = node.free.get_mut(&grant.resource) {
                let taken = bytes.min(*free);
                *free -= taken;
                bytes -= taken;
            }
        }
    }

    fn all(&self) -> NodeMask {
        self.nodes.keys().copied().collect()
    }

    fn free(&self, mask: NodeMask, resource: &str) -> u64 {
        let free = |number: u32| self.nodes.get(&number)?.free.get(resource).copied();
        mask.nodes().filter_map(free).sum()
    }

    fn allocatable(&self, mask: NodeMask, resource: &str) -> u64 {
        mask.nodes().filter_map(|number| self.allocatable.get(&number)?.get(resource)).sum()
    }

    /// Whether a group of several nodes would mix with what is there.
    fn mixes(&self, mask: NodeMask) -> bool {
        let other = |number: u32| {
            self.nodes
                .get(&number)
                .is_some_and(|node| node.grants > 0 && (node.group.count() == 1 || node.group != mask))
        };
        mask.count() > 1 && mask.nodes().any(other)
    }

    /// The sets of nodes that can serve all of `wanted`; those of as few nodes as an unused machine would need are preferred.
    fn hints(&self, wanted: &Amounts, reusable: impl Fn(NodeMask, &str) -> u64) -> Vec<Hint> {
        let mut fewest = self.all().count();
        let mut masks = Vec::new();
        for mask in self.all().subsets() {
            if wanted.iter().any(|(resource, bytes)| self.allocatable(mask, resource) < *bytes) {
                continue;
            }
            fewest = fewest.min(mask.count());
            let grouped = |number: u32| self.nodes.get(&number).is_some_and(|node| node.group.count() > 1);
            if mask.count() == 1 && mask.nodes().any(grouped) || self.mixes(mask) {
                continue;
            }
            if wanted.iter().all(|(resource, bytes)| self.free(mask, resource) + reusable(mask, resource) >= *bytes) {
                masks.push(mask);
            }
        }
        masks.into_iter().map(|mask| Hint { affinity: Some(mask), preferred: mask.count() == fewest }).collect()
    }
}

/// The preferred hint with the fewest nodes, or else that with the fewest.
fn narrowest(hints: impl IntoIterator<Item = Hint>) -> Option<Hint> {
    hints.into_iter().min_by(|one, other| {
        let [mask, others] = [one, other].map(|hint| hint.affinity.unwrap_or_default());
        other.preferred.cmp(&one.preferred).then(mask.width(others))
    })
}

impl<'m> MemoryProvider<'m> {
    fn state(&self, grants: &Grants) -> State<'m> {
        let mut all = self.others.clone();
        all.push(grants);
        State::new(self.manager, &all)
    }

    fn resource_hints(hints: &[Hint], wanted: &Amounts) -> Vec<ResourceHints> {
        // Upstream leaves it to the allocation to say that there is no way.
        if hints.is_empty() {
            return Vec::new();
        }
        let of = |resource: &String| ResourceHints { resource: resource.clone(), hints: Some(hints.to_vec()) };
        wanted.keys().map(of).collect()
    }
}

impl Provider for MemoryProvider<'_> {
    fn hints(&self, pod: &Pod, container: ContainerRef<'_>, grants: &Grants) -> Vec<ResourceHints> {
        let wanted = wanted(pod, container);
        if wanted.is_empty() {
            return Vec::new();
        }
        let hints = self.state(grants).hints(&wanted, |mask, resource| reusable(pod, grants, mask, resource));
        Self::resource_hints(&hints, &wanted)
    }

    fn pod_hints(&self, pod: &Pod) -> Vec<ResourceHints> {
        let wanted = wanted_by_pod(pod);
        if wanted.is_empty() {
            return Vec::new();
        }
        let hints = self.state(&Grants::default()).hints(&wanted, |_, _| 0);
        Self::resource_hints(&hints, &wanted)
    }

    fn give(&self, pod: &Pod, container: ContainerRef<'_>, hint: Hint, grants: &mut Grants) -> Result<(), Rejection> {
        let wanted = wanted(pod, container);
        if wanted.is_empty() {
            return Ok(());
        }
        let state = self.state(grants);
        let hints = || state.hints(&wanted, |mask, resource| reusable(pod, grants, mask, resource));
        let failed = |what: &str| reject(format!("[memorymanager] {what}"));
        let nowhere = "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
        let mut best = hint;
        if hint.affinity.is_none() {
            best = narrowest(hints()).ok_or_else(|| failed(nowhere))?;
            if hint.preferred && !best.preferred {
                return Err(failed("failed to find the default preferred hint"));
            }
        }
        let mut nodes = best.affinity.unwrap_or_default();
        // What was merged from several hints may be a part of what memory needs.
        if wanted.iter().any(|(resource, bytes)| state.free(nodes, resource) < *bytes) {
            let wider = hints().into_iter().filter(|hint| nodes.is_subset(hint.affinity.unwrap_or_default()));
            let wider = narrowest(wider)
                .ok_or_else(|| failed("failed to find NUMA nodes to extend the current topology hint"))?;
            if best.preferred && !wider.preferred {
                return Err(failed("failed to find the extended preferred hint"));
            }
            nodes = wider.affinity.unwrap_or_default();
        }
        if state.mixes(nodes) {
            return Err(failed("preferred hint violates NUMA node allocation"));
        }
        for (resource, bytes) in wanted {
            reuse(pod, container.name(), nodes, &resource, bytes, grants);
            grants.of_mut(container.name()).memory.push(MemoryGrant { resource, nodes, bytes });
        }
        Ok(())
    }
}

fn is_guaranteed(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| qos_class(spec) == QosClass::Guaranteed && !has_pod_resources(spec))
}

/// What a container is to have of nodes of its own.
fn wanted(pod: &Pod, container: ContainerRef<'_>) -> Amounts {
    if !is_guaranteed(pod) {
        return Amounts::new();
    }
    let bytes = |(resource, amount): (String, Quantity)| {
        let bytes = u64::try_from(amount.value()).ok().filter(|bytes| *bytes > 0)?;
        is_memory(&resource).then_some((resource, bytes))
    };
    requests(container.resources()).into_iter().filter_map(bytes).collect()
}

/// What all containers of a pod need at a time.
fn wanted_by_pod(pod: &Pod) -> Amounts {
    let (mut running, mut sidecars, mut starting) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in ContainerRef::all(pod) {
        for (resource, bytes) in wanted(pod, container) {
            match container {
                ContainerRef::Init(_, init) if !is_sidecar(init) => {
                    let beside = sidecars.get(&resource).copied().unwrap_or(0);
                    let most = starting.entry(resource).or_default();
                    *most = (*most).max(beside + bytes);
                }
                ContainerRef::Init(..) => *sidecars.entry(resource).or_default() += bytes,
                _ => *running.entry(resource).or_default() += bytes,
            }
        }
    }
    for (resource, bytes) in sidecars {
        *running.entry(resource).or_default() += bytes;
    }
    for (resource, bytes) in starting {
        let most = running.entry(resource).or_default();
        *most = (*most).max(bytes);
    }
    running
}

/// Init containers of the pod that end before those after them start.
fn init_containers(pod: &Pod) -> impl Iterator<Item = &str> {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.filter(|container| !is_sidecar(container)).map(|container| container.name.as_str())
}

/// What init containers had of the same nodes and nobody after them has.
fn reusable(pod: &Pod, grants: &Grants, nodes: NodeMask, resource: &str) -> u64 {
    let of = |name| grants.of(name).into_iter().flat_map(|grant| &grant.memory);
    let grants = init_containers(pod).flat_map(of);
    grants.filter(|grant| grant.nodes == nodes && grant.resource == resource).map(|grant| grant.bytes).sum()
}

/// Takes up to `bytes` off the grants of init containers before `container`: the sum of a pod's grants is what the nodes
/// have given it.
fn reuse(pod: &Pod, container: &str, nodes: NodeMask, resource: &str, mut bytes: u64, grants: &mut Grants) {
    for name in init_containers(pod).take_while(|name| *name != container) {
        let Some(grant) = grants.containers.get_mut(name) else { continue };
        for had in grant.memory.iter_mut().filter(|had| had.nodes == nodes && had.resource == resource) {
            let again = had.bytes.min(bytes);
            had.bytes -= again;
            bytes -= again;
        }
    }
}
