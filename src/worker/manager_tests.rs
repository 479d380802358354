//! The set of pods with scripted hands and virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, ConfigMapVolumeSource, Pod, Volume},
    jiff::Timestamp,
};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::{
    host::{PodEvent, PodHost},
    manager::{Entries, Hosts, Kept, Manager, Recovered, Update},
    record::PodRecord,
    testing::{Clock, FakeHost, Step, ended, node, pod, record, running, settle, start, stop},
};
use crate::{
    api::{
        defaults::set_pod_defaults,
        objects::Objects,
        quantity::Quantity,
        resources::{CPU, Resources, pod_requests},
        update::{Change, Resize},
    },
    obs::events::Severity,
    pod::{
        Action, Eviction, Grants, Memory, ObservedPod, Rejection, Verdict,
        admission::{self, NodeFacts, PODS},
        desired::{Desired, SourceId, SourceUpdate, SourcedPod, merge},
        devices::Question,
        observed::{Leftovers, Network, Sandbox},
        topology::Cpus,
    },
    runtime::users::{IdPool, UNIT},
    supervisor::spec::IdRange,
};

struct FakeHosts {
    clock: Clock,
    made: Mutex<BTreeMap<String, Arc<FakeHost>>>,
    /// Ids in the records of the pods that hands were made for.
    given: Mutex<BTreeMap<String, Option<IdRange>>>,
    /// Steps for hands that are still to be made, by UID.
    scripts: Mutex<BTreeMap<String, Vec<(Action, Step)>>>,
    /// UIDs that the node does not take.
    refused: BTreeSet<String>,
    /// UIDs that get ids of their own.
    with_users: BTreeSet<String>,
    /// Processors in the records of the pods that hands were made for; who has a name with "own" in it gets the lowest.
    granted: Mutex<BTreeMap<String, String>>,
    /// Processors that pods have together, as it was told last.
    taken: Mutex<String>,
    /// UIDs that admission was told of beside a new pod, the last time.
    beside: Mutex<Vec<String>>,
    /// CPUs that there are, and that pods are admitted for.
    processors: Mutex<i64>,
    /// Most pods.
    pods: i64,
    /// Reasons of events.
    told: Mutex<Vec<String>>,
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn asks_for(pod: &Pod) -> i64 {
    pod.spec.as_ref().map(pod_requests).unwrap_or_default().get(CPU).map_or(0, Quantity::value)
}

impl Hosts for FakeHosts {
    fn host(&self, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Arc<dyn PodHost> {
        let host = Arc::new(FakeHost::new(self.clock, events));
        for (action, step) in self.scripts.lock().unwrap().remove(record.uid()).into_iter().flatten() {
            host.script(action, step);
        }
        self.made.lock().unwrap().insert(record.uid().to_owned(), host.clone());
        self.given.lock().unwrap().insert(record.uid().to_owned(), record.users);
        self.granted.lock().unwrap().insert(record.uid().to_owned(), record.grants.cpus().to_string());
        host
    }

    fn admit(&self, pod: &Pod, others: &[&Pod]) -> Result<Vec<String>, Rejection> {
        *self.beside.lock().unwrap() = others.iter().map(|pod| uid(pod)).collect();
        self.fits(pod, others)?;
        let allocatable = Resources::from([(PODS.to_owned(), Quantity::from_units(self.pods))]);
        let facts = NodeFacts { allocatable, ..NodeFacts::default() };
        let victims = admission::admit(pod, others, &facts, &[""; 0])?;
        Ok(victims.iter().map(|pod| uid(pod)).collect())
    }

    fn fits(&self, pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
        let processors = |pods: &[&Pod]| -> i64 { pods.iter().map(|pod| asks_for(pod)).sum() };
        let room = *self.processors.lock().unwrap() - processors(others);
        match self.refused.contains(&uid(pod)) || processors(&[pod]) > room {
            true => Err(Rejection { reason: "OutOfcpu".to_owned(), message: format!("room for {room}") }),
            false => Ok(()),
        }
    }

    fn allocatable(&self) -> Resources {
        Resources::from([(CPU.to_owned(), Quantity::from_units(*self.processors.lock().unwrap()))])
    }

    fn event(&self, _pod: &Pod, _severity: Severity, reason: &str, _message: String) {
        self.told.lock().unwrap().push(reason.to_owned());
    }

    fn users(&self, pod: &Pod, taken: &[IdRange]) -> Result<Option<IdRange>, Rejection> {
        let wanted = self.with_users.contains(&uid(pod));
        Ok(wanted.then(|| IdPool::new("", "", UNIT, 3).expect("a pool").allocate(taken).expect("a range")))
    }

    fn grant(
        &self,
        pod: &Pod,
        taken: &[&Grants],
        _answers: &[Vec<String>],
    ) -> Result<(Grants, Option<Question>), Rejection> {
        let mut grants = Grants::default();
        if pod.metadata.name.as_deref().is_some_and(|name| name.contains("own")) {
            let taken: Cpus = taken.iter().flat_map(|grants| grants.cpus().iter().collect::<Vec<_>>()).collect();
            let none = || Rejection { reason: "UnexpectedAdmissionError".to_owned(), message: "no cpus".to_owned() };
            let free = (0..3).find(|cpu| !taken.contains(*cpu)).ok_or_else(none)?;
            grants.of_mut("app").cpus = Cpus::from_iter([free]);
        }
        Ok((grants, None))
    }

    fn changed(&self, _pods: &[&Pod], grants: &[&Grants]) {
        let taken: Cpus = grants.iter().flat_map(|grants| grants.cpus().iter().collect::<Vec<_>>()).collect();
        *self.taken.lock().unwrap() = taken.to_string();
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

struct Rig {
    hosts: Arc<FakeHosts>,
    entries: Entries,
    manager: Manager,
}

fn rig(refused: &[&str]) -> Rig {
    rig_with(refused, 110)
}

/// A node for two pods.
fn small_rig() -> Rig {
    rig_with(&[], 2)
}

fn rig_with(refused: &[&str], pods: i64) -> Rig {
    let hosts = Arc::new(FakeHosts {
        clock: Clock::new(),
        made: Mutex::default(),
        given: Mutex::default(),
        granted: Mutex::default(),
        taken: Mutex::default(),
        scripts: Mutex::default(),
        refused: refused.iter().map(|uid| (*uid).to_owned()).collect(),
        with_users: ["1", "2", "4"].iter().map(|uid| (*uid).to_owned()).collect(),
        beside: Mutex::default(),
        processors: Mutex::new(4),
        pods,
        told: Mutex::default(),
    });
    let entries = Entries::default();
    let manager = Manager::new(hosts.clone(), node(), entries.clone());
    Rig { hosts, entries, manager }
}

impl Rig {
    fn script(&self, uid: &str, action: Action, step: Step) {
        self.hosts.scripts.lock().unwrap().entry(uid.to_owned()).or_default().push((action, step));
    }

    fn host(&self, uid: &str) -> Arc<FakeHost> {
        self.hosts.made.lock().unwrap()[uid].clone()
    }

    async fn reconcile(&mut self, update: SourceUpdate) {
        let desired = merge(&[Arc::new(update)], &self.manager.uids());
        self.follow(&desired, true).await;
    }

    async fn follow(&mut self, desired: &Desired, complete: bool) {
        self.manager.reconcile(desired, complete, Instant::now());
        settle().await;
    }

    fn phase(&self, uid: &str) -> String {
        let report = self.entries.lock().unwrap()[uid].reports.borrow().clone().expect("a report");
        report.pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default()
    }

    /// A pod an earlier agent left running.
    fn adopt(&mut self, uid: &str, name: &str) -> Arc<FakeHost> {
        self.adopt_with(uid, name, None)
    }

    fn adopt_with(&mut self, uid: &str, name: &str, verdict: Option<Verdict>) -> Arc<FakeHost> {
        let (sender, events) = mpsc::channel(8);
        let host = Arc::new(FakeHost::new(self.hosts.clock, sender));
        let now = self.hosts.clock.now();
        let mut observed = ObservedPod {
            dirs: true,
            network: Network::Attached(vec!["10.85.0.9".parse().unwrap()]),
            sandbox: Sandbox::Running { pid: 9 },
            generation: 1,
            leftovers: Leftovers { cgroups: true, volumes: false, network: true },
            verdict: verdict.is_some(),
            ..ObservedPod::default()
        };
        observed.record("app", running("app", 0, 1, now));
        let record = PodRecord { verdict: verdict.clone(), ..record(pod(uid, name), now) };
        let mut memory = Memory { start_time: Some(now), ..Memory::default() };
        verdict.into_iter().for_each(|verdict| memory.resume_verdict(verdict));
        self.manager.adopt(Recovered { record, observed, memory, host: host.clone(), events });
        host
    }

    async fn gone(&mut self) {
        timeout(Duration::from_secs(1000), self.manager.pod_gone()).await.expect("a pod goes");
    }
}

fn wants(pods: &[(&str, &str)]) -> SourceUpdate {
    let sourced = |(uid, name): &(&str, &str)| {
        Arc::new(SourcedPod { pod: pod(uid, name), origin: format!("file:/m/{name}.yaml"), document: 0 })
    };
    SourceUpdate { pods: pods.iter().map(sourced).collect(), ..SourceUpdate::empty(SourceId::File) }
}

#[tokio::test(start_paused = true)]
async fn pods_follow_the_sources() {
    let mut rig = rig(&[]);
    rig.reconcile(wants(&[("1", "a"), ("2", "b")])).await;
    assert_eq!((rig.phase("1").as_str(), rig.phase("2").as_str()), ("Running", "Running"));
    rig.reconcile(wants(&[("2", "b")])).await;
    rig.gone().await;
    assert_eq!(rig.manager.uids(), BTreeSet::from(["2".to_owned()]));
    assert!(!rig.entries.lock().unwrap().contains_key("1"));
    assert!(!rig.host("2").actions().contains(&stop(0)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_terminated_before_every_source_has_spoken() {
    let mut rig = rig(&[]);
    let host = rig.adopt("1", "a");
    rig.follow(&Desired::default(), false).await;
    assert_eq!(host.actions(), []);
    rig.follow(&Desired::default(), true).await;
    rig.gone().await;
    assert_eq!(host.actions().first(), Some(&stop(0)));
    assert!(rig.manager.is_empty());
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_source_that_cannot_be_read_are_kept() {
    let mut rig = rig(&[]);
    let (a, b) = (rig.adopt("1", "a"), rig.adopt("2", "b"));
    rig.reconcile(SourceUpdate { incomplete: true, ..SourceUpdate::empty(SourceId::File) }).await;
    let unusable = BTreeSet::from(["file:/m/a.yaml".to_owned()]);
    rig.reconcile(SourceUpdate { unusable, ..SourceUpdate::empty(SourceId::File) }).await;
    assert_eq!(a.actions(), [], "its file cannot be read");
    assert_eq!(b.actions().first(), Some(&stop(0)), "its file is gone");
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_waits_until_the_old_one_is_gone() {
    let mut rig = rig(&[]);
    let release = Arc::new(Notify::new());
    rig.script("1", Action::ForgetPod, Step::Hold(release.clone()));
    rig.reconcile(wants(&[("1", "web")])).await;
    rig.reconcile(wants(&[("2", "web")])).await;
    assert_eq!(rig.host("1").actions().last(), Some(&Action::ForgetPod));
    assert!(!rig.hosts.made.lock().unwrap().contains_key("2"), "not while the old one is being removed");
    release.notify_one();
    rig.gone().await;
    rig.reconcile(wants(&[("2", "web")])).await;
    assert_eq!(rig.phase("2"), "Running");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_back_while_it_goes_is_started_anew() {
    let mut rig = rig(&[]);
    let release = Arc::new(Notify::new());
    rig.script("1", Action::StopSandbox, Step::Hold(release.clone()));
    rig.reconcile(wants(&[("1", "web")])).await;
    rig.reconcile(wants(&[])).await;
    rig.reconcile(wants(&[("1", "web")])).await;
    let old = rig.host("1");
    release.notify_one();
    rig.gone().await;
    rig.reconcile(wants(&[("1", "web")])).await;
    assert_eq!(old.actions().last(), Some(&Action::ForgetPod), "going is not taken back");
    assert!(!Arc::ptr_eq(&old, &rig.host("1")));
    assert_eq!(rig.phase("1"), "Running");
}

#[tokio::test(start_paused = true)]
async fn an_action_that_hangs_or_panics_harms_its_pod_alone() {
    let mut rig = rig(&[]);
    rig.script("1", Action::CreateSandbox, Step::Hold(Arc::new(Notify::new())));
    rig.script("2", start(0), Step::Panic);
    rig.reconcile(wants(&[("1", "a"), ("2", "b"), ("3", "c")])).await;
    let phases = ["1", "2", "3"].map(|uid| rig.phase(uid));
    assert_eq!(phases, ["Pending", "Pending", "Running"]);
    assert_eq!(rig.host("3").times(&start(0)), [0.0], "no time passed for it");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(rig.phase("2"), "Running");
    assert_eq!(rig.phase("1"), "Pending");
}

#[tokio::test(start_paused = true)]
async fn a_pod_the_node_does_not_take_fails_and_counts_for_nothing() {
    let mut rig = rig(&["1"]);
    rig.reconcile(wants(&[("1", "a")])).await;
    assert_eq!(rig.phase("1"), "Failed");
    let actions = rig.host("1").actions();
    assert!(matches!(actions.as_slice(), [Action::RecordVerdict(_)]), "nothing but its record is made: {actions:?}");
    assert_eq!(rig.told(), ["OutOfcpu"]);
    rig.reconcile(wants(&[("1", "a"), ("2", "b")])).await;
    assert_eq!(*rig.hosts.beside.lock().unwrap(), Vec::<String>::new());
    rig.reconcile(wants(&[("2", "b")])).await;
    rig.gone().await;
    assert_eq!(rig.manager.uids(), BTreeSet::from(["2".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn ids_are_given_to_one_pod_at_a_time_and_to_nobody_while_they_may_be_in_use() {
    let mut rig = rig(&[]);
    let range = |slot: u32| Some(IdRange { first: slot * UNIT, count: UNIT });
    rig.manager.leave_alone("9".to_owned(), Kept { users: range(1), ..Kept::default() });
    rig.reconcile(wants(&[("1", "a"), ("2", "b"), ("3", "c")])).await;
    let given = |rig: &Rig| rig.hosts.given.lock().unwrap().clone();
    assert_eq!(given(&rig).into_values().collect::<Vec<_>>(), [range(2), range(3), None]);
    rig.reconcile(wants(&[("2", "b"), ("3", "c")])).await;
    rig.gone().await;
    rig.reconcile(wants(&[("2", "b"), ("3", "c"), ("4", "d")])).await;
    assert_eq!(given(&rig)["4"], range(2));
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_has_for_itself_is_given_to_nobody_until_it_is_gone() {
    let mut rig = rig(&[]);
    let mut kept = Kept::default();
    kept.grants.of_mut("app").cpus = Cpus::from_iter([0]);
    rig.manager.leave_alone("9".to_owned(), kept);
    let taken = |rig: &Rig| rig.hosts.taken.lock().unwrap().clone();
    rig.reconcile(wants(&[("1", "own-a"), ("2", "b"), ("3", "own-c")])).await;
    let granted = rig.hosts.granted.lock().unwrap().clone();
    assert_eq!(granted.into_values().collect::<Vec<_>>(), ["1", "", "2"]);
    assert_eq!(taken(&rig), "0-2");
    rig.reconcile(wants(&[("1", "own-a"), ("2", "b"), ("3", "own-c"), ("5", "own-d")])).await;
    assert_eq!((rig.phase("5").as_str(), rig.told()), ("Failed", vec!["UnexpectedAdmissionError".to_owned()]));
    rig.reconcile(wants(&[("2", "b"), ("3", "own-c"), ("5", "own-d")])).await;
    rig.gone().await;
    rig.reconcile(wants(&[("2", "b"), ("3", "own-c"), ("5", "own-d"), ("6", "own-e")])).await;
    assert_eq!(rig.hosts.granted.lock().unwrap()["6"], "1");
    assert_eq!(taken(&rig), "0-2");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_record_is_unusable_is_not_started_over() {
    let mut rig = rig(&[]);
    rig.manager.leave_alone("1".to_owned(), Kept::default());
    rig.reconcile(wants(&[("1", "a"), ("2", "b")])).await;
    assert!(!rig.hosts.made.lock().unwrap().contains_key("1"));
    assert_eq!(rig.phase("2"), "Running");
    rig.reconcile(wants(&[])).await;
    rig.gone().await;
    assert!(!rig.manager.is_empty(), "what the node set up for itself is still in use");
}

/// One pod with the UID 1, complete and valid.
fn wants_image(image: &str) -> SourceUpdate {
    let mut pod = pod("1", "a");
    pod.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
    set_pod_defaults(&mut pod);
    let sourced = SourcedPod { pod, origin: "file:/m/a.yaml".to_owned(), document: 0 };
    SourceUpdate { pods: vec![Arc::new(sourced)], ..SourceUpdate::empty(SourceId::File) }
}

impl Rig {
    /// Generation and image of the pod with the UID 1, as it is reported.
    fn reported(&self) -> (Option<i64>, String) {
        let report = self.entries.lock().unwrap()["1"].reports.borrow().clone().expect("a report");
        let image = report.pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        (report.pod.metadata.generation, image.unwrap_or_default())
    }

    async fn change(&mut self, change: Change) -> Result<Arc<Pod>, super::handle::NodeError> {
        self.change_of("1", change).await
    }

    async fn change_of(&mut self, uid: &str, change: Change) -> Result<Arc<Pod>, super::handle::NodeError> {
        let (answer, decided) = tokio::sync::oneshot::channel();
        self.manager.update(Update { uid: uid.to_owned(), change, answer });
        settle().await;
        decided.await.unwrap().map(|(pod, _)| pod)
    }

    /// The condition `PodResizePending` of a pod.
    fn pending(&self, uid: &str) -> Option<(String, String)> {
        let report = self.entries.lock().unwrap()[uid].reports.borrow().clone().expect("a report");
        let conditions = report.pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition.type_ == "PodResizePending")?;
        Some((found.reason.unwrap_or_default(), found.message.unwrap_or_default()))
    }

    /// CPUs in the ledger's newest record of a pod: wanted, and held where that is something else.
    fn ledger(&self, uid: &str) -> (i64, Option<i64>) {
        let host = self.host(uid);
        let recorded = host.recorded.lock().unwrap();
        let record = recorded.last().expect("a record");
        (asks_for(&record.pod), record.allocated.as_ref().map(|_| asks_for(&record.effective())))
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.hosts.told.lock().unwrap())
    }
}

/// Pods that ask for so many CPUs each.
fn wants_cpu(pods: &[(&str, i64)]) -> SourceUpdate {
    let sourced = |(uid, cpu): &(&str, i64)| {
        let mut pod = pod(uid, &format!("p{uid}"));
        let requests = serde_json::json!({"requests": {"cpu": cpu.to_string()}});
        pod.spec.as_mut().unwrap().containers[0].resources = Some(serde_json::from_value(requests).unwrap());
        set_pod_defaults(&mut pod);
        Arc::new(SourcedPod { pod, origin: format!("file:/m/p{uid}.yaml"), document: 0 })
    };
    SourceUpdate { pods: pods.iter().map(sourced).collect(), ..SourceUpdate::empty(SourceId::File) }
}

fn cpu(amount: &str) -> Change {
    let amount = BTreeMap::from([("cpu".to_owned(), serde_json::from_value(amount.into()).unwrap())]);
    Change::Resize(Resize { container: Some("app".to_owned()), requests: amount, ..Resize::default() })
}

#[tokio::test(start_paused = true)]
async fn a_source_may_change_a_pod_that_keeps_its_uid() {
    let mut rig = rig(&[]);
    rig.reconcile(wants_image("busybox:1")).await;
    assert_eq!(rig.reported(), (Some(1), "busybox:1".to_owned()));
    rig.reconcile(wants_image("busybox:1")).await;
    assert_eq!(rig.host("1").recorded.lock().unwrap().len(), 0, "it says the same again");
    rig.reconcile(wants_image("busybox:2")).await;
    assert_eq!(rig.reported(), (Some(2), "busybox:2".to_owned()));
    assert!(rig.host("1").actions().contains(&start(1)));
}

#[tokio::test(start_paused = true)]
async fn what_may_not_change_is_a_problem_and_the_pod_goes_on() {
    let mut rig = rig(&[]);
    rig.reconcile(wants_image("busybox:1")).await;
    let mut update = wants_image("busybox:2");
    Arc::make_mut(&mut update.pods[0]).pod.spec.as_mut().unwrap().host_network = Some(true);
    let desired = merge(&[Arc::new(update)], &rig.manager.uids());
    let problems = rig.manager.reconcile(&desired, true, Instant::now());
    assert_eq!(problems.len(), 1);
    assert!(problems[0].message.contains("(changed: spec.hostNetwork)"), "{}", problems[0].message);
    let again = rig.manager.reconcile(&desired, true, Instant::now());
    assert_eq!(again, problems, "as long as it is so");
    settle().await;
    assert_eq!(rig.reported(), (Some(1), "busybox:1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_change_made_here_outlasts_what_the_source_repeats() {
    let mut rig = rig(&[]);
    rig.reconcile(wants_image("busybox:1")).await;
    // BestEffort may not become Burstable.
    let refused = rig.change(cpu("100m")).await.unwrap_err();
    assert!(refused.to_string().contains("Pod QOS Class may not change"), "{refused}");
    let mut update = wants_image("busybox:1");
    let requests = serde_json::json!({"requests": {"cpu": "1", "memory": "1Mi"}});
    let spec = Arc::make_mut(&mut update.pods[0]).pod.spec.as_mut().unwrap();
    spec.containers[0].resources = Some(serde_json::from_value(requests).unwrap());
    let mut rig = self::rig(&[]);
    rig.reconcile(update.clone()).await;
    let changed = rig.change(cpu("2")).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    assert_eq!(rig.host("1").recorded.lock().unwrap().len(), 1);
    rig.reconcile(update).await;
    assert_eq!(rig.reported().0, Some(2));
    assert_eq!(rig.host("1").recorded.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_or_was_refused_takes_no_change() {
    let mut rig = rig(&["1"]);
    rig.reconcile(wants_image("busybox:1")).await;
    assert!(rig.change(cpu("1")).await.unwrap_err().to_string().contains("was not admitted"));
    let mut rig = self::rig(&[]);
    rig.script("1", stop(0), Step::Hold(Arc::new(Notify::new())));
    rig.reconcile(wants_image("busybox:1")).await;
    rig.reconcile(SourceUpdate::empty(SourceId::File)).await;
    assert!(rig.change(cpu("1")).await.unwrap_err().to_string().contains("is being removed"));
}

#[tokio::test(start_paused = true)]
async fn a_resize_gets_what_is_free_and_waits_for_what_is_not() {
    let mut rig = rig(&[]);
    rig.reconcile(wants_cpu(&[("1", 1), ("2", 2)])).await;
    rig.change(cpu("2")).await.unwrap();
    assert_eq!((rig.ledger("1"), rig.pending("1")), ((2, None), None));
    let resize = Action::ResizePod { containers: BTreeMap::from([("app".to_owned(), 0)]) };
    assert_eq!(rig.host("1").actions().iter().filter(|action| **action == resize).count(), 1);
    assert_eq!(rig.told(), Vec::<String>::new());
    let told = std::mem::take(&mut *rig.host("1").told.lock().unwrap());
    assert_eq!(
        told.iter().map(|(reason, _)| reason.as_str()).filter(|reason| reason.contains("Resize")).collect::<Vec<_>>(),
        ["ResizeStarted", "ResizeCompleted"]
    );

    rig.change(cpu("3")).await.unwrap();
    assert_eq!(rig.pending("1"), Some(("Deferred".to_owned(), "room for 2".to_owned())));
    assert_eq!(rig.ledger("1"), (3, Some(2)), "it keeps what it has");
    assert_eq!(rig.told(), ["ResizeDeferred"]);
    rig.change(cpu("5")).await.unwrap();
    let message = "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000";
    assert_eq!(rig.pending("1"), Some(("Infeasible".to_owned(), message.to_owned())));
    assert_eq!(rig.told(), ["ResizeInfeasible"]);
    rig.change(cpu("2")).await.unwrap();
    assert_eq!((rig.ledger("1"), rig.pending("1")), ((2, None), None), "it has what it wants");
}

#[tokio::test(start_paused = true)]
async fn a_deferred_resize_is_made_when_another_pod_goes_or_shrinks() {
    let mut rig = rig(&[]);
    rig.reconcile(wants_cpu(&[("1", 1), ("2", 2), ("3", 1)])).await;
    rig.change(cpu("2")).await.unwrap();
    assert!(rig.pending("1").is_some());
    rig.change_of("2", cpu("1")).await.unwrap();
    assert_eq!((rig.ledger("1"), rig.pending("1")), ((2, None), None));
    rig.change(cpu("3")).await.unwrap();
    assert!(rig.pending("1").is_some());
    let without = wants_cpu(&[("1", 1), ("2", 2)]);
    rig.reconcile(without.clone()).await;
    rig.gone().await;
    rig.reconcile(without).await;
    assert_eq!((rig.ledger("1"), rig.pending("1")), ((3, None), None));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_resize_holds_nothing_back_and_is_counted_by_what_it_has() {
    let mut rig = rig(&[]);
    rig.reconcile(wants_cpu(&[("1", 1), ("2", 2)])).await;
    rig.change(cpu("3")).await.unwrap();
    rig.reconcile(wants_cpu(&[("1", 1), ("2", 2), ("3", 1)])).await;
    assert_eq!(rig.phase("3"), "Running");
}
/// As [`wants`], the pods with these UIDs being critical.
fn wants_critical(pods: &[(&str, &str)], critical: &[&str]) -> SourceUpdate {
    let mut update = wants(pods);
    for pod in update.pods.iter_mut().filter(|pod| critical.contains(&pod.uid())) {
        let spec = Arc::make_mut(pod).pod.spec.as_mut().unwrap();
        spec.priority_class_name = Some("system-node-critical".to_owned());
    }
    update
}

#[tokio::test(start_paused = true)]
async fn a_critical_pod_starts_when_another_has_made_room_for_it() {
    let mut rig = small_rig();
    let release = Arc::new(Notify::new());
    rig.script("2", Action::StopSandbox, Step::Hold(release.clone()));
    rig.reconcile(wants(&[("1", "a"), ("2", "b")])).await;
    let update = || wants_critical(&[("1", "a"), ("2", "b"), ("3", "c")], &["3"]);
    rig.reconcile(update()).await;
    assert_eq!(rig.told(), ["Preempting"]);
    assert_eq!((rig.phase("1").as_str(), rig.phase("2").as_str()), ("Running", "Failed"));
    assert!(!rig.manager.uids().contains("3"), "not while the other holds anything");
    rig.reconcile(update()).await;
    assert_eq!(rig.told(), Vec::<String>::new(), "one is enough, however often it is asked");
    release.notify_one();
    rig.gone().await;
    rig.reconcile(update()).await;
    assert_eq!(rig.phase("3"), "Running");
    let order: Vec<Action> =
        rig.host("2").actions().into_iter().skip_while(|a| !matches!(a, Action::RecordVerdict(_))).collect();
    assert!(matches!(order.as_slice(), [Action::RecordVerdict(_), stopped, ..] if *stopped == stop(0)), "{order:?}");
    assert_eq!(rig.phase("2"), "Failed", "it does not come back");
}

#[tokio::test(start_paused = true)]
async fn critical_pods_come_first_when_all_are_new() {
    let mut rig = small_rig();
    rig.reconcile(wants_critical(&[("1", "a"), ("2", "b"), ("3", "c")], &["3"])).await;
    assert_eq!(rig.told(), ["OutOfpods"]);
    assert_eq!((rig.phase("2").as_str(), rig.phase("3").as_str()), ("Failed", "Running"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_the_room_of_those_that_go() {
    let mut rig = small_rig();
    let release = Arc::new(Notify::new());
    rig.script("1", Action::StopSandbox, Step::Hold(release.clone()));
    rig.reconcile(wants(&[("1", "a"), ("2", "b")])).await;
    rig.reconcile(wants(&[("2", "b"), ("3", "c"), ("4", "d")])).await;
    assert_eq!(rig.told(), ["OutOfpods"], "there will be room for one of the two");
    let waiting = rig.manager.waiting_for_room();
    let status = match &**waiting.borrow() {
        [one] if one.pod.metadata.uid.as_deref() == Some("3") => one.pod.status.clone().unwrap(),
        others => panic!("{others:?}"),
    };
    assert_eq!(status.reason.as_deref(), Some("WaitingForRoom"));
    assert!(status.message.is_some_and(|why| why.starts_with("pods that end will leave room: ")));
    release.notify_one();
    rig.gone().await;
    rig.reconcile(wants(&[("2", "b"), ("3", "c"), ("4", "d")])).await;
    assert!(waiting.borrow().is_empty());
    assert_eq!(rig.phase("3"), "Running");
    assert_eq!(rig.phase("4"), "Failed");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_over_takes_no_room() {
    let mut rig = small_rig();
    let over = || {
        let mut update = wants(&[("1", "a"), ("2", "b"), ("3", "c")]);
        let spec = Arc::make_mut(&mut update.pods[0]).pod.spec.as_mut().unwrap();
        spec.restart_policy = Some("Never".to_owned());
        update
    };
    let mut first = over();
    first.pods.truncate(2);
    rig.reconcile(first).await;
    let events = rig.host("1").events.clone();
    let attempt = ended("app", 0, 1, 0, rig.hosts.clock.now());
    events.send(PodEvent::Ended { container: "app".to_owned(), attempt }).await.unwrap();
    settle().await;
    rig.reconcile(over()).await;
    assert_eq!((rig.phase("1").as_str(), rig.phase("3").as_str()), ("Succeeded", "Running"));
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_is_not_decided_again_by_another_agent() {
    let mut rig = small_rig();
    let host = rig.adopt_with("1", "a", Some(Verdict::Evicted(Eviction::preempted(Timestamp::UNIX_EPOCH))));
    rig.adopt("2", "b");
    let update = || wants_critical(&[("1", "a"), ("2", "b"), ("3", "c")], &["3"]);
    rig.reconcile(update()).await;
    assert_eq!(rig.told(), Vec::<String>::new(), "there is one that goes already");
    rig.gone().await;
    rig.reconcile(update()).await;
    assert_eq!((rig.phase("1").as_str(), rig.phase("3").as_str()), ("Failed", "Running"));
    assert_eq!(host.actions().first(), Some(&stop(0)));
}

#[tokio::test(start_paused = true)]
async fn a_changed_object_wakes_the_pods_that_refer_to_it_and_no_other() {
    let mut rig = rig(&[]);
    let mut update = wants(&[("1", "a"), ("2", "b"), ("3", "c")]);
    for (sourced, config) in update.pods.iter_mut().zip(["one", "two"]) {
        let source = Some(ConfigMapVolumeSource { name: config.to_owned(), ..Default::default() });
        let volume = Volume { name: "v".to_owned(), config_map: source, ..Volume::default() };
        Arc::get_mut(sourced).unwrap().pod.spec.as_mut().unwrap().volumes = Some(vec![volume]);
    }
    rig.reconcile(update).await;
    let objects = |text: &str| {
        let mut objects = Objects::default();
        let data = Some(BTreeMap::from([("key".to_owned(), text.to_owned())]));
        let object = ConfigMap { data, ..ConfigMap::default() };
        objects.config_maps.insert(("default".to_owned(), "one".to_owned()), Arc::new(object));
        Arc::new(objects)
    };
    let refreshes = |rig: &Rig| {
        ["1", "2", "3"].map(|uid| {
            let refresh = |action: &&Action| matches!(action, Action::RefreshVolume(_));
            rig.host(uid).actions().iter().filter(refresh).count()
        })
    };
    for (content, text) in [(1, "a"), (2, "b")] {
        for uid in ["1", "2", "3"] {
            // All would have something to write, if they were asked.
            rig.host(uid).contents.lock().unwrap().insert("v".to_owned(), content);
        }
        let objects = objects(text);
        rig.manager.objects_changed(objects.clone());
        settle().await;
        rig.manager.objects_changed(objects);
        settle().await;
        assert_eq!(refreshes(&rig), [content as usize, 0, 0]);
    }
}
