//! Events: what happened to a pod, in upstream's reasons and words, kept for those who ask.
//!
//! Bounded as upstream's correlator bounds what it sends (`client-go/tools/record/events_cache.go`): an event that
//! repeats is counted rather than kept again, many that differ in their message alone become one, and a pod that has
//! used up its share is told of no more for a while. The oldest event goes when there are too many.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::{SignedDuration, Timestamp},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::pod::happening::Happening;
pub use crate::pod::happening::Severity;

/// `source.component` of the events.
const COMPONENT: &str = "berth";
/// So many different messages of one reason within [`SIMILAR_WITHIN`] are the last that are kept apart.
const SIMILAR: usize = 10;
/// See [`SIMILAR`].
const SIMILAR_WITHIN: SignedDuration = SignedDuration::from_secs(600);
/// Begins the message of what stands for several.
pub(super) const COMBINED: &str = "(combined from similar events): ";
/// Events about one pod at once …
const BURST: f64 = 25.0;
/// … and how many more each second.
const REFILL: f64 = 1.0 / 300.0;
/// Pods whose share is remembered; one that has all of it need not be.
const SHARES: usize = 4096;
/// Longest message, bytes. It may come from an image or a registry.
const MESSAGE: usize = 1024;

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
    /// Grows with every change that is told; those of an earlier agent begin at 1.
    #[serde(skip)]
    pub revision: u64,
}

impl PodEvent {
    /// Whether both are the same, happening again.
    fn repeats(&self, other: &PodEvent) -> bool {
        self.similar(other) && self.field_path == other.field_path && self.message == other.message
    }

    /// Whether both are the same but for what exactly they say.
    fn similar(&self, other: &PodEvent) -> bool {
        self.uid == other.uid && self.severity == other.severity && self.reason == other.reason
    }

    /// Upstream's object, of the node `host`.
    pub fn to_event(&self, host: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                // The same for as long as the event is: upstream's name has the time of the first one in it, too.
                name: Some(format!("{}.{:x}", self.name, self.first.as_nanosecond())),
                namespace: Some(self.namespace.clone()),
                creation_timestamp: Some(Time(self.first)),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                uid: Some(self.uid.clone()),
                field_path: (!self.field_path.is_empty()).then(|| self.field_path.clone()),
                resource_version: None,
            },
            type_: Some(self.severity.as_str().to_owned()),
            reason: Some(self.reason.clone()),
            message: Some(self.message.clone()),
            count: Some(i32::try_from(self.count).unwrap_or(i32::MAX)),
            first_timestamp: Some(Time(self.first)),
            last_timestamp: Some(Time(self.last)),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(host.to_owned()) }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(host.to_owned()),
            ..Event::default()
        }
    }
}

/// Where events are recorded; cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    log: Arc<Mutex<Log>>,
    revision: Arc<watch::Sender<u64>>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder::new(1000)
    }
}

#[derive(Debug)]
struct Log {
    kept: usize,
    /// In the order of their revisions.
    events: VecDeque<PodEvent>,
    /// For each event a hash of its pod's UID: few bytes to look through for a pod's own events.
    pods: VecDeque<u64>,
    shares: HashMap<u64, Share>,
    revision: u64,
}

/// What a pod may still have told of it.
#[derive(Debug, Clone, Copy)]
struct Share {
    left: f64,
    at: Timestamp,
}

impl Share {
    fn at(self, now: Timestamp) -> f64 {
        // A clock that was set back gives nothing.
        let seconds = now.duration_since(self.at).as_secs_f64().max(0.0);
        (self.left + seconds * REFILL).min(BURST)
    }
}

fn hash(uid: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    hasher.finish()
}

impl Recorder {
    /// Keeps `kept` events at most; with 0 none is ever recorded.
    pub fn new(kept: usize) -> Recorder {
        let log = Log { kept, events: VecDeque::new(), pods: VecDeque::new(), shares: HashMap::new(), revision: 0 };
        Recorder { log: Arc::new(Mutex::new(log)), revision: Arc::new(watch::Sender::new(0)) }
    }

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
            message: shortened(message.into()),
            count: 1,
            first: now,
            last: now,
            revision: 0,
        };
        let told = self.lock().add(event, now);
        if let Some(revision) = told {
            self.revision.send_replace(revision);
        }
    }

    /// Notes what `happening` says of `pod`.
    pub fn happened(&self, pod: &Pod, happening: Happening, now: Timestamp) {
        let Happening { container, severity, reason, message } = happening;
        self.record(pod, container.as_deref(), severity, &reason, message, now);
    }

    /// Takes over what an earlier agent recorded, the oldest first.
    pub fn restore(&self, events: Vec<PodEvent>) {
        let mut log = self.lock();
        for event in events {
            log.push(event);
        }
        self.revision.send_replace(log.revision);
    }

    /// All events, those that happened last at the end.
    pub fn list(&self) -> Vec<PodEvent> {
        self.since(0)
    }

    /// What is new since `revision`, in order.
    pub fn since(&self, revision: u64) -> Vec<PodEvent> {
        let log = self.lock();
        let from = log.events.partition_point(|event| event.revision <= revision);
        log.events.range(from..).cloned().collect()
    }

    /// The newest revision: changes whenever there is something new to tell.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // Whole after every step.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Adds or counts an event; its revision if it is to be told.
    fn add(&mut self, mut event: PodEvent, now: Timestamp) -> Option<u64> {
        if self.kept == 0 {
            return None;
        }
        let pod = hash(&event.uid);
        let recent = |known: &PodEvent| now.duration_since(known.last) <= SIMILAR_WITHIN;
        let mut known = None;
        let (mut similar, mut combined) = (0, None);
        for (index, _) in self.pods.iter().enumerate().rev().filter(|(_, of)| **of == pod) {
            let other = &self.events[index];
            if other.repeats(&event) {
                known = Some(index);
                break;
            }
            if other.similar(&event) && recent(other) {
                match other.message.starts_with(COMBINED) {
                    true => combined = combined.or(Some(index)),
                    false => similar += 1,
                }
            }
        }
        if known.is_none() && similar + 1 >= SIMILAR {
            event.message = shortened(format!("{COMBINED}{}", event.message));
            known = combined;
        }
        let told = self.take_share(pod, now);
        match known {
            Some(index) if told => {
                let _ = self.pods.remove(index);
                let earlier = self.events.remove(index)?;
                event.count = earlier.count.saturating_add(1);
                event.first = earlier.first;
            }
            // Counted all the same, for whoever looks.
            Some(index) => {
                let earlier = &mut self.events[index];
                earlier.count = earlier.count.saturating_add(1);
                earlier.last = now;
                return None;
            }
            None if told => {}
            None => return None,
        }
        self.push(event);
        Some(self.revision)
    }

    fn push(&mut self, mut event: PodEvent) {
        self.revision += 1;
        event.revision = self.revision;
        self.pods.push_back(hash(&event.uid));
        self.events.push_back(event);
        while self.events.len() > self.kept {
            self.events.pop_front();
            self.pods.pop_front();
        }
    }

    fn take_share(&mut self, pod: u64, now: Timestamp) -> bool {
        if self.shares.len() >= SHARES && !self.shares.contains_key(&pod) {
            self.shares.retain(|_, share| share.at(now) < BURST);
            if self.shares.len() >= SHARES {
                // So many pods that all have much to say: whoever is new begins with a full share, and so do they.
                self.shares.clear();
            }
        }
        let share = self.shares.entry(pod).or_insert(Share { left: BURST, at: now });
        let left = share.at(now);
        let told = left >= 1.0;
        *share = Share { left: if told { left - 1.0 } else { left }, at: now };
        told
    }
}

/// At most [`MESSAGE`] bytes, cut between two characters.
fn shortened(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MESSAGE));
    message
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

    fn pod_of(uid: &str) -> Pod {
        let spec = json!({"initContainers": [{"name": "first"}], "containers": [{"name": "app"}]});
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "n", "uid": uid}, "spec": spec}))
            .unwrap()
    }

    fn pod() -> Pod {
        pod_of("u")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn note(recorder: &Recorder, reason: &str, message: &str, second: i64) {
        recorder.record(&pod(), None, Severity::Normal, reason, message, at(second));
    }

    fn messages(recorder: &Recorder) -> Vec<String> {
        recorder.list().into_iter().map(|event| format!("{} x{}", event.message, event.count)).collect()
    }

    #[test]
    fn what_repeats_is_counted_and_becomes_the_newest() {
        let recorder = Recorder::default();
        recorder.record(&pod(), Some("app"), Severity::Warning, "BackOff", "again", at(1));
        recorder.record(&pod(), Some("first"), Severity::Normal, "Started", "Container started", at(2));
        recorder.record(&pod(), Some("app"), Severity::Warning, "BackOff", "again", at(3));
        let events = recorder.list();
        let told: Vec<_> = events.iter().map(|event| (event.field_path.as_str(), event.count)).collect();
        assert_eq!(told, [("spec.initContainers{first}", 1), ("spec.containers{app}", 2)]);
        assert_eq!((events[1].first, events[1].last), (at(1), at(3)));
    }

    #[test]
    fn two_containers_and_two_pods_do_not_repeat_each_other() {
        let recorder = Recorder::default();
        for container in ["app", "first"] {
            recorder.record(&pod(), Some(container), Severity::Normal, "Started", "Container started", at(1));
        }
        recorder.record(&pod_of("v"), Some("app"), Severity::Normal, "Started", "Container started", at(1));
        assert_eq!(messages(&recorder), ["Container started x1"; 3]);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let recorder = Recorder::new(3);
        for number in 0..5 {
            let pod = pod_of(&number.to_string());
            recorder.record(&pod, None, Severity::Normal, "Happened", number.to_string(), at(1));
        }
        assert_eq!(messages(&recorder), ["2 x1", "3 x1", "4 x1"]);
        let none = Recorder::new(0);
        note(&none, "Happened", "a", 1);
        assert_eq!(none.list(), []);
    }

    #[test]
    fn many_that_differ_in_their_message_become_one() {
        let recorder = Recorder::default();
        for number in 0..9 {
            note(&recorder, "FailedMount", &number.to_string(), number);
        }
        note(&recorder, "FailedMount", "ten", 10);
        note(&recorder, "FailedMount", "eleven", 11);
        note(&recorder, "Other", "ten", 11);
        note(&recorder, "FailedMount", "8", 12);
        let told = messages(&recorder);
        assert_eq!(told.len(), 11, "{told:?}");
        assert_eq!(told[8..], ["(combined from similar events): eleven x2", "ten x1", "8 x2"]);
        note(&recorder, "FailedMount", "much later", 1000);
        assert_eq!(messages(&recorder)[11], "much later x1", "ten minutes are another time");
    }

    #[test]
    fn a_pod_that_says_too_much_is_counted_but_not_told() {
        let recorder = Recorder::default();
        for number in 0..25 {
            note(&recorder, &format!("Reason{number}"), "a", 1);
        }
        let told = recorder.subscribe();
        note(&recorder, "Reason3", "a", 2);
        note(&recorder, "OneMore", "a", 2);
        assert!(!told.has_changed().unwrap());
        let events = recorder.list();
        assert_eq!((events.len(), events[3].count, events[3].last), (25, 2, at(2)));
        recorder.record(&pod_of("quiet"), None, Severity::Normal, "Started", "b", at(2));
        assert_eq!(recorder.list().len(), 26, "others have a share of their own");
        note(&recorder, "OneMore", "a", 302);
        assert_eq!(recorder.list().len(), 27, "five minutes give one more");
        note(&recorder, "Another", "a", 303);
        assert_eq!(recorder.list().len(), 27);
    }

    #[test]
    fn readers_get_what_is_new_to_them() {
        let recorder = Recorder::default();
        let mut news = recorder.subscribe();
        note(&recorder, "A", "a", 1);
        note(&recorder, "B", "b", 2);
        assert_eq!(*news.borrow_and_update(), 2);
        note(&recorder, "A", "a", 3);
        let new = recorder.since(2);
        assert_eq!((new.len(), new[0].reason.as_str(), new[0].count), (1, "A", 2));
        assert_eq!(recorder.since(3), []);
    }

    #[test]
    fn an_event_is_upstreams_object() {
        let recorder = Recorder::default();
        recorder.record(&pod(), Some("app"), Severity::Warning, "Failed", "no".repeat(2000), at(1));
        let event = recorder.list()[0].to_event("node1");
        let value = serde_json::to_value(&event).unwrap();
        assert_eq!(value["metadata"]["name"], "web.3b9aca00");
        assert_eq!(value["involvedObject"]["fieldPath"], "spec.containers{app}");
        assert_eq!((value["type"].as_str(), value["count"].as_i64()), (Some("Warning"), Some(1)));
        assert_eq!(value["source"]["host"], "node1");
        assert_eq!(value["message"].as_str().unwrap().len(), MESSAGE);
    }
}
