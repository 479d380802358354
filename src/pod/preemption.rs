//! Which pods have to go so that a critical one can run, as upstream's node agent chooses them
//! (`pkg/kubelet/preemption`): of the lowest class of service first, as few as possible, and of those that would do the
//! one that asks for least.

use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::admission::PODS;
use crate::api::{
    qos::{QosClass, qos_class},
    quantity::Quantity,
    resources::{CPU, MEMORY, pod_requests},
};

/// Pods of this priority and above are critical (upstream's `SystemCriticalPriority`).
pub const CRITICAL: i32 = 2_000_000_000;
/// The two priority classes that exist everywhere.
const SYSTEM_CLASSES: [(&str, i32); 2] =
    [("system-cluster-critical", CRITICAL), ("system-node-critical", CRITICAL + 1000)];

/// What the status of a preempted pod says.
const MESSAGE: &str = "Preempted in order to admit critical pod";
/// What its condition `DisruptionTarget` says.
const CONDITION: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// Priority of a pod: the number in its spec, or that of a system class. Other classes are objects of an API server,
/// which writes the number; without one they mean 0, as none does.
pub fn priority(spec: &PodSpec) -> i32 {
    let class = spec.priority_class_name.as_deref().unwrap_or_default();
    let system = || SYSTEM_CLASSES.iter().find(|(name, _)| *name == class).map(|(_, priority)| *priority);
    spec.priority.or_else(system).unwrap_or_default()
}

/// Whether room is made for a pod. Upstream counts every static pod as critical, because an API server's pods are the
/// rule there; here static pods may be all there is, and their priority decides.
pub fn is_critical(spec: &PodSpec) -> bool {
    priority(spec) >= CRITICAL
}

/// Why a pod that ran has to go: phase Failed with this reason and message, and the condition `DisruptionTarget`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Eviction {
    /// `Preempting`, `Evicted`.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Message of the condition `DisruptionTarget`, whose reason is `TerminationByKubelet`; `None`: the pod has brought
    /// it upon itself, and has no such condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// When it was decided.
    pub at: Timestamp,
    /// Seconds it has to stop at most; `None`: its own grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<i64>,
}

impl Eviction {
    /// Of a pod that goes for a critical one.
    pub fn preempted(at: Timestamp) -> Eviction {
        let (message, condition) = (MESSAGE.to_owned(), Some(CONDITION.to_owned()));
        Eviction { reason: "Preempting".to_owned(), message, condition, at, grace: None }
    }
}

/// So much of a resource is missing: in thousandths for processors, in units for everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// `cpu`, `memory`, `pods`, …
    pub resource: String,
    /// How much.
    pub amount: i64,
}

/// No pods could go that have enough: these amounts would still be missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no set of running pods found to reclaim resources: {}", written(.0))]
pub struct NotEnough(pub Vec<Missing>);

fn written(missing: &[Missing]) -> String {
    let parts = missing.iter().map(|Missing { resource, amount }| format!("(res: {resource}, q: {amount}), "));
    format!("[{}]", parts.collect::<String>())
}

/// What a pod asks for, in the unit of [`Missing`].
pub fn amount(spec: &PodSpec, resource: &str) -> i64 {
    if resource == PODS {
        return 1;
    }
    pod_requests(spec).get(resource).map_or(0, |amount| in_unit(resource, amount))
}

/// An amount in the unit of [`Missing`].
pub fn in_unit(resource: &str, amount: &Quantity) -> i64 {
    if resource == CPU { amount.milli() } else { amount.value() }
}

/// The pods among `others` that have to end so that `missing` is there for `preemptor`.
///
/// # Errors
/// All that may be ended would not be enough.
pub fn victims<'p>(preemptor: &PodSpec, others: &[&'p Pod], missing: &[Missing]) -> Result<Vec<&'p Pod>, NotEnough> {
    let empty = PodSpec::default();
    let mut candidates: Vec<Candidate<'p>> = Vec::new();
    for pod in others {
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        if is_critical(preemptor) && (!is_critical(spec) || priority(preemptor) > priority(spec)) {
            candidates.push(Candidate { pod, spec: pod.spec.as_ref(), class: qos_class(spec) });
        }
    }
    let of = |class: QosClass| candidates.iter().copied().filter(|other| other.class == class).collect::<Vec<_>>();
    let [best_effort, burstable, guaranteed] =
        [QosClass::BestEffort, QosClass::Burstable, QosClass::Guaranteed].map(of);
    let rest = without(missing, &candidates);
    if !rest.is_empty() {
        return Err(NotEnough(rest));
    }
    // Those of the higher classes only for what all lower ones together do not give, then back down.
    let lower: Vec<_> = best_effort.iter().chain(&burstable).copied().collect();
    let guaranteed = fewest(guaranteed, without(missing, &lower))?;
    let given: Vec<_> = best_effort.iter().chain(&guaranteed).copied().collect();
    let burstable = fewest(burstable, without(missing, &given))?;
    let given: Vec<_> = burstable.iter().chain(&guaranteed).copied().collect();
    let best_effort = fewest(best_effort, without(missing, &given))?;
    Ok(best_effort.into_iter().chain(burstable).chain(guaranteed).map(|candidate| candidate.pod).collect())
}

#[derive(Clone, Copy)]
struct Candidate<'p> {
    pod: &'p Pod,
    spec: Option<&'p PodSpec>,
    class: QosClass,
}

impl Candidate<'_> {
    fn amount(&self, resource: &str) -> i64 {
        self.spec.map_or(0, |spec| amount(spec, resource))
    }
}

/// What is still missing when these pods are gone.
fn without(missing: &[Missing], gone: &[Candidate]) -> Vec<Missing> {
    let left = |missing: &Missing| {
        let given: i64 = gone.iter().map(|candidate| candidate.amount(&missing.resource)).fold(0, i64::saturating_add);
        Missing { amount: missing.amount.saturating_sub(given), ..missing.clone() }
    };
    missing.iter().map(left).filter(|missing| missing.amount > 0).collect()
}

/// Takes, again and again, the pod that leaves least of what is missing.
fn fewest<'p>(mut from: Vec<Candidate<'p>>, mut missing: Vec<Missing>) -> Result<Vec<Candidate<'p>>, NotEnough> {
    let mut taken = Vec::new();
    while !missing.is_empty() {
        let mut best: Option<(f64, usize)> = None;
        for (index, candidate) in from.iter().enumerate() {
            let distance = distance(&missing, candidate);
            let better = best.is_none_or(|(least, known)| {
                distance < least || distance == least && asks_for_less(candidate, &from[known])
            });
            if better {
                best = Some((distance, index));
            }
        }
        let Some((_, index)) = best else { return Err(NotEnough(missing)) };
        let candidate = from.swap_remove(index);
        missing = without(&missing, &[candidate]);
        taken.push(candidate);
    }
    Ok(taken)
}

/// How far a pod is from giving everything that is missing: the squares of the parts it leaves, so that each resource
/// counts the same.
fn distance(missing: &[Missing], candidate: &Candidate) -> f64 {
    let part = |missing: &Missing| {
        let left = missing.amount.saturating_sub(candidate.amount(&missing.resource)).max(0);
        (left as f64 / missing.amount as f64).powi(2)
    };
    missing.iter().map(part).sum()
}

fn asks_for_less(one: &Candidate, other: &Candidate) -> bool {
    let amounts = |candidate: &Candidate| [MEMORY, CPU].map(|resource| candidate.amount(resource));
    amounts(one) <= amounts(other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A pod by its name, priority, and milli-CPU and MiB asked for; `limits` makes it Guaranteed.
    fn pod(name: &str, priority: i32, cpu: i64, memory: i64, limits: bool) -> Pod {
        let amounts = json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
        let resources = match (cpu + memory, limits) {
            (0, _) => json!({}),
            (_, true) => json!({"requests": amounts, "limits": amounts}),
            (_, false) => json!({"requests": amounts}),
        };
        let spec = json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn critical() -> PodSpec {
        PodSpec { priority_class_name: Some("system-node-critical".to_owned()), ..PodSpec::default() }
    }

    fn names(others: &[Pod], missing: &[(&str, i64)]) -> Result<Vec<String>, String> {
        let missing: Vec<Missing> = missing
            .iter()
            .map(|(resource, amount)| Missing { resource: (*resource).to_owned(), amount: *amount })
            .collect();
        let others: Vec<&Pod> = others.iter().collect();
        let victims = victims(&critical(), &others, &missing).map_err(|error| error.to_string())?;
        Ok(victims.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect())
    }

    #[test]
    fn priority_is_the_number_or_that_of_a_system_class() {
        let of = |class: Option<&str>, number: Option<i32>| {
            priority(&PodSpec { priority_class_name: class.map(str::to_owned), priority: number, ..PodSpec::default() })
        };
        assert_eq!(of(Some("system-cluster-critical"), None), 2_000_000_000);
        assert_eq!(of(Some("system-node-critical"), None), 2_000_001_000);
        assert_eq!(of(Some("mine"), None), 0);
        assert_eq!(of(Some("mine"), Some(7)), 7);
        assert!(is_critical(&critical()) && !is_critical(&PodSpec::default()));
    }

    #[test]
    fn the_lowest_class_of_service_goes_first() {
        let others =
            [pod("guaranteed", 0, 500, 50, true), pod("burstable", 0, 500, 50, false), pod("none", 0, 0, 0, false)];
        assert_eq!(names(&others, &[("cpu", 400)]).unwrap(), ["burstable"]);
        assert_eq!(names(&others, &[("pods", 1)]).unwrap(), ["none"]);
        assert_eq!(names(&others, &[("cpu", 600)]).unwrap(), ["burstable", "guaranteed"]);
    }

    #[test]
    fn one_that_is_enough_is_better_than_two_and_the_smaller_of_two_is_better() {
        let others = [
            pod("small", 0, 100, 10, false),
            pod("large", 0, 900, 90, false),
            pod("fitting", 0, 500, 50, false),
            pod("same-cpu", 0, 500, 70, false),
        ];
        assert_eq!(names(&others, &[("cpu", 450)]).unwrap(), ["fitting"]);
        assert_eq!(names(&others, &[("cpu", 800)]).unwrap(), ["large"]);
        assert_eq!(names(&others, &[("cpu", 100), ("memory", 60 << 20)]).unwrap(), ["same-cpu"]);
        assert_eq!(names(&others, &[]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn other_critical_pods_stay_unless_they_are_less_so() {
        let others = [pod("equal", CRITICAL + 1000, 500, 50, false), pod("less", CRITICAL, 500, 50, false)];
        assert_eq!(names(&others, &[("cpu", 500)]).unwrap(), ["less"]);
        assert_eq!(
            names(&others, &[("cpu", 600), ("memory", 1)]).unwrap_err(),
            "no set of running pods found to reclaim resources: [(res: cpu, q: 100), ]"
        );
    }
}
