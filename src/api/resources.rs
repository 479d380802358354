//! What a pod asks for and may use, summed over its containers as the scheduler and the node agent upstream do it
//! (`k8s.io/component-helpers/resource`): init containers run one after the other, sidecars (init containers that
//! restart always) stay beside everything that starts after them.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::{quantity::Quantity, validation::qualified_name_problems};

/// Processor time, in cores.
pub const CPU: &str = "cpu";
/// Memory, in bytes.
pub const MEMORY: &str = "memory";
/// Local storage, in bytes.
pub const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
/// `hugepages-<size>`, in bytes.
pub const HUGEPAGES_PREFIX: &str = "hugepages-";

/// Whether Kubernetes itself defines a resource: it has no domain, or one of `kubernetes.io`.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a resource is one that something else on the node offers, a device plugin for example: `example.com/device`.
pub fn is_extended(name: &str) -> bool {
    const QUOTA: &str = "requests.";
    // Upstream's rule: a quota for it must have a valid name, too.
    !is_native(name) && !name.starts_with(QUOTA) && qualified_name_problems(&format!("{QUOTA}{name}")).is_empty()
}

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// A resource list of the API; what is no quantity is left out (validation has refused it before).
pub fn read(list: Option<&BTreeMap<String, ApiQuantity>>) -> Resources {
    let readable = |(name, quantity): (&String, &ApiQuantity)| Some((name.clone(), Quantity::try_from(quantity).ok()?));
    list.into_iter().flatten().filter_map(readable).collect()
}

/// What a container asks for.
pub fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    read(resources.and_then(|resources| resources.requests.as_ref()))
}

/// What a container may use.
pub fn limits(resources: Option<&ResourceRequirements>) -> Resources {
    read(resources.and_then(|resources| resources.limits.as_ref()))
}

/// Whether an init container is a sidecar.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether a resource may be set for the pod as a whole (KEP-2837).
pub fn is_pod_level(name: &str) -> bool {
    name == CPU || name == MEMORY || name.starts_with(HUGEPAGES_PREFIX)
}

/// What the pod's containers ask for together, pod-level settings and overhead left aside.
pub fn container_requests(spec: &PodSpec) -> Resources {
    aggregate(spec, requests)
}

/// What the pod's containers may use together, pod-level settings and overhead left aside. A container without a
/// limit counts as nothing; see [`all_limited`].
pub fn container_limits(spec: &PodSpec) -> Resources {
    aggregate(spec, limits)
}

/// What the pod asks of its node: pod-level settings go before those of its containers, overhead is added.
pub fn pod_requests(spec: &PodSpec) -> Resources {
    let mut total = container_requests(spec);
    total.extend(requests(spec.resources.as_ref()).into_iter().filter(|(name, _)| is_pod_level(name)));
    add(&mut total, &read(spec.overhead.as_ref()));
    total
}

/// What the pod may use at most. Overhead is added to limits that exist.
pub fn pod_limits(spec: &PodSpec) -> Resources {
    let mut total = container_limits(spec);
    total.extend(limits(spec.resources.as_ref()).into_iter().filter(|(name, _)| is_pod_level(name)));
    let mut overhead = read(spec.overhead.as_ref());
    overhead.retain(|name, _| total.get(name).is_some_and(|limit| !limit.is_zero()));
    add(&mut total, &overhead);
    total
}

/// Whether every container, init containers included, has a limit for `resource`: only then can the pod be limited.
pub fn all_limited(spec: &PodSpec, resource: &str) -> bool {
    let limited = |container: &Container| {
        limits(container.resources.as_ref()).get(resource).is_some_and(|limit| !limit.is_zero())
    };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(limited)
}

fn aggregate(spec: &PodSpec, of: fn(Option<&ResourceRequirements>) -> Resources) -> Resources {
    let mut total = Resources::new();
    for container in &spec.containers {
        add(&mut total, &of(container.resources.as_ref()));
    }
    let mut sidecars = Resources::new();
    let mut starting = Resources::new();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container.resources.as_ref());
        if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut now = own;
            add(&mut now, &sidecars);
            raise(&mut starting, &now);
        }
    }
    raise(&mut total, &starting);
    total
}

fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = *sum + *amount;
    }
}

/// Each amount becomes the larger of the two.
fn raise(total: &mut Resources, other: &Resources) {
    for (name, amount) in other {
        let entry = total.entry(name.clone()).or_insert(*amount);
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn cpu(milli: u32) -> serde_json::Value {
        json!({"requests": {"cpu": format!("{milli}m")}, "limits": {"cpu": format!("{}m", milli * 2)}})
    }

    #[test]
    fn init_containers_count_by_their_maximum_and_sidecars_with_everything_after_them() {
        let spec = spec(json!({
            "initContainers": [
                {"name": "a", "resources": cpu(300)},
                {"name": "proxy", "restartPolicy": "Always", "resources": cpu(100)},
                {"name": "b", "resources": cpu(700)},
            ],
            "containers": [{"name": "c", "resources": cpu(200)}, {"name": "d", "resources": cpu(250)}],
        }));
        // While b starts: 700 + 100; afterwards: 200 + 250 + 100.
        assert_eq!(pod_requests(&spec)[CPU].milli(), 800);
        assert_eq!(pod_limits(&spec)[CPU].milli(), 1600);
        assert!(all_limited(&spec, CPU));
        assert!(!all_limited(&spec, MEMORY));
    }

    #[test]
    fn an_extended_resource_has_a_domain_that_is_not_of_kubernetes() {
        for (name, extended) in [
            ("example.com/device", true),
            ("a/b", true),
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("kubernetes.io/device", false),
            ("sub.kubernetes.io/device", false),
            ("requests.example.com/device", false),
            ("example.com/", false),
            ("example.com/a/b", false),
            ("Example.com/device", false),
        ] {
            assert_eq!(is_extended(name), extended, "{name}");
        }
    }

    #[test]
    fn overhead_is_added_to_requests_and_to_limits_that_exist() {
        let spec = spec(json!({
            "containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}, "limits": {"cpu": 1}}}],
            "overhead": {"cpu": "50m", "memory": "2Mi"},
        }));
        assert_eq!(pod_requests(&spec)[MEMORY].to_string(), "3Mi");
        assert_eq!(pod_requests(&spec)[CPU].milli(), 50);
        assert_eq!(pod_limits(&spec)[CPU].milli(), 1050);
        assert_eq!(pod_limits(&spec).get(MEMORY), None);
    }

    #[test]
    fn pod_level_settings_replace_the_sum() {
        let spec = spec(json!({
            "resources": {"requests": {"cpu": "2", "storage": "1Gi"}},
            "containers": [{"name": "c", "resources": cpu(200)}],
        }));
        assert_eq!(pod_requests(&spec)[CPU].value(), 2);
        assert_eq!(pod_requests(&spec).get("storage"), None);
    }
}
