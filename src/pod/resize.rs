//! Resources that change while a pod runs (KEP-1287). Three things are kept apart: what is *desired* (the spec), what the
//! node has *allocated* to the pod (durable in the ledger; capacity is counted by it), and what is *in force* in its
//! cgroups. A resize moves the allocation as soon as there is room, and what is in force follows.

use std::{cmp::Reverse, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{admission::Rejection, observed::ObservedPod};
use crate::api::{
    qos::{QosClass, qos_class},
    quantity::Quantity,
    resources::{CPU, MEMORY, Resources, is_sidecar, pod_requests},
};

/// The resources of a pod that a resize may change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// By name: main containers and sidecars.
    pub containers: BTreeMap<String, ResourceRequirements>,
    /// Of the pod as a whole, where they are set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ResourceRequirements>,
}

impl Allocation {
    /// What the spec of `pod` says.
    pub fn of(pod: &Pod) -> Allocation {
        let Some(spec) = &pod.spec else { return Allocation::default() };
        let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
        let own = |container: &Container| (container.name.clone(), container.resources.clone().unwrap_or_default());
        Allocation {
            containers: spec.containers.iter().chain(sidecars).map(own).collect(),
            pod: spec.resources.clone(),
        }
    }

    /// `pod` with this in its spec.
    pub fn apply(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        let Some(spec) = &mut pod.spec else { return pod };
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            if let Some(resources) = self.containers.get(&container.name) {
                container.resources = (*resources != ResourceRequirements::default()).then(|| resources.clone());
            }
        }
        spec.resources.clone_from(&self.pod);
        pod
    }
}

/// Why a resize has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingReason {
    /// Others have what it asks for: tried again when they change.
    Deferred,
    /// The node never has as much.
    Infeasible,
}

impl PendingReason {
    /// Upstream's word.
    pub fn as_str(self) -> &'static str {
        match self {
            PendingReason::Deferred => "Deferred",
            PendingReason::Infeasible => "Infeasible",
        }
    }
}

/// A resize that waits: the condition `PodResizePending`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Why.
    pub reason: PendingReason,
    /// A sentence.
    pub message: String,
    /// Since when it waits, in the life of this agent.
    pub since: Timestamp,
}

/// What is to be done about what a pod desires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It has it.
    Settled,
    /// There is room: it is the pod's from now on.
    Allocate,
    /// It has to wait.
    Wait(PendingReason, String),
}

/// Whether a container of `desired` that may be resized asks for other than it is `allocated` of a resource.
pub fn asks_for_other(desired: &Pod, allocated: &Pod, resource: &str) -> bool {
    let requests = |pod: &Pod| -> BTreeMap<String, Option<Quantity>> {
        let containers = Allocation::of(pod).containers.into_iter();
        containers.map(|(name, resources)| (name, amount(&resources.requests, resource))).collect()
    };
    requests(desired) != requests(allocated)
}

/// Whether `desired` may replace what is `allocated` to the same pod. `infeasible` says why the node can never do that,
/// `admit` whether a pod would be admitted beside the others as they are allocated.
pub fn decide(
    desired: &Pod,
    allocated: &Pod,
    allocatable: &Resources,
    infeasible: impl FnOnce(&Pod) -> Option<String>,
    admit: impl FnOnce(&Pod) -> Result<(), Rejection>,
) -> Decision {
    if Allocation::of(desired) == Allocation::of(allocated) {
        return Decision::Settled;
    }
    if let Some(message) = infeasible(desired) {
        return Decision::Wait(PendingReason::Infeasible, message);
    }
    let requested = desired.spec.as_ref().map(pod_requests).unwrap_or_default();
    for (name, amount) in [(MEMORY, Quantity::value as fn(&Quantity) -> i64), (CPU, Quantity::milli)] {
        let Some(capacity) = allocatable.get(name).map(amount) else { continue };
        let requested = requested.get(name).map(amount).unwrap_or_default();
        if requested > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}");
            return Decision::Wait(PendingReason::Infeasible, message);
        }
    }
    match admit(desired) {
        Ok(()) => Decision::Allocate,
        Err(rejection) => Decision::Wait(PendingReason::Deferred, rejection.message),
    }
}

/// Who of those that wait is asked first; the smallest is. Upstream's order: those that ask for no more than they have
/// (they make room), then by priority, by class, and by how long they have waited.
pub fn precedence(desired: &Pod, allocated: &Pod, since: Option<Timestamp>) -> impl Ord + use<> {
    let requests = |pod: &Pod| pod.spec.as_ref().map(pod_requests).unwrap_or_default();
    let (wanted, held) = (requests(desired), requests(allocated));
    let grows = wanted.iter().any(|(name, amount)| held.get(name).is_none_or(|held| amount > held));
    let class = match desired.spec.as_ref().map(qos_class) {
        Some(QosClass::Guaranteed) => 0,
        Some(QosClass::Burstable) => 1,
        Some(QosClass::BestEffort) | None => 2,
    };
    let priority = desired.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    (grows, Reverse(priority), class, since)
}

/// What a change of resources does to a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its cgroup is changed under it.
    InPlace,
    /// It is started anew: a resource has changed whose policy says so.
    Restart,
}

/// How `container` comes from what is `in_force` to what its spec says; `None` when that is the same.
pub fn how(container: &Container, in_force: &ResourceRequirements) -> Option<How> {
    let nothing = ResourceRequirements::default();
    let wanted = container.resources.as_ref().unwrap_or(&nothing);
    let changed = |name: &str| {
        amount(&wanted.requests, name) != amount(&in_force.requests, name)
            || amount(&wanted.limits, name) != amount(&in_force.limits, name)
    };
    let restarts = |name: &str| {
        let mut policies = container.resize_policy.iter().flatten();
        policies.any(|policy| policy.resource_name == name && policy.restart_policy == "RestartContainer")
    };
    let changed: Vec<&str> = [CPU, MEMORY].into_iter().filter(|name| changed(name)).collect();
    match changed.is_empty() {
        true => None,
        false if changed.iter().any(|name| restarts(name)) => Some(How::Restart),
        false => Some(How::InPlace),
    }
}

fn amount(list: &Option<BTreeMap<String, ApiQuantity>>, name: &str) -> Option<Quantity> {
    Quantity::try_from(list.as_ref()?.get(name)?).ok()
}

impl ObservedPod {
    /// Whether the pod's own cgroup is as `pod` is allocated. One that nobody has looked at counts as such.
    pub fn is_sized(&self, pod: &Pod) -> bool {
        self.sized.as_ref().is_none_or(|sized| *sized == Allocation::of(pod))
    }

    /// Notes that the pod's cgroup, and those of `containers` (each with its attempt), are as `pod` is allocated.
    pub fn resized(&mut self, pod: &Pod, containers: &BTreeMap<String, u32>) {
        let allocation = Allocation::of(pod);
        for (name, attempt) in containers {
            let launched = self.launched.get_mut(name).filter(|launched| launched.attempt == *attempt);
            if let (Some(launched), Some(resources)) = (launched, allocation.containers.get(name)) {
                launched.resources.clone_from(resources);
            }
        }
        self.sized = Some(allocation);
    }
}

/// The figures of upstream's events about a resize, as JSON: what each container has in `pod`, its generation and, for
/// some, what is wrong.
pub fn summary(pod: &Pod, error: &str) -> String {
    #[derive(Serialize)]
    struct Own {
        name: String,
        resources: ResourceRequirements,
    }
    #[derive(Serialize)]
    struct Summary<'a> {
        #[serde(rename = "podResources", skip_serializing_if = "Option::is_none")]
        pod: Option<ResourceRequirements>,
        containers: Vec<Own>,
        generation: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        error: &'a str,
    }
    let Allocation { containers, pod: whole } = Allocation::of(pod);
    let containers = containers.into_iter().map(|(name, resources)| Own { name, resources }).collect();
    let generation = pod.metadata.generation.unwrap_or_default();
    // Maps with text as keys always have a JSON form.
    serde_json::to_string(&Summary { pod: whole, containers, generation, error }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: Value, priority: i32) -> Pod {
        let container = json!({"name": "app", "image": "a:1", "resources": resources});
        serde_json::from_value(json!({"metadata": {"generation": 3},
            "spec": {"priority": priority, "containers": [container]}}))
        .unwrap()
    }

    fn cpu(amount: &str) -> Value {
        json!({"requests": {"cpu": amount}})
    }

    #[test]
    fn what_is_allocated_can_be_put_back_into_a_pod() {
        let (old, new) = (pod(cpu("1"), 0), pod(cpu("2"), 0));
        assert_eq!(Allocation::of(&old).apply(&new), old);
        let none = pod(Value::Null, 0);
        assert_eq!(Allocation::of(&none).apply(&new), none);
    }

    #[test]
    fn a_resize_waits_for_room_and_never_for_what_the_node_has_not() {
        let allocatable = Resources::from([
            (CPU.to_owned(), Quantity::from_units(4)),
            (MEMORY.to_owned(), Quantity::from_bytes(1 << 30)),
        ]);
        let full = || Err(Rejection { reason: "OutOfcpu".to_owned(), message: "no room".to_owned() });
        let case = |desired: Value, room: bool| {
            let admit = |_: &Pod| if room { Ok(()) } else { full() };
            decide(&pod(desired, 0), &pod(cpu("1"), 0), &allocatable, |_| None, admit)
        };
        assert_eq!(case(cpu("1"), false), Decision::Settled);
        assert_eq!(case(cpu("4"), true), Decision::Allocate);
        assert_eq!(case(cpu("4"), false), Decision::Wait(PendingReason::Deferred, "no room".to_owned()));
        let message = "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000";
        assert_eq!(case(cpu("5"), true), Decision::Wait(PendingReason::Infeasible, message.to_owned()));
        let message = "Node didn't have enough capacity: memory, requested: 2147483648, capacity: 1073741824";
        let both = json!({"requests": {"cpu": "5", "memory": "2Gi"}});
        assert_eq!(case(both, true), Decision::Wait(PendingReason::Infeasible, message.to_owned()));
    }

    #[test]
    fn those_that_make_room_go_first_then_the_important_then_the_patient() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let held = pod(cpu("2"), 0);
        let mut waiting = [
            ("late", pod(cpu("3"), 0), at(9)),
            ("early", pod(cpu("3"), 0), at(1)),
            (
                "guaranteed",
                pod(json!({"requests": {"cpu": "3", "memory": "1"}, "limits": {"cpu": "3", "memory": "1"}}), 0),
                at(9),
            ),
            ("important", pod(cpu("3"), 100), at(9)),
            ("shrinking", pod(cpu("1"), 0), at(9)),
        ];
        waiting.sort_by_key(|(_, desired, since)| precedence(desired, &held, *since));
        let order: Vec<_> = waiting.iter().map(|(name, ..)| *name).collect();
        assert_eq!(order, ["shrinking", "important", "guaranteed", "early", "late"]);
    }

    #[test]
    fn the_policy_of_what_changed_decides_about_a_restart() {
        let case = |wanted: Value, policies: Value| {
            let container: Container =
                serde_json::from_value(json!({"name": "app", "resources": wanted, "resizePolicy": policies})).unwrap();
            let in_force = json!({"requests": {"cpu": "1", "memory": "1Gi"}});
            how(&container, &serde_json::from_value(in_force).unwrap())
        };
        let policy = |name: &str| json!([{"resourceName": name, "restartPolicy": "RestartContainer"}]);
        let (cpu, memory) =
            (json!({"requests": {"cpu": "2", "memory": "1Gi"}}), json!({"requests": {"cpu": "1", "memory": "2Gi"}}));
        assert_eq!(case(json!({"requests": {"cpu": "1000m", "memory": "1024Mi"}}), policy("cpu")), None);
        assert_eq!(case(cpu.clone(), json!([])), Some(How::InPlace));
        assert_eq!(case(cpu.clone(), policy("memory")), Some(How::InPlace));
        assert_eq!(case(cpu, policy("cpu")), Some(How::Restart));
        assert_eq!(case(memory, policy("memory")), Some(How::Restart));
    }

    #[test]
    fn a_summary_has_upstreams_form() {
        let resources = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m", "memory": "64Mi"}});
        assert_eq!(
            summary(&pod(resources, 0), "no room"),
            r#"{"containers":[{"name":"app","resources":{"limits":{"cpu":"1"},"requests":{"cpu":"500m","memory":"64Mi"}}}],"generation":3,"error":"no room"}"#
        );
    }
}
