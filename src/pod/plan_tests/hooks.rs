//! What goes on beside a container's first moments and before its last.

use serde_json::json;

use super::*;

fn run(container: &str, hook: Hook) -> Action {
    Action::RunHook { container: container.to_owned(), attempt: 0, hook }
}

fn abandon(container: &str, hook: Hook) -> Action {
    Action::AbandonHook { container: container.to_owned(), attempt: 0, hook }
}

fn failed() -> Outcome {
    Outcome::Hook(HookEnd::Failed("exit code 1".to_owned()))
}

fn ended_well() -> Outcome {
    Outcome::Hook(HookEnd::Succeeded)
}

fn with_post_start(case: &mut Case) {
    case.app("lifecycle", json!({"postStart": {"exec": {"command": ["true"]}}}));
}

fn with_pre_stop(case: &mut Case) {
    case.app("lifecycle", json!({"preStop": {"exec": {"command": ["true"]}}}));
}

#[test]
fn a_container_counts_as_running_when_its_post_start_hook_has_succeeded() {
    let mut case = healthy();
    with_post_start(&mut case);
    let plan = case.plan();
    assert_eq!(plan.actions, [run("app", Hook::PostStart)]);
    assert_eq!(waiting_reason(&plan.status, 0), "PodInitializing");
    assert_eq!(condition(&plan.status, "Ready"), "False");
    case.memory.in_flight.insert(run("app", Hook::PostStart));
    assert_eq!((case.plan().actions, case.plan().wake_at), (vec![], None), "it is waited for as long as it takes");
    case.did(run("app", Hook::PostStart), ended_well());
    let plan = case.plan();
    assert_eq!(plan.actions, []);
    assert_eq!(condition(&plan.status, "Ready"), "True");
    assert!(plan.status.container_statuses.expect("statuses")[0].state.as_ref().expect("a state").running.is_some());
}

#[test]
fn main_containers_wait_for_the_post_start_hooks_of_those_before_them() {
    let waiting = |case: &mut Case| {
        with_post_start(case);
        case.set("app", vec![]);
        case.set("log", vec![]);
    };
    case("the first comes first", waiting, &[start("app", 0), release("app", 0)]);
    let hooked = |case: &mut Case| {
        waiting(case);
        case.set("app", vec![running(0)]);
        case.memory.in_flight.insert(run("app", Hook::PostStart));
    };
    case("its hook is waited for", hooked, &[]);
    let done = |case: &mut Case| {
        hooked(case);
        case.did(run("app", Hook::PostStart), ended_well());
    };
    case("then comes the second", done, &[start("log", 0), release("log", 0)]);
    let broken = |case: &mut Case| {
        waiting(case);
        case.observed.apply(&release("app", 0), Outcome::Done);
        case.memory.ended(&start("app", 0), Some(("RunContainerError".to_owned(), String::new())), at(99));
    };
    case("one that cannot be started holds nobody back", broken, &[start("log", 0), release("log", 0)]);
}

#[test]
fn a_container_whose_post_start_hook_fails_is_ended_and_restarted() {
    let mut case = healthy();
    case.app("lifecycle", json!({"postStart": {"sleep": {"seconds": 1}}, "preStop": {"sleep": {"seconds": 1}}}));
    case.did(run("app", Hook::PostStart), failed());
    assert_eq!(case.begin(), [run("app", Hook::PreStop)], "as any container that is ended");
    assert_eq!(waiting_reason(&case.plan().status, 0), "PostStartHookError");
    case.did(run("app", Hook::PreStop), ended_well());
    assert_eq!(case.begin(), [stop("app")]);
    case.now = at(130);
    assert_eq!(case.plan().actions, [kill("app")], "with the pod's grace period");
    case.observed.record("app", ended(0, 137, 130));
    case.memory.in_flight.clear();
    case.ready("app", 1);
    let plan = case.plan();
    assert_eq!(plan.actions, [start("app", 1), release("app", 1)]);
    assert_eq!(waiting_reason(&plan.status, 0), "PostStartHookError");
    case.policy("Never");
    assert_eq!(case.plan().actions, [], "or left alone, as the policy says");
    assert_eq!(phase(&case.plan().status), "Running");
}

#[test]
fn the_pre_stop_hook_comes_before_the_signal_and_within_the_grace_period() {
    let mut case = healthy();
    with_pre_stop(&mut case);
    case.memory.terminate(30, at(100));
    assert_eq!(case.begin(), [run("app", Hook::PreStop), stop("log")]);
    assert_eq!((case.plan().actions, case.plan().wake_at), (vec![], Some(at(130))));
    case.now = at(110);
    case.did(run("app", Hook::PreStop), failed());
    assert_eq!(case.begin(), [stop("app")], "however it ended");
    case.did(stop("app"), Outcome::Done);
    assert_eq!(case.plan().wake_at, Some(at(130)), "what remains of the grace period");
}

#[test]
fn a_pre_stop_hook_that_outlives_the_grace_period_is_given_up_and_two_seconds_are_left() {
    let mut case = healthy();
    with_pre_stop(&mut case);
    case.set("log", vec![ended(0, 0, 50)]);
    case.policy("Never");
    case.memory.terminate(30, at(100));
    assert_eq!(case.begin(), [run("app", Hook::PreStop)]);
    case.memory.terminate(5, at(102));
    assert_eq!(case.plan().wake_at, Some(at(105)), "a shorter grace period shortens what is waited for");
    case.now = at(105);
    assert_eq!(case.begin(), [abandon("app", Hook::PreStop), stop("app")]);
    case.memory.ended(&abandon("app", Hook::PreStop), None, at(105));
    case.memory.ended(&stop("app"), None, at(105));
    assert_eq!((case.plan().actions, case.plan().wake_at), (vec![], Some(at(107))), "it is given up once");
    case.now = at(107);
    assert_eq!(case.plan().actions, [kill("app")]);
    case.memory.terminate(0, at(106));
    case.now = at(106);
    assert_eq!(case.plan().actions, [kill("app")], "no grace at all is no grace");
}

#[test]
fn a_hook_of_a_container_that_has_ended_is_given_up() {
    let mut case = healthy();
    with_pre_stop(&mut case);
    case.memory.terminate(30, at(100));
    case.begin();
    case.observed.record("app", ended(0, 0, 101));
    assert_eq!(case.plan().actions, [abandon("app", Hook::PreStop)]);
    let post = |case: &mut Case| {
        with_post_start(case);
        case.memory.in_flight.insert(run("app", Hook::PostStart));
        case.memory.terminate(30, at(100));
    };
    case_of("removal does not wait for postStart", post, &[abandon("app", Hook::PostStart), stop("app"), stop("log")]);
}

#[track_caller]
fn case_of(sentence: &str, change: impl FnOnce(&mut Case), actions: &[Action]) {
    super::case(sentence, change, actions);
}

#[test]
fn hooks_that_ended_before_the_agent_was_restarted_are_not_run_again() {
    let recovered = |case: &mut Case| {
        case.app("lifecycle", json!({"postStart": {"sleep": {"seconds": 1}}, "preStop": {"sleep": {"seconds": 1}}}));
        case.observed.hook_ended("app", 0, Hook::PostStart, HookEnd::Succeeded);
        case.observed.hook_ended("app", 0, Hook::PreStop, HookEnd::Succeeded);
    };
    case("a pod that stays", recovered, &[]);
    let going = |case: &mut Case| {
        recovered(case);
        case.memory.terminate(30, at(100));
    };
    case("a pod that goes", going, &[stop("app"), stop("log")]);
    let next = |case: &mut Case| {
        recovered(case);
        case.set("app", vec![ended(0, 1, 50), running(1)]);
    };
    let again = Action::RunHook { container: "app".to_owned(), attempt: 1, hook: Hook::PostStart };
    case("the next attempt has hooks of its own", next, &[again]);
}

#[test]
fn a_container_whose_probe_fails_is_ended_with_the_grace_period_of_the_probe() {
    let unhealthy = |case: &mut Case| {
        case.app("livenessProbe", json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 3}));
        let probed = super::super::observed::Probed { liveness: Some(false), ..Default::default() };
        case.observed.probes.insert("app".to_owned(), probed);
    };
    let mut case = healthy();
    unhealthy(&mut case);
    assert_eq!(case.begin(), [stop("app")]);
    case.memory.ended(&stop("app"), None, at(100));
    assert_eq!(case.plan().wake_at, Some(at(103)));
    case.set("app", vec![ended(0, 143, 101)]);
    case.ready("app", 1);
    case.now = at(102);
    assert_eq!(case.plan().actions, [start("app", 1), release("app", 1)]);
    case.set("app", vec![ended(0, 143, 101), running(1)]);
    assert_eq!(case.plan().actions, [], "what was found of the one before says nothing");
}
