//! Small changes of a pod that runs.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ContainerResizePolicy, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::{
    Action, Plan,
    backoff::CRASH_LOOP,
    memory::Stop,
    observed::{Launched, ResolvedImage},
    plan_tests::{Case, at, case, ended, kill, prepare, release, resolve, running, start, stop},
    resize::{Allocation, Pending, PendingReason},
    restart::RestartReason,
};

/// The stop signal was sent at that second.
fn stopped(second: i64) -> Stop {
    Stop { attempt: 0, since: at(second), signalled: Some(at(second)) }
}

/// `app` was launched with an image that is not the pod's any more.
fn outgrown(case: &mut Case) {
    let launched = Launched { attempt: 0, image: "busybox:0".to_owned(), ..Launched::default() };
    case.observed.launched.insert("app".to_owned(), launched);
}

#[test]
fn a_container_that_its_pod_has_outgrown_is_stopped_and_started_again() {
    let mark = Action::MarkRestart { container: "app".to_owned(), attempt: 0, why: RestartReason::Definition };
    let marked = |case: &mut Case| {
        outgrown(case);
        case.observed.restarts.insert("app".to_owned(), 0);
    };
    case("a container whose image has changed is marked", outgrown, std::slice::from_ref(&mark));
    case("one of an unknown image is left alone", |_| {}, &[]);
    case(
        "what an earlier attempt ran says nothing",
        |c| {
            outgrown(c);
            c.set("app", vec![ended(0, 1, 50), running(1)]);
        },
        &[],
    );
    case(
        "an init container goes on with what it began",
        |c| {
            c.set("init", vec![running(0)]);
            c.observed.containers.retain(|name, _| name == "init");
            let launched = Launched { attempt: 0, image: "busybox:0".to_owned(), ..Launched::default() };
            c.observed.launched.insert("init".to_owned(), launched);
        },
        &[],
    );
    case("a marked one is stopped", marked, &[stop("app")]);
    let plan = case(
        "one that was stopped is waited for",
        |c| {
            marked(c);
            c.memory.stopping.insert("app".to_owned(), stopped(95));
        },
        &[],
    );
    assert_eq!(plan.wake_at, Some(at(125)));
    case(
        "one that does not stop is killed",
        |c| {
            marked(c);
            c.memory.stopping.insert("app".to_owned(), stopped(60));
        },
        &[kill("app")],
    );
    for policy in ["Always", "OnFailure", "Never"] {
        let plan = case(
            "one that has stopped is started again at once, whatever the policy and its past",
            |c| {
                marked(c);
                c.policy(policy);
                c.set("app", vec![ended(0, 0, 99)]);
                c.memory.crash_loop.entry("app".to_owned()).or_default().advance(&CRASH_LOOP, at(99));
            },
            &[resolve("app", 1)],
        );
        assert_eq!(plan.status.phase.as_deref(), Some("Running"), "{policy}");
    }
    case(
        "a pod that goes starts nothing again",
        |c| {
            marked(c);
            c.set("app", vec![ended(0, 143, 99)]);
            c.memory.terminate(30, at(99));
        },
        &[stop("log")],
    );
    case(
        "nothing is prepared under what is being started",
        |c| {
            c.observed.containers.remove("app");
            c.observed.images.remove("app");
            c.memory.in_flight.insert(start("app", 0));
        },
        &[release("app", 0)],
    );
}

fn with_cpu(amount: &str) -> ResourceRequirements {
    let amounts = BTreeMap::from([("cpu".to_owned(), ApiQuantity(amount.to_owned()))]);
    ResourceRequirements { requests: Some(amounts), ..ResourceRequirements::default() }
}

/// `app` runs with one CPU and is allocated two; `policy` is that of its CPU.
fn resized(case: &mut Case, policy: &str) {
    let app = &mut case.spec().containers[0];
    app.resources = Some(with_cpu("2"));
    app.resize_policy =
        Some(vec![ContainerResizePolicy { resource_name: "cpu".to_owned(), restart_policy: policy.to_owned() }]);
    let launched = Launched { attempt: 0, image: "busybox:1".to_owned(), resources: with_cpu("1") };
    case.observed.launched.insert("app".to_owned(), launched);
    case.observed.sized = Some(Allocation::default());
}

fn reason(plan: &Plan, kind: &str) -> Option<(Option<String>, Option<String>)> {
    let found = plan.status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
    Some((found.reason.clone(), found.message.clone()))
}

#[test]
fn cgroups_follow_the_allocation() {
    let resize = |containers: &[&str]| Action::ResizePod {
        containers: containers.iter().map(|name| ((*name).to_owned(), 0)).collect(),
    };
    let plan = case("a running container is resized with its pod", |c| resized(c, "NotRequired"), &[resize(&["app"])]);
    assert_eq!(reason(&plan, "PodResizeInProgress"), Some((None, None)));
    let status = &plan.status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(status.resources, Some(with_cpu("1")), "what is in force");
    assert_eq!(status.allocated_resources, with_cpu("2").requests);
    let plan = case(
        "what is in force needs nothing",
        |c| {
            resized(c, "NotRequired");
            c.observed.resized(&c.pod, &BTreeMap::from([("app".to_owned(), 0)]));
        },
        &[],
    );
    assert_eq!(reason(&plan, "PodResizeInProgress"), None);
    case(
        "one resize at a time",
        |c| {
            resized(c, "NotRequired");
            c.memory.in_flight.insert(resize(&[]));
        },
        &[],
    );
    let failed = |c: &mut Case| {
        resized(c, "NotRequired");
        c.memory.ended(&resize(&["app"]), Some(("ResizeError".to_owned(), "too small".to_owned())), at(100));
    };
    let plan = case("a failed one is tried again later", failed, &[]);
    assert!(plan.wake_at.is_some());
    let error = (Some("Error".to_owned()), Some("too small".to_owned()));
    assert_eq!(reason(&plan, "PodResizeInProgress"), Some(error));
    let mark = Action::MarkRestart { container: "app".to_owned(), attempt: 0, why: RestartReason::Resize };
    case("a container whose policy says so is started anew", |c| resized(c, "RestartContainer"), &[mark]);
    let stopped = |c: &mut Case| {
        resized(c, "RestartContainer");
        c.observed.restarts.insert("app".to_owned(), 0);
        c.set("app", vec![ended(0, 143, 99)]);
        let id = "sha256:aa".to_owned();
        c.observed.images.insert("app".to_owned(), ResolvedImage { attempt: 1, id });
    };
    case("its pod is resized before it is prepared", stopped, &[resize(&[])]);
    case(
        "and it is prepared when the pod is",
        |c| {
            stopped(c);
            c.observed.sized = Some(Allocation::of(&c.pod));
        },
        &[prepare("app", 1, 1)],
    );
    case(
        "or cannot be",
        |c| {
            stopped(c);
            c.memory.ended(&resize(&[]), Some(("ResizeError".to_owned(), "no".to_owned())), at(100));
        },
        &[prepare("app", 1, 1)],
    );
}

#[test]
fn a_resize_without_room_is_a_condition() {
    let pending = Pending {
        reason: PendingReason::Deferred,
        message: "Node didn't have enough resource: cpu".to_owned(),
        since: at(90),
    };
    let plan = case("nothing is done about it here", |c| c.memory.resize = Some(pending), &[]);
    let expected = (Some("Deferred".to_owned()), Some("Node didn't have enough resource: cpu".to_owned()));
    assert_eq!(reason(&plan, "PodResizePending"), Some(expected));
}
