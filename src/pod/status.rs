//! The status, upstream's `PodStatus`, from what was observed.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodStatus, ResourceRequirements,
        VolumeMountStatus,
    },
    apimachinery::pkg::{api::resource::Quantity as ApiQuantity, apis::meta::v1::Time},
    jiff::Timestamp,
};

use super::{
    action::Action,
    conditions::{self, Facts},
    lifecycle::{self, Kind, Next, Phase, Step},
    memory::{Failure, Memory},
    observed::{Attempt, AttemptState, Ended, HookEnd, Network, ObservedPod, Sandbox, User},
    plan::NodeView,
    policy,
    verdict::Verdict,
};
use crate::api::{qos::qos_class, signals};

/// Reason of containers that were ended because another's end begins the pod anew.
const RESTARTING_ALL: &str = "RestartingAllContainers";

/// SIGKILL.
const KILL: i32 = 9;

/// Builds the status of a pod whose containers are to take `steps`. Transition times of conditions that did not change come
/// from `memory.status`.
pub fn status(
    pod: &Pod,
    observed: &ObservedPod,
    memory: &Memory,
    node: &NodeView,
    steps: &[Step<'_>],
    now: Timestamp,
) -> PodStatus {
    let phase = lifecycle::phase(pod, observed, memory, now);
    let epoch = policy::epoch(pod, observed);
    let view = View { pod, observed, memory, phase, epoch };
    let statuses: Vec<ContainerStatus> = steps.iter().map(|step| view.container(step)).collect();
    let of = |kinds: &[Kind]| -> Vec<ContainerStatus> {
        let all = steps.iter().zip(&statuses).filter(|(step, _)| kinds.contains(&step.kind));
        all.map(|(_, status)| status.clone()).collect()
    };
    let some = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
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
    let facts = Facts { pod, observed, memory, phase, steps, statuses: &statuses, now };
    PodStatus {
        phase: Some(phase.name().to_owned()),
        reason,
        message,
        observed_generation: pod.metadata.generation,
        conditions: Some(conditions::conditions(&facts)),
        host_ip: host_ips.first().map(|host| host.ip.clone()),
        host_ips: (!host_ips.is_empty()).then_some(host_ips),
        pod_ip: addresses.first().cloned(),
        pod_ips: (!addresses.is_empty()).then(|| addresses.into_iter().map(|ip| PodIP { ip }).collect()),
        resources: view.pod_resources(),
        allocated_resources: pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.clone()),
        start_time: memory.start_time.map(Time),
        qos_class: pod.spec.as_ref().map(|spec| qos_class(spec).to_string()),
        init_container_statuses: some(of(&[Kind::Init, Kind::Sidecar])),
        container_statuses: Some(of(&[Kind::Main])),
        ephemeral_container_statuses: some(of(&[Kind::Ephemeral])),
        ..PodStatus::default()
    }
}

struct View<'a> {
    pod: &'a Pod,
    observed: &'a ObservedPod,
    memory: &'a Memory,
    phase: Phase,
    epoch: u32,
}

impl View<'_> {
    fn container(&self, step: &Step<'_>) -> ContainerStatus {
        let container: &Container = &step.container;
        let attempts = self.observed.containers.get(&container.name).map(Vec::as_slice).unwrap_or_default();
        let latest = attempts.last();
        let previous = attempts.len().checked_sub(2).map(|index| &attempts[index]);
        let (state, last) = match latest {
            None => (waiting(self.waiting_reason(container)), None),
            Some(attempt) => self.state(step, attempt, previous),
        };
        let (resources, allocated_resources) = self.resources(container);
        let initialized = lifecycle::initialized(latest, self.observed.generation, self.epoch);
        ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            image_id: latest.map(|attempt| attempt.image_ref.clone()).unwrap_or_default(),
            container_id: latest.map(|attempt| format!("berth://{}", attempt.id)),
            ready: match step.kind {
                Kind::Init => initialized,
                Kind::Sidecar | Kind::Main => self.observed.ready(container),
                Kind::Ephemeral => false,
            },
            started: (step.kind != Kind::Ephemeral).then(|| self.observed.started(container)),
            restart_count: latest.map_or(0, |attempt| i32::try_from(attempt.number).unwrap_or(i32::MAX)),
            resources,
            allocated_resources,
            // As upstream, of main containers alone.
            allocated_resources_status: match step.kind {
                Kind::Main => self.observed.devices.get(&container.name).cloned(),
                Kind::Init | Kind::Sidecar | Kind::Ephemeral => None,
            },
            state: Some(state),
            last_state: last.map(|attempt| match &attempt.state {
                AttemptState::Ended(ended) => self.terminated(container, attempt, ended),
                AttemptState::Running { .. } => ContainerState::default(),
            }),
            stop_signal: latest.map(|attempt| signals::name(attempt.stop_signal)),
            user: latest.and_then(|attempt| attempt.user.as_deref()).map(user),
            volume_mounts: latest.and_then(|_| volume_mounts(container)),
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

    /// The state of a container that has been started at least once, and the attempt its last state is about.
    fn state<'b>(
        &self,
        step: &Step<'_>,
        attempt: &'b Attempt,
        previous: Option<&'b Attempt>,
    ) -> (ContainerState, Option<&'b Attempt>) {
        let container: &Container = &step.container;
        let going = self.memory.termination.is_some() || self.phase.is_terminal();
        let hooked = self.observed.hooked(&container.name, attempt.number);
        let hook_error = match hooked.and_then(|hooked| hooked.post_start.as_ref()) {
            Some(HookEnd::Failed(message)) => Some(("PostStartHookError".to_owned(), Some(message.clone()))),
            _ => None,
        };
        let again = step.kind != Kind::Ephemeral && !going;
        match &attempt.state {
            AttemptState::Running { .. } if again && !self.observed.settled(container) => {
                (waiting(hook_error.unwrap_or_else(|| self.creating())), previous)
            }
            AttemptState::Running { started_at, .. } => {
                let running = ContainerStateRunning { started_at: Some(Time(*started_at)) };
                (ContainerState { running: Some(running), ..ContainerState::default() }, previous)
            }
            AttemptState::Ended(ended) if again => match step.next {
                Next::StartAt(..) => (waiting(self.crash_loop_reason(container)), Some(attempt)),
                // Until it is started again, whatever became of it before the pod was begun anew.
                _ if attempt.epoch < self.epoch => (waiting(self.restarting_reason(container)), Some(attempt)),
                Next::Start(_) => {
                    let never_ran = ended.started_at.is_none() && !attempt.is_unknown();
                    let reason = match (self.memory.start_failure(&container.name), hook_error) {
                        (Some(_), _) => Some(self.waiting_reason(container)),
                        (None, Some(error)) => Some(error),
                        (None, None) => {
                            never_ran.then(|| ("RunContainerError".to_owned(), Some(ended.message.clone())))
                        }
                    };
                    match reason {
                        Some(reason) => (waiting(reason), Some(attempt)),
                        None => (self.terminated(container, attempt, ended), previous),
                    }
                }
                Next::Keep | Next::Done | Next::Wait => (self.terminated(container, attempt, ended), previous),
            },
            AttemptState::Ended(ended) => (self.terminated(container, attempt, ended), previous),
        }
    }

    fn terminated(&self, container: &Container, attempt: &Attempt, ended: &Ended) -> ContainerState {
        let mut terminated = ContainerStateTerminated {
            container_id: Some(format!("berth://{}", attempt.id)),
            exit_code: ended.exit_code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: (!ended.message.is_empty()).then(|| ended.message.clone()),
            started_at: ended.started_at.map(Time),
            finished_at: Some(Time(ended.finished_at)),
        };
        // It was killed for the sake of another.
        let killed = ended.exit_code == 128 + KILL && ended.reason == "Error";
        if killed && attempt.epoch < self.epoch && !policy::restarts_all(container, attempt) {
            terminated.reason = Some(RESTARTING_ALL.to_owned());
        }
        ContainerState { terminated: Some(terminated), ..ContainerState::default() }
    }

    /// Why a container that has not been started is waiting: its own failure, the pod's, or its turn.
    fn waiting_reason(&self, container: &Container) -> (String, Option<String>) {
        if let Some(failure) =
            self.memory.failure_of(&Action::ResolveImage { container: container.name.clone(), attempt: 0 })
        {
            return no_image(failure, container.image.as_deref().unwrap_or_default());
        }
        if let Some(Failure { reason, message, .. }) = self.memory.start_failure(&container.name) {
            return (reason.clone(), Some(message.clone()));
        }
        if let Some(waiting) = self.no_image_of_a_volume(container) {
            return waiting;
        }
        if let Some(failure) = self.memory.failures.iter().find(|failure| failure.action.builds()) {
            return ("ContainerCreating".to_owned(), Some(format!("{}: {}", failure.reason, failure.message)));
        }
        self.creating()
    }

    fn creating(&self) -> (String, Option<String>) {
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

    fn restarting_reason(&self, container: &Container) -> (String, Option<String>) {
        if policy::outlived(self.pod, self.observed).is_empty() {
            return self.waiting_reason(container);
        }
        let message = "The container is removed because RestartAllContainers in place".to_owned();
        (RESTARTING_ALL.to_owned(), Some(message))
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

fn user(user: &User) -> ContainerUser {
    let linux = LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: Some(user.groups.iter().map(|group| i64::from(*group)).collect()),
    };
    ContainerUser { linux: Some(linux) }
}

/// The mounts as they are: every kernel that berth runs on can make a mount read-only with all that is beneath it, so
/// `IfPossible` is `Enabled`.
fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_deref().filter(|mounts| !mounts.is_empty())?;
    let recursive = |wanted: Option<&str>| match wanted {
        Some("Enabled" | "IfPossible") => "Enabled",
        _ => "Disabled",
    };
    let status = mounts.iter().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: (mount.read_only == Some(true))
            .then(|| recursive(mount.recursive_read_only.as_deref()).to_owned()),
        volume_status: None,
    });
    Some(status.collect())
}
