//! Room on the node: who takes it up, who is leaving it, and who waits for it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::{sync::watch, task::JoinSet};
use tracing::info;

use super::{
    actor::Report,
    manager::{Manager, Running},
};
use crate::{
    obs::events::Severity,
    pod::{Eviction, Rejection, desired::DesiredPod, observed::Sandbox},
};

/// Reason in the status of a pod that waits for room. Upstream has none: there such a pod is rejected.
const WAITING: &str = "WaitingForRoom";

/// A pod that has no actor yet, as others are still in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingPod {
    /// With a status that says what it waits for.
    pub pod: Pod,
    /// Where it was asked for.
    pub source: String,
}

impl WaitingPod {
    fn new(desired: &DesiredPod, why: String) -> WaitingPod {
        let mut pod = desired.pod.pod.clone();
        let status = pod.status.get_or_insert_default();
        status.phase = Some("Pending".to_owned());
        (status.reason, status.message) = (Some(WAITING.to_owned()), Some(why));
        WaitingPod { pod, source: desired.pod.origin.clone() }
    }
}

impl Running {
    /// It takes up room on the node: it was admitted and has not ended.
    pub(super) fn takes_room(&self) -> bool {
        !self.idle && !is_over(&self.reports)
    }

    /// It has been told to end, and its room will be free then.
    pub(super) fn is_going(&self) -> bool {
        let wanted = self.wanted.borrow();
        wanted.terminate.is_some() || wanted.evict.is_some()
    }

    /// The node runs it no more.
    pub(super) fn evict(&self, eviction: Eviction) {
        self.wanted.send_if_modified(|wanted| {
            let first = wanted.evict.is_none();
            wanted.evict.get_or_insert(eviction);
            first
        });
    }

    /// Has its end told: it stays, but what it has is free then.
    pub(super) fn watch(&mut self, leaving: &mut JoinSet<()>) {
        if self.watched {
            return;
        }
        self.watched = true;
        let mut reports = self.reports.clone();
        // An actor that is gone has nothing left, either.
        leaving.spawn(async move { while !is_over(&reports) && reports.changed().await.is_ok() {} });
    }

    fn is_evicted(&self) -> bool {
        self.wanted.borrow().evict.is_some()
    }
}

/// The pod has ended and holds neither processes nor ports.
fn is_over(reports: &watch::Receiver<Option<Arc<Report>>>) -> bool {
    let report = reports.borrow();
    let Some(report) = report.as_ref() else { return false };
    let phase = report.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let Report { observed, .. } = &**report;
    matches!(phase, Some("Succeeded" | "Failed"))
        && observed.sandbox == Sandbox::Absent
        && !observed.leftovers.network
        && observed.running().next().is_none()
}

impl Manager {
    /// Why a new pod may not start before those that go are gone, if so. Tells pods to go that have to. `waiting` are pods
    /// that wait for room and come before this one.
    pub(super) fn make_room(&mut self, pod: &Pod, waiting: &[&Pod]) -> Result<Option<String>, Rejection> {
        let here: Vec<&Running> = self.running.values().filter(|running| running.takes_room()).collect();
        let beside = |running: &[&Running]| -> Result<Vec<String>, Rejection> {
            let mut others: Vec<&Pod> = running.iter().map(|running| &*running.effective).collect();
            others.extend(waiting);
            self.hosts.admit(pod, &others)
        };
        let why = match beside(&here) {
            Ok(victims) if victims.is_empty() => return Ok(None),
            Ok(_) => "other pods end for this one".to_owned(),
            Err(rejection) => format!("pods that end will leave room: {}", rejection.message),
        };
        let staying: Vec<&Running> = here.iter().copied().filter(|running| !running.is_going()).collect();
        let victims = beside(&staying)?;
        for running in staying.iter().filter(|running| victims.iter().any(|victim| victim == running.record.uid())) {
            info!(pod = running.full_name, uid = running.record.uid(), "the pod goes for a critical one");
            let eviction = Eviction::preempted(self.hosts.now());
            self.hosts.event(&running.record.pod, Severity::Warning, &eviction.reason, eviction.message.clone());
            running.evict(eviction);
        }
        self.watch_leaving();
        Ok(Some(why))
    }

    /// Tells readers which pods wait for room.
    pub(super) fn tell_waiting(&self, waiting: Vec<(&DesiredPod, String)>) {
        let waiting: Vec<WaitingPod> = waiting.into_iter().map(|(pod, why)| WaitingPod::new(pod, why)).collect();
        self.for_room.send_if_modified(|known| {
            let differs = *known != waiting;
            *known = waiting;
            differs
        });
    }

    /// The pods that wait for room, now and in future.
    pub fn waiting_for_room(&self) -> watch::Receiver<Vec<WaitingPod>> {
        self.for_room.subscribe()
    }

    /// Has `pod_gone` tell when pods that were evicted are over: they stay, but their room is free.
    fn watch_leaving(&mut self) {
        for running in self.running.values_mut().filter(|running| running.is_evicted()) {
            running.watch(&mut self.leaving);
        }
    }
}
