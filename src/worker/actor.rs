//! One actor per pod UID: observe, plan, publish, execute, again.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodStatus},
    jiff::Timestamp,
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
};
use tracing::{debug, info, warn};

use super::{
    handle::Stage,
    host::{ActionError, Done, PodEvent, PodHost},
    prober::Prober,
    record::PodRecord,
};
use crate::{
    pod::{
        Action, Eviction, Memory, NodeView, ObservedPod, Outcome,
        happening::{self, Happening, Severity},
        observed::{Attempt, AttemptState, Ended, Probed, Sandbox},
        plan,
        probe::ProbeKey,
        resize::{self, Allocation, Pending},
    },
    runtime::container_ref::ContainerRef,
};

/// What the manager wants of an actor. The newest value wins; termination is a latch inside the actor.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `Some(grace in seconds)` once the pod is to go.
    pub terminate: Option<i64>,
    /// The pod as it is wanted now, once it has changed. It counts when it is durable in the ledger.
    pub record: Option<Arc<PodRecord>>,
    /// A change of its resources that has no room.
    pub resize: Option<Pending>,
    /// Set once the node does not run it any more.
    pub evict: Option<Eviction>,
    /// How often an object that the pod refers to has changed.
    pub objects: u64,
    /// How often that was one an image may be pulled with.
    pub credentials: u64,
    /// How often what device plugins offer has changed.
    pub devices: u64,
}

/// What an actor tells of itself after each plan that changed something.
#[derive(Debug, Clone)]
pub struct Report {
    /// The pod, its status filled in.
    pub pod: Pod,
    /// What is known.
    pub observed: ObservedPod,
    /// Stages of the start so far.
    pub stages: Vec<Stage>,
}

/// Everything an actor is made of.
pub struct Actor {
    /// The pod as it is in the ledger, with the resources that it is allocated: everything goes by it.
    pub pod: Arc<Pod>,
    /// The pod with the resources that are wanted: what is reported.
    pub desired: Arc<Pod>,
    /// What is known at the start: nothing for a new pod, what was recovered for an adopted one.
    pub observed: ObservedPod,
    /// What is remembered at the start (start time, rejection, crash loops).
    pub memory: Memory,
    /// Addresses of the node and restart delays.
    pub node: Arc<NodeView>,
    /// The hands.
    pub host: Arc<dyn PodHost>,
    /// The manager's wish.
    pub wanted: watch::Receiver<Wanted>,
    /// What happens by itself. Bounded by the sender: a pod has few containers and each ends once per attempt.
    pub events: mpsc::Receiver<PodEvent>,
    /// Where reports go: the newest replaces an unread one.
    pub reports: watch::Sender<Option<Arc<Report>>>,
    /// When the pod was first seen, for the stages.
    pub seen: Instant,
}

/// When it was begun (microseconds since the pod was seen) and what came of it.
type Finished = (u64, Result<Done, ActionError>);

/// An action under way.
struct Task {
    action: Action,
    /// The pod it is done for, which may have changed since.
    pod: Arc<Pod>,
    handle: AbortHandle,
}

/// The way of a changed pod into the ledger.
#[derive(Default)]
struct Changes {
    /// What is in the ledger, as far as it came this way.
    recorded: Option<Arc<PodRecord>>,
    /// What is being written.
    writing: Option<Arc<PodRecord>>,
    /// The pod has changed since the last report.
    unreported: bool,
}

impl Actor {
    /// Runs until nothing of the pod is left.
    pub async fn run(mut self) {
        let mut running: JoinSet<Finished> = JoinSet::new();
        let mut tasks: HashMap<Id, Task> = HashMap::new();
        let mut stages: Vec<Stage> = Vec::new();
        let mut changes = Changes::default();
        let mut manager_gone = false;
        let mut known = Wanted::default();
        let mut written_for = self.pod.clone();
        self.observed.contents = self.host.contents(&self.pod);
        self.observed.devices = self.host.device_health();
        // As many verdicts as a pod's containers can come to at a time; a probe waits with another.
        let (verdicts, mut verdict) = mpsc::channel(16);
        let mut prober = Prober::new(self.host.clone(), verdicts);
        loop {
            let now = self.host.now();
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(grace) = wanted.terminate {
                self.memory.terminate(grace, now);
                self.host.terminating();
            }
            // A pod that ended by itself in the meantime has not been evicted.
            if let (Some(eviction), false) = (wanted.evict.clone(), self.has_ended()) {
                self.memory.eviction.get_or_insert(eviction);
            }
            self.memory.resize = wanted.resize.clone();
            let pod_changed = !Arc::ptr_eq(&written_for, &self.pod);
            let objects_changed = wanted.objects != known.objects;
            if pod_changed || objects_changed {
                written_for = self.pod.clone();
                self.observed.contents = self.host.contents(&self.pod);
            }
            if objects_changed {
                self.memory.objects_changed(wanted.credentials != known.credentials, now);
            }
            if wanted.devices != known.devices {
                self.observed.devices = self.host.device_health();
                self.memory.objects_changed(false, now);
            }
            known = wanted.clone();
            let plan = plan(&self.pod, &self.observed, &self.memory, &self.node, now);
            if plan.going_down {
                self.memory.down_since.get_or_insert(now);
            }
            // A verdict is durable before it is announced.
            let mut recording = plan.actions.iter().chain(&self.memory.in_flight);
            if !recording.any(|action| matches!(action, Action::RecordVerdict(_))) {
                self.publish(plan.status, &stages, std::mem::take(&mut changes.unreported));
            }
            if self.observed.forgotten {
                // A pull that nobody waits for any more is the only thing that can be under way here.
                running.abort_all();
                return;
            }
            for action in plan.actions {
                self.begin(action, now, &mut running, &mut tasks);
            }
            prober.follow(&self.pod, &self.observed, &self.memory, now);
            let retry_at = self.record(wanted.record, &mut changes, now, &mut running, &mut tasks);
            let wake_at = plan.wake_at.into_iter().chain(retry_at).min();
            let sleep =
                wake_at.map(|at| Duration::try_from(at.duration_since(self.host.now())).unwrap_or(Duration::ZERO));
            // Each arm is cancel-safe: `changed`, `recv` and `join_next` lose nothing when dropped, and the sleep
            // is computed anew from the plan.
            tokio::select! {
                biased;
                changed = self.wanted.changed(), if !manager_gone => {
                    // The manager only goes away when the whole agent stops; the pod then stays as it is.
                    manager_gone = changed.is_err();
                }
                Some(event) = self.events.recv() => self.happened(event),
                // The prober holds a sender.
                Some(event) = verdict.recv() => self.happened(event),
                Some(joined) = running.join_next_with_id() => {
                    self.finished(joined, &mut tasks, &mut stages, &mut changes);
                }
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {}
            }
        }
    }

    fn begin(
        &mut self,
        action: Action,
        now: Timestamp,
        running: &mut JoinSet<Finished>,
        tasks: &mut HashMap<Id, Task>,
    ) {
        let (host, pod, work) = (self.host.clone(), self.pod.clone(), action.clone());
        // Called in the task, so that nothing it does can harm this one.
        self.spawn(action, now, async move { host.execute(pod, work).await }, running, tasks);
    }

    fn spawn(
        &mut self,
        action: Action,
        now: Timestamp,
        work: impl Future<Output = Result<Done, ActionError>> + Send + 'static,
        running: &mut JoinSet<Finished>,
        tasks: &mut HashMap<Id, Task>,
    ) {
        debug!(pod = self.name(), ?action, "begin");
        if let Some(happening) = happening::begun(&self.pod, &action, &self.memory, &self.observed) {
            self.host.happened(&self.pod, happening);
        }
        self.memory.begun(&action, &self.node.crash_loop, now);
        self.observed.begin(&action);
        let begun = self.seen.elapsed().as_micros() as u64;
        let handle = running.spawn(async move { (begun, work.await) });
        tasks.insert(handle.id(), Task { action, pod: self.pod.clone(), handle });
    }

    /// Begins to make a change of the pod durable, one at a time, and says when to try again. A pod that is to go takes
    /// no change any more: nothing may make its directory anew behind its removal.
    fn record(
        &mut self,
        wanted: Option<Arc<PodRecord>>,
        changes: &mut Changes,
        now: Timestamp,
        running: &mut JoinSet<Finished>,
        tasks: &mut HashMap<Id, Task>,
    ) -> Option<Timestamp> {
        let goes = self.memory.termination.is_some() || self.memory.verdict().is_some();
        let record = wanted.filter(|_| !goes)?;
        let known = changes.recorded.as_ref().is_some_and(|recorded| Arc::ptr_eq(recorded, &record));
        if known || changes.writing.is_some() {
            return None;
        }
        if let Some(at) = self.memory.retry_at(&Action::RecordPod, now) {
            return Some(at);
        }
        changes.writing = Some(record.clone());
        let host = self.host.clone();
        self.spawn(Action::RecordPod, now, async move { host.record(record).await }, running, tasks);
        None
    }

    /// The changed pod is durable: from now on everything goes by it.
    fn swap(&mut self, changes: &mut Changes, tasks: &HashMap<Id, Task>) {
        let Some(record) = changes.writing.take() else { return };
        for container in ContainerRef::all(&record.pod) {
            let name = container.name();
            let image = ContainerRef::find(&self.pod, name).map(ContainerRef::image);
            if image.is_none_or(|image| image == container.image()) {
                continue;
            }
            // What was made ready for the next attempt is not what it needs now. Delays that the old image has earned
            // are not the new one's.
            self.observed.images.remove(name);
            self.observed.prepared.remove(name);
            self.memory.crash_loop.remove(name);
            self.memory.failures.retain(|failure| !(failure.action.builds_attempt_of(name)));
            let pulls =
                tasks.values().filter(|task| task.action.may_be_cancelled() && task.action.container() == Some(name));
            pulls.for_each(|task| task.handle.abort());
        }
        info!(pod = self.name(), generation = record.pod.metadata.generation, "the pod has changed");
        let effective = record.effective();
        if Allocation::of(&effective) != Allocation::of(&self.pod) {
            // An error of the resize before says nothing about this one.
            self.memory.failures.retain(|failure| !matches!(failure.action, Action::ResizePod { .. }));
        }
        (self.pod, self.desired) = (effective, record.pod.clone());
        changes.recorded = Some(record);
        changes.unreported = true;
    }

    /// Whether a result is about an image that the container has no more.
    fn is_stale(&self, task: &Task) -> bool {
        let (Action::ResolveImage { container, .. } | Action::PrepareContainer { container, .. }) = &task.action else {
            return false;
        };
        let image = |pod| ContainerRef::find(pod, container).map(ContainerRef::image);
        image(&task.pod) != image(&self.pod)
    }

    fn finished(
        &mut self,
        joined: Result<(Id, Finished), JoinError>,
        tasks: &mut HashMap<Id, Task>,
        stages: &mut Vec<Stage>,
        changes: &mut Changes,
    ) {
        let mut cancelled = false;
        let (id, begun, result) = match joined {
            Ok((id, (begun, result))) => (id, begun, result),
            // A bug in an action harms this pod alone, and is tried again as any failure is.
            Err(error) => {
                cancelled = error.is_cancelled();
                let failure = ActionError { reason: "InternalError".to_owned(), message: error.to_string() };
                (error.id(), 0, Err(failure))
            }
        };
        let Some(task) = tasks.remove(&id) else { return };
        if cancelled || self.is_stale(&task) {
            self.memory.ended(&task.action, None, self.host.now());
            return;
        }
        let action = task.action;
        match result {
            Ok(done) => {
                for stage in done.stages {
                    stages.push(Stage { name: stage.name, at: begun + stage.at });
                }
                stages.push(Stage { name: stage_name(&action), at: self.seen.elapsed().as_micros() as u64 });
                // A pod that restarts for years keeps the story of its start, not of every restart.
                stages.truncate(128);
                self.memory.ended(&action, None, self.host.now());
                self.tell(happening::finished(&self.pod, &action, Ok(&done.outcome)));
                if let Outcome::Volume(_) = done.outcome {
                    // It may have been written from objects newer than those known here.
                    self.observed.contents = self.host.contents(&self.pod);
                }
                match (&action, done.outcome) {
                    (Action::RecordPod, _) => self.swap(changes, tasks),
                    (Action::ResizePod { containers }, _) => self.observed.resized(&task.pod, containers),
                    (Action::CreateSandbox, outcome) => {
                        self.observed.sized = Some(Allocation::of(&task.pod));
                        self.observed.apply(&action, outcome);
                    }
                    (Action::StartContainer { container, .. }, Outcome::Attempt(attempt)) => {
                        self.saw(container, attempt)
                    }
                    (_, outcome) => self.observed.apply(&action, outcome),
                }
            }
            Err(error) => {
                warn!(pod = self.name(), ?action, reason = error.reason, "{}", error.message);
                if action == Action::RecordPod {
                    changes.writing = None;
                }
                self.tell(happening::finished(&self.pod, &action, Err((&error.reason, &error.message))));
                self.memory.ended(&action, Some((error.reason, error.message)), self.host.now());
            }
        }
    }

    fn happened(&mut self, event: PodEvent) {
        match event {
            PodEvent::Ended { container, attempt } => self.saw(&container, attempt),
            PodEvent::Probed { key, success, message } => self.probed(&key, success, message),
            PodEvent::Evicted(eviction) => {
                info!(pod = self.name(), reason = eviction.reason, "{}", eviction.message);
                if !self.has_ended() {
                    self.memory.eviction.get_or_insert(eviction);
                }
            }
            PodEvent::SandboxLost { generation, ended } => {
                // Together with the sandbox's end: nothing is started in it in between.
                for (container, attempt) in ended {
                    // One without a record that was never seen running was only prepared, or its start is still being
                    // answered: it is made again in the next sandbox.
                    if attempt.is_unknown() && !self.observed.runs(&container, attempt.number) {
                        continue;
                    }
                    self.saw(&container, attempt);
                }
                // Expected when it was asked to go; StopSandbox observes that itself.
                if matches!(self.observed.sandbox, Sandbox::Running { .. })
                    && self.observed.generation == generation
                    && !self.memory.in_flight.contains(&Action::StopSandbox)
                {
                    warn!(pod = self.name(), "the supervisor is gone");
                    self.observed.sandbox = Sandbox::Lost;
                }
            }
        }
    }

    /// Notes a verdict about an attempt that still runs.
    fn probed(&mut self, key: &ProbeKey, success: bool, message: String) {
        if !self.observed.runs(&key.container, key.attempt) {
            return;
        }
        let (container, kind) = (&key.container, key.kind.name());
        info!(pod = self.name(), container, attempt = key.attempt, kind, success, message, "probed");
        let found = self.observed.probes.entry(container.clone()).or_default();
        if found.attempt != key.attempt {
            *found = Probed { attempt: key.attempt, ..Probed::default() };
        }
        found.set(key.kind, success);
        if !success {
            found.message = message;
        }
        self.host.clone().keep_verdicts(&self.observed.probes);
    }

    /// Notes what is known of an attempt. The same may be told more than once: only news count.
    fn saw(&mut self, container: &str, attempt: Attempt) {
        let news = self.observed.record(container, attempt.clone());
        if let (true, AttemptState::Ended(ended)) = (news, &attempt.state) {
            let Ended { exit_code, reason, .. } = ended;
            info!(pod = self.name(), container, attempt = attempt.number, exit_code, reason, "container ended");
            self.host.attempt_ended(&attempt);
        }
    }

    fn publish(&mut self, status: PodStatus, stages: &[Stage], swapped: bool) {
        if self.memory.status != status {
            self.tell(happening::changed(&self.pod, &self.memory.status, &status));
        }
        let changed = swapped || self.memory.status != status;
        self.tell_of_resize(&status);
        self.memory.status = status;
        let known =
            self.reports.borrow().as_ref().map(|report| (report.observed == self.observed, report.stages.len()));
        if changed || known != Some((true, stages.len())) {
            let mut pod = Pod::clone(&self.desired);
            pod.status = Some(self.memory.status.clone());
            let report = Report { pod, observed: self.observed.clone(), stages: stages.to_vec() };
            self.reports.send_replace(Some(Arc::new(report)));
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.memory.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// The events of a resize that is allocated: begun, failed, done.
    fn tell_of_resize(&self, status: &PodStatus) {
        let progress = |status: &PodStatus| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|condition| condition.type_ == "PodResizeInProgress").cloned()
        };
        let (before, after) = (progress(&self.memory.status), progress(status));
        let tell = |severity, reason: &'static str, what: &str, error: &str| {
            let message = format!("Pod resize {what}: {}", resize::summary(&self.pod, error));
            self.tell(vec![Happening { container: None, severity, reason: Cow::Borrowed(reason), message }]);
        };
        match (&before, &after) {
            (None, Some(_)) => tell(Severity::Normal, "ResizeStarted", "started", ""),
            (Some(_), None) if self.memory.termination.is_none() => {
                tell(Severity::Normal, "ResizeCompleted", "completed", "");
            }
            _ => {}
        }
        let error = |condition: &Option<PodCondition>| condition.as_ref().and_then(|found| found.message.clone());
        if let Some(message) = error(&after).filter(|message| error(&before).as_ref() != Some(message)) {
            tell(Severity::Warning, "ResizeError", "error", &message);
        }
    }

    fn tell(&self, happenings: Vec<Happening>) {
        for happening in happenings {
            self.host.happened(&self.pod, happening);
        }
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}

fn stage_name(action: &Action) -> String {
    match action {
        Action::EnsureDirs => "dirs".to_owned(),
        Action::RecordPod => "recorded".to_owned(),
        Action::RecordVerdict(_) => "verdict".to_owned(),
        Action::LeaseAddresses => "lease".to_owned(),
        Action::MountVolume(name) => format!("volume/{name}"),
        Action::RefreshVolume(name) => format!("volume/{name}/refreshed"),
        Action::ResolveImage { container, .. } => format!("{container}/image"),
        Action::CreateSandbox => "sandbox".to_owned(),
        Action::AttachNetwork => "network".to_owned(),
        Action::PrepareContainer { container, .. } => format!("{container}/prepared"),
        Action::MarkRestart { container, .. } => format!("{container}/restart"),
        Action::ResizePod { .. } => "resized".to_owned(),
        Action::StartContainer { container, .. } => format!("{container}/started"),
        Action::ReleaseContainer { container, .. } => format!("{container}/released"),
        Action::RunHook { container, hook, .. } => format!("{container}/{}", hook.name()),
        Action::AbandonHook { container, hook, .. } => format!("{container}/{}-abandoned", hook.name()),
        Action::StopContainer { container, .. } => format!("{container}/stop"),
        Action::KillContainer { container, .. } => format!("{container}/kill"),
        Action::RemoveAttempt { container, attempt } => format!("{container}/{attempt}/removed"),
        Action::StopSandbox => "sandbox-stopped".to_owned(),
        Action::DetachNetwork => "network-detached".to_owned(),
        Action::RemoveCgroups => "cgroups-removed".to_owned(),
        Action::UnmountVolumes => "volumes-removed".to_owned(),
        Action::ReleaseAddresses => "addresses-released".to_owned(),
        Action::ForgetPod => "forgotten".to_owned(),
    }
}
