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
    pod::{Eviction, Rejection, observed::Sandbox},
};

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
    /// Whether a new pod may start now (`false`: when those that go are gone). Tells pods to go that have to. `waiting`
    /// are pods that wait for room and come before this one.
    pub(super) fn make_room(&mut self, pod: &Pod, waiting: &[&Pod]) -> Result<bool, Rejection> {
        let here: Vec<&Running> = self.running.values().filter(|running| running.takes_room()).collect();
        let beside = |running: &[&Running]| -> Result<Vec<String>, Rejection> {
            let mut others: Vec<&Pod> = running.iter().map(|running| &*running.effective).collect();
            others.extend(waiting);
            self.hosts.admit(pod, &others)
        };
        if beside(&here).is_ok_and(|victims| victims.is_empty()) {
            return Ok(true);
        }
        let staying: Vec<&Running> = here.iter().copied().filter(|running| !running.is_going()).collect();
        let victims = beside(&staying)?;
        for running in staying.iter().filter(|running| victims.iter().any(|victim| victim == running.record.uid())) {
            info!(pod = running.full_name, uid = running.record.uid(), "the pod goes for a critical one");
            let eviction = Eviction::preempted(self.hosts.now());
            self.hosts.event(&running.record.pod, Severity::Warning, &eviction.reason, eviction.message.clone());
            running.evict(eviction);
        }
        self.watch_leaving();
        Ok(false)
    }

    /// Has `pod_gone` tell when pods that were evicted are over: they stay, but their room is free.
    fn watch_leaving(&mut self) {
        for running in self.running.values_mut().filter(|running| running.is_evicted()) {
            running.watch(&mut self.leaving);
        }
    }
}
