//! What is asked when, and what the answers come to.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Container, Pod, Probe},
    jiff::Timestamp,
};
use serde_json::json;

use super::{
    Memory, ObservedPod, lifecycle,
    observed::{Attempt, AttemptState, Ended, Probed},
    probe::{Counter, ProbeKey, ProbeKind, active},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn probe() -> Probe {
    Probe { period_seconds: Some(10), failure_threshold: Some(3), success_threshold: Some(1), ..Probe::default() }
}

/// The verdicts that a run of answers brings, one for each.
fn verdicts(probe: &Probe, kind: ProbeKind, known: Option<bool>, answers: &[bool]) -> Vec<Option<bool>> {
    let mut counter = Counter::new(probe, kind, known);
    answers.iter().map(|answer| counter.count(*answer)).collect()
}

#[test]
fn a_verdict_takes_as_many_answers_in_a_row_as_its_threshold() {
    const NO: Option<bool> = None;
    let (yes, fail) = (Some(true), Some(false));
    let ready = ProbeKind::Readiness;
    assert_eq!(verdicts(&probe(), ready, None, &[true, true]), [yes, NO], "told once");
    assert_eq!(verdicts(&probe(), ready, None, &[false, false, false, false]), [NO, NO, fail, NO]);
    let interrupted = [true, false, false, true, false, false, false, true];
    assert_eq!(verdicts(&probe(), ready, None, &interrupted), [yes, NO, NO, NO, NO, NO, fail, yes]);
    let slow = Probe { success_threshold: Some(2), failure_threshold: Some(1), ..probe() };
    assert_eq!(verdicts(&slow, ready, None, &[true, false, true, true]), [NO, fail, NO, yes]);
    assert_eq!(verdicts(&probe(), ready, yes, &[true, false, false, false]), [NO, NO, NO, fail], "known before");
    assert_eq!(verdicts(&Probe::default(), ProbeKind::Liveness, None, &[false; 3]), [NO, NO, fail], "defaults");
}

#[test]
fn a_container_has_all_its_periods_to_start_though_it_is_asked_at_once() {
    let start = ProbeKind::Startup;
    let probe = Probe { failure_threshold: Some(2), ..probe() };
    assert_eq!(verdicts(&probe, start, None, &[false, false, false]), [None, None, Some(false)]);
    assert_eq!(verdicts(&probe, start, None, &[true]), [Some(true)]);
    assert_eq!(verdicts(&probe, start, None, &[false, true]), [None, Some(true)]);
}

#[test]
fn the_first_probe_comes_after_the_initial_delay_and_is_spread_after_a_restart_of_the_agent() {
    let delayed = Probe { initial_delay_seconds: Some(15), ..probe() };
    let first = |probe: &Probe, kind, known, now: i64| {
        Counter::new(probe, kind, known).first(probe, kind, at(100), at(now), 0.25).as_millis()
    };
    for (name, probe, kind, known, now, wait) in [
        ("at once", probe(), ProbeKind::Readiness, None, 100, 0),
        ("startup is asked at once, too", probe(), ProbeKind::Startup, None, 101, 0),
        ("liveness after a period", probe(), ProbeKind::Liveness, None, 101, 9_000),
        ("with a delay, after that", delayed.clone(), ProbeKind::Readiness, None, 101, 14_000),
        ("a delay longer than the period is the longer one", delayed.clone(), ProbeKind::Liveness, None, 101, 14_000),
        ("the delay is over", delayed.clone(), ProbeKind::Liveness, None, 200, 0),
        ("a clock that was set back makes it no longer", delayed.clone(), ProbeKind::Readiness, None, 0, 15_000),
        ("something is known", delayed, ProbeKind::Readiness, Some(true), 101, 2_500),
    ] {
        assert_eq!(first(&probe, kind, known, now), wait, "{name}");
    }
    assert_eq!(Counter::new(&Probe::default(), ProbeKind::Liveness, None).period(), Duration::from_secs(10));
}

struct Case {
    pod: Pod,
    observed: ObservedPod,
    memory: Memory,
}

impl Case {
    /// A pod whose container `app` runs for the third time, with the given probes.
    fn new(kinds: &[&str]) -> Case {
        let mut container = json!({"name": "app"});
        for kind in kinds {
            container[format!("{kind}Probe")] = json!({"exec": {"command": ["true"]}});
        }
        let spec = json!({"containers": [container, {"name": "plain"}], "restartPolicy": "Always"});
        let mut observed = ObservedPod::default();
        for name in ["app", "plain"] {
            let state = AttemptState::Running { pid: 1, started_at: at(5) };
            let attempt = Attempt {
                number: 2,
                generation: 1,
                epoch: 0,
                id: String::new(),
                image_id: String::new(),
                image_ref: String::new(),
                stop_signal: 15,
                user: None,
                state,
            };
            observed.record(name, attempt);
        }
        Case {
            pod: serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap(),
            observed,
            memory: Memory::default(),
        }
    }

    fn know(&mut self, attempt: u32, change: impl FnOnce(&mut Probed)) {
        let mut probed = Probed { attempt, ..Probed::default() };
        change(&mut probed);
        self.observed.probes.insert("app".to_owned(), probed);
    }

    fn active(&self) -> Vec<ProbeKind> {
        let active = active(&self.pod, &self.observed, &self.memory, at(100));
        let of_app = |(key, since): (ProbeKey, Timestamp)| {
            assert_eq!((key.container.as_str(), key.attempt, since), ("app", 2, at(5)));
            key.kind
        };
        active.into_iter().map(of_app).collect()
    }

    fn app(&self) -> &Container {
        &self.pod.spec.as_ref().unwrap().containers[0]
    }

    fn end(&mut self) {
        let mut attempt = self.observed.latest("app").unwrap().clone();
        attempt.state = AttemptState::Ended(Ended::unknown(None, at(50)));
        self.observed.record("app", attempt);
    }
}

const ALL: [&str; 3] = ["startup", "readiness", "liveness"];

#[test]
fn probes_are_run_while_they_can_matter() {
    use ProbeKind::{Liveness, Readiness, Startup};
    type Change = fn(&mut Case);
    let cases: [(&str, &[&str], Change, &[ProbeKind]); 12] = [
        ("no probes", &[], |_| {}, &[]),
        ("startup holds the others back", &ALL, |_| {}, &[Startup]),
        (
            "once started the others are asked",
            &ALL,
            |case| case.know(2, |known| known.startup = Some(true)),
            &[Readiness, Liveness],
        ),
        (
            "what an earlier attempt said is nothing",
            &ALL,
            |case| case.know(1, |known| known.startup = Some(true)),
            &[Startup],
        ),
        ("startup has failed", &ALL, |case| case.know(2, |known| known.startup = Some(false)), &[]),
        ("without startup", &["readiness", "liveness"], |_| {}, &[Readiness, Liveness]),
        (
            "liveness has failed",
            &["readiness", "liveness"],
            |case| case.know(2, |known| known.liveness = Some(false)),
            &[Readiness],
        ),
        (
            "a pod that goes is asked for readiness alone",
            &["readiness", "liveness"],
            |case| case.memory.terminate(30, at(90)),
            &[Readiness],
        ),
        ("a pod that goes need not start", &ALL, |case| case.memory.terminate(30, at(90)), &[]),
        ("it has ended", &["readiness", "liveness"], Case::end, &[]),
        (
            "its postStart hook has not ended",
            &ALL,
            |case| {
                let sleep = json!({"postStart": {"sleep": {"seconds": 1}}});
                case.pod.spec.as_mut().unwrap().containers[0].lifecycle = serde_json::from_value(sleep).unwrap();
            },
            &[],
        ),
        (
            "the pod is over",
            &["readiness"],
            |case| {
                case.pod.spec.as_mut().unwrap().active_deadline_seconds = Some(10);
                case.memory.start_time = Some(at(0));
            },
            &[],
        ),
    ];
    for (name, kinds, change, expected) in cases {
        let mut case = Case::new(kinds);
        change(&mut case);
        assert_eq!(case.active(), expected, "{name}");
    }
}

#[test]
fn a_container_is_started_and_ready_by_its_probes() {
    let state = |case: &Case| (case.observed.started(case.app()), case.observed.ready(case.app()));
    assert_eq!(state(&Case::new(&[])), (true, true));
    assert_eq!(state(&Case::new(&["liveness"])), (true, true));
    assert_eq!(state(&Case::new(&["readiness"])), (true, false), "not before it was found ready");
    assert_eq!(state(&Case::new(&["startup"])), (false, false));
    let mut case = Case::new(&ALL);
    case.know(2, |known| known.startup = Some(true));
    assert_eq!(state(&case), (true, false));
    let ready = |known: &mut Probed| (known.startup, known.readiness) = (Some(true), Some(true));
    case.know(2, ready);
    assert_eq!(state(&case), (true, true));
    case.know(1, ready);
    assert_eq!(state(&case), (false, false), "that was an earlier attempt");
    case.know(2, ready);
    case.end();
    assert_eq!(state(&case), (false, false));
}

#[test]
fn what_ends_a_container_is_said_in_upstreams_words() {
    let mut case = Case::new(&ALL);
    let why = |case: &Case| {
        let container = &case.pod.spec.as_ref().unwrap().containers[0];
        lifecycle::must_end(&case.pod, &case.observed, container).map(|ending| ending.why)
    };
    assert_eq!(why(&case), None);
    case.know(2, |known| known.readiness = Some(false));
    assert_eq!(why(&case), None, "one that is not ready is left alone");
    case.know(2, |known| known.liveness = Some(false));
    assert_eq!(why(&case).unwrap(), "Container app failed liveness probe, will be restarted");
    case.know(2, |known| known.startup = Some(false));
    case.pod.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    assert_eq!(why(&case).unwrap(), "Container app failed startup probe");
}
