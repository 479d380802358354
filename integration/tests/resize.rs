//! Pods that change while they run, seen in the kernel's files.

use std::{fs, thread, time::Duration};

use berth_integration::{
    Agent, Place,
    agent::condition,
    eventually,
    help::config,
    scenario::{agent, apply, container, exec, log, place, ready, run, with},
};
use serde_json::{Value, json};

const WAIT: &str = "trap 'exit 0' TERM; sleep 1000 & wait";
const MIB: u64 = 1 << 20;

/// CPU quota (thousandths of a CPU) and memory limit (bytes) of a cgroup of the pod: a container's by its id, or the pod's
/// own; `None` for no limit.
fn limits(place: &Place, pod: &Value, leaf: &str) -> (Option<u64>, Option<u64>) {
    let root = place.cgroup_root.trim_start_matches('/');
    let class = match pod["status"]["qosClass"].as_str().expect("a class") {
        "Guaranteed" => String::new(),
        class => format!("/{}", class.to_lowercase()),
    };
    let uid = pod["metadata"]["uid"].as_str().expect("a UID");
    let read = |controller: &str, file: &str| {
        let path = format!("/sys/fs/cgroup/{controller}/{root}/kubepods{class}/pod{uid}/{leaf}/{file}");
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    if let Some(text) = read("", "cpu.max") {
        let (quota, period) = text.split_once(' ').expect("quota and period");
        let milli = quota.parse::<u64>().ok().map(|quota| quota * 1000 / period.parse::<u64>().expect("a period"));
        return (milli, read("", "memory.max").and_then(|limit| limit.parse().ok()));
    }
    let cpu = ["cpu,cpuacct", "cpu"].iter().find_map(|controller| read(controller, "cpu.cfs_quota_us"));
    let memory = read("memory", "memory.limit_in_bytes").expect("a memory cgroup").parse::<u64>().expect("a number");
    let milli = cpu.expect("a CPU cgroup").parse::<u64>().ok().map(|quota| quota * 1000 / 100_000);
    (milli, Some(memory).filter(|limit| *limit < 1 << 62))
}

fn id(pod: &Value, index: usize) -> String {
    let id = pod["status"]["containerStatuses"][index]["containerID"].as_str().expect("an id");
    id.trim_start_matches("berth://").to_owned()
}

/// Waits until a cgroup of the pod has these limits; the pod then.
#[track_caller]
fn has(agent: &Agent, pod: &str, index: Option<usize>, expected: (Option<u64>, Option<u64>)) -> Value {
    let mut seen = None;
    let wait = || {
        let found = agent.pod(pod)?;
        let leaf = index.map_or_else(String::new, |index| id(&found, index));
        seen = Some(limits(agent.place, &found, &leaf));
        (seen == Some(expected)).then_some(found)
    };
    eventually(&format!("limits {expected:?} of {pod} {index:?}"), Duration::from_secs(20), wait)
}

fn status<'p>(pod: &'p Value, field: &str) -> &'p Value {
    &pod["status"]["containerStatuses"][0][field]
}

/// Reason and message of a condition.
fn reason(pod: &Value, kind: &str) -> Option<(String, String)> {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("reason"), text("message")))
}

fn settled(pod: &Value) -> bool {
    reason(pod, "PodResizePending").is_none() && reason(pod, "PodResizeInProgress").is_none()
}

fn amounts(requests: Value, limits: Value) -> Value {
    json!({ "resources": { "requests": requests, "limits": limits } })
}

/// Thousandths of a CPU that the machine has.
fn machine() -> u64 {
    thread::available_parallelism().expect("processors").get() as u64 * 1000
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn cpu_and_memory_change_under_a_running_container() {
    let place = place();
    let agent = agent(&place, &[]);
    let resources = amounts(json!({"cpu": "100m", "memory": "32Mi"}), json!({"cpu": "200m", "memory": "64Mi"}));
    run(&agent, "web", WAIT, resources);
    let name = ready(&agent, "web");
    let before = has(&agent, "web", Some(0), (Some(200), Some(64 * MIB)));
    has(&agent, "web", None, (Some(200), Some(64 * MIB)));
    assert_eq!(before["metadata"]["generation"], 1);
    // Its class has the weight of its first pod: shares with v1, weight with v2.
    let root = place.cgroup_root.trim_start_matches('/');
    let read = |path: String| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let shares = read(format!("/sys/fs/cgroup/cpu/{root}/kubepods/burstable/cpu.shares"));
    let weight = read(format!("/sys/fs/cgroup/{root}/kubepods/burstable/cpu.weight"));
    assert!(shares.as_deref() == Some("102") || weight.as_deref() == Some("17"), "{shares:?} {weight:?}");

    let said = agent.ok(&["resize", "web", "-c", "app", "--limits", "cpu=400m,memory=96Mi", "--requests", "cpu=300m"]);
    assert_eq!(said, format!("pod/{name} resized\n"));
    has(&agent, "web", Some(0), (Some(400), Some(96 * MIB)));
    has(&agent, "web", None, (Some(400), Some(96 * MIB)));
    let pod = agent.until("web", "settled", settled);
    assert_eq!(pod["metadata"]["generation"], 2);
    assert_eq!(status(&pod, "allocatedResources")["cpu"], "300m");
    assert_eq!(status(&pod, "resources")["limits"], json!({"cpu": "400m", "memory": "96Mi"}));

    agent.ok(&["resize", "web", "--limits", "cpu=150m,memory=48Mi", "--requests", "cpu=50m"]);
    has(&agent, "web", Some(0), (Some(150), Some(48 * MIB)));
    let pod = has(&agent, "web", None, (Some(150), Some(48 * MIB)));
    assert_eq!((id(&pod, 0), status(&pod, "restartCount")), (id(&before, 0), &json!(0)), "it runs on");

    // What the manifest says still is the pod's as it was, and is not a change.
    let refused = agent.cli(&["resize", "web", "--limits", "ephemeral-storage=1Gi"]).expect("it runs");
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("only cpu and memory resources are mutable"), "{text}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_starts_anew_when_the_policy_of_what_changed_says_so() {
    let place = place();
    let agent = agent(&place, &[]);
    let policy = json!({"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]});
    let resources = amounts(json!({"cpu": "50m", "memory": "32Mi"}), json!({"cpu": "100m", "memory": "64Mi"}));
    let app = container("app", WAIT, with(resources.clone(), policy));
    let side = container("side", WAIT, resources);
    apply(&agent, "web", json!({"terminationGracePeriodSeconds": 20, "containers": [app, side]}));
    let before = agent.ready("web");
    agent.ok(&["resize", "web", "-c", "app", "--limits", "cpu=200m"]);
    let pod = has(&agent, "web", Some(0), (Some(200), Some(64 * MIB)));
    assert_eq!(id(&pod, 0), id(&before, 0), "CPU needs no restart");

    agent.ok(&["resize", "web", "-c", "app", "--limits", "memory=128Mi"]);
    let pod = agent.until("web", "restarted", |pod| {
        status(pod, "restartCount") == &json!(1) && settled(pod) && condition(pod, "Ready") == "True"
    });
    assert_ne!(id(&pod, 0), id(&before, 0));
    assert_eq!(id(&pod, 1), id(&before, 1), "the other runs on");
    assert_eq!(limits(&place, &pod, &id(&pod, 0)), (Some(200), Some(128 * MIB)));
    assert_eq!(limits(&place, &pod, ""), (Some(300), Some(192 * MIB)));
    assert_eq!(status(&pod, "lastState")["terminated"]["exitCode"], 0, "it was asked to stop: {pod:#}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_resize_without_room_waits_and_keeps_what_there_is() {
    let place = place();
    let agent = agent(&place, &[]);
    let all = machine();
    let asks = |milli: u64| amounts(json!({"cpu": format!("{milli}m")}), json!({}));
    run(&agent, "first", WAIT, asks(all / 4));
    run(&agent, "second", WAIT, asks(all / 2));
    let name = ready(&agent, "first");
    ready(&agent, "second");
    let wanted = all * 3 / 4;
    let said = agent.ok(&["resize", &name, "--requests", &format!("cpu={wanted}m")]);
    let message =
        format!("Node didn't have enough resource: cpu, requested: {wanted}, used: {}, capacity: {all}", all / 2);
    assert_eq!(said, format!("pod/{name} resized (deferred: {message})\n"));
    let pod = agent.pod("first").expect("the pod");
    assert_eq!(reason(&pod, "PodResizePending"), Some(("Deferred".to_owned(), message)));
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"]["cpu"], json!(quantity(wanted)), "what is wanted");
    assert_eq!(status(&pod, "allocatedResources")["cpu"], json!(quantity(all / 4)), "what is held");

    let never = all + 1000;
    agent.ok(&["resize", "second", "--requests", &format!("cpu={never}m")]);
    let message = format!("Node didn't have enough capacity: cpu, requested: {never}, capacity: {all}");
    let pod = agent.pod("second").expect("the pod");
    assert_eq!(reason(&pod, "PodResizePending"), Some(("Infeasible".to_owned(), message)));

    agent.delete("second.json");
    let pod = agent.until("first", "resized", |pod| {
        settled(pod) && status(pod, "allocatedResources")["cpu"] == json!(quantity(wanted))
    });
    assert_eq!(status(&pod, "restartCount"), 0);
}

/// Thousandths as the API writes them.
fn quantity(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn memory_is_not_taken_from_what_uses_it() {
    let place = place();
    let agent = agent(&place, &[]);
    // Shared memory cannot be reclaimed without swap; it is counted for whoever wrote it.
    let script = "head -c 50000000 /dev/zero > /dev/shm/big; echo full; while [ -e /dev/shm/big ]; do sleep 0.1; done; \
                  echo empty; sleep 1000";
    run(&agent, "web", script, amounts(json!({"memory": "16Mi"}), json!({"memory": "128Mi"})));
    let name = ready(&agent, "web");
    log(&agent, &name, "app", "full");
    agent.ok(&["resize", &name, "--limits", "memory=32Mi"]);
    let pod = agent
        .until("web", "refused", |pod| reason(pod, "PodResizeInProgress").is_some_and(|(reason, _)| reason == "Error"));
    let (_, message) = reason(&pod, "PodResizeInProgress").expect("a condition");
    let pod_part = format!("cannot decrease memory limits: [attempting to set pod memory limit ({}) below", 32 * MIB);
    assert!(message.starts_with(&pod_part), "{message}");
    let own_part = format!("attempting to set container \"app\" memory limit ({}) below current usage", 32 * MIB);
    assert!(message.contains(&own_part), "{message}");
    assert_eq!(limits(&place, &pod, &id(&pod, 0)).1, Some(128 * MIB), "nothing is half done");
    assert_eq!(status(&pod, "resources")["limits"]["memory"], "128Mi");
    exec(&agent, &name, "rm /dev/shm/big");
    log(&agent, &name, "app", "empty");
    let pod = has(&agent, "web", Some(0), (None, Some(32 * MIB)));
    assert_eq!(status(&pod, "restartCount"), 0);
    agent.until("web", "settled", settled);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn changes_outlast_the_agent_and_a_resize_that_was_cut_short_is_finished() {
    let place = place();
    let mut agent = agent(&place, &[]);
    let all = machine();
    let app = |name: &str, request: u64| {
        let resources = json!({"cpu": format!("{request}m"), "memory": "32Mi"});
        run(&agent, name, WAIT, amounts(resources, json!({"cpu": format!("{all}m"), "memory": "64Mi"})));
    };
    app("web", 100);
    app("full", all / 2);
    let before = agent.ready("web");
    agent.ready("full");
    agent.ok(&["resize", "web", "--limits", "memory=96Mi"]);
    has(&agent, "web", Some(0), (Some(all), Some(96 * MIB)));
    // This one has no room yet.
    agent.ok(&["resize", "web", "--requests", &format!("cpu={}m", all - 100), "--limits", "memory=128Mi"]);
    assert!(reason(&agent.pod("web").expect("the pod"), "PodResizePending").is_some());
    agent.kill();
    // As if it had died between two writes.
    let file = ["memory", ""].iter().find_map(|controller| {
        let root = place.cgroup_root.trim_start_matches('/');
        let uid = before["metadata"]["uid"].as_str().expect("a UID");
        let base = format!("/sys/fs/cgroup/{controller}/{root}/kubepods/burstable/pod{uid}/{}", id(&before, 0));
        let file = if controller.is_empty() { "memory.max" } else { "memory.limit_in_bytes" };
        fs::exists(format!("{base}/{file}")).ok()?.then(|| format!("{base}/{file}"))
    });
    fs::write(file.expect("a memory limit"), (80 * MIB).to_string()).expect("write a limit");
    fs::remove_file(place.path("manifests/full.json")).expect("remove a manifest");

    let agent = Agent::start(&place, &[]).expect("an agent");
    agent.gone("full");
    let pod = has(&agent, "web", Some(0), (Some(all), Some(128 * MIB)));
    assert_eq!((id(&pod, 0), status(&pod, "restartCount")), (id(&before, 0), &json!(0)), "it was never disturbed");
    let pod = agent.until("web", "settled", settled);
    assert_eq!(pod["metadata"]["generation"], 3);
    assert_eq!(status(&pod, "allocatedResources")["cpu"], json!(quantity(all - 100)));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn another_image_under_the_same_uid_replaces_the_container_alone() {
    let place = place();
    let mut agent = agent(&place, &[]);
    agent.ok(&["load", "--name", "busybox:2", &berth_integration::fixtures::busybox()]);
    let manifest = |image: &str, more: Value| {
        let app = with(container("app", WAIT, more), json!({ "image": image }));
        let spec = json!({"terminationGracePeriodSeconds": 20, "restartPolicy": "Never",
            "containers": [app, container("side", WAIT, json!({}))]});
        let metadata = json!({"name": "web", "uid": "0-web"});
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }).to_string()
    };
    agent.apply("web.json", &manifest("busybox:1", json!({})));
    let before = agent.ready("web");
    agent.apply("web.json", &manifest("busybox:2", json!({})));
    let pod = agent.until("web", "replaced", |pod| {
        status(pod, "image") == "busybox:2"
            && status(pod, "restartCount") == &json!(1)
            && condition(pod, "Ready") == "True"
    });
    assert_eq!(pod["metadata"]["uid"], "0-web");
    assert_eq!(pod["metadata"]["generation"], 2);
    assert_eq!(status(&pod, "lastState")["terminated"]["exitCode"], 0, "it was asked to stop");
    assert_eq!((id(&pod, 1), &pod["status"]["podIP"]), (id(&before, 1), &before["status"]["podIP"]));

    // What may not change is said, and the pod goes on.
    agent.apply("web.json", &manifest("busybox:2", json!({"workingDir": "/tmp"})));
    let said = eventually("a problem", Duration::from_secs(20), || {
        let problems = agent.ok(&["pods", "--problems"]);
        problems.contains("spec.containers[0].workingDir").then_some(problems)
    });
    assert!(said.contains("the pod goes on as it was"), "{said}");
    assert_eq!(id(&agent.pod("web").expect("the pod"), 0), id(&pod, 0));

    // An agent that died after the mark and before the end finishes what was begun, whatever the restart policy says.
    agent.apply("web.json", &manifest("busybox:2", json!({})));
    eventually("no problem", Duration::from_secs(20), || {
        agent.ok(&["pods", "--problems"]).contains("No problems").then_some(())
    });
    agent.kill();
    let mark = place.path("root/pods/0-web/containers/app/1/restart.json");
    fs::write(mark, "\"Container app definition changed, will be restarted\"").expect("write the mark");
    let agent = Agent::start(&place, &[]).expect("an agent");
    let pod = agent.until("web", "replaced again", |pod| {
        status(pod, "restartCount") == &json!(2) && condition(pod, "Ready") == "True"
    });
    assert_eq!(id(&pod, 1), id(&before, 1));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn whoever_attaches_sees_what_the_container_writes_and_how_it_ends() {
    let place = place();
    let agent = agent(&place, &[]);
    let script = "while read line; do echo got $line; [ \"$line\" = end ] && exit 7; done";
    let app = container("app", script, json!({"stdin": true}));
    apply(&agent, "web", json!({"restartPolicy": "Never", "containers": [app]}));
    let name = ready(&agent, "web");
    let mut command = agent.command(&["attach", &name, "-i"]);
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().expect("it starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("standard input"), b"one\nend\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got one\ngot end\n");
    assert_eq!(output.status.code(), Some(7));
    let missing = agent.cli(&["attach", &name]).expect("it runs");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("is not running"), "{missing:?}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_is_set_for_the_pod_as_a_whole_limits_it_and_can_be_resized() {
    let place = place();
    let agent = agent(&place, &[]);
    let own = json!({"resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "100m", "memory": "16Mi"}}});
    let spec = json!({
        "resources": {"requests": {"cpu": "200m", "memory": "32Mi"}, "limits": {"cpu": "400m", "memory": "64Mi"}},
        "containers": [container("own", WAIT, own), container("none", WAIT, json!({}))],
    });
    apply(&agent, "web", spec);
    let pod = agent.ready("web");
    assert_eq!(pod["status"]["qosClass"], "Burstable");
    assert_eq!(limits(&place, &pod, ""), (Some(400), Some(64 * MIB)));
    assert_eq!(limits(&place, &pod, &id(&pod, 0)), (Some(100), Some(16 * MIB)));
    assert_eq!(limits(&place, &pod, &id(&pod, 1)), (Some(400), Some(64 * MIB)), "what the pod may use");

    agent.ok(&["resize", "web", "--pod-level", "--limits", "cpu=600m,memory=96Mi"]);
    has(&agent, "web", None, (Some(600), Some(96 * MIB)));
    let pod = has(&agent, "web", Some(1), (Some(600), Some(96 * MIB)));
    assert_eq!(limits(&place, &pod, &id(&pod, 0)), (Some(100), Some(16 * MIB)));
    let pod = agent.until("web", "settled", settled);
    assert_eq!(pod["status"]["resources"]["limits"], json!({"cpu": "600m", "memory": "96Mi"}));
    let too_much = agent.cli(&["resize", "web", "-c", "own", "--limits", "memory=1Gi"]).expect("it runs");
    let text = String::from_utf8_lossy(&too_much.stderr).into_owned();
    assert!(text.contains("must be less than or equal to pod limits of 96Mi"), "{text}");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_is_reserved_is_not_for_pods() {
    let place = place();
    let config = config(&place, "systemReserved: {cpu: 500m, memory: 64Mi}\nkubeReserved: {cpu: \"0.5\"}", "");
    let agent = agent(&place, &["--config", &config]);
    let all = machine();
    let asks = |milli: u64| amounts(json!({"cpu": format!("{milli}m")}), json!({}));
    run(&agent, "large", WAIT, asks(all - 900));
    let pod = agent.until("large", "refused", |pod| pod["status"]["phase"] == "Failed");
    let message = format!(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: {}, used: 0, capacity: {}",
        all - 900,
        all - 1000
    );
    assert_eq!((&pod["status"]["reason"], &pod["status"]["message"]), (&json!("OutOfcpu"), &json!(message)));
    run(&agent, "small", WAIT, asks(all - 1000));
    ready(&agent, "small");
    let root = place.cgroup_root.trim_start_matches('/');
    let read = |path: String| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = read(format!("/sys/fs/cgroup/memory/{root}/kubepods/memory.limit_in_bytes"))
        .or_else(|| read(format!("/sys/fs/cgroup/{root}/kubepods/memory.max")));
    let total = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let total =
        total.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    assert_eq!(limit, total.map(|kibibytes| kibibytes * 1024 - 64 * MIB));
}

/// Waits for ephemeral containers: until they are supported, the agent says so by the name of the field.
#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_added_to_a_running_pod_looks_into_it() {
    let place = place();
    let agent = agent(&place, &[]);
    run(&agent, "web", WAIT, json!({}));
    let name = ready(&agent, "web");
    let before = agent.pod("web").expect("the pod");
    // In one piece: what is written before anybody is attached is in the log alone, and shown only if nothing else came.
    let script =
        "ls /proc/1/root/proc >/dev/null && c=$(tr '\\0' ' ' < /proc/1/cmdline); echo \"$c on $(hostname)\"; exit 5";
    let arguments =
        ["debug", &name, "--image", "busybox:1", "--target", "app", "-c", "look", "-i", "--", "sh", "-c", script];
    let output = agent.cli(&arguments).expect("it runs");
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(5), "{said}{error}");
    assert!(said.contains("sh -c trap"), "the target's processes: {said}");
    let pod = agent.until("web", "over", |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 5
    });
    assert_eq!((id(&pod, 0), status(&pod, "restartCount")), (id(&before, 0), &json!(0)), "the pod runs on");
    let again = agent.cli(&arguments).expect("it runs");
    assert!(String::from_utf8_lossy(&again.stderr).contains("Duplicate value: \"look\""), "{again:?}");
}
