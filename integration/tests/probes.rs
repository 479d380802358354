//! Probes: what restarts a container, what makes it ready, what survives the agent, and what a probe leaves behind.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_integration::{
    Agent, Machine, Place,
    agent::condition,
    eventually,
    help::{agent, config, container, manifest, place, sh},
};
use serde_json::{Value, json};

/// A pod whose container runs `script` and has these fields, too.
fn probed(name: &str, script: &str, fields: Value) -> Value {
    let mut pod = manifest(name, script);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    for (field, value) in fields.as_object().expect("fields") {
        pod["spec"]["containers"][0][field] = value.clone();
    }
    pod
}

/// A probe that asks every second and gives up at once.
fn impatient(handler: Value) -> Value {
    let mut probe = json!({ "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1 });
    for (field, value) in handler.as_object().expect("a handler") {
        probe[field] = value.clone();
    }
    probe
}

fn shell(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

fn restarts(pod: &Value) -> u64 {
    container(pod, 0)["restartCount"].as_u64().expect("a count")
}

fn apply(agent: &Agent, name: &str, pod: &Value) {
    agent.apply(&format!("{name}.json"), &pod.to_string());
}

/// Nothing waits between restarts.
fn hasty(place: &Place) -> String {
    config(place, "crashLoopBackOff:\n  maxContainerRestartPeriod: 1s", "")
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_that_fails_its_liveness_probe_is_restarted_whatever_asks() {
    let place = place();
    let file = hasty(&place);
    let before = Machine::look(&place);
    let mut agent = agent(&place, &["--config", &file]);
    let dead = "trap 'exit 3' TERM; sleep 1000 & wait";
    let never = "trap 'exit 3' TERM; nc -ll -p 8080 -e sleep 1000 & wait";
    let checking = shell("test ! -e /gone || { echo it is gone; exit 1; }");
    let serving = "httpd -p 8080 -h /tmp; trap 'exit 3' TERM; sleep 1000 & wait";
    let pods = [
        ("exec", "trap 'exit 3' TERM; sleep 2; touch /gone; sleep 1000 & wait", checking, "it is gone"),
        ("silent", never, json!({ "httpGet": { "port": "web" } }), "Client.Timeout exceeded while awaiting headers"),
        ("tcp", dead, json!({ "tcpSocket": { "port": 8080 } }), "connect: connection refused"),
        ("grpc", dead, json!({ "grpc": { "port": 8080 } }), "error: failed to connect service at"),
        (
            "missing",
            serving,
            json!({ "httpGet": { "port": 8080, "path": "/x" } }),
            "HTTP probe failed with statuscode: 404",
        ),
    ];
    for (name, script, handler, _) in &pods {
        let ports = json!([{ "name": "web", "containerPort": 8080 }]);
        let fields = json!({ "livenessProbe": impatient(handler.clone()), "ports": ports });
        apply(&agent, name, &probed(name, script, fields));
    }
    for (name, .., said) in &pods {
        let mut last = 0;
        eventually(&format!("{name} is restarted twice; agent:\n{}", agent.log()), Duration::from_secs(30), || {
            let count = agent.pod(name).filter(|pod| container(pod, 0).is_object()).map_or(0, |pod| restarts(&pod));
            assert!(count >= last, "{name}: {count} after {last}");
            last = count;
            (count >= 2).then_some(())
        });
        let pod = agent.pod(name).expect("it is there");
        let ended = &container(&pod, 0)["lastState"]["terminated"];
        assert_eq!(ended["exitCode"], 3, "{name} had time to end by itself: {:#}", pod["status"]);
        let told = agent.ok(&["events", name]);
        assert!(told.contains("Liveness probe failed: ") && told.contains(said), "{told}");
        assert!(told.contains("Container app failed liveness probe, will be restarted"), "{told}");
        assert!(!told.contains("Stopping container"), "one event for one end:\n{told}");
    }
    for (name, ..) in &pods {
        agent.delete(&format!("{name}.json"));
    }
    for (name, ..) in &pods {
        agent.gone(name);
    }
    agent.stop();
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_that_is_never_restarted_fails_by_its_liveness_probe() {
    let place = place();
    let agent = agent(&place, &[]);
    let mut pod = probed("job", "sleep 1000", json!({ "livenessProbe": impatient(shell("exit 1")) }));
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1000);
    // Its first process ignores the stop signal; the probe's own grace period ends it.
    pod["spec"]["containers"][0]["livenessProbe"]["terminationGracePeriodSeconds"] = json!(1);
    apply(&agent, "job", &pod);
    let pod = agent.until("job", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!((restarts(&pod), &container(&pod, 0)["state"]["terminated"]["exitCode"]), (0, &json!(137)));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn readiness_follows_the_probe_and_restarts_nothing() {
    let place = place();
    let agent = agent(&place, &[]);
    let probe = impatient(json!({ "httpGet": { "port": 8080, "path": "/ready" } }));
    let script = "mkdir /www; exec httpd -f -p 8080 -h /www";
    apply(&agent, "web", &probed("web", script, json!({ "readinessProbe": probe })));
    let running = |pod: &Value| container(pod, 0)["state"]["running"].is_object();
    let pod = agent.until("web", "running and not ready", |pod| running(pod) && condition(pod, "Ready") == "False");
    assert_eq!((&container(&pod, 0)["started"], &container(&pod, 0)["ready"]), (&json!(true), &json!(false)));
    for (change, ready) in [("touch /www/ready", "True"), ("rm /www/ready", "False"), ("touch /www/ready", "True")] {
        sh(&agent, "web", change);
        let pod = agent.until("web", &format!("ready: {ready}"), |pod| condition(pod, "Ready") == ready);
        assert_eq!(condition(&pod, "ContainersReady"), ready);
        assert_eq!(restarts(&pod), 0);
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn nothing_else_is_asked_before_a_container_has_started() {
    let place = place();
    let agent = agent(&place, &[]);
    let up = || impatient(shell("test -e /up"));
    let mut startup = up();
    startup["failureThreshold"] = json!(30);
    let fields = json!({ "startupProbe": startup, "livenessProbe": up(), "readinessProbe": up() });
    apply(&agent, "slow", &probed("slow", "sleep 4; touch /up; exec sleep 1000", fields));
    let started = |pod: &Value| container(pod, 0)["started"] == true;
    let waiting = |pod: &Value| container(pod, 0)["state"]["running"].is_object() && !started(pod);
    let pod = agent.until("slow", "running, not started", waiting);
    assert_eq!(condition(&pod, "Ready"), "False");
    let pod = agent.ready("slow");
    assert!(started(&pod));
    assert_eq!(restarts(&pod), 0, "liveness, which would have failed, was not asked");
}

/// cgroups of execs in this place.
fn exec_groups(place: &Place) -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with("exec-") {
                    found.push(entry.path());
                }
                walk(&entry.path(), found);
            }
        }
    }
    let mut found = Vec::new();
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        walk(&hierarchy.join(place.cgroup_root.trim_start_matches('/')), &mut found);
    }
    found
}

/// A probe that starts what does not want to be found, and hangs while `/hang` exists.
const HANG: &str = "test -e /hang || exit 0; echo >> /runs; trap '' TERM HUP; \
                    (setsid sh -c 'sleep 1001 & sleep 1002' &); (sleep 1003 &); sleep 1004; true";

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_probe_that_hangs_leaves_no_process_and_no_zombie() {
    let place = place();
    let file = config(&place, "podPidsLimit: 24", "");
    let before = Machine::look(&place);
    let mut agent = agent(&place, &["--config", &file]);
    let readiness = impatient(shell(HANG));
    // The first process waits for nobody: what is left to it stays a zombie for ever.
    apply(&agent, "app", &probed("app", "touch /hang; exec sleep 1000", json!({ "readinessProbe": readiness })));
    let runs = || sh(&agent, "app", "wc -l < /runs 2>/dev/null || echo 0").trim().parse::<u32>().expect("a number");
    agent.until("app", "running", |pod| container(pod, 0)["state"]["running"].is_object());
    // Each run has six processes: without an end to them the limit of processes would end the fifth.
    eventually("seven runs that hang", Duration::from_secs(40), || (runs() >= 7).then_some(()));
    assert_ne!(condition(&agent.pod("app").expect("it is there"), "Ready"), "True");
    sh(&agent, "app", "rm /hang");
    agent.ready("app");
    let left = sh(&agent, "app", "ps -o stat,comm");
    let others: Vec<&str> = left.lines().filter(|line| line.contains("sleep") || line.starts_with('Z')).collect();
    assert_eq!(others.len(), 1, "the first process alone:\n{left}");
    assert_eq!(restarts(&agent.ready("app")), 0);
    // The probe counts for the pod: it cannot have more processes than that may. (It tries once; then it loops, as even a
    // `sleep` would be one too many.)
    let greedy = "test -e /tried && exit 0; : > /tried; sh -c 'for i in $(seq 50); do sleep 1005 & done; : > /all'; \
                  while :; do :; done";
    let fields = json!({ "readinessProbe": impatient(shell(greedy)) });
    apply(&agent, "greedy", &probed("greedy", "exec sleep 1000", fields));
    agent.ready("greedy");
    sh(&agent, "greedy", "test -e /tried && test ! -e /all");
    assert_eq!(sh(&agent, "greedy", "ps -o comm").matches("sleep").count(), 1, "the first process alone");
    for name in ["app", "greedy"] {
        agent.delete(&format!("{name}.json"));
        agent.gone(name);
    }
    agent.stop();
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_probes_found_outlives_the_agent() {
    let place = place();
    let mut agent = agent(&place, &[]);
    // Asked once; the next time is a long way off.
    let rare = |handler: Value| {
        let mut probe = impatient(handler);
        probe["periodSeconds"] = json!(600);
        probe
    };
    let script = "exec sleep 1000";
    let fields = json!({ "startupProbe": rare(shell("true")), "readinessProbe": rare(shell("true")) });
    apply(&agent, "ready", &probed("ready", script, fields));
    apply(&agent, "unready", &probed("unready", script, json!({ "readinessProbe": rare(shell("false")) })));
    let hanging = json!({ "readinessProbe": { "timeoutSeconds": 600, "exec": { "command": ["sh", "-c", "touch /begun; sleep 999"] } } });
    apply(&agent, "hanging", &probed("hanging", script, hanging));
    let first = agent.ready("ready");
    agent.until("unready", "running", |pod| container(pod, 0)["state"]["running"].is_object());
    agent.until("hanging", "running", |pod| container(pod, 0)["state"]["running"].is_object());
    eventually("the probe hangs", Duration::from_secs(10), || (!exec_groups(&place).is_empty()).then_some(()));
    agent.kill();
    eventually("the probe ends with the agent", Duration::from_secs(10), || {
        exec_groups(&place).is_empty().then_some(())
    });
    let agent = Agent::start(&place, &[]).expect("an agent");
    for _ in 0..20 {
        for (name, ready) in [("ready", "True"), ("unready", "False"), ("hanging", "False")] {
            let pod = agent.pod(name).unwrap_or_else(|| panic!("{name} is known at once"));
            assert_eq!((condition(&pod, "Ready"), restarts(&pod)), (ready, 0), "{name}");
        }
    }
    let again = agent.ready("ready");
    assert_eq!(container(&again, 0)["containerID"], container(&first, 0)["containerID"]);
    assert_eq!(container(&again, 0)["started"], true);
}
