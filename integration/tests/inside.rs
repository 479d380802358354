//! What a container of a pod sees, beside what one of runc sees that was asked for the same.

use std::{fs, path::Path};

use berth_integration::{
    Agent, Place,
    layout::Layout,
    oracle::{Runc, differences, normalize},
    scenario::{agent, apply, ended, place, with},
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// A test image with the program that looks around.
fn image(place: &Place) -> String {
    let program = fs::read(env!("CARGO_BIN_EXE_inside")).expect("the program that looks around");
    Layout::new().file("inside", 0o755, &program).write(place.path("image-inside"))
}

/// What the program sees in the only container of a pod with this specification; and the pod.
fn see(agent: &Agent, name: &str, spec: &Value) -> (Value, Pod) {
    apply(agent, name, spec.clone());
    let pod = ended(agent, name);
    let log = agent.ok(&["logs", &pod]);
    let seen = serde_json::from_str(log.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {log}\n{:#}", agent.pod(name).expect("the pod")["status"]));
    let pod = serde_json::from_value(agent.pod(name).expect("the pod")).expect("a pod");
    (seen, pod)
}

/// A difference there has to be, or may be: path and both sides as globs, and why it is one. A side that sees nothing is
/// `-`.
struct Explained {
    path: &'static str,
    berth: &'static str,
    runc: &'static str,
    /// Seen on every machine; the others depend on the kernel's features.
    always: bool,
    /// For the reader; printed when the difference is missing.
    why: &'static str,
}

const fn must(path: &'static str, berth: &'static str, runc: &'static str, why: &'static str) -> Explained {
    Explained { path, berth, runc, always: true, why }
}

const fn may(path: &'static str, berth: &'static str, runc: &'static str, why: &'static str) -> Explained {
    Explained { path, berth, runc, always: false, why }
}

/// Differences of every container.
const COMMON: &[Explained] = &[
    must("descriptors|0", "/dev/null", "pipe", "runc passes its own input on; a container that asks for none has none"),
    must("session|dies_with_parent", "SIGKILL", "-", "no container outlives the process that records how it ended"),
    must("signals|ignored", "0000000000000000", "*", "runc's language leaves a signal of its own ignored"),
    must(
        "mounts|/dev|options",
        "nosuid,relatime,rw",
        "nosuid,rw",
        "times of access to device nodes are of no use to anybody",
    ),
    may("mounts|/sys|super", "rw", "ro", "runc makes the file system read-only as well as its mount"),
    may(
        "writable|/sys/kernel/uevent_seqnum",
        "permission denied",
        "read-only file*",
        "follows from /sys: which of two checks is first",
    ),
    may(
        "mounts|/proc/*|options",
        "nodev,noexec,nosuid,relatime,ro",
        "relatime,ro",
        "an empty directory that hides one allows nothing at all",
    ),
    may("mounts|/sys/firmware|options", "nodev,noexec,nosuid,relatime,ro", "relatime,ro", "the same"),
    may("mounts|/sys/devices/virtual/powercap|options", "nodev,noexec,nosuid,relatime,ro", "relatime,ro", "the same"),
    may("mounts|/*|super", "*mode=555,nr_inodes=1,rw,size=4k*", "*ro*", "the same: it could not hold a file either"),
    may(
        "mounts|/proc/*|options",
        "relatime,rw",
        "nosuid,rw",
        "files are hidden by the host's null device, not by what the image has (CVE-2025-31133)",
    ),
    may("mounts|/proc/*|super", "mode=755,*", "mode=755,rw,size=65536k*", "the same"),
    may("mounts|/proc/*|type", "devtmpfs", "tmpfs", "the same"),
    may(
        "mounts|/sys/fs/cgroup|options",
        "nodev,noexec,nosuid,relatime,ro",
        "nodev,noexec,nosuid,relatime,rw",
        "the directory of version 1 hierarchies cannot be written either",
    ),
    may("writable|/sys/fs/cgroup", "read-only file*", "*", "the same"),
    may(
        "cgroups|figures|pids/pids.max",
        "-",
        "*",
        "version 1: only hierarchies with limits have a directory for the container",
    ),
];

/// Differences of containers that have a seat in a user namespace.
const MAPPED: &[Explained] = &[
    must(
        "mounts|/dev/shm|options",
        "idmapped,nodev,noexec,nosuid,relatime,rw",
        "nodev,noexec,nosuid,relatime,rw",
        "the pod's own, made once on the host and mapped; runc makes one for the container",
    ),
    must("mounts|/dev/shm|super", "rw,size=*", "gid=*,rw,size=*,uid=*", "the same"),
    must(
        "mounts|/dev/termination-log|options",
        "idmapped,relatime,rw",
        "relatime,rw",
        "this runc knows no idmapped mounts: its files were given to the owner before",
    ),
    must("mounts|/etc/*|options", "idmapped,relatime,rw", "relatime,rw", "the same"),
    must(
        "devices|/dev/mqueue",
        "d 1777 0:0",
        "d 1777 0:65534",
        "runc makes the IPC namespace before it has taken a group",
    ),
];

/// What a privileged container sees.
const PRIVILEGED: &[Explained] = &[may(
    "cgroups|figures|devices/devices.list",
    "-",
    "a *:* rwm",
    "version 1: without rules there is no directory for the container",
)];

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

struct World<'a> {
    place: &'a Place,
    agent: Agent<'a>,
    runc: Runc<'a>,
}

impl<'a> World<'a> {
    fn new(place: &'a Place) -> World<'a> {
        let agent = agent(place, &[]);
        let layout = image(place);
        agent.ok(&["load", "--name", "inside:1", &layout]);
        World { place, agent, runc: Runc::new(place, Path::new(&layout)) }
    }

    /// Runs a container with these fields of its own and of its pod both ways. Each difference must be explained, by
    /// what is common to all or by `more`, and what is explained must be there.
    #[track_caller]
    fn compare(&self, name: &str, own: Value, of_pod: Value, more: &[Explained]) -> Value {
        let app = with(json!({ "name": "app", "image": "inside:1", "command": ["/inside"] }), own);
        let spec = with(json!({ "restartPolicy": "Never", "containers": [app] }), of_pod);
        let (seen, pod) = see(&self.agent, name, &spec);
        let variables = seen["environment"].as_object().expect("variables");
        // runc finds out about HOME by itself, too.
        let env: Vec<(&str, &str)> = variables
            .iter()
            .filter(|(name, _)| *name != "HOME")
            .map(|(name, value)| (name.as_str(), value.as_str().expect("text")))
            .collect();
        let map = seen["maps"]["uid"].as_str().expect("a map");
        let owner = map.split(' ').nth(1).and_then(|first| first.parse().ok()).filter(|first| *first != 0);
        let reference = self.runc.see(name, &pod, &env, owner);

        let text = |value: &Value| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let found = differences(&normalize(&seen, self.place), &normalize(&reference, self.place));
        let found: Vec<[String; 3]> =
            found.iter().map(|(path, ours, theirs)| [path.clone(), text(ours), text(theirs)]).collect();
        let explains = |one: &Explained, [path, ours, theirs]: &[String; 3]| {
            matches(one.path, path) && matches(one.berth, ours) && matches(one.runc, theirs)
        };
        let known = || COMMON.iter().chain(more);
        let unexplained: Vec<String> = found
            .iter()
            .filter(|difference| !known().any(|one| explains(one, difference)))
            .map(|[path, ours, theirs]| format!("{path}: berth {ours:?}, runc {theirs:?}"))
            .collect();
        let missing: Vec<String> = known()
            .filter(|one| one.always && !found.iter().any(|difference| explains(one, difference)))
            .map(|one| format!("{} ({})", one.path, one.why))
            .collect();
        assert!(
            unexplained.is_empty() && missing.is_empty(),
            "{name}\nnot explained:\n{}\nexplained, and not there:\n{}",
            unexplained.join("\n"),
            missing.join("\n")
        );
        seen
    }
}

fn security(context: Value) -> Value {
    json!({ "securityContext": context })
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_plain_container_sees_what_runc_shows() {
    let place = place();
    let world = World::new(&place);
    let seen = world.compare("plain", json!({}), json!({}), &[]);
    // A few things that both could have wrong.
    assert_eq!(seen["status"]["CapEff"], "00000000a80425fb");
    assert_eq!(seen["status"]["CapInh"], "0000000000000000");
    assert_eq!(seen["processes"], json!({ "own": 1, "first_only": true }));
    assert_eq!(seen["descriptors"], json!({ "0": "/dev/null", "1": "pipe", "2": "pipe" }));
    assert_eq!(seen["umask"], "022");
    for (path, state) in seen["masked"].as_object().expect("paths") {
        assert_ne!(state, "readable", "{path}");
    }
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace").display().to_string();
        assert_ne!(seen["namespaces"][kind], host, "{kind}");
    }
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn users_and_groups() {
    let place = place();
    let world = World::new(&place);
    let groups = json!({ "supplementalGroups": [10, 4000], "fsGroup": 5000, "supplementalGroupsPolicy": "Strict" });
    let own = security(json!({ "runAsUser": 1000, "runAsGroup": 3000 }));
    let seen = world.compare("user", own, security(groups), &[]);
    assert_eq!(seen["status"]["Groups"], "10 3000 4000 5000");
    assert_eq!(seen["status"]["CapEff"], "0000000000000000");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn capabilities_and_privileges() {
    let place = place();
    let world = World::new(&place);
    let capabilities = |add: Value, drop: Value| security(json!({ "capabilities": { "add": add, "drop": drop } }));
    let few = world.compare("few", capabilities(json!(["NET_ADMIN"]), json!(["ALL"])), json!({}), &[]);
    assert_eq!(few["status"]["CapBnd"], "0000000000001000");
    world.compare("most", capabilities(json!(["ALL"]), json!(["SYS_TIME", "KILL"])), json!({}), &[]);
    // Both ways round, ALL never wins over what is named.
    let both = world.compare("both", capabilities(json!(["ALL", "CHOWN"]), json!(["ALL", "KILL"])), json!({}), &[]);
    assert_eq!(both["status"]["CapBnd"], "0000000000000001");
    let none = json!({ "runAsUser": 1000, "runAsGroup": 7, "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] } });
    let none = world.compare("none", security(none), strict(json!({})), &[]);
    assert_eq!((&none["status"]["NoNewPrivs"], &none["status"]["CapBnd"]), (&json!("1"), &json!("0000000000000400")));
    world.compare("privileged", security(json!({ "privileged": true })), json!({}), PRIVILEGED);
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn everything_else() {
    let place = place();
    let world = World::new(&place);
    world.compare("frozen", security(json!({ "readOnlyRootFilesystem": true })), json!({}), &[]);
    let profile = json!({ "seccompProfile": { "type": "RuntimeDefault" } });
    let filtered = world.compare("filtered", security(profile), json!({}), &[]);
    assert_eq!(filtered["status"]["Seccomp"], "2");
    let sysctls = json!({ "sysctls": [
        { "name": "kernel.shm_rmid_forced", "value": "1" }, { "name": "net.ipv4.ip_unprivileged_port_start", "value": "81" },
    ] });
    let own = json!({ "workingDir": "/var/www", "env": [{ "name": "A", "value": "b c" }] });
    let tuned = world.compare("tuned", own, security(sysctls), &[]);
    assert_eq!(tuned["sysctls"]["net/ipv4/ip_unprivileged_port_start"], "81");
    let limits = json!({ "resources": { "limits": { "memory": "64Mi", "cpu": "250m" } } });
    world.compare(
        "limited",
        limits,
        json!({}),
        &[must("oom_score_adj", "*", "1000", "follows from the class of the pod, and from what the agent may lower")],
    );
    let named = world.compare(
        "named",
        json!({}),
        json!({ "hostnameOverride": "db.example.com" }),
        &[
            must("hostname", "db.example.com", "named*", "runc was given the pod's name"),
            must("sysctls|kernel/hostname", "db.example.com", "named*", "the same"),
        ],
    );
    assert_eq!(named["environment"]["HOSTNAME"], "db.example.com");
}

#[test]
#[ignore = "rootful: run by make test with --include-ignored"]
fn a_user_namespace() {
    let place = place();
    let world = World::new(&place);
    let seen = world.compare("mapped", json!({}), json!({ "hostUsers": false }), MAPPED);
    assert_eq!(seen["maps"]["gid"], "0 65536 65536");
    world.compare(
        "web",
        security(json!({ "runAsUser": 1000, "runAsGroup": 1000 })),
        strict(json!({ "hostUsers": false })),
        MAPPED,
    );
}

/// A pod whose containers are in no groups of the image's: runc does not look for any.
fn strict(more: Value) -> Value {
    with(security(json!({ "supplementalGroups": [7], "supplementalGroupsPolicy": "Strict" })), more)
}
