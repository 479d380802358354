//! Small changes to a healthy pod, each named by a sentence.

mod hooks;
mod restarts;
mod sidecars;
mod statuses;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, PodStatus, Probe, Volume},
    jiff::{SignedDuration, Timestamp},
};
use serde_json::json;

use super::{
    Action, Eviction, Hook, Memory, NodeView, ObservedPod, Outcome, Plan, Rejection, Verdict,
    backoff::CRASH_LOOP,
    memory::Stop,
    observed::{
        Attempt, AttemptState, Ended, HookEnd, Leftovers, Network, Prepared, Probed, ResolvedImage, Sandbox, Written,
    },
    plan::plan,
};

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
}

/// A pod with one init container and two main ones, all of it healthy at second 100.
pub(super) struct Case {
    pub(super) pod: Pod,
    pub(super) observed: ObservedPod,
    pub(super) memory: Memory,
    pub(super) now: Timestamp,
}

fn container(name: &str) -> Container {
    Container { name: name.to_owned(), image: Some("busybox:1".to_owned()), ..Container::default() }
}

fn attempt(number: u32, state: AttemptState) -> Attempt {
    attempt_of(1, number, state)
}

fn attempt_of(generation: u32, number: u32, state: AttemptState) -> Attempt {
    Attempt {
        number,
        generation,
        epoch: 0,
        id: format!("{number:064x}"),
        image_id: "sha256:aa".to_owned(),
        image_ref: "docker.io/library/busybox@sha256:bb".to_owned(),
        stop_signal: 15,
        user: None,
        state,
    }
}

pub(super) fn running(number: u32) -> Attempt {
    attempt(number, AttemptState::Running { pid: 100, started_at: at(10) })
}

pub(super) fn ended(number: u32, exit_code: i32, finished: i64) -> Attempt {
    attempt(
        number,
        AttemptState::Ended(Ended {
            exit_code,
            signal: None,
            reason: if exit_code == 0 { "Completed" } else { "Error" }.to_owned(),
            message: String::new(),
            started_at: Some(at(10)),
            finished_at: at(finished),
        }),
    )
}

fn healthy() -> Case {
    let mut pod = Pod::default();
    pod.metadata.name = Some("web".to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    pod.metadata.uid = Some("u1".to_owned());
    pod.spec = Some(PodSpec {
        init_containers: Some(vec![container("init")]),
        containers: vec![container("app"), container("log")],
        restart_policy: Some("Always".to_owned()),
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    });
    let mut observed = ObservedPod {
        dirs: true,
        network: Network::Attached(vec!["10.85.0.2".parse().expect("an address")]),
        sandbox: Sandbox::Running { pid: 7 },
        generation: 1,
        leftovers: Leftovers { cgroups: true, volumes: false, network: true },
        ..ObservedPod::default()
    };
    observed.record("init", ended(0, 0, 9));
    observed.record("app", running(0));
    observed.record("log", running(0));
    let mut case =
        Case { pod, observed, memory: Memory { start_time: Some(at(0)), ..Memory::default() }, now: at(100) };
    for name in ["init", "app", "log"] {
        case.ready(name, 0);
    }
    case
}
impl Case {
    fn plan(&self) -> Plan {
        let node = NodeView { host_ips: vec!["192.0.2.1".parse().expect("an address")], crash_loop: CRASH_LOOP };
        plan(&self.pod, &self.observed, &self.memory, &node, self.now)
    }

    /// An image was resolved and a launch record written.
    fn ready(&mut self, container: &str, attempt: u32) {
        let generation = self.observed.generation;
        self.observed.images.insert(container.to_owned(), ResolvedImage { attempt, id: "sha256:aa".to_owned() });
        self.observed.prepared.insert(container.to_owned(), Prepared { attempt, generation, epoch: 0 });
    }

    pub(super) fn set(&mut self, container: &str, attempts: Vec<Attempt>) {
        self.observed.containers.insert(container.to_owned(), attempts);
    }

    pub(super) fn spec(&mut self) -> &mut PodSpec {
        self.pod.spec.as_mut().expect("a spec")
    }

    /// The actor has begun and seen the end of an action at `now`.
    fn did(&mut self, action: Action, outcome: Outcome) {
        self.memory.begun(&action, &CRASH_LOOP, self.now);
        self.memory.ended(&action, None, self.now);
        self.observed.apply(&action, outcome);
    }

    /// The actor has begun what the plan says, and noted what it means.
    fn begin(&mut self) -> Vec<Action> {
        let plan = self.plan();
        if plan.going_down {
            self.memory.down_since.get_or_insert(self.now);
        }
        for action in &plan.actions {
            self.memory.begun(action, &CRASH_LOOP, self.now);
        }
        plan.actions
    }

    /// A field of the main container `app`, as in a manifest.
    fn app(&mut self, field: &str, value: serde_json::Value) {
        let index = self.spec().containers.iter().position(|one| one.name == "app").expect("app");
        let app = &mut self.spec().containers[index];
        let mut json = serde_json::to_value(&*app).expect("JSON");
        json[field] = value;
        *app = serde_json::from_value(json).expect("a container");
    }

    pub(super) fn policy(&mut self, policy: &str) {
        self.spec().restart_policy = Some(policy.to_owned());
    }
}

#[track_caller]
pub(super) fn case(sentence: &str, change: impl FnOnce(&mut Case), actions: &[Action]) -> Plan {
    let mut case = healthy();
    change(&mut case);
    let plan = case.plan();
    assert_eq!(plan.actions, actions, "{sentence}");
    plan
}

pub(super) fn start(container: &str, attempt: u32) -> Action {
    Action::StartContainer { container: container.to_owned(), attempt }
}

pub(super) fn release(container: &str, attempt: u32) -> Action {
    Action::ReleaseContainer { container: container.to_owned(), attempt, generation: 1, epoch: 0 }
}

pub(super) fn prepare(container: &str, attempt: u32, generation: u32) -> Action {
    Action::PrepareContainer { container: container.to_owned(), attempt, generation, epoch: 0 }
}

pub(super) fn resolve(container: &str, attempt: u32) -> Action {
    Action::ResolveImage { container: container.to_owned(), attempt }
}

pub(super) fn stop(container: &str) -> Action {
    Action::StopContainer { container: container.to_owned(), attempt: 0 }
}

pub(super) fn kill(container: &str) -> Action {
    Action::KillContainer { container: container.to_owned(), attempt: 0 }
}

fn phase(status: &PodStatus) -> &str {
    status.phase.as_deref().unwrap_or_default()
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a str {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    found.map(|condition| condition.status.as_str()).unwrap_or("absent")
}

fn waiting_reason(status: &PodStatus, index: usize) -> String {
    let container = &status.container_statuses.as_ref().expect("statuses")[index];
    let state = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    state.and_then(|waiting| waiting.reason.clone()).unwrap_or_default()
}

#[test]
fn a_healthy_pod_needs_nothing_and_no_timer() {
    let plan = case("nothing to do", |_| {}, &[]);
    assert_eq!(plan.wake_at, None);
    assert_eq!(phase(&plan.status), "Running");
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&plan.status, kind), "True", "{kind}");
    }
    assert_eq!(plan.status.pod_ip.as_deref(), Some("10.85.0.2"));
    assert_eq!(plan.status.host_ip.as_deref(), Some("192.0.2.1"));
}

#[test]
fn a_new_pod_is_built_up_in_waves() {
    let mut case = healthy();
    case.observed = ObservedPod::default();
    assert_eq!(case.plan().actions, [Action::EnsureDirs]);
    assert_eq!(phase(&case.plan().status), "Pending");
    case.observed.apply(&Action::EnsureDirs, Outcome::Done);
    assert_eq!(case.plan().actions, [Action::CreateSandbox, Action::LeaseAddresses, resolve("init", 0)]);
    let lease = Outcome::Leased(vec!["10.85.0.2".parse().expect("an address")]);
    case.observed.apply(&Action::LeaseAddresses, lease);
    assert_eq!(case.plan().actions, [Action::CreateSandbox, resolve("init", 0)]);
    case.observed.apply(&resolve("init", 0), Outcome::Image("sha256:aa".to_owned()));
    // The launch record names the sandbox that is being made.
    assert_eq!(case.plan().actions, [Action::CreateSandbox, prepare("init", 0, 1)]);
    case.observed.apply(&prepare("init", 0, 1), Outcome::Done);
    case.observed.apply(&Action::CreateSandbox, Outcome::Sandbox { pid: 7, generation: 1 });
    // Set up beside the network, and held until that is there.
    assert_eq!(case.plan().actions, [Action::AttachNetwork, start("init", 0)]);
    case.memory.begun(&start("init", 0), &CRASH_LOOP, at(100));
    case.observed.apply(&Action::AttachNetwork, Outcome::Done);
    assert_eq!(case.plan().actions, [release("init", 0)]);
    case.observed.apply(&release("init", 0), Outcome::Done);
    assert_eq!(case.plan().actions, []);
    case.memory.ended(&start("init", 0), None, at(100));
    assert_eq!(waiting_reason(&case.plan().status, 0), "PodInitializing");
    case.observed.apply(&start("init", 0), Outcome::Attempt(running(0)));
    assert_eq!(case.plan().actions, []);
    case.observed.record("init", ended(0, 0, 20));
    assert_eq!(case.plan().actions, [resolve("app", 0), resolve("log", 0)]);
}

#[test]
fn an_attempt_is_prepared_for_one_sandbox_and_once_all_it_says_is_known() {
    let unprepared = |case: &mut Case| {
        case.set("app", vec![]);
        case.observed.prepared.remove("app");
    };
    case("before it is started", unprepared, &[prepare("app", 0, 1)]);
    let addressless = |case: &mut Case| {
        unprepared(case);
        case.observed.network = Network::Absent;
    };
    case("not without addresses", addressless, &[Action::LeaseAddresses]);
    let replaced = |case: &mut Case| {
        case.set("app", vec![]);
        case.observed.generation = 2;
        case.set("init", vec![attempt_of(2, 1, ended(1, 0, 9).state)]);
    };
    case("again for another sandbox", replaced, &[prepare("app", 0, 2)]);
    let failed = |case: &mut Case| {
        unprepared(case);
        let error = ("CreateContainerConfigError".to_owned(), "no such user".to_owned());
        case.memory.ended(&prepare("app", 0, 1), Some(error), at(100));
    };
    let plan = case("later after a failure", failed, &[]);
    assert_eq!(waiting_reason(&plan.status, 0), "CreateContainerConfigError");
}

#[test]
fn nothing_is_begun_twice() {
    let in_flight = |case: &mut Case| {
        case.set("app", vec![]);
        case.memory.in_flight.extend([start("app", 0), release("app", 0)]);
    };
    case("a start under way is not repeated", in_flight, &[]);
    let released = |case: &mut Case| {
        case.set("app", vec![]);
        case.memory.in_flight.insert(start("app", 0));
        case.observed.apply(&release("app", 0), Outcome::Done);
    };
    case("nor is what it waited for", released, &[]);
    let of_a_lost_sandbox = |case: &mut Case| {
        released(case);
        case.observed.generation = 2;
        case.observed.prepared.insert("app".to_owned(), Prepared { attempt: 0, generation: 2, epoch: 0 });
        case.set("init", vec![attempt_of(2, 1, ended(0, 0, 9).state)]);
    };
    let again = Action::ReleaseContainer { container: "app".to_owned(), attempt: 0, generation: 2, epoch: 0 };
    case("but what was let go in another sandbox is not in this one", of_a_lost_sandbox, &[again]);
}

#[test]
fn host_network_pods_wait_for_no_link() {
    let host = |case: &mut Case| {
        case.spec().host_network = Some(true);
        case.observed.network = Network::Leased(vec![]);
        case.set("app", vec![]);
    };
    let plan = case("it starts with its files written", host, &[start("app", 0), release("app", 0)]);
    assert_eq!(plan.status.pod_ip.as_deref(), Some("192.0.2.1"));
}

#[test]
fn restart_policies() {
    let exit = |code: i32, policy: &'static str| {
        move |case: &mut Case| {
            case.policy(policy);
            case.set("app", vec![ended(0, code, 50)]);
            case.ready("app", 1);
        }
    };
    case("Always restarts after success", exit(0, "Always"), &[start("app", 1), release("app", 1)]);
    case("Always restarts after failure", exit(3, "Always"), &[start("app", 1), release("app", 1)]);
    case("OnFailure restarts after failure", exit(3, "OnFailure"), &[start("app", 1), release("app", 1)]);
    case("OnFailure leaves success alone", exit(0, "OnFailure"), &[]);
    let plan = case("Never leaves failure alone", exit(3, "Never"), &[]);
    assert_eq!(phase(&plan.status), "Running", "the other container still runs");
    assert_eq!(condition(&plan.status, "Ready"), "False");
}

#[test]
fn a_second_crash_waits_in_crash_loop_back_off() {
    let crashed = |case: &mut Case| {
        case.memory.begun(&start("app", 1), &CRASH_LOOP, at(90));
        case.memory.in_flight.clear();
        case.set("app", vec![ended(0, 1, 80), ended(1, 1, 95)]);
    };
    let plan = case("ten seconds from its end", crashed, &[]);
    assert_eq!(plan.wake_at, Some(at(105)));
    assert_eq!(waiting_reason(&plan.status, 0), "CrashLoopBackOff");
    let app = &plan.status.container_statuses.as_ref().expect("statuses")[0];
    let message = app.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.message.clone());
    assert_eq!(message.as_deref(), Some("back-off 10s restarting failed container=app pod=web_default(u1)"));
    let last = app.last_state.as_ref().and_then(|state| state.terminated.as_ref()).expect("a last state");
    assert_eq!((last.exit_code, app.restart_count), (1, 1));
}

#[test]
fn a_failed_init_container_keeps_the_others_waiting() {
    let failed = |policy: &'static str| {
        move |case: &mut Case| {
            case.policy(policy);
            case.set("init", vec![ended(0, 1, 50)]);
            case.set("app", vec![]);
            case.set("log", vec![]);
            case.ready("init", 1);
        }
    };
    let plan = case("it is tried again", failed("Always"), &[start("init", 1), release("init", 1)]);
    assert_eq!(phase(&plan.status), "Pending");
    assert_eq!(condition(&plan.status, "Initialized"), "False");
    let plan = case("with Never the pod has failed and is taken down", failed("Never"), &[Action::StopSandbox]);
    assert_eq!(phase(&plan.status), "Failed");
}

#[test]
fn a_finished_pod_gives_everything_back_but_its_record() {
    let mut case = healthy();
    case.policy("Never");
    case.set("app", vec![ended(0, 0, 50)]);
    case.set("log", vec![ended(0, 0, 50)]);
    assert_eq!(phase(&case.plan().status), "Succeeded");
    assert_eq!(case.plan().actions, [Action::StopSandbox]);
    case.observed.apply(&Action::StopSandbox, Outcome::Done);
    assert_eq!(case.plan().actions, [Action::DetachNetwork, Action::RemoveCgroups]);
    case.observed.apply(&Action::DetachNetwork, Outcome::Done);
    assert_eq!(case.plan().actions, [Action::RemoveCgroups]);
    case.observed.apply(&Action::RemoveCgroups, Outcome::Done);
    assert_eq!(case.plan().actions, [Action::ReleaseAddresses]);
    case.observed.apply(&Action::ReleaseAddresses, Outcome::Done);
    assert_eq!(case.plan().actions, []);
    case.memory.terminate(30, at(100));
    assert_eq!(case.plan().actions, [Action::ForgetPod]);
    assert_eq!(phase(&case.plan().status), "Succeeded");
}

#[test]
fn removal_signals_waits_for_the_grace_period_and_kills() {
    let mut case = healthy();
    case.memory.terminate(30, at(100));
    assert_eq!(case.plan().actions, [stop("app"), stop("log")]);
    for action in case.plan().actions {
        case.memory.begun(&action, &CRASH_LOOP, at(100));
        case.memory.ended(&action, None, at(100));
    }
    assert_eq!((case.plan().actions, case.plan().wake_at), (vec![], Some(at(130))));
    case.memory.terminate(60, at(101));
    assert_eq!(case.plan().wake_at, Some(at(130)), "the grace period never grows");
    case.observed.record("log", ended(0, 143, 101));
    case.now = at(130);
    assert_eq!(case.plan().actions, [kill("app")]);
    case.memory.terminate(0, at(131));
    assert_eq!(case.plan().actions, [kill("app")]);
    case.observed.record("app", ended(0, 137, 131));
    assert_eq!(case.plan().actions, [Action::StopSandbox]);
}

#[test]
fn taking_down_waits_for_what_is_being_built() {
    let building = |case: &mut Case| {
        case.memory.terminate(30, at(100));
        case.memory.in_flight.insert(start("app", 1));
        case.observed.apply(&release("app", 1), Outcome::Done);
    };
    let plan = case("a start under way is let finish", building, &[]);
    assert_eq!(plan.wake_at, Some(at(130)));
    let late = |case: &mut Case| {
        building(case);
        case.now = at(130);
    };
    let killed = Action::KillContainer { container: "app".to_owned(), attempt: 1 };
    case("but not longer than the grace period", late, std::slice::from_ref(&killed));
    let held = |case: &mut Case| {
        building(case);
        case.observed.released.clear();
    };
    case("what is still held has nothing to finish", held, &[killed]);
    let pulling = |case: &mut Case| {
        case.memory.terminate(0, at(100));
        case.memory.in_flight.insert(resolve("app", 1));
    };
    case("a pull is not waited for", pulling, &[kill("app"), kill("log")]);
}

#[test]
fn a_lost_sandbox_is_cleared_away_and_everything_runs_again() {
    let mut case = healthy();
    case.observed.sandbox = Sandbox::Lost;
    case.set("app", vec![attempt(0, AttemptState::Ended(Ended::unknown(Some(at(10)), at(90))))]);
    case.set("log", vec![attempt(0, AttemptState::Ended(Ended::unknown(Some(at(10)), at(90))))]);
    assert_eq!(case.plan().actions, [Action::StopSandbox]);
    case.observed.apply(&Action::StopSandbox, Outcome::Done);
    assert!(case.plan().actions.contains(&Action::DetachNetwork));
    assert!(!case.plan().actions.contains(&Action::CreateSandbox));
    case.observed.apply(&Action::DetachNetwork, Outcome::Done);
    assert!(case.plan().actions.contains(&Action::CreateSandbox));
    case.observed.apply(&Action::CreateSandbox, Outcome::Sandbox { pid: 8, generation: 2 });
    assert_eq!(
        case.plan().actions,
        [Action::AttachNetwork, resolve("init", 1)],
        "the init container runs again in the new sandbox"
    );
    let app = &case.plan().status.container_statuses.expect("statuses")[0];
    let state = app.state.as_ref().and_then(|state| state.terminated.as_ref()).expect("terminated");
    assert_eq!((state.exit_code, state.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[test]
fn a_failed_pull_is_said_and_tried_again_later() {
    let mut case = healthy();
    case.set("app", vec![]);
    case.observed.images.remove("app");
    let error = Some(("ErrImagePull".to_owned(), "no such image".to_owned()));
    case.memory.ended(&resolve("app", 0), error.clone(), at(99));
    let plan = case.plan();
    assert_eq!((plan.actions, plan.wake_at), (vec![], Some(at(109))));
    assert_eq!(waiting_reason(&plan.status, 0), "ErrImagePull");
    case.memory.ended(&resolve("app", 0), error, at(99));
    assert_eq!(waiting_reason(&case.plan().status, 0), "ImagePullBackOff");
    case.now = at(130);
    assert_eq!(case.plan().actions, [resolve("app", 0)]);
}

#[test]
fn a_container_waits_for_the_image_of_its_volume_as_for_its_own() {
    let mut case = healthy();
    let volume = json!({"name": "model", "image": {"reference": "model:1"}});
    case.spec().volumes = Some(vec![serde_json::from_value(volume).expect("a volume")]);
    let mount = json!({"name": "model", "mountPath": "/model"});
    case.spec().containers[0].volume_mounts = Some(vec![serde_json::from_value(mount).expect("a mount")]);
    for container in ["init", "app", "log"] {
        case.set(container, vec![]);
    }
    let action = Action::MountVolume("model".to_owned());
    let failed = Some(("ErrImagePull".to_owned(), "no such host".to_owned()));
    case.memory.ended(&action, failed.clone(), at(100));
    let plan = case.plan();
    assert_eq!(plan.wake_at, Some(at(110)), "the delay of pulls");
    assert_eq!(waiting_reason(&plan.status, 0), "ErrImagePull");
    assert_eq!(waiting_reason(&plan.status, 1), "ContainerCreating", "it does not mount it");
    case.now = at(110);
    case.memory.ended(&action, failed, at(110));
    assert_eq!(waiting_reason(&case.plan().status, 0), "ImagePullBackOff");
    case.now = at(130);
    assert!(case.plan().actions.contains(&action));
    case.memory.ended(&action, None, at(130));
    case.observed.apply(&action, Outcome::Image("sha256:bb".to_owned()));
    assert_eq!(case.observed.volume_images["model"], "sha256:bb");
    assert!(!case.plan().actions.contains(&action));
    case.observed.apply(&Action::UnmountVolumes, Outcome::Done);
    assert!(case.observed.volume_images.is_empty());
}

#[test]
fn a_rejected_pod_has_failed_and_leaves_nothing() {
    let mut case = healthy();
    case.observed = ObservedPod::default();
    case.memory.rejection = Some(Rejection { reason: "NodePorts".to_owned(), message: "taken".to_owned() });
    let plan = case.plan();
    let record = Action::RecordVerdict(case.memory.verdict().expect("a verdict"));
    assert_eq!(plan.actions, [record], "it is not decided again");
    assert_eq!((phase(&plan.status), plan.status.reason.as_deref()), ("Failed", Some("NodePorts")));
    assert_eq!(plan.status.message.as_deref(), Some("Pod was rejected: taken"));
    case.observed.verdict = true;
    assert_eq!(case.plan().actions, []);
    case.memory.terminate(30, at(1));
    assert_eq!(case.plan().actions, [Action::ForgetPod]);
}

#[test]
fn an_evicted_pod_is_recorded_then_stopped_and_stays_failed() {
    let mut case = healthy();
    case.memory.eviction = Some(Eviction::preempted(at(100)));
    let record = Action::RecordVerdict(case.memory.verdict().expect("a verdict"));
    let plan = case.plan();
    assert_eq!(plan.actions.as_slice(), std::slice::from_ref(&record));
    assert_eq!((phase(&plan.status), plan.status.reason.as_deref()), ("Failed", Some("Preempting")));
    assert_eq!(plan.status.message.as_deref(), Some("Preempted in order to admit critical pod"));
    let condition = plan.status.conditions.iter().flatten().find(|condition| condition.type_ == "DisruptionTarget");
    let condition = condition.expect("a condition");
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    case.observed.verdict = true;
    assert_eq!(case.plan().actions, [stop("app"), stop("log")]);
    case.set("app", vec![ended(0, 0, 100)]);
    case.set("log", vec![ended(0, 0, 100)]);
    assert_eq!(case.plan().actions, [Action::StopSandbox]);
    assert_eq!(phase(&case.plan().status), "Failed", "though all ended with 0");
    case.observed.verdict = false;
    case.memory.ended(&record, Some(("x".to_owned(), "disk full".to_owned())), case.now);
    assert_eq!(case.plan().actions, [Action::StopSandbox], "a record that cannot be written keeps nobody");
}

#[test]
fn the_active_deadline_ends_a_pod() {
    let mut case = healthy();
    case.spec().active_deadline_seconds = Some(200);
    assert_eq!(case.plan().wake_at, Some(at(200)));
    case.now = at(200);
    let plan = case.plan();
    assert_eq!(plan.actions, [stop("app"), stop("log")]);
    assert_eq!((phase(&plan.status), plan.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
}

#[test]
fn an_evicted_pod_has_the_least_time_to_stop_and_has_failed_for_good() {
    let mut case = healthy();
    let message = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
    let (reason, sentence) = ("Evicted".to_owned(), message.to_owned());
    let eviction = Eviction { reason, message: sentence, condition: None, at: at(100), grace: Some(1) };
    case.memory.eviction = Some(eviction.clone());
    assert_eq!(case.plan().actions, [Action::RecordVerdict(Verdict::Evicted(eviction))]);
    case.observed.verdict = true;
    let plan = case.plan();
    assert_eq!(plan.actions, [stop("app"), stop("log")]);
    assert_eq!(phase(&plan.status), "Failed");
    assert_eq!((plan.status.reason.as_deref(), plan.status.message.as_deref()), (Some("Evicted"), Some(message)));
    assert_eq!(condition(&plan.status, "DisruptionTarget"), "absent", "it is the pod's own doing");
    for container in ["app", "log"] {
        case.memory.begun(&stop(container), &CRASH_LOOP, at(100));
        case.memory.ended(&stop(container), None, at(100));
    }
    // A second, which upstream makes two.
    assert_eq!(case.plan().wake_at, Some(at(102)));
    case.now = at(102);
    assert_eq!(case.plan().actions, [kill("app"), kill("log")]);
    case.set("app", vec![ended(0, 0, 101)]);
    case.set("log", vec![ended(0, 0, 101)]);
    assert_eq!(phase(&case.plan().status), "Failed", "whatever its containers return, and whatever its restart policy");
}

#[test]
fn old_attempts_go_but_the_last_two_stay() {
    let old = |case: &mut Case| case.set("app", vec![ended(3, 1, 20), ended(4, 1, 30), ended(5, 1, 40), running(6)]);
    let remove = |attempt| Action::RemoveAttempt { container: "app".to_owned(), attempt };
    case("attempts before the previous one are removed", old, &[remove(4), remove(3)]);
}

#[test]
fn conditions_keep_the_time_of_their_last_change() {
    let mut case = healthy();
    case.memory.status = case.plan().status;
    case.now = at(500);
    let later = case.plan().status;
    assert_eq!(later, case.memory.status, "nothing changed, so nothing is reported");
    case.set("app", vec![ended(0, 0, 499)]);
    let changed = case.plan().status;
    let time = |kind: &str| {
        let found = changed.conditions.iter().flatten().find(|condition| condition.type_ == kind);
        found.and_then(|condition| condition.last_transition_time.clone()).map(|time| time.0)
    };
    assert_eq!(time("Ready"), Some(at(500)));
    assert_eq!(time("Initialized"), Some(at(100)));
}

#[test]
fn delays_are_bounded_by_time_not_by_luck() {
    let mut case = healthy();
    case.set("app", vec![]);
    case.observed.images.remove("app");
    for _ in 0..40 {
        case.memory.ended(&resolve("app", 0), Some(("ErrImagePull".to_owned(), String::new())), case.now);
    }
    let wake = case.plan().wake_at.expect("a retry");
    assert_eq!(wake.duration_since(case.now), SignedDuration::from_secs(300));
    // A disk that was full for a day is noticed soon when it is no more.
    let mut case = healthy();
    case.observed = ObservedPod::default();
    for _ in 0..40 {
        case.memory.ended(&Action::EnsureDirs, Some(("FailedCreate".to_owned(), String::new())), case.now);
    }
    let wake = case.plan().wake_at.expect("a retry");
    assert_eq!(wake.duration_since(case.now), SignedDuration::from_secs(10));
}

/// A volume that was written with content 1 and is wanted with content 1.
fn with_volume(case: &mut Case) {
    case.spec().volumes = Some(vec![Volume { name: "config".to_owned(), ..Volume::default() }]);
    case.observed.volumes.insert("config".to_owned(), Written { content: Some(1), renew_at: None });
    case.observed.contents.insert("config".to_owned(), 1);
}

fn refresh() -> Action {
    Action::RefreshVolume("config".to_owned())
}

#[test]
fn a_volume_is_written_anew_when_its_content_is_another() {
    let of = |sentence: &str, change: fn(&mut Case), actions: &[Action]| {
        let changed = |case: &mut Case| {
            with_volume(case);
            change(case);
        };
        self::case(sentence, changed, actions)
    };
    assert_eq!(of("the same content", |_| {}, &[]).wake_at, None);
    let later = |case: &mut Case| {
        case.observed.contents.insert("config".to_owned(), 2);
    };
    of("another content", later, &[refresh()]);
    of(
        "written with what is newer than what is known",
        |case| {
            case.observed.volumes.insert("config".to_owned(), Written { content: Some(2), renew_at: None });
        },
        &[refresh()],
    );
    of("a volume without content", |case| case.observed.contents.clear(), &[]);
    of("not mounted yet", |case| case.observed.volumes.clear(), &[Action::MountVolume("config".to_owned())]);
    of(
        "it is being written",
        |case| {
            case.observed.contents.insert("config".to_owned(), 2);
            case.memory.begun(&refresh(), &CRASH_LOOP, at(99));
        },
        &[],
    );
    let waiting = of(
        "it could not be written",
        |case| {
            case.observed.contents.insert("config".to_owned(), 2);
            case.memory.ended(&refresh(), Some(("FailedMount".to_owned(), "no".to_owned())), at(100));
        },
        &[],
    );
    assert_eq!(waiting.wake_at, at(100).checked_add(SignedDuration::from_millis(500)).ok());
    of(
        "a container that starts does not wait for it",
        |case| {
            case.observed.contents.insert("config".to_owned(), 2);
            case.memory.ended(&refresh(), Some(("FailedMount".to_owned(), "no".to_owned())), at(100));
            case.set("app", vec![ended(0, 1, 50)]);
        },
        &[resolve("app", 1)],
    );
    of(
        "a pod that ends needs no news",
        |case| {
            case.observed.contents.insert("config".to_owned(), 2);
            case.memory.terminate(30, at(100));
        },
        &[stop("app"), stop("log")],
    );
}

#[test]
fn a_token_is_replaced_when_its_time_has_come() {
    let renew = |second: i64| {
        move |case: &mut Case| {
            with_volume(case);
            let written = Written { content: Some(1), renew_at: Some(at(second)) };
            case.observed.volumes.insert("config".to_owned(), written);
        }
    };
    assert_eq!(case("in time", renew(150), &[]).wake_at, Some(at(150)));
    case("now", renew(100), &[refresh()]);
    case("it was missed while no agent ran", renew(10), &[refresh()]);
}

#[test]
fn what_failed_for_want_of_an_object_is_tried_again_when_one_changes() {
    let mount = Action::MountVolume("config".to_owned());
    let fail = |memory: &mut Memory, action: &Action, reason: &str| {
        for _ in 0..4 {
            memory.ended(action, Some((reason.to_owned(), "no".to_owned())), at(100));
        }
    };
    for (sentence, action, reason, credentials, again) in [
        ("a volume", mount.clone(), "FailedMount", false, true),
        ("a variable", prepare("app", 0, 1), "CreateContainerConfigError", false, true),
        ("a pull secret", resolve("app", 0), "ErrImagePull", true, true),
        ("an image, and a config map changes", resolve("app", 0), "ErrImagePull", false, false),
        ("what no object can mend", start("app", 0), "RunContainerError", true, false),
    ] {
        let mut memory = Memory::default();
        fail(&mut memory, &action, reason);
        assert!(memory.retry_at(&action, at(101)).is_some(), "{sentence}");
        memory.objects_changed(credentials, at(101));
        assert_eq!(memory.retry_at(&action, at(101)).is_none(), again, "{sentence}");
        assert!(memory.failure_of(&action).is_some(), "{sentence}: it has not succeeded yet");
        // What was begun before the change may fail after it, for what is there by now.
        let mut memory = Memory::default();
        memory.begun(&action, &CRASH_LOOP, at(110));
        memory.objects_changed(credentials, at(111));
        memory.ended(&action, Some((reason.to_owned(), "no".to_owned())), at(112));
        assert_eq!(memory.retry_at(&action, at(112)).is_none(), again, "{sentence}: outrun");
        memory.ended(&action, Some((reason.to_owned(), "no".to_owned())), at(113));
        assert!(memory.retry_at(&action, at(113)).is_some(), "{sentence}: once");
    }
}

/// The first attempt, whose stop signal was sent then.
fn stopped(at: Timestamp) -> Stop {
    Stop { attempt: 0, since: at, signalled: Some(at) }
}

/// A container with probes, of which `change` is known for its first attempt.
fn probed(case: &mut Case, change: impl FnOnce(&mut Probed)) {
    let app = &mut case.spec().containers[0];
    let probe = |grace| Some(Probe { termination_grace_period_seconds: grace, ..Probe::default() });
    (app.liveness_probe, app.readiness_probe, app.startup_probe) = (probe(None), probe(None), probe(Some(5)));
    let mut known = Probed { startup: Some(true), readiness: Some(true), liveness: Some(true), ..Probed::default() };
    change(&mut known);
    case.observed.probes.insert("app".to_owned(), known);
}

#[test]
fn a_container_that_its_probes_give_up_is_stopped_and_started_again() {
    case("all is well", |case| probed(case, |_| {}), &[]);
    case("it is not ready", |case| probed(case, |known| known.readiness = Some(false)), &[]);
    case("it is not alive", |case| probed(case, |known| known.liveness = Some(false)), &[stop("app")]);
    case("it does not start", |case| probed(case, |known| known.startup = Some(false)), &[stop("app")]);
    let of_an_earlier_attempt = |case: &mut Case| {
        probed(case, |known| known.liveness = Some(false));
        case.set("app", vec![ended(0, 0, 90), running(1)]);
    };
    case("that was an earlier attempt", of_an_earlier_attempt, &[]);
    case(
        "there is time left to stop",
        |case| {
            probed(case, |known| known.liveness = Some(false));
            case.memory.stopping.insert("app".to_owned(), stopped(at(71)));
        },
        &[],
    );
    case(
        "the pod's grace period is over",
        |case| {
            probed(case, |known| known.liveness = Some(false));
            case.memory.stopping.insert("app".to_owned(), stopped(at(70)));
        },
        &[kill("app")],
    );
    case(
        "the probe's own grace period is over",
        |case| {
            probed(case, |known| known.startup = Some(false));
            case.memory.stopping.insert("app".to_owned(), stopped(at(95)));
        },
        &[kill("app")],
    );
    case(
        "without any grace period there are two seconds",
        |case| {
            probed(case, |known| known.liveness = Some(false));
            case.spec().termination_grace_period_seconds = Some(0);
            case.memory.stopping.insert("app".to_owned(), stopped(at(99)));
        },
        &[],
    );
    let resolved = [resolve("app", 1)];
    for (policy, code, again) in
        [("Always", 0, true), ("OnFailure", 137, true), ("OnFailure", 0, true), ("Never", 137, false)]
    {
        let plan = case(
            &format!("{policy}, ended with {code}"),
            |case| {
                probed(case, |known| known.liveness = Some(false));
                case.policy(policy);
                case.set("app", vec![ended(0, code, 100)]);
            },
            if again { &resolved } else { &[] },
        );
        assert_eq!(phase(&plan.status), "Running", "{policy}: the other container runs");
    }
}

#[test]
fn a_pod_is_ready_when_its_probes_say_so() {
    let states = |change: fn(&mut Probed)| {
        let mut case = healthy();
        probed(&mut case, change);
        let status = case.plan().status;
        let app = &status.container_statuses.as_ref().expect("statuses")[0];
        (app.started, app.ready, condition(&status, "Ready") == "True")
    };
    assert_eq!(states(|_| {}), (Some(true), true, true));
    assert_eq!(states(|known| known.readiness = Some(false)), (Some(true), false, false));
    assert_eq!(states(|known| known.readiness = None), (Some(true), false, false));
    assert_eq!(states(|known| known.startup = None), (Some(false), false, false));
    assert_eq!(states(|known| known.liveness = None), (Some(true), true, true));
}
