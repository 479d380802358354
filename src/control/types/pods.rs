//! pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;

use super::cells::{age, integer, items, name, none_if_empty, or_none, own_age};
use crate::{
    api::{
        defaults::set_pod_defaults,
        qos::qos_class,
        update::{Scope, validate_update},
        validation::{FieldError, validate_pod},
    },
    control::registry::{
        resource::{Action, Column, Kind, NAME, Part, Resource, STATUS, Subresource, column, wide},
        text,
    },
};

impl Kind for Pod {
    fn begin(&mut self) {
        let class = Some(qos_class(self.spec.get_or_insert_default()).to_string());
        self.status = Some(PodStatus { phase: Some("Pending".to_owned()), qos_class: class, ..PodStatus::default() });
    }

    fn set_defaults(&mut self) {
        set_pod_defaults(self);
        // Whether limits stand for requests is known only now.
        let class = self.spec.as_ref().map(|spec| qos_class(spec).to_string());
        if let Some(status) = &mut self.status
            && status.qos_class.is_some()
        {
            status.qos_class = class;
        }
    }

    fn validate(&self) -> Vec<FieldError> {
        validate_pod(self)
    }

    fn validate_update(&self, old: &Self, part: Part) -> Vec<FieldError> {
        let scope = match part {
            Part::EphemeralContainers => Scope::EphemeralContainers,
            Part::Resize => Scope::Resize,
            Part::Whole | Part::Status | Part::Finalize => Scope::Pod,
        };
        validate_update(old, self, scope).err().unwrap_or_default()
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready"),
    column("Status"),
    column("Restarts"),
    column("Age"),
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

/// v1 Pod.
pub static PODS: Resource = Resource {
    short: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource { name: "binding", action: Action::Binding },
        Subresource { name: "ephemeralcontainers", action: Action::Part(Part::EphemeralContainers) },
        Subresource { name: "eviction", action: Action::Eviction },
        Subresource { name: "resize", action: Action::Part(Part::Resize) },
        STATUS,
    ],
    generation: true,
    grace: Some(grace),
    returns_deleted: true,
    fields: &[
        ("spec.nodeName", ""),
        ("spec.restartPolicy", ""),
        ("spec.schedulerName", ""),
        ("spec.serviceAccountName", ""),
        ("spec.hostNetwork", "false"),
        ("status.phase", ""),
        ("status.podIP", ""),
        ("status.nominatedNodeName", ""),
    ],
    columns: COLUMNS,
    cells,
    ..Resource::of::<Pod>("pods", "pod", true)
};

/// How long a pod has to end: what the client says, or the pod; none that no node has, or that has ended.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let phase = text(pod, "status.phase");
    if text(pod, "spec.nodeName").is_empty() || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    // A negative time means the shortest one.
    let seconds = asked.unwrap_or(own);
    if seconds < 0 { 1 } else { seconds }
}

/// What is shown of a pod's containers.
struct Shown {
    reason: String,
    ready: i64,
    total: i64,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Shown {
    fn count(&mut self, status: &Value) {
        self.restarts += integer(status, "restartCount");
        let ended = text(status, "lastState.terminated.finishedAt").parse().ok();
        self.last_restart = self.last_restart.max(ended);
    }
}

fn is_sidecar(pod: &Value, container: &str) -> bool {
    let found = items(&pod["spec"]["initContainers"]).iter().find(|init| init["name"] == container);
    found.is_some_and(|init| init["restartPolicy"] == "Always")
}

fn ended(state: &Value) -> String {
    let terminated = &state["terminated"];
    match (text(terminated, "reason"), integer(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", integer(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn condition<'v>(pod: &'v Value, kind: &str) -> Option<&'v Value> {
    items(&pod["status"]["conditions"]).iter().find(|condition| condition["type"] == kind)
}

fn shown(pod: &Value) -> Shown {
    let status = &pod["status"];
    let phase = text(status, "phase");
    let mut reason = text(status, "reason");
    if reason.is_empty() {
        reason = phase;
    }
    if condition(pod, "PodScheduled").is_some_and(|scheduled| scheduled["reason"] == "SchedulingGated") {
        reason = "SchedulingGated";
    }
    let inits = items(&pod["spec"]["initContainers"]);
    let sidecars = inits.iter().filter(|init| init["restartPolicy"] == "Always").count();
    let total = items(&pod["spec"]["containers"]).len() + sidecars;
    let mut found = Shown { reason: reason.to_owned(), ready: 0, total: total as i64, restarts: 0, last_restart: None };
    let mut of_sidecars = Shown { reason: String::new(), ready: 0, total: 0, restarts: 0, last_restart: None };
    let mut initializing = false;
    for (index, container) in items(&status["initContainerStatuses"]).iter().enumerate() {
        let state = &container["state"];
        found.count(container);
        let sidecar = is_sidecar(pod, text(container, "name"));
        if sidecar {
            of_sidecars.count(container);
        }
        if state.get("terminated").is_some() && integer(state, "terminated.exitCode") == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            found.ready += i64::from(container["ready"] == true);
            continue;
        }
        let waiting = text(state, "waiting.reason");
        found.reason = if state.get("terminated").is_some() {
            format!("Init:{}", ended(state))
        } else if !matches!(waiting, "" | "PodInitializing") {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", inits.len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition(pod, "Initialized").is_some_and(|initialized| initialized["status"] == "True") {
        found.restarts = of_sidecars.restarts;
        found.last_restart = of_sidecars.last_restart;
        let mut running = false;
        for container in items(&status["containerStatuses"]).iter().rev() {
            found.count(container);
            let state = &container["state"];
            let waiting = text(state, "waiting.reason");
            if !waiting.is_empty() {
                found.reason = waiting.to_owned();
            } else if state.get("terminated").is_some() {
                found.reason = ended(state);
            } else if container["ready"] == true && state.get("running").is_some() {
                running = true;
                found.ready += 1;
            }
        }
        if found.reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True");
            found.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if !text(pod, "metadata.deletionTimestamp").is_empty() {
        if text(status, "reason") == "NodeLost" {
            found.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            found.reason = "Terminating".to_owned();
        }
    }
    found
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let shown = shown(pod);
    let restarts = match shown.last_restart.filter(|_| shown.restarts > 0) {
        Some(last) => {
            let ago = age(&last.to_string().into(), now);
            format!("{} ({} ago)", shown.restarts, ago.as_str().unwrap_or_default())
        }
        None => shown.restarts.to_string(),
    };
    let gates = items(&pod["spec"]["readinessGates"]);
    let passed = gates
        .iter()
        .filter(|gate| condition(pod, text(gate, "conditionType")).is_some_and(|found| found["status"] == "True"))
        .count();
    let gates = if gates.is_empty() { String::new() } else { format!("{passed}/{}", gates.len()) };
    vec![
        name(pod),
        format!("{}/{}", shown.ready, shown.total).into(),
        shown.reason.into(),
        restarts.into(),
        own_age(pod, now),
        or_none(pod, "status.podIP"),
        or_none(pod, "spec.nodeName"),
        or_none(pod, "status.nominatedNodeName"),
        none_if_empty(gates),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(status: Value) -> Vec<String> {
        let pod = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}],
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
            "status": status,
        });
        let cells = cells(&pod, "2026-01-01T01:00:00Z".parse().unwrap());
        cells[1..4].iter().map(|cell| cell.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_pod_is_shown_as_kubectl_shows_it() {
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let sidecar = json!({"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}});
        let running = |name: &str| {
            json!({"name": name, "ready": true, "restartCount": 1, "state": {"running": {}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:30:00Z"}}})
        };
        for (status, expected) in [
            (json!({"phase": "Pending"}), ["0/3", "Pending", "0"]),
            (json!({"phase": "Failed", "reason": "Evicted"}), ["0/3", "Evicted", "0"]),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
                ["0/3", "Init:0/2", "0"],
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 3}}}]}),
                ["0/3", "Init:ExitCode:3", "2"],
            ),
            (
                json!({"phase": "Running", "initContainerStatuses": [done, sidecar],
                    "containerStatuses": [running("a"), running("b")]}),
                ["3/3", "Running", "3 (30m ago)"],
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running("a"),
                    {"name": "b", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                ["1/3", "CrashLoopBackOff", "1 (30m ago)"],
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                ["0/3", "Completed", "0"],
            ),
        ] {
            assert_eq!(row(status.clone()), expected, "{status}");
        }
    }

    #[test]
    fn only_a_pod_of_a_node_takes_time_to_end() {
        let on_node =
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}, "status": {"phase": "Running"}});
        assert_eq!((grace(&on_node, None), grace(&on_node, Some(0)), grace(&on_node, Some(-1))), (7, 0, 1));
        assert_eq!(grace(&json!({"spec": {}}), Some(30)), 0);
        assert_eq!(grace(&json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), None), 0);
    }
}
