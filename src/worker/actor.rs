//! One actor per pod UID: observe, plan, publish, execute, again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    jiff::Timestamp,
};
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
};
use tracing::{debug, info, warn};

use super::{
    handle::Stage,
    host::{ActionError, Done, PodEvent, PodHost},
};
use crate::pod::{
    Action, Memory, NodeView, ObservedPod, Outcome,
    observed::{Attempt, AttemptState, Ended, Sandbox},
    plan,
};

/// What the manager wants of an actor. The newest value wins; termination is a latch inside the actor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// `Some(grace in seconds)` once the pod is to go.
    pub terminate: Option<i64>,
    /// How often an object that the pod refers to has changed.
    pub objects: u64,
    /// How often that was one an image may be pulled with.
    pub credentials: u64,
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
    /// The pod as admitted.
    pub pod: Arc<Pod>,
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

impl Actor {
    /// Runs until nothing of the pod is left.
    pub async fn run(mut self) {
        let mut running: JoinSet<Finished> = JoinSet::new();
        let mut tasks: HashMap<Id, Action> = HashMap::new();
        let mut stages: Vec<Stage> = Vec::new();
        let mut manager_gone = false;
        let mut known = Wanted::default();
        self.observed.contents = self.host.contents(&self.pod);
        loop {
            let now = self.host.now();
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(grace) = wanted.terminate {
                self.memory.terminate(grace, now);
            }
            if wanted.objects != known.objects {
                self.observed.contents = self.host.contents(&self.pod);
                self.memory.objects_changed(wanted.credentials != known.credentials, now);
            }
            known = wanted;
            let plan = plan(&self.pod, &self.observed, &self.memory, &self.node, now);
            self.publish(plan.status, &stages);
            if self.observed.forgotten {
                // A pull that nobody waits for any more is the only thing that can be under way here.
                running.abort_all();
                return;
            }
            for action in plan.actions {
                self.begin(action, now, &mut running, &mut tasks);
            }
            let sleep =
                plan.wake_at.map(|at| Duration::try_from(at.duration_since(self.host.now())).unwrap_or(Duration::ZERO));
            // Each arm is cancel-safe: `changed`, `recv` and `join_next` lose nothing when dropped, and the sleep
            // is computed anew from the plan.
            tokio::select! {
                biased;
                changed = self.wanted.changed(), if !manager_gone => {
                    // The manager only goes away when the whole agent stops; the pod then stays as it is.
                    manager_gone = changed.is_err();
                }
                Some(event) = self.events.recv() => self.happened(event),
                Some(joined) = running.join_next_with_id() => self.finished(joined, &mut tasks, &mut stages),
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {}
            }
        }
    }

    fn begin(
        &mut self,
        action: Action,
        now: Timestamp,
        running: &mut JoinSet<Finished>,
        tasks: &mut HashMap<Id, Action>,
    ) {
        debug!(pod = self.name(), ?action, "begin");
        self.memory.begun(&action, &self.node.crash_loop, now);
        self.observed.begin(&action);
        let (host, pod, work) = (self.host.clone(), self.pod.clone(), action.clone());
        let begun = self.seen.elapsed().as_micros() as u64;
        // Called in the task, so that nothing it does can harm this one.
        let handle = running.spawn(async move { (begun, host.execute(pod, work).await) });
        tasks.insert(handle.id(), action);
    }

    fn finished(
        &mut self,
        joined: Result<(Id, Finished), JoinError>,
        tasks: &mut HashMap<Id, Action>,
        stages: &mut Vec<Stage>,
    ) {
        let (id, begun, result) = match joined {
            Ok((id, (begun, result))) => (id, begun, result),
            // A bug in an action harms this pod alone, and is tried again as any failure is.
            Err(error) => {
                let failure = ActionError { reason: "InternalError".to_owned(), message: error.to_string() };
                (error.id(), 0, Err(failure))
            }
        };
        let Some(action) = tasks.remove(&id) else { return };
        match result {
            Ok(done) => {
                for stage in done.stages {
                    stages.push(Stage { name: stage.name, at: begun + stage.at });
                }
                stages.push(Stage { name: stage_name(&action), at: self.seen.elapsed().as_micros() as u64 });
                // A pod that restarts for years keeps the story of its start, not of every restart.
                stages.truncate(128);
                self.memory.ended(&action, None, self.host.now());
                if let Outcome::Volume(_) = done.outcome {
                    // It may have been written from objects newer than those known here.
                    self.observed.contents = self.host.contents(&self.pod);
                }
                match (&action, done.outcome) {
                    (Action::StartContainer { container, .. }, Outcome::Attempt(attempt)) => {
                        self.saw(container, attempt)
                    }
                    (_, outcome) => self.observed.apply(&action, outcome),
                }
            }
            Err(error) => {
                warn!(pod = self.name(), ?action, reason = error.reason, "{}", error.message);
                self.memory.ended(&action, Some((error.reason, error.message)), self.host.now());
            }
        }
    }

    fn happened(&mut self, event: PodEvent) {
        match event {
            PodEvent::Ended { container, attempt } => self.saw(&container, attempt),
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

    /// Notes what is known of an attempt. The same may be told more than once: only news count.
    fn saw(&mut self, container: &str, attempt: Attempt) {
        let news = self.observed.record(container, attempt.clone());
        if let (true, AttemptState::Ended(ended)) = (news, &attempt.state) {
            let Ended { exit_code, reason, .. } = ended;
            info!(pod = self.name(), container, attempt = attempt.number, exit_code, reason, "container ended");
            self.host.attempt_ended(&attempt);
        }
    }

    fn publish(&mut self, status: PodStatus, stages: &[Stage]) {
        let changed = self.memory.status != status;
        self.memory.status = status;
        let known =
            self.reports.borrow().as_ref().map(|report| (report.observed == self.observed, report.stages.len()));
        if changed || known != Some((true, stages.len())) {
            let mut pod = Pod::clone(&self.pod);
            pod.status = Some(self.memory.status.clone());
            let report = Report { pod, observed: self.observed.clone(), stages: stages.to_vec() };
            self.reports.send_replace(Some(Arc::new(report)));
        }
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}

fn stage_name(action: &Action) -> String {
    match action {
        Action::EnsureDirs => "dirs".to_owned(),
        Action::LeaseAddresses => "lease".to_owned(),
        Action::MountVolume(name) => format!("volume/{name}"),
        Action::RefreshVolume(name) => format!("volume/{name}/refreshed"),
        Action::ResolveImage { container, .. } => format!("{container}/image"),
        Action::CreateSandbox => "sandbox".to_owned(),
        Action::AttachNetwork => "network".to_owned(),
        Action::PrepareContainer { container, .. } => format!("{container}/prepared"),
        Action::StartContainer { container, .. } => format!("{container}/started"),
        Action::ReleaseContainer { container, .. } => format!("{container}/released"),
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
