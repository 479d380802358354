//! Init containers that stay, and ephemeral ones.

use serde_json::json;

use super::*;
use crate::pod::observed::Probed;

/// A pod with the sidecars `proxy` and `shipper`, one before and one after the init container, healthy.
fn pod_with_sidecars() -> Case {
    let mut case = healthy();
    let sidecar = |name| Container { restart_policy: Some("Always".to_owned()), ..container(name) };
    case.spec().init_containers = Some(vec![sidecar("proxy"), container("init"), sidecar("shipper")]);
    for name in ["proxy", "shipper"] {
        case.observed.record(name, running(0));
        case.ready(name, 0);
    }
    case
}

#[track_caller]
fn case(sentence: &str, change: impl FnOnce(&mut Case), actions: &[Action]) -> Plan {
    let mut case = pod_with_sidecars();
    change(&mut case);
    let plan = case.plan();
    assert_eq!(plan.actions, actions, "{sentence}");
    plan
}

fn probe(case: &mut Case, startup: Option<bool>) {
    let proxy = &mut case.spec().init_containers.as_mut().expect("init containers")[0];
    proxy.startup_probe = Some(serde_json::from_value(json!({"tcpSocket": {"port": 1}})).expect("a probe"));
    case.observed.probes.insert("proxy".to_owned(), Probed { startup, ..Probed::default() });
}

#[test]
fn what_comes_after_a_sidecar_waits_until_it_has_started() {
    let fresh = |case: &mut Case| case.observed.containers.clear();
    let plan = case("the first", fresh, &[start("proxy", 0), release("proxy", 0)]);
    assert_eq!(phase(&plan.status), "Pending");
    let starting = |case: &mut Case| {
        fresh(case);
        case.set("proxy", vec![running(0)]);
        probe(case, None);
    };
    let plan = case("its startup probe is waited for", starting, &[]);
    assert_eq!(phase(&plan.status), "Pending");
    let started = |case: &mut Case| {
        starting(case);
        probe(case, Some(true));
    };
    case("then the init container", started, &[start("init", 0), release("init", 0)]);
    let initialized = |case: &mut Case| {
        started(case);
        case.set("init", vec![ended(0, 0, 20)]);
    };
    let plan = case("then the next sidecar", initialized, &[start("shipper", 0), release("shipper", 0)]);
    assert_eq!(condition(&plan.status, "Initialized"), "False");
    let all = |case: &mut Case| {
        initialized(case);
        case.set("shipper", vec![running(0)]);
    };
    let plan = case(
        "then the main containers",
        all,
        &[start("app", 0), release("app", 0), start("log", 0), release("log", 0)],
    );
    assert_eq!(condition(&plan.status, "Initialized"), "True");
    assert_eq!(condition(&plan.status, "Ready"), "False");
}

#[test]
fn a_healthy_pod_with_sidecars_needs_nothing() {
    let plan = case("nothing", |_| {}, &[]);
    assert_eq!((phase(&plan.status), condition(&plan.status, "Ready")), ("Running", "True"));
    assert_eq!(plan.status.init_container_statuses.expect("statuses").len(), 3);
}

#[test]
fn a_sidecar_is_restarted_whatever_the_pods_policy_and_holds_back_nothing_that_was_before() {
    let crashed = |case: &mut Case| {
        case.policy("Never");
        case.set("proxy", vec![ended(0, 0, 50)]);
        case.ready("proxy", 1);
    };
    let plan = case("even after success", crashed, &[start("proxy", 1), release("proxy", 1)]);
    assert_eq!(condition(&plan.status, "Initialized"), "True", "once initialized, always so");
    assert_eq!(condition(&plan.status, "ContainersReady"), "False");
    let early = |case: &mut Case| {
        crashed(case);
        case.set("app", vec![]);
        case.set("log", vec![]);
        case.set("shipper", vec![]);
    };
    case(
        "the next does not wait for it again",
        early,
        &[start("proxy", 1), release("proxy", 1), start("shipper", 0), release("shipper", 0)],
    );
    let unready = |case: &mut Case| {
        let sidecars = case.spec().init_containers.as_mut().expect("init containers");
        sidecars[2].readiness_probe = Some(Default::default());
    };
    let plan = case("readiness of a sidecar is the pod's", unready, &[]);
    assert_eq!(condition(&plan.status, "Ready"), "False");
}

#[test]
fn sidecars_are_ended_in_reverse_order_after_the_main_containers() {
    let mut case = pod_with_sidecars();
    case.memory.terminate(30, at(100));
    assert_eq!(case.begin(), [stop("app"), stop("log")]);
    for name in ["app", "log"] {
        case.did(stop(name), Outcome::Done);
    }
    case.now = at(110);
    case.set("app", vec![ended(0, 143, 110)]);
    assert_eq!((case.plan().actions, case.plan().wake_at), (vec![], Some(at(130))), "not before all of them");
    case.set("log", vec![ended(0, 143, 110)]);
    assert_eq!(case.begin(), [stop("shipper")]);
    case.did(stop("shipper"), Outcome::Done);
    assert_eq!(case.plan().wake_at, Some(at(130)), "there is one grace period for all");
    case.set("shipper", vec![ended(0, 143, 111)]);
    assert_eq!(case.plan().actions, [stop("proxy")]);
    case.set("proxy", vec![ended(0, 143, 112)]);
    assert_eq!(case.plan().actions, [Action::StopSandbox]);
}

#[test]
fn pre_stop_hooks_of_sidecars_do_not_wait_for_their_turn() {
    let mut case = pod_with_sidecars();
    let sidecars = case.spec().init_containers.as_mut().expect("init containers");
    sidecars[0].lifecycle = serde_json::from_value(json!({"preStop": {"sleep": {"seconds": 1}}})).expect("hooks");
    case.memory.terminate(30, at(100));
    let hook = Action::RunHook { container: "proxy".to_owned(), attempt: 0, hook: Hook::PreStop };
    assert_eq!(case.begin(), [stop("app"), stop("log"), hook.clone()]);
    case.did(hook, Outcome::Hook(HookEnd::Succeeded));
    assert_eq!(case.plan().actions, [], "its signal does");
}

#[test]
fn sidecars_that_wait_in_vain_are_ended_with_the_grace_period() {
    let mut case = pod_with_sidecars();
    case.memory.terminate(30, at(100));
    case.begin();
    case.memory.in_flight.clear();
    case.now = at(130);
    assert_eq!(case.begin(), [kill("app"), kill("log"), stop("proxy"), stop("shipper")]);
    for name in ["app", "log"] {
        case.set(name, vec![ended(0, 137, 130)]);
    }
    case.memory.in_flight.clear();
    assert_eq!(case.plan().wake_at, Some(at(132)));
    case.now = at(132);
    assert_eq!(case.plan().actions, [kill("proxy"), kill("shipper")]);
}

#[test]
fn a_pod_is_over_when_its_main_containers_are_and_sidecars_have_been_ended() {
    let over = |code: i32| {
        move |case: &mut Case| {
            case.policy("OnFailure");
            case.set("app", vec![ended(0, 0, 50)]);
            case.set("log", vec![ended(0, code, 50)]);
            if code != 0 {
                case.policy("Never");
            }
        }
    };
    let plan = case("sidecars do not count", over(0), &[stop("shipper")]);
    assert_eq!(phase(&plan.status), "Running");
    let ended_all = |case: &mut Case| {
        over(0)(case);
        case.set("proxy", vec![ended(0, 1, 60)]);
        case.set("shipper", vec![ended(0, 143, 60)]);
    };
    let plan = case("how they end does not matter", ended_all, &[Action::StopSandbox]);
    assert_eq!(phase(&plan.status), "Succeeded");
    case("nor does success of the others", over(3), &[stop("shipper")]);
    let crashed = |case: &mut Case| {
        over(0)(case);
        case.set("shipper", vec![ended(0, 1, 60)]);
    };
    case("one that ends meanwhile is not restarted", crashed, &[stop("proxy")]);
}

#[test]
fn ephemeral_containers_run_once_beside_everything_and_count_for_nothing() {
    let debug = |case: &mut Case| {
        let ephemeral = json!([{"name": "debug", "image": "busybox:1", "targetContainerName": "app"}]);
        case.spec().ephemeral_containers = serde_json::from_value(ephemeral).expect("containers");
        case.ready("debug", 0);
    };
    let plan = case("started at once", debug, &[start("debug", 0), release("debug", 0)]);
    assert_eq!((phase(&plan.status), condition(&plan.status, "Ready")), ("Running", "True"));
    let stuck = |case: &mut Case| {
        debug(case);
        case.set("init", vec![running(0)]);
        case.set("app", vec![]);
        case.set("log", vec![]);
        case.set("shipper", vec![]);
        case.spec().ephemeral_containers.as_mut().expect("containers")[0].target_container_name = None;
    };
    case("even while the pod is stuck in an init container", stuck, &[start("debug", 0), release("debug", 0)]);
    let targetless = |case: &mut Case| {
        debug(case);
        case.set("app", vec![ended(0, 1, 95)]);
        case.memory.begun(&start("app", 1), &CRASH_LOOP, at(90));
        case.memory.in_flight.clear();
    };
    case("but not before the container it looks at runs", targetless, &[]);
    let over = |case: &mut Case| {
        debug(case);
        case.set("debug", vec![ended(0, 7, 60)]);
    };
    let plan = case("never again", over, &[]);
    assert_eq!((phase(&plan.status), condition(&plan.status, "Ready")), ("Running", "True"));
    let status = &plan.status.ephemeral_container_statuses.as_ref().expect("statuses")[0];
    let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref()).expect("terminated");
    assert_eq!((status.ready, terminated.exit_code), (false, 7));
    let finished = |case: &mut Case| {
        debug(case);
        case.set("debug", vec![running(0)]);
        case.policy("Never");
        for name in ["app", "log"] {
            case.set(name, vec![ended(0, 0, 50)]);
        }
    };
    case("it does not keep a finished pod alive", finished, &[stop("debug"), stop("shipper")]);
}
