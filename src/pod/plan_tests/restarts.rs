//! Policies of containers, rules by exit code, and pods that are begun anew.

use serde_json::{Value, json};

use super::*;

fn rules(action: &str, operator: &str, codes: &[i32]) -> Value {
    json!([{"action": action, "exitCodes": {"operator": operator, "values": codes}}])
}

#[test]
fn a_container_s_own_policy_goes_before_the_pod_s() {
    let exit = |code: i32, own: &'static str, pods: &'static str| {
        move |case: &mut Case| {
            case.policy(pods);
            case.app("restartPolicy", json!(own));
            case.set("app", vec![ended(0, code, 50)]);
            case.ready("app", 1);
        }
    };
    case("Always in a pod of Never", exit(0, "Always", "Never"), &[start("app", 1), release("app", 1)]);
    case("OnFailure after a failure", exit(3, "OnFailure", "Never"), &[start("app", 1), release("app", 1)]);
    case("OnFailure after success", exit(0, "OnFailure", "Always"), &[]);
    let plan = case("Never in a pod of Always", exit(3, "Never", "Always"), &[]);
    assert_eq!(phase(&plan.status), "Running", "the other container still runs");
}

#[test]
fn rules_restart_by_exit_code() {
    let exit = |code: i32, operator: &'static str| {
        move |case: &mut Case| {
            case.policy("Never");
            case.app("restartPolicy", json!("Never"));
            case.app("restartPolicyRules", rules("Restart", operator, &[42, 43]));
            case.set("app", vec![ended(0, code, 50)]);
            case.ready("app", 1);
        }
    };
    case("a code of the list", exit(43, "In"), &[start("app", 1), release("app", 1)]);
    case("another", exit(1, "In"), &[]);
    case("none of the list", exit(1, "NotIn"), &[start("app", 1), release("app", 1)]);
    case("one of it", exit(42, "NotIn"), &[]);
}

#[test]
fn an_init_container_that_may_not_be_restarted_fails_the_pod() {
    let exit = |code: i32| {
        move |case: &mut Case| {
            let init = &mut case.spec().init_containers.as_mut().expect("init containers")[0];
            init.restart_policy = Some("Never".to_owned());
            init.restart_policy_rules = serde_json::from_value(rules("Restart", "In", &[42])).expect("rules");
            for name in ["app", "log"] {
                case.set(name, vec![]);
            }
            case.set("init", vec![ended(0, code, 50)]);
            case.ready("init", 1);
        }
    };
    case("a rule allows it", exit(42), &[start("init", 1), release("init", 1)]);
    let plan = case("nothing does, whatever the pod's policy", exit(1), &[Action::StopSandbox]);
    assert_eq!(phase(&plan.status), "Failed");
}

/// `app` asks for a new beginning with 42.
fn begun_anew() -> Case {
    let mut case = healthy();
    case.policy("Never");
    case.app("restartPolicy", json!("Never"));
    case.app("restartPolicyRules", rules("RestartAllContainers", "In", &[42]));
    case.memory.status = case.plan().status;
    case.set("app", vec![ended(0, 42, 99)]);
    case
}

fn of_epoch(epoch: u32, attempt: Attempt) -> Attempt {
    Attempt { epoch, ..attempt }
}

fn prepare_anew(container: &str) -> Action {
    Action::PrepareContainer { container: container.to_owned(), attempt: 1, generation: 1, epoch: 1 }
}

#[test]
fn one_end_begins_the_whole_pod_anew() {
    let mut case = begun_anew();
    let plan = case.plan();
    assert_eq!(plan.actions, [kill("log")], "without hooks and grace");
    assert_eq!(condition(&plan.status, "AllContainersRestarting"), "True");
    assert_eq!(condition(&plan.status, "Initialized"), "True", "what was so stays so");
    assert_eq!(phase(&plan.status), "Running");
    assert_eq!(waiting_reason(&plan.status, 0), "RestartingAllContainers");

    case.observed.record("log", ended(0, 137, 100));
    case.observed.images.insert("init".to_owned(), ResolvedImage { attempt: 1, id: "sha256:aa".to_owned() });
    let plan = case.plan();
    assert_eq!(plan.actions, [prepare_anew("init")], "init containers run again");
    assert_eq!(condition(&plan.status, "AllContainersRestarting"), "False");
    let log = plan.status.container_statuses.as_ref().expect("statuses")[1].clone();
    let last = log.last_state.and_then(|state| state.terminated).expect("a last state");
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("RestartingAllContainers")));

    case.observed.record("init", of_epoch(1, ended(1, 0, 101)));
    for name in ["app", "log"] {
        case.observed.images.insert(name.to_owned(), ResolvedImage { attempt: 1, id: "sha256:aa".to_owned() });
    }
    assert_eq!(case.plan().actions, [prepare_anew("app"), prepare_anew("log")]);
    for name in ["app", "log"] {
        case.observed.record(name, of_epoch(1, running(1)));
    }
    let plan = case.plan();
    assert_eq!((phase(&plan.status), plan.actions), ("Running", vec![]));
}

#[test]
fn the_container_that_keeps_asking_is_delayed_and_those_it_takes_along_are_not() {
    let mut case = begun_anew();
    for name in ["init", "app", "log"] {
        case.memory.begun(&start(name, 1), &CRASH_LOOP, at(90));
        case.observed.images.insert(name.to_owned(), ResolvedImage { attempt: 1, id: "sha256:aa".to_owned() });
    }
    case.memory.in_flight.clear();
    case.observed.record("log", ended(0, 137, 99));
    case.observed.record("init", of_epoch(1, ended(1, 0, 100)));
    let plan = case.plan();
    assert_eq!((plan.actions, plan.wake_at), (vec![prepare_anew("log")], Some(at(109))));
    assert_eq!(waiting_reason(&plan.status, 0), "CrashLoopBackOff");
}

#[test]
fn a_failure_after_a_new_beginning_is_a_failure() {
    let mut case = begun_anew();
    case.observed.record("log", ended(0, 137, 99));
    case.observed.record("init", of_epoch(1, ended(1, 3, 101)));
    assert_eq!(phase(&case.plan().status), "Failed");
    let mut case = begun_anew();
    case.observed.record("init", of_epoch(1, ended(1, 0, 101)));
    case.observed.record("app", of_epoch(1, ended(1, 1, 102)));
    case.observed.record("log", of_epoch(1, ended(1, 0, 102)));
    assert_eq!(phase(&case.plan().status), "Failed");
    case.memory.terminate(30, at(103));
    assert_eq!(case.plan().actions, [Action::StopSandbox]);
}

#[test]
fn a_pod_that_goes_is_not_begun_anew() {
    let mut case = begun_anew();
    case.memory.terminate(30, at(100));
    assert_eq!(case.plan().actions, [stop("log")]);
    case.set("log", vec![ended(0, 143, 101)]);
    assert_eq!(phase(&case.plan().status), "Failed");
}

#[test]
fn what_was_prepared_for_the_beginning_before_is_prepared_again() {
    let mut case = begun_anew();
    case.set("app", vec![]);
    case.set("init", vec![ended(0, 0, 9)]);
    case.app("restartPolicyRules", json!(null));
    let init = &mut case.spec().init_containers.as_mut().expect("init containers")[0];
    init.restart_policy = Some("Never".to_owned());
    init.restart_policy_rules = serde_json::from_value(rules("RestartAllContainers", "In", &[0])).expect("rules");
    case.set("log", vec![]);
    case.observed.record("init", of_epoch(1, ended(1, 5, 10)));
    assert_eq!(phase(&case.plan().status), "Failed");
    case.set("init", vec![ended(0, 0, 9), of_epoch(1, running(1))]);
    case.observed.record("init", of_epoch(1, ended(1, 0, 10)));
    case.observed.images.insert("init".to_owned(), ResolvedImage { attempt: 2, id: "sha256:aa".to_owned() });
    let again = Action::PrepareContainer { container: "init".to_owned(), attempt: 2, generation: 1, epoch: 2 };
    assert_eq!(case.plan().actions, [again], "and so on for ever, if that is what the rule says");
}
