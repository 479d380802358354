//! The main job: pods from manifests to running processes, and nothing left behind.

use std::{fs, io::Write, time::Duration};

use berth_integration::{
    Agent, Machine, Place,
    agent::condition,
    eventually, fixtures,
    help::{self, place},
};
use serde_json::{Value, json};

fn agent<'a>(place: &'a Place) -> Agent<'a> {
    help::agent(place, &[])
}

fn address(pod: &Value) -> String {
    pod["status"]["podIP"].as_str().unwrap_or_else(|| panic!("no address: {:#}", pod["status"])).to_owned()
}

fn get(place: &Place, address: &str, port: u16) -> Option<String> {
    help::get(place, &format!("{address}:{port}"))
}

fn exec(agent: &Agent, pod: &str, script: &str) -> String {
    agent.ok(&["exec", pod, "--", "sh", "-c", script])
}

fn container(pod: &Value, index: usize) -> &Value {
    &pod["status"]["containerStatuses"][index]
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_manifest_becomes_a_pod_and_leaves_nothing_when_it_goes() {
    let place = place();
    let mut agent = agent(&place);
    // The bridge, the table and the QoS cgroups are the agent's, made for the first pod and removed with the agent.
    agent.apply("first.json", &fixtures::pod("first", "sleep 1000"));
    agent.ready("first");
    let before = Machine::look(&place);
    let script = "mkdir /www; echo hello > /www/index.html; echo started; exec httpd -f -p 8080 -h /www";
    agent.apply("web.json", &fixtures::pod("web", script));
    let pod = agent.ready("web");
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    assert_eq!(uid.len(), 32, "a static pod's uid is 32 hex digits: {uid}");
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert!(container(&pod, 0)["containerID"].as_str().is_some_and(|id| id.starts_with("berth://")));
    assert!(container(&pod, 0)["imageID"].as_str().is_some_and(|id| id.contains("sha256:")));
    let answer = eventually("an answer over HTTP", Duration::from_secs(5), || get(&place, &address(&pod), 8080));
    assert!(answer.ends_with("hello\n"), "{answer}");
    assert_eq!(agent.ok(&["logs", pod["metadata"]["name"].as_str().expect("a name")]), "started\n");
    agent.delete("web.json");
    agent.gone("web");
    before.assert_clean(&Machine::look(&place));
    agent.delete("first.json");
    agent.gone("first");
    agent.stop();
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_agent_that_stops_without_pods_leaves_the_machine_as_it_was() {
    let place = place();
    let before = Machine::look(&place);
    let mut agent = agent(&place);
    agent.apply("web.json", &fixtures::pod("web", "sleep 1000"));
    agent.ready("web");
    agent.delete("web.json");
    agent.gone("web");
    agent.stop();
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn pods_reach_each_other_the_host_and_themselves() {
    let place = place();
    let agent = agent(&place);
    let server = "mkdir /www; echo from-$HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www";
    agent.apply("a.json", &fixtures::pod("a", server));
    agent.apply("b.json", &fixtures::pod("b", server));
    let (a, b) = (address(&agent.ready("a")), address(&agent.ready("b")));
    let name = |pod: &str| agent.pod(pod).expect("the pod")["metadata"]["name"].as_str().expect("a name").to_owned();
    // Debian's static busybox crashes in wget (it resolves names through glibc); nc does not.
    let fetch = |from: &str, to: &str| {
        let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {to} 8080");
        exec(&agent, &name(from), &format!("for i in 1 2 3 4 5 6 7 8; do {get} && break; sleep 0.2; done"))
    };
    let answer = fetch("a", &b);
    assert!(answer.contains("from-b"), "pod to pod: {answer}");
    let answer = fetch("a", &a);
    assert!(answer.contains("from-a"), "a pod to itself: {answer}");
    assert!(get(&place, &a, 8080).is_some_and(|answer| answer.contains("from-a")), "host to pod");
    let hosts = exec(&agent, &name("a"), "cat /etc/hosts");
    assert!(hosts.contains(&a) && hosts.contains(&name("a")), "{hosts}");
    assert_eq!(exec(&agent, &name("a"), "hostname").trim(), name("a"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn containers_are_confined_as_the_kubelet_confines_them() {
    let place = place();
    let agent = agent(&place);
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("confined", "sleep 1000")).expect("JSON");
    manifest["spec"]["containers"][0]["securityContext"] = json!({
        "runAsUser": 1000,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    agent.apply("confined.json", &manifest.to_string());
    agent.apply("plain.json", &fixtures::pod("plain", "sleep 1000"));
    let confined = agent.ready("confined")["metadata"]["name"].as_str().expect("a name").to_owned();
    let plain = agent.ready("plain")["metadata"]["name"].as_str().expect("a name").to_owned();
    let status = exec(&agent, &confined, "cat /proc/1/status");
    let field = |status: &str, name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default().to_owned();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field(&status, "CapBnd"), "0000000000000000");
    assert_eq!(field(&status, "CapEff"), "0000000000000000");
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "Uid"), "1000 1000 1000 1000");
    assert!(exec(&agent, &confined, "touch /x 2>&1 || true").contains("Read-only file system"));
    let status = exec(&agent, &plain, "cat /proc/1/status");
    assert_eq!(field(&status, "CapBnd"), "00000000a80425fb", "the 14 default capabilities");
    assert_eq!(field(&status, "CapEff"), "00000000a80425fb");
    assert_eq!(field(&status, "CapInh"), "0000000000000000");
    assert_eq!(field(&status, "CapAmb"), "0000000000000000");
    assert_eq!(field(&status, "Uid"), "0 0 0 0");
    // Masked files read as empty and masked directories list as empty; what this kernel does not have is neither.
    assert_eq!(exec(&agent, &plain, "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c").trim(), "0");
    assert_eq!(exec(&agent, &plain, "ls -A /sys/firmware | wc -l").trim(), "0");
    assert!(exec(&agent, &plain, "(echo 1 > /proc/sys/kernel/printk) 2>&1 || true").contains("Read-only"));
    assert_eq!(exec(&agent, &plain, "ls /proc | grep -c '^[0-9]'; cat /proc/1/comm").lines().last(), Some("sleep"));
    let devices = exec(&agent, &plain, "ls /dev");
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdin"] {
        assert!(devices.lines().any(|line| line == device), "{device} in {devices}");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn limits_bind_and_an_oom_kill_is_called_that() {
    let place = place();
    let agent = agent(&place);
    let script = "x=$(head -c 200000000 /dev/zero | tr '\\0' 'x'); echo survived ${#x}; sleep 1000";
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("hungry", script)).expect("JSON");
    manifest["spec"]["restartPolicy"] = json!("Never");
    manifest["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": "32Mi", "cpu": "500m" } });
    agent.apply("hungry.json", &manifest.to_string());
    let pod = agent.until("hungry", "ended", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    let ended = &container(&pod, 0)["state"]["terminated"];
    assert_eq!((ended["reason"].as_str(), ended["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)), "{ended:#}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn restart_policies_init_containers_and_exit_codes() {
    let place = place();
    let agent = agent(&place);
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("job", "cat /work/from-init; exit 3")).expect("JSON");
    manifest["spec"]["restartPolicy"] = json!("Never");
    manifest["spec"]["volumes"] = json!([{ "name": "work", "emptyDir": {} }]);
    let mount = json!([{ "name": "work", "mountPath": "/work" }]);
    manifest["spec"]["containers"][0]["volumeMounts"] = mount.clone();
    manifest["spec"]["initContainers"] = json!([
        { "name": "one", "image": "busybox:1", "command": ["sh", "-c", "echo one > /work/from-init"], "volumeMounts": mount },
        { "name": "two", "image": "busybox:1", "command": ["sh", "-c", "echo two >> /work/from-init"], "volumeMounts": mount },
    ]);
    agent.apply("job.json", &manifest.to_string());
    let pod = agent.until("job", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(container(&pod, 0)["state"]["terminated"]["exitCode"], 3);
    assert_eq!(pod["status"]["initContainerStatuses"][1]["state"]["terminated"]["exitCode"], 0);
    let name = pod["metadata"]["name"].as_str().expect("a name");
    assert_eq!(agent.ok(&["logs", name, "-c", "app"]), "one\ntwo\n");

    agent.apply("crash.json", &fixtures::pod("crash", "echo attempt; exit 7"));
    let pod = agent.until("crash", "in CrashLoopBackOff", |pod| {
        container(pod, 0)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(container(&pod, 0)["restartCount"], 1, "the first restart is immediate");
    assert_eq!(container(&pod, 0)["lastState"]["terminated"]["exitCode"], 7);
    assert_eq!(condition(&pod, "Ready"), "False");
    let name = pod["metadata"]["name"].as_str().expect("a name");
    assert_eq!(agent.ok(&["logs", name, "-p"]), "attempt\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn containers_outlive_the_agent_and_nothing_is_lost() {
    let place = place();
    let mut agent = agent(&place);
    let script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; sleep 1000";
    agent.apply("counter.json", &fixtures::pod("counter", script));
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("quits", "sleep 1.5; exit 9")).expect("JSON");
    manifest["spec"]["restartPolicy"] = json!("Never");
    agent.apply("quits.json", &manifest.to_string());
    agent.ready("quits");
    let before = agent.ready("counter");
    agent.kill();
    std::thread::sleep(Duration::from_secs(2)); // the pods run on, and one ends, with nobody watching
    let agent = Agent::start(&place, &[]).expect("a second agent");
    let after = agent.ready("counter");
    assert_eq!(container(&before, 0)["containerID"], container(&after, 0)["containerID"]);
    assert_eq!(container(&after, 0)["restartCount"], 0);
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    let name = after["metadata"]["name"].as_str().expect("a name").to_owned();
    let log = eventually("all lines", Duration::from_secs(10), || {
        let log = agent.ok(&["logs", &name]);
        (log.lines().count() >= 300).then_some(log)
    });
    let expected: String = (0..300).map(|i| format!("line {i}\n")).collect();
    assert_eq!(log, expected);
    let quits = agent.until("quits", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(container(&quits, 0)["state"]["terminated"]["exitCode"], 9);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_changed_manifest_replaces_the_pod() {
    let place = place();
    let agent = agent(&place);
    agent.apply("web.json", &fixtures::pod("web", "echo old; sleep 1000"));
    let old = agent.ready("web");
    agent.apply("web.json", &fixtures::pod("web", "echo new; sleep 1000"));
    let new = agent.until("web", "replaced", |pod| {
        pod["metadata"]["uid"] != old["metadata"]["uid"] && condition(pod, "Ready") == "True"
    });
    assert_eq!(agent.pods().len(), 1);
    assert_eq!(agent.ok(&["logs", new["metadata"]["name"].as_str().expect("a name")]), "new\n");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn host_paths_shared_memory_and_read_only_mounts() {
    let place = place();
    let agent = agent(&place);
    let data = place.path("data");
    fs::create_dir_all(data.join("sub")).expect("a directory");
    fs::write(data.join("sub/file"), "from the host\n").expect("a file");
    let script = "cat /data/file; echo x > /data/file || echo read-only; df /mem | tail -1; id; sleep 1000";
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("volumes", script)).expect("JSON");
    manifest["spec"]["volumes"] = json!([
        { "name": "data", "hostPath": { "path": data, "type": "Directory" } },
        { "name": "mem", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
    ]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([
        { "name": "data", "mountPath": "/data", "subPath": "sub", "readOnly": true },
        { "name": "mem", "mountPath": "/mem" },
    ]);
    manifest["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 1000, "runAsGroup": 1000 });
    manifest["spec"]["securityContext"] = json!({ "fsGroup": 3000, "supplementalGroups": [4000] });
    agent.apply("volumes.json", &manifest.to_string());
    let pod = agent.ready("volumes");
    let name = pod["metadata"]["name"].as_str().expect("a name");
    let log = eventually("the log", Duration::from_secs(5), || {
        let log = agent.ok(&["logs", name]);
        log.contains("uid=").then_some(log)
    });
    assert!(log.contains("from the host") && log.contains("read-only"), "{log}");
    assert!(log.contains("1024"), "a tmpfs of 1 MiB: {log}");
    assert!(log.contains("uid=1000(web) gid=1000(web)"), "{log}");
    for group in ["3000", "4000", "2000"] {
        assert!(log.contains(group), "group {group}: {log}");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn bad_input_is_named_and_harms_nobody() {
    let place = place();
    let agent = agent(&place);
    agent.apply("good.json", &fixtures::pod("good", "sleep 1000"));
    agent.apply("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n");
    agent.apply("kind.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n");
    agent.apply("name.json", &fixtures::pod("Not_A_Name", "true"));
    agent.apply("again.json", &fixtures::pod("good", "sleep 2000"));
    agent.apply("command.json", &fixtures::pod("command", "x").replace("\"sh\"", "\"no-such-command\""));
    agent.apply("image.json", &fixtures::pod("image", "true").replace("busybox:1", "127.0.0.1:1/no/such:1"));
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("nonroot", "true")).expect("JSON");
    manifest["spec"]["securityContext"] = json!({ "runAsNonRoot": true });
    agent.apply("nonroot.json", &manifest.to_string());
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("hostpath", "true")).expect("JSON");
    manifest["spec"]["volumes"] = json!([{ "name": "v", "hostPath": { "path": "/etc/passwd", "type": "Directory" } }]);
    agent.apply("hostpath.json", &manifest.to_string());
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("unsupported", "true")).expect("JSON");
    manifest["spec"]["volumes"] = json!([{ "name": "v", "nfs": { "server": "x", "path": "/" } }]);
    agent.apply("unsupported.json", &manifest.to_string());
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("tiny", "true")).expect("JSON");
    manifest["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": "4Ki" } });
    agent.apply("tiny.json", &manifest.to_string());
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("user", "true")).expect("JSON");
    manifest["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": -5 });
    agent.apply("user.json", &manifest.to_string());

    agent.ready("good");
    let reason = |name: &str, words: &[&str]| {
        let pod = agent.until(name, "explained", |pod| {
            let text = pod["status"].to_string();
            words.iter().all(|word| text.contains(word))
        });
        assert_ne!(condition(&pod, "Ready"), "True");
    };
    reason("command", &["no-such-command", "StartError"]);
    reason("image", &["RegistryUnavailable", "127.0.0.1:1"]);
    reason("nonroot", &["CreateContainerConfigError", "runAsNonRoot"]);
    reason("hostpath", &["/etc/passwd", "not a directory"]);
    reason("unsupported", &["nfs"]);
    reason("tiny", &["memory"]);
    let problems = agent.ok(&["pods"]);
    for words in [
        ["broken.yaml", "broken.yaml"],
        ["kind.yaml", "Deployment"],
        ["name.json", "metadata.name"],
        ["again.json", "good"],
        ["user.json", "runAsUser"],
    ] {
        let found = problems.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "no line names {words:?}:\n{problems}");
    }
    agent.ready("good");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_second_agent_is_refused_by_name() {
    let place = place();
    let agent = agent(&place);
    let output = agent.cli(&["node", "--pod-manifest-path", "/nowhere"]).expect("it runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&place.path("root").display().to_string()), "{said}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn exec_carries_streams_terminals_and_exit_codes() {
    let place = place();
    let agent = agent(&place);
    agent.apply("web.json", &fixtures::pod("web", "sleep 1000"));
    let name = agent.ready("web")["metadata"]["name"].as_str().expect("a name").to_owned();
    let mut child = agent
        .command(&["exec", "-i", &name, "--", "sh", "-c", "cat; echo err >&2; exit 42"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("exec starts");
    child.stdin.take().expect("stdin").write_all(b"in and out\n").expect("write");
    let output = child.wait_with_output().expect("exec ends");
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "in and out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    let missing = agent.cli(&["exec", &name, "--", "no-such-command"]).expect("it runs");
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-command"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_flushed_ruleset_is_put_back_at_once() {
    let place = place();
    let agent = agent(&place);
    let script = "mkdir /www; echo still-here > /www/index.html; exec httpd -f -p 8080 -h /www";
    let mut manifest: Value = serde_json::from_str(&fixtures::pod("web", script)).expect("JSON");
    manifest["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8080, "hostPort": 18080 }]);
    agent.apply("web.json", &manifest.to_string());
    agent.ready("web");
    let ask = |what: &str| {
        eventually(what, Duration::from_secs(5), || {
            get(&place, "127.0.0.1", 18080).filter(|answer| answer.contains("still-here"))
        })
    };
    ask("an answer on the host port");
    assert!(place.run("nft", &["flush", "ruleset"]).expect("nft runs").status.success());
    ask("an answer on the host port after a flush");
}
