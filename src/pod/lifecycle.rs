//! What a pod's containers should do next, from the restart policy and how their attempts ended.

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    jiff::Timestamp,
};

use super::{
    action::Action,
    backoff::BackoffPolicy,
    memory::{Memory, seconds},
    observed::{Attempt, AttemptState, Ended, ObservedPod},
};
use crate::api::resources::is_sidecar;

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// Unless it exited with 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// From the spec; upstream's default is Always.
    pub fn of(spec: &PodSpec) -> RestartPolicy {
        match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    fn restarts(self, ended: &Ended) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => ended.exit_code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// What one container should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start this attempt now.
    Start(u32),
    /// Start this attempt at that time (CrashLoopBackOff).
    StartAt(u32, Timestamp),
    /// It runs; leave it.
    Keep,
    /// It has ended and stays so.
    Done,
    /// It may not start yet (init containers come first).
    Wait,
}

/// Where the pod as a whole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Some container has never run.
    Pending,
    /// Every container has been started, and one runs or will run again.
    Running,
    /// All ended with 0 and stay so.
    Succeeded,
    /// All ended, one not with 0.
    Failed,
}

impl Phase {
    /// Upstream's name.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    /// Succeeded or Failed: it never leaves this phase.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// The spec of a pod; an absent one is an empty one.
pub(super) fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

/// The pod's main containers.
pub(super) fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default()
}

/// Whether activeDeadlineSeconds is over, or when it will be.
pub fn deadline(pod: &Pod, memory: &Memory) -> Option<Timestamp> {
    let limit = pod.spec.as_ref()?.active_deadline_seconds?;
    memory.start_time?.saturating_add(seconds(limit)).ok()
}

/// What each container should do now: init containers in order, then the main ones together.
///
/// An init container counts as done when it ended with 0 in the present sandbox, or when a main container has
/// been started in it. A main container that ended before the present sandbox was made follows the restart policy.
pub fn next_steps<'a>(
    pod: &'a Pod,
    observed: &ObservedPod,
    memory: &Memory,
    crash_loop: &BackoffPolicy,
    now: Timestamp,
) -> Vec<(&'a Container, Next)> {
    let policy = pod.spec.as_ref().map(RestartPolicy::of).unwrap_or(RestartPolicy::Always);
    let mut steps = Vec::new();
    let main_started =
        containers(pod).iter().any(|c| observed.latest(&c.name).is_some_and(|a| a.generation == observed.generation));
    let mut blocked = false;
    for container in init_containers(pod) {
        let latest = observed.latest(&container.name);
        let next = if main_started || initialized(latest, observed.generation) {
            Next::Done
        } else if blocked {
            Next::Wait
        } else {
            blocked = true;
            match latest {
                None => Next::Start(0),
                Some(Attempt { state: AttemptState::Running { .. }, .. }) => Next::Keep,
                // An attempt of an earlier sandbox is run again from the start, whatever became of it.
                Some(attempt) if attempt.generation != observed.generation => Next::Start(attempt.number + 1),
                // For init containers Always means OnFailure: success moves on.
                Some(_) if policy == RestartPolicy::Never => Next::Done,
                Some(Attempt { number, state: AttemptState::Ended(ended), .. }) => {
                    after_crash(&container.name, *number, ended, memory, crash_loop, now)
                }
            }
        };
        steps.push((container, next));
    }
    for container in containers(pod) {
        let next = match observed.latest(&container.name) {
            Some(Attempt { state: AttemptState::Running { .. }, .. }) => Next::Keep,
            // Stopped for a change of the pod: neither the policy nor the delay after a crash is about that.
            Some(attempt) if !blocked && observed.restarting(&container.name, attempt.number) => {
                Next::Start(attempt.number + 1)
            }
            Some(Attempt { state: AttemptState::Ended(ended), .. }) if !policy.restarts(ended) => Next::Done,
            _ if blocked => Next::Wait,
            None => Next::Start(0),
            Some(Attempt { number, state: AttemptState::Ended(ended), .. }) => {
                after_crash(&container.name, *number, ended, memory, crash_loop, now)
            }
        };
        steps.push((container, next));
    }
    steps
}

/// The containers whose resources may change: main ones and sidecars.
pub(super) fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod).iter().filter(|container| is_sidecar(container)).chain(containers(pod))
}

/// Whether a running container follows a change of its definition: one that does its work once keeps what it began
/// with (upstream restarts main containers and sidecars).
pub(super) fn restarts_when_changed(pod: &Pod, container: &Container) -> bool {
    resizable(pod).any(|found| found.name == container.name)
}

/// Whether an init container has done its work for the sandbox `generation`.
pub(super) fn initialized(latest: Option<&Attempt>, generation: u32) -> bool {
    latest.is_some_and(|attempt| {
        attempt.generation == generation && matches!(&attempt.state, AttemptState::Ended(ended) if ended.exit_code == 0)
    })
}

fn after_crash(
    container: &str,
    number: u32,
    ended: &Ended,
    memory: &Memory,
    crash_loop: &BackoffPolicy,
    now: Timestamp,
) -> Next {
    // What has been begun counts against the next delay, not its own.
    let begun = Action::StartContainer { container: container.to_owned(), attempt: number + 1 };
    if memory.in_flight.contains(&begun) {
        return Next::Start(number + 1);
    }
    let until = memory
        .crash_loop
        .get(container)
        .map(|backoff| backoff.until_since(crash_loop, ended.finished_at))
        .unwrap_or(ended.finished_at);
    if until > now { Next::StartAt(number + 1, until) } else { Next::Start(number + 1) }
}

/// The phase, as upstream's `getPhase` finds it.
pub fn phase(pod: &Pod, observed: &ObservedPod, memory: &Memory, now: Timestamp) -> Phase {
    let ended = memory.rejection.is_some() || memory.eviction.is_some();
    if ended || deadline(pod, memory).is_some_and(|deadline| deadline <= now) {
        return Phase::Failed;
    }
    let policy = pod.spec.as_ref().map(RestartPolicy::of).unwrap_or(RestartPolicy::Always);
    let main_started = containers(pod).iter().any(|c| observed.latest(&c.name).is_some());
    if !main_started {
        for container in init_containers(pod) {
            match observed.latest(&container.name) {
                Some(Attempt { state: AttemptState::Ended(ended), .. }) if ended.exit_code == 0 => {}
                Some(Attempt { state: AttemptState::Ended(_), .. }) if policy == RestartPolicy::Never => {
                    return Phase::Failed;
                }
                _ => return Phase::Pending,
            }
        }
    }
    let mut running = false;
    let mut waiting = false;
    let mut failed = false;
    for container in containers(pod) {
        let latest = observed.latest(&container.name);
        match latest.map(|attempt| &attempt.state) {
            None => waiting = true,
            Some(AttemptState::Running { .. }) => running = true,
            Some(AttemptState::Ended(ended)) => {
                let again = latest.is_some_and(|attempt| observed.restarting(&container.name, attempt.number));
                running |= (again || policy.restarts(ended)) && memory.termination.is_none();
                failed |= ended.exit_code != 0;
            }
        }
    }
    match (waiting, running, failed) {
        // A pod that is being removed before it ever ran has failed, not waited.
        (true, _, _) if memory.termination.is_none() || !main_started => Phase::Pending,
        (_, true, _) => Phase::Running,
        (_, false, true) => Phase::Failed,
        (_, false, false) => Phase::Succeeded,
    }
}
