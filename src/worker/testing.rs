//! Scripted hands for tests, and a clock that is tokio's: with paused time a day passes in a moment.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    jiff::{SignedDuration, Timestamp},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use super::{
    handle::BoxFuture,
    host::{ActionError, Answer, Done, PodEvent, PodHost},
    record::{self, PodRecord},
};
use crate::{
    pod::{
        Action, Grants, NodeView, Outcome,
        backoff::CRASH_LOOP,
        desired::SourceId,
        happening::Happening,
        observed::{Attempt, AttemptState, Ended, HookEnd, Launched, Probed, Written},
        probe::{ProbeKey, ProbeKind},
    },
    supervisor::spec::{
        CgroupPlacement, ExitRecord, LaunchSpec, LogSpec, PidMode, RootfsSpec, StdioSpec, UserSpec, VERSION,
    },
};

/// Virtual time.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn new() -> Clock {
        Clock(Instant::now())
    }

    pub fn now(self) -> Timestamp {
        let passed = SignedDuration::try_from(self.0.elapsed()).expect("a short test");
        Timestamp::from_second(1_700_000_000).expect("in range").saturating_add(passed).expect("in range")
    }

    /// Since the beginning of the test.
    pub fn passed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Lets everything that can run now do so: virtual time moves only when nothing can.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// What an action does instead of succeeding at once.
pub enum Step {
    /// Fails.
    Fail(&'static str),
    /// Fails with a reason and a message.
    FailFor(&'static str, &'static str),
    /// Has a bug.
    Panic,
    /// Waits to be released, then succeeds.
    Hold(Arc<Notify>),
    /// Returns this.
    Return(Outcome),
}

/// How long a probe takes, and what it comes to.
pub type Scripted = (Duration, Option<bool>);

/// Hands that do what the script says, and what a healthy node does where it says nothing.
pub struct FakeHost {
    clock: Clock,
    pub events: mpsc::Sender<PodEvent>,
    /// Containers ignore signals: they neither stop nor die.
    pub deaf: bool,
    script: Mutex<BTreeMap<Action, VecDeque<Step>>>,
    begun: Mutex<Vec<(Action, Duration)>>,
    ended: Mutex<Vec<(String, u32)>>,
    /// What was to be written into the ledger.
    pub recorded: Mutex<Vec<Arc<PodRecord>>>,
    /// Reasons and messages of events.
    pub told: Mutex<Vec<(String, String)>>,
    generation: Mutex<u32>,
    /// Content that each volume should have.
    pub contents: Mutex<BTreeMap<String, u64>>,
    released: watch::Sender<BTreeSet<(String, u32)>>,
    answers: Mutex<BTreeMap<ProbeKind, VecDeque<Scripted>>>,
    probed: Mutex<Vec<(ProbeKind, u32, Duration)>>,
    kept: Mutex<BTreeMap<String, Probed>>,
}

impl FakeHost {
    pub fn new(clock: Clock, events: mpsc::Sender<PodEvent>) -> FakeHost {
        FakeHost {
            clock,
            events,
            deaf: false,
            script: Mutex::default(),
            begun: Mutex::default(),
            ended: Mutex::default(),
            recorded: Mutex::default(),
            told: Mutex::default(),
            generation: Mutex::default(),
            contents: Mutex::default(),
            released: watch::Sender::default(),
            answers: Mutex::default(),
            probed: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// The next time `action` is asked for, `step` happens; after those already waiting.
    pub fn script(&self, action: Action, step: Step) {
        self.script.lock().unwrap().entry(action).or_default().push_back(step);
    }

    /// All actions in the order in which they were begun.
    pub fn actions(&self) -> Vec<Action> {
        self.begun.lock().unwrap().iter().map(|(action, _)| action.clone()).collect()
    }

    /// When an action was begun, each time, to the nearest 10 ms.
    pub fn times(&self, wanted: &Action) -> Vec<f64> {
        let begun = self.begun.lock().unwrap();
        let of = begun.iter().filter(|(action, _)| action == wanted);
        of.map(|(_, at)| (at.as_secs_f64() * 100.0).round() / 100.0).collect()
    }

    /// Ids and numbers of the attempts the actor said have ended.
    pub fn told_ended(&self) -> Vec<(String, u32)> {
        self.ended.lock().unwrap().clone()
    }

    /// What the next probes of a kind answer, each after a while; afterwards they succeed at once.
    pub fn answers(&self, kind: ProbeKind, answers: impl IntoIterator<Item = Scripted>) {
        self.answers.lock().unwrap().entry(kind).or_default().extend(answers);
    }

    /// When probes of a kind were begun, to the nearest second, with the attempt.
    pub fn probed(&self, wanted: ProbeKind) -> Vec<(u32, u64)> {
        let probed = self.probed.lock().unwrap();
        let of = probed.iter().filter(|(kind, ..)| *kind == wanted);
        of.map(|(_, attempt, at)| (*attempt, at.as_secs_f64().round() as u64)).collect()
    }

    /// The verdicts that were last to be kept.
    pub fn kept(&self) -> BTreeMap<String, Probed> {
        self.kept.lock().unwrap().clone()
    }

    /// Reasons of the events so far.
    pub fn happenings(&self) -> Vec<String> {
        self.told.lock().unwrap().iter().map(|(reason, _)| reason.clone()).collect()
    }

    async fn healthy(&self, pod: &Pod, action: Action) -> Outcome {
        match action {
            Action::PrepareContainer { container, attempt, .. } => {
                let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
                let found = containers.find(|found| found.name == container).cloned().unwrap_or_default();
                let (image, resources) = (found.image.unwrap_or_default(), found.resources.unwrap_or_default());
                Outcome::Prepared(Launched { attempt, image, resources })
            }
            Action::LeaseAddresses => Outcome::Leased(vec!["10.85.0.2".parse().unwrap()]),
            Action::MountVolume(name) | Action::RefreshVolume(name) => {
                let content = self.contents.lock().unwrap().get(&name).copied();
                Outcome::Volume(Written { content, renew_at: None })
            }
            Action::ResolveImage { .. } => Outcome::Image("sha256:aa".to_owned()),
            Action::CreateSandbox => {
                let mut generation = self.generation.lock().unwrap();
                *generation += 1;
                Outcome::Sandbox { pid: 7, generation: *generation }
            }
            Action::StartContainer { container, attempt } => {
                let mut released = self.released.subscribe();
                let let_go = |released: &BTreeSet<(String, u32)>| released.contains(&(container.clone(), attempt));
                // The sender is a part of this.
                let _ = released.wait_for(let_go).await;
                let generation = *self.generation.lock().unwrap();
                Outcome::Attempt(running(&container, attempt, generation, self.clock.now()))
            }
            Action::ReleaseContainer { container, attempt, .. } => {
                self.released.send_modify(|released| {
                    released.insert((container, attempt));
                });
                Outcome::Done
            }
            Action::StopContainer { container, attempt } | Action::KillContainer { container, attempt } => {
                if !self.deaf {
                    let generation = *self.generation.lock().unwrap();
                    let attempt = ended(&container, attempt, generation, 143, self.clock.now());
                    let _ = self.events.send(PodEvent::Ended { container, attempt }).await;
                }
                Outcome::Done
            }
            Action::RunHook { .. } => Outcome::Hook(HookEnd::Succeeded),
            _ => Outcome::Done,
        }
    }
}

impl PodHost for FakeHost {
    fn execute(self: Arc<Self>, pod: Arc<Pod>, action: Action) -> BoxFuture<'static, Result<Done, ActionError>> {
        self.begun.lock().unwrap().push((action.clone(), self.clock.passed()));
        let step = self.script.lock().unwrap().get_mut(&action).and_then(VecDeque::pop_front);
        Box::pin(async move {
            match step {
                Some(Step::Fail(message)) => {
                    return Err(ActionError { reason: "Scripted".to_owned(), message: message.to_owned() });
                }
                Some(Step::FailFor(reason, message)) => {
                    return Err(ActionError { reason: reason.to_owned(), message: message.to_owned() });
                }
                Some(Step::Panic) => panic!("scripted"),
                Some(Step::Return(outcome)) => return Ok(Done::new(outcome)),
                Some(Step::Hold(release)) => release.notified().await,
                None => {}
            }
            Ok(Done::new(self.healthy(&pod, action).await))
        })
    }

    fn record(self: Arc<Self>, record: Arc<PodRecord>) -> BoxFuture<'static, Result<Done, ActionError>> {
        self.recorded.lock().unwrap().push(record.clone());
        self.execute(record.pod.clone(), Action::RecordPod)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn contents(&self, _pod: &Pod) -> BTreeMap<String, u64> {
        self.contents.lock().unwrap().clone()
    }

    fn probe(self: Arc<Self>, _pod: Arc<Pod>, key: ProbeKey) -> BoxFuture<'static, Answer> {
        self.probed.lock().unwrap().push((key.kind, key.attempt, self.clock.passed()));
        let answer = self.answers.lock().unwrap().get_mut(&key.kind).and_then(VecDeque::pop_front);
        Box::pin(async move {
            let (wait, success) = answer.unwrap_or((Duration::ZERO, Some(true)));
            tokio::time::sleep(wait).await;
            Answer { success, message: "scripted".to_owned() }
        })
    }

    fn keep_verdicts(self: Arc<Self>, probes: &BTreeMap<String, Probed>) {
        self.kept.lock().unwrap().clone_from(probes);
    }

    fn happened(&self, _pod: &Pod, happening: Happening) {
        self.told.lock().unwrap().push((happening.reason.into_owned(), happening.message));
    }

    fn attempt_ended(&self, attempt: &Attempt) {
        self.ended.lock().unwrap().push((attempt.id.clone(), attempt.number));
    }
}

pub fn running(container: &str, number: u32, generation: u32, started_at: Timestamp) -> Attempt {
    Attempt {
        number,
        generation,
        epoch: 0,
        id: format!("{container}-{number}"),
        image_id: "sha256:aa".to_owned(),
        image_ref: "sha256:aa".to_owned(),
        stop_signal: libc::SIGTERM,
        user: None,
        state: AttemptState::Running { pid: 100, started_at },
    }
}

pub fn ended(container: &str, number: u32, generation: u32, exit_code: i32, finished_at: Timestamp) -> Attempt {
    let ended = Ended {
        exit_code,
        signal: None,
        reason: "Error".to_owned(),
        message: String::new(),
        started_at: None,
        finished_at,
    };
    Attempt { state: AttemptState::Ended(ended), ..running(container, number, generation, finished_at) }
}

/// A pod with one container, `app`.
pub fn pod(uid: &str, name: &str) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(uid.to_owned());
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    let app = Container { name: "app".to_owned(), image: Some("busybox:1".to_owned()), ..Container::default() };
    pod.spec = Some(PodSpec {
        containers: vec![app],
        restart_policy: Some("Always".to_owned()),
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    });
    pod
}

/// The ledger's entry of a pod from a file.
pub fn record(pod: Pod, start_time: Timestamp) -> PodRecord {
    let origin = format!("file:/m/{}.yaml", pod.metadata.name.as_deref().unwrap_or_default());
    PodRecord {
        version: record::VERSION,
        pod: Arc::new(pod),
        allocated: None,
        source: SourceId::File,
        origin,
        users: None,
        handler: None,
        grants: Grants::default(),
        start_time,
        sourced: None,
        verdict: None,
    }
}

pub fn node() -> Arc<NodeView> {
    Arc::new(NodeView { host_ips: vec!["192.0.2.1".parse().unwrap()], crash_loop: CRASH_LOOP })
}

pub fn release(attempt: u32) -> Action {
    Action::ReleaseContainer { container: "app".to_owned(), attempt, generation: 1, epoch: 0 }
}

pub fn start(attempt: u32) -> Action {
    Action::StartContainer { container: "app".to_owned(), attempt }
}

pub fn stop(attempt: u32) -> Action {
    Action::StopContainer { container: "app".to_owned(), attempt }
}

pub fn kill(attempt: u32) -> Action {
    Action::KillContainer { container: "app".to_owned(), attempt }
}

pub fn resolve(attempt: u32) -> Action {
    Action::ResolveImage { container: "app".to_owned(), attempt }
}

/// A launch record with nothing of interest in it.
pub fn launch(container: &str, attempt: u32, generation: u32) -> LaunchSpec {
    LaunchSpec {
        version: VERSION,
        generation,
        pod_uid: "u1".to_owned(),
        container: container.to_owned(),
        attempt,
        id: format!("{container}-{attempt}"),
        image: "busybox:1".to_owned(),
        image_id: "sha256:aa".to_owned(),
        image_ref: "sha256:aa".to_owned(),
        epoch: 0,
        args: vec!["true".to_owned()],
        env: Vec::new(),
        cwd: "/".into(),
        rootfs: RootfsSpec {
            lower: Vec::new(),
            upper: "/upper".into(),
            work: "/work".into(),
            target: "/rootfs".into(),
            readonly: false,
        },
        mounts: Vec::new(),
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        devices: Vec::new(),
        all_devices: false,
        users: None,
        user: UserSpec::default(),
        capabilities: 0,
        no_new_privs: false,
        app_armor: None,
        seccomp: Vec::new(),
        rlimits: Vec::new(),
        oom_score_adj: 0,
        cgroup: CgroupPlacement::default(),
        pid: PidMode::Container,
        new_cgroup_ns: false,
        stdio: StdioSpec::default(),
        log: LogSpec { path: "/log".into(), max_size: 0, max_files: 2 },
        stop_signal: libc::SIGTERM,
        handler: None,
    }
}

/// The record of an end.
pub fn exit_record(exit_code: i32) -> ExitRecord {
    ExitRecord {
        version: VERSION,
        id: String::new(),
        exit_code,
        signal: None,
        oom_killed: false,
        started_at: 1_000_000_000,
        finished_at: 2_000_000_000,
        start_error: None,
        user: None,
    }
}
