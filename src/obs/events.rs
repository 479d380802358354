//! Events: what happened to a pod, in upstream's reasons and words, kept for those who ask.
//!
//! Bounded: the oldest event goes when there are too many, and one that repeats is counted rather than kept again, as
//! upstream's correlator does (`client-go/tools/record/events_cache.go`).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use serde::{Deserialize, Serialize};

/// Most events that are kept.
const KEPT: usize = 2_000;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// As intended.
    Normal,
    /// Somebody may have to act.
    Warning,
}

/// Something that happened to a pod, once or several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodEvent {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// `spec.containers{web}`, or empty for the pod as a whole.
    pub field_path: String,
    /// Normal or Warning.
    pub severity: Severity,
    /// `Started`, `BackOff`, `FailedMount`, …
    pub reason: String,
    /// One line.
    pub message: String,
    /// How often it happened.
    pub count: u32,
    /// When for the first time.
    pub first: Timestamp,
    /// When for the last time.
    pub last: Timestamp,
}

/// Where events are recorded; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    events: Arc<Mutex<VecDeque<PodEvent>>>,
}

impl Recorder {
    /// Notes that something happened to `pod`, or to `container` of it, at `now`.
    pub fn record(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
        now: Timestamp,
    ) {
        let metadata = &pod.metadata;
        let event = PodEvent {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            field_path: container.map(|container| field_path(pod, container)).unwrap_or_default(),
            severity,
            reason: reason.to_owned(),
            message: message.into(),
            count: 1,
            first: now,
            last: now,
        };
        let mut events = self.lock();
        let same = |known: &PodEvent| {
            known.uid == event.uid
                && known.reason == event.reason
                && known.field_path == event.field_path
                && known.message == event.message
        };
        match events.iter().rposition(same) {
            // The newest is last.
            Some(position) => {
                if let Some(mut known) = events.remove(position) {
                    known.count = known.count.saturating_add(1);
                    known.last = now;
                    events.push_back(known);
                }
            }
            None => {
                if events.len() >= KEPT {
                    events.pop_front();
                }
                events.push_back(event);
            }
        }
    }

    /// All events, the oldest first.
    pub fn list(&self) -> Vec<PodEvent> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<PodEvent>> {
        // Whole after every step.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where `container` stands in the pod, as upstream writes it into `involvedObject.fieldPath`.
fn field_path(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    let list = if init.iter().any(|known| known.name == container) {
        "initContainers"
    } else if ephemeral.iter().any(|known| known.name == container) {
        "ephemeralContainers"
    } else {
        "containers"
    };
    format!("spec.{list}{{{container}}}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        let spec = json!({"initContainers": [{"name": "first"}], "containers": [{"name": "app"}]});
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "n", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_repeats_is_counted_and_becomes_the_newest() {
        let recorder = Recorder::default();
        recorder.record(&pod(), Some("app"), Severity::Warning, "BackOff", "again", at(1));
        recorder.record(&pod(), Some("first"), Severity::Normal, "Started", "Started container first", at(2));
        recorder.record(&pod(), Some("app"), Severity::Warning, "BackOff", "again", at(3));
        let events = recorder.list();
        let told: Vec<_> = events.iter().map(|event| (event.field_path.as_str(), event.count)).collect();
        assert_eq!(told, [("spec.initContainers{first}", 1), ("spec.containers{app}", 2)]);
        assert_eq!((events[1].first, events[1].last), (at(1), at(3)));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let recorder = Recorder::default();
        for number in 0..KEPT + 5 {
            recorder.record(&pod(), None, Severity::Normal, "Happened", number.to_string(), at(1));
        }
        let events = recorder.list();
        assert_eq!((events.len(), events[0].message.as_str()), (KEPT, "5"));
    }
}
