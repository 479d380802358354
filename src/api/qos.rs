//! Quality-of-service class of a pod.

use std::fmt;

use k8s_openapi::api::core::v1::PodSpec;
use serde::{Deserialize, Serialize};

use super::{
    quantity::Quantity,
    resources::{CPU, MEMORY, Resources, is_pod_level, limits, requests},
};

/// The class that decides a pod's cgroup parent and OOM score (`status.qosClass`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container has limits equal to requests for cpu and memory.
    Guaranteed,
    /// Some request or limit is set.
    Burstable,
    /// Nothing is set.
    BestEffort,
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        })
    }
}

/// Only these decide the class; the index is the place in [`Sums`].
const DECISIVE: [&str; 2] = [CPU, MEMORY];

/// Sums of [`DECISIVE`] resources; `None` where nothing above zero was set.
type Sums = [Option<Quantity>; 2];

/// The class of a pod, by upstream's rules: cpu and memory alone count, an amount of zero counts as not set, init
/// containers count like the others. Resources set for the pod as a whole (KEP-2837) go before those of containers.
/// `spec` must have its defaults (requests from limits).
pub fn qos_class(spec: &PodSpec) -> QosClass {
    let (mut requested, mut limited) = (Sums::default(), Sums::default());
    let mut all_limited = true;
    let of_pod = spec.resources.as_ref().filter(|resources| {
        let names = [&resources.requests, &resources.limits].into_iter().flatten().flat_map(|list| list.keys());
        names.into_iter().any(|name| is_pod_level(name))
    });
    let of_containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let counted = match of_pod {
        Some(resources) => vec![Some(resources)],
        None => of_containers.map(|container| container.resources.as_ref()).collect(),
    };
    for resources in counted {
        count(&mut requested, &requests(resources));
        all_limited &= count(&mut limited, &limits(resources)) == DECISIVE.len();
    }
    if requested.iter().chain(&limited).all(Option::is_none) {
        return QosClass::BestEffort;
    }
    if all_limited && requested == limited { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// Adds what is set to the sums and says how many of the decisive resources are.
fn count(sums: &mut Sums, amounts: &Resources) -> usize {
    let mut set = 0;
    for (sum, name) in sums.iter_mut().zip(DECISIVE) {
        if let Some(amount) = amounts.get(name).filter(|amount| **amount > Quantity::ZERO) {
            *sum = Some(sum.unwrap_or_default() + *amount);
            set += 1;
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use QosClass::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn classes_follow_from_cpu_and_memory_alone() {
        let both = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
        let equal = json!({"requests": both("1", "1Gi"), "limits": both("1000m", "1024Mi")});
        let case = |sentence: &str, resources: &[Value], init: &[Value], expected: QosClass| {
            let containers =
                |list: &[Value]| list.iter().map(|one| json!({"name": "c", "resources": one})).collect::<Vec<_>>();
            let spec = json!({"containers": containers(resources), "initContainers": containers(init)});
            assert_eq!(qos_class(&serde_json::from_value(spec).unwrap()), expected, "{sentence}");
        };
        case("nothing set", &[json!({})], &[], BestEffort);
        case("zero counts as not set", &[json!({"requests": both("0", "0"), "limits": {"cpu": "0"}})], &[], BestEffort);
        case(
            "other resources do not count",
            &[json!({"requests": {"hugepages-2Mi": "2Mi", "ephemeral-storage": "1Gi"}})],
            &[],
            BestEffort,
        );
        case("limits equal to requests", std::slice::from_ref(&equal), &[], Guaranteed);
        case("one container of two without anything", &[equal.clone(), json!({})], &[], Burstable);
        case("an init container without anything", std::slice::from_ref(&equal), &[json!({})], Burstable);
        case(
            "an init container like the others",
            std::slice::from_ref(&equal),
            std::slice::from_ref(&equal),
            Guaranteed,
        );
        case("only a request", &[json!({"requests": {"cpu": "1m"}})], &[], Burstable);
        case("only cpu limited", &[json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1"}})], &[], Burstable);
        case(
            "less requested than allowed",
            &[json!({"requests": both("500m", "1Gi"), "limits": both("1", "1Gi")})],
            &[],
            Burstable,
        );
    }

    #[test]
    fn resources_of_the_pod_go_before_those_of_its_containers() {
        let spec = json!({
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1m"}}}],
        });
        assert_eq!(qos_class(&serde_json::from_value(spec).unwrap()), Guaranteed);
    }
}
