//! Whether a pod may run on this node, decided once, before anything is done for it. Reasons and messages are those of
//! upstream's node agent (`pkg/kubelet/lifecycle/predicate.go`, `pkg/kubelet/sysctl`).
//!
//! A pod that runs is never judged again: what was admitted stays admitted when the facts of the node change.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use k8s_openapi::api::core::v1::{
    Container, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint,
};
use serde::{Deserialize, Serialize};

use super::{
    preemption::{self, Missing},
    taints,
};
use crate::api::{
    app_armor,
    quantity::Quantity,
    resources::{self, CPU, EPHEMERAL_STORAGE, MEMORY, Resources},
    sysctl::{self, is_allowed},
};

/// The resource that counts pods.
pub const PODS: &str = "pods";
/// Where upstream notes the source of a pod; one that did not come from an API server is static.
const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// Label with the node's operating system.
const OS_LABEL: &str = "kubernetes.io/os";

/// What admission has to know about the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// Name of the node.
    pub name: String,
    /// Labels of the node (`kubernetes.io/hostname`, `kubernetes.io/arch`, those of the configuration).
    pub labels: BTreeMap<String, String>,
    /// What pods may have together: `cpu`, `memory`, `pods`, `ephemeral-storage`, `hugepages-<size>`. One that is
    /// missing is not limited, but for huge pages, of which there are none then.
    pub allocatable: Resources,
    /// `allowedUnsafeSysctls` of the configuration; `kernel.msg*` stands for all that begin so.
    pub allowed_sysctls: Vec<String>,
    /// Taints of the node (`registerWithTaints`).
    pub taints: Vec<Taint>,
    /// Ports that something other than pods holds on the host.
    pub host_ports: Vec<HostPort>,
    /// The kernel enforces AppArmor profiles.
    pub app_armor: bool,
}

/// A port on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Address it is bound to; `None` for all.
    pub address: Option<IpAddr>,
    /// Number.
    pub port: i32,
}

impl HostPort {
    fn conflicts_with(&self, other: &HostPort) -> bool {
        let one_address = match (self.address, other.address) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.port == other.port && self.protocol == other.protocol && one_address
    }
}

/// Why a pod may not run here. It becomes the pod's status: phase Failed with this reason and message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Rejection {
    /// One word: `OutOfcpu`, `NodePorts`, `UnsupportedField`, …
    pub reason: String,
    /// A sentence.
    pub message: String,
}

fn reject<T>(reason: impl Into<String>, message: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection { reason: reason.into(), message: message.into() })
}

/// What stands against a pod on this node.
enum Obstacle {
    /// Too little of a resource is left. Amounts are in thousandths for processors, in units for everything else.
    Insufficient { resource: String, requested: i64, used: i64, capacity: i64 },
    /// Something that does not change when other pods go.
    Predicate { name: &'static str, description: &'static str },
}

impl Obstacle {
    fn rejection(&self) -> Rejection {
        match self {
            Obstacle::Insufficient { resource, requested, used, capacity } => Rejection {
                reason: format!("OutOf{resource}"),
                message: format!(
                    "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            },
            Obstacle::Predicate { name, description } => {
                Rejection { reason: (*name).to_owned(), message: format!("Predicate {name} failed: {description}") }
            }
        }
    }

    fn missing(&self) -> Option<Missing> {
        match self {
            Obstacle::Insufficient { resource, requested, used, capacity } => {
                Some(Missing { resource: resource.clone(), amount: requested - (capacity - used) })
            }
            Obstacle::Predicate { .. } => None,
        }
    }
}

/// Decides whether `pod` may run beside `others`, the pods admitted before that have not ended: with the pods among
/// them that have to end first, none usually. `unsupported` lists the fields of the pod that this version does not
/// honour; one is enough to reject it, for it would run otherwise than its author wrote.
///
/// # Errors
/// It may not, even if others went.
pub fn admit<'p>(
    pod: &Pod,
    others: &[&'p Pod],
    node: &NodeFacts,
    unsupported: &[impl fmt::Display],
) -> Result<Vec<&'p Pod>, Rejection> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let obstacles = judge(pod, spec, others, node, unsupported)?;
    let Some(first) = obstacles.first() else { return Ok(Vec::new()) };
    if !preemption::is_critical(spec) {
        return Err(first.rejection());
    }
    // Room can be made; for everything else it is too late.
    if let Some(lasting) = obstacles.iter().find(|obstacle| obstacle.missing().is_none()) {
        return Err(lasting.rejection());
    }
    let missing: Vec<Missing> = obstacles.iter().filter_map(Obstacle::missing).collect();
    preemption::victims(spec, others, &missing).or_else(|error| {
        reject(
            "UnexpectedAdmissionError",
            format!(
                "Unexpected error while attempting to recover from admission failure: \
                 preemption: error finding a set of pods to preempt: {error}"
            ),
        )
    })
}

/// Decides whether `pod` may run beside `others` without any of them going; as [`admit`] otherwise.
///
/// # Errors
/// It may not.
pub fn fits(pod: &Pod, others: &[&Pod], node: &NodeFacts, unsupported: &[impl fmt::Display]) -> Result<(), Rejection> {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let obstacles = judge(pod, spec, others, node, unsupported)?;
    obstacles.first().map_or(Ok(()), |first| Err(first.rejection()))
}

/// What stands against a pod that other pods have to do with.
///
/// # Errors
/// Something stands against it that they have nothing to do with.
fn judge(
    pod: &Pod,
    spec: &PodSpec,
    others: &[&Pod],
    node: &NodeFacts,
    unsupported: &[impl fmt::Display],
) -> Result<Vec<Obstacle>, Rejection> {
    operating_system(pod, spec)?;
    if !unsupported.is_empty() {
        let fields = unsupported.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return reject("UnsupportedField", fields);
    }
    sysctls(spec, node)?;
    app_armor(pod, node)?;
    Ok(obstacles(pod, spec, others, node))
}

/// All that stands against a pod; what is missing comes first.
fn obstacles(pod: &Pod, spec: &PodSpec, others: &[&Pod], node: &NodeFacts) -> Vec<Obstacle> {
    let mut obstacles = insufficient(spec, others, node);
    let mut lasting = |holds: bool, name, description| {
        if !holds {
            obstacles.push(Obstacle::Predicate { name, description });
        }
    };
    lasting(matches_node(spec, node), "NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    let named = spec.node_name.as_deref().is_none_or(|name| name.is_empty() || name == node.name);
    lasting(named, "NodeName", "node(s) didn't match the requested node name");
    let taken = others.iter().filter_map(|other| other.spec.as_ref()).flat_map(host_ports);
    let taken: Vec<HostPort> = taken.chain(node.host_ports.iter().cloned()).collect();
    let free = !host_ports(spec).any(|port| taken.iter().any(|other| port.conflicts_with(other)));
    lasting(free, "NodePorts", "node(s) didn't have free ports for the requested pod ports");
    // Whoever put a static pod here knew the node.
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let tolerated = is_static(pod) || taints::untolerated(&node.taints, tolerations).is_none();
    lasting(tolerated, "TaintToleration", "node(s) had taints that the pod didn't tolerate");
    obstacles
}

/// Whether a pod comes from a manifest rather than an API server.
fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SOURCE_ANNOTATION));
    source.is_some_and(|source| source != "api")
}

fn operating_system(pod: &Pod, spec: &PodSpec) -> Result<(), Rejection> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
    if label.is_some_and(|os| os != "linux") {
        return reject(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        );
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return reject("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    Ok(())
}

fn sysctls(spec: &PodSpec, node: &NodeFacts) -> Result<(), Rejection> {
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_deref()).unwrap_or_default();
    for sysctl in sysctls {
        let name = &sysctl.name;
        let why = match sysctl::namespace(name) {
            _ if !is_allowed(name, &node.allowed_sysctls) => "not allowlisted",
            // It would be the host's own.
            sysctl::Namespace::Ipc if spec.host_ipc == Some(true) => "not allowed with host ipc enabled",
            sysctl::Namespace::Net if spec.host_network == Some(true) => "not allowed with host net enabled",
            _ => continue,
        };
        return reject("SysctlForbidden", format!("forbidden sysctl: {name:?} {why}"));
    }
    Ok(())
}

/// A pod that asks to be confined must not run unconfined.
fn app_armor(pod: &Pod, node: &NodeFacts) -> Result<(), Rejection> {
    if app_armor::is_required(pod) && !node.app_armor {
        return reject("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
    }
    Ok(())
}

/// Of what the others leave too little for the pod, in upstream's order.
fn insufficient(spec: &PodSpec, others: &[&Pod], node: &NodeFacts) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if let Some(capacity) = node.allocatable.get(PODS).map(Quantity::value) {
        let used = i64::try_from(others.len()).unwrap_or(i64::MAX);
        if used >= capacity {
            found.push(Obstacle::Insufficient { resource: PODS.to_owned(), requested: 1, used, capacity });
        }
    }
    let requested = resources::pod_requests(spec);
    if requested.values().all(Quantity::is_zero) {
        return found;
    }
    let mut used = Resources::new();
    for other in others.iter().filter_map(|other| other.spec.as_ref()) {
        for (name, amount) in resources::pod_requests(other) {
            let sum = used.entry(name).or_default();
            *sum = *sum + amount;
        }
    }
    const FIRST: [&str; 3] = [CPU, MEMORY, EPHEMERAL_STORAGE];
    let rest = requested.keys().map(String::as_str).filter(|name| !FIRST.contains(name));
    for name in FIRST.into_iter().chain(rest) {
        let Some(request) = requested.get(name).filter(|request| !request.is_zero()) else { continue };
        let none = name.starts_with(resources::HUGEPAGES_PREFIX).then_some(Quantity::ZERO);
        let Some(capacity) = node.allocatable.get(name).copied().or(none) else { continue };
        let in_use = used.get(name).copied().unwrap_or_default();
        let [requested, used, capacity] = [request, &in_use, &capacity].map(|amount| preemption::in_unit(name, amount));
        if requested > capacity.saturating_sub(used) {
            found.push(Obstacle::Insufficient { resource: name.to_owned(), requested, used, capacity });
        }
    }
    found
}

/// Ports on the host that a pod holds for as long as it runs.
pub fn host_ports(spec: &PodSpec) -> impl Iterator<Item = HostPort> + '_ {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| resources::is_sidecar(container));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container: &Container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number != 0)?;
            let address = port.host_ip.as_deref().and_then(|address| address.parse::<IpAddr>().ok());
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                address: address.filter(|address| !address.is_unspecified()),
                port: number,
            })
        })
}

fn matches_node(spec: &PodSpec, node: &NodeFacts) -> bool {
    let selected = |(key, value): (&String, &String)| node.labels.get(key) == Some(value);
    if !spec.node_selector.iter().flatten().all(selected) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| matches_any(required, node))
}

/// Whether one of a selector's terms is met by the node.
pub fn matches_any(selector: &NodeSelector, node: &NodeFacts) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_term(term, node))
}

/// All requirements of a term must be met; an empty term is met by no node.
fn matches_term(term: &NodeSelectorTerm, node: &NodeFacts) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let has_name = |field: &NodeSelectorRequirement| field.key == "metadata.name" && meets(field, Some(&node.name));
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|expression| meets(expression, node.labels.get(&expression.key)))
        && fields.iter().all(has_name)
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |is: fn(&i64, &i64) -> bool| {
        let bound = values.first().and_then(|bound| bound.parse::<i64>().ok());
        let value = value.and_then(|value| value.parse::<i64>().ok());
        value.zip(bound).is_some_and(|(value, bound)| is(&value, &bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SUPPORTED: [&str; 0] = [];

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "spec": spec})).unwrap()
    }

    fn asking(resources: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": resources}}]}))
    }

    fn node() -> NodeFacts {
        let amount = |text| Quantity::parse(text).unwrap();
        NodeFacts {
            name: "n1".to_owned(),
            labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned()), ("cores".to_owned(), "4".to_owned())]),
            allocatable: Resources::from([
                (CPU.to_owned(), amount("2")),
                ("memory".to_owned(), amount("1Gi")),
                (PODS.to_owned(), amount("3")),
            ]),
            allowed_sysctls: vec!["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()],
            taints: Vec::new(),
            host_ports: Vec::new(),
            app_armor: false,
        }
    }

    /// How many have to go for it.
    fn admitted(pod: &Pod, others: &[&Pod], node: &NodeFacts, unsupported: &[&str]) -> Result<usize, Rejection> {
        admit(pod, others, node, unsupported).map(|victims| victims.len())
    }

    #[track_caller]
    fn rejected(pod: &Pod, others: &[&Pod], reason: &str, message: &str) {
        let rejection = admit(pod, others, &node(), &SUPPORTED).unwrap_err();
        assert_eq!((rejection.reason.as_str(), rejection.message.as_str()), (reason, message));
    }

    #[test]
    fn what_fits_is_admitted_up_to_the_last_bit() {
        let half = asking(json!({"cpu": "1", "memory": "512Mi"}));
        assert_eq!(admitted(&half, &[&half], &node(), &SUPPORTED), Ok(0));
        let nothing = asking(json!({"cpu": "0"}));
        assert_eq!(admitted(&nothing, &[&half, &half], &node(), &SUPPORTED), Ok(0));
        assert_eq!(
            admitted(&asking(json!({"example.com/gpu": "1"})), &[], &node(), &SUPPORTED),
            Ok(0),
            "not of this node"
        );
    }

    #[test]
    fn what_does_not_fit_is_rejected_with_the_numbers() {
        let half = asking(json!({"cpu": "1", "memory": "512Mi"}));
        rejected(
            &asking(json!({"cpu": "1500m"})),
            &[&half],
            "OutOfcpu",
            "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000",
        );
        rejected(
            &asking(json!({"memory": "1Gi"})),
            &[&half],
            "OutOfmemory",
            "Node didn't have enough resource: memory, requested: 1073741824, used: 536870912, capacity: 1073741824",
        );
        rejected(
            &asking(json!({"hugepages-2Mi": "2Mi"})),
            &[],
            "OutOfhugepages-2Mi",
            "Node didn't have enough resource: hugepages-2Mi, requested: 2097152, used: 0, capacity: 0",
        );
        let small = asking(json!({}));
        rejected(
            &small,
            &[&small, &small, &small],
            "OutOfpods",
            "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
        );
    }

    #[test]
    fn host_ports_conflict_by_protocol_and_address() {
        let holding = |port: Value| pod(json!({"containers": [{"name": "c", "ports": [port]}]}));
        let all = holding(json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        rejected(&all, &[&all], "NodePorts", message);
        let one = holding(json!({"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.1"}));
        rejected(&one, &[&all], "NodePorts", message);
        let any = holding(json!({"containerPort": 1, "hostPort": 80, "hostIP": "0.0.0.0"}));
        rejected(&any, &[&one], "NodePorts", message);
        for free in [
            json!({"containerPort": 80}),
            json!({"containerPort": 80, "hostPort": 81}),
            json!({"containerPort": 80, "hostPort": 80, "protocol": "UDP"}),
            json!({"containerPort": 80, "hostPort": 80, "hostIP": "127.0.0.2"}),
        ] {
            assert_eq!(admitted(&holding(free), &[&one], &node(), &SUPPORTED), Ok(0));
        }
    }

    #[test]
    fn selectors_and_affinity_must_match_the_node() {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        rejected(&pod(json!({"containers": [], "nodeSelector": {"disk": "hdd"}})), &[], "NodeAffinity", message);
        let required = |terms: Value| {
            pod(json!({"containers": [], "affinity": {"nodeAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}}))
        };
        let expression = |key: &str, operator: &str, values: &[&str]| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        for terms in [
            expression("disk", "In", &["ssd", "nvme"]),
            expression("disk", "NotIn", &["hdd"]),
            expression("gone", "NotIn", &["x"]),
            expression("disk", "Exists", &[]),
            expression("gone", "DoesNotExist", &[]),
            expression("cores", "Gt", &["3"]),
            expression("cores", "Lt", &["5"]),
            json!([{}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
        ] {
            assert_eq!(admitted(&required(terms.clone()), &[], &node(), &SUPPORTED), Ok(0), "{terms}");
        }
        for terms in [json!([{}]), expression("disk", "NotIn", &["ssd"]), expression("disk", "Gt", &["1"]), json!([])] {
            rejected(&required(terms), &[], "NodeAffinity", message);
        }
        rejected(
            &pod(json!({"containers": [], "nodeName": "n2"})),
            &[],
            "NodeName",
            "Predicate NodeName failed: node(s) didn't match the requested node name",
        );
    }

    #[test]
    fn unsafe_sysctls_need_to_be_allowed() {
        let with =
            |name: &str| pod(json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}));
        for name in ["net.ipv4.tcp_syncookies", "kernel/msgmax", "net.core.somaxconn"] {
            assert_eq!(admitted(&with(name), &[], &node(), &SUPPORTED), Ok(0), "{name}");
        }
        rejected(&with("kernel.sem"), &[], "SysctlForbidden", r#"forbidden sysctl: "kernel.sem" not allowlisted"#);
    }

    #[test]
    fn a_pod_that_asks_to_be_confined_needs_a_kernel_that_does_it() {
        let confined = |kind: &str| {
            pod(json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": kind}}}]}))
        };
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        rejected(&confined("RuntimeDefault"), &[], "AppArmor", message);
        assert_eq!(admitted(&confined("Unconfined"), &[], &node(), &SUPPORTED), Ok(0));
        let node = NodeFacts { app_armor: true, ..node() };
        assert_eq!(admitted(&confined("RuntimeDefault"), &[], &node, &SUPPORTED), Ok(0));
    }

    #[test]
    fn sysctls_of_a_namespace_that_is_the_hosts_are_refused() {
        let with = |name: &str, field: &str| {
            let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec[field] = json!(true);
            pod(spec)
        };
        rejected(
            &with("kernel.msgmax", "hostIPC"),
            &[],
            "SysctlForbidden",
            r#"forbidden sysctl: "kernel.msgmax" not allowed with host ipc enabled"#,
        );
        rejected(
            &with("net.core.somaxconn", "hostNetwork"),
            &[],
            "SysctlForbidden",
            r#"forbidden sysctl: "net.core.somaxconn" not allowed with host net enabled"#,
        );
        assert_eq!(admitted(&with("kernel.msgmax", "hostNetwork"), &[], &node(), &SUPPORTED), Ok(0));
    }

    #[test]
    fn taints_keep_out_pods_of_an_api_server_alone() {
        let mut tainted = node();
        let taint = json!({"key": "down", "effect": "NoExecute"});
        tainted.taints.push(serde_json::from_value(taint).unwrap());
        let of = |source: &str| {
            let mut pod = asking(json!({}));
            pod.metadata.annotations = Some(BTreeMap::from([(SOURCE_ANNOTATION.to_owned(), source.to_owned())]));
            pod
        };
        assert_eq!(admitted(&of("file"), &[], &tainted, &SUPPORTED), Ok(0));
        let rejection = admitted(&of("api"), &[], &tainted, &SUPPORTED).unwrap_err();
        assert_eq!(rejection.reason, "TaintToleration");
        assert_eq!(
            rejection.message,
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
        );
    }

    #[test]
    fn for_a_critical_pod_others_have_to_go() {
        let half = asking(json!({"cpu": "1", "memory": "512Mi"}));
        let mut critical = half.clone();
        critical.spec.as_mut().unwrap().priority = Some(preemption::CRITICAL);
        assert_eq!(admitted(&critical, &[&half], &node(), &SUPPORTED), Ok(0), "there is room");
        assert_eq!(admitted(&critical, &[&half, &half], &node(), &SUPPORTED), Ok(1));
        let small = asking(json!({}));
        assert_eq!(admitted(&critical, &[&small, &small, &small], &node(), &SUPPORTED), Ok(1), "room among the pods");
        rejected(
            &critical,
            &[&critical, &critical],
            "UnexpectedAdmissionError",
            "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of \
             pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 1000), (res: memory, \
             q: 536870912), ]",
        );
        critical.spec.as_mut().unwrap().node_name = Some("n2".to_owned());
        let message = "Predicate NodeName failed: node(s) didn't match the requested node name";
        rejected(&critical, &[&half, &half], "NodeName", message);
    }

    #[test]
    fn other_systems_and_unsupported_fields_are_rejected() {
        rejected(
            &pod(json!({"containers": [], "os": {"name": "windows"}})),
            &[],
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        );
        let rejection = admit(&asking(json!({})), &[], &node(), &["spec.volumes[0].nfs: …", "spec.x: …"]).unwrap_err();
        assert_eq!(rejection.to_string(), "UnsupportedField: spec.volumes[0].nfs: …; spec.x: …");
    }
}
