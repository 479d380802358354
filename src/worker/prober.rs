//! The probes of one pod at work: a task for each that is active, with a timer of its own. A pod without probes has none.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    jiff::Timestamp,
};
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::host::{PodEvent, PodHost};
use crate::{
    pod::{
        Memory, ObservedPod,
        probe::{self, Counter, ProbeKey},
    },
    runtime::container_ref::ContainerRef,
};

/// The probes that are run. What they find comes as [`PodEvent::Probed`].
pub(super) struct Prober {
    host: Arc<dyn PodHost>,
    events: mpsc::Sender<PodEvent>,
    tasks: BTreeMap<ProbeKey, Task>,
}

/// Ends with its owner; what it waits for is given up.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Prober {
    pub fn new(host: Arc<dyn PodHost>, events: mpsc::Sender<PodEvent>) -> Prober {
        Prober { host, events, tasks: BTreeMap::new() }
    }

    /// Begins the probes that are active now and ends those that are not any more.
    pub fn follow(&mut self, pod: &Arc<Pod>, observed: &ObservedPod, memory: &Memory, now: Timestamp) {
        if !probe::has_probes(pod) {
            return;
        }
        let active = probe::active(pod, observed, memory, now);
        let wanted: BTreeSet<&ProbeKey> = active.iter().map(|(key, _)| key).collect();
        self.tasks.retain(|key, _| wanted.contains(key));
        for (key, started_at) in &active {
            if self.tasks.contains_key(key) {
                continue;
            }
            let known = observed.probed(&key.container, key.attempt).and_then(|known| known.verdict(key.kind));
            let Some(probe) = container(pod, &key.container).and_then(|container| key.kind.of(container)) else {
                continue;
            };
            let counter = Counter::new(probe, key.kind, known);
            let wait = counter.first(probe, key.kind, *started_at, now, fraction());
            let run = run(self.host.clone(), pod.clone(), key.clone(), counter, wait, self.events.clone());
            self.tasks.insert(key.clone(), Task(tokio::spawn(run).abort_handle()));
        }
    }
}

/// A container that may have probes.
pub(super) fn container<'p>(pod: &'p Pod, name: &str) -> Option<&'p Container> {
    match ContainerRef::find(pod, name)? {
        ContainerRef::Init(_, container) | ContainerRef::App(_, container) => Some(container),
        ContainerRef::Ephemeral(..) => None,
    }
}

/// Any number from 0 to 1.
fn fraction() -> f64 {
    // Keyed anew at each call, and nothing more is asked of it.
    let random = RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// Asks, waits, asks again. The next probe is never begun while one runs.
async fn run(
    host: Arc<dyn PodHost>,
    pod: Arc<Pod>,
    key: ProbeKey,
    mut counter: Counter,
    wait: Duration,
    events: mpsc::Sender<PodEvent>,
) {
    let mut due = Instant::now() + wait;
    loop {
        sleep_until(due).await;
        let answer = host.clone().probe(pod.clone(), key.clone()).await;
        if let Some(success) = answer.success.and_then(|success| counter.count(success)) {
            let found = PodEvent::Probed { key: key.clone(), success, message: answer.message };
            if events.send(found).await.is_err() {
                return;
            }
        }
        due = (due + counter.period()).max(Instant::now());
    }
}
