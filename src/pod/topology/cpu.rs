//! The static CPU manager: processors of their own for containers of Guaranteed pods that ask for whole ones. Everything
//! else runs on the shared pool, which is what nobody has.

use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};
use serde::Serialize;

use super::{
    CpuTopology, Cpus, Grants, Hint, NodeMask, Provider, ResourceHints, TopologyPolicy,
    distribute::distributed,
    grant::reject,
    machine::Level::{Node, Socket},
    take::{Style, packed},
};
use crate::{
    api::{
        container_ref::ContainerRef,
        qos::{QosClass, qos_class},
        quantity::Quantity,
        resources::{CPU, is_pod_level, is_sidecar, requests},
    },
    pod::admission::Rejection,
};

/// `cpuManagerPolicyOptions`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CpuOptions {
    /// `full-pcpus-only`: whole cores or none.
    pub full_cores: bool,
    /// `distribute-cpus-across-numa`.
    pub across_nodes: bool,
    /// `align-by-socket`: a socket counts as one place although it has several NUMA nodes.
    pub by_socket: bool,
    /// `distribute-cpus-across-cores`.
    pub across_cores: bool,
    /// `strict-cpu-reservation`: pods never run on reserved processors.
    pub strict: bool,
    /// `prefer-align-cpus-by-uncorecache`.
    pub by_cache: bool,
}

/// The CPU manager with the static policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuManager {
    topology: CpuTopology,
    options: CpuOptions,
    reserved: Cpus,
}

impl CpuManager {
    /// Of the processors of `topology` `count` are reserved: `named`, or those with the lowest cores. `policy` is that of the
    /// topology manager.
    ///
    /// # Errors
    /// The options do not go with the machine or with each other, or not as many can be reserved; upstream's sentence.
    pub fn new(
        topology: CpuTopology,
        options: CpuOptions,
        count: usize,
        named: Option<Cpus>,
        policy: TopologyPolicy,
    ) -> Result<CpuManager, String> {
        if options.by_socket && policy == TopologyPolicy::SingleNumaNode {
            return Err(
                "Topology manager single-numa-node policy is incompatible with CPUManager align-by-socket policy \
                        option"
                    .to_owned(),
            );
        }
        if options.by_socket && topology.places(Socket).len() > topology.places(Node).len() {
            return Err(
                "Align by socket is not compatible with hardware where number of sockets are more than number of \
                        NUMA"
                    .to_owned(),
            );
        }
        let mut manager = CpuManager { topology, options, reserved: Cpus::new() };
        let all = manager.topology.all();
        let reserved =
            named.map_or_else(|| manager.take(&all, count).unwrap_or_default(), |named| named.intersection(&all));
        if reserved.len() != count {
            return Err(format!(
                "unable to reserve the required amount of CPUs (size of {reserved} did not equal {count})"
            ));
        }
        manager.reserved = reserved;
        Ok(manager)
    }

    /// Processors that are never given to a container alone.
    pub fn reserved(&self) -> &Cpus {
        &self.reserved
    }

    /// What containers run on that have no processors of their own, when `granted` are somebody's. Where that would be
    /// nothing (strict-cpu-reservation, all given out) they have the reserved ones: exclusive is exclusive.
    pub fn shared(&self, granted: &Cpus) -> Cpus {
        let free = self.topology.all().difference(granted);
        let shared = if self.options.strict { free.difference(&self.reserved) } else { free };
        if shared.is_empty() { self.reserved.clone() } else { shared }
    }

    /// Gives out processors that are not `taken` by other pods.
    pub fn provider(&self, taken: Cpus) -> CpuProvider<'_> {
        CpuProvider { manager: self, taken }
    }

    fn take(&self, free: &Cpus, count: usize) -> Result<Cpus, String> {
        let CpuOptions { full_cores, across_nodes, across_cores, by_cache, .. } = self.options;
        let style = Style { across_cores, by_cache };
        if across_nodes {
            let group = if full_cores { self.topology.threads_per_core() } else { 1 };
            return distributed(&self.topology, free, count, group, style);
        }
        packed(&self.topology, free, count, style)
    }

    /// Whether the sockets of a hint are as few as there could be.
    fn is_socket_aligned(&self, mask: NodeMask, fewest_nodes: u32) -> bool {
        let (nodes, sockets) = (self.topology.places(Node).len(), self.topology.places(Socket).len());
        let per_socket = nodes.checked_div(sockets).unwrap_or(0);
        per_socket > 0 && self.topology.sockets_of(mask).len() == (fewest_nodes as usize).div_ceil(per_socket)
    }
}

/// What [`CpuManager`] has for one pod.
#[derive(Debug)]
pub struct CpuProvider<'m> {
    manager: &'m CpuManager,
    taken: Cpus,
}

impl CpuProvider<'_> {
    /// What is free for a container of the pod: of the node, and of what its init containers had.
    fn free(&self, pod: &Pod, grants: &Grants) -> (Cpus, Cpus) {
        let CpuManager { topology, reserved, .. } = self.manager;
        let free = topology.all().difference(reserved).difference(&self.taken).difference(&grants.cpus());
        (free, reusable(pod, grants))
    }

    /// A hint for each set of nodes that has enough; those of as few nodes as an empty machine would need are preferred.
    fn hints_for(&self, available: &Cpus, reusable: &Cpus, count: usize) -> ResourceHints {
        let CpuManager { topology, options, .. } = self.manager;
        let nodes = topology.nodes();
        let mut fewest = nodes.count();
        let mut masks = Vec::new();
        for mask in nodes.subsets() {
            let within = topology.in_nodes(mask);
            if within.len() >= count {
                fewest = fewest.min(mask.count());
            }
            // What can be used again has to be.
            if reusable.is_subset(&within) && reusable.len() + available.intersection(&within).len() >= count {
                masks.push(mask);
            }
        }
        let hint = |mask: NodeMask| {
            let by_socket = options.by_socket && self.manager.is_socket_aligned(mask, fewest);
            Hint { affinity: Some(mask), preferred: by_socket || mask.count() == fewest }
        };
        ResourceHints { resource: CPU.to_owned(), hints: Some(masks.into_iter().map(hint).collect()) }
    }

    /// The processors of `free` near a hint.
    fn near(&self, mask: NodeMask, free: &Cpus) -> Cpus {
        let CpuManager { topology, options, .. } = self.manager;
        if !options.by_socket {
            return free.intersection(&topology.in_nodes(mask));
        }
        let sockets = topology.sockets_of(mask);
        free.iter().filter(|cpu| topology.place(*cpu).is_some_and(|place| sockets.contains(&place.socket))).collect()
    }
}

impl Provider for CpuProvider<'_> {
    fn hints(&self, pod: &Pod, container: ContainerRef<'_>, grants: &Grants) -> Vec<ResourceHints> {
        let count = exclusive(pod, container.resources());
        if count == 0 {
            return Vec::new();
        }
        let (available, reusable) = self.free(pod, grants);
        vec![self.hints_for(&available, &reusable, count)]
    }

    fn pod_hints(&self, pod: &Pod) -> Vec<ResourceHints> {
        let count = exclusive_of_pod(pod);
        if count == 0 {
            return Vec::new();
        }
        let (available, _) = self.free(pod, &Grants::default());
        vec![self.hints_for(&available, &Cpus::new(), count)]
    }

    fn give(&self, pod: &Pod, container: ContainerRef<'_>, hint: Hint, grants: &mut Grants) -> Result<(), Rejection> {
        let count = exclusive(pod, container.resources());
        if count == 0 {
            return Ok(());
        }
        let (available, reusable) = self.free(pod, grants);
        let mut free = available.union(&reusable);
        let CpuManager { topology, options, .. } = self.manager;
        if options.full_cores {
            let threads = topology.threads_per_core();
            if !count.is_multiple_of(threads) {
                return Err(misaligned(format!("requested {count} cpus not multiple cpus per core = {threads}")));
            }
            // A core of which a thread is reserved is nobody's: a part of one is never given.
            free = topology.whole_cores(&free);
            if count > free.len() {
                return Err(misaligned(format!(
                    "not enough free physical CPUs: available physical CPUs = {}, requested CPUs = {count}, CPUs per core \
                     = {threads}",
                    free.len()
                )));
            }
        }
        let near = hint.affinity.map(|mask| self.near(mask, &free)).unwrap_or_default();
        let mut cpus = self.manager.take(&near, count.min(near.len())).map_err(reject)?;
        let rest = self.manager.take(&free.difference(&cpus), count - cpus.len()).map_err(reject)?;
        cpus.extend(rest.iter());
        grants.of_mut(container.name()).cpus = cpus;
        Ok(())
    }
}

fn misaligned(what: String) -> Rejection {
    Rejection { reason: "SMTAlignmentError".to_owned(), message: format!("SMT Alignment Error: {what}") }
}

/// Whether resources are set for the pod as a whole; neither manager gives anything to its containers then (upstream's
/// PodLevelResourceManagers is off).
pub(super) fn has_pod_resources(spec: &PodSpec) -> bool {
    let resources = spec.resources.as_ref();
    let lists = resources.map(|resources| [&resources.requests, &resources.limits]);
    lists.into_iter().flatten().flatten().flat_map(|list| list.keys()).any(|name| is_pod_level(name))
}

/// How many processors a container is to have for itself.
fn exclusive(pod: &Pod, resources: Option<&ResourceRequirements>) -> usize {
    let Some(spec) = &pod.spec else { return 0 };
    if qos_class(spec) != QosClass::Guaranteed || has_pod_resources(spec) {
        return 0;
    }
    let milli = requests(resources).get(CPU).map_or(0, Quantity::milli);
    if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

/// How many all containers of a pod need at a time: the main ones and the sidecars, or an init container beside the
/// sidecars before it.
fn exclusive_of_pod(pod: &Pod) -> usize {
    let Some(spec) = &pod.spec else { return 0 };
    let (mut sidecars, mut starting) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        let count = exclusive(pod, container.resources.as_ref());
        if is_sidecar(container) {
            sidecars += count;
        } else {
            starting = starting.max(sidecars + count);
        }
    }
    let running: usize = spec.containers.iter().map(|container| exclusive(pod, container.resources.as_ref())).sum();
    starting.max(running + sidecars)
}

/// Processors of the pod's init containers that none after them has so far.
fn reusable(pod: &Pod, grants: &Grants) -> Cpus {
    let mut reusable = Cpus::new();
    for container in ContainerRef::all(pod) {
        let Some(grant) = grants.of(container.name()) else { continue };
        reusable = match container {
            ContainerRef::Init(_, init) if !is_sidecar(init) => reusable.union(&grant.cpus),
            _ => reusable.difference(&grant.cpus),
        };
    }
    reusable
}
