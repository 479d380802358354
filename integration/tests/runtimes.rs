//! Pods whose containers another OCI runtime makes: a RuntimeClass with a handler of the configuration.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use berth_integration::{
    Agent, Machine, Place,
    agent::condition,
    eventually,
    help::{config, supervisor},
    layout::Layout,
    oracle::{differences, normalize},
    scenario::{self, apply, container, ended, exec, explained, full_name, log, place, ready, with},
    terminal::Terminal,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// The handlers of most tests: Debian's runc.
const RUNC: &str = "runtime: {handlers: [{name: runc, path: /usr/sbin/runc}]}";

/// How soon something is to be seen on a terminal.
const SOON: Duration = Duration::from_secs(20);

/// An agent with these handlers, and a class of each name.
fn agent<'a>(place: &'a Place, handlers: &str, classes: &[&str]) -> Agent<'a> {
    let config = config(place, "", handlers);
    let agent = scenario::agent(place, &["--config", &config]);
    for name in classes {
        let class = json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": name }, "handler": name,
        });
        agent.apply(&format!("class-{name}.json"), &class.to_string());
    }
    agent
}

/// The specification of a pod with one container whose containers the class's handler makes.
fn of_class(class: &str, script: &str, own: Value, of_pod: Value) -> Value {
    let spec = json!({ "runtimeClassName": class, "containers": [container("app", script, own)] });
    with(spec, of_pod)
}

fn runc(agent: &Agent, name: &str, script: &str, own: Value, of_pod: Value) {
    apply(agent, name, of_class("runc", script, own, of_pod));
}

/// The machine with a pod of runc on it: what pods have together is there.
fn standing(agent: &Agent) -> Machine {
    runc(agent, "standing", "exec sleep 1000", json!({}), json!({}));
    ready(agent, "standing");
    Machine::look(agent.place)
}

/// The UID of a pod.
fn uid(agent: &Agent, name: &str) -> String {
    agent.pod(name).expect("the pod")["metadata"]["uid"].as_str().expect("a UID").to_owned()
}

/// What runc knows of the containers of a pod.
fn list(place: &Place, uid: &str) -> Vec<Value> {
    let state = place.path("run").join("pods").join(uid).join("runtime");
    let listed = place.run("/usr/sbin/runc", &["--root", &state.to_string_lossy(), "list", "--format", "json"]);
    let text = listed.expect("runc runs").stdout;
    serde_json::from_slice::<Option<Vec<Value>>>(&text).ok().flatten().unwrap_or_default()
}

/// Whether a process has ended. Who is its parent now may take its time to notice.
fn is_dead(pid: &Value) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
}

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// A program in the place that stands for a runtime.
fn script(place: &Place, name: &str, text: &str) -> String {
    let path = place.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a mode");
    path.display().to_string()
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_pod_of_runc_runs_and_leaves_nothing() {
    let place = place();
    let agent = agent(&place, RUNC, &["runc"]);
    let before = standing(&agent);
    let script = "echo out; echo err >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done";
    runc(&agent, "web", script, json!({}), json!({ "terminationGracePeriodSeconds": 20 }));
    let pod = ready(&agent, "web");
    let text = log(&agent, &pod, "app", "err");
    assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
    let uid = uid(&agent, "web");
    let [listed] = &list(&place, &uid)[..] else { panic!("{:?}", list(&place, &uid)) };
    assert_eq!(listed["status"], "running");
    let id = status(&agent.pod("web").expect("the pod"))["containerID"].clone();
    assert_eq!(id, format!("berth://{}", listed["id"].as_str().expect("an id")));
    // The first process of the container is a child of the pod's supervisor.
    let stat = fs::read_to_string(format!("/proc/{}/stat", listed["pid"])).expect("a process");
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
    assert_eq!(parent, Some(supervisor(&agent, "web")));
    // The host sees no mount of it.
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&uid), "{mounts}");
    agent.delete("web.json");
    agent.gone("web");
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn how_a_container_ends_is_told_as_always() {
    let place = place();
    let agent = agent(&place, RUNC, &["runc"]);
    let never = json!({ "restartPolicy": "Never" });
    runc(&agent, "code", "echo done; exit 7", json!({}), never.clone());
    runc(&agent, "short", "exit 0", json!({}), never.clone());
    runc(&agent, "signal", "exec sleep 1000", json!({}), never.clone());
    let words = json!({ "terminationMessagePath": "/dev/last" });
    runc(&agent, "words", "echo why > /dev/last; exit 1", words, never.clone());
    let memory = json!({ "resources": { "limits": { "memory": "32Mi" } } });
    runc(&agent, "greedy", "exec tail /dev/zero", memory, never.clone());
    let init =
        json!({ "initContainers": [container("first", "echo first; exit 0", json!({}))], "restartPolicy": "Never" });
    runc(&agent, "init", "exit 3", json!({}), init);
    let terminated = |name: &str| {
        ended(&agent, name);
        status(&agent.pod(name).expect("the pod"))["state"]["terminated"].clone()
    };
    assert_eq!((&terminated("code")["exitCode"], &terminated("short")["exitCode"]), (&json!(7), &json!(0)));
    assert_eq!(terminated("short")["reason"], "Completed");
    ready(&agent, "signal");
    let pid = list(&place, &uid(&agent, "signal"))[0]["pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("kill the first process");
    assert_eq!((&terminated("signal")["exitCode"], &terminated("signal")["reason"]), (&json!(137), &json!("Error")));
    assert_eq!(terminated("words")["message"], "why\n");
    assert_eq!(
        (&terminated("greedy")["reason"], &terminated("greedy")["exitCode"]),
        (&json!("OOMKilled"), &json!(137))
    );
    assert_eq!(terminated("init")["exitCode"], 3);
    let pod = agent.pod("init").expect("the pod");
    let first = &pod["status"]["initContainerStatuses"][0]["state"]["terminated"];
    assert_eq!(first["exitCode"], 0);
    assert!(agent.ok(&["logs", &full_name(&pod), "-c", "first"]).contains("first"));

    // Restarts: each attempt is a container of its own, and runc forgets the ended ones.
    runc(&agent, "again", "echo run; exit 1", json!({}), json!({ "restartPolicy": "OnFailure" }));
    let pod = agent.until("again", "started twice", |pod| status(pod)["restartCount"].as_u64() >= Some(1));
    eventually("runc forgets what has ended", Duration::from_secs(20), || {
        list(&place, pod["metadata"]["uid"].as_str()?).iter().all(|one| one["status"] != "stopped").then_some(())
    });
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn commands_terminals_and_attachments() {
    let place = place();
    let agent = agent(&place, RUNC, &["runc"]);
    runc(
        &agent,
        "web",
        "exec sleep 1000",
        json!({ "env": [{ "name": "A", "value": "b c" }], "workingDir": "/tmp" }),
        json!({}),
    );
    let pod = ready(&agent, "web");
    assert_eq!(exec(&agent, &pod, "echo $A; pwd; id -u"), "b c\n/tmp\n0\n");
    let code = agent.cli(&["exec", &pod, "--", "sh", "-c", "echo no >&2; exit 42"]).expect("it runs");
    assert_eq!((code.status.code(), String::from_utf8_lossy(&code.stderr).contains("no")), (Some(42), true));
    let missing = agent.cli(&["exec", &pod, "--", "nothing"]).expect("it runs");
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && said.contains("executable file not found in $PATH"), "{said}");

    let mut terminal = Terminal::start(agent.command(&["exec", "-it", &pod, "--", "sh"]), 30, 90);
    terminal.write("stty size; tty; echo $((40 + 2))\n");
    terminal.expect("30 90", SOON);
    terminal.expect("/dev/pts/0", SOON);
    terminal.expect("42", SOON);
    terminal.write("exit 5\n");
    assert_eq!(terminal.wait(SOON), Some(5));

    let own = json!({ "tty": true, "stdin": true });
    runc(&agent, "shell", "stty size; exec sh", own, json!({}));
    let shell = ready(&agent, "shell");
    let mut terminal = Terminal::start(agent.command(&["attach", &shell, "-i"]), 33, 77);
    terminal.write("stty size; tty; echo $((40 + 2))\n");
    terminal.expect("33 77", SOON);
    terminal.expect("/dev/pts/0", SOON);
    terminal.expect("42", SOON);
    terminal.kill();
    assert!(log(&agent, &shell, "app", "42").contains("/dev/pts/0"));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn probes_hooks_and_the_grace_period() {
    let place = place();
    let agent = agent(&place, RUNC, &["runc"]);
    let out = place.path("out");
    fs::create_dir_all(&out).expect("a directory");
    let probe = |script: &str, more: Value| {
        with(json!({ "exec": { "command": ["sh", "-c", script] }, "periodSeconds": 1 }), more)
    };
    let own = json!({
        "readinessProbe": probe("test -e /out/ready", json!({})),
        "livenessProbe": probe("test ! -e /out/hang || sleep 1000", json!({ "timeoutSeconds": 1, "failureThreshold": 1 })),
        "lifecycle": {
            "postStart": { "exec": { "command": ["sh", "-c", "echo began >> /out/hooks"] } },
            "preStop": { "exec": { "command": ["sh", "-c", "echo stops >> /out/hooks"] } },
        },
        "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
    });
    let of_pod = json!({
        "volumes": [{ "name": "out", "hostPath": { "path": out } }], "terminationGracePeriodSeconds": 2,
    });
    runc(&agent, "web", "trap 'echo term >> /out/hooks' TERM; while :; do sleep 0.1; done", own, of_pod);
    let pod = agent.until("web", "running", |pod| status(pod)["state"]["running"].is_object());
    assert_ne!(condition(&pod, "Ready"), "True");
    fs::write(out.join("ready"), "").expect("a file");
    agent.ready("web");

    // A probe that hangs is killed with all that it started, and the container for it.
    fs::write(out.join("hang"), "").expect("a file");
    agent.until("web", "stopped", |pod| {
        let state = &status(pod)["state"];
        state["running"].is_null() || status(pod)["restartCount"].as_u64() >= Some(1)
    });
    fs::remove_file(out.join("hang")).expect("the file");
    agent.until("web", "restarted", |pod| status(pod)["restartCount"].as_u64() >= Some(1));
    fs::write(out.join("hooks"), "").expect("a file");
    agent.ready("web");
    agent.delete("web.json");
    agent.gone("web");
    let hooks = fs::read_to_string(out.join("hooks")).expect("what the hooks wrote");
    let lines: Vec<&str> = hooks.lines().filter(|line| *line != "began").collect();
    assert_eq!(lines, ["stops", "term"], "the hook, the signal, and the end of the grace period");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn volumes_are_the_same() {
    let place = place();
    let agent = agent(&place, RUNC, &["runc"]);
    let data = place.path("data");
    fs::create_dir_all(data.join("sub/deep")).expect("a directory");
    fs::write(data.join("sub/deep/file"), "deep").expect("a file");
    fs::write(data.join("file"), "alone").expect("a file");
    std::os::unix::fs::symlink("/etc", data.join("out")).expect("a link");
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings", "namespace": "default" }, "data": { "a": "1", "b": "2" },
    });
    agent.apply("settings.json", &settings.to_string());
    let own = json!({ "volumeMounts": [
        { "name": "data", "mountPath": "/data" },
        { "name": "data", "mountPath": "/deep", "subPath": "sub/deep", "readOnly": true },
        { "name": "data", "mountPath": "/one", "subPath": "file" },
        { "name": "data", "mountPath": "/made", "subPath": "new/directory" },
        { "name": "settings", "mountPath": "/settings" },
        { "name": "scratch", "mountPath": "/scratch" },
        { "name": "memory", "mountPath": "/memory" },
    ] });
    let of_pod = json!({ "volumes": [
        { "name": "data", "hostPath": { "path": data } },
        { "name": "settings", "configMap": { "name": "settings" } },
        { "name": "scratch", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
    ] });
    runc(&agent, "web", "exec sleep 1000", own, of_pod.clone());
    let pod = ready(&agent, "web");
    let seen = exec(
        &agent,
        &pod,
        "cat /deep/file /one /settings/a; echo; touch /deep/x 2>&1; touch /made/x /scratch/x /data/y; \
         stat -f -c %T /memory; df -k /memory | tail -n 1 | awk '{print $2}'",
    );
    let expected = "deepalone1\ntouch: /deep/x: Read-only file system\ntmpfs\n1024\n";
    assert_eq!(seen, expected);
    assert!(data.join("new/directory/x").exists() && data.join("y").exists());

    let escape = json!({ "volumeMounts": [{ "name": "data", "mountPath": "/out", "subPath": "out" }] });
    runc(&agent, "escape", "exec sleep 1000", escape, of_pod);
    explained(&agent, "escape", &["leads out of its volume"]);
    // An object that changes reaches the pod.
    let changed = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings", "namespace": "default" }, "data": { "a": "changed" },
    });
    agent.apply("settings.json", &changed.to_string());
    eventually("the new content is seen", Duration::from_secs(20), || {
        exec(&agent, &pod, "cat /settings/a").contains("changed").then_some(())
    });
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn limits_change_under_a_running_container() {
    let place = place();
    let agent = agent(&place, RUNC, &["runc"]);
    let limits = |cpu: &str, memory: &str| json!({ "resources": { "limits": { "cpu": cpu, "memory": memory } } });
    runc(&agent, "web", "exec sleep 1000", limits("500m", "32Mi"), json!({}));
    let pod = ready(&agent, "web");
    let uid = uid(&agent, "web");
    let memory = |file: &str| {
        let id = list(&place, &uid)[0]["id"].as_str().expect("an id").to_owned();
        let path = format!("/sys/fs/cgroup/memory{}/kubepods/pod{uid}/{id}/{file}", place.cgroup_root);
        fs::read_to_string(path).expect("a figure").trim().to_owned()
    };
    assert_eq!(memory("memory.limit_in_bytes"), (32 << 20).to_string());
    agent.ok(&["resize", &pod, "-c", "app", "--limits", "cpu=750m,memory=48Mi", "--requests", "cpu=750m,memory=48Mi"]);
    agent.until("web", "resized", |pod| {
        let resources = &status(pod)["resources"];
        resources["limits"]["memory"] == "48Mi" && resources["limits"]["cpu"] == "750m"
    });
    assert_eq!(memory("memory.limit_in_bytes"), (48 << 20).to_string());
    // The runtime knows, too.
    let state = place.path("run").join("pods").join(&uid).join("runtime");
    let id = list(&place, &uid)[0]["id"].as_str().expect("an id").to_owned();
    let kept: Value =
        serde_json::from_slice(&fs::read(state.join(id).join("state.json")).expect("runc's state")).expect("JSON");
    assert_eq!(kept["config"]["cgroups"]["memory"], 48 << 20);
    assert_eq!(status(&agent.pod("web").expect("the pod"))["restartCount"], 0);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn containers_outlive_the_agent_and_not_their_supervisor() {
    let place = place();
    let mut one = agent(&place, RUNC, &["runc"]);
    let before = standing(&one);
    runc(&one, "web", "echo begun; exec sleep 1000", json!({}), json!({}));
    let pod = ready(&one, "web");
    let uid = uid(&one, "web");
    let pid = list(&place, &uid)[0]["pid"].clone();
    one.kill();
    assert_eq!(list(&place, &uid)[0]["status"], "running");
    let config = place.path("config.yaml").display().to_string();
    let two = Agent::start(&place, &["--config", &config]).expect("an agent");
    let adopted = two.ready("web");
    assert_eq!(status(&adopted)["restartCount"], 0);
    assert_eq!(list(&place, &uid)[0]["pid"], pid);
    assert_eq!(exec(&two, &pod, "echo again"), "again\n");

    // The supervisor: everything dies with it, is forgotten, and is made again.
    kill(Pid::from_raw(supervisor(&two, "web")), Signal::SIGKILL).expect("kill the supervisor");
    let again = two.until("web", "started again", |pod| {
        status(pod)["restartCount"].as_u64() >= Some(1) && condition(pod, "Ready") == "True"
    });
    assert!(is_dead(&pid), "the first process");
    assert_eq!(list(&place, &uid).len(), 1, "runc knows of the new one alone");
    assert_ne!(list(&place, &uid)[0]["pid"], pid);

    // Its conductor: the container goes on, and nothing of it is left in the end.
    let id = status(&again)["containerID"].as_str().expect("an id").trim_start_matches("berth://").to_owned();
    let parent = supervisor(&two, "web");
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("children");
    let comm =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "berth-runtime");
    let conductor = children.split_whitespace().find(comm).expect("a conductor").parse().expect("a number");
    kill(Pid::from_raw(conductor), Signal::SIGKILL).expect("kill the conductor");
    assert_eq!(exec(&two, &pod, "echo still"), "still\n");
    assert!(list(&place, &uid).iter().any(|one| one["id"] == id.as_str()));
    two.delete("web.json");
    two.gone("web");
    before.assert_clean(&Machine::look(&place));
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn with_the_agent_dead_containers_still_end_with_their_supervisor() {
    let place = place();
    let mut one = agent(&place, RUNC, &["runc"]);
    runc(&one, "web", "exec sleep 1000", json!({}), json!({}));
    ready(&one, "web");
    let uid = uid(&one, "web");
    let pid = list(&place, &uid)[0]["pid"].clone();
    let of_pod = supervisor(&one, "web");
    one.kill();
    kill(Pid::from_raw(of_pod), Signal::SIGKILL).expect("kill the supervisor");
    eventually("the container is dead and forgotten", Duration::from_secs(20), || {
        (is_dead(&pid) && list(&place, &uid).is_empty()).then_some(())
    });
    let config = place.path("config.yaml").display().to_string();
    let two = Agent::start(&place, &["--config", &config]).expect("an agent");
    two.until("web", "started again", |pod| condition(pod, "Ready") == "True" && list(&place, &uid).len() == 1);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn what_cannot_be_run_is_said_in_the_runtimes_own_words_and_hurts_nobody_else() {
    let place = place();
    let grumpy = script(&place, "grumpy", "echo 'no hypervisor here' >&2\nexit 1");
    let hanging = script(&place, "hanging", "case \"$*\" in *features*) exit 1;; *) exec sleep 1000;; esac");
    let stuck = script(&place, "stuck", "exec sleep 1000");
    // Passes everything on to runc but the start.
    let late = script(
        &place,
        "late",
        "case \" $* \" in *' start '*) echo 'cannot start today' >&2; exit 3;; esac\nexec /usr/sbin/runc \"$@\"",
    );
    let handler = |name: &str, path: &str| format!("{{name: {name}, path: {path}, timeout: 2s}}");
    let all = [
        handler("runc", "/usr/sbin/runc"),
        handler("missing", "/nowhere/runtime"),
        handler("grumpy", &grumpy),
        handler("hanging", &hanging),
        handler("stuck", &stuck),
        handler("late", &late),
    ];
    let classes = ["runc", "missing", "grumpy", "hanging", "stuck", "late", "unknown"];
    let agent = agent(&place, &format!("runtime: {{handlers: [{}]}}", all.join(", ")), &classes);
    let before = standing(&agent);
    for class in &classes[1..] {
        apply(&agent, class, of_class(class, "exec sleep 1000", json!({}), json!({})));
    }
    scenario::run(&agent, "own", "exec sleep 1000", json!({}));
    runc(&agent, "other", "exec sleep 1000", json!({}), json!({}));
    ready(&agent, "own");
    ready(&agent, "other");
    explained(&agent, "unknown", &["RuntimeHandler \\\"unknown\\\" not supported"]);
    explained(&agent, "missing", &["CreateContainerError", "exec /nowhere/runtime", "No such file"]);
    explained(&agent, "grumpy", &["RunContainerError", "OCI runtime create failed", "no hypervisor here"]);
    explained(&agent, "hanging", &["RunContainerError", "OCI runtime create failed", "did not end within 2s"]);
    explained(&agent, "stuck", &["CreateContainerError", "features did not end within 2s"]);
    explained(&agent, "late", &["RunContainerError", "OCI runtime start failed", "cannot start today"]);
    // A command that is not there is found by runc itself.
    let nothing = json!({ "command": ["/nothing"] });
    runc(&agent, "nothing", "", nothing, json!({}));
    explained(
        &agent,
        "nothing",
        &["OCI runtime create failed", "runc create failed", "/nothing", "no such file or directory"],
    );
    let foreign = json!({ "hostUsers": false });
    runc(&agent, "mapped", "exec sleep 1000", json!({}), foreign);
    explained(&agent, "mapped", &["can't set `spec.hostUsers: false`", "does not support user namespaces"]);

    for name in ["own", "other", "nothing", "mapped"].iter().chain(&classes[1..]) {
        agent.delete(&format!("{name}.json"));
    }
    for name in ["own", "other", "nothing", "mapped"].iter().chain(&classes[1..]) {
        agent.gone(name);
    }
    before.assert_clean(&Machine::look(&place));
}

/// What a container of berth's own and one that runc makes for berth see differently: path and both sides as globs. All of
/// it is runc's own way of doing things; a side that sees nothing is `-`.
const DIFFERENT: &[[&str; 4]] = &[
    ["session|dies_with_parent", "SIGKILL", "-", "runc does not ask for it: the conductor sees to that"],
    ["signals|ignored", "0000000000000000", "*", "runc's language leaves a signal of its own ignored"],
    ["mounts|/dev|options", "nosuid,relatime,rw", "nosuid,rw", "times of access to device nodes"],
    ["mounts|/sys|super", "rw", "ro", "runc makes the file system read-only as well as its mount"],
    ["writable|/sys/kernel/uevent_seqnum", "permission denied", "read-only file*", "follows from /sys"],
    [
        "mounts|/proc/*",
        "*",
        "*",
        "what hides a path: an empty directory, the null device of the host or of the container",
    ],
    ["mounts|/sys/firmware|*", "*", "*", "the same"],
    ["mounts|/sys/devices/virtual/powercap|*", "*", "*", "the same"],
    ["mounts|/sys/devices/system/cpu/*", "*", "*", "the same"],
    ["mounts|/sys/fs/cgroup|options", "*,ro", "*,rw", "the directory of version 1 hierarchies"],
    ["writable|/sys/fs/cgroup", "read-only file*", "*", "the same"],
    ["cgroups|figures|pids/pids.max", "-", "max", "version 1: runc uses every hierarchy"],
    ["cgroups|figures|devices/devices.list", "-", "a *:* rwm", "the same, of a privileged container"],
    ["devices|/dev/mqueue", "d 1777 0:0", "d 1777 0:*", "who made the IPC namespace"],
];

fn matches(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((start, rest)) => {
            text.starts_with(start)
                && (0..=text.len() - start.len())
                    .any(|skipped| text.get(start.len() + skipped..).is_some_and(|text| matches(rest, text)))
        }
    }
}

/// What a container of this class sees of its surroundings.
fn see(agent: &Agent, place: &Place, name: &str, class: &str, own: &Value, of_pod: &Value) -> Value {
    let app = with(json!({ "name": "app", "image": "inside:1", "command": ["/inside"] }), own.clone());
    let mut spec = with(json!({ "restartPolicy": "Never", "hostname": "same", "containers": [app] }), of_pod.clone());
    if !class.is_empty() {
        spec["runtimeClassName"] = class.into();
    }
    apply(agent, name, spec);
    let pod = ended(agent, name);
    let log = agent.ok(&["logs", &pod]);
    let seen = serde_json::from_str(log.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {log}\n{:#}", agent.pod(name).expect("the pod")["status"]));
    normalize(&seen, place)
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_container_of_runc_sees_what_one_of_berths_own_sees() {
    let place = place();
    let agent = agent(&place, RUNC, &["runc"]);
    let program = fs::read(env!("CARGO_BIN_EXE_inside")).expect("the program that looks around");
    let image = Layout::new().file("inside", 0o755, &program).write(place.path("image-inside"));
    agent.ok(&["load", "--name", "inside:1", &image]);
    let security = |context: Value| json!({ "securityContext": context });
    let groups = json!({ "supplementalGroups": [10, 4000], "fsGroup": 5000, "supplementalGroupsPolicy": "Strict" });
    let sysctls = json!({ "sysctls": [
        { "name": "kernel.shm_rmid_forced", "value": "1" }, { "name": "net.ipv4.ip_unprivileged_port_start", "value": "81" },
    ] });
    let tuned = json!({ "workingDir": "/var/www", "env": [{ "name": "A", "value": "b c" }] });
    let limited =
        json!({ "resources": { "limits": { "memory": "64Mi", "cpu": "250m" }, "requests": { "cpu": "100m" } } });
    let cases = [
        ("plain", json!({}), json!({})),
        ("user", security(json!({ "runAsUser": 1000, "runAsGroup": 3000 })), security(groups)),
        ("caps", security(json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } })), json!({})),
        ("tight", security(json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true })), json!({})),
        ("filtered", security(json!({ "seccompProfile": { "type": "RuntimeDefault" } })), json!({})),
        ("privileged", security(json!({ "privileged": true })), json!({})),
        ("tuned", tuned, security(sysctls)),
        ("limited", limited, json!({})),
        ("hosts", json!({}), json!({ "hostNetwork": true, "hostPID": true, "hostIPC": true })),
        ("shared", json!({}), json!({ "shareProcessNamespace": true })),
    ];
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut unexplained = BTreeSet::new();
    for (name, own, mut of_pod) in cases {
        if of_pod["hostNetwork"] == true {
            of_pod["hostname"] = Value::Null;
        }
        let ours = see(&agent, &place, &format!("{name}-own"), "", &own, &of_pod);
        let theirs = see(&agent, &place, &format!("{name}-runc"), "runc", &own, &of_pod);
        for (path, ours, theirs) in differences(&ours, &theirs) {
            let (ours, theirs) = (text(&ours), text(&theirs));
            // Whose name or number it is.
            if path == "environment|HOSTNAME" && ours != "same" || path == "processes|own" && name == "hosts" {
                continue;
            }
            let explains =
                |[at, one, other, _]: &[&str; 4]| matches(at, &path) && matches(one, &ours) && matches(other, &theirs);
            if !DIFFERENT.iter().any(explains) {
                unexplained.insert(format!("{name}: {path}: berth {ours:?}, runc {theirs:?}"));
            }
        }
    }
    assert!(unexplained.is_empty(), "{unexplained:#?}");
}
