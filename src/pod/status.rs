//! The status, upstream's `PodStatus`, from what was observed.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements,
    },
    apimachinery::pkg::{api::resource::Quantity as ApiQuantity, apis::meta::v1::Time},
    jiff::Timestamp,
};

use super::{
    action::Action,
    lifecycle::{self, Next, Phase},
    memory::{Failure, Memory},
    observed::{Attempt, AttemptState, Ended, Network, ObservedPod, Sandbox},
    plan::NodeView,
    resize,
    verdict::Verdict,
};
use crate::api::qos::qos_class;

/// Builds the status. Transition times of conditions that did not change come from `memory.status`.
pub fn status(pod: &Pod, observed: &ObservedPod, memory: &Memory, node: &NodeView, now: Timestamp) -> PodStatus {
    let phase = lifecycle::phase(pod, observed, memory, now);
    let steps = lifecycle::next_steps(pod, observed, memory, &node.crash_loop, now);
    let inits = lifecycle::init_containers(pod);
    let view = View { pod, observed, memory, phase };
    let statuses: Vec<ContainerStatus> =
        steps.iter().map(|(container, next)| view.container(container, *next)).collect();
    let (init_statuses, main_statuses) = statuses.split_at(inits.len());
    let deadline_exceeded = lifecycle::deadline(pod, memory).is_some_and(|deadline| deadline <= now);
    let (reason, message) = match memory.verdict() {
        Some(Verdict::Rejected(rejection)) => {
            (Some(rejection.reason), Some(format!("Pod was rejected: {}", rejection.message)))
        }
        Some(Verdict::Evicted(eviction)) => (Some(eviction.reason), Some(eviction.message)),
        None if deadline_exceeded => (
            Some("DeadlineExceeded".to_owned()),
            Some("Pod was active on the node longer than the specified deadline".to_owned()),
        ),
        None => (None, None),
    };
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let addresses: Vec<String> = match &observed.network {
        Network::Absent => Vec::new(),
        _ if host_network => node.host_ips.iter().map(ToString::to_string).collect(),
        Network::Attached(addresses) => addresses.iter().map(ToString::to_string).collect(),
        Network::Leased(_) => Vec::new(),
    };
    let host_ips: Vec<HostIP> = node.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect();
    PodStatus {
        phase: Some(phase.name().to_owned()),
        reason,
        message,
        conditions: Some(view.conditions(init_statuses, main_statuses, now)),
        host_ip: host_ips.first().map(|host| host.ip.clone()),
        host_ips: (!host_ips.is_empty()).then_some(host_ips),
        pod_ip: addresses.first().cloned(),
        pod_ips: (!addresses.is_empty()).then(|| addresses.into_iter().map(|ip| PodIP { ip }).collect()),
        resources: view.pod_resources(),
        allocated_resources: pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.clone()),
        start_time: memory.start_time.map(Time),
        qos_class: pod.spec.as_ref().map(|spec| qos_class(spec).to_string()),
        init_container_statuses: (!init_statuses.is_empty()).then(|| init_statuses.to_vec()),
        container_statuses: Some(main_statuses.to_vec()),
        ..PodStatus::default()
    }
}

struct View<'a> {
    pod: &'a Pod,
    observed: &'a ObservedPod,
    memory: &'a Memory,
    phase: Phase,
}

impl View<'_> {
    fn container(&self, container: &Container, next: Next) -> ContainerStatus {
        let attempts = self.observed.containers.get(&container.name).map(Vec::as_slice).unwrap_or_default();
        let latest = attempts.last();
        let previous = attempts.len().checked_sub(2).map(|index| &attempts[index]);
        let going = self.memory.termination.is_some() || self.phase.is_terminal();
        let (state, last) = match latest {
            None => (waiting(self.waiting_reason(container)), None),
            Some(attempt) => match (&attempt.state, next) {
                (AttemptState::Running { started_at, .. }, _) => (
                    ContainerState {
                        running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
                        ..ContainerState::default()
                    },
                    previous,
                ),
                (AttemptState::Ended(_), Next::StartAt(..)) if !going => {
                    (waiting(self.crash_loop_reason(container)), Some(attempt))
                }
                (AttemptState::Ended(_), Next::Start(_)) if !going && self.failure(container).is_some() => {
                    (waiting(self.waiting_reason(container)), Some(attempt))
                }
                (AttemptState::Ended(ended), _) => (terminated(attempt, ended), previous),
            },
        };
        let (resources, allocated_resources) = self.resources(container);
        let is_init = lifecycle::init_containers(self.pod).iter().any(|init| init.name == container.name);
        let initialized = lifecycle::initialized(latest, self.observed.generation);
        ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            image_id: latest.map(|attempt| attempt.image_id.clone()).unwrap_or_default(),
            container_id: latest.map(|attempt| format!("berth://{}", attempt.id)),
            ready: if is_init { initialized } else { self.observed.ready(container) },
            started: Some(self.observed.started(container)),
            restart_count: latest.map_or(0, |attempt| i32::try_from(attempt.number).unwrap_or(i32::MAX)),
            resources,
            allocated_resources,
            state: Some(state),
            last_state: last.map(|attempt| match &attempt.state {
                AttemptState::Ended(ended) => terminated(attempt, ended),
                AttemptState::Running { .. } => ContainerState::default(),
            }),
            ..ContainerStatus::default()
        }
    }

    /// What is in force, and what is allocated, for a container that may be resized. One that does not run will have what
    /// it is allocated.
    fn resources(
        &self,
        container: &Container,
    ) -> (Option<ResourceRequirements>, Option<BTreeMap<String, ApiQuantity>>) {
        if !lifecycle::restarts_when_changed(self.pod, container) {
            return (None, None);
        }
        let allocated = container.resources.clone().unwrap_or_default();
        let launched = self.observed.launched(&container.name);
        let running = launched.filter(|launched| self.observed.runs(&container.name, launched.attempt));
        let in_force = running.map_or_else(|| allocated.clone(), |launched| launched.resources.clone());
        (Some(in_force), allocated.requests)
    }

    /// What the pod as a whole has, where that is set for it: what is in force once it is known.
    fn pod_resources(&self) -> Option<ResourceRequirements> {
        let allocated = self.pod.spec.as_ref()?.resources.clone()?;
        let sized = self.observed.sized.as_ref().filter(|_| matches!(self.observed.sandbox, Sandbox::Running { .. }));
        Some(sized.and_then(|sized| sized.pod.clone()).unwrap_or(allocated))
    }

    /// The conditions of a resize (KEP-1287): there while it waits, and while it is not in force.
    fn resize_conditions(&self, now: Timestamp) -> Vec<PodCondition> {
        let mut conditions = Vec::new();
        if let Some(pending) = self.memory.resize.as_ref().filter(|_| !self.phase.is_terminal()) {
            let reason = (pending.reason.as_str().to_owned(), pending.message.clone());
            conditions.push(self.present("PodResizePending", reason, now));
        }
        if self.resize_in_progress() {
            let failure = self.memory.failure_of(&Action::ResizePod { containers: BTreeMap::new() });
            let reason = failure.map(|failure| ("Error".to_owned(), failure.message.clone()));
            conditions.push(self.present("PodResizeInProgress", reason.unwrap_or_default(), now));
        }
        conditions
    }

    fn resize_in_progress(&self) -> bool {
        let differs = |container: &Container| {
            let launched = self.observed.launched(&container.name);
            launched.is_some_and(|launched| {
                self.observed.runs(&container.name, launched.attempt)
                    && resize::how(container, &launched.resources).is_some()
            })
        };
        matches!(self.observed.sandbox, Sandbox::Running { .. })
            && self.memory.termination.is_none()
            && (!self.observed.is_sized(self.pod) || lifecycle::resizable(self.pod).any(differs))
    }

    /// A condition that is only there while it holds.
    fn present(&self, kind: &str, (reason, message): (String, String), now: Timestamp) -> PodCondition {
        let text = |text: String| (!text.is_empty()).then_some(text);
        PodCondition { reason: text(reason), message: text(message), ..self.condition(kind, Ok(()), now) }
    }

    fn failure(&self, container: &Container) -> Option<(String, String)> {
        let resolve = Action::ResolveImage { container: container.name.clone(), attempt: 0 };
        let prepare = Action::PrepareContainer { container: container.name.clone(), attempt: 0, generation: 0 };
        let start = Action::StartContainer { container: container.name.clone(), attempt: 0 };
        let release = Action::ReleaseContainer { container: container.name.clone(), attempt: 0, generation: 0 };
        let failure = [resolve, prepare, start, release].iter().find_map(|action| self.memory.failure_of(action))?;
        Some((failure.reason.clone(), failure.message.clone()))
    }

    /// Why a container that has not been started is waiting: its own failure, the pod's, or its turn.
    fn waiting_reason(&self, container: &Container) -> (String, Option<String>) {
        if let Some(failure) =
            self.memory.failure_of(&Action::ResolveImage { container: container.name.clone(), attempt: 0 })
        {
            return no_image(failure, container.image.as_deref().unwrap_or_default());
        }
        if let Some((reason, message)) = self.failure(container) {
            return (reason, Some(message));
        }
        if let Some(waiting) = self.no_image_of_a_volume(container) {
            return waiting;
        }
        if let Some(failure) = self.memory.failures.iter().find(|failure| failure.action.builds()) {
            return ("ContainerCreating".to_owned(), Some(format!("{}: {}", failure.reason, failure.message)));
        }
        let has_init = !lifecycle::init_containers(self.pod).is_empty();
        (if has_init { "PodInitializing" } else { "ContainerCreating" }.to_owned(), None)
    }

    /// A container waits for the images of its volumes as it does for its own.
    fn no_image_of_a_volume(&self, container: &Container) -> Option<(String, Option<String>)> {
        let volumes = self.pod.spec.as_ref()?.volumes.iter().flatten();
        let mut mounted =
            volumes.filter(|volume| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name));
        mounted.find_map(|volume| {
            let reference = volume.image.as_ref()?.reference.as_deref().unwrap_or_default();
            let failure = self.memory.failure_of(&Action::MountVolume(volume.name.clone()))?;
            failure.is_of_image().then(|| no_image(failure, reference))
        })
    }

    fn crash_loop_reason(&self, container: &Container) -> (String, Option<String>) {
        let delay = self.memory.crash_loop.get(&container.name).map_or(0, |backoff| backoff.delay.as_secs());
        let delay = match (delay / 60, delay % 60) {
            (0, seconds) => format!("{seconds}s"),
            (minutes, seconds) => format!("{minutes}m{seconds}s"),
        };
        let metadata = &self.pod.metadata;
        let message = format!(
            "back-off {delay} restarting failed container={} pod={}_{}({})",
            container.name,
            metadata.name.as_deref().unwrap_or_default(),
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.uid.as_deref().unwrap_or_default(),
        );
        ("CrashLoopBackOff".to_owned(), Some(message))
    }

    fn conditions(&self, inits: &[ContainerStatus], mains: &[ContainerStatus], now: Timestamp) -> Vec<PodCondition> {
        let finished = self.phase == Phase::Succeeded;
        let unready: Vec<&str> =
            mains.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let main_started = mains.iter().any(|status| status.container_id.is_some());
        let incomplete: Vec<&str> =
            inits.iter().filter(|status| !status.ready && !main_started).map(|status| status.name.as_str()).collect();
        let host_network = self.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        let sandbox_ready = matches!(self.observed.sandbox, Sandbox::Running { .. })
            && (host_network || matches!(self.observed.network, Network::Attached(_)));
        let ready = match self.phase {
            Phase::Succeeded => Err(("PodCompleted".to_owned(), None)),
            Phase::Failed => Err(("PodFailed".to_owned(), None)),
            _ if unready.is_empty() => Ok(()),
            _ => {
                let message = format!("containers with unready status: [{}]", unready.join(" "));
                Err(("ContainersNotReady".to_owned(), Some(message)))
            }
        };
        let initialized = match incomplete.is_empty() || finished {
            true => Ok(()),
            false => Err((
                "ContainersNotInitialized".to_owned(),
                Some(format!("containers with incomplete status: [{}]", incomplete.join(" "))),
            )),
        };
        let mut conditions = self.resize_conditions(now);
        conditions.extend([
            self.condition("PodReadyToStartContainers", sandbox_ready.then_some(()).ok_or((String::new(), None)), now),
            self.condition("Initialized", initialized, now),
            self.condition("Ready", ready.clone(), now),
            self.condition("ContainersReady", ready, now),
            self.condition("PodScheduled", Ok(()), now),
        ]);
        if let Some(message) = self.memory.eviction.as_ref().and_then(|eviction| eviction.condition.clone()) {
            conditions.push(PodCondition {
                reason: Some("TerminationByKubelet".to_owned()),
                message: Some(message),
                ..self.condition("DisruptionTarget", Ok(()), now)
            });
        }
        conditions
    }

    fn condition(&self, kind: &str, holds: Result<(), (String, Option<String>)>, now: Timestamp) -> PodCondition {
        let (status, reason, message) = match holds {
            Ok(()) => ("True", None, None),
            Err((reason, message)) => ("False", (!reason.is_empty()).then_some(reason), message),
        };
        let previous = self.memory.status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        let since = previous.filter(|previous| previous.status == status).and_then(|p| p.last_transition_time.clone());
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: Some(since.unwrap_or(Time(now))),
            ..PodCondition::default()
        }
    }
}

/// Upstream: the error while it is fresh, ImagePullBackOff while the next try is waited for.
fn no_image(failure: &Failure, image: &str) -> (String, Option<String>) {
    match failure.reason == "ErrImagePull" && failure.backoff.count > 1 {
        true => {
            ("ImagePullBackOff".to_owned(), Some(format!("Back-off pulling image \"{image}\": {}", failure.message)))
        }
        false => (failure.reason.clone(), Some(failure.message.clone())),
    }
}

fn waiting((reason, message): (String, Option<String>)) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason), message }),
        ..ContainerState::default()
    }
}

fn terminated(attempt: &Attempt, ended: &Ended) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("berth://{}", attempt.id)),
            exit_code: ended.exit_code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: (!ended.message.is_empty()).then(|| ended.message.clone()),
            started_at: ended.started_at.map(Time),
            finished_at: Some(Time(ended.finished_at)),
        }),
        ..ContainerState::default()
    }
}
