//! One pod's loop with scripted hands and virtual time.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, Volume};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

use super::{
    actor::{Actor, Report, Wanted},
    host::PodEvent,
    testing::{Clock, FakeHost, Step, ended, kill, node, pod, record, release, resolve, running, settle, start, stop},
};
use crate::pod::{
    Action, Eviction, Hook, Memory, ObservedPod, Outcome,
    observed::{HookEnd, Sandbox},
    restart::RestartReason,
};

struct Rig {
    clock: Clock,
    host: Arc<FakeHost>,
    wanted: watch::Sender<Wanted>,
    events: mpsc::Sender<PodEvent>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    actor: JoinHandle<()>,
}

fn rig(script: impl FnOnce(&mut FakeHost)) -> Rig {
    rig_of(pod("u1", "web"), script)
}

fn rig_of(pod: Pod, script: impl FnOnce(&mut FakeHost)) -> Rig {
    let clock = Clock::new();
    let (events, happened) = mpsc::channel(8);
    let mut host = FakeHost::new(clock, events.clone());
    script(&mut host);
    let host = Arc::new(host);
    let (wanted, wishes) = watch::channel(Wanted::default());
    let (sender, reports) = watch::channel(None);
    let actor = Actor {
        pod: Arc::new(pod.clone()),
        desired: Arc::new(pod),
        observed: ObservedPod::default(),
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
    fn report(&self) -> Arc<Report> {
        self.reports.borrow().clone().expect("a report")
    }

    fn phase(&self) -> String {
        self.report().pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default()
    }

    /// Reason and message of the waiting container.
    fn waiting(&self) -> (String, String) {
        let report = self.report();
        let statuses = report.pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap();
        let waiting = statuses[0].state.clone().and_then(|state| state.waiting).expect("waiting");
        (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())
    }

    fn terminate(&self, grace: i64) {
        self.wanted.send_replace(Wanted { terminate: Some(grace), ..Wanted::default() });
    }

    /// The pod with another image, as a record to be written.
    fn change_image(&self, image: &str, generation: i64) {
        let mut changed = pod("u1", "web");
        changed.metadata.generation = Some(generation);
        changed.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
        let record = Arc::new(record(changed, self.clock.now()));
        self.wanted.send_modify(|wanted| wanted.record = Some(record));
    }

    fn count(&self, action: &Action) -> usize {
        self.host.actions().iter().filter(|begun| *begun == action).count()
    }

    async fn exit(&self, attempt: u32, code: i32) {
        let attempt = ended("app", attempt, self.report().observed.generation, code, self.clock.now());
        self.events.send(PodEvent::Ended { container: "app".to_owned(), attempt }).await.unwrap();
        settle().await;
    }

    async fn lose(&self, generation: u32, ended: Vec<(String, crate::pod::observed::Attempt)>) {
        self.events.send(PodEvent::SandboxLost { generation, ended }).await.unwrap();
        settle().await;
    }

    async fn gone(self) -> Vec<Action> {
        tokio::time::timeout(Duration::from_secs(1000), self.actor).await.expect("the pod goes").unwrap();
        self.host.actions()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_comes_up_stays_and_goes() {
    let rig = rig(|_| {});
    settle().await;
    assert_eq!(rig.phase(), "Running");
    let up = rig.host.actions();
    assert_eq!(up[0], Action::EnsureDirs, "{up:?}");
    assert_eq!(up.last(), Some(&release(0)), "{up:?}");
    assert_eq!(up.len(), 8, "directories, addresses, image, sandbox, network, record, container, word to go: {up:?}");

    rig.reports.borrow();
    let mut reports = rig.reports.clone();
    reports.mark_unchanged();
    sleep(Duration::from_secs(86_400)).await;
    assert_eq!(rig.host.actions().len(), up.len(), "a healthy pod is left in peace");
    assert!(!reports.has_changed().unwrap(), "and there is nothing to tell");

    rig.terminate(30);
    let down = rig.gone().await.split_off(up.len());
    assert_eq!(down[..2], [stop(0), Action::StopSandbox]);
    assert_eq!(down[down.len() - 2..], [Action::ReleaseAddresses, Action::ForgetPod]);
}

#[tokio::test(start_paused = true)]
async fn an_action_that_panics_is_reported_and_tried_again() {
    let rig = rig(|host| host.script(start(0), Step::Panic));
    settle().await;
    let (reason, message) = rig.waiting();
    assert_eq!(reason, "InternalError");
    assert!(message.contains("panic"), "{message}");
    sleep(Duration::from_secs(6)).await;
    assert_eq!(rig.phase(), "Running");
    assert_eq!(rig.host.times(&start(0)), [0.0, 5.0]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_action_backs_off_and_succeeds_later() {
    let rig = rig(|host| (0..4).for_each(|_| host.script(Action::AttachNetwork, Step::Fail("no bridge"))));
    settle().await;
    let (reason, message) = rig.waiting();
    assert_eq!((reason.as_str(), message.as_str()), ("ContainerCreating", "Scripted: no bridge"));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.phase(), "Running");
    let times = rig.host.times(&Action::AttachNetwork);
    let waits: Vec<f64> = times.windows(2).map(|pair| ((pair[1] - pair[0]) * 10.0).round() / 10.0).collect();
    assert_eq!(waits, [0.5, 1.0, 2.0, 4.0]);
}

#[tokio::test(start_paused = true)]
async fn termination_waits_for_a_start_under_way() {
    let held = Arc::new(Notify::new());
    let rig = rig(|host| host.script(start(0), Step::Hold(held.clone())));
    settle().await;
    let before = rig.host.actions();
    rig.terminate(30);
    settle().await;
    assert_eq!(rig.host.actions(), before, "nothing is taken down under it");
    held.notify_one();
    let actions = rig.gone().await;
    let position = |wanted: &Action| actions.iter().position(|action| action == wanted);
    assert!(position(&start(0)) < position(&stop(0)), "{actions:?}");
    assert!(!actions.contains(&kill(0)));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_hangs_is_killed_after_the_grace_period() {
    let release = Arc::new(Notify::new());
    let rig = rig(|host| {
        host.script(start(0), Step::Hold(release.clone()));
        host.deaf = true;
    });
    settle().await;
    rig.terminate(5);
    sleep(Duration::from_secs(18)).await;
    assert_eq!(rig.host.times(&kill(0)), [5.0, 15.0], "killed, and again in case it was too early");
    assert!(!rig.host.actions().contains(&Action::StopSandbox));
    drop(rig.actor);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_die_does_not_keep_the_agent_busy() {
    let rig = rig(|host| host.deaf = true);
    settle().await;
    rig.terminate(2);
    sleep(Duration::from_secs(40)).await;
    assert_eq!(rig.host.times(&stop(0)).len(), 1);
    assert_eq!(rig.host.times(&kill(0)), [2.0, 12.0, 22.0, 32.0]);
    rig.exit(0, 137).await;
    assert!(rig.gone().await.contains(&Action::ForgetPod));
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_restarted_at_once_and_then_after_ten_seconds() {
    let rig = rig(|_| {});
    settle().await;
    rig.exit(0, 1).await;
    assert_eq!(rig.host.times(&start(1)), [0.0]);
    rig.exit(1, 1).await;
    assert_eq!(rig.waiting().0, "CrashLoopBackOff");
    sleep(Duration::from_secs(11)).await;
    assert_eq!(rig.host.times(&start(2)), [10.0]);
    assert_eq!(rig.phase(), "Running");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_is_tried_again_does_not_lengthen_the_crash_delay() {
    let rig = rig(|host| (0..3).for_each(|_| host.script(start(1), Step::Fail("disk full"))));
    settle().await;
    rig.exit(0, 1).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.host.times(&start(1)).len(), 4);
    let before = rig.clock.passed().as_secs_f64();
    rig.exit(1, 1).await;
    sleep(Duration::from_secs(15)).await;
    let restarted = rig.host.times(&start(2))[0];
    assert!((restarted - before - 10.0).abs() < 0.1, "{restarted} after {before}");
}

#[tokio::test(start_paused = true)]
async fn an_end_told_twice_counts_once() {
    let rig = rig(|_| {});
    settle().await;
    rig.exit(0, 1).await;
    let mut reports = rig.reports.clone();
    reports.mark_unchanged();
    rig.exit(0, 1).await;
    let again = ended("app", 0, 1, 1, rig.clock.now());
    rig.events.send(PodEvent::Ended { container: "app".to_owned(), attempt: again }).await.unwrap();
    settle().await;
    assert_eq!(rig.host.told_ended(), [("app-0".to_owned(), 0)]);
    assert!(!reports.has_changed().unwrap(), "nothing new was learnt");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_could_not_be_started_has_ended_too() {
    let rig = rig(|host| {
        let failed = ended("app", 0, 1, 128, host_time());
        host.script(start(0), Step::Return(Outcome::Attempt(failed)));
    });
    settle().await;
    assert_eq!(rig.host.told_ended(), [("app-0".to_owned(), 0)], "so that its cgroup is removed");
    assert!(rig.host.actions().contains(&start(1)));
}

fn host_time() -> k8s_openapi::jiff::Timestamp {
    Clock::new().now()
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_cleared_and_made_again() {
    let rig = rig(|_| {});
    settle().await;
    let before = rig.host.actions().len();
    let lost = vec![("app".to_owned(), ended("app", 0, 1, 137, rig.clock.now()))];
    rig.lose(1, lost).await;
    let again = rig.host.actions().split_off(before);
    let expected = [
        Action::StopSandbox,
        Action::DetachNetwork,
        resolve(1),
        Action::PrepareContainer { container: "app".to_owned(), attempt: 1, generation: 2, epoch: 0 },
        Action::CreateSandbox,
        Action::AttachNetwork,
        start(1),
    ];
    for action in &expected {
        assert_eq!(again.iter().filter(|begun| *begun == action).count(), 1, "{action:?} in {again:?}");
    }
    assert_eq!(again[0], Action::StopSandbox, "nothing is started in a sandbox that is gone: {again:?}");
    let let_go = Action::ReleaseContainer { container: "app".to_owned(), attempt: 1, generation: 2, epoch: 0 };
    assert!(again.contains(&let_go), "{again:?}");
    assert_eq!(rig.report().observed.generation, 2);
    assert_eq!(rig.phase(), "Running");
}

#[tokio::test(start_paused = true)]
async fn a_late_word_of_an_earlier_sandbox_is_ignored() {
    let rig = rig(|_| {});
    settle().await;
    rig.lose(1, vec![("app".to_owned(), ended("app", 0, 1, 137, rig.clock.now()))]).await;
    let before = rig.host.actions();
    rig.lose(1, vec![("app".to_owned(), ended("app", 0, 1, 137, rig.clock.now()))]).await;
    assert_eq!(rig.host.actions(), before);
    assert_eq!(rig.report().observed.sandbox, Sandbox::Running { pid: 7 });
    // A running container is not replaced by an older word of itself either.
    let stale = running("app", 0, 1, rig.clock.now());
    rig.events.send(PodEvent::Ended { container: "app".to_owned(), attempt: stale }).await.unwrap();
    settle().await;
    assert_eq!(rig.host.actions(), before);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_sandbox_that_was_asked_to_go_is_no_loss() {
    let release = Arc::new(Notify::new());
    let rig = rig(|host| host.script(Action::StopSandbox, Step::Hold(release.clone())));
    settle().await;
    rig.terminate(30);
    settle().await;
    rig.lose(1, Vec::new()).await;
    assert_eq!(rig.report().observed.sandbox, Sandbox::Running { pid: 7 }, "StopSandbox sees to it");
    release.notify_one();
    let actions = rig.gone().await;
    assert_eq!(actions.iter().filter(|action| **action == Action::StopSandbox).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pull_nobody_waits_for_does_not_hold_up_the_removal() {
    let never = Arc::new(Notify::new());
    let rig = rig(|host| host.script(resolve(0), Step::Hold(never)));
    settle().await;
    assert_eq!(rig.phase(), "Pending");
    rig.terminate(30);
    let actions = rig.gone().await;
    assert_eq!(actions.last(), Some(&Action::ForgetPod));
}

fn mark(attempt: u32) -> Action {
    Action::MarkRestart { container: "app".to_owned(), attempt, why: RestartReason::Definition }
}

#[tokio::test(start_paused = true)]
async fn a_changed_image_is_recorded_first_and_then_replaces_the_container() {
    let rig = rig(|_| {});
    settle().await;
    let before = rig.host.actions().len();
    rig.change_image("busybox:2", 2);
    settle().await;
    let after = rig.host.actions().split_off(before);
    let prepare = Action::PrepareContainer { container: "app".to_owned(), attempt: 1, generation: 1, epoch: 0 };
    assert_eq!(after, [Action::RecordPod, mark(0), stop(0), resolve(1), prepare, start(1), release(1)]);
    let report = rig.report();
    assert_eq!(report.pod.metadata.generation, Some(2));
    assert_eq!(report.observed.launched("app").unwrap().image, "busybox:2");
    assert_eq!(rig.phase(), "Running");
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_by_a_change_that_is_not_durable() {
    let rig = rig(|host| {
        for _ in 0..2 {
            host.script(Action::RecordPod, Step::Fail("the disk is full"));
        }
    });
    settle().await;
    rig.change_image("busybox:2", 2);
    settle().await;
    assert_eq!(rig.count(&mark(0)), 0);
    assert_eq!(rig.report().pod.metadata.generation, None, "the pod is reported as it is in the ledger");
    sleep(Duration::from_secs(600)).await;
    assert_eq!((rig.count(&Action::RecordPod), rig.count(&mark(0))), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_of_several_changes_is_recorded_after_the_one_under_way() {
    let release = Arc::new(Notify::new());
    let rig = rig(|host| host.script(Action::RecordPod, Step::Hold(release.clone())));
    settle().await;
    for generation in 2..5 {
        rig.change_image(&format!("busybox:{generation}"), generation);
        settle().await;
    }
    release.notify_one();
    settle().await;
    let recorded: Vec<_> =
        rig.host.recorded.lock().unwrap().iter().map(|record| record.pod.metadata.generation).collect();
    assert_eq!(recorded, [Some(2), Some(4)]);
    assert_eq!(rig.report().observed.launched("app").unwrap().image, "busybox:4");
}

#[tokio::test(start_paused = true)]
async fn a_pull_of_an_image_that_is_not_wanted_any_more_is_given_up() {
    let never = Arc::new(Notify::new());
    let rig = rig(|host| host.script(resolve(0), Step::Hold(never)));
    settle().await;
    rig.change_image("busybox:2", 2);
    settle().await;
    assert_eq!(rig.count(&resolve(0)), 2);
    assert_eq!(rig.phase(), "Running");
    assert_eq!(rig.report().observed.launched("app").unwrap().image, "busybox:2");
}

#[tokio::test(start_paused = true)]
async fn a_better_image_does_not_wait_for_the_delay_of_the_other() {
    let rig = rig(|host| {
        for _ in 0..9 {
            host.script(resolve(0), Step::Fail("no such image"));
        }
    });
    sleep(Duration::from_secs(600)).await;
    let tried = rig.count(&resolve(0));
    rig.change_image("busybox:2", 2);
    settle().await;
    assert_eq!(rig.count(&resolve(0)), tried + 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_to_go_takes_no_change_any_more() {
    let rig = rig(|host| host.deaf = true);
    settle().await;
    rig.terminate(30);
    settle().await;
    rig.change_image("busybox:2", 2);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.count(&Action::RecordPod), 0);
}

#[tokio::test(start_paused = true)]
async fn the_story_of_a_pod_is_told_in_events() {
    let rig = rig(|host| host.script(start(1), Step::Fail("no")));
    settle().await;
    assert_eq!(rig.host.happenings(), ["Created", "Started"]);
    rig.exit(0, 1).await;
    assert_eq!(rig.host.happenings()[2..], ["Created", "Failed", "BackOff"], "the second attempt could not start");
    sleep(Duration::from_secs(11)).await;
    assert_eq!(rig.host.happenings()[5..], ["Started"]);
    rig.exit(1, 1).await;
    assert_eq!(rig.host.happenings()[6..], ["BackOff"]);
    rig.terminate(30);
    settle().await;
    assert_eq!(rig.host.happenings().len(), 7, "nothing runs that would have to be stopped");
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_and_the_end_are_told() {
    let rig = rig(|_| {});
    settle().await;
    rig.lose(1, vec![("app".to_owned(), ended("app", 0, 1, 137, rig.clock.now()))]).await;
    sleep(Duration::from_secs(1)).await;
    rig.terminate(30);
    settle().await;
    assert_eq!(rig.host.happenings()[2..], ["SandboxChanged", "Created", "Started", "Killing"]);
}

/// A rig whose pod has a volume with content.
fn rig_with_volume(script: impl FnOnce(&mut FakeHost)) -> Rig {
    let mut pod = pod("u1", "web");
    let volume = Volume { name: "config".to_owned(), ..Volume::default() };
    pod.spec.as_mut().unwrap().volumes = Some(vec![volume]);
    rig_of(pod, |host| {
        host.contents.lock().unwrap().insert("config".to_owned(), 1);
        script(host);
    })
}

impl Rig {
    async fn change(&self, content: u64) {
        self.host.contents.lock().unwrap().insert("config".to_owned(), content);
        self.wanted.send_modify(|wanted| wanted.objects += 1);
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_an_object_reaches_the_volume_once_and_at_once() {
    let rig = rig_with_volume(|_| {});
    settle().await;
    assert_eq!(rig.phase(), "Running");
    let refresh = Action::RefreshVolume("config".to_owned());
    assert!(!rig.host.actions().contains(&refresh));
    let before = rig.clock.passed();
    rig.change(2).await;
    rig.change(2).await;
    assert_eq!(rig.host.times(&refresh).len(), 1, "another object changed the second time");
    rig.change(3).await;
    assert_eq!(rig.host.times(&refresh).len(), 2);
    assert!(rig.clock.passed() - before < Duration::from_millis(100));
    assert_eq!(rig.phase(), "Running");
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_as_soon_as_what_it_waits_for_is_there() {
    let mount = Action::MountVolume("config".to_owned());
    let rig = rig_with_volume(|host| {
        for _ in 0..8 {
            host.script(mount.clone(), Step::FailFor("FailedMount", "configmap \"x\" not found"));
        }
    });
    // Tried after 0.5, 1, 2, … seconds: the next time would be long after this.
    sleep(Duration::from_secs(40)).await;
    assert_eq!(rig.phase(), "Pending");
    assert!(rig.waiting().1.contains("configmap \"x\" not found"));
    while rig.host.times(&mount).len() < 8 {
        rig.change(1).await;
    }
    rig.change(1).await;
    assert_eq!(rig.phase(), "Running");
    assert!(rig.clock.passed() < Duration::from_secs(41));
}

#[tokio::test(start_paused = true)]
async fn a_changed_pod_is_looked_at_for_what_its_volumes_show_of_it() {
    let rig = rig_with_volume(|_| {});
    settle().await;
    rig.host.contents.lock().unwrap().insert("config".to_owned(), 2);
    let mut changed = Pod::clone(&rig.report().pod);
    (changed.status, changed.metadata.generation) = (None, Some(2));
    changed.metadata.labels = Some([("new".to_owned(), "label".to_owned())].into());
    let record = Arc::new(record(changed, rig.clock.now()));
    rig.wanted.send_modify(|wanted| wanted.record = Some(record));
    settle().await;
    assert_eq!(rig.count(&Action::RefreshVolume("config".to_owned())), 1);
    assert_eq!(rig.count(&stop(0)), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_evicted_ends_and_is_not_started_again() {
    let rig = rig(|_| {});
    settle().await;
    let (reason, message) = ("Evicted".to_owned(), "too much".to_owned());
    let eviction = Eviction { reason, message, condition: None, at: rig.clock.now(), grace: Some(1) };
    rig.events.send(PodEvent::Evicted(eviction)).await.unwrap();
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(rig.phase(), "Failed");
    let status = rig.report().pod.status.clone().unwrap();
    assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Evicted"), Some("too much")));
    let actions = rig.host.actions();
    assert!(actions.contains(&stop(0)) && actions.contains(&Action::RemoveCgroups));
    assert!(!actions.contains(&start(1)) && !actions.contains(&Action::ForgetPod));
    rig.terminate(30);
    assert!(rig.gone().await.contains(&Action::ForgetPod));
}

fn hook(hook: Hook) -> Action {
    Action::RunHook { container: "app".to_owned(), attempt: 0, hook }
}

fn abandon(hook: Hook) -> Action {
    Action::AbandonHook { container: "app".to_owned(), attempt: 0, hook }
}

/// A pod whose container has both hooks.
fn hooked() -> Pod {
    let mut pod = pod("u1", "web");
    let hooks = serde_json::json!({"postStart": {"sleep": {"seconds": 1}}, "preStop": {"sleep": {"seconds": 1}}});
    pod.spec.as_mut().unwrap().containers[0].lifecycle = serde_json::from_value(hooks).unwrap();
    pod
}

#[tokio::test(start_paused = true)]
async fn hooks_run_beside_the_start_and_before_the_end() {
    let begun = Arc::new(Notify::new());
    let rig = rig_of(hooked(), |host| host.script(hook(Hook::PostStart), Step::Hold(begun.clone())));
    settle().await;
    assert_eq!(rig.host.actions().last(), Some(&hook(Hook::PostStart)));
    assert_eq!(rig.waiting().0, "ContainerCreating");
    let held = rig.host.actions().len();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(rig.host.actions().len(), held, "it is waited for in peace");
    begun.notify_one();
    settle().await;
    assert_eq!(rig.report().pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].started, Some(true));
    rig.terminate(30);
    let down = rig.gone().await.split_off(held);
    assert_eq!(down[..3], [hook(Hook::PreStop), stop(0), Action::StopSandbox]);
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_that_never_ends_is_given_up_with_the_grace_period() {
    let stuck = Arc::new(Notify::new());
    let rig = rig_of(hooked(), |host| {
        host.deaf = true;
        host.script(hook(Hook::PreStop), Step::Hold(stuck.clone()));
    });
    settle().await;
    let begun = rig.clock.passed().as_secs_f64();
    rig.terminate(30);
    sleep(Duration::from_secs(1)).await;
    rig.terminate(10);
    sleep(Duration::from_secs(20)).await;
    let since = |action: &Action| -> Vec<f64> {
        rig.host.times(action).iter().map(|at| ((at - begun) * 10.0).round() / 10.0).collect()
    };
    assert_eq!(since(&hook(Hook::PreStop)), [0.0]);
    assert_eq!(since(&abandon(Hook::PreStop)), [10.0], "once, although it does not end");
    assert_eq!(since(&stop(0)), [10.0]);
    assert_eq!(since(&kill(0)), [12.0]);
    stuck.notify_one();
    rig.exit(0, 137).await;
    let actions = rig.gone().await;
    assert!(actions.contains(&Action::ForgetPod), "{actions:?}");
}

#[tokio::test(start_paused = true)]
async fn removal_gives_up_a_post_start_hook() {
    let rig = rig_of(hooked(), |host| host.script(hook(Hook::PostStart), Step::Hold(Arc::new(Notify::new()))));
    settle().await;
    rig.terminate(30);
    let actions = rig.gone().await;
    let position = |wanted: &Action| actions.iter().position(|action| action == wanted).expect("it was done");
    assert!(position(&abandon(Hook::PostStart)) < position(&stop(0)), "{actions:?}");
    assert!(position(&hook(Hook::PreStop)) < position(&stop(0)), "{actions:?}");
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_post_start_hook_fails_goes_and_comes_again() {
    let failed = || Step::Return(Outcome::Hook(HookEnd::Failed("exit code 1".to_owned())));
    let rig = rig_of(hooked(), |host| host.script(hook(Hook::PostStart), failed()));
    settle().await;
    assert_eq!(rig.host.times(&stop(0)).len(), 1);
    assert_eq!(rig.host.times(&start(1)).len(), 1);
    assert_eq!(rig.phase(), "Running");
}
