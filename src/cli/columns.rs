//! The columns of a pod as kubectl computes them (`printPod` in pkg/printers/internalversion).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::output::age_of;

/// What a row of the table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodColumns {
    /// `1/2`.
    pub ready: String,
    /// `Running`, `CrashLoopBackOff`, `Init:0/1`, …
    pub status: String,
    /// `3` or `3 (5m ago)`.
    pub restarts: String,
}

/// Computes them at `now`.
pub fn columns(pod: &Pod, now: Timestamp) -> PodColumns {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let init_total = pod.spec.as_ref().map_or(0, |spec| spec.init_containers.iter().flatten().count());

    let mut counted = Counted::default();
    let mut reason = status.reason.clone().filter(|reason| !reason.is_empty());
    let mut reason = reason.take().or_else(|| status.phase.clone()).unwrap_or_else(|| "Unknown".to_owned());
    let init_statuses = status.init_container_statuses.as_deref().unwrap_or_default();
    let mut initializing = false;
    let mut sidecar_restarts = Counted::default();
    for (index, init) in init_statuses.iter().enumerate() {
        let sidecar = sidecars.contains(&init.name.as_str());
        counted.restarted(init);
        if sidecar {
            sidecar_restarts.restarted(init);
        }
        let state = init.state.as_ref();
        let terminated = state.and_then(|state| state.terminated.as_ref());
        let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
        match (terminated, waiting) {
            (Some(terminated), _) if terminated.exit_code == 0 => continue,
            _ if sidecar && init.started == Some(true) => {
                counted.ready += usize::from(init.ready);
                continue;
            }
            (Some(terminated), _) => {
                let ended = terminated.reason.clone().filter(|reason| !reason.is_empty());
                reason = format!("Init:{}", ended.unwrap_or_else(|| end(terminated.signal, terminated.exit_code)));
            }
            (None, Some(waiting)) if !waiting.is_empty() && waiting != "PodInitializing" => {
                reason = format!("Init:{waiting}");
            }
            _ => reason = format!("Init:{index}/{init_total}"),
        }
        initializing = true;
        break;
    }
    if !initializing || has_condition(status, "Initialized") {
        counted.restarts = sidecar_restarts.restarts;
        counted.last = sidecar_restarts.last;
        let mut has_running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            counted.restarted(container);
            let state = container.state.as_ref();
            let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
            if let Some(waiting) = waiting.filter(|reason| !reason.is_empty()) {
                reason = waiting.to_owned();
            } else if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
                let ended = terminated.reason.clone().filter(|reason| !reason.is_empty());
                reason = ended.unwrap_or_else(|| end(terminated.signal, terminated.exit_code));
            } else if container.ready && state.is_some_and(|state| state.running.is_some()) {
                has_running = true;
                counted.ready += 1;
            }
        }
        if reason == "Completed" && has_running {
            reason = if has_condition(status, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
    let terminal = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if pod.metadata.deletion_timestamp.is_some() && !terminal {
        reason = "Terminating".to_owned();
    }
    PodColumns {
        ready: format!("{}/{}", counted.ready, containers + sidecars.len()),
        status: reason,
        restarts: match (counted.restarts, counted.last) {
            (0, _) | (_, None) => counted.restarts.to_string(),
            (restarts, last) => format!("{restarts} ({} ago)", age_of(last, now)),
        },
    }
}

#[derive(Default)]
struct Counted {
    ready: usize,
    restarts: i32,
    last: Option<Timestamp>,
}

impl Counted {
    fn restarted(&mut self, container: &ContainerStatus) {
        self.restarts += container.restart_count;
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        self.last = self.last.max(last.and_then(|terminated| terminated.finished_at.as_ref()).map(|time| time.0));
    }
}

fn end(signal: Option<i32>, exit_code: i32) -> String {
    match signal {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{exit_code}"),
    }
}

fn has_condition(status: &PodStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The columns of a pod with two containers whose status is `status`, as `READY STATUS RESTARTS`.
    fn row(status: Value) -> String {
        row_of(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": status}))
    }

    fn row_of(pod: Value) -> String {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let columns = columns(&pod, "2026-01-01T01:00:00Z".parse().unwrap());
        format!("{} {} {}", columns.ready, columns.status, columns.restarts)
    }

    fn container(name: &str, ready: bool, restarts: i32, state: Value) -> Value {
        json!({"name": name, "image": "i", "imageID": "", "ready": ready, "restartCount": restarts, "state": state})
    }

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    }

    fn waiting(reason: &str) -> Value {
        json!({"waiting": {"reason": reason}})
    }

    fn ended(code: i32, reason: &str) -> Value {
        json!({"terminated": {"exitCode": code, "reason": reason}})
    }

    #[test]
    fn the_phase_is_the_status_until_there_is_something_better() {
        assert_eq!(row(json!({"phase": "Pending"})), "0/2 Pending 0");
        assert_eq!(row(json!({"phase": "Failed", "reason": "Evicted"})), "0/2 Evicted 0");
        assert_eq!(row_of(json!({"spec": {"containers": []}})), "0/0 Unknown 0");
    }

    #[test]
    fn running_containers_count_when_they_are_ready() {
        let both = json!([container("a", true, 0, running()), container("b", false, 0, running())]);
        assert_eq!(row(json!({"phase": "Running", "containerStatuses": both})), "1/2 Running 0");
    }

    #[test]
    fn the_first_container_that_waits_or_has_ended_gives_the_reason() {
        for (state, status) in [
            (waiting("CrashLoopBackOff"), "CrashLoopBackOff"),
            (waiting("ContainerCreating"), "ContainerCreating"),
            (ended(1, "Error"), "Error"),
            (ended(137, "OOMKilled"), "OOMKilled"),
            (ended(3, ""), "ExitCode:3"),
            (json!({"terminated": {"exitCode": 137, "signal": 9}}), "Signal:9"),
        ] {
            let statuses = json!([container("a", false, 0, state), container("b", true, 0, running())]);
            let row = row(json!({"phase": "Running", "containerStatuses": statuses}));
            assert_eq!(row, format!("1/2 {status} 0"));
        }
    }

    #[test]
    fn completed_means_all_of_them() {
        let one = json!([container("a", false, 0, ended(0, "Completed")), container("b", true, 0, running())]);
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(row(json!({"phase": "Running", "containerStatuses": one})), "1/2 NotReady 0");
        assert_eq!(
            row(json!({"phase": "Running", "containerStatuses": one, "conditions": conditions})),
            "1/2 Running 0"
        );
        let all =
            json!([container("a", false, 0, ended(0, "Completed")), container("b", false, 0, ended(0, "Completed"))]);
        assert_eq!(row(json!({"phase": "Succeeded", "containerStatuses": all})), "0/2 Completed 0");
    }

    #[test]
    fn restarts_are_summed_and_say_when_the_last_was() {
        let mut first = container("a", true, 2, running());
        first["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:50:00Z"}});
        let mut second = container("b", true, 1, running());
        second["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:30:00Z"}});
        assert_eq!(row(json!({"phase": "Running", "containerStatuses": [first, second]})), "2/2 Running 3 (10m ago)");
    }

    #[test]
    fn init_containers_come_first() {
        let case = |init: Value, status: &str| {
            let pod = json!({
                "spec": {
                    "containers": [{"name": "a"}],
                    "initContainers": [{"name": "one"}, {"name": "two"}],
                },
                "status": {
                    "phase": "Pending",
                    "initContainerStatuses": init,
                    "containerStatuses": [container("a", false, 0, waiting("PodInitializing"))],
                },
            });
            assert_eq!(row_of(pod), format!("0/1 {status} 0"));
        };
        let pending = || container("two", false, 0, waiting("PodInitializing"));
        case(json!([container("one", false, 0, running()), pending()]), "Init:0/2");
        case(json!([container("one", false, 0, ended(0, "Completed")), pending()]), "Init:1/2");
        case(json!([container("one", false, 0, ended(1, "Error")), pending()]), "Init:Error");
        case(json!([container("one", false, 0, ended(2, "")), pending()]), "Init:ExitCode:2");
        case(json!([container("one", false, 0, waiting("CrashLoopBackOff")), pending()]), "Init:CrashLoopBackOff");
        let done = container("two", false, 0, ended(0, "Completed"));
        case(json!([container("one", false, 0, ended(0, "Completed")), done]), "PodInitializing");
    }

    #[test]
    fn a_sidecar_counts_as_a_container() {
        let mut sidecar = container("proxy", true, 1, running());
        sidecar["started"] = json!(true);
        let pod = json!({
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "proxy", "restartPolicy": "Always"}]},
            "status": {
                "phase": "Running",
                "initContainerStatuses": [sidecar],
                "containerStatuses": [container("a", true, 0, running())],
            },
        });
        assert_eq!(row_of(pod), "2/2 Running 1");
    }

    #[test]
    fn a_pod_that_is_deleted_is_terminating_until_it_has_ended() {
        let pod = |phase: &str| {
            json!({
                "metadata": {"deletionTimestamp": "2026-01-01T00:59:00Z"},
                "spec": {"containers": [{"name": "a"}]},
                "status": {"phase": phase},
            })
        };
        assert_eq!(row_of(pod("Running")), "0/1 Terminating 0");
        assert_eq!(row_of(pod("Failed")), "0/1 Failed 0");
    }
}
