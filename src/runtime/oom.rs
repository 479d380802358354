//! Who goes first when memory runs out.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::container_ref::ContainerRef;
use crate::api::{
    qos::{QosClass, qos_class},
    quantity::Quantity,
    resources::{MEMORY, container_requests, is_sidecar, requests},
};

/// A pod's supervisor: after everything that runs in it.
pub const SANDBOX: i32 = -998;
/// Guaranteed pods, and those the node cannot do without.
const GUARANTEED: i32 = -997;
/// Pods that asked for nothing.
const BEST_EFFORT: i32 = 1000;

/// `oom_score_adj` of a container (upstream's formula). `memory_capacity` is the node's memory in bytes. A burstable
/// container is the more likely to go the less memory it asked for: one that uses more than its request has a higher
/// score than everything that does not. A sidecar is not likelier to go than any main container.
pub fn score(pod: &Pod, container: ContainerRef<'_>, memory_capacity: u64) -> i32 {
    let Some(spec) = &pod.spec else { return BEST_EFFORT };
    if spec.priority_class_name.as_deref() == Some("system-node-critical") {
        return GUARANTEED;
    }
    match qos_class(spec) {
        QosClass::Guaranteed => GUARANTEED,
        QosClass::BestEffort => BEST_EFFORT,
        QosClass::Burstable => {
            let own = burstable(spec, container, memory_capacity);
            match container {
                ContainerRef::Init(_, sidecar) if is_sidecar(sidecar) => own.min(lowest(spec, memory_capacity)),
                _ => own,
            }
        }
    }
}

/// The lowest score of the main containers.
fn lowest(spec: &PodSpec, memory_capacity: u64) -> i32 {
    let containers = spec.containers.iter().enumerate();
    let scores =
        containers.map(|(index, container)| burstable(spec, ContainerRef::App(index, container), memory_capacity));
    scores.min().unwrap_or(BEST_EFFORT)
}

/// What the pod as a whole asks for beyond its containers is each container's in equal parts (KEP-2837).
fn share_of_pod(spec: &PodSpec) -> i64 {
    let of_pod = requests(spec.resources.as_ref());
    let Some(whole) = of_pod.get(MEMORY) else { return 0 };
    let own = container_requests(spec).get(MEMORY).map_or(0, Quantity::value);
    let containers = spec.containers.len() + spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).count();
    (whole.value() - own).max(0) / i64::try_from(containers.max(1)).unwrap_or(i64::MAX)
}

fn burstable(spec: &PodSpec, container: ContainerRef<'_>, memory_capacity: u64) -> i32 {
    let own = requests(container.resources()).get(MEMORY).map_or(0, |request| request.value().max(0));
    let request = own.saturating_add(share_of_pod(spec));
    let share = i128::from(request) * 1000 / i128::from(memory_capacity.max(1));
    let score = i128::from(BEST_EFFORT) - share;
    // Between every guaranteed pod (which is at 1000 - 997 = 3 when it uses all memory) and every best-effort one.
    score.clamp(i128::from(1000 + GUARANTEED), i128::from(BEST_EFFORT - 1)) as i32
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn of(spec: Value, name: &str) -> i32 {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        score(&pod, ContainerRef::find(&pod, name).unwrap(), 10 * GIB)
    }

    fn asks(memory: &str) -> Value {
        json!({"requests": {"memory": memory}})
    }

    #[test]
    fn the_score_follows_from_class_and_request() {
        let case = |sentence: &str, resources: Value, expected: i32| {
            let spec = json!({"containers": [{"name": "app", "resources": resources}]});
            assert_eq!(of(spec, "app"), expected, "{sentence}");
        };
        let all = json!({"cpu": "1", "memory": "1Gi"});
        case("guaranteed", json!({"requests": all, "limits": all}), -997);
        case("best effort", json!({}), 1000);
        case("a tenth of the node", asks("1Gi"), 900);
        case("no memory asked for", json!({"requests": {"cpu": "1"}}), 999);
        case("nearly none", asks("1"), 999);
        case("the whole node", asks("10Gi"), 3);
        case("more than the node", asks("100Gi"), 3);
    }

    #[test]
    fn a_node_critical_pod_counts_as_guaranteed() {
        let spec = json!({"priorityClassName": "system-node-critical", "containers": [{"name": "app"}]});
        assert_eq!(of(spec, "app"), -997);
    }

    #[test]
    fn a_sidecar_is_not_likelier_to_go_than_a_main_container() {
        let spec = json!({
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always", "resources": asks("1Mi")},
                {"name": "first", "resources": asks("1Mi")},
            ],
            "containers": [{"name": "small", "resources": asks("1Gi")}, {"name": "large", "resources": asks("2Gi")}],
        });
        assert_eq!(of(spec.clone(), "proxy"), 800);
        assert_eq!(of(spec, "first"), 999);
    }

    #[test]
    fn what_the_pod_asks_for_as_a_whole_is_shared_out() {
        let spec = json!({
            "resources": asks("4Gi"),
            "containers": [{"name": "own", "resources": asks("2Gi")}, {"name": "none"}],
        });
        assert_eq!(of(spec.clone(), "own"), 700);
        assert_eq!(of(spec, "none"), 900);
    }
}
