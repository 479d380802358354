//! New pods with devices: scripted plugins, the real choice, virtual time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::{
    handle::BoxFuture,
    host::{PodEvent, PodHost},
    manager::{DeviceTrouble, Entries, Hosts, Kept, Manager},
    record::PodRecord,
    testing::{Clock, FakeHost, Step, node, pod, settle},
};
use crate::pod::{
    Action, Grants, Rejection,
    desired::{SourceId, SourceUpdate, SourcedPod, merge},
    devices::{self, Device, DeviceProvider, Offer, Offers, Plugin, Question},
    topology::{self, NumaNodes, TopologyOptions},
};

const GPU: &str = "example.com/gpu";

struct FakeHosts {
    clock: Clock,
    offers: Mutex<Offers>,
    /// What pods were taken up with.
    records: Mutex<BTreeMap<String, PodRecord>>,
    /// Steps for hands that are still to be made.
    scripts: Mutex<BTreeMap<String, (Action, Step)>>,
    /// A plugin that is asked to make devices ready answers when it is told to, and with this.
    answers: Notify,
    trouble: Mutex<Option<DeviceTrouble>>,
    /// What was put to plugins.
    asked: Mutex<Vec<String>>,
}

impl Hosts for Arc<FakeHosts> {
    fn host(&self, record: PodRecord, events: mpsc::Sender<PodEvent>) -> Arc<dyn PodHost> {
        let host = Arc::new(FakeHost::new(self.clock, events));
        if let Some((action, step)) = self.scripts.lock().unwrap().remove(record.uid()) {
            host.script(action, step);
        }
        self.records.lock().unwrap().insert(record.uid().to_owned(), record);
        host
    }

    fn admit(&self, _: &Pod, _: &[&Pod]) -> Result<Vec<String>, Rejection> {
        Ok(Vec::new())
    }

    fn fits(&self, _: &Pod, _: &[&Pod]) -> Result<(), Rejection> {
        Ok(())
    }

    fn awaited_devices(&self, pod: &Pod) -> Vec<String> {
        let offers = self.offers.lock().unwrap();
        let missing = |resource: &String| !offers.get(resource).is_some_and(Offer::is_current);
        devices::all_wanted(pod).into_iter().filter(missing).collect()
    }

    fn grant(
        &self,
        pod: &Pod,
        taken: &[&Grants],
        answers: &[Vec<String>],
    ) -> Result<(Grants, Option<Question>), Rejection> {
        let (offers, numa) = (self.offers.lock().unwrap().clone(), NumaNodes::default());
        let provider = DeviceProvider::new(&offers, devices::taken(taken.iter().copied()), &numa, answers);
        let grants = topology::grant(pod, &numa, TopologyOptions::default(), &[&provider])?;
        Ok((grants, provider.question()))
    }

    fn preferred_devices(&self, question: Question) -> BoxFuture<'static, Result<Vec<String>, DeviceTrouble>> {
        self.asked.lock().unwrap().push(format!("prefer {}", question.available.join(",")));
        Box::pin(async move { Ok(question.available.into_iter().rev().take(question.size).collect()) })
    }

    fn allocate_devices(&self, pod: Pod, mut grants: Grants) -> BoxFuture<'static, Result<Grants, DeviceTrouble>> {
        let ids: Vec<&str> = grants.devices(GPU).map(|device| device.id.as_str()).collect();
        let name = pod.metadata.name.unwrap_or_default();
        self.asked.lock().unwrap().push(format!("allocate {name} {}", ids.join(",")));
        let hosts = self.clone();
        Box::pin(async move {
            hosts.answers.notified().await;
            if let Some(trouble) = hosts.trouble.lock().unwrap().take() {
                return Err(trouble);
            }
            let artifacts = devices::Artifacts { pre_start: true, ..Default::default() };
            grants.of_mut("app").artifacts.insert(GPU.to_owned(), artifacts);
            Ok(grants)
        })
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

struct Rig {
    hosts: Arc<FakeHosts>,
    manager: Manager,
}

fn rig(devices: usize, preferred: bool) -> Rig {
    let device = |id: usize| (id.to_string(), Device { healthy: true, ..Device::default() });
    let devices = (0..devices).map(device).collect();
    let offer = Offer { devices, plugin: Plugin::Listed, preferred, pre_start: false };
    let hosts = Arc::new(FakeHosts {
        clock: Clock::new(),
        offers: Mutex::new(Offers::from([(GPU.to_owned(), offer)])),
        records: Mutex::default(),
        scripts: Mutex::default(),
        answers: Notify::new(),
        trouble: Mutex::default(),
        asked: Mutex::default(),
    });
    let manager = Manager::new(Arc::new(hosts.clone()), node(), Entries::default());
    Rig { hosts, manager }
}

impl Rig {
    /// Has the manager follow pods that want so many devices each; what is wrong with them.
    fn follow(&mut self, source: SourceId, wanted: &[(&str, u32)]) -> Vec<String> {
        let sourced = |(uid, count): &(&str, u32)| {
            let mut pod = pod(uid, uid);
            let amounts = json!({GPU: count.to_string()});
            let container = &mut pod.spec.as_mut().unwrap().containers[0];
            container.resources =
                Some(serde_json::from_value(json!({"limits": amounts, "requests": amounts})).unwrap());
            Arc::new(SourcedPod { pod, origin: format!("file:/m/{uid}.yaml"), document: 0 })
        };
        let update = SourceUpdate { pods: wanted.iter().map(sourced).collect(), ..SourceUpdate::empty(source) };
        let desired = merge(&[Arc::new(update)], &self.manager.uids());
        let problems = self.manager.reconcile(&desired, true, Instant::now());
        problems.into_iter().map(|problem| problem.message).collect()
    }

    /// Follows until nothing happens by itself.
    async fn settle(&mut self, wanted: &[(&str, u32)]) {
        self.follow(SourceId::File, wanted);
        while timeout(Duration::from_millis(1), self.manager.pod_gone()).await.is_ok() {
            self.follow(SourceId::File, wanted);
        }
        settle().await;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.hosts.asked.lock().unwrap())
    }

    /// Ids in the record of a pod; `None`: it has not been taken up.
    fn has(&self, uid: &str) -> Option<String> {
        let records = self.hosts.records.lock().unwrap();
        let record = records.get(uid)?;
        Some(record.grants.devices(GPU).map(|device| device.id.as_str()).collect::<Vec<_>>().join(","))
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_taken_up_with_what_its_plugin_said() {
    let mut rig = rig(3, true);
    rig.settle(&[("a", 2)]).await;
    assert_eq!(rig.asked(), ["prefer 0,1,2", "allocate a 1,2"]);
    assert_eq!(rig.has("a"), None, "its plugin has not answered");
    rig.hosts.answers.notify_one();
    rig.settle(&[("a", 2)]).await;
    assert_eq!(rig.has("a").as_deref(), Some("1,2"));
    let record = rig.hosts.records.lock().unwrap()["a"].clone();
    assert!(record.grants.of("app").unwrap().artifacts[GPU].pre_start);
    assert_eq!(rig.asked(), [""; 0], "asked once");
}

#[tokio::test(start_paused = true)]
async fn what_is_being_made_ready_is_nobody_elses_and_holds_nobody_up() {
    let mut rig = rig(2, false);
    let all = [("a", 1), ("b", 1), ("c", 1), ("d", 0)];
    rig.settle(&all).await;
    assert_eq!(rig.asked(), ["allocate a 0", "allocate b 1"]);
    // There is nothing left for the third, and the last needs none.
    assert_eq!([rig.has("a"), rig.has("c"), rig.has("d")], [None, Some(String::new()), Some(String::new())]);
    // A pod that is not wanted any more gives back what was promised to it; the third is not judged again.
    rig.settle(&all[1..]).await;
    rig.settle(&[("b", 1), ("c", 1), ("d", 0), ("e", 1)]).await;
    assert_eq!(rig.asked(), ["allocate e 0"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_devices_of_one_that_leaves() {
    let mut rig = rig(1, false);
    let release = Arc::new(Notify::new());
    let hold = (Action::StopSandbox, Step::Hold(release.clone()));
    rig.hosts.scripts.lock().unwrap().insert("a".to_owned(), hold);
    rig.settle(&[("a", 1)]).await;
    rig.hosts.answers.notify_one();
    rig.settle(&[("a", 1)]).await;
    assert_eq!(rig.has("a").as_deref(), Some("0"));
    rig.settle(&[("b", 1)]).await;
    assert_eq!((rig.has("b"), rig.asked().len()), (None, 1), "it is neither rejected nor given what is still in use");
    release.notify_one();
    rig.settle(&[("b", 1)]).await;
    assert_eq!(rig.asked(), ["allocate b 0"]);
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_waits_for_its_plugin_and_that_of_a_scheduler_does_not() {
    let mut rig = rig(1, false);
    rig.hosts.offers.lock().unwrap().get_mut(GPU).unwrap().plugin = Plugin::Stopped(Timestamp::UNIX_EPOCH);
    assert_eq!(
        rig.follow(SourceId::File, &[("a", 1)]),
        ["the pod waits for a device plugin that offers example.com/gpu"]
    );
    assert!(rig.manager.devices_changed(), "somebody waits for it");
    assert_eq!(rig.has("a"), None);
    assert_eq!(rig.follow(SourceId::Api, &[("b", 1)]), [""; 0]);
    assert_eq!(rig.has("b").as_deref(), Some(""), "rejected");
    rig.hosts.offers.lock().unwrap().clear();
    rig.follow(SourceId::Api, &[("c", 1)]);
    assert_eq!(rig.has("c").as_deref(), Some(""), "a resource of the cluster");
    assert_eq!(rig.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_goes_while_it_is_asked_is_not_the_pods_fault() {
    for gone in [true, false] {
        let mut rig = rig(1, false);
        rig.settle(&[("a", 1)]).await;
        let trouble = DeviceTrouble { message: "rpc error: code = Unavailable desc = gone".to_owned(), gone };
        *rig.hosts.trouble.lock().unwrap() = Some(trouble);
        if gone {
            rig.hosts.offers.lock().unwrap().get_mut(GPU).unwrap().plugin = Plugin::Stopped(Timestamp::UNIX_EPOCH);
        }
        rig.hosts.answers.notify_one();
        rig.settle(&[("a", 1)]).await;
        assert_eq!(rig.asked(), ["allocate a 0"]);
        if !gone {
            assert_eq!(rig.has("a").as_deref(), Some(""), "rejected");
            continue;
        }
        assert_eq!(rig.has("a"), None);
        rig.hosts.offers.lock().unwrap().get_mut(GPU).unwrap().plugin = Plugin::Listed;
        rig.settle(&[("a", 1)]).await;
        rig.hosts.answers.notify_one();
        rig.settle(&[("a", 1)]).await;
        assert_eq!((rig.asked(), rig.has("a").as_deref()), (vec!["allocate a 0".to_owned()], Some("0")));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_has_whose_record_is_unusable_is_nobody_elses() {
    let mut rig = rig(2, false);
    let mut grants = Grants::default();
    let device = crate::pod::grants::DeviceGrant { id: "0".to_owned(), nodes: Default::default() };
    grants.of_mut("app").devices.insert(GPU.to_owned(), vec![device]);
    rig.manager.leave_alone("lost".to_owned(), Kept { users: None, grants });
    rig.settle(&[("a", 1)]).await;
    assert_eq!(rig.asked(), ["allocate a 1"]);
}
