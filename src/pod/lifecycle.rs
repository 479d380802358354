//! What a pod's containers should do next, from the restart policy and how their attempts ended.

use std::borrow::Cow;

use k8s_openapi::{
    api::core::v1::{Container, EphemeralContainer, Pod},
    jiff::Timestamp,
};

use super::{
    action::Action,
    backoff::BackoffPolicy,
    memory::{Memory, seconds},
    observed::{Attempt, AttemptState, Ended, HookEnd, ObservedPod},
    policy::{epoch, may_restart, outlived, restarts, restarts_all},
};
use crate::api::resources::is_sidecar;

/// Which part a container has in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before what comes after it.
    Init,
    /// An init container that stays: what comes after it waits until it has started. Always restarted, ended last.
    Sidecar,
    /// What the pod is for.
    Main,
    /// Added to a running pod, to look at it: run once, of no influence on anything.
    Ephemeral,
}

/// What one container should do.
#[derive(Debug, Clone, PartialEq)]
pub struct Step<'a> {
    /// Its part.
    pub kind: Kind,
    /// It. Of an ephemeral one, the fields that both kinds of structure have.
    pub container: Cow<'a, Container>,
    /// What.
    pub next: Next,
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
    /// It may not start yet (others come first).
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

/// The pod's init containers, sidecars among them.
pub(super) fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

/// The pod's main containers.
pub(super) fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default()
}

/// The pod's ephemeral containers.
pub(super) fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// An ephemeral container in the form of the others.
fn as_container(ephemeral: &EphemeralContainer) -> Container {
    Container {
        name: ephemeral.name.clone(),
        image: ephemeral.image.clone(),
        image_pull_policy: ephemeral.image_pull_policy.clone(),
        volume_mounts: ephemeral.volume_mounts.clone(),
        ..Container::default()
    }
}

/// Whether activeDeadlineSeconds is over, or when it will be.
pub fn deadline(pod: &Pod, memory: &Memory) -> Option<Timestamp> {
    let limit = pod.spec.as_ref()?.active_deadline_seconds?;
    memory.start_time?.saturating_add(seconds(limit)).ok()
}

/// What each container should do now: init containers in order, then the main ones together, then ephemeral ones, which
/// wait for nothing but the container they look at.
///
/// An init container counts as done when it ended with 0 in the present sandbox and epoch, or when a main container has
/// been started in them. A main container that ended before the present sandbox was made follows the restart policy; one
/// that ended in an earlier epoch is started again in any case.
pub fn next_steps<'a>(
    pod: &'a Pod,
    observed: &ObservedPod,
    memory: &Memory,
    crash_loop: &BackoffPolicy,
    now: Timestamp,
) -> Vec<Step<'a>> {
    let epoch = epoch(pod, observed);
    let present = |attempt: &Attempt| attempt.generation == observed.generation && attempt.epoch == epoch;
    let reached = |container: &Container| observed.latest(&container.name).is_some_and(present);
    let main_started = containers(pod).iter().any(reached);
    let inits = init_containers(pod);
    // What has been passed once holds nothing back when it ends and is restarted.
    let passed = inits.iter().rposition(reached).unwrap_or(0);
    let again = |container: &Container, attempt: &Attempt, ended: &Ended| {
        // What was ended for the sake of another did not crash.
        if attempt.epoch < epoch && !restarts_all(container, attempt) {
            return Next::Start(attempt.number + 1);
        }
        after_crash(&container.name, attempt.number, ended, memory, crash_loop, now)
    };
    // Stopped for a change of the pod: neither the policy nor the delay after a crash is about that.
    let changed = |container: &Container, attempt: &Attempt| observed.restarting(&container.name, attempt.number);
    // Nothing is started beside what runs on from before.
    let mut blocked = !outlived(pod, observed).is_empty();
    let mut steps = Vec::new();
    for (index, container) in inits.iter().enumerate() {
        let latest = observed.latest(&container.name);
        let (kind, next) = if is_sidecar(container) {
            let next = match latest {
                Some(Attempt { state: AttemptState::Running { .. }, .. }) => Next::Keep,
                _ if blocked => Next::Wait,
                None => Next::Start(0),
                Some(attempt) if changed(container, attempt) => Next::Start(attempt.number + 1),
                Some(attempt @ Attempt { state: AttemptState::Ended(ended), .. }) => again(container, attempt, ended),
            };
            blocked |= !main_started && index >= passed && !observed.started(container);
            (Kind::Sidecar, next)
        } else {
            let next = match latest {
                _ if main_started || initialized(latest, observed.generation, epoch) => Next::Done,
                Some(Attempt { state: AttemptState::Running { .. }, .. }) => Next::Keep,
                _ if blocked => Next::Wait,
                None => Next::Start(0),
                Some(attempt @ Attempt { state: AttemptState::Ended(ended), .. }) => {
                    if attempt.epoch < epoch {
                        again(container, attempt, ended)
                    } else if attempt.generation != observed.generation {
                        // One of an earlier sandbox is run again from the start, whatever became of it.
                        Next::Start(attempt.number + 1)
                    } else if !restarts(pod, container, ended) {
                        Next::Done
                    } else {
                        // For init containers Always means OnFailure: success moves on.
                        after_crash(&container.name, attempt.number, ended, memory, crash_loop, now)
                    }
                }
            };
            blocked |= !main_started && !initialized(latest, observed.generation, epoch);
            (Kind::Init, next)
        };
        steps.push(Step { kind, container: Cow::Borrowed(container), next });
    }
    for container in containers(pod) {
        let next = match observed.latest(&container.name) {
            Some(Attempt { state: AttemptState::Running { .. }, .. }) => Next::Keep,
            Some(attempt) if !blocked && changed(container, attempt) => Next::Start(attempt.number + 1),
            Some(Attempt { number, epoch: its, state: AttemptState::Ended(ended), .. })
                if *its == epoch && !starts_again(pod, observed, container, *number, ended) =>
            {
                Next::Done
            }
            _ if blocked => Next::Wait,
            None => Next::Start(0),
            Some(attempt @ Attempt { state: AttemptState::Ended(ended), .. }) => again(container, attempt, ended),
        };
        steps.push(Step { kind: Kind::Main, container: Cow::Borrowed(container), next });
    }
    for ephemeral in ephemeral_containers(pod) {
        let target = ephemeral.target_container_name.as_deref().filter(|name| !name.is_empty());
        let next = match observed.latest(&ephemeral.name) {
            Some(Attempt { state: AttemptState::Running { .. }, .. }) => Next::Keep,
            Some(_) => Next::Done,
            // It would have no processes to look at.
            None if target.is_some_and(|target| observed.running().all(|(name, _)| name != target)) => Next::Wait,
            None => Next::Start(0),
        };
        steps.push(Step { kind: Kind::Ephemeral, container: Cow::Owned(as_container(ephemeral)), next });
    }
    steps
}

/// Whether the main containers have all ended and stay so: whatever else runs is to go.
pub fn complete(steps: &[Step<'_>]) -> bool {
    let mut mains = steps.iter().filter(|step| step.kind == Kind::Main);
    mains.all(|step| step.next == Next::Done)
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

/// Whether an init container has done its work for the sandbox `generation` and in this epoch.
pub(super) fn initialized(latest: Option<&Attempt>, generation: u32, epoch: u32) -> bool {
    latest.is_some_and(|attempt| {
        let well = matches!(&attempt.state, AttemptState::Ended(ended) if ended.exit_code == 0);
        attempt.generation == generation && attempt.epoch == epoch && well
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

/// The end of a container whose pod stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Seconds it is given.
    pub grace: i64,
    /// Upstream's sentence, for the event `Killing`.
    pub why: String,
}

/// Whether a running container has to end although its pod stays: its postStart hook, its startup probe or its liveness
/// probe has failed.
pub fn must_end(pod: &Pod, observed: &ObservedPod, container: &Container) -> Option<Ending> {
    // What upstream gives at least to a container that its probes have given up.
    const LEAST: i64 = 2;
    let attempt = observed.latest(&container.name)?;
    let probed = observed.probes.get(&container.name).filter(|probed| probed.attempt == attempt.number);
    let failed = |verdict: Option<bool>| verdict == Some(false);
    let probe = match probed {
        Some(probed) if failed(probed.liveness) => container.liveness_probe.as_ref().map(|probe| ("liveness", probe)),
        Some(probed) if failed(probed.startup) => container.startup_probe.as_ref().map(|probe| ("startup", probe)),
        _ => None,
    };
    if let Some((kind, probe)) = probe {
        let restarts = may_restart(pod, container);
        let then = if restarts { ", will be restarted" } else { "" };
        return Some(Ending {
            grace: probe.termination_grace_period_seconds.unwrap_or_else(|| grace(pod)).max(LEAST),
            why: format!("Container {} failed {kind} probe{then}", container.name),
        });
    }
    let hooked = observed.hooked(&container.name, attempt.number);
    let failed = hooked.is_some_and(|hooked| matches!(hooked.post_start, Some(HookEnd::Failed(_))));
    failed.then(|| Ending { grace: grace(pod), why: "FailedPostStartHook".to_owned() })
}

/// Whether a container that ended is started again. One that was ended for its probes is, whatever it made of that, unless
/// nothing is restarted.
fn starts_again(pod: &Pod, observed: &ObservedPod, container: &Container, number: u32, ended: &Ended) -> bool {
    let unhealthy = observed.probed(&container.name, number).is_some_and(|probed| probed.fatal().is_some());
    restarts(pod, container, ended) || unhealthy && may_restart(pod, container)
}

/// The pod's terminationGracePeriodSeconds.
pub(super) fn grace(pod: &Pod) -> i64 {
    pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30)
}

/// The phase, as upstream's `getPhase` finds it. Sidecars hold the pod in Pending until they have started for the first
/// time, and in Running while they run; how they end says nothing.
pub fn phase(pod: &Pod, observed: &ObservedPod, memory: &Memory, now: Timestamp) -> Phase {
    let decided = memory.rejection.is_some() || memory.eviction.is_some();
    if decided || deadline(pod, memory).is_some_and(|deadline| deadline <= now) {
        return Phase::Failed;
    }
    let epoch = epoch(pod, observed);
    let present = |attempt: &&Attempt| attempt.generation == observed.generation && attempt.epoch == epoch;
    let begun = |container: &Container| observed.latest(&container.name).filter(present).is_some();
    if !containers(pod).iter().any(begun) {
        let failed = |container: &Container| match observed.latest(&container.name).filter(present) {
            Some(Attempt { state: AttemptState::Ended(ended), .. }) => {
                ended.exit_code != 0 && !restarts(pod, container, ended)
            }
            _ => false,
        };
        if init_containers(pod).iter().any(|container| !is_sidecar(container) && failed(container)) {
            return Phase::Failed;
        }
    }
    let main_started = containers(pod).iter().any(|container| observed.latest(&container.name).is_some());
    let pending = |container: &Container| match is_sidecar(container) {
        true => !observed.started(container),
        false => !initialized(observed.latest(&container.name), observed.generation, epoch),
    };
    if !main_started && init_containers(pod).iter().any(pending) {
        return Phase::Pending;
    }
    let mut running =
        init_containers(pod).iter().any(|container| is_sidecar(container) && observed.is_running(&container.name));
    let mut waiting = false;
    let mut failed = false;
    for container in containers(pod) {
        match observed.latest(&container.name) {
            None => waiting = true,
            Some(Attempt { state: AttemptState::Running { .. }, .. }) => running = true,
            Some(Attempt { number, epoch: its, state: AttemptState::Ended(ended), .. }) => {
                let again = *its < epoch || observed.restarting(&container.name, *number);
                let again = again || starts_again(pod, observed, container, *number, ended);
                running |= again && memory.termination.is_none();
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
