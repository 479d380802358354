//! What events say: which step of a pod's life is worth one, and in which words. Reasons and messages are upstream's
//! (`pkg/kubelet/events`, `kuberuntime`, `images`), so that what people search for is found.
//!
//! Steps that nobody has to know of have none. Hooks and probes speak for themselves where they run.

use std::{borrow::Cow, time::Duration};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde::{Deserialize, Serialize};

use super::{
    action::{Action, Hook},
    lifecycle::must_end,
    memory::Memory,
    observed::{AttemptState, ObservedPod, Sandbox},
    outcome::Outcome,
};
use crate::api::duration::format_duration;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// As intended.
    Normal,
    /// Somebody may have to act.
    Warning,
}

impl Severity {
    /// Upstream's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// The text of one event about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// The container it is about; `None`: the pod as a whole.
    pub container: Option<String>,
    /// Normal or Warning.
    pub severity: Severity,
    /// `Started`, `BackOff`, …
    pub reason: Cow<'static, str>,
    /// One line.
    pub message: String,
}

impl Happening {
    /// As intended.
    pub fn normal(container: Option<&str>, reason: &'static str, message: impl Into<String>) -> Happening {
        Happening {
            container: container.map(str::to_owned),
            severity: Severity::Normal,
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// Somebody may have to act.
    pub fn warning(
        container: Option<&str>,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Happening {
        Happening {
            container: container.map(str::to_owned),
            severity: Severity::Warning,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Before `action` is begun; `memory` and `observed` as they are then.
pub fn begun(pod: &Pod, action: &Action, memory: &Memory, observed: &ObservedPod) -> Option<Happening> {
    let announced = |container: &str, attempt: u32| {
        observed.restarting(container, attempt) // whoever marked it has told why
            || memory.stopping.get(container).is_some_and(|stop| stop.attempt == attempt)
    };
    match action {
        // A signal that could not be sent is sent again: the failure has its own event.
        Action::RunHook { container, attempt, hook: Hook::PreStop } | Action::StopContainer { container, attempt }
            if !announced(container, *attempt) && memory.failure_of(action).is_none() =>
        {
            Some(killing(pod, memory, observed, container))
        }
        Action::KillContainer { container, attempt } => {
            let killed = memory.killed.get(container).is_some_and(|(number, _)| number == attempt);
            match (killed, announced(container, *attempt)) {
                (true, _) => Some(Happening::warning(
                    None,
                    "ExceededGracePeriod",
                    "Container runtime did not kill the pod within specified grace period.",
                )),
                (false, false) if memory.failure_of(action).is_none() => {
                    Some(killing(pod, memory, observed, container))
                }
                _ => None,
            }
        }
        Action::StopSandbox if observed.sandbox == Sandbox::Lost && stays(memory) => {
            Some(Happening::normal(None, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created."))
        }
        _ => None,
    }
}

/// A reason of the container's own is only said while its pod stays.
fn killing(pod: &Pod, memory: &Memory, observed: &ObservedPod, container: &str) -> Happening {
    let spec = pod.spec.as_ref();
    let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let mut all = inits.iter().chain(spec.map(|spec| spec.containers.as_slice()).unwrap_or_default());
    let found = all.find(|found| found.name == container).filter(|_| stays(memory));
    let ending = found.and_then(|found| must_end(pod, observed, found));
    let why = ending.map_or_else(|| format!("Stopping container {container}"), |ending| ending.why);
    Happening::normal(Some(container), "Killing", why)
}

/// Whether the pod is to run on.
fn stays(memory: &Memory) -> bool {
    memory.termination.is_none() && !matches!(memory.status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// After `action` has ended: with what was observed, or with the reason and message of its failure.
pub fn finished(pod: &Pod, action: &Action, result: Result<&Outcome, (&str, &str)>) -> Vec<Happening> {
    match result {
        Ok(outcome) => succeeded(action, outcome).into_iter().collect(),
        Err((reason, message)) => failed(pod, action, reason, message),
    }
}

fn succeeded(action: &Action, outcome: &Outcome) -> Option<Happening> {
    match (action, outcome) {
        (Action::PrepareContainer { container, .. }, _) => {
            Some(Happening::normal(Some(container), "Created", "Container created"))
        }
        (Action::StartContainer { container, .. }, Outcome::Attempt(attempt)) => Some(match &attempt.state {
            // It never got as far as its own program.
            AttemptState::Ended(ended) if ended.started_at.is_none() => {
                Happening::warning(Some(container), "Failed", format!("Error: {}", ended.message))
            }
            _ => Happening::normal(Some(container), "Started", "Container started"),
        }),
        _ => None,
    }
}

fn failed(pod: &Pod, action: &Action, reason: &str, message: &str) -> Vec<Happening> {
    let of_container = |container: &String| vec![error(container, message)];
    let of_pod =
        |reason: &'static str, what: &str| vec![Happening::warning(None, reason, format!("{what}: {message}"))];
    match action {
        Action::ResolveImage { container, .. } => image_failed(pod, container, reason, message),
        Action::PrepareContainer { container, .. }
        | Action::StartContainer { container, .. }
        | Action::ReleaseContainer { container, .. } => of_container(container),
        Action::EnsureDirs | Action::RecordPod => of_pod("Failed", "error making pod data directories"),
        Action::LeaseAddresses | Action::CreateSandbox | Action::AttachNetwork => {
            of_pod("FailedCreatePodSandBox", "Failed to create pod sandbox")
        }
        // It names the step itself.
        Action::MountVolume(_) | Action::RefreshVolume(_) if message.starts_with("MapVolume.") => {
            vec![Happening::warning(None, "FailedMapVolume", message)]
        }
        Action::MountVolume(_) | Action::RefreshVolume(_) if message.starts_with("MountVolume.") => {
            vec![Happening::warning(None, "FailedMount", message)]
        }
        Action::MountVolume(name) | Action::RefreshVolume(name) => {
            of_pod("FailedMount", &format!("MountVolume.SetUp failed for volume \"{name}\" "))
        }
        Action::UnmountVolumes if message.starts_with("Unm") => {
            vec![Happening::warning(None, "FailedUnMount", message)]
        }
        Action::UnmountVolumes => of_pod("FailedUnMount", "UnmountVolume.TearDown failed"),
        Action::StopContainer { .. }
        | Action::KillContainer { .. }
        | Action::MarkRestart { .. }
        | Action::StopSandbox
        | Action::DetachNetwork
        | Action::RemoveCgroups => of_pod("FailedKillPod", "error killing pod"),
        // The status tells of a resize that failed.
        Action::ResizePod { .. }
        | Action::RunHook { .. }
        | Action::AbandonHook { .. }
        | Action::RecordVerdict(_)
        | Action::RemoveAttempt { .. }
        | Action::ReleaseAddresses
        | Action::ForgetPod => Vec::new(),
    }
}

fn error(container: &str, what: &str) -> Happening {
    Happening::warning(Some(container), "Failed", format!("Error: {what}"))
}

/// The failure, and the wait that follows it: upstream says so each time it looks at a pod that waits, which nobody
/// does here.
fn image_failed(pod: &Pod, container: &str, reason: &str, message: &str) -> Vec<Happening> {
    let image = image_of(pod, container);
    let warning = |event: &'static str, text: String| Happening::warning(Some(container), event, text);
    match reason {
        "ErrImageNeverPull" => vec![
            warning(
                "ErrImageNeverPull",
                format!("Container image \"{image}\" is not present with pull policy of Never"),
            ),
            error(container, reason),
        ],
        "InvalidImageName" => vec![
            warning("InspectFailed", format!("Failed to apply default image tag \"{image}\": {message}")),
            error(container, reason),
        ],
        "ImageInspectError" => vec![
            warning("InspectFailed", format!("Failed to inspect image \"{image}\": {message}")),
            error(container, reason),
        ],
        _ => vec![
            warning("Failed", format!("Failed to pull image \"{image}\": {message}")),
            error(container, reason),
            Happening::normal(
                Some(container),
                "BackOff",
                format!("Back-off pulling image \"{image}\": {reason}: {message}"),
            ),
            error(container, "ImagePullBackOff"),
        ],
    }
}

fn image_of<'p>(pod: &'p Pod, container: &str) -> &'p str {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let found = init.iter().chain(main).find(|found| found.name == container);
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    let debugging = || ephemeral.iter().find(|found| found.name == container)?.image.as_deref();
    found.map_or_else(debugging, |found| found.image.as_deref()).unwrap_or_default()
}

/// When the status of a pod changes from `before` to `after`. A status without a phase (the first one of an agent)
/// says nothing about what is new.
pub fn changed(pod: &Pod, before: &PodStatus, after: &PodStatus) -> Vec<Happening> {
    let mut happenings = Vec::new();
    if before.phase.is_none() {
        return happenings;
    }
    if after.reason.as_deref() == Some("DeadlineExceeded") && before.reason != after.reason {
        let message = after.message.clone().unwrap_or_default();
        happenings.push(Happening::normal(None, "DeadlineExceeded", message));
    }
    for status in statuses(after) {
        let before = statuses(before).find(|known| known.name == status.name);
        let same = before.is_some_and(|before| backs_off(before) && before.restart_count == status.restart_count);
        if backs_off(status) && !same {
            let metadata = &pod.metadata;
            let text = format!(
                "Back-off restarting failed container {} in pod {}_{}({})",
                status.name,
                metadata.name.as_deref().unwrap_or_default(),
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.uid.as_deref().unwrap_or_default(),
            );
            happenings.push(Happening::warning(Some(&status.name), "BackOff", text));
        }
    }
    happenings
}

fn statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().chain(&status.container_statuses).flatten()
}

fn backs_off(status: &ContainerStatus) -> bool {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"))
}

/// A pull of `image` is begun.
pub fn pulling(container: &str, image: &str) -> Happening {
    Happening::normal(Some(container), "Pulling", format!("Pulling image \"{image}\""))
}

/// `image` was pulled: the pull took `took`, with the wait for its turn `waited`, and the image has `size` bytes.
pub fn pulled(container: &str, image: &str, took: Duration, waited: Duration, size: u64) -> Happening {
    let [took, waited] = [took, waited].map(|duration| {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        format_duration(Duration::from_millis(milliseconds))
    });
    let text = format!(
        "Successfully pulled image \"{image}\" in {took} ({waited} including waiting). Image size: {size} bytes."
    );
    Happening::normal(Some(container), "Pulled", text)
}

/// `image` was here already.
pub fn present(container: &str, image: &str) -> Happening {
    let text = format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
    Happening::normal(Some(container), "Pulled", text)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::Container, jiff::Timestamp};
    use serde_json::json;

    use super::*;
    use crate::pod::{
        backoff::CRASH_LOOP,
        observed::{Attempt, Ended, HookEnd, Probed},
    };

    fn pod() -> Pod {
        let spec = json!({
            "initContainers": [{"name": "first", "image": "setup:2"}],
            "containers": [{"name": "app", "image": "busybox:1"}],
        });
        let metadata = json!({"name": "web", "namespace": "shop", "uid": "u1"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn app() -> String {
        "app".to_owned()
    }

    /// Type, container, reason and message on one line each.
    fn lines(happenings: &[Happening]) -> Vec<String> {
        let line = |happening: &Happening| {
            let Happening { container, severity, reason, message } = happening;
            format!("{} {} {reason}: {message}", severity.as_str(), container.as_deref().unwrap_or("-"))
        };
        happenings.iter().map(line).collect()
    }

    #[track_caller]
    fn fails(action: Action, reason: &str, expected: &[&str]) {
        assert_eq!(lines(&finished(&pod(), &action, Err((reason, "no")))), expected, "{action:?}");
    }

    #[test]
    fn every_failure_has_upstreams_words() {
        let resolve = |container: &str| Action::ResolveImage { container: container.to_owned(), attempt: 3 };
        fails(
            resolve("app"),
            "ErrImagePull",
            &[
                r#"Warning app Failed: Failed to pull image "busybox:1": no"#,
                "Warning app Failed: Error: ErrImagePull",
                r#"Normal app BackOff: Back-off pulling image "busybox:1": ErrImagePull: no"#,
                "Warning app Failed: Error: ImagePullBackOff",
            ],
        );
        fails(
            resolve("first"),
            "ErrImageNeverPull",
            &[
                r#"Warning first ErrImageNeverPull: Container image "setup:2" is not present with pull policy of Never"#,
                "Warning first Failed: Error: ErrImageNeverPull",
            ],
        );
        fails(
            resolve("app"),
            "InvalidImageName",
            &[
                r#"Warning app InspectFailed: Failed to apply default image tag "busybox:1": no"#,
                "Warning app Failed: Error: InvalidImageName",
            ],
        );
        let sandbox = &["Warning - FailedCreatePodSandBox: Failed to create pod sandbox: no"];
        for action in [Action::LeaseAddresses, Action::CreateSandbox, Action::AttachNetwork] {
            fails(action, "FailedCreatePodSandBox", sandbox);
        }
        fails(
            Action::MountVolume("data".to_owned()),
            "FailedMount",
            &[r#"Warning - FailedMount: MountVolume.SetUp failed for volume "data" : no"#],
        );
        for action in [
            Action::PrepareContainer { container: app(), attempt: 0, generation: 1, epoch: 0 },
            Action::StartContainer { container: app(), attempt: 0 },
        ] {
            fails(action, "CreateContainerError", &["Warning app Failed: Error: no"]);
        }
        fails(
            Action::StopContainer { container: app(), attempt: 0 },
            "FailedKillPod",
            &["Warning - FailedKillPod: error killing pod: no"],
        );
        fails(Action::EnsureDirs, "x", &["Warning - Failed: error making pod data directories: no"]);
        fails(Action::ForgetPod, "x", &[]);
    }

    fn attempt(state: AttemptState) -> Outcome {
        Outcome::Attempt(Attempt {
            number: 0,
            generation: 1,
            epoch: 0,
            id: String::new(),
            image_id: String::new(),
            image_ref: String::new(),
            stop_signal: 15,
            user: None,
            state,
        })
    }

    #[test]
    fn a_start_is_told_as_what_it_came_to() {
        let start = Action::StartContainer { container: app(), attempt: 0 };
        let now = Timestamp::UNIX_EPOCH;
        let ended = |started_at| {
            attempt(AttemptState::Ended(Ended {
                exit_code: 128,
                signal: None,
                reason: "StartError".to_owned(),
                message: "exec nothing".to_owned(),
                started_at,
                finished_at: now,
            }))
        };
        for (outcome, line) in [
            (attempt(AttemptState::Running { pid: 7, started_at: now }), "Normal app Started: Container started"),
            (ended(Some(now)), "Normal app Started: Container started"),
            (ended(None), "Warning app Failed: Error: exec nothing"),
        ] {
            assert_eq!(lines(&finished(&pod(), &start, Ok(&outcome))), [line]);
        }
        let prepare = Action::PrepareContainer { container: app(), attempt: 0, generation: 1, epoch: 0 };
        assert_eq!(lines(&finished(&pod(), &prepare, Ok(&Outcome::Done))), ["Normal app Created: Container created"]);
        assert_eq!(lines(&finished(&pod(), &Action::EnsureDirs, Ok(&Outcome::Done))), Vec::<String>::new());
    }

    #[test]
    fn an_end_is_announced_once_and_one_that_does_not_come_is_told() {
        let (stop, kill) = (
            Action::StopContainer { container: app(), attempt: 2 },
            Action::KillContainer { container: app(), attempt: 2 },
        );
        let told = |memory: &Memory, action: &Action| {
            lines(&begun(&pod(), action, memory, &ObservedPod::default()).into_iter().collect::<Vec<_>>()).join("")
        };
        let stopping = "Normal app Killing: Stopping container app";
        let mut memory = Memory::default();
        assert_eq!(told(&memory, &stop), stopping);
        assert_eq!(told(&memory, &kill), stopping, "without a grace period there is no signal before");
        let hook = Action::RunHook { container: app(), attempt: 2, hook: Hook::PreStop };
        assert_eq!(told(&memory, &hook), stopping, "the hook belongs to the end");
        memory.begun(&Action::StopContainer { container: app(), attempt: 1 }, &CRASH_LOOP, Timestamp::UNIX_EPOCH);
        assert_eq!(told(&memory, &kill), stopping, "that was an earlier attempt");
        memory.begun(&hook, &CRASH_LOOP, Timestamp::UNIX_EPOCH);
        assert_eq!(told(&memory, &stop), "", "the signal after the hook is no second end");
        assert_eq!(told(&memory, &kill), "");
        memory.killed.insert(app(), (2, Timestamp::UNIX_EPOCH));
        assert_eq!(
            told(&memory, &kill),
            "Warning - ExceededGracePeriod: Container runtime did not kill the pod within specified grace period."
        );
        memory.ended(&stop, Some(("x".to_owned(), "x".to_owned())), Timestamp::UNIX_EPOCH);
        assert_eq!(told(&memory, &stop), "", "a second try is no second end");
    }

    #[test]
    fn an_end_for_a_reason_says_which() {
        let mut pod = pod();
        fn app_of(pod: &mut Pod) -> &mut Container {
            &mut pod.spec.as_mut().unwrap().containers[0]
        }
        app_of(&mut pod).liveness_probe = Some(Default::default());
        let mut observed = ObservedPod::default();
        let Outcome::Attempt(running) = attempt(AttemptState::Running { pid: 7, started_at: Timestamp::UNIX_EPOCH })
        else {
            panic!("an attempt")
        };
        observed.record("app", running);
        observed.hook_ended("app", 0, Hook::PostStart, HookEnd::Failed(String::new()));
        let stop = Action::StopContainer { container: app(), attempt: 0 };
        let told = |pod: &Pod, observed: &ObservedPod| begun(pod, &stop, &Memory::default(), observed).unwrap().message;
        assert_eq!(told(&pod, &observed), "FailedPostStartHook");
        observed.probes.insert(app(), Probed { liveness: Some(false), ..Probed::default() });
        assert_eq!(told(&pod, &observed), "Container app failed liveness probe, will be restarted");
        app_of(&mut pod).restart_policy = Some("Never".to_owned());
        assert_eq!(told(&pod, &observed), "Container app failed liveness probe");
        let mut memory = Memory::default();
        memory.terminate(3, Timestamp::UNIX_EPOCH);
        assert_eq!(begun(&pod, &stop, &memory, &observed).unwrap().message, "Stopping container app");
    }

    #[test]
    fn a_lost_sandbox_is_told_when_another_will_be_made() {
        let mut observed = ObservedPod::default();
        let mut memory = Memory::default();
        assert_eq!(begun(&pod(), &Action::StopSandbox, &memory, &observed), None);
        observed.sandbox = Sandbox::Lost;
        assert_eq!(begun(&pod(), &Action::StopSandbox, &memory, &observed).unwrap().reason, "SandboxChanged");
        memory.status.phase = Some("Failed".to_owned());
        assert_eq!(begun(&pod(), &Action::StopSandbox, &memory, &observed), None);
        memory.status.phase = Some("Running".to_owned());
        memory.terminate(3, Timestamp::UNIX_EPOCH);
        assert_eq!(begun(&pod(), &Action::StopSandbox, &memory, &observed), None);
    }

    fn status(phase: &str, reason: &str, restarts: i32) -> PodStatus {
        let state = json!({"waiting": {"reason": reason}});
        let app = json!({"name": "app", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state});
        serde_json::from_value(json!({"phase": phase, "containerStatuses": [app]})).unwrap()
    }

    #[test]
    fn a_crash_loop_is_told_each_time_it_is_entered() {
        let waits = |restarts| status("Running", "CrashLoopBackOff", restarts);
        let runs = status("Running", "PodInitializing", 0);
        let line = "Warning app BackOff: Back-off restarting failed container app in pod web_shop(u1)";
        assert_eq!(lines(&changed(&pod(), &runs, &waits(1))), [line]);
        assert_eq!(lines(&changed(&pod(), &waits(1), &waits(1))), Vec::<String>::new());
        assert_eq!(lines(&changed(&pod(), &waits(1), &waits(2))), [line]);
        assert_eq!(lines(&changed(&pod(), &PodStatus::default(), &waits(2))), Vec::<String>::new(), "nothing is new");
    }

    #[test]
    fn a_deadline_is_told_when_it_is_over() {
        let mut over = status("Failed", "", 0);
        over.reason = Some("DeadlineExceeded".to_owned());
        over.message = Some("too long".to_owned());
        assert_eq!(lines(&changed(&pod(), &status("Running", "", 0), &over)), ["Normal - DeadlineExceeded: too long"]);
        assert_eq!(changed(&pod(), &over, &over), []);
    }

    #[test]
    fn pulls_say_how_long_they_took() {
        let pulled = pulled("app", "busybox:1", Duration::from_micros(1_393_999), Duration::from_secs(62), 4242);
        assert_eq!(
            pulled.message,
            "Successfully pulled image \"busybox:1\" in 1.393s (1m2s including waiting). Image size: 4242 bytes."
        );
        assert_eq!(pulling("app", "a").message, "Pulling image \"a\"");
        assert_eq!(
            present("app", "a").message,
            "Container image \"a\" already present on machine and can be accessed by the pod"
        );
    }
}
