//! Lifecycle hooks: before a container counts as running, and before it is told to stop.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use berth_integration::{
    Agent, Machine, Place,
    agent::condition,
    eventually, fixtures,
    help::{agent, lines, manifest, place},
};
use serde_json::{Value, json};

/// Says that it is there once it can be told to stop, that it was told, and stops.
const OBEDIENT: &str = "trap 'echo term >> /out/log; exit 0' TERM; echo main >> /out/log; touch /up
    while :; do sleep 0.05; done";

/// A directory of the place that is /out in the pods.
fn out(place: &Place) -> PathBuf {
    let out = place.path("out");
    fs::create_dir_all(&out).expect("a directory");
    out
}

/// A pod with one container that runs `script` with these hooks and sees /out.
fn hooked(place: &Place, name: &str, script: &str, lifecycle: Value) -> Value {
    let mut pod = manifest(name, script);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
    pod["spec"]["volumes"] = json!([{ "name": "out", "hostPath": { "path": out(place) } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "out", "mountPath": "/out" }]);
    pod["spec"]["containers"][0]["lifecycle"] = lifecycle;
    pod
}

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

/// Waits until the pods have written that much, and says what.
#[track_caller]
fn written(place: &Place, count: usize) -> Vec<String> {
    let log = out(place).join("log");
    eventually(&format!("{count} lines in {}", log.display()), Duration::from_secs(20), || {
        let lines = lines(&log);
        (lines.len() >= count).then_some(lines)
    })
}

fn waits_for(file: &str) -> String {
    format!("echo begun >> /out/log; while [ ! -e /out/{file} ]; do sleep 0.05; done; echo hook >> /out/log")
}

fn state<'v>(pod: &'v Value, kind: &str) -> &'v Value {
    &pod["status"]["containerStatuses"][0]["state"][kind]
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_runs_when_its_post_start_hook_has_ended_and_others_wait_for_it() {
    let place = place();
    let agent = agent(&place, &[]);
    let mut pod = hooked(&place, "web", OBEDIENT, json!({ "postStart": exec(&waits_for("go")) }));
    let mut second = pod["spec"]["containers"][0].clone();
    second["name"] = json!("second");
    second["lifecycle"] = Value::Null;
    second["command"][2] = json!("echo second >> /out/log; exec sleep 1000");
    pod["spec"]["containers"].as_array_mut().expect("containers").push(second);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    agent.apply("web.json", &pod.to_string());
    let mut first = written(&place, 2);
    first.sort();
    assert_eq!(first, ["begun", "main"]);
    let seen = agent.until("web", "being created", |pod| state(pod, "waiting")["reason"] == "ContainerCreating");
    assert_eq!(condition(&seen, "Ready"), "False");
    assert_eq!(seen["status"]["phase"], "Pending");
    fs::write(out(&place).join("go"), "").expect("let the hook go");
    agent.ready("web");
    assert_eq!(written(&place, 4)[2..], ["hook", "second"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_failing_post_start_hook_ends_the_container() {
    let place = place();
    let agent = agent(&place, &[]);
    let hooks = json!({ "postStart": exec("while [ ! -e /up ]; do sleep 0.05; done; exit 3"), "preStop": exec("echo hook >> /out/log") });
    agent.apply("again.json", &hooked(&place, "again", OBEDIENT, hooks).to_string());
    let pod = agent.until("again", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    let reason = state(&pod, "waiting")["reason"].as_str().unwrap_or_default();
    assert!(["ContainerCreating", "PostStartHookError", "CrashLoopBackOff"].contains(&reason), "{pod:#}");
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 0);
    assert_eq!(written(&place, 3)[..3], ["main", "hook", "term"], "it is stopped like any other");

    let hook = json!({ "postStart": { "tcpSocket": { "port": 80 } } });
    let mut pod = hooked(&place, "once", "exec sleep 1000", hook);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    agent.apply("once.json", &pod.to_string());
    let over = agent.until("once", "over", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(state(&over, "terminated")["exitCode"], 137, "a first process without a handler ignores the signal");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pre_stop_hooks_come_before_the_signal() {
    let place = place();
    let agent = agent(&place, &[]);
    let hook = json!({ "preStop": exec("sleep 0.5; echo hook >> /out/log") });
    agent.apply("exec.json", &hooked(&place, "exec", OBEDIENT, hook).to_string());
    agent.ready("exec");
    written(&place, 1);
    agent.delete("exec.json");
    agent.gone("exec");
    assert_eq!(written(&place, 3), ["main", "hook", "term"]);

    for seconds in [0, 2] {
        fs::remove_file(out(&place).join("log")).expect("remove the log");
        let hook = json!({ "preStop": { "sleep": { "seconds": seconds } } });
        agent.apply("sleep.json", &hooked(&place, "sleep", OBEDIENT, hook).to_string());
        agent.ready("sleep");
        written(&place, 1);
        let begun = Instant::now();
        agent.delete("sleep.json");
        assert_eq!(written(&place, 2), ["main", "term"]);
        assert!(begun.elapsed() >= Duration::from_secs(seconds), "{:?} for {seconds} s", begun.elapsed());
        agent.gone("sleep");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pre_stop_hook_that_outlives_the_grace_period_is_killed() {
    let place = place();
    let agent = agent(&place, &[]);
    agent.apply("first.json", &fixtures::pod("first", "sleep 1000"));
    agent.ready("first");
    fs::write(out(&place).join("log"), "").expect("an empty log");
    let before = Machine::look(&place);
    let hook = json!({ "preStop": exec("trap '' TERM; echo begun >> /out/log; sleep 1000; echo hook >> /out/log") });
    let mut pod = hooked(&place, "slow", OBEDIENT, hook);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    agent.apply("slow.json", &pod.to_string());
    agent.ready("slow");
    written(&place, 1);
    agent.delete("slow.json");
    agent.gone("slow");
    assert_eq!(written(&place, 3), ["main", "begun", "term"], "the signal comes all the same");
    before.assert_clean(&Machine::look(&place));
}

/// A pod whose hook has begun when the agent is killed, and a new agent.
fn agent_killed_in<'p>(place: &'p Place, hook: &str) -> Agent<'p> {
    let mut agent = agent(place, &[]);
    agent.apply("web.json", &hooked(place, "web", OBEDIENT, json!({ hook: exec(&waits_for("go")) })).to_string());
    if hook == "preStop" {
        agent.ready("web");
        agent.delete("web.json");
    }
    let mut begun = written(place, 2);
    begun.sort();
    assert_eq!(begun, ["begun", "main"]);
    agent.kill();
    Agent::start(place, &[]).expect("the agent starts again")
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_agent_killed_in_the_middle_of_pre_stop_finishes_it_and_runs_it_once() {
    let place = place();
    let mut agent = agent_killed_in(&place, "preStop");
    // Still waited for: no signal comes before the hook has ended.
    agent.until("web", "adopted", |pod| state(pod, "running").is_object());
    assert_eq!(written(&place, 2).len(), 2);
    fs::write(out(&place).join("go"), "").expect("let the hook go");
    agent.gone("web");
    assert_eq!(written(&place, 4)[2..], ["hook", "term"]);
    agent.stop();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_agent_killed_in_the_middle_of_post_start_waits_for_it_and_runs_it_once() {
    let place = place();
    let mut agent = agent_killed_in(&place, "postStart");
    let adopted = agent.until("web", "adopted", |pod| pod["status"]["containerStatuses"].is_array());
    assert_eq!(condition(&adopted, "Ready"), "False");
    fs::write(out(&place).join("go"), "").expect("let the hook go");
    agent.ready("web");
    // Not for the next agent either.
    agent.kill();
    let agent = Agent::start(&place, &[]).expect("the agent starts again");
    agent.ready("web");
    agent.delete("web.json");
    agent.gone("web");
    assert_eq!(written(&place, 4)[2..], ["hook", "term"]);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn hooks_can_be_requests() {
    let place = place();
    let listener = place.inside(|| TcpListener::bind("127.0.0.1:9998").expect("listen"));
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            heard.lock().expect("what was asked").push(text);
            // Whatever the status: upstream looks at none.
            write!(stream, "HTTP/1.1 503 Later\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
        }
    });
    let agent = agent(&place, &[]);
    let headers = json!([{ "name": "X-Hook", "value": "of the pod" }]);
    let get = |path: &str, scheme: &str| json!({ "httpGet": { "host": "127.0.0.1", "port": 9998, "path": path, "scheme": scheme, "httpHeaders": headers } });
    let hooks = json!({ "postStart": get("/started?x=1", "HTTP"), "preStop": get("/stopping", "HTTPS") });
    agent.apply("web.json", &hooked(&place, "web", OBEDIENT, hooks).to_string());
    agent.ready("web");
    written(&place, 1);
    agent.delete("web.json");
    agent.gone("web");
    let asked = asked.lock().expect("what was asked");
    let plain: Vec<&str> = asked.iter().filter(|text| text.starts_with("GET ")).map(String::as_str).collect();
    assert_eq!(plain.len(), 2, "{asked:?}");
    assert!(plain[0].starts_with("GET /started?x=1 HTTP/1.1\r\n"), "{plain:?}");
    assert!(plain[0].to_ascii_lowercase().contains("user-agent: kube-lifecycle/"), "{plain:?}");
    assert!(plain.iter().all(|text| text.contains("\r\nX-Hook: of the pod\r\n")), "{plain:?}");
    assert!(plain[1].starts_with("GET /stopping HTTP/1.1\r\n"), "asked again without TLS: {plain:?}");
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_ends_by_the_signal_it_asks_for() {
    let place = place();
    let agent = agent(&place, &[]);
    let script = "trap 'echo usr1 >> /out/log; exit 7' USR1; trap 'echo term >> /out/log; exit 0' TERM
        echo main >> /out/log; while :; do sleep 0.05; done";
    let mut pod = hooked(&place, "own", script, json!({ "stopSignal": "SIGUSR1" }));
    pod["spec"]["os"] = json!({ "name": "linux" });
    agent.apply("own.json", &pod.to_string());
    let ready = agent.ready("own");
    assert_eq!(ready["status"]["containerStatuses"][0]["stopSignal"], "SIGUSR1");
    written(&place, 1);
    agent.delete("own.json");
    agent.gone("own");
    assert_eq!(written(&place, 2), ["main", "usr1"]);
}
