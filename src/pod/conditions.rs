//! The conditions of a pod, in upstream's order of thought: the sandbox, the init containers, all containers, the pod.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::{
    action::Action,
    lifecycle::{self, Kind, Phase, Step, containers},
    memory::Memory,
    observed::{Network, ObservedPod, Sandbox},
    policy, resize,
};
use crate::api::conditions::is_true;

/// Reason (may be empty) and message.
type Said = (&'static str, Option<String>);

/// Whether a condition is True or False, and what it says beside that.
type Holds = Result<Said, Said>;

const NOTHING: Said = ("", None);

/// What the conditions follow from.
pub(super) struct Facts<'a> {
    pub pod: &'a Pod,
    pub observed: &'a ObservedPod,
    pub memory: &'a Memory,
    pub phase: Phase,
    pub steps: &'a [Step<'a>],
    /// In the order of `steps`.
    pub statuses: &'a [ContainerStatus],
    pub now: Timestamp,
}

/// All conditions. Transition times of those that did not change come from `memory.status`.
pub(super) fn conditions(facts: &Facts<'_>) -> Vec<PodCondition> {
    let containers_ready = facts.containers_ready();
    let mut conditions = facts.resize();
    let first = conditions.len();
    conditions.extend([
        facts.condition("PodReadyToStartContainers", facts.sandbox_ready()),
        facts.condition("Initialized", facts.initialized()),
        facts.condition("ContainersReady", containers_ready.clone()),
        facts.condition("PodScheduled", Ok(NOTHING)),
    ]);
    let ready = containers_ready.and_then(|_| facts.gates(&conditions));
    conditions.insert(first + 2, facts.condition("Ready", ready));
    if policy::may_restart_all(facts.pod) {
        conditions.push(facts.condition("AllContainersRestarting", facts.restarting()));
    }
    if let Some(message) = facts.memory.eviction.as_ref().and_then(|eviction| eviction.condition.clone()) {
        let said = ("TerminationByKubelet", Some(message));
        conditions.push(facts.condition("DisruptionTarget", Ok(said)));
    }
    conditions
}

impl Facts<'_> {
    fn sandbox_ready(&self) -> Holds {
        let host_network = self.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        let sandbox = matches!(self.observed.sandbox, Sandbox::Running { .. });
        let network = host_network || matches!(self.observed.network, Network::Attached(_));
        if sandbox && network { Ok(NOTHING) } else { Err(NOTHING) }
    }

    /// Names of the containers of these kinds for which `wanted` does not hold.
    fn missing(&self, kinds: &[Kind], wanted: impl Fn(Kind, &ContainerStatus) -> bool) -> Vec<&str> {
        let all = self.steps.iter().zip(self.statuses).filter(|(step, _)| kinds.contains(&step.kind));
        all.filter(|(step, status)| !wanted(step.kind, status)).map(|(_, status)| status.name.as_str()).collect()
    }

    fn initialized(&self) -> Holds {
        if self.phase == Phase::Succeeded {
            return Ok(("PodCompleted", None));
        }
        // Once a main container has run, a sidecar that is restarted takes nothing back; nor does a pod that is begun anew.
        let main_started = containers(self.pod).iter().any(|main| self.observed.latest(&main.name).is_some());
        let incomplete = self.missing(&[Kind::Init, Kind::Sidecar], |kind, status| match kind {
            Kind::Sidecar => status.started == Some(true),
            _ => status.ready,
        });
        if main_started || incomplete.is_empty() {
            return Ok(NOTHING);
        }
        let was = self.memory.status.conditions.as_deref().is_some_and(|known| is_true(known, "Initialized"));
        if was && policy::may_restart_all(self.pod) {
            return Ok(NOTHING);
        }
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        Err(("ContainersNotInitialized", Some(message)))
    }

    fn containers_ready(&self) -> Holds {
        let unready = self.missing(&[Kind::Sidecar, Kind::Main], |_, status| status.ready);
        match self.phase {
            Phase::Succeeded => Err(("PodCompleted", None)),
            Phase::Failed => Err(("PodFailed", None)),
            _ if unready.is_empty() => Ok(NOTHING),
            _ => {
                let message = format!("containers with unready status: [{}]", unready.join(" "));
                Err(("ContainersNotReady", Some(message)))
            }
        }
    }

    /// Whether every readiness gate has a condition that is True. Without an API server nobody sets any but ours.
    fn gates(&self, conditions: &[PodCondition]) -> Holds {
        let gates = self.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
        let unready = |kind: &str| match conditions.iter().find(|condition| condition.type_ == kind) {
            None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(condition) if condition.status != "True" => {
                let status = &condition.status;
                Some(format!("the status of pod readiness gate {kind:?} is not \"True\", but {status}"))
            }
            Some(_) => None,
        };
        let messages: Vec<String> = gates.iter().filter_map(|gate| unready(&gate.condition_type)).collect();
        if messages.is_empty() { Ok(NOTHING) } else { Err(("ReadinessGatesNotReady", Some(messages.join(", ")))) }
    }

    fn restarting(&self) -> Holds {
        match self.phase {
            Phase::Succeeded => Err(("PodCompleted", None)),
            Phase::Failed => Err(("PodFailed", None)),
            _ if policy::outlived(self.pod, self.observed).is_empty() => Err(NOTHING),
            _ => Ok(("RestartAllContainersStarted", Some("container exited with restart policy rule".to_owned()))),
        }
    }

    /// The conditions of a resize (KEP-1287): there while it waits, and while it is not in force.
    fn resize(&self) -> Vec<PodCondition> {
        let mut conditions = Vec::new();
        if let Some(pending) = self.memory.resize.as_ref().filter(|_| !self.phase.is_terminal()) {
            let said = (pending.reason.as_str(), Some(pending.message.clone()));
            conditions.push(self.condition("PodResizePending", Ok(said)));
        }
        if self.resize_in_progress() {
            let failure = self.memory.failure_of(&Action::ResizePod { containers: BTreeMap::new() });
            let said = failure.map(|failure| ("Error", Some(failure.message.clone())));
            conditions.push(self.condition("PodResizeInProgress", Ok(said.unwrap_or(NOTHING))));
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

    fn condition(&self, kind: &str, holds: Holds) -> PodCondition {
        let (status, reason, message) = match holds {
            Ok((reason, message)) => ("True", reason, message),
            Err((reason, message)) => ("False", reason, message),
        };
        let previous = self.memory.status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        let since = previous.filter(|previous| previous.status == status).and_then(|p| p.last_transition_time.clone());
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message,
            last_transition_time: Some(since.unwrap_or(Time(self.now))),
            observed_generation: self.pod.metadata.generation,
            ..PodCondition::default()
        }
    }
}
