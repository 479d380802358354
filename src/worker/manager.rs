//! Keeps one actor per wanted pod: starts, replaces and ends them as the sources change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tracing::{info, warn};

pub use super::granting::DeviceTrouble;
use super::{
    actor::{Actor, Report, Wanted},
    granting::{Granter, Granting},
    handle::{BoxFuture, NodeError},
    host::{PodEvent, PodHost},
    record::{self, PodRecord},
    room::WaitingPod,
};
use crate::{
    api::{
        object::{ObjectKey, ObjectKind},
        objects::Objects,
        problem::ManifestProblem,
        references::references,
        resources::Resources,
        update::Change,
    },
    obs::events::Severity,
    pod::{
        Grants, Memory, NodeView, ObservedPod, Rejection,
        desired::{Desired, DesiredPod, SourcedPod, full_name},
        devices::Question,
        lifecycle,
        observed::Sandbox,
        preemption,
    },
    supervisor::spec::IdRange,
};

/// Events a pod can have unread: containers of a pod times a few attempts; the sender waits beyond that.
pub(super) const EVENTS: usize = 64;

/// What the manager needs to make actors.
pub trait Hosts: Send + Sync + 'static {
    /// The hands of a pod that is new.
    fn host(&self, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Arc<dyn PodHost>;

    /// Completes a new pod before it is admitted: what its runtime class says.
    ///
    /// # Errors
    /// It cannot be completed.
    fn complete(&self, _pod: &mut Pod) -> Result<(), Rejection> {
        Ok(())
    }

    /// The RuntimeClass handler that is to make the containers of a complete pod, unless that is the agent.
    fn handler(&self, _pod: &Pod) -> Option<String> {
        None
    }

    /// Whether the node takes a new pod, next to those it has: with the UIDs of those that have to end first.
    ///
    /// # Errors
    /// It does not.
    fn admit(&self, pod: &Pod, others: &[&Pod]) -> Result<Vec<String>, Rejection>;

    /// Whether a pod fits beside `others` without any of them going.
    ///
    /// # Errors
    /// It does not.
    fn fits(&self, pod: &Pod, others: &[&Pod]) -> Result<(), Rejection>;

    /// Ids for the user namespace of a new pod, if it has one of its own: none of those `taken`.
    fn users(&self, _pod: &Pod, _taken: &[IdRange]) -> Result<Option<IdRange>, Rejection> {
        Ok(None)
    }

    /// Resources of a pod that a device plugin would have to offer and none does now.
    fn awaited_devices(&self, _pod: &Pod) -> Vec<String> {
        Vec::new()
    }

    /// What a new pod is given for itself, none of it among what others have (`taken`). If a plugin has to be asked first,
    /// the question; its answer is the next of `answers` then.
    ///
    /// # Errors
    /// It cannot be given.
    fn grant(
        &self,
        _pod: &Pod,
        _taken: &[&Grants],
        _answers: &[Vec<String>],
    ) -> Result<(Grants, Option<Question>), Rejection> {
        Ok((Grants::default(), None))
    }

    /// Which devices a plugin would rather have chosen.
    ///
    /// # Errors
    /// It does not say.
    fn preferred_devices(&self, _question: Question) -> BoxFuture<'static, Result<Vec<String>, DeviceTrouble>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Has devices made ready for a pod, and notes with them what its containers need.
    ///
    /// # Errors
    /// A plugin cannot.
    fn allocate_devices(&self, _pod: Pod, grants: Grants) -> BoxFuture<'static, Result<Grants, DeviceTrouble>> {
        Box::pin(async { Ok(grants) })
    }

    /// What pods have for themselves, with that of one that is about to start.
    fn given(&self, _grants: &[&Grants]) {}

    /// Why a running pod can never get the resources it wants now.
    fn infeasible(&self, _wanted: &Pod, _allocated: &Pod) -> Option<String> {
        None
    }

    /// The time. Tests have one of their own.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The pods there are now, and what they have for themselves, after a change.
    fn changed(&self, _pods: &[&Pod], _grants: &[&Grants]) {}

    /// What the node has for all pods together.
    fn allocatable(&self) -> Resources {
        Resources::new()
    }

    /// Notes that something happened to a pod.
    fn event(&self, _pod: &Pod, _severity: Severity, _reason: &str, _message: String) {}
}

/// A pod with all that is known of it: found on this machine at start, or new.
pub struct Recovered {
    /// As it was admitted.
    pub record: PodRecord,
    /// What was found.
    pub observed: ObservedPod,
    /// Start time and earned delays.
    pub memory: Memory,
    /// Its hands.
    pub host: Arc<dyn PodHost>,
    /// What happened since.
    pub events: mpsc::Receiver<PodEvent>,
}

/// What is known of one pod, for readers.
#[derive(Clone)]
pub struct Entry {
    /// Where it was asked for.
    pub source: String,
    /// The newest report.
    pub reports: watch::Receiver<Option<Arc<Report>>>,
    /// Its hands.
    pub host: Arc<dyn PodHost>,
    /// As admitted.
    pub pod: Arc<Pod>,
    /// What its containers have for themselves.
    pub grants: Grants,
}

/// All pods, for readers.
pub type Entries = Arc<Mutex<BTreeMap<String, Entry>>>;

pub(super) struct Running {
    pub(super) record: Arc<PodRecord>,
    pub(super) full_name: String,
    pub(super) rejected: bool,
    /// With what it is allocated: what it counts for.
    pub(super) effective: Arc<Pod>,
    /// What its source said last, so that nothing is compared twice.
    pub(super) sourced: Option<Arc<SourcedPod>>,
    pub(super) wanted: watch::Sender<Wanted>,
    pub(super) reports: watch::Receiver<Option<Arc<Report>>>,
    /// Known from the beginning to hold nothing: never admitted, or over before this agent.
    pub(super) idle: bool,
    /// Somebody waits for its end.
    pub(super) watched: bool,
}

/// A change of a pod that somebody waits for.
#[derive(Debug)]
pub struct Update {
    /// UID of the pod.
    pub uid: String,
    /// What is to change.
    pub change: Change,
    /// The pod as it will be, once it is decided, and whether a change of its resources waits for room; it counts when a
    /// report has its generation, and says so.
    pub answer: oneshot::Sender<Result<(Arc<Pod>, bool), NodeError>>,
}

/// What a pod may have whose record cannot be used.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Ids of the host.
    pub users: Option<IdRange>,
    /// Processors, memory, devices.
    pub grants: Grants,
}

/// The manager.
pub struct Manager {
    pub(super) hosts: Arc<dyn Hosts>,
    node: Arc<NodeView>,
    entries: Entries,
    pub(super) running: BTreeMap<String, Running>,
    tasks: JoinSet<String>,
    /// One for each pod that goes for another: until it is over.
    pub(super) leaving: JoinSet<()>,
    /// New generations already said to be waiting, so that it is said once.
    waiting: BTreeSet<String>,
    /// New pods that are being given something.
    pub(super) granter: Granter,
    /// Pods that wait for room.
    pub(super) for_room: watch::Sender<Vec<WaitingPod>>,
    /// Pods whose record cannot be used: nothing is done to them, or for them. By UID: what they may have.
    left_alone: BTreeMap<String, Kept>,
    /// The objects that pods were told of last.
    objects: Arc<Objects>,
}

impl Manager {
    /// A manager without pods.
    pub fn new(hosts: Arc<dyn Hosts>, node: Arc<NodeView>, entries: Entries) -> Manager {
        Manager {
            hosts,
            node,
            entries,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            leaving: JoinSet::new(),
            waiting: BTreeSet::new(),
            for_room: watch::Sender::default(),
            granter: Granter::default(),
            left_alone: BTreeMap::new(),
            objects: Arc::default(),
        }
    }

    /// Takes up a pod that was here before. It is not decided again whether the node runs it.
    pub fn adopt(&mut self, recovered: Recovered) {
        let Recovered { record, observed, memory, .. } = &recovered;
        let phase = lifecycle::phase(&record.pod, observed, memory, self.hosts.now());
        let idle = phase.is_terminal() && observed.sandbox == Sandbox::Absent;
        let evicted = memory.eviction.clone();
        let uid = record.uid().to_owned();
        self.spawn(recovered, Instant::now(), idle);
        if let (Some(eviction), Some(running)) = (evicted, self.running.get(&uid)) {
            running.evict(eviction);
        }
    }

    /// Keeps off a pod that was here before and whose record cannot be used. A source that wants it has to wait, and
    /// nobody else gets what it may have.
    pub fn leave_alone(&mut self, uid: String, kept: Kept) {
        self.left_alone.insert(uid, kept);
    }

    /// What the pods have that are left alone.
    pub(super) fn kept_grants(&self) -> impl Iterator<Item = Grants> + '_ {
        self.left_alone.values().map(|kept| kept.grants.clone())
    }

    /// Whether a new pod waits for something.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// UIDs of the pods there are.
    pub fn uids(&self) -> BTreeSet<String> {
        self.running.keys().cloned().collect()
    }

    /// Whether no pod is left, not even one that is left alone.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.left_alone.is_empty()
    }

    /// Resolves when an actor has ended, with its pod gone, or a pod has left its room to another; never while there is
    /// neither.
    pub async fn pod_gone(&mut self) {
        // Cancel-safe: `join_next` loses nothing when it is dropped.
        let gone = tokio::select! {
            biased;
            Some(gone) = self.tasks.join_next_with_id() => gone,
            Some(_) = self.leaving.join_next() => return,
            () = self.granter.answered() => return,
            else => return std::future::pending().await,
        };
        match gone {
            Ok((_, uid)) => self.remove(&uid),
            Err(error) => {
                // An actor has no way to fail; a bug in one must not take the others along. Its pod stays as it is
                // until the agent starts again and adopts it.
                warn!(%error, "the actor of a pod ended abnormally; its pod is left alone");
            }
        }
    }

    /// Wakes the pods that refer to an object that is another one in `now` than it was the last time, and no other.
    pub fn objects_changed(&mut self, now: Arc<Objects>) {
        let before = std::mem::replace(&mut self.objects, now.clone());
        for running in self.running.values().filter(|running| !running.rejected) {
            let pod = &running.record.pod;
            // Those of before, too: what is gone may have been referred to through another object.
            let mut keys = references(pod, &before);
            keys.extend(references(pod, &now));
            if !before.differ(&now, &keys) {
                continue;
            }
            let pulls_with = |key: &&ObjectKey| matches!(key.kind, ObjectKind::Secret | ObjectKind::ServiceAccount);
            let credentials = before.differ(&now, keys.iter().filter(pulls_with));
            running.wanted.send_modify(|wanted| {
                wanted.objects += 1;
                wanted.credentials += u64::from(credentials);
            });
        }
    }

    /// A storage driver has registered: what failed for want of it is tried again by the pods that may have a volume of
    /// it. Which driver a claim leads to is found out by trying.
    pub fn drivers_changed(&self) {
        for running in self.running.values().filter(|running| !running.rejected) {
            let volumes = running.record.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let mut of_drivers = volumes.filter(|volume| {
                volume.csi.is_some() || volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
            });
            if of_drivers.next().is_some() {
                running.wanted.send_modify(|wanted| wanted.objects += 1);
            }
        }
    }

    fn remove(&mut self, uid: &str) {
        if let Some(gone) = self.running.remove(uid) {
            info!(pod = gone.full_name, uid, "pod removed");
        }
        self.lock().remove(uid);
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the set of actors follow `desired`. Pods nobody wants are only ended when `complete`: every source
    /// has been ready once. Returns what is wrong with changed pods, which go on as they were.
    pub fn reconcile(&mut self, desired: &Desired, complete: bool, seen: Instant) -> Vec<ManifestProblem> {
        let mut problems = Vec::new();
        for (uid, running) in &self.running {
            let PodRecord { pod, source, origin, .. } = &*running.record;
            if desired.pods.contains_key(uid) || !complete || desired.keeps(*source, origin, &running.full_name) {
                continue;
            }
            let spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
            let grace = pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(30);
            running.wanted.send_if_modified(|wanted| {
                let first = wanted.terminate.is_none();
                wanted.terminate = Some(wanted.terminate.map_or(grace, |earlier| earlier.min(grace)));
                first
            });
        }
        // What runs for everybody comes first, whatever its name.
        let mut new: Vec<(&String, &DesiredPod)> = desired.pods.iter().collect();
        new.sort_by_key(|(_, pod)| std::cmp::Reverse(pod.pod.pod.spec.as_ref().map_or(0, preemption::priority)));
        let mut waiting = Vec::new();
        for (uid, pod) in new {
            if self.running.contains_key(uid) {
                // Running, or still being removed: looked at again when it is gone.
                problems.extend(self.follow(uid, pod));
                continue;
            }
            if self.left_alone.contains_key(uid) {
                if self.waiting.insert(uid.clone()) {
                    warn!(
                        pod = pod.full_name,
                        uid, "the pod is not started: its record of an earlier start is unusable"
                    );
                }
                continue;
            }
            if self.running.values().any(|running| running.full_name == pod.full_name) {
                if self.waiting.insert(uid.clone()) {
                    info!(pod = pod.full_name, uid, "a new generation waits for the old one to be gone");
                }
                continue;
            }
            let awaited = self.awaited(pod);
            if !awaited.is_empty() {
                // Nothing is kept free for it meanwhile: the plugin may be a pod itself.
                let message = format!("the pod waits for a device plugin that offers {}", awaited.join(" and "));
                if self.waiting.insert(uid.clone()) {
                    info!(pod = pod.full_name, uid, "{message}");
                }
                problems.push(waits(&pod.pod, message));
                continue;
            }
            // The room that is being made is not given to somebody else.
            let before: Vec<&Pod> = waiting.iter().map(|(pod, _): &(&DesiredPod, _)| &pod.pod.pod).collect();
            let Some(why) = self.start(pod, &before, seen) else {
                self.waiting.remove(uid);
                continue;
            };
            waiting.push((pod, why));
            if self.waiting.insert(uid.clone()) && !self.granter.is_asking(uid) {
                info!(pod = pod.full_name, uid, "the pod waits until there is room for it");
            }
        }
        self.waiting.retain(|uid| desired.pods.contains_key(uid));
        self.tell_waiting(waiting);
        self.granter.keep(|uid| desired.pods.contains_key(uid));
        self.resize_waiting();
        self.tell_hosts();
        problems
    }

    pub(super) fn tell_hosts(&self) {
        let pods: Vec<&Pod> =
            self.running.values().filter(|running| running.takes_room()).map(|running| &*running.effective).collect();
        self.hosts.changed(&pods, &self.taken_grants());
    }

    /// What pods have for themselves, or may have. One that is over has returned it.
    fn taken_grants(&self) -> Vec<&Grants> {
        let of_running = self.running.values().filter(|running| running.takes_room());
        of_running
            .map(|running| &running.record.grants)
            .chain(self.left_alone.values().map(|kept| &kept.grants))
            .filter(|grants| !grants.is_empty())
            .collect()
    }

    /// Ids of the host that pods have, or may have.
    fn taken_users(&self) -> Vec<IdRange> {
        let of_running = self.running.values().filter_map(|running| running.record.users);
        of_running.chain(self.left_alone.values().filter_map(|kept| kept.users)).collect()
    }

    /// Starts a pod, or an actor that says why it is not started. Why it has to wait, if it has: others are going, or have
    /// been told to, and it fits when they are gone. `waiting` are pods that wait for room and come before this one.
    fn start(&mut self, desired: &DesiredPod, waiting: &[&Pod], seen: Instant) -> Option<String> {
        let mut pod = desired.pod.pod.clone();
        // What an API server says of a new pod.
        pod.metadata.generation.get_or_insert(1);
        let room = self.hosts.complete(&mut pod).and_then(|()| self.make_room(&pod, waiting));
        let granted = room.and_then(|room| match room {
            None => self.give(desired, &pod),
            Some(why) => Ok(Granting::Wait(why)),
        });
        let given = match granted {
            Ok(Granting::Wait(why)) => return Some(why),
            Ok(Granting::Given(grants)) => {
                if !grants.is_empty() {
                    // Before anything of the pod is begun.
                    let all: Vec<&Grants> = self.taken_grants().into_iter().chain([&grants]).collect();
                    self.hosts.given(&all);
                }
                self.hosts.users(&pod, &self.taken_users()).map(|users| Kept { users, grants })
            }
            Err(rejection) => Err(rejection),
        };
        let (Kept { users, grants }, rejection) = match given {
            Ok(given) => (given, None),
            Err(rejection) => (Kept::default(), Some(rejection)),
        };
        let handler = self.hosts.handler(&pod);
        let record = PodRecord {
            version: record::VERSION,
            pod: Arc::new(pod),
            allocated: None,
            source: desired.source,
            origin: desired.pod.origin.clone(),
            users,
            handler,
            grants,
            start_time: self.hosts.now(),
            sourced: Some(record::digest(&desired.pod.pod)),
            verdict: None,
        };
        match &rejection {
            Some(rejection) => {
                warn!(pod = desired.full_name, reason = rejection.reason, "{}", rejection.message);
                let Rejection { reason, message } = rejection;
                self.hosts.event(&record.pod, Severity::Warning, reason, message.clone());
            }
            None => info!(pod = desired.full_name, uid = record.uid(), origin = record.origin, "pod added"),
        }
        let idle = rejection.is_some();
        let memory = Memory { start_time: Some(record.start_time), rejection, ..Memory::default() };
        let (sender, events) = mpsc::channel(EVENTS);
        let host = self.hosts.host(record.clone(), sender);
        self.spawn(Recovered { record, observed: ObservedPod::default(), memory, host, events }, seen, idle);
        None
    }

    fn spawn(&mut self, pod: Recovered, seen: Instant, idle: bool) {
        let Recovered { record, observed, memory, host, events } = pod;
        let uid = record.uid().to_owned();
        let (wanted, wishes) = watch::channel(Wanted::default());
        let (reports, readers) = watch::channel(None);
        let rejected = memory.rejection.is_some();
        let (desired, pod) = (record.pod.clone(), record.effective());
        let entry = Entry {
            source: record.origin.clone(),
            reports: readers.clone(),
            host: host.clone(),
            pod: desired.clone(),
            grants: record.grants.clone(),
        };
        self.lock().insert(uid.clone(), entry);
        let (full_name, effective, record) = (full_name(&pod), pod.clone(), Arc::new(record));
        let mut running = Running {
            record,
            full_name,
            rejected,
            effective,
            sourced: None,
            wanted,
            reports: readers,
            idle,
            watched: false,
        };
        if !idle && !running.record.grants.is_empty() {
            running.watch(&mut self.leaving);
        }
        self.running.insert(uid.clone(), running);
        let node = self.node.clone();
        let actor = Actor { pod, desired, observed, memory, node, host, wanted: wishes, events, reports, seen };
        self.tasks.spawn(async move {
            actor.run().await;
            uid
        });
    }
}

fn waits(pod: &SourcedPod, message: String) -> ManifestProblem {
    ManifestProblem {
        source: pod.origin.clone(),
        document: Some(pod.document),
        pod: Some(pod.full_name()),
        warning: true,
        message,
    }
}
