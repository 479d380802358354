//! The hands that change the size of what runs: the pod's cgroup first where it grows, last where it shrinks, and between
//! that its containers, those that shrink before those that grow. At no moment does a cgroup ask for more than the one
//! above it has.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::{
    execute::{Host, blocking, spec_of},
    host::{ActionError, Done},
    machine, records,
};
use crate::{
    api::{
        quantity::Quantity,
        resources::{CPU, MEMORY},
    },
    cgroup::{CgroupError, InForce, LeafLimits, PodLimits, Share},
    pod::{Outcome, observed::ObservedPod, resize::Allocation},
    runtime::container_ref::ContainerRef,
};

/// Reason of a resize that did not succeed.
const REASON: &str = "ResizeError";

/// A container whose cgroup is to change.
struct Leaf {
    name: String,
    id: String,
    before: InForce,
    limits: LeafLimits,
}

impl Leaf {
    /// Whether it gives anything back.
    fn shrinks(&self) -> bool {
        let less = |new: Option<u64>, old: Option<u64>| new.unwrap_or(u64::MAX) < old.unwrap_or(u64::MAX);
        less(self.limits.memory, self.before.memory) || less(self.limits.cpu.limit_milli, self.before.limit_milli())
    }
}

impl Host {
    /// Brings what runs to what `pod` is allocated, and tells the runtime of containers that have one of their own.
    pub(super) async fn resize(
        self: &Arc<Self>,
        pod: Arc<Pod>,
        containers: BTreeMap<String, u32>,
    ) -> Result<Done, ActionError> {
        let host = self.clone();
        let (resized, names) = (pod.clone(), containers.clone());
        let done = blocking(move || host.resize_pod(&resized, &names)).await?;
        if self.handler.is_none() {
            return Ok(done);
        }
        let supervisor = self.need_supervisor()?;
        for name in containers.keys() {
            let Some(container) = ContainerRef::find(&pod, name) else { continue };
            let resources = self.shared.changed_resources(&self.shared.leaf_limits(&pod, container, &self.grants));
            let updated = supervisor.update(name, resources).await;
            updated.map_err(|error| ActionError::new(REASON, &error))?;
        }
        Ok(done)
    }

    /// Brings the cgroups of the pod and of `containers` (each with its attempt) to what `pod` is allocated. A container
    /// that has ended is left out: what follows it is prepared with its own limits.
    fn resize_pod(&self, pod: &Pod, containers: &BTreeMap<String, u32>) -> Result<Done, ActionError> {
        let failed = |error: CgroupError| ActionError::new(REASON, &error);
        let cgroups = &self.shared.cgroups;
        let target = self.shared.pod_limits(spec_of(pod), &self.grants);
        let mut leaves = Vec::new();
        for (name, attempt) in containers {
            leaves.extend(self.leaf(pod, name, *attempt)?);
        }
        let before = cgroups.pod_in_force(self.qos, self.uid()).map_err(failed)?;
        self.memory_fits(&target, before.as_ref(), &leaves)?;
        if let Some(before) = &before {
            cgroups.update_pod(self.qos, self.uid(), &larger(&target, before)).map_err(failed)?;
        }
        leaves.sort_by_key(|leaf| !leaf.shrinks());
        for leaf in &leaves {
            match cgroups.update_leaf(self.qos, self.uid(), &leaf.id, &leaf.limits) {
                Err(error) if !error.is_absent() => return Err(failed(error)),
                _ => {}
            }
        }
        if before.is_some() {
            cgroups.update_pod(self.qos, self.uid(), &target).map_err(failed)?;
        }
        Ok(Done::new(Outcome::Done))
    }

    fn leaf(&self, pod: &Pod, name: &str, attempt: u32) -> Result<Option<Leaf>, ActionError> {
        let Some(container) = ContainerRef::find(pod, name) else { return Ok(None) };
        let recorded = records::read(&self.dirs.attempt(name, attempt));
        let recorded = recorded.map_err(|error| ActionError::new(REASON, &error))?;
        let Some(recorded) = recorded.filter(|recorded| recorded.exit.is_none()) else { return Ok(None) };
        let id = recorded.launch.id;
        let before = self.shared.cgroups.leaf_in_force(self.qos, self.uid(), &id);
        let before = before.map_err(|error| ActionError::new(REASON, &error))?;
        let limits = self.shared.leaf_limits(pod, container, &self.grants);
        Ok(before.map(|before| Leaf { name: name.to_owned(), id, before, limits }))
    }

    /// A limit below what is in use would have the kernel kill (v2) or refuse (v1); as upstream, it is not tried.
    fn memory_fits(&self, target: &PodLimits, before: Option<&InForce>, leaves: &[Leaf]) -> Result<(), ActionError> {
        let cgroups = &self.shared.cgroups;
        let lowered = |new: Option<u64>, old: Option<u64>| new.filter(|new| old.is_none_or(|old| *new < old));
        // What cannot be read is not in the way.
        let too_small = |limit: Option<u64>, usage: Option<u64>| limit.zip(usage).filter(|(limit, used)| limit < used);
        let mut errors = Vec::new();
        if let Some(limit) = lowered(target.memory, before.and_then(|before| before.memory)) {
            let usage = cgroups.pod_usage(self.qos, self.uid()).ok().flatten().map(|usage| usage.memory_bytes);
            if let Some((limit, used)) = too_small(Some(limit), usage) {
                errors.push(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"));
            }
        }
        for leaf in leaves {
            let limit = lowered(leaf.limits.memory, leaf.before.memory);
            let usage = || cgroups.usage(self.qos, self.uid(), &leaf.id).ok().flatten().map(|usage| usage.memory_bytes);
            if let Some((limit, used)) = limit.and_then(|limit| too_small(Some(limit), usage())) {
                errors.push(format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({used})",
                    leaf.name
                ));
            }
        }
        let errors = match errors.as_slice() {
            [] => return Ok(()),
            [error] => error.clone(),
            errors => format!("[{}]", errors.join(", ")),
        };
        Err(ActionError { reason: REASON.to_owned(), message: format!("cannot decrease memory limits: {errors}") })
    }

    /// After a restart of the agent: what runs without processors of its own follows the shared pool again.
    pub(super) fn join_pool(&self, observed: &ObservedPod) {
        if self.shared.pool.now().cpus.is_none() {
            return;
        }
        for (container, attempt) in observed.running() {
            if self.has_own_cpus(container) {
                continue;
            }
            if !self.shared.cgroups.can_confine(self.qos, self.uid(), &attempt.id) {
                tracing::warn!(
                    pod = self.uid(),
                    container,
                    "the container was started without a cpuset: it runs on all processors until it is started again"
                );
                continue;
            }
            self.shared.pool.join(self.qos, self.uid(), &attempt.id);
        }
    }

    /// Whether a container has processors for itself.
    pub(super) fn has_own_cpus(&self, container: &str) -> bool {
        self.grants.of(container).is_some_and(|grant| !grant.cpus.is_empty())
    }

    /// After a restart of the agent: whether the cgroups of what runs are as `pod` is allocated. A resize that was
    /// interrupted is seen as what it has come to.
    pub(super) fn observe_sizes(&self, pod: &Pod, observed: &mut ObservedPod) {
        let cgroups = &self.shared.cgroups;
        let limits = self.shared.pod_limits(spec_of(pod), &self.grants);
        let as_wanted = |found: &InForce| found.is(&limits.cpu, limits.memory, machine::page_size());
        match cgroups.pod_in_force(self.qos, self.uid()) {
            Ok(Some(found)) if as_wanted(&found) => observed.sized = Some(Allocation::of(pod)),
            // Whatever it is, it is not this.
            Ok(Some(_)) => observed.sized = Some(Allocation::default()),
            Ok(None) => {}
            Err(error) => tracing::warn!(pod = self.uid(), %error, "the limits of the pod cannot be read, ignoring"),
        }
        let running: Vec<(String, String)> =
            observed.running().map(|(name, attempt)| (name.to_owned(), attempt.id.clone())).collect();
        for (name, id) in running {
            let Some(container) = ContainerRef::find(pod, &name) else { continue };
            let Ok(Some(found)) = cgroups.leaf_in_force(self.qos, self.uid(), &id) else { continue };
            let limits = self.shared.leaf_limits(pod, container, &self.grants);
            let mut resources = container.resources().cloned().unwrap_or_default();
            if !found.is(&limits.cpu, limits.memory, machine::page_size()) {
                overwrite(&mut resources, &found);
            }
            if let Some(launched) = observed.launched.get_mut(&name) {
                launched.resources = resources;
            }
        }
    }
}

/// The larger of what is to be and what is, for a pod whose containers change in between.
fn larger(target: &PodLimits, before: &InForce) -> PodLimits {
    let mut limits = target.clone();
    limits.memory = target.memory.zip(before.memory).map(|(new, old)| new.max(old));
    limits.cpu.limit_milli = target.cpu.limit_milli.zip(before.limit_milli()).map(|(new, old)| new.max(old));
    limits
}

/// Puts what the kernel says into `resources`, as upstream does with what a runtime says: limits as they are, the request
/// for CPU as far as shares tell. A request for memory leaves no trace.
fn overwrite(resources: &mut ResourceRequirements, found: &InForce) {
    let mut set = |limits: bool, name: &str, amount: Option<Quantity>| {
        let list = if limits { &mut resources.limits } else { &mut resources.requests };
        let list = list.get_or_insert_default();
        match amount {
            Some(amount) => list.insert(name.to_owned(), ApiQuantity::from(amount)),
            None => list.remove(name),
        };
    };
    let milli = |milli: u64| Quantity::from_milli(i64::try_from(milli).unwrap_or(i64::MAX));
    set(true, CPU, found.limit_milli().map(milli));
    set(true, MEMORY, found.memory.map(|bytes| Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX))));
    if let Share::Shares(shares) = found.share {
        set(false, CPU, Some(milli((shares.saturating_mul(1000)).div_ceil(1024))));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cgroup::CpuLimits;

    const FOUND: InForce =
        InForce { share: Share::Shares(512), quota: Some((150_000, 100_000)), memory: Some(64 << 20) };

    #[test]
    fn while_its_containers_change_a_pod_has_the_larger_limits() {
        let target = |milli: Option<u64>, memory: Option<u64>| PodLimits {
            cpu: CpuLimits { limit_milli: milli, ..CpuLimits::default() },
            memory,
            ..PodLimits::default()
        };
        let found = larger(&target(Some(1000), Some(128 << 20)), &FOUND);
        assert_eq!((found.cpu.limit_milli, found.memory), (Some(1500), Some(128 << 20)));
        let found = larger(&target(None, None), &FOUND);
        assert_eq!((found.cpu.limit_milli, found.memory), (None, None));
        let unlimited = InForce { quota: None, memory: None, ..FOUND };
        let found = larger(&target(Some(1000), Some(1)), &unlimited);
        assert_eq!((found.cpu.limit_milli, found.memory), (None, None));
    }

    #[test]
    fn what_the_kernel_says_goes_before_what_was_asked_for() {
        let read = |value| serde_json::from_value::<ResourceRequirements>(value).unwrap();
        let mut resources = read(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}));
        overwrite(&mut resources, &FOUND);
        let expected =
            json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1500m", "memory": "64Mi"}});
        assert_eq!(resources, read(expected));
    }
}
