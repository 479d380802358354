//! What the cgroups of a pod and of its containers are limited to.
//!
//! The rules are upstream's (`ResourceConfigForPod` and the resources it hands to the runtime with a container): weight
//! from requests, quota from limits, and a pod limited as a whole only when each of its containers is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;

use super::container_ref::ContainerRef;
use crate::{
    api::{
        qos::{QosClass, qos_class},
        quantity::Quantity,
        resources::{
            CPU, HUGEPAGES_PREFIX, MEMORY, Resources, all_limited, limits, pod_limits as sum_of_limits, pod_requests,
            requests,
        },
    },
    cgroup::limits::{
        CpuLimits, DEFAULT_PERIOD_MICROS, DeviceAccess, HugePageLimit, LeafLimits, MemoryQuality, PodLimits,
    },
};

/// Settings of the node that decide about limits.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitOptions {
    /// cpuCFSQuota: whether processor limits are enforced at all.
    pub cpu_quota: bool,
    /// cpuCFSQuotaPeriod in microseconds.
    pub cpu_period: u64,
    /// podPidsLimit; `None` (upstream's -1) for no limit.
    pub pod_pids: Option<u64>,
    /// singleProcessOOMKill: an OOM kill takes one process rather than the whole container.
    pub single_process_oom_kill: bool,
    /// Sizes, in bytes, of the huge pages this node has in stock. Who asks for none of a size may not use it.
    pub huge_page_sizes: Vec<u64>,
    /// swapBehavior LimitedSwap: the node's memory and swap, bytes. `None` (NoSwap): nobody swaps.
    pub limited_swap: Option<(u64, u64)>,
    /// memoryThrottlingFactor: where between its request and its limit a container is slowed down. `None`: nowhere.
    pub throttling: Option<f64>,
    /// memoryReservationPolicy TieredReservation: requested memory is kept.
    pub reserve_memory: bool,
    /// What pods may have together of memory, bytes: stands for the limit of a container without one.
    pub allocatable_memory: u64,
    /// Bytes of a page.
    pub page_size: u64,
}

impl Default for LimitOptions {
    fn default() -> LimitOptions {
        LimitOptions {
            cpu_quota: true,
            cpu_period: DEFAULT_PERIOD_MICROS,
            pod_pids: None,
            single_process_oom_kill: false,
            huge_page_sizes: Vec::new(),
            limited_swap: None,
            throttling: None,
            reserve_memory: false,
            allocatable_memory: 0,
            page_size: 4096,
        }
    }
}

impl LimitOptions {
    /// The same, without a quota if `exclusive`: who has processors for itself cannot take time from anybody, and a quota
    /// would only throttle it at the end of each period (upstream's `DisableCPUQuotaWithExclusiveCPUs`).
    pub fn without_quota(self, exclusive: bool) -> LimitOptions {
        LimitOptions { cpu_quota: self.cpu_quota && !exclusive, ..self }
    }
}

/// Limits of the pod as a whole. `spec` has its defaults.
pub fn pod_limits(spec: &PodSpec, options: &LimitOptions) -> PodLimits {
    let (requested, limited) = (pod_requests(spec), sum_of_limits(spec));
    let best_effort = qos_class(spec) == QosClass::BestEffort;
    let of_pod = limits(spec.resources.as_ref());
    let set_for_pod = |resource: &str| of_pod.get(resource).is_some_and(|limit| !limit.is_zero());
    let is_limited = |resource: &str| !best_effort && (set_for_pod(resource) || all_limited(spec, resource));
    let request = bytes(&requested, MEMORY).unwrap_or(0);
    let slowed = set_for_pod(MEMORY) || requests(spec.resources.as_ref()).contains_key(MEMORY);
    let high = || high(qos_class(spec), request, bytes(&limited, MEMORY), options);
    PodLimits {
        cpu: CpuLimits {
            request_milli: requested.get(CPU).map_or(0, milli),
            limit_milli: cpu_limit(&limited, options).filter(|_| is_limited(CPU)),
            period_micros: options.cpu_period,
        },
        memory: bytes(&limited, MEMORY).filter(|_| is_limited(MEMORY)),
        pids: options.pod_pids,
        huge_pages: huge_pages(&requested, options),
        quality: MemoryQuality { high: high().filter(|_| slowed), ..kept(qos_class(spec), request, options) },
    }
}

/// Limits of one container. What it does not limit itself is limited for it as for the pod as a whole.
pub fn leaf_limits(spec: &PodSpec, container: ContainerRef<'_>, options: &LimitOptions) -> LeafLimits {
    let requested = requests(container.resources());
    let mut limited = limits(spec.resources.as_ref());
    limited.extend(limits(container.resources()).into_iter().filter(|(_, limit)| !limit.is_zero()));
    let privileged = container.security_context().and_then(|context| context.privileged) == Some(true);
    let class = qos_class(spec);
    let (request, limit) = (bytes(&requested, MEMORY).unwrap_or(0), bytes(&limited, MEMORY));
    LeafLimits {
        cpu: CpuLimits {
            // Who only has a limit asks for as much.
            request_milli: requested.get(CPU).or_else(|| limited.get(CPU)).map_or(0, milli),
            limit_milli: cpu_limit(&limited, options),
            period_micros: options.cpu_period,
        },
        memory: limit,
        swap: swap(spec, container, options),
        quality: MemoryQuality { high: high(class, request, limit, options), ..kept(class, request, options) },
        pids: None,
        huge_pages: huge_pages(&limited, options),
        cpuset: None,
        oom_group: !options.single_process_oom_kill,
        devices: if privileged { DeviceAccess::All } else { DeviceAccess::Default },
    }
}

/// Swap of a container with LimitedSwap, by upstream's rule: a share of the node's swap as large as that which its request
/// has of the node's memory, for containers of Burstable pods that ask for less memory than they may use.
fn swap(spec: &PodSpec, container: ContainerRef<'_>, options: &LimitOptions) -> u64 {
    let Some((memory, swap)) = options.limited_swap.filter(|(memory, _)| *memory > 0) else { return 0 };
    let of = |list: Resources| bytes(&list, MEMORY).unwrap_or(0);
    let (request, limit) = (of(requests(container.resources())), of(limits(container.resources())));
    if qos_class(spec) != QosClass::Burstable || is_critical(spec) || request == limit {
        return 0;
    }
    (request as f64 / memory as f64 * swap as f64) as u64
}

/// Pods that the node or the cluster cannot do without (upstream's `IsCriticalPodBasedOnPriority`).
fn is_critical(spec: &PodSpec) -> bool {
    const SYSTEM_CRITICAL: i32 = 2_000_000_000;
    spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL)
        || matches!(spec.priority_class_name.as_deref(), Some("system-node-critical" | "system-cluster-critical"))
}

/// Memory that is kept (memoryReservationPolicy): for Guaranteed pods without fail, for Burstable ones as far as there is
/// any.
fn kept(class: QosClass, request: u64, options: &LimitOptions) -> MemoryQuality {
    match class {
        _ if !options.reserve_memory => MemoryQuality::default(),
        QosClass::Guaranteed => MemoryQuality { min: request, ..MemoryQuality::default() },
        QosClass::Burstable => MemoryQuality { low: request, ..MemoryQuality::default() },
        QosClass::BestEffort => MemoryQuality::default(),
    }
}

/// Where a container is slowed down: `request + factor · (limit − request)`, in whole pages. Not where it asks for all
/// that it may use.
fn high(class: QosClass, request: u64, limit: Option<u64>, options: &LimitOptions) -> Option<u64> {
    let factor = options.throttling.filter(|_| class == QosClass::Burstable)?;
    let limit = limit.unwrap_or(options.allocatable_memory);
    let above = limit.checked_sub(request).filter(|above| *above > 0)?;
    let high = request as f64 + factor * above as f64;
    let high = (high / options.page_size as f64).floor() as u64 * options.page_size;
    (high > request).then_some(high)
}

fn milli(amount: &Quantity) -> u64 {
    u64::try_from(amount.milli()).unwrap_or(0)
}

/// A limit of 0 is none.
fn cpu_limit(limited: &Resources, options: &LimitOptions) -> Option<u64> {
    limited.get(CPU).map(milli).filter(|limit| *limit > 0 && options.cpu_quota)
}

/// A limit in whole units; one of 0 is none.
fn bytes(limited: &Resources, name: &str) -> Option<u64> {
    u64::try_from(limited.get(name)?.value()).ok().filter(|limit| *limit > 0)
}

/// `hugepages-2Mi: 4Mi` as 4 MiB of pages of 2 MiB.
fn huge_pages(amounts: &Resources, options: &LimitOptions) -> Vec<HugePageLimit> {
    let size = |(name, amount): (&String, &Quantity)| {
        let page = Quantity::parse(name.strip_prefix(HUGEPAGES_PREFIX)?).ok()?;
        Some((u64::try_from(page.value()).ok()?, u64::try_from(amount.value()).ok()?))
    };
    let mut limits: BTreeMap<u64, u64> = options.huge_page_sizes.iter().map(|size| (*size, 0)).collect();
    limits.extend(amounts.iter().filter_map(size));
    limits.into_iter().map(|(page_size, limit)| HugePageLimit { page_size, limit }).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Container;
    use serde_json::{Value, json};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pod(containers: Value, init: Value) -> PodLimits {
        let spec = serde_json::from_value(json!({"containers": containers, "initContainers": init})).unwrap();
        pod_limits(&spec, &LimitOptions::default())
    }

    fn one(resources: Value) -> Value {
        json!([{"name": "app", "resources": resources}])
    }

    fn container(container: Value, options: &LimitOptions) -> LeafLimits {
        let mut container = container;
        container["name"] = json!("app");
        let container: Container = serde_json::from_value(container).unwrap();
        let spec = PodSpec { containers: vec![container.clone()], ..PodSpec::default() };
        leaf_limits(&spec, ContainerRef::App(0, &container), options)
    }

    #[test]
    fn a_pod_is_limited_when_all_of_its_containers_are() {
        let limited = json!({"requests": {"cpu": "250m", "memory": "1Mi"}, "limits": {"cpu": "500m", "memory": "2Mi"}});
        let both = pod(one(limited.clone()), one(limited.clone()));
        assert_eq!((both.cpu.request_milli, both.cpu.limit_milli, both.memory), (250, Some(500), Some(2 * MIB)));
        let half = pod(one(limited), one(json!({"limits": {"memory": "8Mi"}})));
        assert_eq!((half.cpu.request_milli, half.cpu.limit_milli, half.memory), (250, None, Some(8 * MIB)));
    }

    #[test]
    fn a_best_effort_pod_has_no_limit_but_for_huge_pages() {
        assert_eq!(pod(one(json!({})), json!([])), PodLimits::default());
        let pages = json!({"requests": {"hugepages-2Mi": "4Mi"}, "limits": {"hugepages-2Mi": "4Mi"}});
        let huge_pages = vec![HugePageLimit { page_size: 2 * MIB, limit: 4 * MIB }];
        assert_eq!(pod(one(pages), json!([])), PodLimits { huge_pages, ..PodLimits::default() });
    }

    #[test]
    fn a_container_has_its_own_values() {
        let case = |sentence: &str, resources: Value, request: u64, limit: Option<u64>, memory: Option<u64>| {
            let found = container(json!({"resources": resources}), &LimitOptions::default());
            let found = (found.cpu.request_milli, found.cpu.limit_milli, found.memory);
            assert_eq!(found, (request, limit, memory), "{sentence}");
        };
        let both = json!({"limits": {"cpu": "2", "memory": "1Mi"}});
        case("nothing", json!({}), 0, None, None);
        case("a request", json!({"requests": {"cpu": "1"}}), 1000, None, None);
        case("a limit alone stands for the request", both, 2000, Some(2000), Some(MIB));
        case("a request of 0 is one", json!({"requests": {"cpu": "0"}, "limits": {"cpu": "1"}}), 0, Some(1000), None);
        case("a limit of 0 is none", json!({"limits": {"cpu": "0", "memory": "0"}}), 0, None, None);
        case("bytes are rounded up", json!({"limits": {"memory": "1500m"}}), 0, None, Some(2));
    }

    #[test]
    fn a_privileged_container_may_use_all_devices() {
        let devices = |context: Value| container(json!({"securityContext": context}), &LimitOptions::default()).devices;
        assert_eq!(devices(json!({})), DeviceAccess::Default);
        assert_eq!(devices(json!({"privileged": true})), DeviceAccess::All);
    }

    #[test]
    fn the_node_decides_about_quota_processes_and_pages() {
        let options = LimitOptions {
            cpu_quota: false,
            pod_pids: Some(100),
            single_process_oom_kill: true,
            huge_page_sizes: vec![2 * MIB, 1024 * MIB],
            ..LimitOptions::default()
        };
        let limited = json!({"limits": {"cpu": "1", "memory": "1Mi", "hugepages-2Mi": "2Mi"}});
        let spec = serde_json::from_value(json!({"containers": one(limited.clone())})).unwrap();
        let found = pod_limits(&spec, &options);
        assert_eq!((found.cpu.limit_milli, found.memory, found.pids), (None, Some(MIB), Some(100)));
        let leaf = container(json!({"resources": limited}), &options);
        assert!(!leaf.oom_group);
        let pages = [(2 * MIB, 2 * MIB), (1024 * MIB, 0)];
        assert_eq!(leaf.huge_pages, pages.map(|(page_size, limit)| HugePageLimit { page_size, limit }));
    }

    #[test]
    fn who_has_processors_for_itself_has_no_quota() {
        let limited = json!({"limits": {"cpu": "2", "memory": "1Mi"}});
        let found = container(json!({"resources": limited}), &LimitOptions::default().without_quota(true));
        assert_eq!((found.cpu.request_milli, found.cpu.limit_milli, found.memory), (2000, None, Some(MIB)));
        let found = container(json!({"resources": limited}), &LimitOptions::default().without_quota(false));
        assert_eq!(found.cpu.limit_milli, Some(2000));
    }

    #[test]
    fn what_is_set_for_the_pod_limits_it_and_whoever_has_no_limit() {
        let spec: PodSpec = serde_json::from_value(json!({
            "resources": {"requests": {"cpu": "1", "memory": "8Mi"},
                "limits": {"cpu": "2", "memory": "16Mi", "hugepages-2Mi": "4Mi"}},
            "containers": [
                {"name": "own", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "4Mi"}}},
                {"name": "none"},
            ],
            "overhead": {"memory": "1Mi"},
        }))
        .unwrap();
        let options = LimitOptions::default();
        let found = pod_limits(&spec, &options);
        assert_eq!((found.cpu.request_milli, found.cpu.limit_milli, found.memory), (1000, Some(2000), Some(17 * MIB)));
        let leaf = |index: usize| leaf_limits(&spec, ContainerRef::App(index, &spec.containers[index]), &options);
        let (own, none) = (leaf(0), leaf(1));
        assert_eq!((own.cpu.request_milli, own.cpu.limit_milli, own.memory), (100, Some(500), Some(4 * MIB)));
        assert_eq!((none.cpu.request_milli, none.cpu.limit_milli, none.memory), (2000, Some(2000), Some(16 * MIB)));
        assert_eq!(none.huge_pages, [HugePageLimit { page_size: 2 * MIB, limit: 4 * MIB }]);
    }

    #[test]
    fn swap_follows_the_request_of_burstable_containers() {
        const GIB: u64 = 1 << 30;
        let options = LimitOptions { limited_swap: Some((80 * GIB, 4 * GIB)), ..LimitOptions::default() };
        let swap = |resources: Value| container(json!({"resources": resources}), &options).swap;
        assert_eq!(swap(json!({"requests": {"memory": "1Gi"}})), 53_687_091);
        assert_eq!(swap(json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}})), 53_687_091);
        assert_eq!(swap(json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}})), 0);
        assert_eq!(swap(json!({"requests": {"cpu": "1"}})), 0, "it asks for no memory");
        assert_eq!(swap(json!({})), 0, "best effort");
        let memory = json!({"requests": {"memory": "1Gi"}});
        assert_eq!(container(json!({"resources": memory}), &LimitOptions::default()).swap, 0, "NoSwap");
    }

    #[test]
    fn requested_memory_is_kept_and_what_lies_above_is_slowed_down() {
        let options = LimitOptions {
            throttling: Some(0.9),
            reserve_memory: true,
            allocatable_memory: 1000 * MIB,
            ..LimitOptions::default()
        };
        let quality = |resources: Value| container(json!({"resources": resources}), &options).quality;
        let memory = |request: &str, limit: &str| json!({"requests": {"memory": request}, "limits": {"memory": limit}});
        let found = quality(memory("100Mi", "200Mi"));
        assert_eq!(found, MemoryQuality { min: 0, low: 100 * MIB, high: Some(190 * MIB) });
        let found = quality(json!({"requests": {"memory": "100Mi"}}));
        assert_eq!(found.high, Some(910 * MIB), "of what the node has");
        let all = json!({"cpu": "1", "memory": "64Mi"});
        let found = quality(json!({"requests": all, "limits": all}));
        assert_eq!(found, MemoryQuality { min: 64 * MIB, low: 0, high: None });
        assert_eq!(quality(json!({})), MemoryQuality::default());
        let off = LimitOptions::default();
        let found = container(json!({"resources": memory("100Mi", "200Mi")}), &off).quality;
        assert_eq!(found, MemoryQuality::default());
    }
}
