//! What a status says beside phases.

use serde_json::json;

use super::*;
use crate::pod::observed::User;

#[test]
fn readiness_gates_nobody_opens_keep_a_pod_from_being_ready() {
    let gated = |case: &mut Case| {
        case.spec().readiness_gates =
            serde_json::from_value(json!([{"conditionType": "example.com/open"}])).expect("gates");
    };
    let plan = case("nothing to do", gated, &[]);
    assert_eq!(condition(&plan.status, "ContainersReady"), "True");
    let ready = plan.status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").expect("Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("ReadinessGatesNotReady")));
    let message = "corresponding condition of pod readiness gate \"example.com/open\" does not exist.";
    assert_eq!(ready.message.as_deref(), Some(message));
    let ours = |case: &mut Case| {
        case.spec().readiness_gates = serde_json::from_value(json!([{"conditionType": "Initialized"}])).expect("gates");
    };
    assert_eq!(condition(&case("one that is ours", ours, &[]).status, "Ready"), "True");
}

#[test]
fn status_and_conditions_say_which_generation_they_are_about() {
    let plan = case("nothing to do", |case| case.pod.metadata.generation = Some(7), &[]);
    assert_eq!(plan.status.observed_generation, Some(7));
    let conditions = plan.status.conditions.expect("conditions");
    assert!(conditions.iter().all(|condition| condition.observed_generation == Some(7)), "{conditions:?}");
}

#[test]
fn a_container_status_has_what_is_known_of_the_attempt() {
    let known = |case: &mut Case| {
        case.app(
            "volumeMounts",
            json!([
                {"name": "data", "mountPath": "/data"},
                {"name": "conf", "mountPath": "/conf", "readOnly": true, "recursiveReadOnly": "IfPossible"},
            ]),
        );
        let user = Some(Box::new(User { uid: 1000, gid: 1001, groups: vec![1001, 10] }));
        case.set("app", vec![Attempt { user, stop_signal: 37, ..running(0) }]);
    };
    let plan = case("nothing to do", known, &[]);
    let status = serde_json::to_value(&plan.status.container_statuses.expect("statuses")[0]).expect("JSON");
    assert_eq!(status["imageID"], "docker.io/library/busybox@sha256:bb");
    assert_eq!(status["stopSignal"], "SIGRTMIN+3");
    assert_eq!(status["user"], json!({"linux": {"uid": 1000, "gid": 1001, "supplementalGroups": [1001, 10]}}));
    let mounts = json!([
        {"name": "data", "mountPath": "/data"},
        {"name": "conf", "mountPath": "/conf", "readOnly": true, "recursiveReadOnly": "Enabled"},
    ]);
    assert_eq!(status["volumeMounts"], mounts);
}

#[test]
fn the_user_of_an_attempt_is_known_beyond_its_end() {
    let mut case = healthy();
    let user = Some(Box::new(User { uid: 1, gid: 2, groups: vec![2] }));
    case.set("app", vec![Attempt { user: user.clone(), ..running(0) }]);
    case.observed.record("app", ended(0, 0, 50));
    assert_eq!(case.observed.latest("app").expect("an attempt").user, user);
}

#[test]
fn a_container_that_could_not_be_started_says_why_while_it_is_tried_again() {
    let never_ran = |case: &mut Case| {
        let mut attempt = ended(0, 128, 99);
        if let AttemptState::Ended(ended) = &mut attempt.state {
            ended.started_at = None;
            ended.reason = "StartError".to_owned();
            ended.message = "exec: \"nope\": executable file not found in $PATH".to_owned();
        }
        case.set("app", vec![attempt]);
        case.ready("app", 1);
    };
    let plan = case("again", never_ran, &[start("app", 1), release("app", 1)]);
    assert_eq!(waiting_reason(&plan.status, 0), "RunContainerError");
    let app = &plan.status.container_statuses.as_ref().expect("statuses")[0];
    let last = app.last_state.as_ref().and_then(|state| state.terminated.as_ref()).expect("a last state");
    assert_eq!((last.exit_code, last.reason.as_deref()), (128, Some("StartError")));
}
