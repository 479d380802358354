//! What an actor needs of the outside world: one verb and a stream of events.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Pod, ResourceStatus},
    jiff::Timestamp,
};

use super::{
    handle::{BoxFuture, ExecSession, NodeError, Stage, TerminalSize, Usage},
    record::PodRecord,
};
use crate::{
    pod::{
        Action, Eviction, Grants, Outcome,
        happening::Happening,
        observed::{Attempt, Probed},
        probe::ProbeKey,
    },
    supervisor::spec::ExecSpec,
};

/// The hands of one pod. The real one is [`super::execute::Host`]; tests script one.
pub trait PodHost: Send + Sync + 'static {
    /// Does `action` for `pod`. May be repeated. Every action returns within a bounded time or concerns
    /// this pod alone.
    fn execute(self: Arc<Self>, pod: Arc<Pod>, action: Action) -> BoxFuture<'static, Result<Done, ActionError>>;

    /// Makes a changed pod durable in the ledger ([`Action::RecordPod`]). The hands go by it from then on.
    fn record(self: Arc<Self>, record: Arc<PodRecord>) -> BoxFuture<'static, Result<Done, ActionError>>;

    /// The time. Tests have one of their own.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Something happened that is worth an event. Must not block.
    fn happened(&self, _pod: &Pod, _happening: Happening) {}

    /// The pod is to go: what is being set up for it is not needed any more. May be said more than once.
    fn terminating(&self) {}

    /// An attempt ended: the room to remove what only its processes needed (its cgroup). Called once for each.
    fn attempt_ended(&self, _attempt: &Attempt) {}

    /// By volume of `pod` whose content comes from objects: what stands for the content it should have now. Quick; the
    /// objects are in memory.
    fn contents(&self, _pod: &Pod) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }

    /// What the pod's containers were given for themselves.
    fn grants(&self) -> Grants {
        Grants::default()
    }

    /// By container: the health of the devices that it was given. Quick; what plugins say is in memory.
    fn device_health(&self) -> BTreeMap<String, Vec<ResourceStatus>> {
        BTreeMap::new()
    }

    /// Runs a command in a running container.
    fn exec(
        self: Arc<Self>,
        spec: ExecSpec,
        _stdio: Vec<OwnedFd>,
    ) -> BoxFuture<'static, Result<ExecSession, NodeError>> {
        let container = spec.container;
        Box::pin(async move { Err(NodeError::Conflict(format!("container {container} cannot run commands"))) })
    }

    /// Attaches stdin, stdout and (without a terminal) stderr to a running container.
    fn attach(self: Arc<Self>, container: String, _stdio: Vec<OwnedFd>) -> BoxFuture<'static, Result<(), NodeError>> {
        Box::pin(async move { Err(NodeError::Conflict(format!("container {container} cannot be attached to"))) })
    }

    /// Runs a probe of `pod` once, within its own time, and tells what is to be told of it. Given up when it is dropped.
    fn probe(self: Arc<Self>, _pod: Arc<Pod>, _key: ProbeKey) -> BoxFuture<'static, Answer> {
        Box::pin(async { Answer::default() })
    }

    /// What probes have found has changed: keeps it for an agent to come. Must not block.
    fn keep_verdicts(self: Arc<Self>, _probes: &BTreeMap<String, Probed>) {}

    /// Sets the size of a running container's terminal.
    fn resize_terminal(
        self: Arc<Self>,
        container: String,
        _size: TerminalSize,
    ) -> BoxFuture<'static, Result<(), NodeError>> {
        Box::pin(async move { Err(NodeError::Conflict(format!("container {container} has no terminal"))) })
    }

    /// Figures of the pod and of the containers given as (name, id), which run.
    fn usage(self: Arc<Self>, _running: Vec<(String, String)>) -> BoxFuture<'static, Vec<Usage>> {
        Box::pin(async { Vec::new() })
    }
}

/// What a probe answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether the container passed. `None`: it could not be asked, which says nothing about it.
    pub success: Option<bool>,
    /// What was said if it did not.
    pub message: String,
}

/// An action that succeeded.
#[derive(Debug)]
pub struct Done {
    /// What was observed.
    pub outcome: Outcome,
    /// Finer stages within it, microseconds since it was begun.
    pub stages: Vec<Stage>,
}

impl Done {
    /// Without stages of its own.
    pub fn new(outcome: Outcome) -> Done {
        Done { outcome, stages: Vec::new() }
    }
}

/// An action that failed: reason and message for the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionError {
    /// Upstream's reason where there is one.
    pub reason: String,
    /// The error with its causes, one line.
    pub message: String,
}

impl ActionError {
    /// `reason` with the chain of `error` as message.
    pub fn new(reason: &str, error: &dyn std::error::Error) -> ActionError {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        ActionError { reason: reason.to_owned(), message }
    }
}

/// What happens to a pod by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// An attempt ended; its record has been read.
    Ended {
        /// Container.
        container: String,
        /// As it is now.
        attempt: Attempt,
    },
    /// A probe has come to another verdict.
    Probed {
        /// Which.
        key: ProbeKey,
        /// The verdict.
        success: bool,
        /// What the probe that decided it said, if it failed.
        message: String,
    },
    /// The supervisor is gone, and its containers with it.
    SandboxLost {
        /// Which of the pod's sandboxes it held.
        generation: u32,
        /// The attempts of that sandbox, by container: each ended, by its record or in an unknown way.
        ended: Vec<(String, Attempt)>,
    },
    /// The pod uses more than it may, and has to end. Durable already.
    Evicted(Eviction),
}
