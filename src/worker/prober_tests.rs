//! Probes of a pod with scripted answers and virtual time.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, Probe};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{
    actor::{Actor, Report, Wanted},
    host::PodEvent,
    testing::{Clock, FakeHost, Scripted, ended, node, pod, running, settle, start, stop},
};
use crate::pod::{
    Memory, ObservedPod,
    observed::{Leftovers, Network, Probed, Sandbox},
    probe::ProbeKind::{self, Liveness, Readiness, Startup},
};

const AT_ONCE: Duration = Duration::ZERO;

struct Rig {
    clock: Clock,
    host: Arc<FakeHost>,
    wanted: watch::Sender<Wanted>,
    events: mpsc::Sender<PodEvent>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    actor: JoinHandle<()>,
}

/// A pod whose container has probes of these kinds, every 10 seconds.
fn probed_pod(kinds: &[ProbeKind]) -> Pod {
    let mut pod = pod("u1", "web");
    let app = &mut pod.spec.as_mut().unwrap().containers[0];
    for kind in kinds {
        let probe = Some(Probe { period_seconds: Some(10), failure_threshold: Some(2), ..Probe::default() });
        match kind {
            Startup => app.startup_probe = probe,
            Readiness => app.readiness_probe = probe,
            Liveness => app.liveness_probe = probe,
        }
    }
    pod
}

fn rig(kinds: &[ProbeKind], observed: ObservedPod, answers: &[(ProbeKind, &[Scripted])]) -> Rig {
    let clock = Clock::new();
    let (events, happened) = mpsc::channel(8);
    let host = FakeHost::new(clock, events.clone());
    for (kind, answers) in answers {
        host.answers(*kind, answers.iter().copied());
    }
    let host = Arc::new(host);
    let (wanted, wishes) = watch::channel(Wanted::default());
    let (sender, reports) = watch::channel(None);
    let actor = Actor {
        pod: Arc::new(probed_pod(kinds)),
        desired: Arc::new(probed_pod(kinds)),
        observed,
        memory: Memory { start_time: Some(clock.now()), ..Memory::default() },
        node: node(),
        host: host.clone(),
        wanted: wishes,
        events: happened,
        reports: sender,
        seen: std::time::Instant::now(),
    };
    Rig { clock, host, wanted, events, reports, actor: tokio::spawn(actor.run()) }
}

impl Rig {
    fn ready(&self) -> bool {
        let report = self.reports.borrow().clone().expect("a report");
        let conditions = report.pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    /// Messages of the events that say why a container is stopped.
    fn killings(&self) -> Vec<String> {
        let told = self.host.told.lock().unwrap();
        let killings = told.iter().filter(|(reason, _)| reason == "Killing");
        killings.map(|(_, message)| message.clone()).collect()
    }

    fn restarts(&self) -> i32 {
        let report = self.reports.borrow().clone().expect("a report");
        let statuses = report.pod.status.as_ref().and_then(|status| status.container_statuses.clone());
        statuses.expect("statuses")[0].restart_count
    }
}

async fn seconds(count: u64) {
    sleep(Duration::from_secs(count)).await;
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_its_probe_and_nothing_restarts() {
    let no = (AT_ONCE, Some(false));
    let yes = (AT_ONCE, Some(true));
    let rig = rig(&[Readiness], ObservedPod::default(), &[(Readiness, &[no, yes, no, no, yes])]);
    settle().await;
    let mut story = vec![rig.ready()];
    for _ in 0..4 {
        seconds(10).await;
        story.push(rig.ready());
    }
    assert_eq!(story, [false, true, true, false, true], "after two failures, and after one success");
    assert_eq!(rig.host.probed(Readiness)[..3], [(0, 0), (0, 10), (0, 20)]);
    assert_eq!((rig.restarts(), rig.killings().len()), (0, 0));
    assert_eq!(rig.host.kept()["app"].readiness, Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_not_alive_is_stopped_once_and_started_again() {
    let no = (AT_ONCE, Some(false));
    let rig = rig(&[Liveness], ObservedPod::default(), &[(Liveness, &[no, no])]);
    seconds(15).await;
    assert_eq!(rig.restarts(), 0, "one failure is not enough");
    seconds(60).await;
    assert_eq!(rig.killings(), ["Container app failed liveness probe, will be restarted"]);
    assert_eq!(rig.host.times(&stop(0)).len(), 1);
    assert_eq!(rig.host.times(&start(1)), [20.0], "the first restart does not wait");
    assert_eq!(rig.restarts(), 1);
    assert_eq!(rig.host.probed(Liveness)[..4], [(0, 10), (0, 20), (1, 30), (1, 40)], "a new attempt is asked anew");
    assert!(rig.ready());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_before_the_container_has_started() {
    let no = (AT_ONCE, Some(false));
    let rig = rig(&[Startup, Readiness, Liveness], ObservedPod::default(), &[(Startup, &[no, no])]);
    seconds(15).await;
    assert_eq!((rig.host.probed(Readiness), rig.host.probed(Liveness)), (vec![], vec![]));
    seconds(10).await;
    assert_eq!(rig.host.probed(Startup), [(0, 0), (0, 10), (0, 20)], "the first failure comes too early to count");
    assert_eq!(rig.host.probed(Readiness), [(0, 20)]);
    assert!(rig.ready());
    seconds(100).await;
    assert_eq!(rig.host.probed(Startup).len(), 3, "never again");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_start_is_restarted() {
    let no = (AT_ONCE, Some(false));
    let rig = rig(&[Startup], ObservedPod::default(), &[(Startup, &[no, no, no])]);
    seconds(25).await;
    assert_eq!(rig.killings(), ["Container app failed startup probe, will be restarted"]);
    assert_eq!((rig.restarts(), rig.ready()), (1, true));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_takes_long_is_followed_by_the_next_and_never_joined_by_it() {
    let slow = (Duration::from_secs(25), Some(true));
    let rig = rig(&[Readiness], ObservedPod::default(), &[(Readiness, &[slow, slow])]);
    seconds(75).await;
    assert_eq!(rig.host.probed(Readiness), [(0, 0), (0, 25), (0, 50), (0, 60), (0, 70)]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_asked_says_nothing() {
    let nothing = (AT_ONCE, None);
    let no = (AT_ONCE, Some(false));
    let rig = rig(
        &[Liveness],
        ObservedPod::default(),
        &[(Liveness, &[no, nothing, nothing, nothing, (AT_ONCE, Some(true))])],
    );
    seconds(70).await;
    assert_eq!(rig.restarts(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_is_not_restarted_but_still_asked_whether_it_is_ready() {
    let no = (AT_ONCE, Some(false));
    let rig = rig(&[Readiness, Liveness], ObservedPod::default(), &[(Liveness, &[no; 9])]);
    // It takes its time to stop.
    let hold = Arc::new(tokio::sync::Notify::new());
    rig.host.script(stop(0), super::testing::Step::Hold(hold.clone()));
    seconds(15).await;
    rig.wanted.send_replace(Wanted { terminate: Some(60), ..Wanted::default() });
    seconds(40).await;
    assert_eq!(rig.host.probed(Liveness), [(0, 10)]);
    assert_eq!(rig.host.probed(Readiness).len(), 6);
    assert_eq!(rig.killings(), ["Stopping container app"]);
    hold.notify_one();
    tokio::time::timeout(Duration::from_secs(100), rig.actor).await.expect("the pod goes").unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_reports_what_the_last_one_knew() {
    let mut observed = ObservedPod {
        dirs: true,
        network: Network::Attached(vec!["10.85.0.2".parse().unwrap()]),
        sandbox: Sandbox::Running { pid: 7 },
        generation: 1,
        leftovers: Leftovers { cgroups: true, ..Leftovers::default() },
        ..ObservedPod::default()
    };
    let now = Clock::new().now();
    observed.record("app", running("app", 4, 1, now));
    let known = Probed { attempt: 4, startup: Some(true), readiness: Some(true), ..Probed::default() };
    observed.probes.insert("app".to_owned(), known);
    let rig = rig(&[Startup, Readiness], observed, &[]);
    settle().await;
    assert!(rig.ready(), "the first report is the last known");
    assert_eq!(rig.host.probed(Startup), []);
    seconds(10).await;
    assert!(!rig.host.probed(Readiness).is_empty(), "within a period");
    // It ends: what was known of it is not known of the next.
    let gone = ended("app", 4, 1, 1, rig.clock.now());
    rig.events.send(PodEvent::Ended { container: "app".to_owned(), attempt: gone }).await.unwrap();
    seconds(0).await;
    assert_eq!(rig.host.probed(Startup), [(5, 10)]);
}
