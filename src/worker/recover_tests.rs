//! What is found on disk after a restart: the ledger and the attempts.

use std::fs;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

use super::{
    record::{self, PodRecord},
    recover::{self, EntryError},
    testing::{exit_record, launch, pod},
    watch,
};
use crate::{
    pod::{
        Grants, Hook, ObservedPod,
        desired::SourceId,
        observed::{AttemptState, Ended, HookEnd},
    },
    store::{
        durable,
        layout::{Layout, PodDirs},
    },
    supervisor::{
        protocol::{RunningContainer, Snapshot},
        spec::{HookRecord, VERSION},
    },
};

struct Place {
    _directory: tempfile::TempDir,
    layout: Layout,
    dirs: PodDirs,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let layout = Layout { root: at("root"), run: at("run"), log: at("log") };
    let dirs = layout.pod("u1", "default", "web");
    fs::create_dir_all(&dirs.dir).unwrap();
    Place { _directory: directory, layout, dirs }
}

impl Place {
    /// An attempt with its launch record and, if it has ended, its exit record.
    fn attempt(&self, container: &str, number: u32, generation: u32, exit_code: Option<i32>) {
        let directory = self.dirs.attempt(container, number);
        fs::create_dir_all(&directory.dir).unwrap();
        durable::write_json(&directory.launch_file(), &launch(container, number, generation)).unwrap();
        if let Some(code) = exit_code {
            durable::write_json(&directory.exit_file(), &exit_record(code)).unwrap();
        }
    }

    fn record(&self, directory: &str, pod: Pod, version: u32) {
        let record = PodRecord {
            version,
            pod: std::sync::Arc::new(pod),
            allocated: None,
            source: SourceId::File,
            origin: "file:/m/a.yaml".to_owned(),
            users: None,
            handler: None,
            grants: Grants::default(),
            start_time: Timestamp::now(),
            sourced: None,
            verdict: None,
        };
        let directory = self.layout.pods().join(directory);
        fs::create_dir_all(&directory).unwrap();
        durable::write_json(&directory.join("pod.json"), &record).unwrap();
    }

    fn found(&self, generation: u32, snapshot: Option<&Snapshot>) -> ObservedPod {
        self.found_with(generation, snapshot, true)
    }

    fn found_with(&self, generation: u32, snapshot: Option<&Snapshot>, made: bool) -> ObservedPod {
        let mut observed = ObservedPod { generation, ..ObservedPod::default() };
        recover::attempts(&self.dirs, &mut observed, snapshot, made, "web", &|_| false);
        observed
    }
}

fn snapshot(running: &[(&str, u32)]) -> Snapshot {
    let one = |(container, attempt): &(&str, u32)| RunningContainer {
        container: (*container).to_owned(),
        attempt: *attempt,
        id: String::new(),
        pid: 42,
        started_at: 1_000_000_000,
        stages: Vec::new(),
        user: Default::default(),
    };
    Snapshot { version: 1, pid: 7, start_time: 1, running: running.iter().map(one).collect(), warnings: Vec::new() }
}

#[test]
fn a_ledger_entry_that_cannot_be_used_harms_no_other() {
    let place = place();
    place.record("u1", pod("u1", "a"), record::VERSION);
    place.record("u2", pod("u2", "b"), record::VERSION + 1);
    place.record("u3", pod("other", "c"), record::VERSION);
    fs::create_dir_all(place.layout.pods().join("u4")).unwrap();
    fs::create_dir_all(place.layout.pods().join("u5")).unwrap();
    fs::write(place.layout.pods().join("u5/pod.json"), "{\"version\": 1, \"pod\": 5}").unwrap();

    let ledger = recover::ledger(&place.layout).unwrap();
    assert_eq!(ledger.records.iter().map(PodRecord::uid).collect::<Vec<_>>(), ["u1"]);
    assert_eq!(ledger.half_made, [place.layout.pods().join("u4")]);
    let mut alone = ledger.left_alone;
    alone.sort_by_key(|pod| pod.uid.clone());
    assert!(matches!(&alone[0].error, EntryError::Newer { found, .. } if *found == record::VERSION + 1));
    assert!(matches!(&alone[1].error, EntryError::Misplaced { found, .. } if found == "other"));
    assert!(matches!(&alone[2].error, EntryError::Store(_)));
    assert_eq!(alone.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["u2", "u3", "u5"]);
}

#[test]
fn a_record_that_a_power_failure_cut_short_is_of_a_pod_that_never_ran() {
    let place = place();
    let directory = |uid: &str| {
        let directory = place.layout.pods().join(uid);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("pod.json"), "{\"version\": 1, \"pod\"").unwrap();
        directory
    };
    let (never_ran, ran) = (directory("u1"), directory("u2"));
    fs::create_dir_all(never_ran.join("containers/app/0")).unwrap();
    fs::create_dir_all(ran.join("containers/app/0")).unwrap();
    fs::write(ran.join("containers/app/0/exit.json"), "{}").unwrap();
    let ledger = recover::ledger(&place.layout).unwrap();
    assert_eq!(ledger.half_made, [never_ran]);
    assert_eq!(ledger.left_alone.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["u2"]);
}

#[test]
fn a_launch_that_a_power_failure_cut_short_was_never_started() {
    let place = place();
    place.attempt("app", 0, 1, Some(3));
    place.attempt("app", 1, 1, None);
    let launch = place.dirs.attempt("app", 1).launch_file();
    fs::write(&launch, "").unwrap();
    assert_eq!(place.found(1, None).containers["app"].len(), 1);
    assert!(!launch.exists());
}

#[test]
fn a_ledger_that_cannot_be_listed_is_not_an_empty_one() {
    let place = place();
    fs::remove_dir_all(place.layout.pods()).unwrap();
    assert!(recover::ledger(&place.layout).is_err());
}

#[test]
fn attempts_are_what_the_supervisor_and_the_records_say() {
    let place = place();
    place.attempt("app", 0, 1, Some(3));
    place.attempt("app", 1, 1, None);
    place.attempt("log", 0, 1, Some(0));
    let observed = place.found(1, Some(&snapshot(&[("app", 1)])));
    let state = |container: &str, index: usize| observed.containers[container][index].state.clone();
    assert!(matches!(state("app", 0), AttemptState::Ended(Ended { exit_code: 3, .. })));
    assert!(matches!(state("app", 1), AttemptState::Running { pid: 42, .. }));
    assert!(matches!(state("log", 0), AttemptState::Ended(Ended { exit_code: 0, .. })));
}

#[test]
fn an_attempt_asked_for_just_before_is_left_for_the_start_to_join() {
    let place = place();
    place.attempt("app", 0, 1, None);
    let observed = place.found(1, Some(&snapshot(&[])));
    assert!(observed.containers.is_empty(), "not known to have run");
    assert!(place.dirs.attempt("app", 0).launch_file().exists(), "the supervisor may be starting it now");
}

#[test]
fn what_was_prepared_for_a_sandbox_that_was_not_made_is_taken_back() {
    let place = place();
    place.attempt("app", 0, 1, None);
    let launch = place.dirs.attempt("app", 0).launch_file();
    assert!(place.found_with(1, None, false).containers.is_empty(), "it was the first sandbox");
    assert!(!launch.exists());
    place.attempt("app", 0, 2, None);
    assert!(place.found(1, None).containers.is_empty(), "it was to be the one after the last");
    assert!(!launch.exists());
}

#[test]
fn without_a_supervisor_what_left_no_record_ended_in_an_unknown_way() {
    let place = place();
    place.attempt("app", 0, 1, None);
    fs::create_dir_all(place.dirs.attempt("app", 1).dir).unwrap();
    let observed = place.found(1, None);
    let AttemptState::Ended(ended) = &observed.containers["app"][0].state else { panic!("not ended") };
    assert_eq!((ended.exit_code, ended.reason.as_str()), (Ended::UNKNOWN_CODE, "ContainerStatusUnknown"));
    assert!(!place.dirs.attempt("app", 1).dir.exists(), "nothing was launched there");
}

#[test]
fn the_end_of_a_sandbox_is_the_end_of_its_own_attempts_only() {
    let place = place();
    place.attempt("init", 0, 1, Some(0));
    place.attempt("app", 0, 1, None);
    place.attempt("app", 1, 2, None);
    let mut ended = watch::attempts(&place.dirs, 1, false, &|_| false);
    ended.sort_by_key(|(container, _)| container.clone());
    let told: Vec<_> = ended.iter().map(|(container, attempt)| (container.as_str(), attempt.number)).collect();
    assert_eq!(told, [("app", 0), ("init", 0)], "the next sandbox's attempt runs on");
    let recorded = watch::attempts(&place.dirs, 1, true, &|_| false);
    assert_eq!(recorded.len(), 1, "a connection that is back says nothing of what still runs");
}

#[test]
fn hooks_that_have_ended_are_known_and_those_of_earlier_attempts_do_not_count() {
    let place = place();
    place.attempt("app", 0, 1, Some(1));
    place.attempt("app", 1, 1, None);
    let record = |attempt: u32, hook: Hook, failure: Option<&str>| {
        let dirs = place.dirs.attempt("app", attempt);
        let path = if hook == Hook::PostStart { dirs.post_start_file() } else { dirs.pre_stop_file() };
        durable::write_json(&path, &HookRecord { version: VERSION, failure: failure.map(str::to_owned) }).unwrap();
    };
    record(0, Hook::PostStart, Some("exit code 1"));
    record(0, Hook::PreStop, None);
    record(1, Hook::PostStart, None);
    let observed = place.found(1, Some(&snapshot(&[("app", 1)])));
    let hooked = observed.hooked("app", 1).expect("hooks of the newest attempt");
    assert_eq!((&hooked.post_start, &hooked.pre_stop), (&Some(HookEnd::Succeeded), &None));
}
