//! Sidecars, restart rules, and pods that are begun anew.

use std::{fs, path::PathBuf, time::Duration};

use berth_integration::{
    Place,
    agent::condition,
    eventually,
    help::{agent, lines, manifest, place},
};
use serde_json::{Value, json};

fn out(place: &Place) -> PathBuf {
    let out = place.path("out");
    fs::create_dir_all(&out).expect("a directory");
    out
}

/// A container that runs `script` and sees /out.
fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": "busybox:1", "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
    })
}

fn pod(place: &Place, name: &str, init: Vec<Value>, main: Vec<Value>) -> Value {
    let mut pod = manifest(name, "");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
    pod["spec"]["volumes"] = json!([{ "name": "out", "hostPath": { "path": out(place) } }]);
    pod["spec"]["initContainers"] = json!(init);
    pod["spec"]["containers"] = json!(main);
    pod
}

/// Says when it has begun and when it is told to end.
fn obedient(name: &str) -> String {
    format!(
        "trap 'echo term-{name} >> /out/log; exit 0' TERM; echo start-{name} >> /out/log; while :; do sleep 0.05; done"
    )
}

fn sidecar(name: &str, script: &str) -> Value {
    let mut container = container(name, script);
    container["restartPolicy"] = json!("Always");
    container
}

#[track_caller]
fn written(place: &Place, count: usize) -> Vec<String> {
    let log = out(place).join("log");
    eventually(&format!("{count} lines in {}", log.display()), Duration::from_secs(20), || {
        let lines = lines(&log);
        (lines.len() >= count).then_some(lines)
    })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn sidecars_start_in_order_and_end_in_reverse_order_after_the_main_containers() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let hooks = |name: &str| {
        let exec = |script: String| json!({ "exec": { "command": ["sh", "-c", script] } });
        let started = exec(format!("sleep 0.3; echo hook-{name} >> /out/log"));
        json!({ "postStart": started, "preStop": exec(format!("touch /out/pre-{name}")) })
    };
    let [mut a, mut b] = ["a", "b"].map(|name| sidecar(name, &obedient(name)));
    a["lifecycle"] = hooks("a");
    b["lifecycle"] = hooks("b");
    // Ends well only if the preStop hooks of the sidecars have run before it has ended.
    let main = "
        trap 'while [ ! -e /out/pre-a ] || [ ! -e /out/pre-b ]; do sleep 0.05; done; echo term-main >> /out/log; exit 0' TERM
        echo start-main >> /out/log
        while :; do sleep 0.05; done";
    let init = container("init", "echo init >> /out/log");
    agent.apply("web.json", &pod(&place, "web", vec![a, init, b], vec![container("main", main)]).to_string());
    let ready = agent.ready("web");
    assert_eq!(written(&place, 6), ["start-a", "hook-a", "init", "start-b", "hook-b", "start-main"]);
    let statuses = ready["status"]["initContainerStatuses"].as_array().expect("statuses").clone();
    assert!(statuses.iter().all(|status| status["ready"] == true), "{statuses:#?}");
    assert_eq!(statuses[0]["started"], true);
    agent.delete("web.json");
    agent.gone("web");
    assert_eq!(written(&place, 9)[6..], ["term-main", "term-b", "term-a"]);
    agent.stop();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_sidecar_is_restarted_whatever_the_policy_and_ends_with_its_pod() {
    let place = place();
    let agent = agent(&place, &[]);
    let shaky = "if [ ! -e /out/n ]; then touch /out/n; exit 0; fi; echo again >> /out/log; exec sleep 1000";
    let main = "while [ ! -e /out/done ]; do sleep 0.05; done; exit 0";
    let mut job = pod(&place, "job", vec![sidecar("shaky", shaky)], vec![container("main", main)]);
    job["spec"]["restartPolicy"] = json!("Never");
    job["spec"]["terminationGracePeriodSeconds"] = json!(1);
    agent.apply("job.json", &job.to_string());
    written(&place, 1);
    let running = agent.ready("job");
    assert_eq!(running["status"]["initContainerStatuses"][0]["restartCount"], 1);
    fs::write(out(&place).join("done"), "").expect("let it end");
    let over = agent.until("job", "over", |pod| pod["status"]["phase"] == "Succeeded");
    let sidecar = &over["status"]["initContainerStatuses"][0]["state"]["terminated"];
    assert_eq!(sidecar["exitCode"], 137, "it did not obey: {over:#}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn rules_restart_a_container_by_its_exit_code() {
    let place = place();
    let agent = agent(&place, &[]);
    let script = "echo x >> /out/log; [ $(wc -l < /out/log) -ge 2 ] && exit 1; exit 42";
    let mut main = container("main", script);
    main["restartPolicy"] = json!("Never");
    main["restartPolicyRules"] =
        json!([{ "action": "Restart", "exitCodes": { "operator": "In", "values": [41, 42] } }]);
    agent.apply("rules.json", &pod(&place, "rules", vec![], vec![main]).to_string());
    let over = agent.until("rules", "over", |pod| pod["status"]["phase"] == "Failed");
    let status = &over["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1);
    assert_eq!(status["state"]["terminated"]["exitCode"], 1);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 42);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_rule_can_begin_the_whole_pod_anew() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let init = container("init", "echo init >> /out/log");
    let mut main = container("main", "while [ ! -e /out/fail ]; do sleep 0.05; done; rm /out/fail; exit 42");
    main["restartPolicy"] = json!("Never");
    main["restartPolicyRules"] =
        json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } }]);
    // Would take its time if it were asked.
    let mut deaf = container("deaf", "trap '' TERM; echo deaf >> /out/log; while :; do sleep 0.05; done");
    deaf["lifecycle"] = json!({ "preStop": { "exec": { "command": ["sh", "-c", "echo hook >> /out/log"] } } });
    let mut web = pod(&place, "web", vec![init], vec![main, deaf]);
    web["spec"]["restartPolicy"] = json!("Never");
    web["spec"]["terminationGracePeriodSeconds"] = json!(0);
    agent.apply("web.json", &web.to_string());
    let before = agent.ready("web");
    assert_eq!(written(&place, 2), ["init", "deaf"]);
    fs::write(out(&place).join("fail"), "").expect("let it fail");
    assert_eq!(written(&place, 4)[2..], ["init", "deaf"], "without hooks");
    let after = agent.ready("web");
    for (list, index) in [("initContainerStatuses", 0), ("containerStatuses", 0), ("containerStatuses", 1)] {
        assert_eq!(after["status"][list][index]["restartCount"], 1, "{after:#}");
    }
    let killed = &after["status"]["containerStatuses"][1]["lastState"]["terminated"];
    assert_eq!((&killed["exitCode"], &killed["reason"]), (&json!(137), &json!("RestartingAllContainers")));
    assert_eq!(condition(&after, "AllContainersRestarting"), "False");
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    // What a new beginning is follows from the records: a restarted agent does not begin once more.
    agent.kill();
    let agent = berth_integration::Agent::start(&place, &[]).expect("the agent starts again");
    agent.ready("web");
    agent.delete("web.json");
    agent.gone("web");
    assert_eq!(written(&place, 4).len(), 4);
}
