//! Events of pods as upstream has them (`Pulled`, `BackOff`, `FailedCreatePodSandBox`, …), kept in memory, the newest
//! ones only.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened last.
    pub time: Timestamp,
    /// `namespace/name` of the pod, or the node's name.
    pub object: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// Upstream's reason: `Started`, `BackOff`.
    pub reason: String,
    /// One line.
    pub message: String,
    /// How often it happened.
    pub count: u32,
}

/// Upstream's `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// The newest events.
#[derive(Debug)]
pub struct EventList {
    capacity: usize,
    events: Mutex<VecDeque<Event>>,
}

impl EventList {
    /// Keeps at most `capacity` events.
    pub fn new(capacity: usize) -> EventList {
        EventList { capacity, events: Mutex::new(VecDeque::new()) }
    }

    /// Adds an event. The same again (object, reason and message) is counted instead, and becomes the newest.
    pub fn record(&self, time: Timestamp, object: &str, kind: EventKind, reason: &str, message: &str) {
        let mut events = self.lock();
        let same = |event: &Event| event.object == object && event.reason == reason && event.message == message;
        let count = match events.iter().rposition(same) {
            Some(index) => events.remove(index).map_or(0, |event| event.count),
            None => 0,
        };
        events.push_back(Event {
            time,
            object: object.to_owned(),
            kind,
            reason: reason.to_owned(),
            message: message.to_owned(),
            count: count.saturating_add(1),
        });
        while events.len() > self.capacity {
            events.pop_front();
        }
    }

    /// All of them, or those of one object, oldest first.
    pub fn list(&self, object: Option<&str>) -> Vec<Event> {
        let wanted = |event: &&Event| object.is_none_or(|object| event.object == object);
        self.lock().iter().filter(wanted).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_the_oldest_go() {
        let list = EventList::new(2);
        let record = |second: i64, object: &str, message: &str| {
            let time = Timestamp::from_second(second).unwrap();
            list.record(time, object, EventKind::Warning, "BackOff", message);
        };
        record(1, "default/a", "x");
        record(2, "default/b", "x");
        record(3, "default/a", "x");
        let events = list.list(None);
        assert_eq!(
            events.iter().map(|event| (event.object.as_str(), event.count)).collect::<Vec<_>>(),
            [("default/b", 1), ("default/a", 2)]
        );
        record(4, "default/c", "x");
        assert_eq!(list.list(Some("default/b")), []);
        assert_eq!(list.list(Some("default/a"))[0].time, Timestamp::from_second(3).unwrap());
    }
}
