//! What one actor remembers between two plans that cannot be observed: requests, failures, timers.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::PodStatus,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    action::{Action, Hook},
    admission::Rejection,
    backoff::{Backoff, BackoffPolicy, RETRY},
    preemption::Eviction,
    resize::Pending,
    verdict::Verdict,
};

/// Reasons of failures that an object may mend (a volume's or a variable's source, a pull secret, a runtime class), or a
/// storage driver that registers.
const AWAITS_OBJECTS: [&str; 6] = [
    "FailedMount",
    "FailedMapVolume",
    "FailedUnMount",
    "CreateContainerConfigError",
    "ErrImagePull",
    "FailedCreatePodSandBox",
];

/// The memory of one actor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// When the agent took the pod up (`status.startTime`); durable in the ledger.
    pub start_time: Option<Timestamp>,
    /// Set once the pod is to go; never unset.
    pub termination: Option<Termination>,
    /// Why the node does not run it; durable in the ledger.
    pub rejection: Option<Rejection>,
    /// Why the node does not run it any more; durable in the ledger.
    pub eviction: Option<Eviction>,
    /// Actions under way.
    pub in_flight: BTreeSet<Action>,
    /// Those of them that were begun before an object changed: they may fail for what is there by now.
    pub outrun: BTreeSet<Action>,
    /// The last failure of an action, until it succeeds.
    pub failures: Vec<Failure>,
    /// When the containers of the pod began to be stopped, all of them.
    pub down_since: Option<Timestamp>,
    /// Ends of containers under way.
    pub stopping: BTreeMap<String, Stop>,
    /// Hooks that were given up and have not ended yet.
    pub abandoned: BTreeSet<(String, u32, Hook)>,
    /// SIGKILL sent: container to (attempt, when).
    pub killed: BTreeMap<String, (u32, Timestamp)>,
    /// Crash-loop delays by container.
    pub crash_loop: BTreeMap<String, Backoff>,
    /// A change of resources that has no room.
    pub resize: Option<Pending>,
    /// The status last published; keeps transition times.
    pub status: PodStatus,
}

/// How far the end of an attempt has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Attempt.
    pub attempt: u32,
    /// When its preStop hook was begun, or the stop signal sent: the grace period counts from here.
    pub since: Timestamp,
    /// When the stop signal was sent.
    pub signalled: Option<Timestamp>,
}

/// The pod is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// When it was first asked for.
    pub since: Timestamp,
    /// Seconds between the stop signal and SIGKILL; only ever shrinks.
    pub grace: i64,
}

/// An action that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The action as it was tried last.
    pub action: Action,
    /// Reason for the status: `ErrImagePull`, `CreateContainerConfigError`, `FailedMount`, …
    pub reason: String,
    /// The error with its causes.
    pub message: String,
    /// When and how often: decides the next try.
    pub backoff: Backoff,
}

impl Failure {
    /// Ends the delay if it is one that an object may have ended.
    fn try_again(&mut self, now: Timestamp) {
        if AWAITS_OBJECTS.contains(&self.reason.as_str()) {
            self.backoff = Backoff { updated: now, ..Backoff::default() };
        }
    }
}

impl Memory {
    /// Asks for the pod's end. A shorter grace period replaces a longer one, never the other way round.
    pub fn terminate(&mut self, grace: i64, now: Timestamp) {
        match &mut self.termination {
            Some(termination) => termination.grace = termination.grace.min(grace),
            None => self.termination = Some(Termination { since: now, grace }),
        }
    }

    /// Why the pod has failed whatever its containers do, if it has.
    pub fn verdict(&self) -> Option<Verdict> {
        let rejected = self.rejection.clone().map(Verdict::Rejected);
        rejected.or_else(|| self.eviction.clone().map(Verdict::Evicted))
    }

    /// Takes up what an earlier agent decided.
    pub fn resume_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Rejected(rejection) => self.rejection = Some(rejection),
            Verdict::Evicted(eviction) => self.eviction = Some(eviction),
        }
    }

    /// The failure that concerns `action`, if it has not succeeded since.
    pub fn failure_of(&self, action: &Action) -> Option<&Failure> {
        self.failures.iter().find(|failure| failure.action.same_subject(action))
    }

    /// The failure that keeps a container from being started, whatever the step.
    pub fn start_failure(&self, container: &str) -> Option<&Failure> {
        let container = container.to_owned();
        let resolve = Action::ResolveImage { container: container.clone(), attempt: 0 };
        let prepare = Action::PrepareContainer { container: container.clone(), attempt: 0, generation: 0, epoch: 0 };
        let release = Action::ReleaseContainer { container: container.clone(), attempt: 0, generation: 0, epoch: 0 };
        let start = Action::StartContainer { container, attempt: 0 };
        [resolve, prepare, start, release].iter().find_map(|action| self.failure_of(action))
    }

    /// When `action` may be tried (again): `None` for now.
    pub fn retry_at(&self, action: &Action, now: Timestamp) -> Option<Timestamp> {
        self.failure_of(action).map(|failure| failure.backoff.until()).filter(|until| *until > now)
    }

    /// An object the pod refers to has appeared, changed or gone: what failed for want of one is tried again at once.
    /// The failure itself stays until that succeeds.
    /// A pull is tried again only if the change is one of `credentials`: a registry is not asked more often because a
    /// config map changes.
    pub fn objects_changed(&mut self, credentials: bool, now: Timestamp) {
        let concerns = |action: &Action| credentials || !matches!(action, Action::ResolveImage { .. });
        self.outrun.extend(self.in_flight.iter().filter(|action| concerns(action)).cloned());
        for failure in self.failures.iter_mut().filter(|failure| concerns(&failure.action)) {
            failure.try_again(now);
        }
    }

    /// Notes that `action` is under way.
    pub fn begun(&mut self, action: &Action, crash_loop: &BackoffPolicy, now: Timestamp) {
        self.in_flight.insert(action.clone());
        match action {
            // The delay before the next restart counts from the end of this run, but grows with each start; one that
            // is tried again after a failure has been counted.
            Action::StartContainer { container, attempt }
                if *attempt > 0 && self.failure_of(action).is_none_or(|failure| failure.action != *action) =>
            {
                let backoff = self.crash_loop.entry(container.clone()).or_default();
                backoff.advance(crash_loop, now);
            }
            Action::RunHook { container, attempt, hook: Hook::PreStop } => {
                self.stop(container, *attempt, now);
            }
            Action::StopContainer { container, attempt } => {
                self.stop(container, *attempt, now).signalled = Some(now);
            }
            Action::AbandonHook { container, attempt, hook } => {
                self.abandoned.insert((container.clone(), *attempt, *hook));
            }
            Action::KillContainer { container, attempt } => {
                self.killed.insert(container.clone(), (*attempt, now));
            }
            _ => {}
        }
    }

    fn stop(&mut self, container: &str, attempt: u32, now: Timestamp) -> &mut Stop {
        let begun = || Stop { attempt, since: now, signalled: None };
        let stop = self.stopping.entry(container.to_owned()).or_insert_with(begun);
        if stop.attempt != attempt {
            *stop = begun();
        }
        stop
    }

    /// Notes that `action` is over.
    pub fn ended(&mut self, action: &Action, error: Option<(String, String)>, now: Timestamp) {
        self.in_flight.remove(action);
        if let Action::RunHook { container, attempt, hook } = action {
            self.abandoned.remove(&(container.clone(), *attempt, *hook));
        }
        if let (Action::AbandonHook { container, attempt, hook }, Some(_)) = (action, &error) {
            self.abandoned.remove(&(container.clone(), *attempt, *hook)); // not given up: its own backoff counts
        }
        if let (Action::KillContainer { container, .. }, Some(_)) = (action, &error) {
            self.killed.remove(container); // not sent: its own backoff counts
        }
        let outrun = self.outrun.remove(action);
        let position = self.failures.iter().position(|failure| failure.action.same_subject(action));
        match (error, position) {
            (None, Some(position)) => {
                self.failures.remove(position);
            }
            (None, None) => {}
            (Some((reason, message)), Some(position)) => {
                let failure = &mut self.failures[position];
                failure.action = action.clone();
                failure.backoff.advance(retry_policy(action, &reason), now);
                failure.reason = reason;
                failure.message = message;
            }
            (Some((reason, message)), None) => {
                let mut backoff = Backoff::default();
                backoff.advance(retry_policy(action, &reason), now);
                self.failures.push(Failure { action: action.clone(), reason, message, backoff });
            }
        }
        if let Some(failure) = self.failures.iter_mut().find(|failure| outrun && failure.action == *action) {
            failure.try_again(now);
        }
    }

    /// After a restart of the agent: the delay a container had earned, as far as its attempt number tells.
    pub fn resume_crash_loop(&mut self, container: &str, attempt: u32, started_at: Timestamp, policy: &BackoffPolicy) {
        let backoff = self.crash_loop.entry(container.to_owned()).or_default();
        for _ in 0..attempt.min(16) {
            backoff.advance(policy, started_at);
        }
    }
}

/// Reasons of an image that is not here.
const OF_IMAGES: [&str; 5] =
    ["ErrImageNeverPull", "ErrImagePull", "ImageInspectError", "InvalidImageName", "RegistryUnavailable"];

impl Failure {
    /// Whether it is an image that could not be had, for a container or a volume.
    pub fn is_of_image(&self) -> bool {
        OF_IMAGES.contains(&self.reason.as_str())
    }
}

fn retry_policy(action: &Action, reason: &str) -> &'static BackoffPolicy {
    match action {
        Action::ResolveImage { .. } => &super::backoff::IMAGE_PULL,
        Action::MountVolume(_) if OF_IMAGES.contains(&reason) => &super::backoff::IMAGE_PULL,
        Action::PrepareContainer { .. } | Action::StartContainer { .. } | Action::ReleaseContainer { .. } => {
            &super::backoff::CREATE
        }
        Action::EnsureDirs | Action::RecordPod | Action::RecordVerdict(_) => &super::backoff::OWN_DISK,
        _ => &RETRY,
    }
}

/// Seconds as a span of time.
pub(super) fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}
