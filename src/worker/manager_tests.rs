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
    manager::{Entries, Hosts, Manager, Recovered},
    record::{self, PodRecord},
    testing::{Clock, FakeHost, Step, node, pod, running, settle, start, stop},
};
use crate::{
    api::objects::Objects,
    pod::{
        Action, Memory, ObservedPod, Rejection,
        desired::{Desired, SourceId, SourceUpdate, SourcedPod, merge},
        observed::{Leftovers, Network, Sandbox},
    },
};

struct FakeHosts {
    clock: Clock,
    made: Mutex<BTreeMap<String, Arc<FakeHost>>>,
    /// Steps for hands that are still to be made, by UID.
    scripts: Mutex<BTreeMap<String, Vec<(Action, Step)>>>,
    /// UIDs that the node does not take.
    refused: BTreeSet<String>,
    /// UIDs that admission was told of beside a new pod, the last time.
    beside: Mutex<Vec<String>>,
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

impl Hosts for FakeHosts {
    fn host(&self, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Arc<dyn PodHost> {
        let host = Arc::new(FakeHost::new(self.clock, events));
        for (action, step) in self.scripts.lock().unwrap().remove(record.uid()).into_iter().flatten() {
            host.script(action, step);
        }
        self.made.lock().unwrap().insert(record.uid().to_owned(), host.clone());
        host
    }

    fn admit(&self, pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
        *self.beside.lock().unwrap() = others.iter().map(|pod| uid(pod)).collect();
        match self.refused.contains(&uid(pod)) {
            true => Err(Rejection { reason: "OutOfcpu".to_owned(), message: "no".to_owned() }),
            false => Ok(()),
        }
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
    let hosts = Arc::new(FakeHosts {
        clock: Clock::new(),
        made: Mutex::default(),
        scripts: Mutex::default(),
        refused: refused.iter().map(|uid| (*uid).to_owned()).collect(),
        beside: Mutex::default(),
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
        let (sender, events) = mpsc::channel(8);
        let host = Arc::new(FakeHost::new(self.hosts.clock, sender));
        let now = self.hosts.clock.now();
        let mut observed = ObservedPod {
            dirs: true,
            network: Network::Attached(vec!["10.85.0.9".parse().unwrap()]),
            sandbox: Sandbox::Running { pid: 9 },
            generation: 1,
            leftovers: Leftovers { cgroups: true, volumes: false, network: true },
            ..ObservedPod::default()
        };
        observed.record("app", running("app", 0, 1, now));
        let record = PodRecord {
            version: record::VERSION,
            pod: Arc::new(pod(uid, name)),
            source: SourceId::File,
            origin: format!("file:/m/{name}.yaml"),
            start_time: now,
        };
        let memory = Memory { start_time: Some(now), ..Memory::default() };
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
    assert_eq!(rig.host("1").actions(), [], "nothing is made for it");
    rig.reconcile(wants(&[("1", "a"), ("2", "b")])).await;
    assert_eq!(*rig.hosts.beside.lock().unwrap(), Vec::<String>::new());
    rig.reconcile(wants(&[("2", "b")])).await;
    rig.gone().await;
    assert_eq!(rig.manager.uids(), BTreeSet::from(["2".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_record_is_unusable_is_not_started_over() {
    let mut rig = rig(&[]);
    rig.manager.leave_alone("1".to_owned());
    rig.reconcile(wants(&[("1", "a"), ("2", "b")])).await;
    assert!(!rig.hosts.made.lock().unwrap().contains_key("1"));
    assert_eq!(rig.phase("2"), "Running");
    rig.reconcile(wants(&[])).await;
    rig.gone().await;
    assert!(!rig.manager.is_empty(), "what the node set up for itself is still in use");
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
