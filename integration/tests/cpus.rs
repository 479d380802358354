//! Processors and memory of NUMA nodes that containers have for themselves, seen from inside and in the kernel's files.

use std::{fs, time::Duration};

use berth_integration::{
    Agent, Place, eventually,
    help::config,
    leftovers::Machine,
    scenario::{agent, apply, container, ended, exec, place, ready, run, with},
};
use serde_json::{Value, json};

const WAIT: &str = "trap 'exit 0' TERM; sleep 1000 & wait";
/// The processors that the container's first process may run on.
const ALLOWED: &str = "sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/1/status";
/// Upstream's fields for a machine of two processors, of which the first is the system's.
const STATIC: &str = "cpuManagerPolicy: static\nreservedSystemCPUs: \"0\"";

fn guaranteed(cpu: &str) -> Value {
    let amounts = json!({"cpu": cpu, "memory": "32Mi"});
    json!({ "resources": { "requests": amounts, "limits": amounts } })
}

/// Waits until the first container of a pod may run on exactly these processors.
#[track_caller]
fn runs_on(agent: &Agent, pod: &str, cpus: &str) {
    let mut seen = String::new();
    eventually(&format!("{pod} runs on {cpus}; agent:\n{}", agent.log()), Duration::from_secs(20), || {
        let now = exec(agent, pod, ALLOWED).trim().to_owned();
        if now != seen {
            eprintln!("{pod} runs on {now}");
            seen.clone_from(&now);
        }
        (now == cpus).then_some(())
    });
}

/// The view of the pod's only container.
fn inspected(agent: &Agent, pod: &str) -> Value {
    let text = agent.ok(&["inspect", pod, "-o", "json"]);
    serde_json::from_str::<Value>(&text).expect("JSON")["containers"][0].clone()
}

/// CFS quota of the pod's cgroup or, with a leaf, of a container's: the kernel's text.
fn quota(place: &Place, pod: &Value, leaf: &str) -> String {
    let (root, uid) = (place.cgroup_root.trim_start_matches('/'), pod["metadata"]["uid"].as_str().expect("a UID"));
    let read = |controller: &str, file: &str| {
        fs::read_to_string(format!("/sys/fs/cgroup/{controller}/{root}/kubepods/pod{uid}/{leaf}/{file}")).ok()
    };
    let found = read("", "cpu.max").or_else(|| read("cpu", "cpu.cfs_quota_us"));
    found.or_else(|| read("cpu,cpuacct", "cpu.cfs_quota_us")).expect("a CPU cgroup").trim().to_owned()
}

fn two_processors() -> bool {
    fs::read_to_string("/sys/devices/system/cpu/online").expect("processors").trim() == "0-1"
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_whole_processor_is_one_containers_own_and_the_others_leave_it() {
    if !two_processors() {
        eprintln!("skipped: written for a machine with the processors 0-1");
        return;
    }
    let place = place();
    let before = Machine::look(&place);
    let file = config(&place, STATIC, "");
    let mut first = agent(&place, &["--config", &file]);
    run(&first, "shared", WAIT, json!({}));
    ready(&first, "shared");
    runs_on(&first, "shared", "0-1");

    let own = "sed -n 's/^Cpus_allowed_list:[[:space:]]*/started on /p' /proc/self/status; sleep 1000";
    run(&first, "own", own, guaranteed("1"));
    ready(&first, "own");
    runs_on(&first, "own", "1");
    // It was there from its first instruction on, and the others had left by then.
    assert_eq!(exec(&first, "shared", ALLOWED).trim(), "0");
    assert!(first.ok(&["logs", "own"]).contains("started on 1\n"));
    let pod = first.pod("own").expect("the pod");
    let leaf = inspected(&first, "own")["id"].as_str().expect("an id").to_owned();
    for leaf in ["", leaf.as_str()] {
        let quota = quota(&place, &pod, leaf);
        assert!(quota == "-1" || quota.starts_with("max"), "no quota for {leaf:?}: {quota}");
    }
    assert_eq!(inspected(&first, "own")["granted"], json!({"cpus": "1"}));
    assert_eq!(inspected(&first, "shared")["granted"], Value::Null);
    let text = first.ok(&["inspect", "own"]);
    assert!(text.contains("GRANTED TO"), "{text}");

    first.kill();
    drop(first);
    let second = agent(&place, &["--config", &file]);
    runs_on(&second, "own", "1");
    runs_on(&second, "shared", "0");
    run(&second, "late", WAIT, json!({}));
    ready(&second, "late");
    assert_eq!(exec(&second, "late", ALLOWED).trim(), "0", "from the start");

    second.ok(&["resize", "own", "--limits", "cpu=2", "--requests", "cpu=2"]);
    second.until("own", "infeasible", |pod| {
        let text = pod["status"]["conditions"].to_string();
        text.contains("Infeasible")
            && text.contains("Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \\\"static\\\"")
    });

    second.delete("own.json");
    second.gone("own");
    runs_on(&second, "shared", "0-1");
    runs_on(&second, "late", "0-1");

    // A pod that is over has returned its processor, although it is still there.
    let over = with(guaranteed("1"), json!({}));
    apply(&second, "over", json!({"restartPolicy": "Never", "containers": [container("app", "true", over)]}));
    ended(&second, "over");
    runs_on(&second, "shared", "0-1");
    run(&second, "next", WAIT, guaranteed("1"));
    ready(&second, "next");
    runs_on(&second, "next", "1");
    runs_on(&second, "shared", "0");

    for name in ["shared", "late", "over", "next"] {
        second.delete(&format!("{name}.json"));
    }
    for name in ["shared", "late", "over", "next"] {
        second.gone(name);
    }
    let mut second = second;
    second.stop();
    fs::remove_file(file).expect("remove the configuration");
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_was_given_stays_given_under_another_policy() {
    if !two_processors() {
        eprintln!("skipped: written for a machine with the processors 0-1");
        return;
    }
    let place = place();
    let file = config(&place, STATIC, "");
    let mut first = agent(&place, &["--config", &file]);
    run(&first, "shared", WAIT, json!({}));
    run(&first, "own", WAIT, guaranteed("1"));
    ready(&first, "shared");
    ready(&first, "own");
    runs_on(&first, "shared", "0");
    first.kill();
    drop(first);

    let mut none = agent(&place, &[]);
    assert!(none.log().contains("it keeps the processors 1, although cpuManagerPolicy is none now"), "{}", none.log());
    run(&none, "late", WAIT, json!({}));
    ready(&none, "late");
    runs_on(&none, "own", "1");
    assert_eq!(exec(&none, "late", ALLOWED).trim(), "0");
    none.delete("own.json");
    none.gone("own");
    runs_on(&none, "shared", "0-1");
    runs_on(&none, "late", "0-1");
    // Nobody is confined any more: neither is what starts now, nor is it pinned by the next agent behind its back.
    run(&none, "free", WAIT, json!({}));
    ready(&none, "free");
    none.kill();
    drop(none);

    let plain = agent(&place, &[]);
    runs_on(&plain, "free", "0-1");
    let mut plain = plain;
    plain.kill();
    drop(plain);
    let last = agent(&place, &["--config", &config(&place, "cpuManagerPolicy: static\nreservedSystemCPUs: \"1\"", "")]);
    run(&last, "own", WAIT, guaranteed("1"));
    ready(&last, "own");
    runs_on(&last, "own", "0");
    runs_on(&last, "late", "1");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn memory_comes_from_a_numa_node_and_everything_from_the_same() {
    let place = place();
    // 64 MiB are the system's and 100 MiB what eviction keeps free by default.
    let kubelet = "memoryManagerPolicy: Static\ntopologyManagerPolicy: single-numa-node\ntopologyManagerScope: pod\n\
                   systemReserved: {cpu: 500m, memory: 64Mi}\ncpuManagerPolicy: static\n\
                   reservedMemory: [{numaNode: 0, limits: {memory: 164Mi}}]";
    let agent = agent(&place, &["--config", &config(&place, kubelet, "")]);
    run(&agent, "own", WAIT, guaranteed("100m"));
    ready(&agent, "own");
    let granted = inspected(&agent, "own")["granted"].clone();
    assert_eq!(granted, json!({"memory": [{"resource": "memory", "nodes": "0", "bytes": 32 << 20}]}));
    assert_eq!(exec(&agent, "own", "sed -n 's/^Mems_allowed_list:[[:space:]]*//p' /proc/1/status").trim(), "0");
    let text = agent.ok(&["inspect", "own"]);
    assert!(text.contains("NUMA NODES"), "{text}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn an_agent_whose_managers_do_not_fit_the_machine_does_not_start() {
    let place = place();
    let refused = |kubelet: &str| {
        let file = config(&place, kubelet, "");
        match Agent::start(&place, &["--config", &file]) {
            Ok(_) => panic!("it started"),
            Err(error) => error.to_string(),
        }
    };
    let text = refused("cpuManagerPolicy: static");
    assert!(text.contains("the static policy requires systemReserved.cpu + kubeReserved.cpu"), "{text}");
    let text = refused(
        "memoryManagerPolicy: Static\nsystemReserved: {memory: 64Mi}\n\
         reservedMemory: [{numaNode: 0, limits: {memory: 64Mi}}]",
    );
    assert!(text.contains("is not equal to the value \"171966464\" determined by Node Allocatable feature"), "{text}");
}
